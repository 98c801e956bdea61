"""Random weights, as many in each layer as magnitude pruning removes: what the choice within layers is worth."""

import torch

from pruneaudit import Card, Kept, Method, PruningTask


class MatchedRandomWeight(Method):
    """Random weights, as many per layer as one magnitude threshold keeps. Blalock et al., MLSys 2020, appendix B.

    The control with the method's own layerwise proportions: whatever ``magnitude-global`` is better by comes from which
    weights it keeps within layers, not from how many it keeps in each.
    """

    granularity = "weight"
    scope = "global"
    card = Card(
        criterion="none: uniform draws, counts of global magnitude",
        schedule="one-shot",
        base="trained",
        training="none",
        source="Blalock et al., MLSys 2020, appendix B",
    )

    def prune(self, task: PruningTask) -> Kept:
        """Shuffle the mask of each layer, from the layer's own stream."""
        masks = task.keep({layer.name: layer.weight.detach().abs() for layer in task.layers}, self.scope)
        return {name: _shuffled(mask, task.generator(name)) for name, mask in masks.items()}


def _shuffled(mask: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A mask of the same shape with as many weights left, any of them."""
    return mask.flatten()[torch.randperm(mask.numel(), generator=generator)].view_as(mask)
