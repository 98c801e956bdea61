"""Data that users bring: a function of their own, a folder of images, or one of torchvision's sets."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pruneaudit.errors import AuditError, ConfigError, DataMissingError, one_line, unknown
from pruneaudit.sources import Source
from pruneaudit.workloads.data.builtin import (
    DATA_VARIABLE,
    LOADERS,
    download_lock,
    imagenet_folders,
    see_that_it_is_all_of_imagenet,
)
from pruneaudit.workloads.data.examples import Arrays, Examples, Items, arrays, checked_labels
from pruneaudit.workloads.data.folders import read_folders
from pruneaudit.workloads.data.streamed import reading
from pruneaudit.workloads.data.tokens import windows_of
from pruneaudit.workloads.data.transforms import own_generators, seed_generators
from pruneaudit.workloads.schema import DataConfig

#: What comes before a colon in ``data.name``, beside files and modules.
TORCHVISION, FOLDER, TEXTS = "torchvision", "imagefolder", "texts"
_VALIDATION = ("val", "valid", "validation")


@dataclass(frozen=True)
class Data:
    """What a workload's own data function returns.

    Each split is a pair (inputs, labels) of arrays or tensors, or any map-style ``torch.utils.data.Dataset`` of such
    pairs. Inputs: images ``[N, H, W, C]`` uint8 (or PIL images), or ``[N, ...]`` of any other type; labels: whole
    numbers from 0, ``[N]``, or of tokens ``[N, T]`` one for each, ``[N, T]``: the network's logits then are
    ``[N, classes, T]``, and all splits are given.

    Attributes:
        train: The training split.
        validation: The only split that tuning may look at; None: split off the training split.
        test: The split that counts; None: split off, too.
        bytes: Of texts: bytes in UTF-8 of what the labels of a split stand for, by the split's name. With them the
            report shows bits per byte, which networks of different tokenizers have in common.
    """

    train: Any
    validation: Any = None
    test: Any = None
    bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """Examples as they were found, before a split is taken from them.

    Attributes:
        where: How errors name it.
        train: Training examples.
        validation: Validation examples, where they are a split of their own.
        test: Test examples, where they are a split of their own.
        classes: Number of classes.
        code: SHA-256 of the code that gives them; empty where it is no user's.
        is_decoded: Whether libraries decode them, whose versions then matter.
        folders: Where they lie.
        mode: What images are decoded to, ``RGB`` or ``L``.
        bytes: Of texts: bytes that the labels of splits stand for, where that is known.
    """

    where: str
    train: Examples
    validation: Examples | None
    test: Examples | None
    classes: int
    code: Callable[[], str] = field(default=str)
    is_decoded: bool = False
    folders: tuple[Path, ...] = ()
    mode: str = "RGB"
    bytes: Mapping[str, int] = field(default_factory=dict)

    @property
    def splits(self) -> dict[str, Examples]:
        """The splits that there are, by name."""
        found = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in found.items() if split is not None}

    def content(self) -> str:
        """SHA-256 over all examples and labels as they are now."""
        found = hashlib.sha256()
        for name, split in self.splits.items():
            found.update(name.encode())
            for block in split.digests():
                found.update(np.ascontiguousarray(block).data)
            found.update(np.ascontiguousarray(split.labels, dtype=np.int64).data)
        return found.hexdigest()


def is_brought(name: str) -> bool:
    """Whether a name is the spec of a user's own data, and no key."""
    return ":" in name or name.endswith(".py")


def place_of(config: DataConfig, root: Path | None) -> Path:
    """The folder that ``imagefolder:PATH`` or ``texts:PATH`` names: below the workload's own, else below the data root.

    Raises:
        DataMissingError: There is none.
    """
    path = Path(config.name.partition(":")[2]).expanduser()
    places = list(dict.fromkeys(base / path for base in (config.folder, root) if base is not None)) or [path.absolute()]
    for place in places:
        if place.is_dir():
            return place
    hint = "" if path.is_absolute() or root is not None else f"; give --audit-data-root DIR, or set {DATA_VARIABLE}"
    raise DataMissingError(f"{config.name}: no folder {' or '.join(map(str, places))}{hint}")


@lru_cache(maxsize=8)
def find(config: DataConfig, root: Path | None, download: bool = False) -> Origin:
    """The examples of a workload's data, found once for each process.

    Args:
        config: The workload's data section.
        root: The data root, or None.
        download: Whether torchvision may download.

    Raises:
        ConfigError: They are wrong; one line says what and where.
        DataMissingError: They are not there.
    """
    kind, _, rest = config.name.partition(":")
    with reading():
        if not is_brought(config.name):
            return _builtin(config, root, download)
        if kind == FOLDER:
            return _folder(config, root)
        if kind == TEXTS:
            return _texts(config, root)
        if kind == TORCHVISION:
            return _torchvision(rest, root, download)
        return _function(config, root)


