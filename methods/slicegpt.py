"""SliceGPT with one rotation: the residual stream on its principal axes, and the least of them go."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pruneaudit import Card, Kept, Method, PruningTask, shapes
from pruneaudit.config import Workload
from pruneaudit.errors import MethodError
from pruneaudit.pruning.units import Unit


class SliceGPT(Method):
    """Rotates the residual width to its principal axes and removes the least. Ashkboos et al., ICLR 2024, sec. 3.

    RMSNorm(x Q) = RMSNorm(x) Q for an orthogonal Q: with the weights g of each norm multiplied into what reads it,
    W diag(g) Q in all that reads the stream, Qᵀ W in all that writes it and E Q of the embedding are the same network
    (theorem 1). Q has the eigenvectors of Σ xᵀx, over what all norms give of all tokens of the calibration examples
    before their weights, and a channel's score is its eigenvalue. What is left is divided by the dense width's mean of
    squares, as in the authors' code.

    Deviation: one Q for the whole network. In the paper each block has its own, and what adds the stream to a block's
    outputs multiplies with a further matrix: the network has other layers than the dense one, and more weights than its
    width says. Here nothing is added, so that it stands beside whatever else removes this width. The stream is never
    rotated anew behind what was removed, and the layer before the classifier loses channels, too.
    """

    rewrites = True
    card = Card(
        criterion="variance along the principal axes of the residual stream, to which it is rotated",
        schedule="one-shot",
        base="trained",
        training="none; an eigendecomposition over examples",
        source="Ashkboos et al., ICLR 2024 (arXiv 2401.15024)",
    )

    def __init__(self, batches: int = 4) -> None:
        self.batches = batches

    def skip(self, workload: Workload) -> str | None:
        """Only what passes normalisations alone may be rotated."""
        return shapes.not_normalised(workload)

    def prune(self, task: PruningTask) -> Kept:
        """Rotate, and keep the axes along which most happens."""
        batches = [inputs for inputs, _ in task.batches(self.batches)]
        scores = {}
        with torch.no_grad():
            before = task.model(batches[0])
            for unit in task.prunable:
                moments, norm_of = _listened(task.model, unit, batches)
                scores[unit.name], axes = _principal(moments)
                _rotate(task.model, unit, norm_of, axes)
            apart = float((task.model(batches[0]) - before).abs().max() / before.abs().max())
        # What else reads a norm, or the stream, is not found by looking at layers.
        if not apart <= torch.finfo(before.dtype).eps ** 0.5:
            raise MethodError(f"rotating the residual stream changes what the network computes (by {apart:.1e})")
        task.scored()
        return task.keep(scores, self.scope)


def _listened(model: nn.Module, unit: Unit, batches: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, nn.RMSNorm]]:
    """Σ xᵀx ``[d, d]`` of what the norms give before their weights, and the norm that each layer reads, by name."""
    total: Any = 0
    given: dict[nn.RMSNorm, torch.Tensor] = {}
    norm_of: dict[str, nn.RMSNorm] = {}

    def hear(norm: Any, inputs: Any, outputs: torch.Tensor) -> None:
        nonlocal total
        rows = F.rms_norm(inputs[0].double().flatten(0, -2), norm.normalized_shape, None, norm.eps)
        total = total + rows.T @ rows
        given[norm] = outputs

    def match(name: str) -> Any:
        def note(_: Any, inputs: Any) -> None:
            for norm, outputs in given.items():
                if inputs[0] is outputs:
                    norm_of[name] = norm

        return note

    handles = []
    for member in unit.members:
        module = model.get_submodule(member.module)
        if isinstance(module, nn.RMSNorm):
            handles.append(module.register_forward_hook(hear))
        elif member.side == "inputs":
            handles.append(module.register_forward_pre_hook(match(member.module)))
    for inputs in batches:
        model(inputs)
    for handle in handles:
        handle.remove()
    return total, norm_of


def _principal(moments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues ``[d]``, the greatest first, and eigenvectors ``[d, d]``, whose largest part is positive."""
    values, axes = torch.linalg.eigh(moments)
    values, axes = values.flip(0), axes.flip(1)
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    return values, axes * largest.sign()


def _rotate(model: nn.Module, unit: Unit, norm_of: dict[str, nn.RMSNorm], axes: torch.Tensor) -> None:
    """Turn all that writes and all that reads the stream; norms have weights of 1 afterwards."""
    for member in unit.members:
        module: Any = model.get_submodule(member.module)
        if member.side == "inputs":
            if member.module not in norm_of:
                raise MethodError(f"layer '{member.module}' reads the residual stream, and not what a norm gives of it")
            module.weight.copy_(module.weight.double() * norm_of[member.module].weight.double() @ axes)
        elif isinstance(module, nn.Embedding):
            module.weight.copy_(module.weight.double() @ axes)
        elif isinstance(module, nn.Linear):
            module.weight.copy_(axes.T @ module.weight.double())
            if module.bias is not None:
                module.bias.copy_(axes.T @ module.bias.double())
        elif not isinstance(module, nn.RMSNorm):
            raise MethodError(f"{type(module).__name__} '{member.module}' takes the residual stream channel by channel")
    for norm in set(norm_of.values()):
        norm.weight.fill_(1)
