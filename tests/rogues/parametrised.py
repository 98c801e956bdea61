"""Leaves a mask on the weights instead of removing filters."""

import torch
from torch import nn
from torch.nn.utils import parametrize

from pruneaudit import FilterScore


class Mask(nn.Module):
    def forward(self, weight):
        return weight * torch.linspace(0, 1, len(weight)).view(-1, 1, 1, 1)


class Parametrised(FilterScore):
    """L1 of weights that it parametrised with a mask."""

    def score(self, layer, task):
        parametrize.register_parametrization(layer.module, "weight", Mask())
        return layer.weight.abs().flatten(1).sum(dim=1)
