"""A frozen teacher, whose soft labels are part of the loss."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import nn

from pruneaudit.measure.accuracy import widened
from pruneaudit.training.metering import Meter
from pruneaudit.workloads.models.tensors import state_of
from pruneaudit.workloads.recipes import Distillation


class Teacher:
    """A network in eval mode that nothing trains.

    Args:
        network: It, on the device and in the precision of who learns; frozen here.
        settings: What it adds to the loss.
        precision: As of a trainer: ``bf16`` computes its passes with autocast.
        beside: What its run keeps beside the weights, by name: they are part of the digest.
    """

    def __init__(
        self,
        network: nn.Module,
        settings: Distillation,
        precision: str = "fp32",
        beside: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.settings = settings
        self.beside = beside or {}
        self._is_bf16 = precision == "bf16"

    def __call__(self, loss: torch.Tensor, logits: torch.Tensor, images: torch.Tensor, meter: Meter) -> torch.Tensor:
        """What is minimised on a part of a batch, see :class:`Distillation`: a mean, a scalar.

        Args:
            loss: Mean cross entropy with the labels.
            logits: Of the network that learns, ``[B, classes]``, or ``[B, classes, tokens]`` of texts.
            images: What both networks see.
            meter: Counts the teacher's passes.
        """
        with meter.harness(), torch.no_grad():
            with torch.autocast(images.device.type, torch.bfloat16, enabled=self._is_bf16):
                theirs = self.network(images)
            meter.consumption.taught_samples += len(images)
        soft = softened(logits, widened(theirs), self.settings.temperature)
        return (1 - self.settings.weight) * loss + self.settings.weight * soft

    @property
    def digest(self) -> str:
        """SHA-256 of its weights as they are now, as the record of its run has it."""
        tensors = {**state_of(self.network), **self.beside}
        return hashlib.sha256(save({name: one.cpu().contiguous() for name, one in tensors.items()})).hexdigest()


def softened(logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """T² · KL between the two softened distributions: a mean over images (and tokens), a scalar.

    Args:
        logits: Of who learns, ``[B, classes, ...]``.
        targets: Of the teacher, the same shape.
        temperature: T.
    """
    ours, theirs = (F.log_softmax(each / temperature, dim=1) for each in (logits, targets))
    divergence = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1)
    return temperature**2 * divergence.mean()
