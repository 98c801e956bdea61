"""MACs and parameters. One counter, one unit: multiply-accumulates of convolutions and linear layers, batch 1."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn

#: A training step costs a forward pass and twice as much again for the backward pass.
TRAINING_PASSES = 3


def macs(model: nn.Module, example: torch.Tensor) -> int:
    """MACs of one forward pass of one image, counted by fvcore.

    Only convolutions and linear layers count (the convention of Wang et al. and GReg): BN, ReLU and pooling do not.

    Args:
        model: The network; not changed.
        example: One input, ``[1, C, H, W]``.
    """
    with warnings.catch_warnings():
        # fvcore traces with torch.jit, which newer torch calls deprecated: nothing a user could act on.
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis

        parameter = next(model.parameters())
        network = copy.deepcopy(model).eval()
        analysis = FlopCountAnalysis(network, example.to(parameter))
        analysis.unsupported_ops_warnings(False)
        analysis.uncalled_modules_warnings(False)
        by_operator = analysis.by_operator()
    return int(by_operator.get("conv", 0) + by_operator.get("linear", 0))


def macs_by_torch(model: nn.Module, example: torch.Tensor) -> int:
    """MACs of one forward pass of one image, counted by torch's own counter: the check on :func:`macs`.

    It counts what is executed (two operations for each MAC) instead of what is traced.
    """
    from torch.utils.flop_counter import FlopCounterMode

    network = copy.deepcopy(model).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(example.to(next(network.parameters())))
    return counter.get_total_flops() // 2


def parameters(model: nn.Module) -> int:
    """Number of parameters, BN scale and shift included (the convention of the published sparsities)."""
    return sum(parameter.numel() for parameter in model.parameters())
