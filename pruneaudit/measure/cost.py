"""MACs and parameters. One counter, one unit: multiply-accumulates of convolutions and linear layers, batch 1."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping

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
    return sum(macs_by_layer(model, example).values())


def macs_by_layer(model: nn.Module, example: torch.Tensor) -> dict[str, int]:
    """MACs of one forward pass of one image in each convolution and linear layer, by module name.

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
        counted = analysis.by_module_and_operator()
    return {
        name: int(counted[name].get("conv", 0) + counted[name].get("linear", 0))
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear)
    }


def macs_by_torch(model: nn.Module, example: torch.Tensor) -> int:
    """MACs of one forward pass of one image, counted by torch's own counter: the check on :func:`macs`.

    It counts what is executed (two operations for each MAC) instead of what is traced.
    """
    from torch.utils.flop_counter import FlopCounterMode

    network = copy.deepcopy(model).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(example.to(next(network.parameters())))
    return counter.get_total_flops() // 2


def macs_by_torch_of_weights(model: nn.Module, example: torch.Tensor, stay: Mapping[str, int]) -> int:
    """MACs with weights that are not zero, counted by torch: what :func:`macs_by_torch` says of each layer, thinned.

    Args:
        model: The network; not changed.
        example: One input, ``[1, C, H, W]``.
        stay: Weights that stay, by layer; all stay in the others.
    """
    from torch.utils.flop_counter import FlopCounterMode

    network = copy.deepcopy(model).eval()
    modules = dict(network.named_modules())
    with torch.no_grad(), FlopCounterMode(display=False, depth=999) as counter:
        network(example.to(next(network.parameters())))
    root = type(network).__name__
    counts = {name.removeprefix(f"{root}."): sum(found.values()) // 2 for name, found in counter.flop_counts.items()}
    spared = sum(
        counts[name] // modules[name].weight.numel() * (modules[name].weight.numel() - count)
        for name, count in stay.items()
    )
    return counter.get_total_flops() // 2 - spared


def parameters(model: nn.Module) -> int:
    """Number of parameters, BN scale and shift included (the convention of the published sparsities)."""
    return sum(parameter.numel() for parameter in model.parameters())
