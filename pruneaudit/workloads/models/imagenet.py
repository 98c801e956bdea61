"""ResNets for ImageNet, as torchvision has them."""

from __future__ import annotations

from torch import nn


def imagenet_resnet(depth: int, channels: int = 3, classes: int = 1000) -> nn.Module:
    """Torchvision's ResNet of a depth (He et al. 2016, sec. 4.1), with its names, so that its checkpoints fit.

    ResNet-34 has 21,797,672 parameters and 3.66 G MACs at 224×224, ResNet-50 25,557,032 and 4.09 G. Input
    ``[N, channels, H, W]``, output ``[N, classes]``.
    """
    # Takes a second to import, and only these networks need it.
    from torchvision import models

    network: nn.Module = getattr(models, f"resnet{depth}")(weights=None, num_classes=classes)
    network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    return network
