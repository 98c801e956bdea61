"""Model-epochs per second of many runs of one shape: one after the other, as one program, and by a plain loop.

    python benchmarks/many.py [SECTION ...]        default: digits, and where there is a GPU cifar, lenet and single

A model-epoch is one training pass of one model with its validation and test passes. The reference is written in the
style of the source papers' code: a DataLoader with PIL transforms, one model at a time, ``.item()`` at every step. All
other rows go through ``train_many``; the first epoch (tracing, warming up, capturing) is not counted, and stated as
set-up. Datasets that are not there are replaced by random images of the same sizes: accuracies then mean nothing.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from reference import images_of, loader, plain_step, sgd, test
from resident import largest_set
from torch import nn

from pruneaudit.catalog.discovery import Catalog
from pruneaudit.pruning import shapes
from pruneaudit.streams import generator
from pruneaudit.training.many import train_many
from pruneaudit.training.precision import place
from pruneaudit.training.runs import Backend, Training
from pruneaudit.workloads.data import Dataset
from pruneaudit.workloads.models.initialise import initialise
from pruneaudit.workloads.recipes import Recipe
from pruneaudit.workloads.schema import Workload


@dataclass
class Clock:
    """Times at which model-epochs came to their end, and how good the models were at the last ones.

    On a CPU it is the process's own time, which other processes on the machine do not lengthen.
    """

    device: str
    ends: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)

    def __call__(self, done: int, epochs: int, accuracy: float) -> None:
        """Note one (the progress callback of a run)."""
        self.ends.append(self.now())
        if done == epochs:
            self.accuracies.append(accuracy)

    def now(self) -> float:
        """Seconds, from any start."""
        return time.process_time() if self.device == "cpu" else time.perf_counter()


@dataclass(frozen=True)
class Case:
    """What is trained: a network of a workload, pruned at a ratio or dense, on some device."""

    workload: Workload
    data: Dataset
    ratio: float | None
    device: str

    def model(self, number: int, precision: str = "fp32") -> nn.Module:
        """A network with random weights."""
        widths = {} if self.ratio is None else shapes.widths_at(self.workload, self.ratio)
        model = shapes.network(self.workload, widths)
        initialise(model, generator(number, "benchmark"))
        return place(model, self.device, precision)

    def recipe(self, epochs: int) -> Recipe:
        """The workload's retraining, with another length."""
        return self.workload.retrain.for_epochs(epochs)


def main() -> None:
    """Print the tables."""
    cuda = torch.cuda.is_available()
    sections = {"digits": digits, "cifar": cifar, "lenet": lenet, "single": single}
    chosen = sys.argv[1:] or list(sections)[: 4 if cuda else 1]
    torch.set_num_threads(1)
    name = torch.cuda.get_device_name() if cuda else "CPU, 1 thread"
    print(f"{name}, torch {torch.__version__}")
    for section in chosen:
        sections[section]()


def digits() -> None:
    """Small networks on the CPU: what grouping costs or brings there."""
    for name in ("lenet5-digits", "resnet20-digits"):
        case = _case(name, 0.5, "cpu")
        _head(f"{name}, ratio 0.5, CPU, 3 epochs")
        reference = _reference(case, models=1, epochs=3)
        for count in (1, 4, 18):
            _row(f"one at a time, K={count}", case, count, 3, "torch", reference)
            _row(f"grouped, K={count}", case, count, 3, "grouped", reference, width=count)


def cifar() -> None:
    """ResNet-56 on CIFAR-10 at the ratios of Wang et al., Table 6: 18 runs of one shape."""
    for ratio in (0.5, 0.9):
        case = _case("resnet56-cifar10", ratio, "cuda")
        _head(f"resnet56-cifar10, ratio {ratio}, 3 epochs")
        reference = _reference(case, models=1, epochs=1)
        _row("one at a time, K=1", case, 1, 2, "torch", reference)
        for precision in ("fp32", "bf16"):
            for layout in (False, True):
                for count in (1, 4, 18):
                    kind = f"grouped {precision} {'NHWC' if layout else 'NCHW'}, K={count}"
                    _row(kind, case, count, 3, "grouped", reference, precision, count, layout)
            for layout in (False, True):
                kind = f"fused {precision} {'NHWC' if layout else 'NCHW'}, K=18"
                _row(kind, case, 18, 3, "fused", reference, precision, 18, layout)
            for lanes in (1, 4, 18):
                kind = f"graphed {precision}, {lanes} streams"
                _row(kind, case, lanes, 3, "graphed", reference, precision, lanes)


