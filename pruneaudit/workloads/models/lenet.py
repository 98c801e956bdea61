"""LeNet-5 on 32×32 inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


class LeNet5(nn.Module):
    """LeCun et al. 1998, in the ReLU and max-pool form that pruning papers use: 61,706 parameters for 10 classes.

    Input ``[N, channels, 32, 32]``, output ``[N, classes]``.

    Args:
        channels: Input channels.
        classes: Output classes.
        widths: Outputs of the three convolutions and of the hidden layer behind them.
    """

    def __init__(self, channels: int = 1, classes: int = 10, widths: Sequence[int] = (6, 16, 120, 84)) -> None:
        super().__init__()
        first, second, third, hidden = widths
        self.conv1 = nn.Conv2d(channels, first, 5)
        self.conv2 = nn.Conv2d(first, second, 5)
        self.conv3 = nn.Conv2d(second, third, 5)
        self.fc1 = nn.Linear(third, hidden)
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of a batch."""
        maps = F.max_pool2d(F.relu(self.conv1(images)), 2)
        maps = F.max_pool2d(F.relu(self.conv2(maps)), 2)
        features = F.relu(self.conv3(maps)).flatten(1)
        return self.fc2(F.relu(self.fc1(features)))
