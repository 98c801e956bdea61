"""Perceptrons of many layers, the plainest networks whose trainability is studied."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn


class MLP(nn.Module):
    """Fully connected layers without normalisation, of one width: MLP-7 of Wang & Fu 2023 (arXiv 2207.12534), sec. 4.

    Seven layers, 100 outputs each, on 32×32 images: 154,010 parameters for one channel and 10 classes. Input
    ``[N, channels, size, size]``, output ``[N, classes]``.

    Args:
        channels: Input channels.
        classes: Output classes.
        size: Side of the images.
        layers: Linear layers, ``fc1`` and on; the last one classifies.
        width: Outputs of each but the last.
        linear: Whether nothing lies between them: a deep linear network, whose Jacobian is the product of its weights.
    """

    def __init__(
        self,
        channels: int = 1,
        classes: int = 10,
        size: int = 32,
        layers: int = 7,
        width: int = 100,
        linear: bool = False,
    ) -> None:
        super().__init__()
        sizes = [channels * size * size, *[width] * (layers - 1), classes]
        for number, (inputs, outputs) in enumerate(pairwise(sizes), 1):
            self.add_module(f"fc{number}", nn.Linear(inputs, outputs))
        self.between = nn.Identity() if linear else nn.ReLU()
        self.layers = layers

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of a batch."""
        values = images.flatten(1)
        for number in range(1, self.layers):
            values = self.between(self.get_submodule(f"fc{number}")(values))
        logits: torch.Tensor = self.get_submodule(f"fc{self.layers}")(values)
        return logits
