"""Folders of image files, one folder for each class, as torchvision's ``ImageFolder`` has them, or in archives.

Every file is read once, for its digest and its size; what was found is kept in the cache folder and holds as long as
path, size and time of change stay. What a process holds of a folder does not grow with the number of its files
(:mod:`.index`).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pruneaudit.errors import ConfigError
from pruneaudit.state import cache_folder
from pruneaudit.streams import generator
from pruneaudit.workloads.data import tars
from pruneaudit.workloads.data.decoding import decode
from pruneaudit.workloads.data.index import BLOCK, Draft, Index, kind_of, opened
from pruneaudit.workloads.data.pictures import EXTENSIONS, SETTLED_NS, facts, unreadable
from pruneaudit.workloads.data.splits import SPLIT_SEED

# Files that a thread reads in one job, and jobs that are under way at once.
_FILES_OF_A_JOB, _JOBS_AHEAD = 500, 32


@dataclass(frozen=True)
class Files:
    """Image files of a split, in the order of torchvision's ``ImageFolder``.

    Attributes:
        folder: The split's folder.
        index: What is known of the files of the folder.
        starts: Row of the first file of each class, and one behind the last, ``[classes + 1]``.
        mode: ``L`` where all are grey, else ``RGB``.
        rows: Which of them these are, ascending; None: all.
        shards: Names of the archives that they lie in (:mod:`.tars`); empty: none does.
    """

    folder: Path
    index: Index
    starts: np.ndarray
    mode: str
    rows: np.ndarray | None = None
    shards: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.index) if self.rows is None else len(self.rows)

    def path(self, number: int) -> Path:
        """The file of an example; of one in an archive the name that it has in it, behind that of the archive."""
        return self._path(self._record(number))

    def _record(self, number: int) -> Any:
        row = number if self.rows is None else int(self.rows[number])
        return self.index.read(row, row + 1)[0]

    def _path(self, record: Any) -> Path:
        name = os.fsdecode(record["name"])
        return self.folder / self.shards[record["shard"]] / name if self.shards else self.folder / name

    def _content(self, record: Any) -> bytes:
        if not self.shards:
            return self._path(record).read_bytes()
        return tars.content_at(self.folder / self.shards[record["shard"]], int(record["start"]), int(record["size"]))

    def __getitem__(self, number: int) -> Any:
        """The decoded image, see :func:`~.decoding.decode`.

        Raises:
            ConfigError: It cannot be decoded.
        """
        record = self._record(number)
        try:
            return decode(self._content(record), self.mode)
        except Exception as error:
            raise unreadable(self._path(record), error) from None

    @property
    def labels(self) -> np.ndarray:
        """Position of each file's class among the sorted classes, ``[N]``."""
        if self.rows is None:
            return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        return np.searchsorted(self.starts, self.rows, side="right") - 1

    def digests(self) -> Iterator[np.ndarray]:
        """Digests of the files as they are now: what has another size or time of change is read again."""
        for block in self.index.blocks(self.rows):
            found: np.ndarray = block["sha"]
            changed = self._changed(block)
            if changed:
                found = found.copy()
                for number in changed:
                    try:
                        content = self._content(block[number])
                    except OSError as error:
                        raise unreadable(self._path(block[number]), error) from None
                    found[number] = np.frombuffer(hashlib.sha256(content).digest(), dtype=np.uint8)
            yield found

    def _changed(self, block: np.ndarray) -> list[int]:
        """Those of some records whose files, or archives, are not what they were."""
        if self.shards:
            return self._in_changed_archives(block)
        folder, found = os.fsencode(self.folder), []
        for number, (name, size, changed) in enumerate(block[["name", "size", "changed"]].tolist()):
            try:
                status = os.stat(os.path.join(folder, name))
            except OSError:
                found.append(number)
                continue
            if (status.st_size, status.st_mtime_ns) != (size, changed):
                found.append(number)
        return found

    def _in_changed_archives(self, block: np.ndarray) -> list[int]:
        changed = {}
        for shard in np.unique(block["shard"]).tolist():
            try:
                changed[shard] = (self.folder / self.shards[shard]).stat().st_mtime_ns
            except OSError:
                changed[shard] = -1
        places = block[["shard", "changed"]].tolist()
        return [number for number, (shard, before) in enumerate(places) if changed[shard] != before]

    def take(self, index: np.ndarray) -> Files:
        """Some of them, by their numbers in ascending order."""
        rows = index if self.rows is None else self.rows[index]
        return replace(self, rows=rows.astype(np.int32 if len(self.index) < 2**31 else np.int64))

    @property
    def shapes(self) -> set[tuple[int, ...]]:
        """Shapes of the images, ``(H, W, C)``."""
        channels = 1 if self.mode == "L" else 3
        found: set[tuple[int, ...]] = set()
        for block in self.index.blocks(self.rows):
            found.update((height, width, channels) for height, width in np.unique(block[["height", "width"]]).tolist())
        return found


