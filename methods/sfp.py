"""Soft filter pruning."""

import torch

from pruneaudit import Budget, Card, Kept, PruningTask, TrainedMethod
from pruneaudit.config import Workload
from pruneaudit.training.loop import Hooks


class SFP(TrainedMethod):
    """Zeroes the filters of smallest L2 norm after every epoch and trains them on. He et al., IJCAI 2018, Algorithm 1.

    Every prunable layer zeroes its share of filters (their weights alone: biases and normalisations stay as they are)
    whenever an epoch ends; the next epoch updates all filters, and may let zeroed ones grow again. Those that the last
    zeroing chose are removed. Behind a normalisation a filter that is zero has large gradients (its variance is next to
    nothing) and may come back larger than those that stayed: epochs of few steps do not make up for that.

    Deviation: as long as the workload's pruning budget, so that the last epoch may be a part of one; it ends with a
    zeroing, too. The paper does not retrain, and zeroes the same share of every convolution, also on residual streams.

    Of layers that lose filters together the first one decides; the filters of all of them are zeroed.
    """

    card = Card(
        criterion="L2 norm",
        schedule="every epoch, softly",
        base="trained",
        training="filters are zeroed after every epoch",
        source="He et al., IJCAI 2018, Algorithm 1",
    )

    def budget(self, workload: Workload) -> Budget:
        """The workload's pruning budget."""
        return Budget(steps=workload.prune.steps, lr=workload.prune.lr)

    def prune(self, task: PruningTask) -> Kept:
        """Train, zeroing filters at the end of every epoch; remove those that are zero."""

        def choose() -> Kept:
            # What was zeroed last has the smallest norms: choosing again changes nothing.
            return {
                layer.name: task.keep_highest(layer, layer.weight.detach().flatten(1).norm(dim=1))
                for layer in task.layers
            }

        def soften(step: int) -> None:
            if (step + 1) % task.steps_per_epoch and step + 1 < task.steps:
                return
            kept = choose()
            with torch.no_grad():
                for layer in task.layers:
                    goes = torch.ones(layer.channels, dtype=torch.bool, device=layer.weight.device)
                    goes[kept[layer.name]] = False
                    layer.weight[goes] = 0

        task.train(hooks=Hooks(after_step=soften))
        return choose()
