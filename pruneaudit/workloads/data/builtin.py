"""The datasets that are known by name: their sizes without reading them, and how they are read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from filelock import FileLock

from pruneaudit.errors import ConfigError, DataMissingError
from pruneaudit.state import DATA_VARIABLE
from pruneaudit.workloads.schema import DataConfig


@dataclass(frozen=True)
class Raw:
    """A dataset as it is stored: images ``[N, H, W, C]`` uint8, labels ``[N]``; ``test`` None: to be split off."""

    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray | None = None
    test_labels: np.ndarray | None = None


def _digits(config: DataConfig, root: Path | None, download: bool) -> Raw:
    """scikit-learn's bundled 8×8 scans of handwritten digits (UCI optdigits test set): 1,797 images, no download."""
    table = np.loadtxt(bundled() / "digits.csv.gz", delimiter=",")
    # Grey levels 0…16 become 0…255 so that every dataset is uint8 with the same meaning.
    images = np.round(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)[..., None]
    return Raw(images, table[:, -1].astype(np.int64))


def bundled() -> Path:
    """Folder of the datasets in scikit-learn, which is not imported: that takes seconds, in every worker."""
    package = find_spec("sklearn")
    assert package is not None and package.submodule_search_locations, "scikit-learn is a dependency"
    return Path(package.submodule_search_locations[0]) / "datasets" / "data"


#: MD5 of the files that torchvision reads without looking whether they are whole, as published everywhere.
_WHOLE = {
    "MNIST": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "FashionMNIST": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}


def see_that_it_is_whole(class_name: str, root: Path) -> None:
    """Refuse damaged files of a dataset; those that are not there are not looked at.

    Raises:
        ConfigError: One has another digest than everywhere.
    """
    for name, digest in _WHOLE.get(class_name, {}).items():
        path = root / class_name / "raw" / name
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        except OSError:
            continue
        if found != digest:
            raise ConfigError(
                f"{path} is damaged: its digest is not that of {class_name}; delete it, and get it again with "
                "--audit-download"
            )


def _torchvision(class_name: str) -> Callable[[DataConfig, Path | None, bool], Raw]:
    def load(config: DataConfig, root: Path | None, download: bool) -> Raw:
        if root is None:
            raise DataMissingError(_how_to_get(class_name, None))
        see_that_it_is_whole(class_name, root)
        import torchvision

        cls = getattr(torchvision.datasets, class_name)
        try:
            # Workers must not download the same files at once.
            with download_lock(root) if download else nullcontext():
                train = cls(root=str(root), train=True, download=download)
            test = cls(root=str(root), train=False)
        except (RuntimeError, OSError) as error:
            raise DataMissingError(_how_to_get(class_name, root)) from error

        def pixels(part: object) -> np.ndarray:
            data = np.asarray(part.data)  # type: ignore[attr-defined]
            return data if data.ndim == 4 else data[..., None]

        return Raw(
            pixels(train),
            np.asarray(train.targets, dtype=np.int64),
            pixels(test),
            np.asarray(test.targets, dtype=np.int64),
        )

    return load


def _imagenet(config: DataConfig, root: Path | None, download: bool) -> Raw:
    """ImageNet-1K (ILSVRC 2012), unpacked as torchvision's ImageFolder wants it; nobody may pass it on for download."""
    from torchvision.datasets import ImageFolder

    folders = imagenet_folders(root)
    try:
        train, test = (ImageFolder(str(folder)) for folder in folders.values())
    except OSError as error:
        raise DataMissingError(f"ImageNet is not in {root}: unpack it there as {_LAYOUT}") from error
    same = train.classes == test.classes
    see_that_it_is_all_of_imagenet(folders["train"].parent, len(train.classes), len(train), len(test), same)
    channels = STORED[config.name][0]
    side = config.size or STORED[config.name][1]
    # What is read, and once more the training images: first while a split is taken from them, then with their border.
    needed = channels * ((len(train) + len(test)) * side**2 + len(train) * (side + 2 * config.pad) ** 2)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise ConfigError(
            f"ImageNet at {side} pixels needs {needed / 2**30:.0f} GiB of memory and this machine has "
            f"{memory / 2**30:.0f}: give a smaller data.size in the workload, or transforms in data.train and "
            "data.test: it is streamed then"
        )
    labels = (np.asarray(split.targets, dtype=np.int64) for split in (train, test))
    return Raw(_centres(train.samples, side), next(labels), _centres(test.samples, side), next(labels))


_LAYOUT = "imagenet/train/CLASS/*.JPEG and imagenet/val/CLASS/*.JPEG"


