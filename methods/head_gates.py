"""Sensitivity of the loss to gates on heads, neurons and filters."""

from pruneaudit import Budget, Card, Kept, Method, PruningTask
from pruneaudit.config import Workload
from pruneaudit.pruning.arrivals import gate_gradients


class HeadGates(Method):
    """Heads whose gate the loss feels least first, in each layer. Michel et al., NeurIPS 2019, sec. 4.1.

    A gate ξ multiplies what leaves a head; its score is the mean over examples of |∂L/∂ξ| at 1, which is the sum of
    activation times gradient over the head's channels and the example's tokens. A hidden neuron (a filter) has a gate
    of its own: Molchanov et al., ICLR 2017, score feature maps so.

    Deviation: with grouped queries one gate stands for a key/value head with all of its query heads. The paper compares
    heads of all layers, scores divided by their layer's norm, and removes them step by step; here each layer loses its
    share at once.
    """

    card = Card(
        criterion="sensitivity of the loss to gates",
        schedule="one-shot",
        base="trained",
        training="none",
        source="Michel et al., NeurIPS 2019; Molchanov et al., ICLR 2017",
    )

    def __init__(self, batches: int = 4) -> None:
        self.batches = batches

    def budget(self, workload: Workload) -> Budget:
        """Gradients of a few batches, no step."""
        return Budget(samples=self.batches * workload.prune.batch)

    def prune(self, task: PruningTask) -> Kept:
        """Keep the heads and neurons that the loss feels most."""
        scores = gate_gradients(task.model, task.prunable, task.batches(self.batches))
        task.scored()
        return task.keep(scores, self.scope)
