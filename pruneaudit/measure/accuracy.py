"""Accuracy of a network on a split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pruneaudit.workloads.data import Dataset, Split


@dataclass(frozen=True)
class Score:
    """Result of one pass over a split.

    Attributes:
        accuracy: Percent of images classified correctly, exact over a ragged last batch.
        loss: Mean cross-entropy per image.
        correct: Which images were right, ``[N]`` bool.
    """

    accuracy: float
    loss: float
    correct: np.ndarray


@torch.no_grad()
def evaluate(model: nn.Module, dataset: Dataset, part: Split, precision: str = "fp32", batch: int = 512) -> Score:
    """Classify a split in eval mode, without augmentation; the model's mode is restored."""
    was_training = model.training
    model.eval()
    parameter = next(model.parameters())
    losses, hits = [], []
    for images, labels in dataset.inputs(part, parameter.dtype, batch):
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = model(images)
        losses.append(F.cross_entropy(logits.float() if precision == "bf16" else logits, labels, reduction="sum"))
        hits.append(logits.argmax(dim=1) == labels)
    model.train(was_training)
    correct = torch.cat(hits).cpu().numpy()
    loss = float(torch.stack(losses).sum() / len(part))
    return Score(accuracy=100.0 * int(correct.sum()) / len(part), loss=loss, correct=correct)
