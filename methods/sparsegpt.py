"""SparseGPT: weights that stay make up for those that go."""

import torch

from pruneaudit import Card, Kept, Method, PruningTask
from pruneaudit.pruning.arrivals import gram
from pruneaudit.pruning.surgeon import pruned_by_columns


class SparseGPT(Method):
    """Removes weights column by column, and lets the columns behind make up for them. Frantar & Alistarh, ICML 2023.

    With H the products of a layer's inputs over the calibration examples, and U the upper Cholesky factor of its
    inverse, a weight of column q costs w² / U_qq². Of every ``columns`` columns the cheapest go, in equal shares
    (algorithm 1 with adaptive masks); what is lost with a column is made up for by those to its right. H is damped by
    1 % of its mean diagonal.

    Deviation: layers are pruned from first to last, and each sees what arrives behind all earlier ones; in the authors'
    code the layers of one block see that block dense. All is in float64, and calibration batches are passed again for
    every layer instead of keeping what arrives.
    """

    granularity = "weight"
    rewrites = True
    card = Card(
        criterion="error of the layer's outputs, made up for by the weights that stay",
        schedule="one-shot, layer by layer",
        base="trained",
        training="none; least squares over examples",
        source="Frantar & Alistarh, ICML 2023",
    )

    def __init__(self, batches: int = 4, columns: int = 128) -> None:
        self.batches = batches
        self.columns = columns

    def prune(self, task: PruningTask) -> Kept:
        """Layer by layer: choose, make up."""
        batches = list(task.batches(self.batches))
        kept = {}
        for layer in task.layers:
            matrix = layer.weight.detach().flatten(1)
            total, gone = task.removed(layer), 0

            def cheapest(
                errors: torch.Tensor, end: int, total: int = total, wide: int = matrix.shape[1]
            ) -> torch.Tensor:
                """The share of these columns that brings what has gone to its share of all columns so far."""
                nonlocal gone
                goes = torch.zeros(errors.numel(), dtype=torch.bool)
                goes[errors.flatten().argsort(stable=True)[: total * end // wide - gone]] = True
                gone += int(goes.sum())
                return goes.view(errors.shape)

            found = gram(task.model, layer.name, batches)
            weight, stays = pruned_by_columns(matrix.cpu(), found, self.columns, cheapest)
            with torch.no_grad():
                layer.weight.copy_(weight.view(layer.weight.shape))
            kept[layer.name] = stays.view(layer.weight.shape)
        task.scored()
        return kept
