"""Isomorphic pruning: what is built alike is ranked together, over all layers."""

from collections import defaultdict

import torch
import torch.nn.functional as F

from pruneaudit import Budget, Card, Kept, Method, PruningTask
from pruneaudit.config import Workload
from pruneaudit.pruning.arrivals import weights_of_channels
from pruneaudit.pruning.patterns import ranks


class Isomorphic(Method):
    """Lowest ranks among structures of one kind first, over all layers. Fang et al., ECCV 2024, sec. 3.3.

    Heads have other scores than hidden neurons, whatever they are worth: units whose members are of the same classes,
    in the same order and on the same sides, are isomorphic, and only these compete. Each kind loses the same share, of
    whichever layers. The score is the paper's: first order, Σ |w · ∂L/∂w| over all that goes, of the mean loss over all
    examples.

    Deviation: ranks within a kind, divided by how many it has, decide against one threshold that reaches the MACs of
    uniform pruning; the authors prune a share of each kind, which is the same where its layers cost the same. The best
    of each layer stays.
    """

    scope = "global"
    card = Card(
        criterion="first-order change of the loss, ranked among structures of one kind",
        schedule="one-shot",
        base="trained",
        training="none",
        source="Fang et al., ECCV 2024",
    )

    def __init__(self, batches: int = 4) -> None:
        self.batches = batches

    def budget(self, workload: Workload) -> Budget:
        """Gradients of a few batches, no step."""
        return Budget(samples=self.batches * workload.prune.batch)

    def prune(self, task: PruningTask) -> Kept:
        """Keep the highest ranks."""
        task.model.zero_grad()
        for inputs, labels in task.batches(self.batches):
            (F.cross_entropy(task.model(inputs), labels) * len(inputs)).backward()
        changes = {
            name: (parameter * parameter.grad).detach().double().abs()
            for name, parameter in task.model.named_parameters()
            if parameter.grad is not None
        }
        task.model.zero_grad()
        kinds = defaultdict(list)
        for unit in task.prunable:
            members = [(type(task.model.get_submodule(each.module)), each.side) for each in unit.members]
            kinds[unit.bundle, *members].append(unit)
        scores = {}
        for units in kinds.values():
            found = [weights_of_channels(unit, task.model, changes) for unit in units]
            # Neighbours that go together are one structure.
            sums = [score.view(-1, unit.bundle).sum(dim=1) for score, unit in zip(found, units, strict=True)]
            order = ranks(torch.cat(sums)).double()
            for unit, part in zip(units, (order / len(order)).split([len(each) for each in sums]), strict=True):
                scores[unit.name] = part.repeat_interleave(unit.bundle)
        task.scored()
        return task.keep(scores, self.scope)
