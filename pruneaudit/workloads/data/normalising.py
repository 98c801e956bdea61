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
    bytes_, numbers = (ir.VectorType(ir.IntType(bits), lanes) for bits in (8, 32))

    def vector(pointer: ir.Value, place: Whole, kind: ir.Type, align: int) -> ir.Value:
        return builder.load(builder.bitcast(write.at(pointer, place), kind.as_pointer()), align=align)

    with rows.each() as row, ((length + (lanes - 1)) // lanes).each() as block:
        column = (block * lanes).at_most(length - lanes)
        place = row * length + column
        value = builder.sitofp(builder.zext(vector(stored, place, bytes_, 1), numbers), write.type)
        # Not to be contracted with anything: each is rounded, as torch's are.
        shifted = builder.fsub(value, vector(mean, column, write.type, write.bytes))
        scaled = builder.fmul(shifted, vector(scale, column, write.type, write.bytes))
        builder.store(scaled, builder.bitcast(write.at(found, place), write.type.as_pointer()), align=write.bytes)


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
