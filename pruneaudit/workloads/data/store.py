"""Decoded images in one file: what is decoded once need not be decoded again.

The file is read, not mapped into memory: what a process holds does not grow with the number of images.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

# Bytes that are read at once while a file is checked.
_BLOCK = 2**22


class Store:
    """Inputs of one size, ``[N, H, W, C]`` uint8, in a file.

    Args:
        path: The file.
        count: How many they are.
        shape: Of one, ``(H, W, C)``.
    """

    def __init__(self, path: Path, count: int, shape: tuple[int, ...]) -> None:
        self.path = path
        self.count = count
        self.shape = shape
        self._bytes = int(np.prod(shape))
        self._file: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A process that it is sent to opens the file itself.
        return {**vars(self), "_file": None}

    def __del__(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)

    def read(self, index: Sequence[int]) -> torch.Tensor:
        """Some of them, ``[B, H, W, C]``.

        Raises:
            OSError: The file is shorter than it was.
        """
        if self._file is None:
            self._file = os.open(self.path, os.O_RDONLY)
        found = np.empty((len(index), self._bytes), dtype=np.uint8)
        for row, number in zip(found, index, strict=True):
            if os.preadv(self._file, [row.data], number * self._bytes) != self._bytes:
                raise OSError(f"{self.path} has become shorter")
        return torch.from_numpy(found.reshape(len(index), *self.shape))

    def is_whole(self) -> bool:
        """Whether the file holds what was written, by the digest beside it."""
        try:
            if self.path.stat().st_size != self.count * self._bytes:
                return False
            found = hashlib.sha256()
            with self.path.open("rb") as file:
                while block := file.read(_BLOCK):
                    found.update(block)
            return found.hexdigest() == self._witness.read_text(encoding="ascii")
        except OSError:
            return False

    @property
    def _witness(self) -> Path:
        return self.path.with_suffix(".sha256")

    def write(self, batches: Iterable[torch.Tensor]) -> None:
        """Write all of them, in order; a file is there as a whole or not at all.

        Raises:
            OSError: There is no room for it.
        """
        draft, found = self.path.with_name(f"{self.path.name}.{secrets.token_hex(8)}.tmp"), hashlib.sha256()
        try:
            with draft.open("wb") as file:
                for batch in batches:
                    content = np.ascontiguousarray(batch.numpy()).data
                    found.update(content)
                    file.write(content)
            self._witness.write_text(found.hexdigest(), encoding="ascii")
            draft.replace(self.path)
        finally:
            draft.unlink(missing_ok=True)


def kept(folder: Path, key: str, count: int, shape: tuple[int, ...], batches: Iterable[torch.Tensor]) -> Store | None:
    """The store of some inputs, made where there is none yet.

    Args:
        folder: Cache folder.
        key: Of everything that the inputs depend on.
        count: How many they are.
        shape: Of one, ``(H, W, C)``.
        batches: The inputs in order, asked for only where they are needed.

    Returns:
        The store; None where the folder has no room for it or may not be written.
    """
    store = Store(folder / f"decoded-{key[:24]}.u8", count, shape)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"decoded-{key[:24]}.lock"):
            if store.is_whole():
                return store
            if shutil.disk_usage(folder).free < 2 * count * int(np.prod(shape)):
                return None
            store.write(batches)
    except OSError:
        return None
    return store
