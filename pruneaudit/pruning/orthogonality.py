"""Orthogonal layers: penalties on what is not orthogonal, and recovery of isometry."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

Penalty = Callable[[int], torch.Tensor]


def kernel_orthogonality(weights: torch.Tensor) -> torch.Tensor:
    """Σ ‖W Wᵀ - I‖ over layers of one shape (Xie et al., CVPR 2017); of tall matrices WᵀW, which alone can be I.

    Args:
        weights: L layers of N filters, ``[L, N, ...]``.
    """
    rows = weights.flatten(2)
    if rows.shape[1] > rows.shape[2]:
        rows = rows.transpose(1, 2)
    gram = rows @ rows.transpose(1, 2)
    return torch.linalg.vector_norm(gram - torch.eye(gram.shape[1]).to(gram), dim=(1, 2)).sum()


def convolutional_orthogonality(weights: torch.Tensor, stride: Sequence[int]) -> torch.Tensor:
    """Σ ‖Conv(K, K) - I₀‖ over layers of one shape: the convolution, as a matrix, has orthonormal rows.

    Wang et al., CVPR 2020, sec. 3.2: the kernel is convolved with itself, with the layer's stride S and with padding
    ⌊(k - 1) / S⌋ · S. Every two placements of two filters that overlap are then met once, and the tap in the centre is
    the gram matrix: only there I₀ is I, elsewhere zero.

    Args:
        weights: L layers of N filters, ``[L, N, C, kH, kW]``.
        stride: S, vertical and horizontal.
    """
    layers, filters, inputs, *size = weights.shape
    padding = [(side - 1) // step * step for side, step in zip(size, stride, strict=True)]
    # By symmetry both factors have the same gradient: one of them, twice, saves a third of the work.
    maps = weights.detach().transpose(0, 1).reshape(filters, layers * inputs, *size)
    taps = F.conv2d(maps, weights.flatten(0, 1), stride=tuple(stride), padding=tuple(padding), groups=layers)
    height, width = taps.shape[2:]
    taps = taps.view(filters, layers, filters, height, width)
    target = torch.zeros_like(taps)
    target[:, :, :, height // 2, width // 2] = torch.eye(filters).to(taps)[:, None]
    norm = torch.linalg.vector_norm(taps - target, dim=(0, 2, 3, 4)).sum()
    return 2 * norm - norm.detach()


def isometric(weight: torch.Tensor, gain: float) -> torch.Tensor:
    """The orthonormal matrix of a weight's QR decomposition (diagonal of R positive), times a gain.

    Args:
        weight: ``[N, ...]``, read as a matrix ``[N, D]``; its rows (tall: its columns) become orthonormal.
        gain: What they are multiplied with.
    """
    matrix = weight.flatten(1)
    wide = matrix.shape[0] < matrix.shape[1]
    basis, triangle = torch.linalg.qr(matrix.T if wide else matrix)
    # Without the signs the decomposition is not unique. A zero on the diagonal must not remove a column.
    basis = basis * torch.where(triangle.diagonal() < 0, -1.0, 1.0).to(basis)
    return gain * (basis.T if wide else basis).reshape(weight.shape)


def kernel_penalty(model: nn.Module, weight: float) -> Penalty:
    """The loss to add at every step: ``weight`` times kernel orthogonality of all convolutions and linear layers."""
    groups = _of_one_shape([module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)])

    def penalty(step: int) -> torch.Tensor:
        return weight * torch.stack([kernel_orthogonality(_stacked(group)) for group in groups]).sum()

    return penalty


def convolution_penalty(model: nn.Module, weight: float) -> Penalty:
    """The loss to add at every step: ``weight`` times convolutional orthogonality.

    Of all convolutions but the first; of 1×1 ones and linear layers it is kernel orthogonality.
    """
    modules = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    first = next(module for module in modules if isinstance(module, nn.Conv2d))
    groups = _of_one_shape([module for module in modules if module is not first])

    def of(group: list[nn.Module]) -> torch.Tensor:
        module = group[0]
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
            return convolutional_orthogonality(_stacked(group), module.stride)
        return kernel_orthogonality(_stacked(group))

    def penalty(step: int) -> torch.Tensor:
        return weight * torch.stack([of(group) for group in groups]).sum()

    return penalty


def _of_one_shape(modules: list[nn.Module]) -> list[list[nn.Module]]:
    """Layers grouped by shape of the weights and stride: each group is one batch of a few operations."""
    groups: dict[object, list[nn.Module]] = defaultdict(list)
    for module in modules:
        groups[tuple(module.get_parameter("weight").shape), getattr(module, "stride", None)].append(module)
    return list(groups.values())


def _stacked(group: list[nn.Module]) -> torch.Tensor:
    """Weights of layers of one shape, ``[L, N, ...]``."""
    return torch.stack([module.get_parameter("weight") for module in group])
