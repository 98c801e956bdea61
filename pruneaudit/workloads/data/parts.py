"""A split whose inputs lie in memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Part:
    """One split in memory.

    Attributes:
        images: Images ``[N, H, W, C]`` uint8, or inputs of any other kind: ``[N, ...]`` floats or whole numbers.
        labels: ``[N]`` int64; of tokens ``[N, T]`` one for each.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input as a network sees it: ``(C, H, W)`` of images."""
        return input_shape(self.images)

    def first(self, count: int) -> Part:
        """The first inputs of the split."""
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


def are_images(inputs: torch.Tensor) -> bool:
    """Whether inputs are images, ``[N, H, W, C]`` uint8; everything else goes into a network as it is."""
    return inputs.dtype == torch.uint8 and inputs.dim() == 4


def input_shape(inputs: torch.Tensor) -> tuple[int, ...]:
    """Shape of one of these inputs as a network sees it."""
    rest = inputs.shape[1:]
    return (rest[2], rest[0], rest[1]) if are_images(inputs) else tuple(rest)
