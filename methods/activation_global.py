"""Weight times the activation that it is applied to, one threshold for all layers."""

import torch

from pruneaudit import Card, PruningTask, WeightScore
from pruneaudit.pruning.layers import PrunableLayer
from pruneaudit.pruning.minibatch import input_activations


class ActivationGlobal(WeightScore):
    """Smallest |weight| · input activation of all layers first. Blalock et al., MLSys 2020, sec. 7.

    With a the activation of the weight's input channel on one training minibatch, the score is::

        |w| · mean over pixels |mean over images a|

    Deviation: biases keep all their values (ShrinkBench masks them, too).
    """

    scope = "global"
    card = Card(
        criterion="absolute weight x input activation",
        schedule="one-shot",
        base="trained",
        training="none; one minibatch without gradients",
        source="Blalock et al., MLSys 2020 (ShrinkBench)",
    )

    def prepare(self, task: PruningTask) -> None:
        """Activations of the trained network, without gradients."""
        ((images, _labels),) = task.batches(1)
        self._activations = input_activations(task.model, task.layers, images)

    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Absolute weight times activation of its input, in the shape of the weights."""
        return layer.weight.abs() * self._activations[layer.name]
