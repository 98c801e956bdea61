"""L1-norm filter pruning, then recovery of isometry."""

import torch

from pruneaudit import Card, FilterScore, Kept, PruningTask, PublishedRecipe
from pruneaudit.pruning.layers import PrunableLayer
from pruneaudit.pruning.orthogonality import isometric


class L1OrthP(FilterScore):
    """Lowest L1 norms go, then what is left is made orthogonal. Baseline "OrthP" of TPP (Wang & Fu, ICLR 2023).

    Every convolution and linear layer of the pruned network, as a matrix of filters times inputs, is replaced by the
    orthonormal factor of its QR decomposition times the gain of ReLU, √2. Biases and normalisations stay. After Wang
    et al., "Dynamical isometry: the missing ingredient for neural network pruning" (2021).

    Layers that lose filters together compete with the mean of their scores.
    """

    rewrites = True
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
        training="none; weights orthogonalised",
        source="TPP (Wang & Fu, ICLR 2023), baseline OrthP",
    )

    def __init__(self, gain: float = 2**0.5) -> None:
        self.gain = gain

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Sum of absolute weights of each filter, ``[out_channels]``."""
        return layer.weight.abs().flatten(1).sum(dim=1)

    def prune(self, task: PruningTask) -> Kept:
        """Choose by L1 norm, then orthogonalise kept filters times kept inputs."""
        kept = super().prune(task)
        inputs_left = task.inputs_left(kept)
        with torch.no_grad():
            for name, module in task.model.named_modules():
                if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                    weight = module.weight
                    rows = torch.tensor(kept.get(name, range(weight.shape[0])))[:, None]
                    columns = inputs_left.get(module, torch.arange(weight.shape[1]))
                    weight[rows, columns] = isometric(weight[rows, columns], self.gain)
        return kept
