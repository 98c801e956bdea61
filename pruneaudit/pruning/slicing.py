"""What is left of a module that loses channels: the same operation with smaller tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from pruneaudit.errors import MethodError
from pruneaudit.pruning.attention import attention_of, lose_heads
from pruneaudit.pruning.graph import is_depthwise

Places = Sequence[int]


def channels_of(module: nn.Module, side: str) -> int:
    """Channels that a module writes (``outputs``) or reads (``inputs``)."""
    kind = "out" if side == "outputs" else "in"
    names = (f"{kind}_channels", f"{kind}_features", "num_features", "num_channels", "num_parameters", "embedding_dim")
    for name in names:
        found = getattr(module, name, None)
        if isinstance(found, int):
            return found
    if isinstance(module, nn.RMSNorm):
        return module.normalized_shape[-1]
    attention = attention_of(module)
    if attention is None:
        raise MethodError(f"{type(module).__name__} has no channels")
    # Rows of queries, keys and values where the module itself has their weights.
    return attention.channels * (1 if attention.writers else 3)


def keep_channels(module: nn.Module, outputs: Places | None, inputs: Places | None) -> None:
    """Let a module keep some of its channels only.

    Args:
        module: A convolution, linear layer, normalisation or attention; changed in place. Attention comes before its
            layers.
        outputs: Outputs that stay, sorted; None: all.
        inputs: Inputs that stay, sorted; None: all.

    Raises:
        MethodError: Groups of a convolution or normalisation would not be alike.
    """
    for kind, keep in _KINDS.items():
        if isinstance(module, kind):
            keep(module, outputs, inputs)
            return
    attention = attention_of(module)
    if attention is None:
        raise MethodError(f"{type(module).__name__} cannot lose channels")
    assert outputs is not None
    lose_heads(module, attention, outputs)


def _select(module: nn.Module, name: str, dim: int, places: Places) -> None:
    """Slices of a parameter or buffer that stay."""
    tensor = getattr(module, name)
    if tensor is None:
        return
    left = tensor.detach().index_select(dim, torch.as_tensor(places, device=tensor.device))
    if isinstance(tensor, nn.Parameter):
        left = nn.Parameter(left, requires_grad=tensor.requires_grad)
    setattr(module, name, left)


def _linear(module: nn.Linear, outputs: Places | None, inputs: Places | None) -> None:
    if outputs is not None:
        _select(module, "weight", 0, outputs)
        _select(module, "bias", 0, outputs)
        module.out_features = len(outputs)
    if inputs is not None:
        _select(module, "weight", 1, inputs)
        module.in_features = len(inputs)


def _convolution(module: nn.modules.conv._ConvNd, outputs: Places | None, inputs: Places | None) -> None:
    if outputs is not None:
        _select(module, "bias", 0, outputs)
    if is_depthwise(module) and module.in_channels == module.out_channels:
        left = outputs if outputs is not None else inputs
        assert left is not None
        _select(module, "weight", 0, left)
        module.in_channels = module.out_channels = module.groups = len(left)
        return
    if module.groups > 1:
        _grouped(module, outputs, inputs)
        return
    written, read = (1, 0) if module.transposed else (0, 1)
    if outputs is not None:
        _select(module, "weight", written, outputs)
        module.out_channels = len(outputs)
    if inputs is not None:
        _select(module, "weight", read, inputs)
        module.in_channels = len(inputs)


def _grouped(module: nn.modules.conv._ConvNd, outputs: Places | None, inputs: Places | None) -> None:
    """Each group keeps as many outputs and as many inputs."""
    rows = _by_group(outputs, module.out_channels, module.groups)
    columns = _by_group(inputs, module.in_channels, module.groups)
    if len({(len(row), len(column)) for row, column in zip(rows, columns, strict=True)}) > 1:
        raise MethodError(f"a convolution of {module.groups} groups would keep another number of channels in each")
    # A weight is [out, in / groups, ...], transposed [in, out / groups, ...].
    first, second = (columns, rows) if module.transposed else (rows, columns)
    blocks = module.weight.detach().chunk(module.groups)
    left = [
        block[torch.as_tensor(one)][:, torch.as_tensor(other)]
        for block, one, other in zip(blocks, first, second, strict=True)
    ]
    module.weight = nn.Parameter(torch.cat(left), requires_grad=module.weight.requires_grad)
    module.out_channels, module.in_channels = sum(map(len, rows)), sum(map(len, columns))


def _by_group(places: Places | None, channels: int, groups: int) -> list[list[int]]:
    """Places that stay in each group, counted from its start."""
    size = channels // groups
    found: list[list[int]] = [[] for _ in range(groups)]
    for place in range(channels) if places is None else places:
        found[place // size].append(place % size)
    return found


def _normalisation(module: Any, outputs: Places | None, inputs: Places | None) -> None:
    assert outputs is not None
    for name in ("weight", "bias", "running_mean", "running_var"):
        _select(module, name, 0, outputs)
    module.num_features = len(outputs)


def _group_normalisation(module: nn.GroupNorm, outputs: Places | None, inputs: Places | None) -> None:
    assert outputs is not None
    size = module.num_channels // module.num_groups
    left = [group for group in _by_group(outputs, module.num_channels, module.num_groups) if group]
    if any(len(group) != size for group in left):
        raise MethodError(f"a group of {size} channels would be normalised in parts")
    for name in ("weight", "bias"):
        _select(module, name, 0, outputs)
    module.num_channels, module.num_groups = len(outputs), len(left)


def _rms_normalisation(module: nn.RMSNorm, outputs: Places | None, inputs: Places | None) -> None:
    """Scaled, so that it gives what it gave where the others are zero: their squares are missing, not their number."""
    assert outputs is not None
    wider = module.normalized_shape[0] / len(outputs)
    _select(module, "weight", 0, outputs)
    with torch.no_grad():
        module.weight.mul_(wider**0.5)
    module.eps = wider * (torch.finfo(module.weight.dtype).eps if module.eps is None else module.eps)
    module.normalized_shape = (len(outputs),)


def _embedding(module: nn.Embedding, outputs: Places | None, inputs: Places | None) -> None:
    assert outputs is not None
    _select(module, "weight", 1, outputs)
    module.embedding_dim = len(outputs)


def _prelu(module: nn.PReLU, outputs: Places | None, inputs: Places | None) -> None:
    assert outputs is not None
    _select(module, "weight", 0, outputs)
    module.num_parameters = len(outputs)


_KINDS: dict[type[nn.Module], Callable[..., None]] = {
    nn.Linear: _linear,
    nn.modules.conv._ConvNd: _convolution,
    nn.modules.batchnorm._BatchNorm: _normalisation,
    nn.modules.instancenorm._InstanceNorm: _normalisation,
    nn.GroupNorm: _group_normalisation,
    nn.PReLU: _prelu,
    nn.RMSNorm: _rms_normalisation,
    nn.Embedding: _embedding,
}
