"""Optimisers of ``torch.optim`` by name: what a recipe may ask for, and how it is made.

Any of them that makes a step from dense gradients alone can be named, in any case (``adamw``, ``AdamW``). What its
options mean, and their defaults, are torch's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from pruneaudit.errors import ConfigError, nearest, one_line, unknown
from pruneaudit.workloads.recipes import Optimiser, Recipe

#: How torch computes a step, which is the harness's to say, and the rate, which is the schedule's.
_OURS = ("params", "lr", "foreach", "fused", "capturable", "differentiable")
#: Optimisers with one fused kernel on CPU and CUDA.
_FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)

CLASSES: dict[str, type[Optimizer]] = {
    name.lower(): value
    for name, value in vars(torch.optim).items()
    if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer
}

# As torchvision's references leave them out of weight decay, and RMSNorm, which came later.
_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
    nn.RMSNorm,
)


def check(recipe: Recipe) -> None:
    """Refuse an optimiser that cannot be made as a recipe states it, or that cannot train a network.

    Raises:
        ConfigError: One line: the key below ``optimiser`` and what was expected.
    """
    name, options = recipe.optimiser.name, dict(recipe.optimiser.options)
    if name not in CLASSES:
        raise ConfigError(f"name: {unknown('optimiser', name, CLASSES)}")
    cls: Any = CLASSES[name]
    closure = inspect.signature(cls.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ConfigError(f"name: {cls.__name__} computes the loss anew within a step (a closure); choose another one")
    if cls is torch.optim.SparseAdam:
        raise ConfigError(f"name: {cls.__name__} takes sparse gradients only, which networks here have none of")
    known = [key for key in _parameters(cls) if key not in _OURS]
    for key in options:
        if key in _keys_of_recipe(name):
            raise ConfigError(f"{key}: is a key of the recipe itself, beside its optimiser")
        if key in _OURS:
            why = "the rate is 'lr' of each stage" if key == "lr" else "the harness says how steps are computed"
            raise ConfigError(f"{key}: cannot be given: {why}")
        if key not in known:
            hint = nearest(key, [*known, *Recipe.model_fields])
            raise ConfigError(f"{key}: {cls.__name__} has no such option.{hint} Known: {_list(known)}.")
    if recipe.weight_decay and "weight_decay" not in known:
        raise ConfigError(f"weight_decay: {cls.__name__} has none; leave it out")
    try:
        cls([nn.Parameter(torch.ones(2, 2))], lr=1e-3, **_settings(recipe))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{_list(options) or 'name'}: {cls.__name__} refuses it: {one_line(error)}") from None


def make(recipe: Recipe, model: nn.Module, rate: float) -> Optimizer:
    """The optimiser of a recipe over all parameters of a network.

    Parameters without weight decay are a second group. All else of them is the same.

    Args:
        recipe: What states it.
        model: The network, on its device.
        rate: Learning rate until the first step.

    Raises:
        ConfigError: There is no such optimiser, it does not take this network, or a pattern of ``no_decay`` names none
            of its parameters.
    """
    if recipe.optimiser != Optimiser():
        try:
            check(recipe)
        except ConfigError as error:
            raise ConfigError(f"optimiser.{error}") from None
    cls: Any = CLASSES[recipe.optimiser.name]
    kind = next(model.parameters()).device.type
    how = {"fused": kind in ("cpu", "cuda")} if cls in _FUSED else {}
    free = undecayed(model, recipe.no_decay)
    parameters: Any = model.parameters()
    if free:
        decayed = [parameter for name, parameter in model.named_parameters() if name not in free]
        without = [parameter for name, parameter in model.named_parameters() if name in free]
        parameters = [{"params": decayed}, {"params": without, "weight_decay": 0.0}]
    try:
        made: Optimizer = cls(parameters, lr=rate, **_settings(recipe), **how)
    except (TypeError, ValueError, RuntimeError) as error:
        name = recipe.optimiser.name
        raise ConfigError(f"optimiser '{name}' does not take this network: {one_line(error)}") from None
    return made


def undecayed(model: nn.Module, patterns: Iterable[str]) -> set[str]:
    """Names of the parameters that patterns take out of weight decay.

    Args:
        model: The network.
        patterns: ``bias`` (of any layer), ``norm`` (all parameters of normalisations), or shell patterns of names.

    Raises:
        ConfigError: A pattern of names fits none.
    """
    names = [name for name, _ in model.named_parameters()]
    norms = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, _NORMS)
        for name, _ in module.named_parameters(recurse=False)
    }
    found: set[str] = set()
    for pattern in patterns:
        if pattern == "norm":
            found |= norms
        elif pattern == "bias":
            # Attention of torch calls one of its biases `in_proj_bias`.
            found |= {name for name in names if name.rpartition(".")[2].endswith("bias")}
        else:
            fitting = {name for name in names if fnmatchcase(name, pattern)}
            if not fitting:
                raise ConfigError(f"no_decay: '{pattern}' fits no parameter of the network.{nearest(pattern, names)}")
            found |= fitting
    return found


def _settings(recipe: Recipe) -> dict[str, Any]:
    """Keyword arguments of the class, without rate and parameters."""
    known = _parameters(CLASSES[recipe.optimiser.name])
    own = {key: getattr(recipe, key) for key in _keys_of_recipe(recipe.optimiser.name) if key in known}
    return {**dict(recipe.optimiser.options), **own}


def _keys_of_recipe(name: str) -> tuple[str, ...]:
    """Options of an optimiser that are keys of a recipe; SGD's are since there was nothing else."""
    return ("weight_decay", "momentum", "nesterov") if name == "sgd" else ("weight_decay",)


def _parameters(cls: type[Optimizer]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(cls).parameters


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
