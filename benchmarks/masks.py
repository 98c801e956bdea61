"""Retraining of all sets of filters of a layer, as ratios against a plain loop over them that runs beside ours.

    PRUNEAUDIT_DATA=DIR python benchmarks/masks.py        MNIST from DIR (torchvision's layout), else random images

What an oracle study's minutes are made of: LeNet5-Mini with five of the ten filters of a layer, 252 sets, each
retrained for 3 epochs on 2,000 images and tested on 4,000, twice. Ours is what the study does with them; the reference
(see reference.py) trains and tests some of the networks one after the other, once with the resizing that papers leave
to the loader, once with images that are resized beforehand. Variants run interleaved in one process on one thread;
times are CPU times of a network and ratios medians over rounds. Both must come out equally good. The last
column is wall time on all threads that a process may have, as a study has them.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import reference
import torch
from torch import nn

from pruneaudit.catalog.discovery import Catalog
from pruneaudit.cores import threads
from pruneaudit.errors import DataMissingError
from pruneaudit.pruning import shapes
from pruneaudit.pruning.removal import units_named
from pruneaudit.streams import generator
from pruneaudit.studies.population import TOGETHER
from pruneaudit.studies.wiring import wired
from pruneaudit.training.sweep import Sweep
from pruneaudit.workloads.data import Dataset, Part, data_root, load
from pruneaudit.workloads.models.initialise import initialise
from pruneaudit.workloads.recipes import Recipe

ROUNDS, FEW = 3, 4
LAYERS = ("conv1", "conv2", "conv3")
EVERY = list(itertools.combinations(range(10), 5))
EPOCHS, TRAIN, TEST, REPEATS = 3, 2_000, 4_000, 2

#: Trains networks on a dataset; says the test accuracy of each in percent.
Variant = Callable[[Sequence[nn.Module], Dataset, Recipe, int], list[float]]


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    workload = Catalog().workload("lenet5-mnist").model_copy(update={"model": "lenet5-mini", "model_args": ()})
    recipe = workload.retrain.for_epochs(EPOCHS)
    resized = reference.images_of(workload)
    try:
        stored, side = load(workload.data.model_copy(update={"size": None}), data_root(None)), resized.height
    except DataMissingError:
        stored, side = resized, None
    base = shapes.dense_network(workload)
    initialise(base, generator(0, "benchmark"))
    units = units_named(base, resized.example(), list(LAYERS))
    variants: dict[str, tuple[Variant, Dataset, int]] = {
        "a plain loop": (lambda *given: plain(*given, side=side), few(stored), FEW),
        "resized beforehand": (plain, few(resized), FEW),
        "ours": (together, few(resized), TOGETHER),
    }
    print(
        f"CPU, 1 thread, fp32, batch {recipe.batch}, {EPOCHS} epochs of {TRAIN:,} images and a test pass of {TEST:,}, "
        f"all sets on {threads()} threads (wall time), medians of {ROUNDS} rounds, torch {torch.__version__}\n{'':8}"
        + "".join(f"{name:>26}" for name in variants)
        + f"{'a plain loop / ours':>21}{'all sets, twice':>17}{'on all threads':>16}"
    )
    for layer in LAYERS:
        networks = [wired(base, {layer: kept}, {layer: EVERY[0]}, units, "correct") for kept in EVERY[:TOGETHER]]
        times: dict[str, list[float]] = {name: [] for name in variants}
        accuracies: dict[str, list[float]] = {name: [] for name in variants}
        for seed in range(-1, ROUNDS):
            for name, (variant, data, count) in variants.items():
                some = [copy.deepcopy(network) for network in networks[:count]]
                before = time.process_time()
                found = variant(some, data, recipe, seed)
                # The first round compiles and warms up.
                if seed >= 0:
                    times[name].append((time.process_time() - before) / count)
                    accuracies[name] += found[:FEW]
        for name in variants:
            assert reference.is_as_good(accuracies[name], accuracies["a plain loop"]), (name, accuracies)
        middle = {name: statistics.median(spent) for name, spent in times.items()}
        gain = statistics.median(a / b for a, b in zip(times["a plain loop"], times["ours"], strict=True))
        walls = []
        for seed in range(ROUNDS):
            some = [copy.deepcopy(network) for network in networks]
            started = time.perf_counter()
            together(some, few(resized), recipe, seed, threads())
            walls.append((time.perf_counter() - started) / TOGETHER)
        images = EPOCHS * TRAIN
        print(
            f"{layer:8}"
            + "".join(f"{middle[name]:>9.3f} s {images / middle[name]:>8,.0f} img/s" for name in variants)
            + f"{gain:>20.1f}x{len(EVERY) * REPEATS * middle['ours']:>15.0f} s"
            + f"{len(EVERY) * REPEATS * statistics.median(walls):>14.0f} s"
        )


def few(data: Dataset) -> Dataset:
    """As many images as a network sees."""
    assert isinstance(data.train, Part) and isinstance(data.test, Part)
    return replace(data, train=data.train.first(TRAIN), test=data.test.first(TEST))


def plain(
    networks: Sequence[nn.Module], data: Dataset, recipe: Recipe, seed: int, side: int | None = None
) -> list[float]:
    """One network after the other, as papers' scripts train; tested after the last epoch only."""
    found = []
    for model in networks:
        torch.manual_seed(seed)
        images, optimiser = reference.loader(data, data.train, recipe.batch, side), reference.sgd(model, recipe)
        model.train()
        for epoch in range(recipe.epochs or 0):
            for step, (batch, labels) in enumerate(images, epoch * len(images)):
                for group in optimiser.param_groups:
                    group["lr"] = recipe.rate(epoch, step)
                reference.plain_step(model, optimiser, batch, labels)
        found.append(reference.test(model, reference.loader(data, data.test, 512, side)))
    return found


def together(networks: Sequence[nn.Module], data: Dataset, recipe: Recipe, seed: int, threads: int = 1) -> list[float]:
    """As the study does."""
    sweep = Sweep(networks, data, "fp32", recipe, threads)
    assert sweep.steps == "tiled"
    sweep.train(max(seed, 0), "retrain")
    return [score.accuracy for score in sweep.score(data.test)]


if __name__ == "__main__":
    main()
