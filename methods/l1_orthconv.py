"""L1-norm filter pruning, then retraining with convolutional orthogonality."""

import torch

from pruneaudit import Card, FilterScore, Hooks, PruningTask, PublishedRecipe, RetrainingTask
from pruneaudit.pruning.layers import PrunableLayer
from pruneaudit.pruning.orthogonality import convolution_penalty


class L1OrthConv(FilterScore):
    """Lowest L1 norms go; retraining then pulls to orthogonal convolutions. Wang et al., CVPR 2020, as in TPP, Table 1.

    The loss of every step of retraining is CE + ``weight`` · Σ ‖Conv(K, K) - I₀‖_F over all convolutions but the first:
    the kernel K convolved with itself, with the layer's stride S and padding ⌊(k - 1) / S⌋ · S, must be I in the centre
    and zero elsewhere. Of 1×1 convolutions and linear layers ‖W Wᵀ - I‖_F (of tall ones WᵀW) counts instead.

    Deviation: Wang et al. square the norm. It is not squared in TPP's baseline, which the weight of 0.1 belongs to.
    That baseline takes stride 2 and padding 1 for every 3×3 layer and so misses the centre; here both are right.

    Layers that lose filters together compete with the mean of their scores.
    """

    in_retraining = "0.1 x convolutional orthogonality in the loss of every step"
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
        training="none; convolutional orthogonality in the loss of retraining",
        source="Wang et al., CVPR 2020; TPP (Wang & Fu, ICLR 2023), Table 1",
    )

    def __init__(self, weight: float = 0.1) -> None:
        self.weight = weight

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Sum of absolute weights of each filter, ``[out_channels]``."""
        return layer.weight.abs().flatten(1).sum(dim=1)

    def retraining(self, task: RetrainingTask) -> Hooks:
        """The penalty in the loss of every step."""
        return Hooks(penalty=convolution_penalty(task.model, self.weight))
