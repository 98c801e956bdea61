"""VGG with batch normalisation for 32×32 images, in the forms of GReg and TPP and of Li et al. 2017."""

from __future__ import annotations

import torch
from torch import nn

# Output channels of the 3×3 convolutions; "M" halves the map. No pooling after the last block.
_LAYOUT: dict[int, tuple[int | str, ...]] = {
    16: (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512),
    19: (64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4),
}


class CifarVGG(nn.Module):
    """Convolutions without bias, BN and ReLU, average pooling of the last map, one linear classifier.

    VGG-19 for 100 classes has 20,081,188 parameters and 398.18 M MACs. Input ``[N, channels, 32, 32]``, output
    ``[N, classes]``.

    Args:
        depth: 16 or 19.
        channels: Input channels.
        classes: Output classes.
        hidden: Width of a hidden linear layer with BN and ReLU before the classifier, as in Li et al. 2017 (512:
            VGG-16 then has 14,987,722 parameters and 313.46 M MACs); 0: none.
    """

    def __init__(self, depth: int, channels: int = 3, classes: int = 10, hidden: int = 0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels
        for item in _LAYOUT[depth]:
            if isinstance(item, str):
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(inputs, item, 3, padding=1, bias=False), nn.BatchNorm2d(item), nn.ReLU(inplace=True)]
            inputs = item
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier: nn.Module = nn.Linear(hidden or inputs, classes)
        if hidden:
            self.classifier = nn.Sequential(
                nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), self.classifier
            )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of a batch."""
        return self.classifier(self.pool(self.features(images)).flatten(1))
