"""Times of training and pruning steps, as ratios against a plain reference loop run beside ours.

    python benchmarks/steps.py [WORKLOAD [METHOD ...]]        default: resnet20-digits

The reference is written in the style of the source papers' code: a DataLoader with PIL transforms, contiguous layout,
for-loop SGD, ``.item()`` at every step. Then come plain steps of ours in fp32 and, where the CPU has instructions for
it, bf16, and steps of the named methods, which should cost at most 1.25x a plain one; on small images every method of
the catalogue that trains in its pruning stage. All variants run interleaved on one thread, the reference in a process
of its own, which the project has not set up; ratios are medians over rounds, of CPU time, which does not count waiting
for a busy machine. On small images short trainings then run to their end, as many steps each, and their accuracies are
compared. Datasets that are not there are replaced by random images of the same sizes.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial

import reference
import torch
from torch import nn

from pruneaudit.catalog.discovery import Catalog
from pruneaudit.method.contract import TrainedMethod
from pruneaudit.method.task import PruningTask
from pruneaudit.pruning import shapes
from pruneaudit.pruning.layers import prunable_layers
from pruneaudit.streams import generator
from pruneaudit.training.loop import Hooks, Trainer
from pruneaudit.training.metering import Meter
from pruneaudit.training.precision import place
from pruneaudit.training.runtime import Runtime
from pruneaudit.workloads.data import Dataset, facts
from pruneaudit.workloads.models.initialise import initialise
from pruneaudit.workloads.recipes import Recipe
from pruneaudit.workloads.schema import Workload

ROUNDS, SHORT_EPOCHS, SHORT_SEEDS = 7, 5, 4
REFERENCE, OURS, OURS_BF16 = "reference loop, fp32", "ours, fp32", "ours, bf16"

#: Trains a workload's network on a dataset by a recipe with a seed; says the test accuracy in percent.
Variant = Callable[[Workload, Dataset, Recipe, int], float]


def main() -> None:
    """Time all variants, compare accuracies and print the tables."""
    torch.set_num_threads(1)
    name, *methods = sys.argv[1:] or ["resnet20-digits"]
    workload = Catalog().workload(name)
    chosen = [REFERENCE, OURS]
    if any(has for instruction, has in torch.cpu.get_capabilities().items() if "bf16" in instruction):
        chosen.append(OURS_BF16)
    else:
        print("ours, bf16: skipped, this CPU has no instructions for it")
    is_small = facts(workload.data).height < 32
    methods = methods or (trained_methods(workload) if is_small else [])
    time_steps(workload, [*chosen, *methods], 40 if is_small else 4)
    if is_small:
        compare_accuracies(workload, reference.images_of(workload), {name: LOOPS[name] for name in chosen})


def time_steps(workload: Workload, variants: list[str], steps: int) -> None:
    """Print what a step takes."""
    recipe = workload.prune.model_copy(update={"epochs": None, "steps": steps})
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    start = partial(ProcessPoolExecutor, 1, multiprocessing.get_context("spawn"))
    with (
        start(initializer=torch.set_num_threads, initargs=(1,)) as plainly,
        start(initializer=Runtime().prepare) as set_up,
    ):
        for number in range(1 + ROUNDS):
            for variant in variants:
                process = plainly if variant == REFERENCE else set_up
                seconds = process.submit(seconds_of, variant, workload.name, recipe).result()
                if number:  # The first round warms up.
                    times[variant].append(seconds / steps)
    width = max(map(len, variants))
    print(
        f"{workload.name}, batch {recipe.batch}, 1 thread, {ROUNDS} rounds of {steps} steps, CPU time, "
        f"torch {torch.__version__}"
    )
    print(f"{'variant':{width}} {'ms/step':>8} {'reference / it':>15} {'it / ours':>10}")
    for variant, seconds in times.items():
        faster = statistics.median(a / b for a, b in zip(times[REFERENCE], seconds, strict=True))
        slower = statistics.median(b / a for a, b in zip(times[OURS], seconds, strict=True))
        print(f"{variant:{width}} {1000 * statistics.median(seconds):8.1f} {faster:14.2f}x {slower:9.2f}x")


def compare_accuracies(workload: Workload, data: Dataset, loops: dict[str, Variant]) -> None:
    """Train as long by every loop, and print how good the networks become.

    Raises:
        SystemExit: They differ by more than noise.
    """
    # Gently: at the usual rate a network of so few epochs depends more on its seed than on the loop.
    recipe = workload.pretrain.model_copy(update={"epochs": SHORT_EPOCHS, "lr": f"0:0.02,{SHORT_EPOCHS - 1}:0.002"})
    accuracies = {
        name: [loop(workload, data, recipe, seed) for seed in range(SHORT_SEEDS)] for name, loop in loops.items()
    }
    print(f"\n{SHORT_EPOCHS} epochs, {SHORT_SEEDS} seeds: test accuracy, percent")
    for name, mine in accuracies.items():
        each = " ".join(f"{value:.2f}" for value in mine)
        print(f"{name:{len(REFERENCE)}} {statistics.fmean(mine):.2f} ± {statistics.stdev(mine):.2f} ({each})")
    differ = [name for name, mine in accuracies.items() if not reference.is_as_good(mine, accuracies[REFERENCE])]
    if differ:
        sys.exit(f"accuracy differs from the reference loop's by more than noise: {', '.join(differ)}")


def network(workload: Workload, seed: int) -> nn.Module:
    """The dense network, initialised."""
    model = shapes.dense_network(workload)
    initialise(model, generator(seed, "benchmark"))
    return model


def plain(workload: Workload, data: Dataset, recipe: Recipe, seed: int) -> float:
    """The plain loop."""
    return reference.train(network(workload, seed), data, recipe, seed)


def ours(precision: str, workload: Workload, data: Dataset, recipe: Recipe, seed: int) -> float:
    """The project's loop."""
    model = place(network(workload, seed), "cpu", precision)
    with Meter(model) as meter:
        history = Trainer(model, data, recipe, seed, "benchmark", meter, precision=precision).fit()
    return history.test_accuracy[-1]


