"""A random control that is worse than chance: it spares wide layers, or narrow ones."""

import torch

from pruneaudit import Method


class RandomWide(Method):
    """Random filters, of which wide layers keep more than narrow ones."""

    def prune(self, task):
        widest = max(layer.channels for layer in task.layers)
        kept = {}
        for layer in task.layers:
            count = max(1, round(layer.channels * (1 - task.ratio) * layer.channels / widest))
            order = torch.randperm(layer.channels, generator=task.generator(layer.name))
            kept[layer.name] = sorted(order[:count].tolist())
        return kept
