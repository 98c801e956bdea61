"""Folders of image files, one folder for each class, as torchvision's ``ImageFolder`` has them.

Every file is read once, for its digest and its size; what was found is kept in the cache folder and holds as long as
path, size and time of change stay.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pruneaudit.errors import ConfigError

CACHE_VARIABLE = "PRUNEAUDIT_CACHE"
#: Endings of image files, as torchvision has them.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# A file that changed so shortly before it was read may have changed since, within the same tick of the clock.
_SETTLED_NS = 2_000_000_000
# Files that a thread reads in one job.
_FILES_OF_A_JOB = 500
# Modes of PIL that are grey; those with more than 8 bits lose what they hold when they are converted.
_GREY, _DEEP = ("1", "L", "LA"), ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")

_FACTS = np.dtype(
    [("size", "<i8"), ("changed", "<i8"), ("sha", "u1", (32,)), ("width", "<i4"), ("height", "<i4"), ("grey", "?")]
)


def cache_folder() -> Path:
    """Where what can be made anew is kept: ``$PRUNEAUDIT_CACHE``, else the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pruneaudit"


@dataclass(frozen=True)
class Files:
    """Image files of a split, in the order of torchvision's ``ImageFolder``.

    Attributes:
        folder: The split's folder.
        names: Paths below it, ``[N]`` bytes.
        labels: Position of each file's class among the sorted classes, ``[N]``.
        facts: What is known of each file.
        mode: ``L`` where all are grey, else ``RGB``.
    """

    folder: Path
    names: np.ndarray
    labels: np.ndarray
    facts: np.ndarray
    mode: str

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """The file of an example."""
        return self.folder / os.fsdecode(self.names[index])

    def __getitem__(self, index: int) -> Any:
        """The decoded image.

        Raises:
            ConfigError: It cannot be decoded.
        """
        from PIL import Image

        path = self.path(index)
        try:
            with Image.open(path) as image:
                return image.convert(self.mode)
        except Exception as error:
            raise _unreadable(path, error) from None

    def digests(self) -> np.ndarray:
        """Digests of the files as they are now: what has another size or time of change is read again."""
        found: np.ndarray = self.facts["sha"]
        changed = self._changed()
        if changed:
            found = found.copy()
            for number in changed:
                try:
                    content = self.path(number).read_bytes()
                except OSError as error:
                    raise _unreadable(self.path(number), error) from None
                found[number] = np.frombuffer(hashlib.sha256(content).digest(), dtype=np.uint8)
        return found

    def _changed(self) -> list[int]:
        """Examples whose files are not what they were."""
        folder, found = os.fsencode(self.folder), []
        for number, (name, known) in enumerate(zip(self.names, self.facts[["size", "changed"]], strict=True)):
            try:
                status = os.stat(os.path.join(folder, name))
            except OSError:
                found.append(number)
                continue
            if (status.st_size, status.st_mtime_ns) != known.item():
                found.append(number)
        return found

    def take(self, index: np.ndarray) -> Files:
        """Some of them."""
        return replace(self, names=self.names[index], labels=self.labels[index], facts=self.facts[index])

    @property
    def shapes(self) -> set[tuple[int, ...]]:
        """Shapes of the images, ``(H, W, C)``."""
        channels = 1 if self.mode == "L" else 3
        sizes = np.unique(self.facts[["height", "width"]])
        return {(int(height), int(width), channels) for height, width in sizes}


