"""GReg-1: growing L2 regularisation on the filters that will go."""

import torch

from pruneaudit import Budget, Card, Kept, PruningTask, PublishedRecipe, TrainedMethod
from pruneaudit.config import Workload
from pruneaudit.pruning.growing import GrowingPenalty
from pruneaudit.training.loop import Hooks


class GReg1(TrainedMethod):
    """Lowest-L1 filters, pushed to zero by a growing L2 penalty before removal. Wang et al., ICLR 2021, Algorithm 1.

    The filters to remove are chosen by L1 norm before any training and stay fixed. Their penalty coefficient λ grows to
    ``ceiling``, then holds; λ·w is added to the gradient of the chosen filters' weights. Normalisation parameters are
    not regularised.

    Deviation: the authors' code may stop growing early once every layer's kept-to-removed magnitude ratio exceeds
    1000. Left out, so that the declared budget is what is spent. On other workloads than the paper's the schedule is
    scaled to the workload's pruning budget.

    Of layers that lose filters together the first one decides; the penalty grows on the filters of all of them.
    """

    card = Card(
        criterion="L1 norm",
        schedule="one-shot",
        base="trained",
        training="growing L2 penalty on the filters that will go",
        source="Wang et al., ICLR 2021, Algorithm 1",
    )
    published = PublishedRecipe(
        workload="resnet56-cifar10",
        epochs=120,
        lr="0:1e-2,60:1e-3,90:1e-4",
        source="GReg, CIFAR settings of the authors' release: 120 epochs, batch and weight decay as in pretraining",
    )

    def __init__(self, ceiling: float = 1.0, hold: float = 1 / 11) -> None:
        self.ceiling = ceiling
        self.hold = hold

    def budget(self, workload: Workload) -> Budget:
        """The workload's pruning budget: on CIFAR the paper's 100,000 growing and 10,000 holding steps."""
        return Budget(steps=workload.prune.steps, lr=workload.prune.lr)

    def prune(self, task: PruningTask) -> Kept:
        """Choose by L1 norm, regularise, remove."""
        schedule = GrowingPenalty(task.steps, self.hold, self.ceiling)
        kept, weights, masks = {}, [], []
        for layer in task.layers:
            kept[layer.name] = task.keep_highest(layer, layer.weight.detach().abs().flatten(1).sum(dim=1))
            mask = torch.ones(layer.channels, 1, dtype=layer.weight.dtype, device=layer.weight.device)
            mask[kept[layer.name]] = 0
            weights.append(layer.weight)
            masks.append(mask.view(-1, *[1] * (layer.weight.dim() - 1)))

        def shrink(step: int) -> None:
            strength = schedule.value(step)
            if strength:
                with torch.no_grad():
                    removed = torch._foreach_mul(weights, masks)
                    torch._foreach_add_([weight.grad for weight in weights], removed, alpha=strength)

        task.train(hooks=Hooks(gradients=shrink))
        return kept
