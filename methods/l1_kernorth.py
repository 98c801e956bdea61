"""L1-norm filter pruning, then retraining with kernel orthogonality."""

import torch

from pruneaudit import Card, FilterScore, Hooks, PruningTask, PublishedRecipe, RetrainingTask
from pruneaudit.pruning.layers import PrunableLayer
from pruneaudit.pruning.orthogonality import kernel_penalty


class L1KernOrth(FilterScore):
    """Lowest L1 norms go; retraining then pulls layers to orthogonality. Xie et al., CVPR 2017, as in TPP, Table 1.

    The loss of every step of retraining is CE + ``weight`` · Σ ‖W Wᵀ - I‖_F over all convolutions and linear layers, W
    a layer's weights as a matrix ``[N, D]``; of tall matrices WᵀW.

    Deviation: Xie et al. square the norm. It is not squared in TPP's baseline, which the weight of 0.1 belongs to.

    Layers that lose filters together compete with the mean of their scores.
    """

    in_retraining = "0.1 x kernel orthogonality in the loss of every step"
    published = PublishedRecipe(
        workload="resnet56-cifar10",
        epochs=120,
        lr="0:1e-2,60:1e-3,90:1e-4",
        source="TPP, Table 1, retraining LR 1e-2: 120 epochs, weight decay 5e-4, batch 128",
    )
    card = Card(
        criterion="L1 norm",
        schedule="one-shot",
        base="trained",
        training="none; kernel orthogonality in the loss of retraining",
        source="Xie et al., CVPR 2017; TPP (Wang & Fu, ICLR 2023), Table 1",
    )

    def __init__(self, weight: float = 0.1) -> None:
        self.weight = weight

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Sum of absolute weights of each filter, ``[out_channels]``."""
        return layer.weight.abs().flatten(1).sum(dim=1)

    def retraining(self, task: RetrainingTask) -> Hooks:
        """The penalty in the loss of every step."""
        return Hooks(penalty=kernel_penalty(task.model, self.weight))
