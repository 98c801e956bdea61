"""Where single examples come from: arrays, files, or anybody's ``torch.utils.data.Dataset``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from pruneaudit.errors import ConfigError, one_line
from pruneaudit.workloads.data.parts import are_images
from pruneaudit.workloads.data.transforms import stored, typed


class Examples(Protocol):
    """Examples one by one, as they are before any transform."""

    @property
    def labels(self) -> np.ndarray:
        """Labels, ``[N]`` int64."""

    @property
    def shapes(self) -> set[tuple[int, ...]]:
        """Shapes that examples have, ``(H, W, C)`` of images."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any:
        """A PIL image, an image ``[H, W, C]`` uint8, or a tensor of any other kind."""

    def digests(self) -> Iterator[np.ndarray]:
        """SHA-256 of each example as it is now, in blocks ``[n, 32]`` uint8; labels do not count."""

    def take(self, index: np.ndarray) -> Examples:
        """Some of them, by their indices."""


@dataclass(frozen=True)
class Arrays:
    """Examples in memory: ``inputs [N, ...]`` and ``labels [N]``."""

    inputs: torch.Tensor
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.inputs[index]

    @property
    def shapes(self) -> set[tuple[int, ...]]:
        """The one shape."""
        return {tuple(self.inputs.shape[1:])}

    def digests(self) -> Iterator[np.ndarray]:
        """Digests of the values of each example."""
        rows = self.inputs.numpy().reshape(len(self), -1)
        yield as_rows([hashlib.sha256(np.ascontiguousarray(row).data).digest() for row in rows])

    def take(self, index: np.ndarray) -> Arrays:
        """Some of them, copied."""
        return Arrays(self.inputs[torch.from_numpy(index)], self.labels[index])


@dataclass(frozen=True)
class Subset:
    """Some of the examples of a dataset, by their indices."""

    whole: Items
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Any:
        return self.whole[int(self.index[index])]

    @property
    def labels(self) -> np.ndarray:
        """Labels of these examples, ``[N]``."""
        return self.whole.labels[self.index]

    @property
    def shapes(self) -> set[tuple[int, ...]]:
        """Shapes of all examples, these or not."""
        return self.whole.shapes

    def digests(self) -> Iterator[np.ndarray]:
        """Digests of these examples."""
        for block in self.whole.digests():
            yield block[self.index]

    def take(self, index: np.ndarray) -> Subset:
        """Some of these."""
        return Subset(self.whole, self.index[index])


class Items:
    """Examples of a map-style dataset that gives pairs (input, label).

    Args:
        dataset: The dataset.
        where: How to name it in errors.
    """

    def __init__(self, dataset: Any, where: str) -> None:
        self._dataset = dataset
        self._where = where
        self._mode = ""
        self.labels, self._digests, self.shapes, modes = self._scan()
        # One image in colours gives all three channels.
        self._mode = "" if modes <= {"", "L"} and len(modes) == 1 else "RGB" if modes - {""} else ""

    def _scan(self) -> tuple[np.ndarray, np.ndarray, set[tuple[int, ...]], set[str]]:
        """Look at every example once."""
        labels, digests, shapes, modes = [], [], set(), set()
        for number in range(len(self._dataset)):
            example, label = self._pair(number)
            modes.add(_mode(example))
            tensor = stored(example, channels_first=True)
            digests.append(hashlib.sha256(np.ascontiguousarray(tensor.numpy()).data).digest())
            shapes.add(tuple(tensor.shape))
            labels.append(label)
        if len(modes) > 1 and modes != {"L", "RGB"} and "" in modes:
            raise ConfigError(f"{self._where}: some inputs are PIL images and others are not")
        if "L" in modes and len(modes) > 1:
            shapes = {(*shape[:2], 3) for shape in shapes}
        return np.asarray(labels), as_rows(digests), shapes, modes

    def _pair(self, number: int) -> tuple[Any, Any]:
        try:
            pair = self._dataset[number]
        except Exception as error:
            raise ConfigError(f"{self._where}: example {number} cannot be read: {one_line(error)}") from None
        if not (isinstance(pair, tuple | list) and len(pair) == 2):
            raise ConfigError(f"{self._where}: example {number} is {type(pair).__name__}; expected (input, label)")
        example, label = pair
        if _mode(example) not in ("", "L", "RGB"):
            example = example.convert("RGB")
        elif not _mode(example) and not isinstance(example, torch.Tensor | np.ndarray):
            raise ConfigError(
                f"{self._where}: the input of example {number} is {type(example).__name__}; "
                "expected a PIL image, a tensor or an array"
            )
        return example, label

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        example, _ = self._pair(index)
        if _mode(example):
            return example.convert(self._mode) if self._mode else example
        return stored(example, channels_first=True)

    def digests(self) -> Iterator[np.ndarray]:
        """Digests as they were when all examples were looked at, in one block: doing that again may take hours."""
        yield self._digests

    def take(self, index: np.ndarray) -> Subset:
        """Some of them."""
        return Subset(self, index)


