"""Fresh weights for a network of any shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from pruneaudit.errors import ConfigError, one_line
from pruneaudit.streams import isolated


@torch.no_grad()
def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Draw all parameters anew: Kaiming-normal (fan-in) weights, zero biases, BN scale 1 and shift 0.

    Drawn from one stream in module order and by the layer's own fan-in, so a pruned shape gets the initialisation that
    a small dense network would get (GReg's and VGG's rule in the authors' code).

    Other layers initialise themselves (``reset_parameters``, as all of torch's have it), seeded from the same stream.
    Parameters of modules that cannot, such as a class token, keep what building the network gave them, which is the
    same every time.

    Raises:
        ConfigError: A layer cannot initialise itself.
    """
    for name, module in model.named_modules():
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
            _reset(name, module, generator)


def _reset(name: str, module: nn.Module, generator: torch.Generator) -> None:
    """Let a layer initialise itself; torch's attention has its method under another name."""
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if reset is None:
        return
    try:
        with isolated(int(torch.randint(2**62, (), generator=generator))):
            reset()
    except Exception as error:
        raise ConfigError(
            f"layer '{name}' ({type(module).__name__}) cannot initialise itself: {one_line(error)}"
        ) from error


@contextmanager
def undrawn() -> Iterator[None]:
    """Networks that are built here have zeros where weights are drawn: for large ones, most of the time goes there."""
    with torch.no_grad(), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        draws = function in (torch.Tensor.normal_, torch.Tensor.uniform_)
        if draws or getattr(function, "__module__", "") == "torch.nn.init":
            return (args[0] if args else (kwargs or {})["tensor"]).zero_()
        return function(*args, **(kwargs or {}))
