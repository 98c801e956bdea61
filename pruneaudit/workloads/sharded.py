"""Base models as folders, as Hugging Face keeps them: ``config.json``, weights in one file or in shards, a tokenizer.

What they hold is told by the headers of the files. Weights are read tensor by tensor to where the network keeps them,
and never lie in memory twice: neither are files mapped, whose pages count as the process's own.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruneaudit import sources
from pruneaudit.errors import ConfigError
from pruneaudit.workloads.networks import config_of

if TYPE_CHECKING:
    import torch

#: The files of weights: all in one, or what says in which shard each tensor is.
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
# Of safetensors' header: its length in eight bytes, and the most that the format allows it.
_LENGTH, _MOST = 8, 100_000_000
# Types by safetensors' names. Of others there are quantised ones, which compute otherwise.
_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_OTHERS = {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file of weights.

    Attributes:
        path: The file.
        kind: Type, by torch's name.
        shape: Sizes.
        start: Its first byte in the file.
        stop: The byte behind its last one.
    """

    path: Path
    kind: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def is_float(self) -> bool:
        """Whether its values are plain floating-point numbers."""
        return self.kind in _FLOATS.values()


def stored_in(folder: Path) -> dict[str, Stored]:
    """Tensors of a folder by name, as the headers of its files tell them; no weight is read.

    Raises:
        ConfigError: A file is missing, cut short or none of safetensors; one line says which and what to do.
    """
    found: dict[str, Stored] = {}
    promised = _promised(folder)
    for path in dict.fromkeys(promised.values()) if promised is not None else [folder / WHOLE]:
        for name, tensor in _header(path):
            if promised is None or promised.get(name) == path:
                found[name] = tensor
    for name, path in (promised or {}).items():
        if name not in found:
            raise ConfigError(f"base {path}: no tensor '{name}', which {INDEX} promises; copy the folder again")
    return found


def digest(folder: Path) -> str:
    """SHA-256 over all that makes a model of a folder: its configuration, its tokenizer and its weights.

    Files are read in blocks, in the order of their names.

    Raises:
        ConfigError: One cannot be read.
    """
    config = json.dumps(config_of(folder), sort_keys=True)
    found = hashlib.sha256(config.encode())
    promised = _promised(folder)
    paths = {folder / WHOLE} if promised is None else set(promised.values())
    paths |= {folder / TOKENIZER} if (folder / TOKENIZER).is_file() else set()
    for path in sorted(paths):
        found.update(f"{path.name}:{file_digest(path)}".encode())
    return found.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read in blocks.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        return sources.file_digest(path)
    except OSError as error:
        raise ConfigError(f"base {path}: {error.strerror}; copy the folder again") from None


def read(tensor: Stored) -> torch.Tensor:
    """A tensor of a file, in the file's type and in memory of its own.

    Raises:
        ConfigError: It cannot be read.
    """
    import torch

    values = torch.empty(tensor.shape, dtype=getattr(torch, tensor.kind))
    if not values.numel():
        return values
    room = memoryview(values.view(-1).view(torch.uint8).numpy().data)
    try:
        with tensor.path.open("rb", buffering=0) as file:
            file.seek(tensor.start)
            done = 0
            while done < len(room):
                count = file.readinto(room[done:])
                if not count:
                    raise ConfigError(f"base {tensor.path}: ends too early; copy it again")
                done += count
    except OSError as error:
        raise ConfigError(f"base {tensor.path}: {error.strerror}; copy it again") from None
    return values


def _promised(folder: Path) -> dict[str, Path] | None:
    """In which shard each tensor is, by the index; None where there is one file only."""
    index = folder / INDEX
    if not index.is_file():
        if (folder / WHOLE).is_file():
            return None
        others = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth", ".gguf"))
        beside = f", but {others[0]}: save it once more with save_pretrained" if others else "; copy its weights there"
        raise ConfigError(f"base {folder}: has neither {WHOLE} nor {INDEX}{beside}")
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {str(name): str(file) for name, file in named.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"base {index}: no index of shards (weight_map); copy it again") from None
    for file in sorted(set(files.values())):
        if Path(file).name != file or not (folder / file).is_file():
            raise ConfigError(f"base {folder}: shard {file} is missing, which {INDEX} names; copy it there")
    return {name: folder / file for name, file in files.items()}


def _header(path: Path) -> Iterator[tuple[str, Stored]]:
    """Tensors of a file of safetensors."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(_LENGTH)
            (length,) = struct.unpack("<Q", start) if len(start) == _LENGTH else (0,)
            content = file.read(length) if 0 < length <= min(_MOST, size) else b""
    except OSError as error:
        raise ConfigError(f"base {path}: {error.strerror}; copy it there") from None
    if start.startswith(b"version "):
        raise ConfigError(f"base {path}: only a pointer of Git LFS; fetch the file itself with 'git lfs pull'")
    try:
        entries: Mapping[str, Any] = json.loads(content)
        described = [
            (name, str(entry["dtype"]), tuple(map(int, entry["shape"])), int(first), int(last))
            for name, entry in entries.items()
            if name != "__metadata__"
            for first, last in [entry["data_offsets"]]
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"base {path}: not a safetensors file or damaged; convert or copy it again") from None
    end = _LENGTH + length
    for name, stored_as, shape, first, last in described:
        kind = (_FLOATS | _OTHERS).get(stored_as)
        if kind is None:
            raise ConfigError(
                f"base {path}: tensor '{name}' is stored as {stored_as}, as in quantised networks, which compute "
                "otherwise; give its float weights"
            )
        if end + last > size:
            raise ConfigError(f"base {path}: ends before its tensor '{name}' does; copy it again")
        yield name, Stored(path, kind, shape, end + first, end + last)
