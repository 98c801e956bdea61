"""Networks that users bring: built by their own code, by torchvision or by timm, always with fresh weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import nn

from pruneaudit.errors import AuditError, ConfigError, nearest, one_line, unknown
from pruneaudit.sources import Source
from pruneaudit.streams import isolated
from pruneaudit.workloads.networks import Network

#: Names under which code takes the number of classes and of input channels; the first that it has is given.
CLASSES = ("num_classes", "classes", "n_classes", "num_labels")
CHANNELS = ("in_chans", "in_channels", "channels", "input_channels", "num_channels")


def build(network: Network, channels: int, classes: int) -> nn.Module:
    """Build a network that is not built in.

    Args:
        network: What to build.
        channels: Input channels, given where the code has a parameter for them (:data:`CHANNELS`) and ``model_args``
            do not state it.
        classes: Output classes, likewise (:data:`CLASSES`).

    Returns:
        The network; what it draws from global generators is the same every time.

    Raises:
        ConfigError: There is no such code, or it raises, or it returns no network.
    """
    given = arguments(network)
    # Each with generators of its own: the second time, nothing is imported any more.
    with isolated(0):
        factory, names = _factory(network)
    for value, known in ((classes, CLASSES), (channels, CHANNELS)):
        wanted = [name for name in known if name in names]
        if wanted and not any(name in given for name in wanted):
            given[wanted[0]] = value
    try:
        with isolated(0):
            model = factory(**given)
    except AuditError:
        raise
    except Exception as error:
        raise ConfigError(f"model '{network.model}' cannot be built: {one_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model '{network.model}' returns {type(model).__name__}, expected a torch.nn.Module")
    if next(model.parameters(), None) is None:
        raise ConfigError(f"model '{network.model}' has no parameters; there is nothing to train")
    return model


def arguments(network: Network) -> dict[str, Any]:
    """Keyword arguments as TOML has them."""
    return {name: _thawed(value) for name, value in network.args}


def _thawed(value: Any) -> Any:
    return [_thawed(one) for one in value] if isinstance(value, tuple) else value


def _factory(network: Network) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """What builds a network, and the names of its parameters."""
    if network.library is not None:
        library, name = network.library
        return _LIBRARIES[library](name)
    code = network.code
    assert code is not None
    factory = _loaded(code, network.model)
    if isinstance(factory, nn.Module) or not callable(factory):
        what = type(factory).__name__
        raise ConfigError(f"model '{network.model}' is a {what}; name a class or function that builds the network")
    try:
        return factory, tuple(inspect.signature(factory).parameters)
    except (TypeError, ValueError):
        # Compiled code may not tell what it takes.
        return factory, ()


def _loaded(code: Source, spec: str) -> Any:
    try:
        return code.load()
    except AttributeError:
        found = Source(code.path, code.module, "").load()
        first = code.name.partition(".")[0]
        names = [name for name, value in vars(found).items() if callable(value) and not name.startswith("_")]
        if hasattr(found, first):
            raise ConfigError(f"model '{spec}': nothing is called '{code.name}' there") from None
        raise ConfigError(f"model '{spec}': {unknown('name', first, names)}") from None
    except AuditError:
        raise
    except Exception as error:
        raise ConfigError(f"model '{spec}' cannot be imported: {one_line(error)}") from error


def _torchvision(name: str) -> tuple[Callable[..., Any], tuple[str, ...]]:
    import torchvision

    # Detection, segmentation and video networks do not map a batch to logits.
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ConfigError(f"model 'torchvision:{name}': torchvision has no such classifier.{nearest(name, known)}")
    builder = torchvision.models.get_model_builder(name)
    # An Inception draws its weights for a minute, unless told whether to, and all are drawn anew here.
    own = {"init_weights": False} if "init_weights" in _names_below(builder) else {}
    return partial(builder, weights=None, **own), ("num_classes",)


def _names_below(builder: Callable[..., Any]) -> set[str]:
    """Parameters of the class that torchvision's function returns."""
    returned = inspect.signature(builder, eval_str=True).return_annotation
    return set(inspect.signature(returned).parameters)


def _timm(name: str) -> tuple[Callable[..., Any], tuple[str, ...]]:
    import timm

    known = timm.list_models()
    if name.partition(".")[0] not in known:
        raise ConfigError(f"model 'timm:{name}': timm has no such network.{nearest(name, known)}")
    return partial(timm.create_model, name, pretrained=False), ("num_classes", "in_chans")


_LIBRARIES: dict[str, Callable[[str], tuple[Callable[..., Any], tuple[str, ...]]]] = {
    "torchvision": _torchvision,
    "timm": _timm,
}


@lru_cache(maxsize=64)
def check_logits(
    network: Network,
    channels: int,
    classes: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    labels: tuple[int, ...] = (),
) -> None:
    """Refuse a network that does not map a batch to logits of the data's classes.

    Args:
        network: What is built.
        channels: Input channels of the data.
        classes: Classes of the data.
        shape: Of one input, ``[C, H, W]`` for images.
        dtype: Of an input.
        labels: Shape of the labels of one input: ``(T,)`` where each token has one.

    Raises:
        ConfigError: It cannot take such inputs, or returns something else.
    """
    model = build(network, channels, classes)
    who, batch = f"model '{network.model}'", torch.zeros(2, *shape, dtype=dtype)
    for training in (True, False):
        mode = "in training" if training else "in evaluation"
        try:
            with torch.no_grad(), isolated(0):
                logits = model.train(training)(batch)
        except Exception as error:
            raise ConfigError(
                f"{who} cannot take inputs of shape {['N', *shape]} {mode}: {one_line(error)}".replace("'N'", "N")
            ) from error
        if not isinstance(logits, torch.Tensor):
            raise ConfigError(f"{who} returns {type(logits).__name__} {mode}, expected one tensor of logits")
        expected = [2, classes, *labels]
        if list(logits.shape) != expected or not logits.is_floating_point():
            turned = "; Hugging Face's logits are [N, T, classes], so transpose(1, 2) them" if labels else ""
            raise ConfigError(
                f"{who} returns {list(logits.shape)} for two inputs {mode}, expected logits {expected}, one for each "
                "class of the data: give the code a parameter 'num_classes', or state the number in model_args"
                f"{turned}"
            )
