"""A sweep of 64 LeNet-5 models on one core, as ratios against a plain reference loop run beside ours.

    PRUNEAUDIT_DATA=DIR python benchmarks/lenet_sweep.py        MNIST from DIR (torchvision's layout), else digits

The sweep: 16 seeds of LeNet-5 at each of four pruning ratios. The whole of it takes hours, so what is timed is a slice:
the same steps of one model of each ratio, which stand for its 16 seeds. The reference is written in the style of the
source papers' code: a DataLoader with PIL transforms (resize, to tensor, normalise), contiguous layout, for-loop SGD,
``.item()`` at every step, one model after the other; a second one gets images that were resized beforehand. All
variants run interleaved in one process on one thread; ratios are medians over rounds, of CPU time, which does not count
waiting for a busy machine, and of wall time. Then short trainings run to their end, a test pass after every epoch
included, and their accuracies are compared.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import reference
import torch
from torch import nn

from pruneaudit.catalog.discovery import Catalog
from pruneaudit.errors import DataMissingError
from pruneaudit.pruning import shapes
from pruneaudit.streams import generator
from pruneaudit.training.loop import Trainer
from pruneaudit.training.metering import Meter
from pruneaudit.training.precision import place
from pruneaudit.workloads.data import Dataset, data_root, load
from pruneaudit.workloads.models.initialise import initialise
from pruneaudit.workloads.recipes import Recipe
from pruneaudit.workloads.schema import Workload

RATIOS, SEEDS = (0.0, 0.5, 0.7, 0.9), 16
ROUNDS, SLICE = 5, 5_120
SHORT_EPOCHS, SHORT_IMAGES, SHORT_SEEDS = 2, 10_000, 4

Seconds = tuple[float, float]
#: Trains a network by a recipe on a dataset; says the test accuracy in percent.
Variant = Callable[[nn.Module, Dataset, Recipe, int], float]


def main() -> None:
    """Time the slice and the short trainings, and print both tables."""
    torch.set_num_threads(1)
    workload, stored = sources()
    config = workload.data
    resized = load(config, data_root(None))
    variants: dict[str, tuple[Variant, Dataset]] = {
        "reference loop": (partial(reference.train, side=resized.height), stored),
        "reference, resized once": (reference.train, resized),
        "ours, torch": (ours("torch"), resized),
        "ours, tiled": (ours("tiled"), resized),
    }
    time_slice(workload, variants)
    time_short_trainings(workload, variants)


def sources() -> tuple[Workload, Dataset]:
    """LeNet-5's workload, and its data before they are resized."""
    for name in ("lenet5-mnist", "lenet5-digits"):
        workload = Catalog().workload(name)
        try:
            return workload, load(workload.data.model_copy(update={"size": None}), data_root(None))
        except DataMissingError as error:
            print(f"{name}: {error}\n", file=sys.stderr)
    raise AssertionError("digits are always there")


def time_slice(workload: Workload, variants: dict[str, tuple[Variant, Dataset]]) -> None:
    """A few steps of every shape, evaluation left out."""
    batch, epochs = workload.pretrain.batch, workload.pretrain.epochs or 0
    recipe = workload.pretrain.model_copy(update={"epochs": None, "steps": math.ceil(SLICE / batch), "lr": "0:0.01"})
    times: dict[tuple[str, float], list[Seconds]] = {(name, ratio): [] for name in variants for ratio in RATIOS}
    for seed in range(-1, ROUNDS):
        for ratio in RATIOS:
            for name, (variant, data) in variants.items():
                one = data.test.first(1)
                spent, _ = timed(
                    variant, network(workload, ratio, 0), replace(data, validation=one, test=one), recipe, 0
                )
                # The first round compiles and warms up.
                if seed >= 0:
                    times[name, ratio].append(spent)
    train = len(next(iter(variants.values()))[1].train)
    images = recipe.images(train)
    print(
        f"{workload.name}, batch {batch}, fp32, 1 thread, torch {torch.__version__}: {recipe.steps} steps of each of "
        f"{len(RATIOS)} shapes, {ROUNDS} rounds.\nThe whole sweep, {len(RATIOS) * SEEDS} models x {epochs} epochs, is "
        f"{SEEDS * epochs * train / images:,.0f} times that.\n\nreference loop / it, CPU time (wall time)"
    )
    columns = "".join(f"{name:>16}" for name in ["sweep", *(f"ratio {ratio:g}" for ratio in RATIOS)])
    print(f"{'variant':24} {'img/s':>7} {columns}")
    for name in variants:
        mine = {ratio: times[name, ratio] for ratio in RATIOS}
        plain = {ratio: times["reference loop", ratio] for ratio in RATIOS}
        speed = len(RATIOS) * images / statistics.median(cpu for cpu, _ in whole(mine))
        cells = [gain(whole(plain), whole(mine)), *(gain(plain[ratio], mine[ratio]) for ratio in RATIOS)]
        print(f"{name:24} {speed:7,.0f} {''.join(f'{cell:>16}' for cell in cells)}")


