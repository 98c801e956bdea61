"""Batches whose images and labels are mixed with each other: mixup and CutMix."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pruneaudit.errors import ConfigError
from pruneaudit.streams import derive
from pruneaudit.workloads.recipes import Recipe


class Mixing:
    """Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) as ``torchvision.transforms.v2`` has them.

    Where a recipe asks for both, each batch gets one of them with equal chances, as in torchvision's references and in
    timm. What is drawn follows from seed, stream, epoch and step alone.

    Args:
        recipe: Their strengths.
        classes: Number of classes.
    """

    def __init__(self, recipe: Recipe, classes: int) -> None:
        from torchvision.transforms import v2

        self._classes = classes
        kinds = [(v2.MixUp, recipe.mixup), (v2.CutMix, recipe.cutmix)]
        self._transforms = [kind(alpha=alpha) for kind, alpha in kinds if alpha]

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, seed: int, stream: str, epoch: int, step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix a batch.

        Args:
            images: ``[B, C, H, W]``.
            labels: Classes ``[B]``.
            seed: The run's seed.
            stream: Name of the stage's stream.
            epoch: 0-based epoch.
            step: 0-based step of the stage.

        Returns:
            Images ``[B, C, H, W]`` and shares of classes ``[B, classes]`` in their type.

        Raises:
            ConfigError: What should be mixed are no images.
        """
        if images.dim() != 4 or not images.is_floating_point():
            raise ConfigError(f"mixup and cutmix mix images [B, C, H, W]; these inputs are {list(images.shape)}")
        targets = F.one_hot(labels, self._classes).to(images.dtype)
        # The transforms draw from torch's global generator, and from that of the CPU only.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive(seed, stream, "mix", epoch, step))
            chosen = int(torch.randint(len(self._transforms), (1,)))
            mixed: tuple[torch.Tensor, torch.Tensor] = self._transforms[chosen](images, targets)
        return mixed
