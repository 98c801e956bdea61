"""Network slimming: sparse scales of normalisations."""

import torch
from torch import nn

from pruneaudit import Budget, Card, Kept, PruningTask, PublishedRecipe, TrainedMethod, shapes
from pruneaudit.config import Workload
from pruneaudit.training.loop import Hooks


class NetworkSlimming(TrainedMethod):
    """Trains with an L1 penalty on the scales of normalisations, removes the smallest. Liu et al., ICCV 2017, sec. 3.

    ``strength`` · sign(γ) is added to the gradient of every scale γ. Then one threshold for all layers decides: the
    filters with the smallest |γ| in the normalisation behind them go.

    Deviation: training starts from the shared base model, not from random weights, and is as long as the workload's
    pruning budget. The threshold is over the prunable layers; the paper's is over all normalisations, those on
    residual streams included (their channels are then selected, not removed), and may leave a layer without filters,
    where here one stays.

    Layers that lose filters together compete with the mean of their scores.
    """

    scope = "global"
    card = Card(
        criterion="absolute scale of the normalisation",
        schedule="one-shot",
        base="trained",
        training="L1 penalty on scales",
        source="Liu et al., ICCV 2017",
    )
    published = PublishedRecipe(
        workload="vgg19-cifar100",
        epochs=40,
        lr="0:1e-3",
        batch=64,
        weight_decay=1e-4,
        source="Liu et al., ICLR 2019 (Rethinking), CIFAR: 40 epochs with a constant learning rate of 0.001",
    )

    def __init__(self, strength: float = 1e-4) -> None:
        self.strength = strength

    def budget(self, workload: Workload) -> Budget:
        """The workload's pruning budget."""
        return Budget(steps=workload.prune.steps, lr=workload.prune.lr)

    def skip(self, workload: Workload) -> str | None:
        """Networks with a prunable layer that no normalisation follows."""
        return shapes.without_norm(workload)

    def prune(self, task: PruningTask) -> Kept:
        """Train with the penalty, remove the smallest scales."""
        scales = [module.weight for module in task.model.modules() if isinstance(module, nn.BatchNorm2d)]

        def sparsify(step: int) -> None:
            with torch.no_grad():
                torch._foreach_add_([scale.grad for scale in scales], torch._foreach_sign(scales), alpha=self.strength)

        task.train(hooks=Hooks(gradients=sparsify))
        return task.keep({layer.name: layer.norm.weight.detach().abs() for layer in task.layers}, self.scope)
