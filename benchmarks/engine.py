"""Model-epochs on one core of a CPU: torch's loop against compiled steps, dense and pruned.

    python benchmarks/engine.py [WORKLOAD ...] [--seeds N]        default: resnet20-digits lenet5-digits

A model-epoch is one training pass with its validation and test passes, but not the last one, whose passes are torch's
with every backend. Backends take turns; medians of CPU time of this process, which does not count waiting for a busy
machine. Workloads whose images are not embedded train on four batches of random ones. ``--seeds`` trains the workload's
retraining recipe from some seeds by all backends, and compares the accuracies.
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import pairwise

import torch

from pruneaudit.catalog.discovery import Catalog
from pruneaudit.pruning import shapes
from pruneaudit.streams import generator
from pruneaudit.training.many import train_many
from pruneaudit.training.precision import place
from pruneaudit.training.runs import Backend, Trained, Training
from pruneaudit.training.runtime import Runtime
from pruneaudit.workloads.data import Dataset, imitation, load
from pruneaudit.workloads.models.initialise import initialise
from pruneaudit.workloads.recipes import Recipe
from pruneaudit.workloads.schema import Workload

BACKENDS: tuple[Backend, ...] = ("torch", "tiled")
ROUNDS, EPOCHS = 3, 4


def main() -> None:
    """Print a table for each workload."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("workloads", nargs="*", default=["resnet20-digits", "lenet5-digits"])
    parser.add_argument("--seeds", type=int, default=0)
    parser.add_argument("--ratios", default="dense,0.5,0.9")
    options = parser.parse_args()
    torch.set_num_threads(1)
    Runtime("cpu").prepare()
    for name in options.workloads:
        workload = Catalog().workload(name)
        data = load(workload.data) if workload.data.name == "digits" else pictures(workload)
        for ratio in options.ratios.split(","):
            row(workload, data, None if ratio == "dense" else float(ratio))
        if options.seeds:
            accuracies(workload, data, options.seeds)


def pictures(workload: Workload) -> Dataset:
    """Four batches of random images."""
    return imitation(workload.data, 4 * workload.retrain.batch, 64)


def row(workload: Workload, data: Dataset, ratio: float | None) -> None:
    """Time a network's epochs."""
    recipe = workload.retrain.model_copy(update={"epochs": EPOCHS, "steps": None, "lr": "0:0.01"})
    times: dict[Backend, list[float]] = {}
    first: dict[Backend, float] = {}
    for backend in BACKENDS:
        started = time.process_time()
        trained, _ = train(workload, data, ratio, backend, recipe.model_copy(update={"epochs": 2}))
        first[backend] = time.process_time() - started
        if trained.backend == backend:
            times[backend] = []
    for _ in range(ROUNDS):
        for backend, seconds in times.items():
            seconds += train(workload, data, ratio, backend, recipe)[1]
    plain = statistics.median(times["torch"])
    taken = {backend: statistics.median(seconds) for backend, seconds in times.items()}
    shown = [
        f"{backend} {1e3 * seconds:.1f} ms ({plain / seconds:.2f}x; first {first[backend]:.1f} s)"
        for backend, seconds in taken.items()
    ]
    print(f"{workload.name} {ratio or 'dense'}: {', '.join(shown)}", flush=True)


def accuracies(workload: Workload, data: Dataset, seeds: int) -> None:
    """Train by the workload's own recipe."""
    for backend in BACKENDS:
        found = []
        for seed in range(seeds):
            trained, _ = train(workload, data, 0.5, backend, workload.scratch, seed)
            if trained.backend != backend:
                break
            found.append(trained.history.test_accuracy[-1])
        else:
            shown = f"{statistics.mean(found):.2f} ± {statistics.stdev(found):.2f} %"
            print(f"{workload.name}, from scratch at ratio 0.5, {seeds} seeds, {backend}: {shown}", flush=True)


def train(
    workload: Workload, data: Dataset, ratio: float | None, backend: Backend, recipe: Recipe, seed: int = 0
) -> tuple[Trained, list[float]]:
    """Train one network.

    Returns:
        What became of it, and the seconds of its epochs but the first and the last one.
    """
    model = place(shapes.network(workload, shapes.widths_at(workload, ratio) if ratio else {}), "cpu", "fp32")
    initialise(model, generator(seed, "engine"))
    ends: list[float] = []
    training = Training(model, data, recipe, seed, "engine", progress=lambda *_: ends.append(time.process_time()))
    (trained,) = train_many([training], backend)
    if trained.error is not None:
        raise trained.error
    return trained, [after - before for before, after in pairwise(ends[:-1])]


if __name__ == "__main__":
    main()
