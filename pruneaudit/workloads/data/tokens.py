"""Text of local files as tokens, by the tokenizer of a model's folder: WikiText-2, C4, or anybody's own.

A folder holds a file or several for each of ``train``, ``validation`` and ``test``, which say in their names which
split they are of (``wiki.test.raw``, ``c4-train.00000-of-01024.json.gz``, ``test-00000-of-00001.parquet``). Text is
taken as it is; of lines of JSON, and of tables, the documents in ``text`` are joined.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pruneaudit.errors import ConfigError, DataMissingError, one_line
from pruneaudit.workloads.data.examples import Arrays
from pruneaudit.workloads.networks import config_of
from pruneaudit.workloads.schema import DataConfig
from pruneaudit.workloads.sharded import TOKENIZER, file_digest

_SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}


def windows_of(config: DataConfig, place: Path) -> tuple[dict[str, Arrays], dict[str, int], int, str]:
    """Windows of tokens of a folder of texts, split by split.

    Files of a split are read in the order of their names, and their documents joined. Windows do not overlap: each
    token but a split's first is predicted once, and a tail that fills no window is left out. What the tokenizer puts
    before a text (a first token) stands before the whole split, once.

    Args:
        config: The workload's data section: its tokenizer, the length of a window, and what joins documents.
        place: The folder.

    Returns:
        Inputs ``[N, window]`` and labels ``[N, window]``, one token later; bytes in UTF-8 of the text that the labels
        of each split stand for; how many tokens there are; and what tells the tokenizer from another one.

    Raises:
        ConfigError: The tokenizer or a file is wrong, or a split is too short.
        DataMissingError: A split has no file.
    """
    tokenizer, words, version = tokenizer_of(config)
    found, sizes = {}, {}
    for split, paths in _files(place).items():
        documents = [document for path in paths for document in _documents(path)]
        text = config.join.join(documents)
        tokens = tokenizer.encode(text)
        numbers = np.asarray(tokens.ids, dtype=np.int64)
        count = (len(numbers) - 1) // config.window
        if count < 1:
            raise ConfigError(
                f"{config.name}: {split} has {len(numbers)} tokens, which fill no window of {config.window}; give more "
                "text, or a shorter data.window"
            )
        inputs = torch.from_numpy(numbers[: count * config.window].reshape(count, config.window))
        found[split] = Arrays(inputs, numbers[1 : count * config.window + 1].reshape(count, config.window))
        # From where the first of them ends, in characters; a token that no text has, as the first may be, has no place.
        first, last = (tokens.token_to_chars(number) or (0, 0) for number in (0, count * config.window))
        sizes[split] = len(text[first[1] : last[1]].encode())
    return found, sizes, words, version


def tokenizer_of(config: DataConfig) -> tuple[Any, int, str]:
    """A tokenizer of Hugging Face's, how many tokens its model has, and what tells it from another one.

    Raises:
        ConfigError: There is none, or it is damaged.
    """
    try:
        import tokenizers
    except ImportError:
        raise ConfigError(f"{config.name} needs tokenizers: pip install 'pruneaudit[transformers]'") from None
    folder = (config.folder or Path()) / Path(config.tokenizer).expanduser()
    path = folder / TOKENIZER
    if not path.is_file():
        raise ConfigError(f"data.tokenizer: no {path}; name the folder of a model that has one")
    try:
        found = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:
        raise ConfigError(f"data.tokenizer: {path} is damaged ({one_line(error)}); copy it again") from None
    # Files may ask for the lengths of what they were trained for.
    found.no_truncation()
    found.no_padding()
    words = found.get_vocab_size()
    if (folder / "config.json").is_file():
        # Models often have some more, so that their number is a round one.
        described = config_of(folder)
        described = described.get("text_config") or described
        words = max(words, int(described.get("vocab_size", 0)))
    return found, words, f"{file_digest(path)} tokenizers {tokenizers.__version__}"


def _files(place: Path) -> dict[str, list[Path]]:
    """Files of each split."""
    found: dict[str, list[Path]] = {"train": [], "validation": [], "test": []}
    for path in sorted(place.iterdir()):
        named = [_SPLITS[word] for word in re.split(r"[^a-z]+", path.name.lower()) if word in _SPLITS]
        if named and path.is_file():
            found[named[0]].append(path)
    missing = next((split for split, paths in found.items() if not paths), None)
    if missing is not None:
        raise DataMissingError(f"texts: {place} has no file with '{missing}' in its name; put one there")
    return found


def _documents(path: Path) -> list[str]:
    """What a file holds; text as it is has one document."""
    name = path.name.removesuffix(".gz")
    read = next((each for ending, each in _READERS.items() if name.endswith(ending)), None)
    if read is None:
        raise ConfigError(f"texts: {path} ends in none of {', '.join(_READERS)}; convert or remove it")
    try:
        if read is _parquet:
            return _parquet(path)
        opened: Any = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8", newline="") as file:
            return read(file)
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"texts: {path} cannot be read as {name.rpartition('.')[2]}: {one_line(error)}") from None


def _text(file: Any) -> list[str]:
    return [file.read()]


def _lines(file: Any) -> list[str]:
    return [json.loads(line)["text"] for line in file if line.strip()]


def _parquet(path: Path) -> list[str]:
    import pandas

    try:
        return list(pandas.read_parquet(path, columns=["text"])["text"])
    except ImportError:
        raise ConfigError(
            f"texts: {path} needs pyarrow: pip install 'pruneaudit[parquet]', or save it as lines of JSON"
        ) from None


_READERS: dict[str, Callable[[Any], list[str]]] = {
    ".txt": _text,
    ".raw": _text,
    ".tokens": _text,
    ".jsonl": _lines,
    ".json": _lines,
    ".parquet": _parquet,
}
