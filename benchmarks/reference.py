"""The plain reference: what the training scripts of the source papers do at each step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def plain_step(model: nn.Module, optimiser: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor) -> None:
    """One step in fp32; loss and accuracy are read at each, as papers' progress meters do."""
    logits = model(images)
    loss = F.cross_entropy(logits, labels)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    _ = loss.item(), (logits.argmax(1) == labels).float().mean().item()
