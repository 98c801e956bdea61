"""First-order Taylor pruning of coupled parameters."""

import torch
from torch_pruning import importance

from pruneaudit import Budget, Card, FilterScore, PruningTask
from pruneaudit.config import Workload
from pruneaudit.pruning.gradients import mean_scores
from pruneaudit.pruning.layers import PrunableLayer


class GroupTaylor(FilterScore):
    """Smallest first-order change of the loss by all that is coupled to a filter. Fang et al., CVPR 2023 (DepGraph).

    The score of a filter is the sum of |Σ g·w| over what goes with it: its own weights, the scale of its normalisation,
    and the weights that read its channel, averaged over batches. |Σ g·w| is the criterion of Molchanov et al., CVPR
    2019, as torch-pruning has it (``multivariable=True``).

    Deviation: torch-pruning 1.6.1 means to count the normalisation and does not (it asks for that over groups): it is
    added here.

    Layers that lose filters together are one group, with one score.
    """

    card = Card(
        criterion="first-order change of the loss by the group",
        schedule="one-shot",
        base="trained",
        training="none",
        source="Fang et al., CVPR 2023; Molchanov et al., CVPR 2019",
    )

    def __init__(self, batches: int = 4) -> None:
        self.batches = batches

    def budget(self, workload: Workload) -> Budget:
        """Gradients of a few batches, no step."""
        return Budget(samples=self.batches * workload.prune.batch)

    def prepare(self, task: PruningTask) -> None:
        """Score every layer by the gradients of each batch."""
        taylor = importance.GroupTaylorImportance(group_reduction="sum", normalizer=None, multivariable=True)

        def change(layer: PrunableLayer) -> torch.Tensor:
            found = taylor(layer.group)
            return found if layer.norm is None else found + (layer.norm.weight * layer.norm.weight.grad).abs()

        task.state |= mean_scores(task.model, task.layers, task.batches(self.batches), change)

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """First-order change of the loss without all that is coupled to each filter, ``[out_channels]``."""
        return task.state[layer.name]
