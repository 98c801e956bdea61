"""Arithmetic of a run: the type of its weights, and where autocast applies."""

from __future__ import annotations

import torch
from torch import nn


def weight_type(precision: str) -> torch.dtype:
    """Type of weights and inputs: float64 for ``fp64``, else float32 (``bf16`` is autocast over float32 weights)."""
    return torch.float64 if precision == "fp64" else torch.float32


def place(model: nn.Module, device: str, precision: str) -> nn.Module:
    """Move a network to its device and type, channels last in memory."""
    return channels_last(model.to(device=device, dtype=weight_type(precision)))


def channels_last(model: nn.Module) -> nn.Module:
    """Lay the weights of two-dimensional convolutions channels last in memory; torch has no such layout for others."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() == 4:
            # Not `contiguous`: one channel lies both ways, and strides choose the kernel, whose rounding is its own.
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return model
