"""LLM-Pruner's criterion over all weights that go together."""

import torch
import torch.nn.functional as F

from pruneaudit import Budget, Card, Kept, Method, PruningTask
from pruneaudit.config import Workload
from pruneaudit.pruning.arrivals import weights_of_channels


class LLMPruner(Method):
    """Smallest first-order change of the loss by single weights of a group first. Ma et al., NeurIPS 2023, sec. 3.2.

    The importance of a weight is |w · ∂L/∂w|, with the gradient of the mean loss over all calibration examples at once
    ("element-wise, first order": ``param_first`` of the authors' code). That of a group is the sum over all weights
    that go with it: of a head its queries, keys, values and what reads them, of a neuron its gate and both projections.

    Deviation: the authors score 10 texts of 64 tokens, spare the first and last blocks, and recover with LoRA; here all
    methods score with the same examples, all prunable layers are pruned, and the protocol says what is retrained.
    """

    card = Card(
        criterion="first-order change of the loss by single weights",
        schedule="one-shot",
        base="trained",
        training="none",
        source="Ma et al., NeurIPS 2023",
    )

    def __init__(self, batches: int = 4) -> None:
        self.batches = batches

    def budget(self, workload: Workload) -> Budget:
        """Gradients of a few batches, no step."""
        return Budget(samples=self.batches * workload.prune.batch)

    def prune(self, task: PruningTask) -> Kept:
        """Keep the groups whose weights the loss depends on most."""
        task.model.zero_grad()
        examples = 0
        for inputs, labels in task.batches(self.batches):
            (F.cross_entropy(task.model(inputs), labels) * len(inputs)).backward()
            examples += len(inputs)
        changes = {
            name: (parameter * parameter.grad).detach().double().abs() / examples
            for name, parameter in task.model.named_parameters()
            if parameter.grad is not None
        }
        task.model.zero_grad()
        with torch.no_grad():
            scores = {unit.name: weights_of_channels(unit, task.model, changes) for unit in task.prunable}
        task.scored()
        return task.keep(scores, self.scope)
