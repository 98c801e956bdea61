"""What every network in lanes has at its ends: images, the loss and the step, written in LLVM (llvmlite)."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]

from pruneaudit.kernels.machine import Call, Written, chained
from pruneaudit.kernels.vectors import Emitter, Real, Whole, lanes

__all__ = ["chained", "crops_into_lanes", "cross_entropy", "descend", "into_lanes", "lanes"]


def into_lanes(images: np.ndarray, tiles: np.ndarray) -> None:
    """From a batch ``[B, C, H, W]`` to ``[T, C, H, W, L]``; lanes without an image are blank."""
    whole, left = divmod(len(images), tiles.shape[-1])
    shown = np.moveaxis(tiles, -1, 1)
    shown[:whole] = images[: len(images) - left].reshape(shown[:whole].shape)
    if left:
        shown[whole, :left], shown[whole, left:] = images[len(images) - left :], 0


def _write_crops(
    write: Emitter, tiles: Any, mean: Any, scale: Any, images: Any, mirrored: Any, index: Any, shift: Any,
    number: Whole, channels: Whole, height: Whole, breadth: Whole, tall: Whole, wide: Whole, batch: Whole,
) -> None:  # fmt: skip
    builder, width = write.builder, write.lanes

    def flag(pointer: Any, place: Whole) -> Whole:
        return Whole(builder, builder.zext(builder.load(write.at(pointer, place)), ir.IntType(64)))

    with number.each() as tile, channels.each() as channel, height.each() as row, row.like(width).each() as lane:
        place = tile * width + lane
        line = ((tile * channels + channel) * height + row) * breadth * width + lane
        with builder.if_else((place < batch).value) as (shown, blank):
            with shown:
                image, upper, left = (
                    Whole(builder, builder.load(write.at(pointer, at)))
                    for pointer, at in ((index, place), (shift, place * 2), (shift, place * 2 + 1))
                )
                start = (image * tall + upper + row) * wide + left
                is_mirrored = flag(mirrored, place).bit()
                first = is_mirrored.choose(breadth - 1, row.like(0))
                step = is_mirrored.choose(row.like(-1), row.like(1))
                level, factor = write.get(mean, channel), write.get(scale, channel)
                with breadth.each() as column:
                    seen = start + first + column * step
                    pixel = builder.load(write.at(images, seen * channels + channel))
                    value = (Real(builder, builder.uitofp(pixel, write.element)) - level) * factor
                    write.put(value, tiles, line + column * width)
            with blank, breadth.each() as column:
                write.put(write.real(0), tiles, line + column * width)


_crops = Written("crops", "reals reals reals pixels bits places places" + 7 * " whole", _write_crops)


def crops_into_lanes(
    images: np.ndarray, index: np.ndarray, shift: np.ndarray, mirrored: np.ndarray, mean: np.ndarray,
    scale: np.ndarray, tiles: np.ndarray,
) -> None:  # fmt: skip
    """Crops of images as they are kept, normalised, to ``[T, C, H, W, L]``; lanes without an image are blank.

    Args:
        images: All of them, with what borders they have, ``[N, H', W', C]`` uint8.
        index: Which ones are wanted, ``[B]``.
        shift: Row and column of each crop's upper left corner, ``[B, 2]``.
        mirrored: Which crops are mirrored left to right, ``[B]``.
        mean: Taken from every pixel of a channel, ``[C]``.
        scale: By what the rest is multiplied, ``[C]``.
        tiles: Where they go.
    """
    sizes = (*tiles.shape[:4], *images.shape[1:3], len(index))
    _crops(tiles, mean, scale, images, mirrored, index, shift, *sizes)()


def _write_cross_entropy(
    write: Emitter, logits: Any, gradients: Any, losses: Any, hits: Any, labels: Any, tiles: Whole, step: Whole,
    goal: Whole, classes: Whole, batch: Whole, whole: Whole, smoothing: Any,
) -> None:  # fmt: skip
    builder, zero, one, lanes = write.builder, write.real(0), write.real(1), write.lanes
    smooth = write.real(smoothing)
    on, off = one - smooth, smooth / write.real(classes)
    total, below = write.number_slot(), write.number_slot()
    with builder.goto_entry_block():
        best_slot = builder.alloca(ir.IntType(64))

    def place(image: Whole, number: Whole, cells: Whole) -> Whole:
        return (image // lanes * cells + number) * lanes + image % lanes

    with batch.each() as image:

        def logit(number: Whole, image: Whole = image) -> Real:
            return write.get(logits, place(image, number, step))

        builder.store(ir.Constant(ir.IntType(64), 0), best_slot)
        with image.like(1).up_to(classes, 1) as (number, _):
            best = Whole(builder, builder.load(best_slot))
            builder.store((logit(number) > logit(best)).choose(number, best).value, best_slot)
        best = Whole(builder, builder.load(best_slot))
        top, label = logit(best), Whole(builder, builder.load(write.at(labels, image)))
        total(zero)
        below(zero)
        with classes.each() as number:
            total(total() + (logit(number) - top).function("exp"))
            below(below() + (top - logit(number)))
        log_total = total().function("log")
        is_hit = builder.icmp_signed("==", best.value, label.value)
        builder.store(builder.zext(is_hit, ir.IntType(8)), write.at(hits, image))
        # The second part in float64, whatever the first one is in.
        many_times = Real(builder, builder.sitofp(classes.value, ir.DoubleType()))
        missed = off.double() * (many_times * log_total.double() + below().double())
        loss = ((on * (log_total + top - logit(label))).double() + missed).value
        builder.store(loss if write.bytes == 8 else builder.fptrunc(loss, write.element), write.at(losses, image))
        with classes.each() as number:
            share = (logit(number) - top).function("exp") / total()
            is_label = Whole(builder, builder.icmp_signed("==", number.value, label.value))
            wanted = off + Real(builder, builder.select(is_label.value, on.value, zero.value))
            write.put((share - wanted) / write.real(whole), gradients, place(image, number, goal))
    with classes.each() as number, batch.up_to(tiles * lanes, 1) as (image, _):
        write.put(zero, gradients, place(image, number, goal))


_cross_entropy = Written(
    "cross-entropy", "reals reals reals bits places" + 6 * " whole" + " real", _write_cross_entropy
)


def cross_entropy(
    logits: np.ndarray, gradients: np.ndarray, losses: np.ndarray, hits: np.ndarray, labels: np.ndarray, classes: int,
    whole: int, smoothing: float,
) -> Call:  # fmt: skip
    """Losses and hits of a batch, or of a part of one, and the gradients of the whole batch's mean loss.

    Args:
        logits: ``[T, cells, L]``; lanes from ``B`` on belong to no image.
        gradients: Theirs, which are written: zero where there is no image.
        losses: Are written, ``[B]``.
        hits: Are written, ``[B]``.
        labels: What is right, ``[B]``.
        classes: Number of logits of an image.
        whole: Images of the whole batch.
        smoothing: Of labels.
    """
    sizes = (len(logits), logits.shape[1], gradients.shape[1], classes, len(labels), whole)
    return _cross_entropy(logits, gradients, losses, hits, labels, *sizes, smoothing)


def _write_descend(nesterov: bool) -> Any:
    def emit(
        write: Emitter, weights: Any, gradients: Any, velocity: Any, mask: Any, size: Whole, rate: Any, momentum: Any,
        decay: Any,
    ) -> None:  # fmt: skip
        step, share, pull = (write.real(number) for number in (rate, momentum, decay))
        with size.each() as number:
            weight = write.get(weights, number)
            gradient = write.get(gradients, number).times_plus(write.get(mask, number), pull * weight)
            speed = share * write.get(velocity, number) + gradient
            write.put(speed, velocity, number)
            write.put(weight - step * (gradient + share * speed if nesterov else speed), weights, number)

    return emit


_DESCENDS = {
    nesterov: Written(
        f"descend{'-nesterov' if nesterov else ''}", 4 * "reals " + "whole real real real", _write_descend(nesterov)
    )
    for nesterov in (False, True)
}


def descend(
    weights: np.ndarray, gradients: np.ndarray, velocity: np.ndarray, mask: np.ndarray, rate: float, momentum: float,
    decay: float, nesterov: bool,
) -> None:  # fmt: skip
    """One step of SGD on flat arrays, as ``torch.optim.SGD`` defines it; the mask applies to gradients."""
    _DESCENDS[nesterov](weights, gradients, velocity, mask, weights.size, rate, momentum, decay)()