def imagenet_folders(root: Path | None) -> dict[str, Path]:
    """Folders of ImageNet's training and test images.

    Raises:
        DataMissingError: They are not there; the message says how to unpack it.
    """
    if root is None:
        raise DataMissingError(
            f"ImageNet needs a data folder with {_LAYOUT}: give --audit-data-root DIR, or set {DATA_VARIABLE}"
        )
    folders = {"train": root / "imagenet" / "train", "test": root / "imagenet" / "val"}
    if not all(folder.is_dir() for folder in folders.values()):
        raise DataMissingError(f"ImageNet is not in {root}: unpack it there as {_LAYOUT}")
    return folders


def see_that_it_is_all_of_imagenet(folder: Path, classes: int, train: int, test: int, same: bool = True) -> None:
    """Refuse a part of ImageNet, or a larger one.

    Args:
        folder: Where it is.
        classes: How many there are.
        train: Training images.
        test: Test images.
        same: Whether both have the same classes.

    Raises:
        DataMissingError: It is not ILSVRC 2012.
    """
    expected = STORED["imagenet"][2:]
    if (classes, train, test) != expected or not same:
        counts = "{} classes with {} training and {} test images"
        raise DataMissingError(
            f"{folder} holds {counts.format(classes, train, test)}, which is not the whole ImageNet: it has "
            f"{counts.format(*expected)}"
        )


# As many files at once as one thread reads: a million single jobs would take more memory than they save time.
_FILES_OF_A_THREAD = 1000


def _centres(samples: list[tuple[str, int]], side: int) -> np.ndarray:
    """Centres of image files, ``[N, side, side, 3]``: the usual test images, 224 pixels of a shorter side of 256."""
    from concurrent.futures import ThreadPoolExecutor

    from PIL import Image
    from torchvision.transforms import functional

    centres = np.empty((len(samples), side, side, 3), dtype=np.uint8)

    def read(start: int) -> None:
        for number, (path, _) in enumerate(samples[start : start + _FILES_OF_A_THREAD], start):
            with Image.open(path) as image:
                resized = functional.resize(image.convert("RGB"), round(side * 256 / 224))
            centres[number] = np.asarray(functional.center_crop(resized, side))

    with ThreadPoolExecutor() as pool:
        list(pool.map(read, range(0, len(samples), _FILES_OF_A_THREAD)))
    return centres


def download_lock(root: Path) -> FileLock:
    """Held while somebody downloads into a data root."""
    root.mkdir(parents=True, exist_ok=True)
    return FileLock(root / ".download.lock")


# Where torchvision keeps a dataset below its root, and where ImageNet is to be.
_FOLDERS = ("cifar-10-batches-py", "cifar-100-python", "MNIST", "FashionMNIST", "imagenet")


def torchvision_folders(root: Path | None) -> list[Path]:
    """Folders of the known datasets below a data root."""
    return [root / folder for folder in _FOLDERS if root is not None]


def _how_to_get(class_name: str, root: Path | None) -> str:
    if root is None:
        return f"{class_name} needs a data folder: give --audit-data-root DIR --audit-download, or set {DATA_VARIABLE}"
    return f"{class_name} is not in {root}: add --audit-download, or point --audit-data-root to torchvision's folder"


# channels, height as stored, classes, training images, test images (0: split off the training images)
STORED: dict[str, tuple[int, int, int, int, int]] = {
    "digits": (1, 8, 10, 1797, 0),
    "cifar10": (3, 32, 10, 50_000, 10_000),
    "cifar100": (3, 32, 100, 50_000, 10_000),
    "mnist": (1, 28, 10, 60_000, 10_000),
    "fmnist": (1, 28, 10, 60_000, 10_000),
    "imagenet": (3, 224, 1000, 1_281_167, 50_000),
}

LOADERS: dict[str, Callable[[DataConfig, Path | None, bool], Raw]] = {
    "digits": _digits,
    "cifar10": _torchvision("CIFAR10"),
    "cifar100": _torchvision("CIFAR100"),
    "mnist": _torchvision("MNIST"),
    "fmnist": _torchvision("FashionMNIST"),
    "imagenet": _imagenet,
}


def resized(images: np.ndarray, size: int | None) -> np.ndarray:
    """Resize once with PIL (bilinear), as the source papers' pipelines do; other resizers differ by a grey level."""
    if size is None or images.shape[1] == size:
        return np.ascontiguousarray(images)
    from PIL import Image

    count, height, width, channels = images.shape
    # Channel by channel, as bytes: an array for each is most of the work where images are small.
    planes = images.transpose(0, 3, 1, 2).reshape(-1, height, width)
    found = b"".join(
        Image.frombytes("L", (width, height), plane.tobytes()).resize((size, size), Image.Resampling.BILINEAR).tobytes()
        for plane in planes
    )
    out = np.frombuffer(found, dtype=np.uint8).reshape(count, channels, size, size)
    # A copy of its own, which may be written.
    return out.transpose(0, 2, 3, 1).copy()
