"""Pruned-train-loss of many sets of filters, as ratios against a plain loop that runs beside ours.

    python benchmarks/oracle.py

The reference tries set after set as oracle studies do: removed filters are silenced, all images pass the network, and
the weights are put back. Ours is what the method ``oracle`` does. All variants run interleaved in one process on one
thread; times are the process's own, which other work on the machine does not lengthen; ratios are medians over rounds.
The losses of both must be the same to 1e-5 of their value (fp32). Images are random: time does not depend on them.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from pruneaudit.catalog.discovery import Catalog
from pruneaudit.pruning import shapes
from pruneaudit.pruning.layers import PrunableLayer, prunable_layers
from pruneaudit.pruning.reconstruction import channel_tensors, silence
from pruneaudit.pruning.subsets import losses_after_removal
from pruneaudit.streams import generator
from pruneaudit.training.precision import place
from pruneaudit.workloads.models.initialise import initialise

ROUNDS = 5
BATCHES = 4
CLASSES = 10

Batches = Sequence[tuple[torch.Tensor, torch.Tensor]]
Removals = Sequence[Mapping[str, Sequence[int]]]


class LeNet5Mini(nn.Module):
    """Ten filters in each of three convolutions (Feng et al. 2024, arXiv 2412.00143): input ``[N, 1, 32, 32]``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(1, 10, 5), nn.Conv2d(10, 10, 5), nn.Conv2d(10, 10, 5)
        self.fc1, self.fc2 = nn.Linear(10, 10), nn.Linear(10, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of a batch."""
        maps = F.max_pool2d(F.relu(self.conv1(images)), 2)
        maps = F.max_pool2d(F.relu(self.conv2(maps)), 2)
        return self.fc2(F.relu(self.fc1(F.relu(self.conv3(maps)).flatten(1))))


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(
        f"CPU, 1 thread, fp32, {BATCHES} batches of 128 images, medians of {ROUNDS} rounds, torch {torch.__version__}"
    )
    print(f"{'':52} {'reference s':>11} {'ours s':>7} {'reference / ours':>16}")
    for name in ("conv1", "conv2", "conv3"):
        every = [{name: kept} for kept in itertools.combinations(range(10), 5)]
        _row(f"LeNet5-Mini, {name}, all {len(every)} sets", LeNet5Mini(), (name,), 32, every)
    for name in ("lenet5-digits", "resnet20-digits"):
        workload = Catalog().workload(name)
        for ratio in (0.5, 0.9):
            model = shapes.dense_network(workload)
            sets = _draw(shapes.widths_at(workload, ratio), model, 16)
            label = f"{name}, all layers at ratio {ratio}, {len(sets)} sets"
            _row(label, model, workload.prunable, shapes.example(workload).shape[-1], sets, workload.skip)


def _draw(widths: Mapping[str, int], model: nn.Module, count: int) -> Removals:
    """Random sets of filters that give the layers their widths."""
    draw = generator(0, "benchmark", "sets")
    filters = {name: len(model.get_parameter(f"{name}.weight")) for name in widths}
    return [
        {name: sorted(torch.randperm(filters[name], generator=draw)[:width].tolist()) for name, width in widths.items()}
        for _ in range(count)
    ]


def _row(
    label: str, model: nn.Module, patterns: tuple[str, ...], side: int, sets: Removals, skip: tuple[str, ...] = ()
) -> None:
    """Time both variants, compare what they find, and print a line."""
    draw = generator(0, "benchmark", "images")
    initialise(model, draw)
    model = place(model, "cpu", "fp32").eval()
    batches = [
        (torch.randn(128, 1, side, side, generator=draw), torch.randint(0, CLASSES, (128,), generator=draw))
        for _ in range(BATCHES)
    ]
    layers = prunable_layers(model, batches[0][0][:1], patterns, skip)
    seconds: dict[str, list[float]] = {"reference": [], "ours": []}
    losses: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for variant, find in (("reference", _one_by_one), ("ours", losses_after_removal)):
            started = time.process_time()
            losses[variant] = find(model, layers, sets, batches)
            seconds[variant].append(time.process_time() - started)
    torch.testing.assert_close(torch.tensor(losses["ours"]), torch.tensor(losses["reference"]), rtol=1e-5, atol=0)
    ratio = statistics.median(a / b for a, b in zip(seconds["reference"], seconds["ours"], strict=True))
    plain, ours = (statistics.median(each) for each in seconds.values())
    print(f"{label:52} {plain:11.3f} {ours:7.3f} {ratio:15.2f}x", flush=True)


@torch.no_grad()
def _one_by_one(model: nn.Module, layers: Sequence[PrunableLayer], sets: Removals, batches: Batches) -> list[float]:
    """The reference."""
    intact = [(tensor, tensor.clone()) for layer in layers for tensor in channel_tensors(layer)]
    losses = []
    for kept in sets:
        for layer in layers:
            silence(layer, kept[layer.name])
        lost = sum(F.cross_entropy(model(images), labels, reduction="sum").item() for images, labels in batches)
        losses.append(lost / sum(len(labels) for _, labels in batches))
        for tensor, values in intact:
            tensor.copy_(values)
    return losses


if __name__ == "__main__":
    main()