def lenet() -> None:
    """LeNet-5 on MNIST: the oracle's 252 subsets of one layer."""
    case = _case("lenet5-mnist", 0.5, "cuda")
    _head("lenet5-mnist, ratio 0.5, 3 epochs (of 30)")
    reference = _reference(case, models=1, epochs=1)
    _row("one at a time, K=1", case, 1, 2, "torch", reference)
    for layout in (False, True):
        for count in (18, 63, 252):
            kind = f"grouped {'NHWC' if layout else 'NCHW'}, 252 runs, K={count}"
            _row(kind, case, 252, 3, "grouped", reference, width=count, channels_last=layout)


def single() -> None:
    """One dense ResNet-56: what a captured step brings."""
    case = _case("resnet56-cifar10", None, "cuda")
    _head("resnet56-cifar10, dense, one model")
    reference = _reference(case, models=1, epochs=1)
    for backend in ("torch", "graphed"):
        for precision in ("fp32", "bf16"):
            _row(f"{backend} {precision}", case, 1, 3, backend, reference, precision)


def _case(name: str, ratio: float | None, device: str, model: str = "") -> Case:
    workload = Catalog().workload(name)
    workload = workload.model_copy(update={"model": model}) if model else workload
    return Case(workload, images_of(workload).to(torch.device(device)), ratio, device)


def _head(title: str) -> None:
    print(f"\n{title}")
    times = f"{'s/model-epoch':>13} {'model-epochs/s':>14} {'reference / it':>14} {'set-up s':>8}"
    print(f"{'':36} {times} {'GB':>6} {'%':>6}")


def _line(label: str, seconds: float, reference: float, setup: float, accuracies: Sequence[float]) -> None:
    if torch.cuda.is_available():
        memory = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
    else:
        memory = largest_set() / 1024
    rates = f"{seconds:13.3f} {1 / seconds:14.2f} {reference / seconds:13.2f}x"
    print(f"{label:36} {rates} {setup:8.1f} {memory:6.2f} {statistics.mean(accuracies):6.2f}", flush=True)


def _row(
    label: str,
    case: Case,
    count: int,
    epochs: int,
    backend: Backend,
    reference: float,
    precision: str = "fp32",
    width: int | None = None,
    channels_last: bool | None = None,
) -> None:
    """Train some models and print a line; all but the first epoch of each counts."""
    clock = Clock(case.device)
    trainings = [
        Training(
            case.model(number, precision),
            case.data,
            case.recipe(epochs),
            seed=number % 3,
            stream="benchmark",
            precision=precision,
            progress=clock,
        )
        for number in range(count)
    ]
    started = clock.now()
    results = train_many(trainings, backend, width, channels_last)
    problem = next((str(result.error or result.reason) for result in results if result.error or result.reason), "")
    if problem:
        print(f"{label:36} {problem}")
    if len(clock.ends) <= count:
        return
    seconds = (clock.ends[-1] - clock.ends[count - 1]) / (len(clock.ends) - count)
    setup = clock.ends[count - 1] - started - count * seconds
    _line(label, seconds, reference, max(0.0, setup), clock.accuracies)


def _reference(case: Case, models: int, epochs: int) -> float:
    """Seconds of a model-epoch of the plain loop; prints its line."""
    recipe, data = case.recipe(epochs), case.data
    train, *tests = (loader(data, part, recipe.batch) for part in (data.train, data.validation, data.test))
    clock = Clock(case.device)
    started, accuracies = clock.now(), []
    for number in range(models):
        model = case.model(number).to(memory_format=torch.contiguous_format)
        optimiser = sgd(model, recipe)
        for epoch in range(epochs):
            model.train()
            for group in optimiser.param_groups:
                group["lr"] = recipe.rate(epoch, 0)
            for images, labels in train:
                plain_step(model, optimiser, images.to(case.device), labels.to(case.device))
            _, accuracy = (test(model, images, case.device) for images in tests)
        accuracies.append(accuracy)
    seconds = (clock.now() - started) / (models * epochs)
    _line("reference loop, K=1", seconds, seconds, 0.0, accuracies)
    return seconds


if __name__ == "__main__":
    main()
