"""Image files in tar archives, read where they lie: no archive is unpacked, and none may be compressed.

A split's folder may hold archives in place of folders of classes. A member ``CLASS/FILE`` is of the class that its
first folder names; one without a folder is of the class that its archive names, as in ImageNet's own
``n01440764.tar``. Images come in the order that they would have in folders, so that labels, splits and batches are
those of the folders, and so is the identity of runs.

Every archive is read once from its beginning to its end, for digests and sizes of its images; what was found is kept in
the cache folder and holds as long as names, sizes and times of change of the archives stay. While it is found, some 200
bytes are held for each image, later none (:mod:`.index`).
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pruneaudit.errors import ConfigError
from pruneaudit.state import cache_folder
from pruneaudit.workloads.data.index import BLOCK, Draft, Index, kind_of, opened
from pruneaudit.workloads.data.pictures import EXTENSIONS, SETTLED_NS, facts, unreadable

#: Endings of archives, and the first bytes of those that are compressed.
_ARCHIVES = (".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
# Bytes of a block of an archive; an archive ends with two of zeros, and writers fill up to twenty.
_TAR_BLOCK, _MOST_BEHIND = 512, 1 << 16
# Fields of a record besides those of the index, which are sorted by.
_SORTED_BY = ("file", "place", "label")


@dataclass(frozen=True)
class Packed:
    """The images of a split in archives.

    Attributes:
        folder: The split's folder.
        shards: Names of its archives, sorted: a record's number of its archive counts in them.
        index: What is known of the images, in the order of torchvision's ``ImageFolder``.
        classes: Names of the classes, sorted.
        starts: Row of the first image of each class, and one behind the last, ``[classes + 1]``.
    """

    folder: Path
    shards: tuple[str, ...]
    index: Index
    classes: list[str]
    starts: np.ndarray

    def only(self, classes: list[str]) -> Packed:
        """Some of the classes, sorted."""
        if classes == self.classes:
            return self
        numbers = [self.classes.index(label) for label in classes]
        rows = np.concatenate([np.arange(self.starts[one], self.starts[one + 1]) for one in numbers])
        draft = Draft(_place(self.folder, self.shards, classes), self.index.kind, self.index.checked)
        for block in self.index.blocks(rows):
            draft.add(block)
        counts = [self.starts[one + 1] - self.starts[one] for one in numbers]
        starts = np.concatenate([[0], np.cumsum(counts)])
        return Packed(self.folder, self.shards, draft.finish(), classes, starts)


def archives(folder: Path) -> list[Path]:
    """The archives of a split's folder, sorted.

    Raises:
        ConfigError: One is compressed.
    """
    found = sorted(path for path in folder.iterdir() if path.name.endswith(_ARCHIVES) and path.is_file())
    for path in found:
        with path.open("rb") as file:
            begin = file.read(8)
        for magic, name in _COMPRESSED.items():
            if begin.startswith(magic):
                raise ConfigError(
                    f"{path} is compressed ({name}): nothing in it can be read where it lies; decompress it to a plain "
                    ".tar (images are compressed already)"
                )
    return found


def read(folder: Path, shards: list[Path]) -> Packed:
    """What is known of the images of some archives, from the cache where these have not changed since.

    Args:
        folder: The split's folder.
        shards: Its archives.

    Raises:
        ConfigError: An archive is damaged or cut off, holds an image twice, or one that cannot be read.
    """
    names = tuple(path.name for path in shards)
    started = time.time_ns()
    path = _place(folder, names, [])
    index = opened(path)
    if index is None or max(shard.stat().st_mtime_ns for shard in shards) > index.checked - SETTLED_NS:
        index = _made(folder, shards, path, started)
    classes: list[str] = []
    counts: list[int] = []
    for block in index.blocks():
        labels, sizes = np.unique([name.split(b"/", 1)[0] for name in block["name"].tolist()], return_counts=True)
        for label, count in sorted((os.fsdecode(one), int(many)) for one, many in zip(labels, sizes, strict=True)):
            if classes and classes[-1] == label:
                counts[-1] += count
            else:
                classes.append(label)
                counts.append(count)
    return Packed(folder, names, index, classes, np.concatenate([[0], np.cumsum(counts)]))


def content_at(path: Path, start: int, size: int) -> bytes:
    """Some bytes of an archive.

    Raises:
        OSError: It cannot be read, or is shorter than it was.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = os.pread(descriptor, size, start)
    finally:
        os.close(descriptor)
    if len(content) != size:
        raise OSError(f"{path.name} has become shorter")
    return content


