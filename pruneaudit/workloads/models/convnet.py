"""Four convolutions with batch norm, for images of 8×8 and up."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class ConvNet4(nn.Module):
    """The plainest network of today's parts: 3×3 convolution, batch norm, ReLU, four times; every second one halves.

    Neither shortcuts nor hidden layers: what a pruned layer loses, nothing carries past it. 65,834 parameters and
    608,896 MACs for one channel of 8×8 and 10 classes. Input ``[N, channels, H, W]``, output ``[N, classes]``.

    Args:
        channels: Input channels.
        classes: Output classes.
        width: Filters of the first two convolutions; the others have twice as many.
    """

    def __init__(self, channels: int = 1, classes: int = 10, width: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * width)
        self.conv4 = nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.bn4 = nn.BatchNorm2d(2 * width)
        self.linear = nn.Linear(2 * width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of a batch."""
        maps = F.relu(self.bn1(self.conv1(images)))
        maps = F.relu(self.bn2(self.conv2(maps)))
        maps = F.relu(self.bn3(self.conv3(maps)))
        maps = F.relu(self.bn4(self.conv4(maps)))
        return self.linear(maps.mean(dim=(2, 3)))