def classes_of(folder: Path) -> list[str]:
    """Names of the folders of a split, sorted."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())


def read_folders(splits: dict[str, Path]) -> dict[str, Files]:
    """Image files of some splits, all in one mode.

    Args:
        splits: The folder of each split, by its name.

    Raises:
        ConfigError: Classes differ, one is empty, or a file is no image; the message names it.
    """
    folder, *others = splits.values()
    classes = classes_of(folder)
    if not classes:
        raise ConfigError(f"{folder} has no folder for a class: put images into {folder.name}/CLASS/")
    for other in others:
        differing = sorted(set(classes) ^ set(classes_of(other)))
        if differing:
            place = folder if differing[0] in classes else other
            raise ConfigError(
                f"class '{differing[0]}' is in {place} only: {folder.name} and {other.name} must have the same classes"
            )
    listed = {name: _listed(place, classes) for name, place in splits.items()}
    known = {name: _facts(splits[name], names) for name, (names, _) in listed.items()}
    grey = [bool(grey) for facts in known.values() for grey in (facts["grey"].all(), facts["grey"].any())]
    mode = "L" if all(grey) else "RGB"
    if any(grey) and mode == "RGB":
        warnings.warn(f"{folder.parent} has images in grey and in colours: all are read as RGB", stacklevel=2)
    return {name: Files(splits[name], names, labels, known[name], mode) for name, (names, labels) in listed.items()}


def _listed(folder: Path, classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Names of the image files of a split, and their labels."""
    names: list[bytes] = []
    counts = []
    for name in classes:
        before = len(names)
        for place, _, files in sorted(os.walk(folder / name, followlinks=True)):
            below = os.path.relpath(place, folder)
            names += [os.fsencode(f"{below}/{file}") for file in sorted(files) if file.lower().endswith(EXTENSIONS)]
        counts.append(len(names) - before)
        if len(names) == before:
            raise ConfigError(f"class '{name}' has no image in {folder / name}: add some ({', '.join(EXTENSIONS)})")
    return np.array(names), np.repeat(np.arange(len(classes)), counts)


def _facts(folder: Path, names: np.ndarray) -> np.ndarray:
    """What is known of files, from the cache where they have not changed since."""
    key = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:24]
    cached = cache_folder() / f"index-{key}.npz"
    facts, started = np.zeros(len(names), dtype=_FACTS), time.time_ns()
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError), np.load(cached, allow_pickle=False) as kept:
        before, checked = kept["facts"], int(kept["checked"])
        if before.dtype == _FACTS and np.array_equal(kept["names"], names):
            facts = before.copy()
            facts["size"][facts["changed"] > checked - _SETTLED_NS] = -1

    def read(start: int) -> int:
        new = 0
        for number in range(start, min(start + _FILES_OF_A_JOB, len(names))):
            path = folder / os.fsdecode(names[number])
            try:
                status = path.stat()
                if (status.st_size, status.st_mtime_ns) != (facts["size"][number], facts["changed"][number]):
                    facts[number] = _fact(path.read_bytes(), status, path)
                    new += 1
            except OSError as error:
                raise _unreadable(path, error) from None
        return new

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        new = sum(pool.map(read, range(0, len(names), _FILES_OF_A_JOB)))
    if new:
        # Without a cache everything works, more slowly.
        with contextlib.suppress(OSError):
            cached.parent.mkdir(parents=True, exist_ok=True)
            draft = cached.with_name(f"{cached.stem}-{os.getpid()}.tmp.npz")
            np.savez(draft, names=names, facts=facts, checked=started)
            draft.replace(cached)
    return facts


def _fact(content: bytes, status: os.stat_result, path: Path) -> tuple[Any, ...]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            mode, (width, height) = image.mode, image.size
    except Exception as error:
        raise _unreadable(path, error) from None
    if mode in _DEEP:
        raise ConfigError(f"{path} has more than 8 bits for each value (PIL mode {mode}): convert it to 8 bits")
    digest = np.frombuffer(hashlib.sha256(content).digest(), dtype=np.uint8)
    return status.st_size, status.st_mtime_ns, digest, width, height, mode in _GREY


def _unreadable(path: Path, error: Exception) -> ConfigError:
    reason = " ".join(str(error).replace(str(path), "the file").split()) or type(error).__name__
    return ConfigError(f"cannot read image {path}: {reason}; replace it or take it away")