def _place(folder: Path, shards: tuple[str, ...], classes: list[str]) -> Path:
    """Where it is kept what is known of archives as they are now."""
    states = [(folder / shard).stat() for shard in shards]
    listed = [(name, state.st_size, state.st_mtime_ns) for name, state in zip(shards, states, strict=True)]
    place = json.dumps(["tar", os.fspath(folder.resolve()), listed, classes])
    return cache_folder() / f"index-{hashlib.sha256(os.fsencode(place)).hexdigest()[:24]}.bin"


def _made(folder: Path, shards: list[Path], path: Path, started: int) -> Index:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        parts = list(pool.map(_look, shards, range(len(shards))))
    if not any(map(len, parts)):
        raise ConfigError(f"{folder}: no image in its archives ({', '.join(EXTENSIONS)})")
    longest = {name: max(part.dtype[name].itemsize for part in parts) for name in ("name", *_SORTED_BY)}
    records = np.concatenate([part.astype(_described(longest)) for part in parts])
    # As torchvision walks: class by class, folder by folder below it, file by file.
    records = records[np.lexsort([records[name] for name in _SORTED_BY])]
    again = np.flatnonzero(records["name"][1:] == records["name"][:-1])
    if len(again):
        one, other = records[again[0]], records[again[0] + 1]
        where = " and ".join(dict.fromkeys(shards[number].name for number in (one["shard"], other["shard"])))
        raise ConfigError(f"{folder}: '{os.fsdecode(one['name'])}' is there twice, in {where}; take one away")
    kind = kind_of(longest["name"], in_archives=True)
    draft = Draft(path, kind, started)
    for start in range(0, len(records), BLOCK):
        found = np.zeros(len(records[start : start + BLOCK]), dtype=kind)
        for name in kind.names or ():
            found[name] = records[name][start : start + BLOCK]
        draft.add(found)
    return draft.finish()


def _described(longest: dict[str, int]) -> np.dtype[Any]:
    """Type of a record, and of what it is sorted by, whose texts have so many bytes at most."""
    kind = kind_of(longest["name"], in_archives=True)
    texts: list[tuple[Any, ...]] = [(name, f"S{longest[name]}") for name in _SORTED_BY]
    return np.dtype([*kind.descr, *texts])


def _look(path: Path, number: int) -> np.ndarray:
    """Records of the images of an archive, in its order."""
    rows: list[tuple[Any, ...]] = []
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            changed = os.fstat(file.fileno()).st_mtime_ns
            while (member := archive.next()) is not None:
                # It would keep all of them.
                archive.members.clear()  # type: ignore[attr-defined]
                name = member.name.removeprefix("./").lstrip("/")
                if name.endswith(".cls"):
                    raise ConfigError(
                        f"{path} has labels in files of their own, such as {name}; name its images CLASS/FILE"
                    )
                if member.isdir() or not name.lower().endswith(EXTENSIONS):
                    continue
                if not member.isreg() or member.issparse():
                    raise ConfigError(f"{path}: {name} is no plain file; write the archive anew, with `tar -h`")
                name = name if "/" in name else f"{path.name.removesuffix('.tar')}/{name}"
                place, _, file_name = name.rpartition("/")
                content = os.pread(file.fileno(), member.size, member.offset_data)
                if len(content) != member.size:
                    raise tarfile.ReadError("unexpected end of data")
                known = member.size, changed, *facts(content, path / name), number, member.offset_data
                texts = (file_name, place, place.partition("/")[0])
                rows.append((os.fsencode(name), *known, *map(os.fsencode, texts)))
            if not _ends(file, archive.offset):
                raise tarfile.ReadError("it does not end as archives do")
    except tarfile.TarError as error:
        raise ConfigError(f"{path} is no whole tar archive: {error}; copy it again") from None
    except OSError as error:
        raise unreadable(path, error) from None
    texts_at = dict(zip(("name", *_SORTED_BY), (0, -3, -2, -1), strict=True))
    longest = {name: max((len(row[column]) for row in rows), default=1) or 1 for name, column in texts_at.items()}
    return np.array(rows, dtype=_described(longest))


def _ends(file: BinaryIO, offset: int) -> bool:
    """Whether nothing but the end of an archive is there: what is cut off between two files has none."""
    size = os.fstat(file.fileno()).st_size
    rest = os.pread(file.fileno(), _MOST_BEHIND, offset)
    return size - offset <= _MOST_BEHIND and len(rest) >= _TAR_BLOCK and not rest.strip(b"\0")
