"""ResNets for 32×32 images (He et al. 2016, sec. 4.2) with parameter-free shortcuts (option A)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and an option-A shortcut: every second pixel, missing channels as zeros on both sides.

    Attributes:
        branch: Modules beside the shortcut, from first to last; None, all of them, where the branch was removed.
    """

    branch = ("conv1", "bn1", "conv2", "bn2")

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.missing = outputs - inputs

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """``[N, inputs, H, W]`` to ``[N, outputs, H/stride, W/stride]``."""
        shortcut = maps
        if self.stride > 1 or self.missing:
            half = self.missing // 2
            # Pooling of single pixels: the gradient of a slice would be in another memory layout, four times as slow.
            shortcut = F.pad(F.avg_pool2d(maps, 1, self.stride), (0, 0, 0, 0, half, self.missing - half))
        if self.conv1 is None:
            return F.relu(shortcut)
        # In place only what is no module's output: hooks may keep that.
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(maps))))) + shortcut, inplace=True)


class CifarResNet(nn.Module):
    """ResNet of depth 6n + 2 with widths 16, 32, 64.

    ResNet-56 for 10 classes has 853,018 parameters and 125,485,696 MACs at 32×32. Module names follow the common
    public checkpoints (``conv1, bn1, layer1.0.conv1, …, linear``). Input ``[N, channels, H, W]``, output
    ``[N, classes]``.
    """

    def __init__(self, depth: int, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        if (depth - 2) % 6:
            raise ValueError(f"depth {depth} is not 6n + 2")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, stride=1)
        self.layer2 = self._stage(16, 32, blocks, stride=2)
        self.layer3 = self._stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(inputs, outputs, stride)
        return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of a batch."""
        maps = F.relu(self.bn1(self.conv1(images)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        # Permuted for the layout of the gradient, too.
        return self.linear(maps.permute(0, 2, 3, 1).mean(dim=(1, 2)))