def whole(times: dict[float, list[Seconds]]) -> list[Seconds]:
    """Seconds of all shapes together, round by round."""
    return [(sum(cpu for cpu, _ in row), sum(wall for _, wall in row)) for row in zip(*times.values(), strict=True)]


def gain(plain: list[Seconds], mine: list[Seconds]) -> str:
    """Median over rounds of how many times faster it is, by CPU time and by wall time."""
    cpu, wall = (statistics.median(a[clock] / b[clock] for a, b in zip(plain, mine, strict=True)) for clock in (0, 1))
    return f"{cpu:.2f}x ({wall:.2f}x)"


def time_short_trainings(workload: Workload, variants: dict[str, tuple[Variant, Dataset]]) -> None:
    """Trainings to their end, which must be equally good.

    Raises:
        SystemExit: They are not.
    """
    recipe = workload.pretrain.model_copy(update={"epochs": SHORT_EPOCHS, "lr": "0:0.02", "batch": 64})
    spent: dict[str, list[Seconds]] = {name: [] for name in variants}
    accuracies: dict[str, list[float]] = {name: [] for name in variants}
    for seed in range(SHORT_SEEDS):
        for name, (variant, data) in variants.items():
            part = replace(data, train=data.train.first(SHORT_IMAGES), validation=data.test.first(1))
            seconds, accuracy = timed(variant, network(workload, 0.0, seed), part, recipe, seed)
            spent[name].append(seconds)
            accuracies[name].append(accuracy)
    print(
        f"\nDense, {SHORT_EPOCHS} epochs of {len(part.train):,} images in batches of {recipe.batch}, a test pass of "
        f"{len(part.test):,} after each, {SHORT_SEEDS} seeds"
    )
    print(f"{'variant':24} {'reference / it':>15}  test accuracy, percent")
    plain = accuracies["reference loop"]
    differ = []
    for name, mine in accuracies.items():
        differ += [] if reference.is_as_good(mine, plain) else [name]
        each = " ".join(f"{value:.2f}" for value in mine)
        print(f"{name:24} {gain(spent['reference loop'], spent[name]):>15}  {statistics.fmean(mine):.2f} ({each})")
    if differ:
        sys.exit(f"accuracy differs from the reference loop's by more than noise: {', '.join(differ)}")


def timed(variant: Variant, model: nn.Module, data: Dataset, recipe: Recipe, seed: int) -> tuple[Seconds, float]:
    """CPU and wall seconds of a training, and its test accuracy."""
    cpu, wall = time.process_time(), time.perf_counter()
    accuracy = variant(model, data, recipe, seed)
    return (time.process_time() - cpu, time.perf_counter() - wall), accuracy


def network(workload: Workload, ratio: float, seed: int) -> nn.Module:
    """A network as pruning at a ratio leaves it, initialised."""
    model = shapes.network(workload, shapes.widths_at(workload, ratio) if ratio else {})
    initialise(model, generator(seed, "benchmark"))
    return model


def ours(backend: str) -> Variant:
    """The project's trainer."""

    def train(model: nn.Module, data: Dataset, recipe: Recipe, seed: int) -> float:
        model = place(model, "cpu", "fp32")
        with Meter(model) as meter:
            trainer = Trainer(model, data, recipe, seed, "benchmark", meter, backend=backend)
            history = trainer.fit()
        assert trainer.backend == backend, trainer.fallback
        return history.test_accuracy[-1]

    return train


if __name__ == "__main__":
    main()
