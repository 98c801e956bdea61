"""Datasets as resident uint8 tensors, with a fixed validation split and batched augmentation.

A training set always gives up a validation split, drawn once by a seeded, stratified index; tuning may look at nothing
else. Test images never reach a method.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from pruneaudit.errors import ConfigError, DataMissingError, unknown
from pruneaudit.streams import generator
from pruneaudit.workloads.schema import DataConfig

#: The split never depends on a run's seed: every run of a dataset sees the same three parts.
SPLIT_SEED = 20230112
DATA_VARIABLE = "PRUNEAUDIT_DATA"


@dataclass(frozen=True)
class Part:
    """One split: images ``[N, H, W, C]`` uint8 and labels ``[N]`` int64."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> Part:
        """The first images of the split."""
        return Part(self.images[:count], self.labels[:count])

    def to(self, device: torch.device) -> Part:
        """The same split on a device."""
        return Part(self.images.to(device), self.labels.to(device))

    @property
    def digest(self) -> str:
        """SHA-256 over pixels and labels."""
        # Read where they are: a copy of a large split may not fit.
        content = hashlib.sha256(np.ascontiguousarray(self.images.cpu().numpy()).data)
        content.update(np.ascontiguousarray(self.labels.cpu().numpy()).data)
        return content.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """Train, validation and test splits with the preprocessing of a workload.

    Attributes:
        config: Preprocessing and augmentation.
        classes: Number of classes.
        train: Split that stages train on.
        validation: The only split that tuning may look at.
        test: Split of the reported accuracy.
        split_digest: SHA-256 over the digests of the three splits.
    """

    config: DataConfig
    classes: int
    train: Part
    validation: Part
    test: Part
    split_digest: str

    @property
    def channels(self) -> int:
        """Input channels."""
        return self.train.images.shape[-1]

    @property
    def height(self) -> int:
        """Height (and width) of an input in pixels."""
        return self.train.images.shape[1]

    def to(self, device: torch.device) -> Dataset:
        """The same dataset on a device."""
        if self.train.images.device == device:
            return self
        return Dataset(
            self.config,
            self.classes,
            self.train.to(device),
            self.validation.to(device),
            self.test.to(device),
            self.split_digest,
        )

    def example(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """A zero input of batch 1, ``[1, C, H, W]``, for tracing."""
        return torch.zeros(1, self.channels, self.height, self.height, dtype=dtype)

    def normalise(self, images: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Turn uint8 ``[N, H, W, C]`` into normalised ``[N, C, H, W]`` (channels last in memory)."""
        mean = torch.tensor(self.config.mean, dtype=dtype, device=images.device) * 255
        scale = 1 / (torch.tensor(self.config.std, dtype=dtype, device=images.device) * 255)
        # One value per pixel and channel of an image: rows of three channels are too short to vectorise.
        mean, scale = (values.expand(images.shape[1:]).flatten() for values in (mean, scale))
        pixels = (images.to(dtype).flatten(1) - mean).mul_(scale)
        return pixels.view(images.shape).permute(0, 3, 1, 2)

    def batches(
        self, seed: int, stream: str, epoch: int, batch: int, dtype: torch.dtype = torch.float32
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One augmented pass over the training split.

        Order and augmentation are functions of ``(seed, stream, epoch)`` alone, so a resumed run sees the batches it
        would have seen, and two arms with one seed see the same ones.

        Args:
            seed: The run's seed.
            stream: Name of the stream, such as ``"retrain"``.
            epoch: 0-based epoch.
            batch: Images per batch; the last one may be smaller.
            dtype: Type of the images.

        Yields:
            Images ``[B, C, H, W]`` and labels ``[B]``.
        """
        count, device = len(self.train), self.train.images.device
        order = torch.randperm(count, generator=generator(seed, stream, "order", epoch)).to(device)
        noise = generator(seed, stream, "augment", epoch)
        shift = torch.randint(0, 2 * self.config.pad + 1, (count, 2), generator=noise).to(device)
        flip = (torch.rand(count, generator=noise) < 0.5).to(device) if self.config.flip else None
        windows = self.windows
        for index in order.split(batch):
            images = crops(windows, index, shift[index], None if flip is None else flip[index])
            yield self.normalise(images, dtype), self.train.labels[index]

    @property
    def windows(self) -> torch.Tensor:
        """A view of all crops of all padded training images, ``[N, rows, columns, H, W, C]``, see :func:`crops`."""
        side = self.height
        return self._padded.unfold(1, side, 1).unfold(2, side, 1).permute(0, 1, 2, 4, 5, 3)

    @property
    def _padded(self) -> torch.Tensor:
        """Training images with a zero border, padded before normalising as torchvision's RandomCrop does."""
        images, border = self.train.images, self.config.pad
        if not border:
            return images
        cached = _PADDED.get((id(images), border))
        if cached is None or cached[0] is not images:
            count, side = images.shape[0], images.shape[1]
            padded = images.new_zeros(count, side + 2 * border, side + 2 * border, images.shape[3])
            padded[:, border : border + side, border : border + side] = images
            cached = (images, padded)
            _PADDED.clear()
            _PADDED[id(images), border] = cached
        return cached[1]


def crops(windows: torch.Tensor, index: torch.Tensor, shift: torch.Tensor, flip: torch.Tensor | None) -> torch.Tensor:
    """Crop images, and mirror some of them. It does not ask the host: a CUDA graph can replay it.

    Args:
        windows: All crops of all images, see :attr:`Dataset.windows`.
        index: Numbers of images, ``[...]``.
        shift: Row and column of each crop's upper left corner in the padded image, ``[..., 2]``.
        flip: Which crops to mirror left to right, ``[...]`` bool, or None.

    Returns:
        Images ``[..., H, W, C]``.
    """
    images = windows[index, shift[..., 0], shift[..., 1]]
    return images if flip is None else torch.where(flip[..., None, None, None], images.flip(-2), images)


# One padded training set at a time: workers run one workload after the other.
_PADDED: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}


@dataclass(frozen=True)
class Raw:
    """A dataset as it is stored: images ``[N, H, W, C]`` uint8, labels ``[N]``; ``test`` None: to be split off."""

    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray | None = None
    test_labels: np.ndarray | None = None


def _digits(config: DataConfig, root: Path | None, download: bool) -> Raw:
    """scikit-learn's bundled 8×8 scans of handwritten digits (UCI optdigits test set): 1,797 images, no download."""
    table = np.loadtxt(_bundled() / "digits.csv.gz", delimiter=",")
    # Grey levels 0…16 become 0…255 so that every dataset is uint8 with the same meaning.
    images = np.round(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)[..., None]
    return Raw(images, table[:, -1].astype(np.int64))


def _bundled() -> Path:
    """Folder of the datasets in scikit-learn, which is not imported: that takes seconds, in every worker."""
    package = find_spec("sklearn")
    assert package is not None and package.submodule_search_locations, "scikit-learn is a dependency"
    return Path(package.submodule_search_locations[0]) / "datasets" / "data"


def _torchvision(class_name: str) -> Callable[[DataConfig, Path | None, bool], Raw]:
    def load(config: DataConfig, root: Path | None, download: bool) -> Raw:
        import torchvision

        cls = getattr(torchvision.datasets, class_name)
        if root is None:
            raise DataMissingError(_how_to_get(class_name, None))
        try:
            # Workers must not download the same files at once.
            with _download_lock(root) if download else nullcontext():
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

    layout = "imagenet/train/CLASS/*.JPEG and imagenet/val/CLASS/*.JPEG"
    if root is None:
        raise DataMissingError(
            f"ImageNet needs a data folder with {layout}: give --audit-data-root DIR, or set {DATA_VARIABLE}"
        )
    try:
        train, test = (ImageFolder(str(root / "imagenet" / split)) for split in ("train", "val"))
    except OSError as error:
        raise DataMissingError(f"ImageNet is not in {root}: unpack it there as {layout}") from error
    channels, _, *expected = _STORED[config.name]
    found = [len(train.classes), len(train), len(test)]
    if found != expected or train.classes != test.classes:
        counts = "{} classes with {} training and {} test images"
        raise DataMissingError(
            f"{root / 'imagenet'} holds {counts.format(*found)}, which is not the whole ImageNet: it has "
            f"{counts.format(*expected)}"
        )
    side = facts(config).height
    # What is read, and once more the training images: first while a split is taken from them, then with their border.
    needed = channels * ((len(train) + len(test)) * side**2 + len(train) * (side + 2 * config.pad) ** 2)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise ConfigError(
            f"ImageNet at {side} pixels needs {needed / 2**30:.0f} GiB of memory and this machine has "
            f"{memory / 2**30:.0f}: give a smaller data.size in the workload, or use a larger machine"
        )
    labels = (np.asarray(split.targets, dtype=np.int64) for split in (train, test))
    return Raw(_centres(train.samples, side), next(labels), _centres(test.samples, side), next(labels))


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


def _download_lock(root: Path) -> FileLock:
    root.mkdir(parents=True, exist_ok=True)
    return FileLock(root / ".download.lock")


# Where torchvision keeps a dataset below its root, and where ImageNet is to be.
_FOLDERS = ("cifar-10-batches-py", "cifar-100-python", "MNIST", "FashionMNIST", "imagenet")


def stored_at(root: Path | None) -> list[Path]:
    """Folders that hold datasets: scikit-learn's own, and torchvision's below a data root."""
    return [_bundled(), *(root / folder for folder in _FOLDERS if root is not None)]


def _how_to_get(class_name: str, root: Path | None) -> str:
    if root is None:
        return f"{class_name} needs a data folder: give --audit-data-root DIR --audit-download, or set {DATA_VARIABLE}"
    return f"{class_name} is not in {root}: add --audit-download, or point --audit-data-root to torchvision's folder"


@dataclass(frozen=True)
class Facts:
    """Sizes of a workload's data, known without loading it."""

    channels: int
    height: int
    classes: int
    train: int
    validation: int
    test: int


# channels, height as stored, classes, training images, test images (0: split off the training images)
_STORED = {
    "digits": (1, 8, 10, 1797, 0),
    "cifar10": (3, 32, 10, 50_000, 10_000),
    "cifar100": (3, 32, 100, 50_000, 10_000),
    "mnist": (1, 28, 10, 60_000, 10_000),
    "fmnist": (1, 28, 10, 60_000, 10_000),
    "imagenet": (3, 224, 1000, 1_281_167, 50_000),
}


def facts(config: DataConfig) -> Facts:
    """Sizes of the three splits and of an input, without loading anything.

    Raises:
        ConfigError: No such dataset.
    """
    if config.name not in _STORED:
        raise unknown("dataset", config.name, _STORED)
    channels, height, classes, train, test = _STORED[config.name]
    validation = config.validation or (train // 10 if test else train // 5)
    if not test:
        test = train // 5
        train -= test
    if validation >= train:
        raise ConfigError(f"data.validation {validation} leaves no training image: {config.name} has {train}")
    return Facts(channels, config.size or height, classes, train - validation, validation, test)


LOADERS: dict[str, Callable[[DataConfig, Path | None, bool], Raw]] = {
    "digits": _digits,
    "cifar10": _torchvision("CIFAR10"),
    "cifar100": _torchvision("CIFAR100"),
    "mnist": _torchvision("MNIST"),
    "fmnist": _torchvision("FashionMNIST"),
    "imagenet": _imagenet,
}


def data_root(option: str | None) -> Path | None:
    """The data folder: the option, else the environment variable, else none."""
    chosen = option or os.environ.get(DATA_VARIABLE)
    return Path(chosen).expanduser() if chosen else None


@lru_cache(maxsize=4)
def load(config: DataConfig, root: Path | None = None, download: bool = False, device: str = "cpu") -> Dataset:
    """Load a dataset and split it; one object for all who ask: runs that train together read the same tensors.

    Args:
        config: The workload's data section.
        root: Folder in torchvision's layout; not needed for ``digits``.
        download: Whether torchvision may download.
        device: Where its tensors are.

    Raises:
        ConfigError: No such dataset.
        DataMissingError: The files are not there; the message says how to get them.
    """
    if device != "cpu":
        return load(config, root, download).to(torch.device(device))
    if config.name not in LOADERS:
        raise unknown("dataset", config.name, LOADERS)
    if len(config.mean) != len(config.std) or len(config.mean) != facts(config).channels:
        raise ConfigError(f"data.mean and data.std of {config.name} need {facts(config).channels} values each")
    raw = LOADERS[config.name](config, root, download)
    sizes = facts(config)
    images, labels = raw.images, raw.labels
    if raw.test_images is None or raw.test_labels is None:
        # 60 / 20 / 20: the dataset has no test set of its own.
        rest, test_index = _stratified(labels, sizes.test, "test")
        test_images, test_labels = images[test_index], labels[test_index]
        images, labels = images[rest], labels[rest]
    else:
        test_images, test_labels = raw.test_images, raw.test_labels
    train_index, validation_index = _stratified(labels, sizes.validation, "validation")

    def part(pixels: np.ndarray, targets: np.ndarray) -> Part:
        return Part(torch.from_numpy(_resized(pixels, config.size)), torch.from_numpy(np.ascontiguousarray(targets)))

    train = part(images[train_index], labels[train_index])
    validation = part(images[validation_index], labels[validation_index])
    test = part(test_images, test_labels)
    joined = hashlib.sha256("".join(split.digest for split in (train, validation, test)).encode()).hexdigest()
    return Dataset(config, sizes.classes, train, validation, test, joined)


def _stratified(labels: np.ndarray, held_out: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Split indices so that each class gives up its share of ``held_out`` (largest remainders first); sorted."""
    draw = generator(SPLIT_SEED, name)
    shuffled = torch.randperm(len(labels), generator=draw).numpy()
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * (held_out / len(labels))
    share = np.floor(exact).astype(int)
    for position in np.argsort(-(exact - share), kind="stable")[: held_out - share.sum()]:
        share[position] += 1
    taken = np.concatenate(
        [shuffled[labels[shuffled] == label][:number] for label, number in zip(classes, share, strict=True)]
    )
    mask = np.zeros(len(labels), dtype=bool)
    mask[taken] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)


def _resized(images: np.ndarray, size: int | None) -> np.ndarray:
    """Resize once with PIL (bilinear), as the source papers' pipelines do; other resizers differ by a grey level."""
    if size is None or images.shape[1] == size:
        return np.ascontiguousarray(images)
    from PIL import Image

    resample = Image.Resampling.BILINEAR
    out = np.empty((len(images), size, size, images.shape[3]), dtype=np.uint8)
    for position, image in enumerate(images):
        for channel in range(images.shape[3]):
            out[position, :, :, channel] = np.asarray(
                Image.fromarray(image[:, :, channel]).resize((size, size), resample)
            )
    return out


def imitation(config: DataConfig, images: int, held_out: int) -> Dataset:
    """Random images in the sizes of a dataset, which need not be there: what computing takes does not depend on them.

    Args:
        config: The workload's data section.
        images: Training images.
        held_out: Images of validation and test, each.

    Raises:
        ConfigError: No such dataset.
    """
    sizes, noise = facts(config), torch.Generator().manual_seed(0)

    def part(count: int) -> Part:
        shape = (count, sizes.height, sizes.height, sizes.channels)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=noise)
        return Part(pixels, torch.randint(0, sizes.classes, (count,), generator=noise))

    return Dataset(config, sizes.classes, part(images), part(held_out), part(held_out), "random")