def _builtin(config: DataConfig, root: Path | None, download: bool) -> Origin:
    """A dataset known by name, for transforms that act on single images."""
    if config.name == "imagenet":
        return _imagenet(config, root)
    raw = LOADERS[config.name](config, root, download)
    train = Arrays(torch.from_numpy(raw.images), raw.labels)
    test = None
    if raw.test_images is not None and raw.test_labels is not None:
        test = Arrays(torch.from_numpy(raw.test_images), raw.test_labels)
    return Origin(config.name, train, None, test, int(raw.labels.max()) + 1)


def _imagenet(config: DataConfig, root: Path | None) -> Origin:
    """ImageNet-1K as its files are, for transforms as papers have them: crops of random sizes."""
    folders = imagenet_folders(root)
    files = read_folders(folders)
    see_that_it_is_all_of_imagenet(
        folders["train"].parent, len(files["train"].starts) - 1, len(files["train"]), len(files["test"])
    )
    found: dict[str, Examples] = {**files}
    return Origin(
        config.name,
        found["train"],
        None,
        found["test"],
        checked_labels(found, config.name),
        is_decoded=True,
        folders=tuple(folders.values()),
        mode=files["train"].mode,
    )


def _folder(config: DataConfig, root: Path | None) -> Origin:
    place = place_of(config, root)
    splits = {"train": place / "train"} if (place / "train").is_dir() else {"train": place}
    if splits["train"] != place:
        validation = next((place / name for name in _VALIDATION if (place / name).is_dir()), None)
        test = place / "test" if (place / "test").is_dir() else None
        # Where there are two folders, the second one is what papers report.
        if test is None:
            validation, test = None, validation
        splits |= {name: path for name, path in (("validation", validation), ("test", test)) if path is not None}
    elif any((place / name).is_dir() for name in (*_VALIDATION, "test")):
        raise DataMissingError(f"{config.name}: {place} has no folder 'train' beside its other splits")
    files = read_folders(splits, config.classes)
    found: dict[str, Examples] = {**files}
    classes = checked_labels(found, config.name)
    return Origin(
        config.name,
        found["train"],
        found.get("validation"),
        found.get("test"),
        classes,
        is_decoded=True,
        folders=tuple(splits.values()),
        mode=files["train"].mode,
    )


def _texts(config: DataConfig, root: Path | None) -> Origin:
    place = place_of(config, root)
    found, sizes, words, tokenizer = windows_of(config, place)
    return Origin(
        config.name,
        found["train"],
        found["validation"],
        found["test"],
        words,
        code=lambda: tokenizer,
        folders=(place,),
        bytes=sizes,
    )


def _torchvision(name: str, root: Path | None, download: bool) -> Origin:
    from torchvision import datasets

    where = f"{TORCHVISION}:{name}"
    known = {
        one: cls
        for one, cls in vars(datasets).items()
        if inspect.isclass(cls) and issubclass(cls, datasets.VisionDataset) and one not in _NO_SETS
    }
    if name not in known:
        raise unknown("dataset of torchvision", name, known)
    cls = known[name]
    takes = inspect.signature(cls).parameters
    if "root" in takes and root is None:
        raise DataMissingError(
            f"{where} needs a data folder: give --audit-data-root DIR --audit-download, or set {DATA_VARIABLE}"
        )

    def made(**split: Any) -> Any:
        options = {**split, **({"root": str(root)} if "root" in takes else {})}
        downloads = download and "download" in takes and root is not None
        try:
            with download_lock(root) if downloads and root is not None else nullcontext():
                return cls(**options, **({"download": True} if downloads else {}))
        except (RuntimeError, OSError) as error:
            hint = "add --audit-download, or point" if "download" in takes else "point"
            raise DataMissingError(
                f"{where} is not in {root}: {hint} --audit-data-root to torchvision's folder"
            ) from error
        except (ImportError, TypeError, AttributeError) as error:
            raise ConfigError(f"{where}: {one_line(error)}; write a function that returns pruneaudit.Data") from None

    def split(*names: str) -> Any:
        for one in names:
            try:
                return made(split=one)
            except ValueError:
                continue
        return None

    if "train" in takes:
        found = {"train": made(train=True), "test": made(train=False)}
    elif "split" in takes:
        found = {"train": split("train"), "validation": split(*_VALIDATION), "test": split("test")}
        if found["train"] is None:
            raise ConfigError(f"{where} has no split 'train': write a function that returns pruneaudit.Data")
        if found["test"] is None:
            found["test"], found["validation"] = found["validation"], None
    else:
        found = {"train": made()}
    examples = {one: _set(part, f"{where} ({one})") for one, part in found.items() if part is not None}
    classes = checked_labels(examples, where)
    return Origin(
        where,
        examples["train"],
        examples.get("validation"),
        examples.get("test"),
        classes,
        is_decoded=True,
        folders=() if root is None or "root" not in takes else (_below(root, found["train"], name),),
    )


