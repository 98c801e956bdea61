"""Sizes of a workload's data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Facts:
    """Sizes of a workload's data.

    Attributes:
        shape: Shape of one input as a network sees it: ``(C, H, W)`` of images, ``(F,)`` of vectors.
        classes: Number of classes.
        train: Training examples.
        validation: Validation examples.
        test: Test examples.
        dtype: Type of inputs as they are kept: uint8 of images.
        highest: Largest value of whole numbers, such as tokens; 0 for all other inputs.
        labels: Shape of the labels of one input: ``()`` for one label, ``(T,)`` for one of each token.
    """

    shape: tuple[int, ...]
    classes: int
    train: int
    validation: int
    test: int
    dtype: torch.dtype = torch.uint8
    highest: int = 0
    labels: tuple[int, ...] = ()

    @property
    def channels(self) -> int:
        """Input channels, or features of a vector."""
        return self.shape[0]

    @property
    def height(self) -> int:
        """Height of an image in pixels."""
        return self.shape[1]

    @property
    def values(self) -> int:
        """Values of one input."""
        return math.prod(self.shape)

    def example(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """A zero input of batch 1 for tracing: ``[1, C, H, W]`` of images; whole numbers stay such."""
        return torch.zeros(1, *self.shape, dtype=torch.int64 if self.dtype == torch.int64 else dtype)
