"""Times of training and pruning steps, as ratios against a plain reference loop run beside ours.

    python benchmarks/steps.py [WORKLOAD]        default: resnet20-digits

The reference is written in the style of the source papers' code: a DataLoader with PIL transforms, contiguous layout,
for-loop SGD, ``.item()`` at every step. Then come a plain step of ours and one of every method of the catalogue that
trains in its pruning stage: it should cost at most 1.25x a plain one. All variants run interleaved in one process on
one thread; ratios are medians over rounds.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from PIL import Image
from reference import plain_step
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms

from pruneaudit import shapes
from pruneaudit.catalog import Catalog
from pruneaudit.config import Recipe, Workload
from pruneaudit.contract import TrainedMethod
from pruneaudit.pruning.layers import prunable_layers
from pruneaudit.streams import generator
from pruneaudit.task import PruningTask
from pruneaudit.training.loop import Hooks, Trainer
from pruneaudit.training.metering import Meter
from pruneaudit.training.precision import place
from pruneaudit.workloads.datasets import Dataset, Part, data_root, load
from pruneaudit.workloads.models.initialise import initialise

ROUNDS = 5


def main() -> None:
    """Time all variants and print the table."""
    torch.set_num_threads(1)
    name = sys.argv[1] if len(sys.argv) > 1 else "resnet20-digits"
    workload = Catalog().workload(name)
    full = load(workload.data, data_root(None))
    steps = 40 if len(full.train) < 5000 else 12
    # Evaluation is not what is timed: one image each.
    one = Part(full.test.images[:1], full.test.labels[:1])
    data = Dataset(full.config, full.classes, full.train, one, one, full.split_digest)
    recipe = workload.prune.model_copy(update={"steps": steps})
    variants: dict[str, Callable[[], float]] = {
        "reference loop": lambda: reference(workload, data, recipe),
        "ours": lambda: ours(workload, data, recipe),
        **{name: partial(pruning, workload, data, recipe, name) for name in trained_methods(workload)},
    }
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    for variant in variants.values():
        variant()
    for _ in range(ROUNDS):
        for variant, run in variants.items():
            times[variant].append(run() / steps)
    width = max(map(len, variants))
    print(f"{name}, batch {recipe.batch}, fp32, 1 thread, {ROUNDS} rounds of {steps} steps, torch {torch.__version__}")
    print(f"{'variant':{width}} {'ms/step':>8} {'reference / it':>15} {'it / ours':>10}")
    for variant, seconds in times.items():
        faster = statistics.median(a / b for a, b in zip(times["reference loop"], seconds, strict=True))
        slower = statistics.median(b / a for a, b in zip(times["ours"], seconds, strict=True))
        print(f"{variant:{width}} {1000 * statistics.median(seconds):8.1f} {faster:14.2f}x {slower:9.2f}x")


def network(workload: Workload) -> nn.Module:
    """The dense network, initialised."""
    model = shapes.dense_network(workload)
    initialise(model, generator(0, "benchmark"))
    return model


def reference(workload: Workload, data: Dataset, recipe: Recipe) -> float:
    """Seconds of the plain loop."""
    config = data.config
    steps = [transforms.RandomCrop(data.height, padding=config.pad)] if config.pad else []
    steps += [transforms.RandomHorizontalFlip()] if config.flip else []
    transform = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(config.mean, config.std)])
    images = [
        Image.fromarray(image.squeeze(-1).numpy() if image.shape[-1] == 1 else image.numpy())
        for image in data.train.images
    ]
    samples = list(zip(images, data.train.labels.tolist(), strict=True))

    def collate(batch: list[tuple[Image.Image, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.stack([transform(image) for image, _ in batch]), torch.tensor([label for _, label in batch])

    model = network(workload).train()
    optimiser = torch.optim.SGD(
        model.parameters(),
        lr=recipe.rate(0, 0),
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        foreach=False,
    )
    done, started = 0, time.perf_counter()
    while True:
        for batch, labels in DataLoader(samples, recipe.batch, shuffle=True, collate_fn=collate):
            plain_step(model, optimiser, batch, labels)
            done += 1
            if done == recipe.steps:
                return time.perf_counter() - started


def ours(workload: Workload, data: Dataset, recipe: Recipe) -> float:
    """Seconds of the project's loop."""
    model = place(network(workload), "cpu", "fp32")
    with Meter(model) as meter:
        trainer = Trainer(model, data, recipe, 0, "benchmark", meter)
        started = time.perf_counter()
        trainer.fit()
    return time.perf_counter() - started


def trained_methods(workload: Workload) -> list[str]:
    """Names of the methods that train in their pruning stage and apply to the workload."""
    methods = [source.create() for source in Catalog().methods.values()]
    return [method.name for method in methods if isinstance(method, TrainedMethod) and not method.skip(workload)]


class TimedTask(PruningTask):
    """Sums up the seconds of training: what a method does once, before or after, is not the price of a step."""

    seconds = 0.0

    def train(self, steps: int | None = None, hooks: Hooks | None = None) -> None:
        """Train, and time it."""
        started = time.perf_counter()
        super().train(steps, hooks)
        self.seconds += time.perf_counter() - started


def pruning(workload: Workload, data: Dataset, recipe: Recipe, name: str) -> float:
    """Seconds of a method's regularised training."""
    model = place(network(workload), "cpu", "fp32")
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
            initial=lambda _epoch: network(workload).state_dict(),
        )
        method.prune(task)
    return task.seconds


if __name__ == "__main__":
    main()