def classes_of(folder: Path) -> list[str]:
    """Names of the folders of a split, sorted."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())


def read_folders(splits: dict[str, Path], count: int = 0) -> dict[str, Files]:
    """Image files of some splits, all in one mode.

    Args:
        splits: The folder of each split, by its name: of folders of classes, or of archives where it has none.
        count: So many classes are drawn, the same ones every time; 0: all are taken.

    Raises:
        ConfigError: Classes differ, one is empty, there are too few, or a file is no image; the message names it.
    """
    packed = {name: tars.read(place, found) for name, place in splits.items() if (found := _archives(place))}
    of = {name: packed[name].classes if name in packed else classes_of(place) for name, place in splits.items()}
    (first, folder), *others = splits.items()
    classes = of[first]
    if not classes:
        raise ConfigError(f"{folder} has no folder for a class: put images into {folder.name}/CLASS/")
    for name, other in others:
        differing = sorted(set(classes) ^ set(of[name]))
        if differing:
            place = folder if differing[0] in classes else other
            raise ConfigError(
                f"class '{differing[0]}' is in {place} only: {folder.name} and {other.name} must have the same classes"
            )
    if count:
        classes = drawn(classes, count, folder)
    packed = {name: found.only(classes) for name, found in packed.items()}
    starts = {
        name: packed[name].starts if name in packed else _starts(place, classes) for name, place in splits.items()
    }
    known = {
        name: packed[name].index if name in packed else _known(place, classes, starts[name])
        for name, place in splits.items()
    }
    grey = {one for index in known.values() for block in index.blocks() for one in np.unique(block["grey"]).tolist()}
    mode = "L" if grey == {True} else "RGB"
    if len(grey) > 1:
        warnings.warn(f"{folder.parent} has images in grey and in colours: all are read as RGB", stacklevel=2)
    shards = {name: found.shards for name, found in packed.items()}
    return {
        name: Files(place, known[name], starts[name], mode, shards=shards.get(name, ()))
        for name, place in splits.items()
    }


def _archives(folder: Path) -> list[Path]:
    """Archives of a split that has no folders of classes."""
    return [] if classes_of(folder) else tars.archives(folder)


def drawn(classes: list[str], count: int, folder: Path) -> list[str]:
    """Some classes, sorted: which ones depends on the names of all, on nothing else.

    Raises:
        ConfigError: There are too few.
    """
    if not 2 <= count <= len(classes):
        raise ConfigError(
            f"data.classes {count}: {folder} has {len(classes)}; state 2 to {len(classes)}, or leave it out"
        )
    order = torch.randperm(len(classes), generator=generator(SPLIT_SEED, "classes")).tolist()
    return sorted(classes[number] for number in order[:count])


def _names(folder: Path, label: str) -> Iterator[bytes]:
    """Paths of the image files of a class below the split's folder, in torchvision's order."""
    for place, _, files in sorted(os.walk(folder / label, followlinks=True)):
        below = os.path.relpath(place, folder)
        for file in sorted(files):
            if file.lower().endswith(EXTENSIONS):
                yield os.fsencode(f"{below}/{file}")


def _starts(folder: Path, classes: list[str]) -> np.ndarray:
    """Row of the first file of each class, and one behind the last, ``[classes + 1]``."""
    counts = []
    for label in classes:
        counts.append(sum(1 for _ in _names(folder, label)))
        if not counts[-1]:
            raise ConfigError(f"class '{label}' has no image in {folder / label}: add some ({', '.join(EXTENSIONS)})")
    return np.concatenate([[0], np.cumsum(counts)])


def _known(folder: Path, classes: list[str], starts: np.ndarray) -> Index:
    """What is known of the files of a split, from the cache where they have not changed since."""
    place = json.dumps([os.fspath(folder.resolve()), *([] if classes == classes_of(folder) else classes)])
    path = cache_folder() / f"index-{hashlib.sha256(os.fsencode(place)).hexdigest()[:24]}.bin"
    before, started, count = opened(path), time.time_ns(), int(starts[-1])
    longest = max(len(name) for label in classes for name in _names(folder, label))
    kind = kind_of(longest)
    if before is not None and (before.kind, len(before)) != (kind, count):
        before = None
    draft = None
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        row = 0
        for records, is_new in _in_order(pool, _jobs(folder, classes, kind, before)):
            if is_new and draft is None:
                draft = Draft(path, kind, started)
                if before is not None:
                    for start in range(0, row, BLOCK):
                        draft.add(before.read(start, min(start + BLOCK, row)))
            if draft is not None:
                draft.add(records)
            row += len(records)
    if row != count:
        if draft is not None:
            draft.discard()
        raise ConfigError(f"{folder} changed while it was read; start again")
    if draft is None:
        assert before is not None
        return before
    return draft.finish()


#: What a thread is to look at: the folder, names of files, type of a record, and what was known of them.
_Job = tuple[Path, list[bytes], "np.dtype[Any]", "np.ndarray | None", int]


def _jobs(folder: Path, classes: list[str], kind: np.dtype[Any], before: Index | None) -> Iterator[_Job]:
    row = 0
    names: list[bytes] = []

    def job() -> _Job:
        known = None if before is None else before.read(row, row + len(names))
        return folder, list(names), kind, known, 0 if before is None else before.checked

    for label in classes:
        for name in _names(folder, label):
            names.append(name)
            if len(names) == _FILES_OF_A_JOB:
                yield job()
                row += len(names)
                names.clear()
    if names:
        yield job()


def _in_order(pool: ThreadPoolExecutor, jobs: Iterator[_Job]) -> Iterator[tuple[np.ndarray, bool]]:
    """Results of jobs in their order; few of them are under way at once."""
    waiting: deque[Future[tuple[np.ndarray, bool]]] = deque()
    for job in jobs:
        waiting.append(pool.submit(_look, *job))
        if len(waiting) > _JOBS_AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _look(
    folder: Path, names: list[bytes], kind: np.dtype[Any], known: np.ndarray | None, checked: int
) -> tuple[np.ndarray, bool]:
    """Records of some files, and whether one of them is new or has changed."""
    records, is_new = np.zeros(len(names), dtype=kind), False
    for number, name in enumerate(names):
        path = folder / os.fsdecode(name)
        try:
            status = path.stat()
            before = None if known is None else known[number]
            if (
                before is not None
                and before["name"] == name
                and (status.st_size, status.st_mtime_ns) == (before["size"], before["changed"])
                and before["changed"] <= checked - SETTLED_NS
            ):
                records[number] = before
            else:
                if len(name) > kind["name"].itemsize:
                    raise ConfigError(f"{folder} changed while it was read; start again")
                records[number] = (name, *_fact(path.read_bytes(), status, path))
                is_new = True
        except OSError as error:
            raise unreadable(path, error) from None
    return records, is_new


def _fact(content: bytes, status: os.stat_result, path: Path) -> tuple[Any, ...]:
    return status.st_size, status.st_mtime_ns, *facts(content, path)
