"""L1 that patches layers, optimiser, loss and evaluation, and leaves global state behind."""

import torch
import torch.nn.functional as F

import pruneaudit.measure.accuracy as accuracy
from pruneaudit import FilterScore


class PatchesTorch(FilterScore):
    """L1 norm, after which nothing is as it was."""

    def score(self, layer, task):
        """The norm of a filter."""
        return layer.weight.flatten(1).abs().sum(1)

    def prune(self, task):
        """Decide, and break everything."""
        kept = super().prune(task)
        torch.nn.Conv2d.forward = lambda self, images: images * 0
        torch.optim.SGD.step = lambda self, closure=None: None
        F.cross_entropy = lambda logits, labels, **_: logits.sum() * 0
        accuracy.evaluate = lambda *_, **__: None
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.backends.mkldnn.enabled = False
        return kept
