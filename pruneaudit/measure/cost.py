"""MACs and parameters. One counter, one unit: multiply-accumulates of one input, of all that multiplies matrices.

These are convolutions, linear layers, recurrences and the two products of attention. fvcore and torch both miss the
latter where they are fused (``scaled_dot_product_attention`` on a CPU; a whole encoder layer where nothing asks for
gradients), and so agree on a number that is too small: ViT-B/16 has 17.56 G, they say 16.9 and 11.3. What else both
miss is in :mod:`.products`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pruneaudit.errors import ConfigError
from pruneaudit.measure import products
from pruneaudit.measure.skeleton import on_fakes, on_skeleton
from pruneaudit.measure.tracing import functions_in_sight

#: A training step costs a forward pass and twice as much again for the backward pass.
TRAINING_PASSES = 3
#: What fvcore calls the operators that multiply matrices as it counts them; of the others (normalisation), none counts.
_PRODUCTS = ("conv", "linear", "mm", "bmm", "addmm")


def macs(model: nn.Module, example: torch.Tensor) -> int:
    """MACs of one forward pass of one image, counted by fvcore.

    Only what multiplies matrices counts (the convention of Wang et al. and GReg): BN, ReLU and pooling do not.

    Args:
        model: The network; not changed.
        example: One input, ``[1, C, H, W]``.
    """
    return sum(macs_by_layer(model, example).values())


def macs_by_layer(model: nn.Module, example: torch.Tensor) -> dict[str, int]:
    """MACs of one forward pass of one image in each convolution and linear layer, by module name.

    Other modules are there where they multiply matrices themselves: those of attention, say.

    Args:
        model: The network; not changed.
        example: One input, ``[1, C, H, W]``.
    """
    return on_skeleton(model, example, _count_by_fvcore)


def _count_by_fvcore(network: nn.Module, inputs: torch.Tensor) -> dict[str, int]:
    with _one_by_one(), functions_in_sight(), warnings.catch_warnings():
        # fvcore traces with torch.jit, which newer torch calls deprecated: nothing a user could act on.
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(network, inputs)
        handles = products.handles()
        analysis.set_op_handle(**handles)
        analysis.unsupported_ops_warnings(False)
        analysis.uncalled_modules_warnings(False)
        counted = analysis.by_module_and_operator()
    # It leaves out whose they are.
    names = (*_PRODUCTS, *dict.fromkeys(name.partition("::")[2] for name in handles))
    products_of = {name: sum(int(counts.get(operator, 0)) for operator in names) for name, counts in counted.items()}
    found = {}
    for name, module in network.named_modules():
        # What a module counts holds what those in it do; one that several hold counts all in the first.
        inner = (f"{name}.{child}".lstrip(".") for child, _ in module.named_children())
        own = products_of[name] - sum(products_of[each] for each in inner if each in products_of)
        if own or isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            found[name] = own
    return found


@contextmanager
def _one_by_one() -> Iterator[None]:
    """Have attention computed by operators that a counter can tell apart, not by one that does it all."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # Whether a package is installed must not order what is multiplied.
        with torch.backends.opt_einsum.flags(enabled=False):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def macs_by_torch(model: nn.Module, example: torch.Tensor) -> int:
    """MACs of one forward pass of one image, counted by torch's own counter: the check on :func:`macs`.

    It counts what is executed (two operations for each MAC) instead of what is traced.
    """
    return _counted_by_torch(model, example)[""]


def macs_by_torch_of_weights(model: nn.Module, example: torch.Tensor, stay: Mapping[str, int]) -> int:
    """MACs with weights that are not zero, counted by torch: what :func:`macs_by_torch` says of each layer, thinned.

    Args:
        model: The network; not changed.
        example: One input, ``[1, C, H, W]``.
        stay: Weights that stay, by layer; all stay in the others.
    """
    counts = _counted_by_torch(model, example)
    sizes = {name: model.get_parameter(f"{name}.weight").numel() for name in stay}
    return counts[""] - sum(counts[name] // size * (size - stay[name]) for name, size in sizes.items())


def _counted_by_torch(model: nn.Module, example: torch.Tensor) -> dict[str, int]:
    """MACs of each module with all that is in it, by name, as torch counts them; of the network as ``""``."""
    ask = on_fakes if next(model.parameters()).is_meta else on_skeleton
    return ask(model, example, _count_by_torch)


def _count_by_torch(network: nn.Module, inputs: torch.Tensor) -> dict[str, int]:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    mode = FlopCounterMode(display=False, depth=999, custom_mapping=products.formulas())
    # It asks for the gradient of what a module is given, which a view of a parameter seems to have, and has not here.
    network.requires_grad_(False)
    # Of the kernels of attention only this one is made of products that are counted on every device.
    with torch.no_grad(), _one_by_one(), sdpa_kernel(SDPBackend.MATH), mode as counter, _Strangers(mode.flop_registry):
        network(inputs)
    root = type(network).__name__
    found = {name.removeprefix(f"{root}."): sum(each.values()) // 2 for name, each in counter.flop_counts.items()}
    return found | {"": counter.get_total_flops() // 2}


class _Strangers(TorchDispatchMode):
    """Refuses what may multiply matrices and no counter knows: it would cost nothing."""

    supports_higher_order_operators = True

    def __init__(self, formulas: Mapping[Any, Any]) -> None:
        super().__init__()
        self._formulas = formulas

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Asked by every mode; the default loads torch's compiler to answer.
        return False

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        named = named or {}
        if products.unknown(operator, tree_leaves((arguments, named)), self._formulas):
            name = operator.overloadpacket
            raise ConfigError(
                f"no counter knows what operator {name} multiplies, and without it every speedup is wrong: say it "
                f"where the operator comes from, by torch.utils.flop_counter.register_flop_formula(torch.ops.{name}), "
                "two for each multiply-accumulate, 0 for none"
            )
        return operator(*arguments, **named)


def parameters(model: nn.Module) -> int:
    """Number of parameters, BN scale and shift included (the convention of the published sparsities)."""
    return sum(parameter.numel() for parameter in model.parameters())
