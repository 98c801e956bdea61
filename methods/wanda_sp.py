"""Wanda for whole heads, neurons and filters."""

from pruneaudit import Card, Kept, Method, PruningTask
from pruneaudit.pruning.arrivals import arrivals, column_norms, consumer_names, of_channels


class WandaSp(Method):
    """Smallest weights times norms of their inputs first, in each layer. Sun et al., ICLR 2024; An et al., AAAI 2024.

    Wanda scores a weight by |w| · ‖x‖₂, with the norm of its input over the calibration examples. For structures
    (Wanda-sp, the baseline of FLAP) a channel has the sum of its column in the layer that reads it, and a head the mean
    of its channels.

    Deviation: FLAP's code prunes block by block and sees what arrives behind pruned ones; here all is scored on the
    dense network, as by every other method. Of several layers that read a channel the scores are added.
    """

    card = Card(
        criterion="weights times norms of their inputs",
        schedule="one-shot",
        base="trained",
        training="none",
        source="Sun et al., ICLR 2024; An et al., AAAI 2024",
    )

    def __init__(self, batches: int = 4) -> None:
        self.batches = batches

    def prune(self, task: PruningTask) -> Kept:
        """Keep the channels that carry most."""
        names = consumer_names(task.prunable)
        seen = arrivals(task.model, names, task.batches(self.batches))
        weights = column_norms(task.model, names, power=1)
        columns = {name: weights[name] * seen[name].squares.sqrt() for name in names}
        task.scored()
        return task.keep({unit.name: of_channels(unit, columns) for unit in task.prunable}, self.scope)
