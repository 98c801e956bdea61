"""Singular values of Jacobians, as ratios against a plain loop that runs beside ours.

    python benchmarks/jsv.py

The reference is what the source papers' code does (contiguous layout, a backward pass to images and parameters for
every class, ``torch.svd``), but in eval mode, in which the Jacobian belongs to one image. Ours is what runs record: one
network after another, or K as one stack. All variants run interleaved in one process on one thread; times are the
process's own, which other work on the machine does not lengthen; ratios are medians over rounds. In float64 every
singular value of an image must be the reference's within 1e-10 of the largest; in fp32, where rounding moves a ReLU's
input across zero now and then, the mean over all of them within 1e-3. Images and weights are random: time does not
depend on them.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from pruneaudit.catalog.discovery import Catalog
from pruneaudit.measure.trainability import singular_values
from pruneaudit.pruning import shapes
from pruneaudit.streams import generator
from pruneaudit.training.grouped import singular_values_of
from pruneaudit.training.precision import place
from pruneaudit.workloads.models.initialise import initialise

ROUNDS = 3


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(f"CPU, 1 thread, fp32, {ROUNDS} rounds, torch {torch.__version__}")
    print(f"{'':44} {'reference s':>11} {'ours s':>7} {'ratio':>6}   {'stacked s':>9} {'ratio':>6}")
    for name, ratio, count in (
        ("resnet56-cifar10", None, 1),
        ("resnet56-cifar10", 0.5, 1),
        ("resnet56-cifar10", 0.9, 1),
        ("resnet20-digits", None, 4),
        ("resnet20-digits", 0.9, 4),
        ("lenet5-digits", None, 4),
        ("lenet5-digits", 0.5, 18),
    ):
        _row(name, ratio, count)


def _row(name: str, ratio: float | None, count: int, images: int = 100) -> None:
    """Time the variants, compare what they find, and print a line."""
    workload = Catalog().workload(name)
    plain = [shapes.network(workload, {} if ratio is None else shapes.widths_at(workload, ratio)) for _ in range(count)]
    for number, model in enumerate(plain):
        initialise(model.eval(), generator(number, "benchmark"))
    ours = [place(copy.deepcopy(model), "cpu", "fp32") for model in plain]
    shape = shapes.example(workload).shape[1:]
    batch = torch.randn(images, *shape, generator=generator(0, "benchmark", "images"))
    variants: dict[str, Callable[[], torch.Tensor]] = {
        "reference": lambda: torch.stack([_reference(model, batch) for model in plain]),
        "ours": lambda: torch.stack([singular_values(model, batch) for model in ours]),
        **({"stacked": lambda: singular_values_of(ours, batch)} if count > 1 else {}),
    }
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    values: dict[str, torch.Tensor] = {}
    for _ in range(ROUNDS):
        for variant, find in variants.items():
            started = time.process_time()
            values[variant] = find()
            seconds[variant].append(time.process_time() - started)
    for variant in list(variants)[1:]:
        torch.testing.assert_close(values[variant].mean(), values["reference"].double().mean(), rtol=1e-3, atol=0)
    one, double = batch[:1].double(), [copy.deepcopy(model).double() for model in plain]
    _compare(singular_values(double[0], one), _reference(double[0], one), 1e-10)
    _compare(singular_values_of(double, one), torch.stack([_reference(model, one) for model in double]), 1e-10)
    label = f"{name}, {'dense' if ratio is None else f'ratio {ratio}'}, K={count}, batch {images}"
    print(f"{label:44} {statistics.median(seconds['reference']):11.2f}", end="")
    for variant in ("ours", "stacked"):
        if variant in variants:
            print(f" {statistics.median(seconds[variant]):7.2f} {_ratio(seconds, variant):5.2f}x", end="   ")
    print(flush=True)


def _ratio(seconds: dict[str, list[float]], variant: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds["reference"], seconds[variant], strict=True))


def _compare(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Raise unless singular values are the same, relative to the largest of their image."""
    scale = expected[..., :1].double()
    torch.testing.assert_close(found.double() / scale, expected.double() / scale, rtol=0, atol=tolerance)


def _reference(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Singular values by backward passes through everything, ``[N, classes]``."""
    images = batch.clone().requires_grad_()
    logits = model(images)
    rows: list[torch.Tensor] = []
    for label in range(logits.shape[1]):
        images.grad = None
        logits[:, label].sum().backward(retain_graph=True)
        assert images.grad is not None
        rows.append(images.grad.flatten(1))
    _left, values, _right = torch.svd(torch.stack(rows, dim=1))
    return values


if __name__ == "__main__":
    main()
