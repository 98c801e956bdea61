"""Hangs hooks on the network that silence filters, to be there when it is tested."""

import torch

from pruneaudit import FilterScore


class LeavesHooks(FilterScore):
    """L1, with hooks left behind that scale what the layers compute."""

    def score(self, layer, task):
        layer.module.register_forward_hook(lambda module, inputs, output: 2 * output)
        layer.module.register_forward_pre_hook(lambda module, inputs: (torch.relu(inputs[0]),))
        return layer.weight.abs().flatten(1).sum(dim=1)
