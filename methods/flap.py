"""FLAP: fluctuation of what is read decides, over all layers."""

from pruneaudit import Card, Kept, Method, PruningTask
from pruneaudit.pruning.arrivals import arrivals, column_norms, consumer_names, of_channels


class FLAP(Method):
    """Least fluctuation first, over all layers. An et al., AAAI 2024 (FLAP), sec. 3.

    A channel whose value hardly varies could be replaced by its mean. Its score is the sample variance of what arrives,
    over examples and tokens, times the squared norm of the weights that read it (WIFV); a head has the mean of its
    channels. Scores are standardised within each layer, to be compared across layers: one threshold decides for all.

    Deviation: the paper adds W · (mean of what was removed) to biases, which the layers here need not have: nothing is
    compensated. Its threshold reaches a number of parameters, and weighs a head as 512/3 neurons; here it reaches the
    MACs of uniform pruning, which weighs them by what they cost. Its code squares the scores of heads; the paper does
    not.
    """

    scope = "global"
    card = Card(
        criterion="fluctuation of inputs times squared weights",
        schedule="one-shot",
        base="trained",
        training="none",
        source="An et al., AAAI 2024",
    )

    def __init__(self, batches: int = 4) -> None:
        self.batches = batches

    def prune(self, task: PruningTask) -> Kept:
        """Keep the channels that vary most."""
        names = consumer_names(task.prunable)
        seen = arrivals(task.model, names, task.batches(self.batches))
        weights = column_norms(task.model, names, power=2)
        columns = {name: weights[name] * seen[name].variance for name in names}
        scores = {}
        for unit in task.prunable:
            score = of_channels(unit, columns)
            # Channels that all fluctuate alike are equally far from the mean of their layer: at it.
            scores[unit.name] = (score - score.mean()) / score.std().clamp_min(1e-30)
        task.scored()
        return task.keep(scores, self.scope)
