"""How a training set is split, and that no two splits share an example."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import torch

from pruneaudit.errors import ConfigError
from pruneaudit.streams import generator

#: The split never depends on a run's seed: every run of a dataset sees the same three parts.
SPLIT_SEED = 20230112


def stratified(
    labels: np.ndarray, held_out: int, name: str, eligible: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Split indices so that each class gives up its share of ``held_out`` (largest remainders first).

    Args:
        labels: ``[N]``.
        held_out: How many are held out.
        name: What for: the stream of the draw.
        eligible: Which examples may be held out, ``[N]`` bool; None: all.

    Returns:
        Indices that stay and indices that are held out, both sorted.

    Raises:
        ConfigError: A class has too few examples that may be held out.
    """
    draw = generator(SPLIT_SEED, name)
    shuffled = torch.randperm(len(labels), generator=draw).numpy()
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * (held_out / len(labels))
    share = np.floor(exact).astype(int)
    for position in np.argsort(-(exact - share), kind="stable")[: held_out - share.sum()]:
        share[position] += 1
    if eligible is not None:
        shuffled = shuffled[eligible[shuffled]]
    taken = [shuffled[labels[shuffled] == label][:number] for label, number in zip(classes, share, strict=True)]
    for label, found, number in zip(classes, taken, share, strict=True):
        if len(found) < number:
            raise ConfigError(
                f"class {label} has {len(found)} examples without a second copy, and {number} are to be held out for "
                f"{name}: remove copies, or bring a {name} split"
            )
    mask = np.zeros(len(labels), dtype=bool)
    mask[np.concatenate(taken)] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)


def single(digests: np.ndarray) -> np.ndarray:
    """Which examples have no second copy, ``[N]`` bool, by their digests ``[N, bytes]`` uint8, eight at least."""
    keys = _keys(digests)
    order = np.argsort(keys)
    same = keys[order[1:]] == keys[order[:-1]]
    found = np.ones(len(keys), dtype=bool)
    found[order[1:][same]] = found[order[:-1][same]] = False
    return found


def refuse_overlap(splits: Mapping[str, np.ndarray], where: str) -> None:
    """See to it that no example is in two splits; copies inside a split are fine.

    Args:
        splits: Digests of the examples of each split, ``[N, bytes]`` uint8, eight at least, by its name.
        where: What holds them, for the error.

    Raises:
        ConfigError: Some are in two.
    """
    for (one, first), (other, second) in combinations(splits.items(), 2):
        shared = np.intersect1d(_keys(first), _keys(second))
        if len(shared):
            raise ConfigError(
                f"{where}: {len(shared)} example{'s are' if len(shared) > 1 else ' is'} both in {one} and in {other}; "
                f"remove {'them' if len(shared) > 1 else 'it'} from one of the two"
            )


def _keys(digests: np.ndarray) -> np.ndarray:
    """Eight bytes of each digest as one number: a million different examples share one by a chance of 1e-8."""
    return np.ascontiguousarray(digests[:, :8]).view(np.uint64).ravel()