def _mode(example: Any) -> str:
    """Mode of a PIL image; empty for everything else."""
    from PIL import Image

    return example.mode if isinstance(example, Image.Image) else ""


def as_rows(digests: Sequence[bytes]) -> np.ndarray:
    """Digests of 32 bytes each as ``[N, 32]`` uint8."""
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 32)


def arrays(inputs: Any, labels: Any, where: str) -> Arrays:
    """Examples that somebody gives as arrays or tensors.

    Args:
        inputs: Images ``[N, H, W, C]`` or ``[N, H, W]`` uint8, or ``[N, ...]`` of any other type.
        labels: ``[N]`` whole numbers; of tokens ``[N, T]`` one for each, ``[N, T]``.
        where: How to name them in errors.

    Raises:
        ConfigError: They are none.
    """
    try:
        values = inputs.detach().cpu() if isinstance(inputs, torch.Tensor) else torch.from_numpy(np.array(inputs))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: inputs are no array: {one_line(error)}") from None
    if values.dtype == torch.uint8 and values.dim() == 3:
        values = values[..., None]
    if are_images(values) and values.shape[3] not in (1, 2, 3, 4) and values.shape[1] in (1, 3):
        raise ConfigError(f"{where}: images of shape {list(values.shape)}; expected [N, H, W, C]")
    values = typed(values, are_images(values))
    if values.is_floating_point() and not bool(torch.isfinite(values).all()):
        raise ConfigError(f"{where}: inputs hold values that are not finite")
    numbers = np.asarray(labels.detach().cpu() if isinstance(labels, torch.Tensor) else labels)
    if values.dim() < 2 or len(numbers) != len(values):
        raise ConfigError(f"{where}: {len(values)} inputs and {len(numbers)} labels; expected [N, ...] and [N]")
    return Arrays(values.contiguous(), numbers)


def checked_labels(splits: dict[str, Examples], where: str, classes: int | None = None) -> int:
    """Number of classes, found in the training labels.

    Args:
        splits: The splits by name, ``train`` among them.
        where: How to name them in errors.
        classes: How many there are, where it is known.

    Raises:
        ConfigError: Labels are no whole numbers from 0, a class has no training example, or a label is none of them.
    """
    for name, split in splits.items():
        labels = split.labels
        if not len(labels):
            raise ConfigError(f"{where}: {name} has no example")
        tokens = labels.ndim == 2 and isinstance(split, Arrays) and labels.shape == tuple(split.inputs.shape)
        if not (tokens or labels.ndim == 1) or not np.issubdtype(labels.dtype, np.integer):
            raise ConfigError(
                f"{where}: labels of {name} are {labels.dtype} {list(labels.shape)}; expected integers [N], or one for "
                "each token, [N, T] as the inputs"
            )
        if labels.min() < 0:
            raise ConfigError(f"{where}: {name} has label {labels.min()}; labels count from 0")
    if splits["train"].labels.ndim == 2:
        # Words of a vocabulary, of which a text need not use all.
        highest = [int(split.labels.max()) for split in splits.values()]
        highest += [int(split.inputs.max()) for split in splits.values() if isinstance(split, Arrays)]
        return classes or 1 + max(highest)
    found = classes or int(splits["train"].labels.max()) + 1
    missing = np.flatnonzero(np.bincount(splits["train"].labels, minlength=found)[:found] == 0)
    if len(missing):
        raise ConfigError(f"{where}: no training example of class {missing[0]}; labels count from 0 without gaps")
    for name, split in splits.items():
        if split.labels.max() >= found:
            raise ConfigError(
                f"{where}: {name} has label {split.labels.max()}, and training labels are 0 to {found - 1}"
            )
    return found
