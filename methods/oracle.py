"""Oracle pruning: tries sets of filters, and takes the best."""

import itertools
import math
from collections.abc import Iterator

import torch

from pruneaudit import Card, Kept, Method, PruningTask, PublishedRecipe
from pruneaudit.pruning.subsets import losses_after_removal
from pruneaudit.pruning.units import Unit


class Oracle(Method):
    """The set of filters with the lowest training loss right after removal. Feng et al. 2024 (arXiv 2412.00143).

    All combinations of filters are tried where there are at most ``limit`` of them, over all layers together; else a
    uniform sample of so many ("approximate oracle"). The loss is the mean cross-entropy, without training, with
    normalisation in eval mode.

    Layers that lose filters together are one choice; groups of convolutions and normalisations stay whole or alike.

    Deviation: the loss is that of some training batches, not of the whole split. What a set of filters computes is
    measured on the network that the set leaves: the authors' released code combines its filters with the next layer's
    inputs (and the normalisation) of the L1 choice.
    """

    published = PublishedRecipe(
        workload="resnet56-cifar10",
        epochs=120,
        lr="0:1e-2,60:1e-3,90:1e-4",
        source="Feng et al. 2024, released scripts: 120 epochs, batch 256, weight decay 5e-4",
        batch=256,
        weight_decay=5e-4,
    )
    card = Card(
        criterion="training loss after removal",
        schedule="one-shot, exhaustive or sampled",
        base="trained",
        training="none; forward passes",
        source="Feng et al. 2024, arXiv 2412.00143",
    )

    def __init__(self, limit: int = 64, batches: int = 4) -> None:
        self.limit = limit
        self.batches = batches

    def prune(self, task: PruningTask) -> Kept:
        """Try every candidate (ties: the first)."""
        found = list(candidates(task, self.limit))
        losses = losses_after_removal(task.model, task.layers, found, list(task.batches(self.batches)))
        return found[losses.index(min(losses))]


def candidates(task: PruningTask, limit: int) -> Iterator[dict[str, list[int]]]:
    """All choices of filters to keep, or ``limit`` different ones, drawn uniformly."""
    names = [unit.name for unit in task.prunable]
    widths = [unit.channels for unit in task.prunable]
    stay = [task.target.stay[name] for name in names]
    alone = all(unit.step == 1 for unit in task.prunable)
    if alone and math.prod(map(math.comb, widths, stay)) <= limit:
        subsets = [itertools.combinations(range(width), count) for width, count in zip(widths, stay, strict=True)]
        for choice in itertools.product(*subsets):
            yield dict(zip(names, map(list, choice), strict=True))
        return
    draw = task.generator("candidates")
    seen = set()
    # Of units that go in bundles there may be fewer choices.
    for _ in range(100 * limit):
        choice = tuple(tuple(_drawn(unit, count, draw)) for unit, count in zip(task.prunable, stay, strict=True))
        if choice not in seen:
            seen.add(choice)
            yield dict(zip(names, map(list, choice), strict=True))
        if len(seen) == limit:
            return


def _drawn(unit: Unit, count: int, draw: torch.Generator) -> list[int]:
    """So many of a unit's channels, at random, those together that must stay together."""
    if unit.step == 1:
        return sorted(torch.randperm(unit.channels, generator=draw)[:count].tolist())
    _, bundles = unit.candidates(torch.rand(unit.channels, generator=draw))
    order = torch.randperm(len(bundles), generator=draw)[: count // unit.step]
    return sorted(bundles[order].flatten().tolist())
