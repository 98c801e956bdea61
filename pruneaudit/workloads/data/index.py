"""What is known of the files of a folder, in one file of records of one length.

A record is read where it is needed: what a process holds does not grow with the number of images.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

#: Records of a block: what is held at once where all of them are read.
BLOCK = 4096
# Bytes before the first record: what the file holds, in JSON.
_HEADER = 256
_FACTS: list[tuple[Any, ...]] = [
    ("size", "<i8"),
    ("changed", "<i8"),
    ("sha", "u1", (32,)),
    ("width", "<i4"),
    ("height", "<i4"),
    ("grey", "?"),
]
# Of a file in an archive: number of the archive, and where in it the file begins.
_WHERE: list[tuple[Any, ...]] = [("shard", "<i4"), ("start", "<i8")]


def kind_of(longest: int, in_archives: bool = False) -> np.dtype[Any]:
    """Type of a record: path of a file below the folder, at most so many bytes, and what is known of the file.

    Args:
        longest: Bytes of the longest path.
        in_archives: Whether files lie in archives (:mod:`.tars`).
    """
    return np.dtype([("name", f"S{max(longest, 1)}"), *_FACTS, *(_WHERE if in_archives else ())])


class Index:
    """Records of image files, in order: on disk, or in memory where nothing can be written.

    Args:
        kind: Type of a record.
        count: How many there are.
        path: The file that holds them; None: ``records``.
        records: ``[N]``.
        checked: Nanoseconds since 1970 before which the files were looked at.

    Raises:
        OSError: The file cannot be read.
    """

    def __init__(
        self,
        kind: np.dtype[Any],
        count: int,
        path: Path | None = None,
        records: np.ndarray | None = None,
        checked: int = 0,
    ) -> None:
        self.kind, self.count, self.path, self.checked = kind, count, path, checked
        self._records = records
        # Opened at once: another process may put a newer file into its place.
        self._file = None if path is None else os.open(path, os.O_RDONLY)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_file": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self.path is not None:
            self._file = os.open(self.path, os.O_RDONLY)

    def __del__(self) -> None:
        file = getattr(self, "_file", None)
        if file is not None:
            with contextlib.suppress(OSError):
                os.close(file)

    def __len__(self) -> int:
        return self.count

    def read(self, start: int, stop: int) -> np.ndarray:
        """Some records, ``[stop - start]``.

        Raises:
            OSError: The file is shorter than it was.
        """
        if self._records is not None:
            return self._records[start:stop]
        assert self._file is not None
        size = self.kind.itemsize
        content = os.pread(self._file, (stop - start) * size, _HEADER + start * size)
        if len(content) != (stop - start) * size:
            raise OSError(f"{self.path} has become shorter")
        return np.frombuffer(content, dtype=self.kind)

    def blocks(self, rows: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """All records, or those of some rows, a few thousand at a time.

        Args:
            rows: Their numbers, ascending; None: all.
        """
        if rows is None:
            for start in range(0, self.count, BLOCK):
                yield self.read(start, min(start + BLOCK, self.count))
            return
        for block in np.array_split(rows, range(BLOCK, len(rows), BLOCK)):
            if len(block):
                first, last = int(block[0]), int(block[-1])
                # Most rows of a split lie close together; what lies between them is read and left out.
                yield np.concatenate(
                    [
                        self.read(start, min(start + BLOCK, last + 1))[
                            block[(block >= start) & (block < start + BLOCK)] - start
                        ]
                        for start in range(first, last + 1, BLOCK)
                    ]
                )


class Draft:
    """An index that is being written, beside its place; or in memory, once that has failed.

    Args:
        path: Its place.
        kind: Type of a record.
        checked: As :class:`Index` has it.
    """

    def __init__(self, path: Path, kind: np.dtype[Any], checked: int) -> None:
        self._path, self._kind, self._checked = path, kind, checked
        self._count = 0
        self._kept: list[np.ndarray] | None = None
        # No number of a process: another container has it as well.
        self._draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
        self._file: io.FileIO | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Without a buffer: what was written is there, whatever goes wrong later.
            self._file = self._draft.open("w+b", buffering=0)
            self._write(b" " * _HEADER)
        except OSError:
            self._give_up()

    def add(self, records: np.ndarray) -> None:
        """Add records ``[n]`` behind those that are there."""
        try:
            if self._file is not None:
                self._write(records.tobytes())
        except OSError:
            self._give_up()
        if self._kept is not None:
            self._kept.append(records)
        self._count += len(records)

    def finish(self) -> Index:
        """The index, in its place."""
        if self._file is not None:
            longest, in_archives = self._kind["name"].itemsize, "shard" in (self._kind.names or ())
            facts = {"longest": longest, "count": self._count, "checked": self._checked, "archives": in_archives}
            try:
                self._file.seek(0)
                self._write(json.dumps(facts).encode().ljust(_HEADER - 1) + b"\n")
                self._file.close()
                self._draft.replace(self._path)
                return Index(self._kind, self._count, self._path, checked=self._checked)
            except OSError:
                self._give_up()
        records = np.concatenate(self._kept or [np.empty(0, self._kind)])
        return Index(self._kind, self._count, records=records, checked=self._checked)

    def discard(self) -> None:
        """Nothing is wanted of it."""
        if self._file is not None:
            self._file.close()
        with contextlib.suppress(OSError):
            self._draft.unlink(missing_ok=True)

    def _write(self, content: bytes) -> None:
        assert self._file is not None
        if self._file.write(content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _give_up(self) -> None:
        """Go on in memory: without a cache everything works, in more of it."""
        written = b""
        if self._file is not None and self._count:
            self._file.seek(_HEADER)
            written = self._file.read(self._count * self._kind.itemsize)
        self._kept = [np.frombuffer(written, dtype=self._kind)]
        self.discard()
        self._file = None


def opened(path: Path) -> Index | None:
    """An index that was written before; None where there is none, or none that is whole."""
    try:
        with path.open("rb") as file:
            facts = json.loads(file.read(_HEADER))
        kind = kind_of(int(facts["longest"]), bool(facts.get("archives", False)))
        if path.stat().st_size != _HEADER + int(facts["count"]) * kind.itemsize:
            return None
        return Index(kind, int(facts["count"]), path, checked=int(facts["checked"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
