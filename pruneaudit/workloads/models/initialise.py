"""Fresh weights for a network of any shape."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Draw all parameters anew: Kaiming-normal (fan-in) weights, zero biases, BN scale 1 and shift 0.

    Drawn from one stream in module order and by the layer's own fan-in, so a pruned shape gets the initialisation that
    a small dense network would get (GReg's and VGG's rule in the authors' code).
    """
    for module in model.modules():
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            if module.affine:
                module.weight.fill_(1.0)
                module.bias.zero_()
        elif isinstance(module, nn.GroupNorm | nn.LayerNorm | nn.modules.instancenorm._InstanceNorm | nn.PReLU):
            # Scale 1 and shift 0, slope ¼: nothing is drawn.
            module.reset_parameters()
        elif any(True for _ in module.parameters(recurse=False)):
            raise TypeError(f"no initialisation rule for {type(module).__name__}")
