"""Images of 8 bits to what a network takes, in one pass over them: torch's bits, which takes three.

Importing this module needs llvmlite (the extra ``compiled``).
"""

from __future__ import annotations

from typing import Any

import torch
from llvmlite import ir  # type: ignore[import-untyped]

from pruneaudit.kernels.machine import Written
from pruneaudit.kernels.vectors import Emitter, Whole


def _write(write: Emitter, found: Any, mean: Any, scale: Any, stored: Any, rows: Whole, length: Whole) -> None:
    """Rows of so many values, a vector at a time; the last one of a row may begin within the one before."""
    builder, lanes = write.builder, write.lanes
    numbers = ir.VectorType(ir.IntType(32), lanes)
    with rows.each() as row, ((length + (lanes - 1)) // lanes).each() as block:
        column = (block * lanes).at_most(length - lanes)
        place = row * length + column
        value = builder.zext(builder.load(write.vector_at(stored, place, lanes), align=1), numbers)
        less, times = (builder.load(write.vector_at(each, column, lanes), align=write.bytes) for each in (mean, scale))
        # Not to be contracted with anything: each is rounded, as torch's are.
        scaled = builder.fmul(builder.fsub(builder.sitofp(value, write.type), less), times)
        builder.store(scaled, write.vector_at(found, place, lanes), align=write.bytes)


_kernel = Written("normalise-images", "reals reals reals pixels whole whole", _write, lasts=True)


def normalised(images: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Pixels less a mean, times a scale.

    Args:
        images: Images ``[N, H, W, C]`` uint8 on the CPU, of rows of at least 64 values.
        mean: Of a channel, from 0 to 255, ``[C]`` float32 or float64.
        scale: Likewise.

    Returns:
        ``[N, H, W, C]`` in the type of the mean.
    """
    count, height, width, channels = images.shape
    found = torch.empty(images.shape, dtype=mean.dtype)
    row = (each.expand(width, channels).contiguous().numpy() for each in (mean, scale))
    _kernel(found.numpy(), *row, images.contiguous().numpy(), count * height, width * channels)()
    return found
