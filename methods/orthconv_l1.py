"""Training with convolutional orthogonality, then L1-norm filter pruning."""

from pruneaudit import Budget, Card, Hooks, Kept, PruningTask, PublishedRecipe, TrainedMethod
from pruneaudit.config import Workload
from pruneaudit.pruning.orthogonality import convolution_penalty


class OrthConvL1(TrainedMethod):
    """Pulls to orthogonal convolutions, then lowest L1 norms go. Wang et al., CVPR 2020, as in TPP, Table 1.

    The loss of every step is CE + ``weight`` · Σ ‖Conv(K, K) - I₀‖_F over all convolutions but the first: the kernel K
    convolved with itself, with the layer's stride S and padding ⌊(k - 1) / S⌋ · S, must be I in the centre and zero
    elsewhere. Of 1×1 convolutions and linear layers ‖W Wᵀ - I‖_F (of tall ones WᵀW) counts instead. Then one-shot L1,
    and retraining without the penalty.

    Deviation: Wang et al. square the norm. It is not squared in TPP's baseline, which the weight of 0.1 belongs to.
    That baseline takes stride 2 and padding 1 for every 3×3 layer and so misses the centre; here both are right. On
    other workloads than TPP's the 50,000 steps are scaled to the workload's pruning budget.

    Layers that lose filters together compete with the mean of their scores.
    """

    published = PublishedRecipe(
        workload="resnet56-cifar10",
        epochs=120,
        lr="0:1e-2,60:1e-3,90:1e-4",
        source="TPP, Table 1, retraining LR 1e-2: 120 epochs, weight decay 5e-4, batch 128",
    )
    card = Card(
        criterion="L1 norm",
        schedule="one-shot after regularised training",
        base="trained",
        training="convolutional orthogonality in the loss, 5/11 of the workload's pruning budget",
        source="Wang et al., CVPR 2020; TPP (Wang & Fu, ICLR 2023), Table 1",
    )

    def __init__(self, weight: float = 0.1, share: float = 5 / 11) -> None:
        self.weight = weight
        self.share = share

    def budget(self, workload: Workload) -> Budget:
        """A share of the workload's pruning budget: on CIFAR 50,000 steps, where TPP has 110,000."""
        return Budget(steps=max(1, round(self.share * (workload.prune.steps or 0))), lr=workload.prune.lr)

    def prune(self, task: PruningTask) -> Kept:
        """Regularise the dense network, then choose by L1 norm."""
        task.train(hooks=Hooks(penalty=convolution_penalty(task.model, self.weight)))
        return task.keep({layer.name: layer.weight.detach().abs().flatten(1).sum(dim=1) for layer in task.layers})
