"""Architectures by name, as the pruning literature uses them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from pruneaudit.errors import ConfigError, one_line, unknown
from pruneaudit.workloads.models import brought, described
from pruneaudit.workloads.models.convnet import ConvNet4
from pruneaudit.workloads.models.imagenet import imagenet_resnet
from pruneaudit.workloads.models.lenet import LeNet5
from pruneaudit.workloads.models.mlp import MLP
from pruneaudit.workloads.models.resnet import CifarResNet
from pruneaudit.workloads.models.transformer import Llama, VisionTransformer
from pruneaudit.workloads.models.vgg import CifarVGG
from pruneaudit.workloads.networks import Network

MODELS: dict[str, Callable[..., nn.Module]] = {
    "convnet4": ConvNet4,
    "lenet5": LeNet5,
    "llama": Llama,
    # Feng et al. 2024 (arXiv 2412.00143): small enough to try every set of filters; 5,500 parameters, 448,700 MACs.
    "lenet5-mini": partial(LeNet5, widths=(10, 10, 10, 10)),
    "mlp7": MLP,
    "resnet20": partial(CifarResNet, 20),
    "resnet32": partial(CifarResNet, 32),
    "resnet34": partial(imagenet_resnet, 34),
    "resnet50": partial(imagenet_resnet, 50),
    "resnet56": partial(CifarResNet, 56),
    "resnet110": partial(CifarResNet, 110),
    "vgg16": partial(CifarVGG, 16),
    "vgg16-li": partial(CifarVGG, 16, hidden=512),
    "vgg19": partial(CifarVGG, 19),
    "vit": VisionTransformer,
}


def build(network: Network | str, channels: int, classes: int) -> nn.Module:
    """Build an architecture.

    Args:
        network: What to build, or a key of :data:`MODELS`. Code that users bring gets ``channels`` and ``classes``
            under the names that it has for them, see :mod:`~.brought`. What a ``config.json`` describes has no weights
            yet, see :mod:`~.described`.
        channels: Input channels.
        classes: Output classes.

    Raises:
        ConfigError: No such architecture, or it cannot be built.
    """
    chosen = Network(model=network) if isinstance(network, str) else network
    if chosen.described is not None:
        return described.build(chosen, classes)
    if chosen.library is not None or chosen.code is not None:
        return brought.build(chosen, channels, classes)
    if chosen.model not in MODELS:
        raise unknown("model", chosen.model, MODELS)
    try:
        return MODELS[chosen.model](channels=channels, classes=classes, **brought.arguments(chosen))
    except TypeError as error:
        raise ConfigError(f"model '{chosen.model}' cannot be built with these model_args: {one_line(error)}") from error
