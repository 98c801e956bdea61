"""GReg-2: growing L2 regularisation that first tells which filters will go, then pushes them to zero."""

import torch

from pruneaudit import Budget, Card, Kept, PruningTask, PublishedRecipe, TrainedMethod
from pruneaudit.config import Workload
from pruneaudit.pruning.growing import GrowingPenalty
from pruneaudit.training.loop import Hooks


class GReg2(TrainedMethod):
    """Filters that shrink most under one growing L2 penalty, pushed on to zero. Wang et al., ICLR 2021, Algorithm 2.

    Picking: λ·w is added to the gradient of all filters' weights, and λ grows from 0 to ``picking_ceiling``; weights
    in flat directions of the loss shrink faster. Then the filters with the lowest mean absolute weight are chosen.
    Pruning: their λ goes on growing to ``ceiling``, then holds, while that of the filters that stay is ``recover``,
    below zero: they may grow. Normalisation parameters are not regularised.

    Deviation: the authors' code may stop growing early once every layer's kept-to-removed magnitude ratio exceeds
    1000. Left out, so that the declared budget is what is spent. The paper's 10,000 steps of picking, 99,000 of
    growing and 10,000 of holding are scaled to the workload's pruning budget, on CIFAR 110,000.

    Of layers that lose filters together the first one decides; the penalty grows on the filters of all of them.
    """

    card = Card(
        criterion="mean absolute weight under a growing penalty",
        schedule="one-shot",
        base="trained",
        training="growing L2 penalty, first on all filters, then on those that will go",
        source="Wang et al., ICLR 2021, Algorithm 2",
    )
    published = PublishedRecipe(
        workload="resnet56-cifar10",
        epochs=120,
        lr="0:1e-2,60:1e-3,90:1e-4",
        source="GReg, CIFAR settings of the authors' release: 120 epochs, batch and weight decay as in pretraining",
    )

    def __init__(
        self,
        picking: float = 10 / 119,
        hold: float = 10 / 119,
        picking_ceiling: float = 0.01,
        ceiling: float = 1.0,
        recover: float = -1e-4,
    ) -> None:
        self.picking = picking
        self.hold = hold
        self.picking_ceiling = picking_ceiling
        self.ceiling = ceiling
        self.recover = recover

    def budget(self, workload: Workload) -> Budget:
        """The workload's pruning budget."""
        return Budget(steps=workload.prune.steps, lr=workload.prune.lr)

    def prune(self, task: PruningTask) -> Kept:
        """Regularise all filters, choose, regularise the chosen ones, remove."""
        chosen_at = max(1, round(task.steps * self.picking))
        # The papers' increments: 1e-5 up to 0.01, then 1e-4 up to 1.
        picking = GrowingPenalty(chosen_at, hold=0, ceiling=self.picking_ceiling, increments=1_000)
        growing = GrowingPenalty(
            task.steps - chosen_at, self.hold / (1 - self.picking), self.ceiling - self.picking_ceiling, 9_900
        )
        weights = [layer.weight for layer in task.layers]
        sizes = [layer.channels for layer in task.layers]

        def choose() -> torch.Tensor:
            """1 for the filters that go, of all layers in one row: kept in checkpoints once it is known."""
            if "goes" not in task.state:
                goes = [torch.ones(size, dtype=weights[0].dtype) for size in sizes]
                for layer, marks in zip(task.layers, goes, strict=True):
                    marks[task.keep_highest(layer, layer.weight.detach().abs().flatten(1).mean(dim=1))] = 0
                task.state["goes"] = torch.cat(goes).to(weights[0].device)
            return task.state["goes"]

        def shrink(step: int) -> None:
            gradients = [weight.grad for weight in weights]
            with torch.no_grad():
                if step < chosen_at:
                    torch._foreach_add_(gradients, weights, alpha=picking.value(step))
                    return
                strength = self.picking_ceiling + growing.value(step - chosen_at)
                # strength where a filter goes, recover where it stays.
                factors = choose() * (strength - self.recover) + self.recover
                shaped = [
                    part.view(-1, *[1] * (weight.dim() - 1))
                    for part, weight in zip(factors.split(sizes), weights, strict=True)
                ]
                torch._foreach_addcmul_(gradients, weights, shaped)

        task.train(hooks=Hooks(gradients=shrink))
        return {
            layer.name: (marks == 0).nonzero().flatten().tolist()
            for layer, marks in zip(task.layers, choose().split(sizes), strict=True)
        }