#: They are made of folders or of other sets, or are bases of the others.
_NO_SETS = frozenset({"ImageFolder", "DatasetFolder", "VisionDataset"})


def _below(root: Path, dataset: Any, name: str) -> Path:
    """Where a set of torchvision lies, as far as it says so."""
    for attribute in ("base_folder", "_base_folder"):
        folder = getattr(dataset, attribute, None)
        if isinstance(folder, str | Path) and str(folder):
            return root / folder
    return root / name


def _set(dataset: Any, where: str) -> Examples:
    """A set of torchvision: its own array where it has one, else image by image."""
    pixels = getattr(dataset, "data", None)
    labels = next((found for one in ("targets", "labels") if (found := getattr(dataset, one, None)) is not None), None)
    if isinstance(pixels, np.ndarray | torch.Tensor) and labels is not None and len(pixels) == len(dataset):
        array = np.asarray(pixels)
        layouts = [array] if array.ndim == 3 else [array, array.transpose(0, 2, 3, 1)] if array.ndim == 4 else []
        ends = {number: np.asarray(dataset[number][0]) for number in (0, len(dataset) - 1)}
        for layout in layouts:
            if layout.dtype == np.uint8 and all(
                np.array_equal(layout[number], image) for number, image in ends.items()
            ):
                return arrays(layout, np.asarray(labels, dtype=np.int64), where)
    return Items(dataset, where)


def _function(config: DataConfig, root: Path | None) -> Origin:
    source = Source.parse(config.name, config.folder or Path())
    if not source.name:
        raise ConfigError(f"data.name '{config.name}': name the function, too: '{config.name}:FUNCTION'")
    with own_generators():
        # What it draws without a seed of its own is the same in every process.
        seed_generators(0)
        try:
            function = source.load()
            if not callable(function):
                raise ConfigError(f"data {source}: {type(function).__name__} is no function")
            takes_root = "root" in inspect.signature(function).parameters
            data = function(root=root) if takes_root else function()
        except AuditError:
            raise
        except Exception as error:
            raise ConfigError(f"data {source}: {one_line(error)}") from None
        if not isinstance(data, Data):
            raise ConfigError(
                f"data {source} returned {type(data).__name__}; expected pruneaudit.Data(train=…, test=…)"
            )
        given = {"train": data.train, "validation": data.validation, "test": data.test}
        splits = {name: _split(part, f"data {source}: {name}") for name, part in given.items() if part is not None}
    if "train" not in splits:
        raise ConfigError(f"data {source}: no training split; expected pruneaudit.Data(train=…, test=…)")
    classes = checked_labels(splits, f"data {source}")
    return Origin(
        f"data {source}",
        splits["train"],
        splits.get("validation"),
        splits.get("test"),
        classes,
        code=lambda: source.digest,
        is_decoded=any(isinstance(split, Items) for split in splits.values()),
        bytes=_bytes(data, splits, source),
    )


#: Whose labels are bytes. Said here: what gives them is part of runs' identity, and says nothing new about them.
_OF_BYTES = frozenset({"pruneaudit.workloads.data.texts:shakespeare"})


def _bytes(data: Data, splits: Mapping[str, Examples], source: Source) -> dict[str, int]:
    """What is said of the length of texts."""
    if str(source) in _OF_BYTES:
        return {name: int(split.labels.size) for name, split in splits.items()}
    for name, count in data.bytes.items():
        if name not in splits or isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
            raise ConfigError(
                f"data {source}: bytes {{{name!r}: {count!r}}}; expected a split's name and a number of bytes"
            )
    return {name: int(count) for name, count in data.bytes.items()}


def _split(part: Any, where: str) -> Examples:
    if isinstance(part, tuple | list):
        if len(part) != 2:
            raise ConfigError(f"{where}: expected (inputs, labels), got {len(part)} values")
        return arrays(part[0], part[1], where)
    if hasattr(part, "__getitem__") and hasattr(part, "__len__") and not isinstance(part, np.ndarray | torch.Tensor):
        return Items(part, where)
    raise ConfigError(
        f"{where} is {type(part).__name__}; expected (inputs, labels) or a torch.utils.data.Dataset with a length"
    )
