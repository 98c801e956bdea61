"""A dataset in its three splits, and the batches that are made of it.

A training set always gives up a validation split; tuning may look at nothing else. Test images never reach a method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import torch

from pruneaudit.streams import generator
from pruneaudit.workloads.data.parts import Part, are_images
from pruneaudit.workloads.data.probes import fingerprint
from pruneaudit.workloads.data.questions import Questions
from pruneaudit.workloads.data.shares import WHOLE, Share
from pruneaudit.workloads.data.streamed import CHUNK, Streamed, in_order
from pruneaudit.workloads.data.transforms import Pipeline
from pruneaudit.workloads.schema import DataConfig

#: A split, in memory or not.
Split = Part | Streamed


@dataclass(frozen=True)
class Dataset:
    """Train, validation and test splits with the preprocessing of a workload.

    Attributes:
        config: Preprocessing and augmentation; mean and standard deviation are there, stated or found.
        classes: Number of classes.
        train: Split that stages train on.
        validation: The only split that tuning may look at.
        test: Split of the reported accuracy.
        split_digest: SHA-256 over the digests of the three splits.
        augment: Transforms of training images, in place of the crops and flips of ``config``; None: those.
        static: Transforms of all other images, where images are decoded or transformed one by one; None: they are not.
        mode: PIL's name of what images are decoded to, ``RGB`` or ``L``.
        questions: Those of the workload's task, of ``validation`` and ``test``; empty where it has none.
        bytes: Of texts: bytes that the labels of splits stand for, by name, where that is known.
    """

    config: DataConfig
    classes: int
    train: Split
    validation: Split
    test: Split
    split_digest: str
    augment: Pipeline | None = None
    static: Pipeline | None = None
    mode: str = "RGB"
    questions: Mapping[str, Questions] = field(default_factory=dict)
    bytes: Mapping[str, int] = field(default_factory=dict)

    def questions_of(self, split: Split) -> Questions | None:
        """The task's questions that are held out with a split; None where there are none."""
        return self.questions.get(self._name(split))

    def bytes_of(self, split: Split) -> int | None:
        """Bytes of text that a split's labels stand for; None where that is not known."""
        return self.bytes.get(self._name(split))

    def _name(self, split: Split) -> str:
        return next((name for name in ("test", "validation", "train") if split is getattr(self, name)), "")

    @property
    def pipeline(self) -> str | None:
        """What became of the probe images (:mod:`.probes`); None where images are taken as they are stored."""
        return None if self.static is None else fingerprint(self.static, self.augment, self.mode)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input as a network sees it: ``(C, H, W)`` of images."""
        return self.train.shape

    @property
    def channels(self) -> int:
        """Input channels."""
        return self.shape[0]

    @property
    def height(self) -> int:
        """Height of an input in pixels."""
        return self.shape[1]

    @property
    def width(self) -> int:
        """Width of an input in pixels."""
        return self.shape[2]

    @property
    def resident(self) -> Part:
        """The training split of a dataset without an :attr:`obstacle`."""
        assert isinstance(self.train, Part)
        return self.train

    @property
    def obstacle(self) -> str:
        """Why its batches cannot be made on the device, many at once; empty: they can."""
        if not all(isinstance(split, Part) for split in (self.train, self.validation, self.test)):
            return "data is streamed"
        if self.augment is not None:
            return "images are augmented one by one"
        return "" if are_images(self.resident.images) else "inputs are no images"

    def to(self, device: torch.device) -> Dataset:
        """The same dataset on a device."""
        if self.train.labels.device == device:
            return self
        train, validation, test = (split.to(device) for split in (self.train, self.validation, self.test))
        return replace(self, train=train, validation=validation, test=test)

    def example(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """A zero input of batch 1, ``[1, C, H, W]`` of images, for tracing; whole numbers stay such."""
        inputs = self.train.images if isinstance(self.train, Part) else None
        is_whole = inputs is not None and inputs.dtype == torch.int64
        return torch.zeros(1, *self.shape, dtype=torch.int64 if is_whole else dtype)

    def normalise(self, images: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Turn inputs as they are kept into what a network takes.

        Args:
            images: Images ``[N, H, W, C]`` uint8, floats ``[N, C, ...]``, or whole numbers.
            dtype: Type of what is not whole.

        Returns:
            Normalised images ``[N, C, H, W]``, channels last in memory; normalised floats; whole numbers as they are.
        """
        if not (images.is_floating_point() or images.dtype == torch.uint8):
            return images
        if not are_images(images):
            if not self.config.mean:
                return images.to(dtype)
            mean, std = (
                torch.tensor(values or (), dtype=dtype, device=images.device)
                for values in (self.config.mean, self.config.std)
            )
            channels = (-1, *[1] * (images.dim() - 2))
            return (images.to(dtype) - mean.view(channels)) / std.view(channels)
        mean, scale = self.scaling(dtype, images.device)
        if (normalised := _quicker(images, dtype)) is not None:
            return normalised(images, mean, scale).permute(0, 3, 1, 2)
        bands, part = (1, max(len(images), 1)) if images.is_cuda else _parts(*images.shape[1:])
        # One value per pixel and channel of a band: rows of three channels are too short to vectorise.
        band = (images.shape[1] // bands, *images.shape[2:])
        mean, scale = (values.expand(band).flatten() for values in (mean, scale))
        # Within one tensor: a second one of this size costs as much as all else. On a processor part by part, so that
        # what was converted is still at hand when it is shifted and scaled.
        pixels = torch.empty(images.shape, dtype=dtype, device=images.device)
        whole = (len(images) * bands, len(mean))
        for stored, found in zip(images.reshape(whole).split(part), pixels.view(whole).split(part), strict=True):
            found.copy_(stored).sub_(mean).mul_(scale)
        return pixels.permute(0, 3, 1, 2)

    def scaling(self, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """What is taken from every pixel of a channel, 0 to 255, and by what the rest is multiplied, ``[C]`` each."""
        mean = torch.tensor(self.config.mean or (), dtype=dtype, device=device)
        std = torch.tensor(self.config.std or (), dtype=dtype, device=device)
        return mean * 255, 1 / (std * 255)

    def inputs(
        self, split: Split, dtype: torch.dtype = torch.float32, batch: int = CHUNK
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One pass over a split in order, without augmentation.

        Args:
            split: The split.
            dtype: Type of the inputs.
            batch: Inputs per batch; the last one may be smaller.

        Yields:
            Inputs ``[B, C, H, W]`` (of images) and labels ``[B]``.
        """
        for index, images in self.stored(split, batch):
            yield self.normalise(images, dtype), split.labels[index.start : index.stop]

    def stored(self, split: Split, batch: int = CHUNK) -> Iterator[tuple[range, torch.Tensor]]:
        """The same pass over inputs as they are kept: indices, and images ``[B, H, W, C]`` uint8 (or what they are)."""
        chunks = in_order(len(split), batch)
        if isinstance(split, Part):
            return ((index, split.images[index.start : index.stop]) for index in chunks)
        return zip(chunks, split.read(chunks), strict=True)

    def batches(
        self,
        seed: int,
        stream: str,
        epoch: int,
        batch: int,
        dtype: torch.dtype = torch.float32,
        start: int = 0,
        share: Share = WHOLE,
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
            start: Batches of the pass that are left out.
            share: What of each batch is read; what an image becomes does not depend on it.

        Yields:
            Images ``[B, C, H, W]`` and labels ``[B]`` of the share.
        """
        device = self.train.labels.device
        parts = [share.take(part) for part in self.order(seed, stream, epoch).split(batch)[start:]]
        for index, images in zip(parts, self._augmented(parts, seed, stream, epoch), strict=True):
            yield self.normalise(images, dtype), self.train.labels[index.to(device)]

    def order(self, seed: int, stream: str, epoch: int) -> torch.Tensor:
        """Numbers of the training images ``[N]``, in the order of an epoch."""
        return torch.randperm(len(self.train), generator=generator(seed, stream, "order", epoch))

    def draws(self, seed: int, stream: str, epoch: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """How the training images are cropped and mirrored in an epoch, whatever their order.

        Returns:
            Row and column of each crop's upper left corner in the padded image, ``[N, 2]``; which crops are mirrored,
            ``[N]`` bool, or None: none is.
        """
        noise, count = generator(seed, stream, "augment", epoch), len(self.train)
        shift = torch.randint(0, 2 * self.config.pad + 1, (count, 2), generator=noise)
        return shift, torch.rand(count, generator=noise) < 0.5 if self.config.flip else None

    def _augmented(self, parts: Sequence[torch.Tensor], seed: int, stream: str, epoch: int) -> Iterator[torch.Tensor]:
        """Training inputs as they are kept, augmented: those of some indices, batch by batch."""
        train = self.train
        if self.augment is not None:
            assert isinstance(train, Streamed)
            yield from train.augmented(self.augment, parts, seed, stream, "augment", epoch)
            return
        device = train.labels.device
        if isinstance(train, Part) and not are_images(train.images):
            for part in parts:
                yield train.images[part.to(device)]
            return
        shift, flip = self.draws(seed, stream, epoch)
        shift, flip = shift.to(device), None if flip is None else flip.to(device)
        if isinstance(train, Part):
            windows = self.windows
            for part in parts:
                index = part.to(device)
                yield crops(windows, index, shift[index], None if flip is None else flip[index])
            return
        for part, images in zip(parts, train.read(parts), strict=True):
            if not train.is_image:
                yield images
                continue
            index, within = part.to(device), torch.arange(len(part), device=device)
            windows = _windows(_bordered(images, self.config.pad), *self.shape[1:])
            yield crops(windows, within, shift[index], None if flip is None else flip[index])

    @property
    def windows(self) -> torch.Tensor:
        """A view of all crops of all padded training images, ``[N, rows, columns, H, W, C]``, see :func:`crops`."""
        return _windows(self.padded, self.height, self.width)

    @property
    def padded(self) -> torch.Tensor:
        """Training images with a zero border, padded before normalising as torchvision's RandomCrop does."""
        images, border = self.resident.images, self.config.pad
        if not border:
            return images
        cached = _PADDED.get((id(images), border))
        if cached is None or cached[0] is not images:
            cached = (images, _bordered(images, border))
            _PADDED.clear()
            _PADDED[id(images), border] = cached
        return cached[1]


def _bordered(images: torch.Tensor, border: int) -> torch.Tensor:
    """Images ``[N, H, W, C]`` with a border of zeros."""
    if not border:
        return images
    count, height, width, channels = images.shape
    padded = images.new_zeros(count, height + 2 * border, width + 2 * border, channels)
    padded[:, border : border + height, border : border + width] = images
    return padded


def _windows(padded: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return padded.unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3)


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


def _quicker(images: torch.Tensor, dtype: torch.dtype) -> Callable[..., torch.Tensor] | None:
    """What normalises large images in one pass; None: torch does, as of small ones it takes next to no time."""
    is_large = math.prod(images.shape[1:]) >= _LARGE and images.shape[2] * images.shape[3] >= 64
    if images.device.type != "cpu" or not is_large or dtype not in (torch.float32, torch.float64):
        return None
    # One thread does it, in a quarter of the time of torch's.
    return _compiled() if torch.get_num_threads() < _MANY else None


@cache
def _compiled() -> Callable[..., torch.Tensor] | None:
    try:
        from pruneaudit.workloads.data.normalising import normalised
    except ImportError:
        return None
    return normalised


def _parts(height: int, width: int, channels: int) -> tuple[int, int]:
    """Into how many bands of rows an image is cut, and how many bands are normalised at one time."""
    row = width * channels
    bands = next(
        (count for count in range(1, height) if not height % count and height // count * row <= _AT_HAND), height
    )
    return bands, max(1, _AT_HAND // (height // bands * row))


# Values of an image for which it pays to load llvmlite, and threads with which torch is as quick.
_LARGE, _MANY = 1 << 15, 4
# Values that are normalised at one time: half of a usual second-level cache, in fp32.
_AT_HAND = 1 << 17
# One padded training set at a time: workers run one workload after the other.
_PADDED: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
