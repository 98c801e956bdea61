"""What one minibatch says about single weights: their gradients, and what arrives at their inputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from pruneaudit.pruning.layers import PrunableLayer


def weight_gradients(
    model: nn.Module, layers: Sequence[PrunableLayer], images: torch.Tensor, labels: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Gradient of the mean cross-entropy with respect to each layer's weights; ``.grad`` stays as it was.

    Args:
        model: The network, in the mode that it is to be scored in.
        layers: Layers whose weights count.
        images: ``[B, C, H, W]``.
        labels: ``[B]``.

    Returns:
        By layer, in the shape of its weights.
    """
    loss = F.cross_entropy(model(images), labels)
    gradients = torch.autograd.grad(loss, [layer.weight for layer in layers])
    return {layer.name: gradient for layer, gradient in zip(layers, gradients, strict=True)}


@torch.no_grad()
def input_activations(
    model: nn.Module, layers: Iterable[PrunableLayer], images: torch.Tensor
) -> dict[str, torch.Tensor]:
    """How much arrives at each input of each layer: the mean over pixels of |mean over images of the activation|.

    Args:
        model: The network, in the mode that it is to be scored in.
        layers: Layers whose inputs count.
        images: ``[B, C, H, W]``.

    Returns:
        By layer, shaped to multiply its weights: ``[out_channels, in_channels / groups, 1, 1]``, or of a linear layer
        ``[1, in_features]``.
    """
    found: dict[str, torch.Tensor] = {}

    def listen(layer: PrunableLayer) -> torch.utils.hooks.RemovableHandle:
        def note(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            mean = inputs[0].mean(dim=0).abs()
            if not isinstance(layer.module, nn.Conv2d):
                # Tokens are to a linear layer what pixels are to a convolution.
                found[layer.name] = (mean if mean.dim() == 1 else mean.flatten(0, -2).mean(dim=0)).unsqueeze(0)
                return
            groups = layer.module.groups
            # A filter of a grouped convolution sees the inputs of its group only.
            seen = mean.mean(dim=(1, 2)).view(groups, -1).repeat_interleave(layer.channels // groups, dim=0)
            found[layer.name] = seen[:, :, None, None]

        return layer.module.register_forward_pre_hook(note)

    handles = [listen(layer) for layer in layers]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found
