"""Arithmetic of a run: the type of its weights, and where autocast applies."""

from __future__ import annotations

import torch
from torch import nn

#: Weights, gradients and optimiser in bfloat16, as large models are kept.
PURE = "pure-bf16"


def weight_type(precision: str) -> torch.dtype:
    """Type of weights and inputs: float32 (of ``bf16``, too, which is autocast) but for ``fp64`` and ``pure-bf16``."""
    return {"fp64": torch.float64, PURE: torch.bfloat16}.get(precision, torch.float32)


def place(model: nn.Module, device: str, precision: str) -> nn.Module:
    """Move a network to its device and type, channels last in memory."""
    if precision != PURE:
        return channels_last(model.to(device=device, dtype=weight_type(precision)))
    model = model.to(device)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(weight_type(precision))
    # Statistics and rates of rotary places keep their type: of these a few digits are all that tells places apart.
    return channels_last(model)


def channels_last(model: nn.Module) -> nn.Module:
    """Lay the weights of two-dimensional convolutions channels last in memory; torch has no such layout for others."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() == 4:
            # Not `contiguous`: one channel lies both ways, and strides choose the kernel, whose rounding is its own.
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return model
