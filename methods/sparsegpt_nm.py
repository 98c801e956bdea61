"""SparseGPT with an n:m pattern."""

import torch

from pruneaudit import Card, Kept, Method, PruningTask, shapes
from pruneaudit.config import Workload
from pruneaudit.pruning.arrivals import gram
from pruneaudit.pruning.patterns import ranks, removed_of
from pruneaudit.pruning.surgeon import pruned_by_columns


class SparseGPTNM(Method):
    """Removes n of every m neighbours, and lets the columns behind make up for them. Frantar & Alistarh, ICML 2023.

    As ``sparsegpt``; of every ``neighbours`` inputs of an output, one behind the other, as many go as the ratio says,
    those that cost least once all earlier columns have been made up for (sec. 3.4).

    Deviation: as ``sparsegpt``. Of convolutions neighbours are those of the matrix ``[out, in · taps]``. Networks where
    a row is no multiple of ``neighbours`` have no such pattern.
    """

    granularity = "weight"
    rewrites = True
    card = Card(
        criterion="error of the layer's outputs, made up for by the weights that stay, within few neighbours",
        schedule="one-shot, layer by layer",
        base="trained",
        training="none; least squares over examples",
        source="Frantar & Alistarh, ICML 2023",
    )

    def __init__(self, batches: int = 4, neighbours: int = 4) -> None:
        self.batches = batches
        self.neighbours = neighbours

    def skip(self, workload: Workload) -> str | None:
        """Networks with rows that are no multiple."""
        return shapes.without_pattern(workload, self.neighbours)

    def pattern(self) -> int:
        """So many neighbours."""
        return self.neighbours

    def prune(self, task: PruningTask) -> Kept:
        """Layer by layer: choose, make up."""
        count = removed_of(task.ratio, self.neighbours)
        batches = list(task.batches(self.batches))
        kept = {}
        for layer in task.layers:
            found = gram(task.model, layer.name, batches)
            weight, stays = pruned_by_columns(
                layer.weight.detach().flatten(1).cpu(), found, self.neighbours, lambda errors, _: ranks(errors) < count
            )
            with torch.no_grad():
                layer.weight.copy_(weight.view(layer.weight.shape))
            kept[layer.name] = stays.view(layer.weight.shape)
        task.scored()
        return kept
