"""ResNets for ImageNet, as torchvision has them."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn

#: Torchvision's block, and blocks of each stage.
_LAYOUT = {34: ("BasicBlock", (3, 4, 6, 3)), 50: ("Bottleneck", (3, 4, 6, 3))}


def imagenet_resnet(depth: int, channels: int = 3, classes: int = 1000) -> nn.Module:
    """Torchvision's ResNet of a depth (He et al. 2016, sec. 4.1), with its names, so that its checkpoints fit.

    ResNet-34 has 21,797,672 parameters and 3.66 G MACs at 224×224, ResNet-50 25,557,032 and 4.09 G. Input
    ``[N, channels, H, W]``, output ``[N, classes]``.
    """
    # Takes a second to import, and only these networks need it.
    from torchvision.models.resnet import ResNet

    block, stages = _LAYOUT[depth]
    network: nn.Module = ResNet(_removable(block), list(stages), num_classes=classes)
    network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    return network


@lru_cache
def _removable(name: str) -> type[nn.Module]:
    """Torchvision's block whose branch can go, as in :class:`pruneaudit.workloads.models.resnet.BasicBlock`."""
    from torchvision.models import resnet

    base: type[nn.Module] = getattr(resnet, name)
    convolutions = 3 if name == "Bottleneck" else 2

    class Removable(base):  # type: ignore[valid-type, misc]
        branch = tuple(f"{kind}{number}" for number in range(1, convolutions + 1) for kind in ("conv", "bn"))

        def forward(self, maps: torch.Tensor) -> torch.Tensor:
            if self.conv1 is not None:
                return super().forward(maps)
            return F.relu(maps if self.downsample is None else self.downsample(maps))

    return Removable
