"""TPP: trainability-preserving pruning."""

from collections import defaultdict

import torch
from torch import nn

from pruneaudit import Budget, Card, Kept, PruningTask, PublishedRecipe, TrainedMethod
from pruneaudit.config import Workload
from pruneaudit.pruning.growing import GrowingPenalty
from pruneaudit.pruning.layers import PrunableLayer
from pruneaudit.training.loop import Hooks


class TPP(TrainedMethod):
    """Decorrelates the filters that will go from those that stay, then removes them. Wang & Fu, ICLR 2023, sec. 3.

    The filters to remove (set P, lowest L1 norm) are chosen before any training and stay fixed. With G = W Wᵀ of a
    layer of N filters and M = 1 wherever row or column is in P, the loss of a step is::

        CE + gram · λ(t) · Σ_layers ‖G ⊙ M‖² / N²

    and λ(t)·θ is added to the gradients of the weights of P and of the scale and shift that normalise them. λ grows to
    ``ceiling``, then holds; while it holds, P is forced to zero layer by layer (the released code's zero-out: layer j
    of the network from step (j + 1) / 100 of the holding part on).

    Deviation: tables of the paper were made with code that had no zero-out yet and might stop growing early. On other
    workloads than the paper's the schedule is scaled to the workload's pruning budget.

    Of layers that lose filters together the first one decides; what is regularised and silenced are the filters of all
    of them.
    """

    card = Card(
        criterion="L1 norm",
        schedule="one-shot",
        base="trained",
        training="growing penalty on the filters that will go and on their correlation with the others",
        source="Wang & Fu, ICLR 2023",
    )
    published = PublishedRecipe(
        workload="resnet56-cifar10",
        epochs=120,
        lr="0:1e-2,60:1e-3,90:1e-4",
        source="TPP, Table 1, retraining LR 1e-2: 120 epochs, weight decay 5e-4, batch 128",
    )

    def __init__(self, gram: float = 1000.0, ceiling: float = 1.0, hold: float = 1 / 11, zero_out: bool = True) -> None:
        self.gram = gram
        self.ceiling = ceiling
        self.hold = hold
        self.zero_out = zero_out

    def budget(self, workload: Workload) -> Budget:
        """The workload's pruning budget: on CIFAR the paper's 100,000 growing and 10,000 holding steps."""
        return Budget(steps=workload.prune.steps, lr=workload.prune.lr)

    def prune(self, task: PruningTask) -> Kept:
        """Choose by L1 norm, regularise, remove."""
        schedule = GrowingPenalty(task.steps, self.hold, self.ceiling)
        kept = {
            layer.name: task.keep_highest(layer, layer.weight.detach().abs().flatten(1).sum(dim=1))
            for layer in task.layers
        }
        groups = _same_shape(task.layers, kept)
        positions = _positions(task.model)
        parameters, masks, zero_from = [], [], []
        for layer in task.layers:
            start = schedule.growing + (positions[layer.name] + 1) * (task.steps - schedule.growing) // 100
            # Deep networks and very short stages: silent after the last step at the latest.
            start = min(start, task.steps - 1)
            for parameter in _channel_parameters(layer):
                mask = _removed_mask(parameter, kept[layer.name])
                parameters.append(parameter)
                masks.append(mask.view(-1, *[1] * (parameter.dim() - 1)))
                zero_from.append(start)

        def decorrelate(step: int) -> torch.Tensor | None:
            strength = schedule.value(step)
            if not strength:
                return None
            return self.gram * strength * sum(gram_penalty(layers, mask) for layers, mask in groups)

        def shrink(step: int) -> None:
            strength = schedule.value(step)
            if strength:
                with torch.no_grad():
                    removed = torch._foreach_mul(parameters, masks)
                    torch._foreach_add_([parameter.grad for parameter in parameters], removed, alpha=strength)

        def silence(step: int) -> None:
            due = [index for index, start in enumerate(zero_from) if step >= start]
            if due:
                with torch.no_grad():
                    stay = torch._foreach_mul([parameters[index] for index in due], [1 - masks[index] for index in due])
                    torch._foreach_copy_([parameters[index] for index in due], stay)

        task.train(hooks=Hooks(decorrelate, shrink, silence if self.zero_out else None))
        return kept


def gram_penalty(layers: list[PrunableLayer], mask: torch.Tensor) -> torch.Tensor:
    """Σ ‖G ⊙ M‖² / N² over layers of one shape, in a few batched operations.

    Args:
        layers: L layers whose weights all have the same shape, N filters of D weights.
        mask: M, ``[L, N, N]``: 1 wherever row or column goes.
    """
    weights = torch.stack([layer.weight.flatten(1) for layer in layers])
    gram = weights @ weights.transpose(1, 2)
    return (gram * mask).square().sum() / weights.shape[1] ** 2


def _same_shape(layers: tuple[PrunableLayer, ...], kept: Kept) -> list[tuple[list[PrunableLayer], torch.Tensor]]:
    """Layers grouped by weight shape, each group with its stacked masks M = 1 - k kᵀ."""
    groups: dict[tuple[int, ...], list[PrunableLayer]] = defaultdict(list)
    for layer in layers:
        groups[tuple(layer.weight.shape)].append(layer)
    result = []
    for members in groups.values():
        stays = torch.stack([1 - _removed_mask(layer.weight, kept[layer.name]) for layer in members])
        result.append((members, 1 - stays[:, :, None] * stays[:, None, :]))
    return result


def _removed_mask(parameter: torch.Tensor, kept: list[int]) -> torch.Tensor:
    """1 for the filters that go, ``[out_channels]``."""
    mask = torch.ones(parameter.shape[0], dtype=parameter.dtype, device=parameter.device)
    mask[kept] = 0
    return mask


def _channel_parameters(layer: PrunableLayer) -> list[nn.Parameter]:
    """Everything that belongs to a filter: weight, bias, and scale and shift of its normalisation."""
    norm = layer.norm
    candidates = [layer.weight, layer.bias, *((norm.weight, norm.bias) if norm is not None else ())]
    return [parameter for parameter in candidates if parameter is not None]


def _positions(model: nn.Module) -> dict[str, int]:
    """Number of each convolution or linear layer in the network, 0-based."""
    found = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return {name: position for position, name in enumerate(found)}
