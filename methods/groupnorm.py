"""Sparse learning of DepGraph: groups of weights that belong to one filter become small together."""

from collections import defaultdict

import torch
import torch_pruning
from torch import nn

from pruneaudit import Budget, Card, Kept, PruningTask, PublishedRecipe, TrainedMethod
from pruneaudit.config import Workload
from pruneaudit.pruning.layers import PrunableLayer
from pruneaudit.pruning.removal import loses_inputs
from pruneaudit.training.loop import Hooks


class GroupNorm(TrainedMethod):
    """Shrinks weak groups of coupled weights most, then removes the weakest. Fang et al., CVPR 2023 (DepGraph).

    The group of filter k: its weights, the scale of its normalisation, and the weights that read its output. With I_k
    the group's L2 norm, ``strength`` · γ_k · w is added to the gradient of every weight w of the group, where::

        γ_k = 2 ** (alpha · (max I - I_k) / (max I - min I)), over the filters of a layer

    Then one threshold for all layers decides over I², divided by the largest of its layer, as in the authors' CIFAR
    scripts. The gradients are those of torch-pruning's ``GroupNormPruner``, in a few batched operations.

    Deviation: the authors' code sets weight decay to zero meanwhile, trains for 100 epochs and removes filters in
    hundreds of small steps. Here weight decay is the workload's, the length its pruning budget, and removal one step.

    Layers that lose filters together are one group, with one strength and one score.
    """

    scope = "global"
    card = Card(
        criterion="L2 norm of the group of coupled weights",
        schedule="one-shot",
        base="trained",
        training="L2 penalty on groups, the stronger the weaker the group",
        source="Fang et al., CVPR 2023",
    )
    published = PublishedRecipe(
        workload="resnet56-cifar10",
        epochs=100,
        lr="0:1e-2,60:1e-3,80:1e-4",
        batch=128,
        weight_decay=5e-4,
        source="DepGraph, CIFAR settings of the authors' release: 100 epochs, learning rate 0.01",
    )

    def __init__(self, strength: float = 5e-4, alpha: float = 4.0) -> None:
        self.strength = strength
        self.alpha = alpha

    def budget(self, workload: Workload) -> Budget:
        """The workload's pruning budget."""
        return Budget(steps=workload.prune.steps, lr=workload.prune.lr)

    def prune(self, task: PruningTask) -> Kept:
        """Train with the penalty, remove the weakest groups."""
        batches = _alike(task.layers)

        def shrink(step: int) -> None:
            with torch.no_grad():
                for parts in batches:
                    strengths = group_strengths(parts, self.alpha)
                    for (parameters, dim, _place), found in zip(parts, strengths, strict=True):
                        shape = [1] * parameters[0].dim()
                        shape[dim] = -1
                        torch._foreach_addcmul_(
                            [parameter.grad for parameter in parameters],
                            parameters,
                            [row.view(shape) for row in found],
                            value=self.strength,
                        )

        task.train(hooks=Hooks(gradients=shrink))
        importance = torch_pruning.importance.GroupMagnitudeImportance(p=2, normalizer="max")
        return task.keep({layer.name: importance(layer.group) for layer in task.layers}, self.scope)


#: One kind of coupled weights in L layers: the parameters, all of one shape; the dimension along which their slices
#: belong to filters; and which slice belongs to which filter, 0 or 1, ``[N filters, slices]``.
Part = tuple[list[torch.Tensor], int, torch.Tensor]


def group_strengths(parts: list[Part], alpha: float) -> list[torch.Tensor]:
    """γ for every slice of every part, ``[L, slices]``; zero for slices that belong to no filter."""
    squares = torch.zeros(())
    for parameters, dim, place in parts:
        slices = torch.stack([parameter.transpose(0, dim) for parameter in parameters])
        slices = slices.reshape(len(parameters), place.shape[1], -1)
        squares = torch.linalg.vector_norm(slices, dim=2).square() @ place.T + squares
    norms = squares.sqrt()
    low, high = norms.aminmax(dim=1, keepdim=True)
    # Where all groups are equal none is weaker.
    gammas = 2 ** (alpha * torch.nan_to_num((high - norms) / (high - low)))
    return [gammas @ place for _, _, place in parts]


def _alike(layers: tuple[PrunableLayer, ...]) -> list[list[Part]]:
    """Parts of all layers; layers whose groups have the same shapes are batched."""
    kinds: dict[tuple, list[list[tuple[torch.Tensor, int, torch.Tensor]]]] = defaultdict(list)
    for layer in layers:
        found, kind = [], []
        for item in layer.group:
            module = item.dep.target.module
            if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
                dim = int(loses_inputs(item.dep))
                place = torch.zeros(layer.channels, module.weight.shape[dim]).to(module.weight)
                place[list(item.root_idxs), list(item.idxs)] = 1
                found.append((module.weight, dim, place))
                kind.append((tuple(module.weight.shape), dim, tuple(item.root_idxs), tuple(item.idxs)))
        kinds[tuple(kind)].append(found)
    return [
        [([weight for weight, _, _ in column], *column[0][1:]) for column in zip(*members, strict=True)]
        for members in kinds.values()
    ]