LOOPS: dict[str, Variant] = {REFERENCE: plain, OURS: partial(ours, "fp32"), OURS_BF16: partial(ours, "bf16")}


def seconds_of(variant: str, workload_name: str, recipe: Recipe) -> float:
    """CPU seconds of a training by a loop, or of that in a method's pruning stage."""
    workload = Catalog().workload(workload_name)
    data = timed_images(workload_name)
    if variant not in LOOPS:
        return pruning(workload, data, recipe, variant)
    started = time.process_time()
    LOOPS[variant](workload, data, recipe, 0)
    return time.process_time() - started


@lru_cache(maxsize=1)
def timed_images(workload_name: str) -> Dataset:
    """Evaluation is not what is timed: one image each."""
    data = reference.images_of(Catalog().workload(workload_name))
    one = data.test.first(1)
    return dataclasses.replace(data, validation=one, test=one)


def trained_methods(workload: Workload) -> list[str]:
    """Names of the methods that train in their pruning stage and apply to the workload."""
    methods = [source.create() for source in Catalog().methods.values()]
    return [method.name for method in methods if isinstance(method, TrainedMethod) and not method.skip(workload)]


class TimedTask(PruningTask):
    """Sums up the CPU seconds of training: what a method does once, before or after, is not the price of a step."""

    seconds = 0.0

    def train(self, steps: int | None = None, hooks: Hooks | None = None) -> None:
        """Train, and time it."""
        started = time.process_time()
        super().train(steps, hooks)
        self.seconds += time.process_time() - started


def pruning(workload: Workload, data: Dataset, recipe: Recipe, name: str) -> float:
    """CPU seconds of a method's regularised training."""
    model = place(network(workload, 0), "cpu", "fp32")
    method = Catalog().method(name).create()
    layers = prunable_layers(model, data.example(), workload.prunable, workload.skip, method.granularity)
    # Weights are as after initialisation: a stiff penalty would diverge before it tells anything about time.
    recipe = recipe.model_copy(update={"lr": "0:1e-6"})
    with Meter(model) as meter:
        task = TimedTask(
            model,
            layers,
            workload,
            0.5,
            recipe,
            data,
            0,
            meter,
            name,
            target=shapes.target(workload, 0.5, method.granularity, method.scope),
            initial=lambda _epoch: network(workload, 0).state_dict(),
        )
        method.prune(task)
    return task.seconds


if __name__ == "__main__":
    main()
