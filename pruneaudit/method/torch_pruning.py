"""Pruners of torch-pruning (Fang et al., CVPR 2023) as methods: what one of them would remove in ``pruner.step()``."""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any, ClassVar

from torch.nn import functional

from pruneaudit.errors import MethodError
from pruneaudit.method.contract import Budget, Method
from pruneaudit.method.task import Kept, PruningTask
from pruneaudit.pruning import shapes
from pruneaudit.pruning.graph import loses_inputs
from pruneaudit.streams import isolated
from pruneaudit.training.loop import Hooks
from pruneaudit.workloads.schema import Workload

#: Options that say how much goes, from where and in how many steps: the harness asks that of all methods alike.
_GIVEN = frozenset(
    {
        "model",
        "example_inputs",
        "ignored_layers",
        "pruning_ratio",
        "pruning_ratio_dict",
        "max_pruning_ratio",
        "ch_sparsity",
        "ch_sparsity_dict",
        "iterative_steps",
        "round_to",
    }
)


class TorchPruner(Method):
    """A pruner of torch-pruning decides in one step; how much goes is the task's, as of every method.

    The step is asked for its groups and nothing is removed: the harness removes what they name, so that the network is
    counted, tried and retrained as any other.

    Attributes:
        pruner: The class, such as ``torch_pruning.pruner.MagnitudePruner``.
        options: What it takes besides network, example, ignored layers and ratios; ``importance`` at least.
            ``global_pruning=True`` makes layers compete.
        trains: Whether the pruner's regulariser acts through the workload's pruning budget before it decides.
        images: Training images whose summed gradients the importance reads (``TaylorImportance``, say); 0: none.
    """

    pruner: ClassVar[Any] = None
    options: ClassVar[Mapping[str, Any]] = {}
    trains: ClassVar[bool] = False
    images: ClassVar[int] = 0

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if cls.options.get("global_pruning"):
            cls.scope = "global"

    def budget(self, workload: Workload) -> Budget:
        """The workload's pruning budget where the regulariser acts, and the images of the gradients."""
        if not self.trains:
            return Budget(samples=self.images)
        return Budget(steps=workload.prune.steps or 0, lr=workload.prune.lr, samples=self.images)

    def prune(self, task: PruningTask) -> Kept:
        """What the pruner's step would leave.

        Raises:
            MethodError: The class is none of torch-pruning's, an option is the harness's, or there is no regulariser.
        """
        pruner = self._made(task)
        if self.trains:
            pruner.update_regularizer()
            task.train(hooks=Hooks(gradients=lambda step: pruner.regularize(task.model)))
        if self.images:
            for images, labels in task.batches(1, batch=self.images):
                functional.cross_entropy(task.model(images), labels).backward()
        _score_once(pruner, last=self.scope == "global")
        # An importance may draw (``RandomImportance``): from the method's own stream, and the global one stays.
        with isolated(task.generator("torch-pruning").initial_seed()):
            kept = _overall(pruner, task) if self.scope == "global" else _left(pruner, task)
        task.model.zero_grad(set_to_none=True)
        return kept

    def _made(self, task: PruningTask) -> Any:
        """The pruner over the task's network, in one step, with the task's counts."""
        if taken := sorted(_GIVEN & self.options.keys()):
            raise MethodError(
                f"method '{self.name}': leave '{taken[0]}' out of options; how much goes, from which layers and in how "
                "many steps is the same for all methods (--audit-ratios adds ratios)"
            )
        if "importance" not in self.options:
            raise MethodError(f"method '{self.name}': options need an importance of torch_pruning.importance")
        ratios: dict[Any, float] = {}
        if self.scope != "global":
            for unit in task.prunable:
                # Torch-pruning keeps int(channels * (1 - ratio)): half a channel keeps it from rounding below.
                ratio = 1 - (task.target.stay[unit.name] + 0.5) / unit.channels
                ratios |= {layer.module: ratio for layer in task.layers_of(unit)}
        pruner = task.torch_pruner(self.pruner, pruning_ratio_dict=ratios, **copy.deepcopy(dict(self.options)))
        if self.trains and type(pruner).regularize is _plain().regularize:
            raise MethodError(f"method '{self.name}': this pruner has no regulariser; leave 'trains' out")
        return pruner


@lru_cache(maxsize=1)
def _plain() -> Any:
    """The class of torch-pruning whose regulariser does nothing."""
    import torch_pruning

    return torch_pruning.pruner.BasePruner


def _score_once(pruner: Any, last: bool) -> None:
    """Let the pruner take every score once: a threshold is tried several times, over the same scores.

    Args:
        pruner: The pruner.
        last: Whether the best channel of each layer stays, whatever its score. Torch-pruning leaves a layer whole where
            all of it is below the threshold, so that a higher ratio may remove less.
    """
    scored: dict[Any, Any] = {}
    estimate = pruner.estimate_importance

    def remembered(group: Any) -> Any:
        root = group[0].dep.target.module
        if root not in scored:
            scores = estimate(group)
            if last and scores is not None:
                scores = scores.clone()
                scores[scores.argmax()] = float("inf")
            scored[root] = scores
        return scored[root]

    pruner.estimate_importance = remembered


def _left(pruner: Any, task: PruningTask) -> dict[str, list[int]]:
    """Filters that the pruner's next step would leave, by layer; nothing is removed."""
    left = {layer.module: set(range(layer.channels)) for layer in task.layers}
    for group in pruner.step(interactive=True):
        for item in group:
            module = item.dep.target.module
            if module in left and not loses_inputs(item.dep):
                left[module] -= {int(index) for index in item.idxs}
    return {layer.name: sorted(left[layer.module]) for layer in task.layers}


def _overall(pruner: Any, task: PruningTask) -> dict[str, list[int]]:
    """The same with one threshold for all layers, at the number of filters that comes nearest to the target."""
    costs = shapes.costs(task.workload)
    asked = task.target.macs if task.target.share is None else task.target.share
    total = sum(unit.channels for unit in task.prunable)
    most = total - len(task.prunable)

    @cache
    def left(gone: int) -> tuple[int, dict[str, list[int]]]:
        pruner.reset()
        pruner.per_step_pruning_ratio = [0.0, 1 - (total - gone + 0.5) / total]
        kept = _left(pruner, task)
        stay = {unit.name: len(kept[unit.name]) for unit in task.prunable}
        return (costs.of_widths(stay) if task.target.share is None else sum(stay.values())), kept

    first = bisect_left(range(most + 1), True, key=lambda gone: left(gone)[0] <= asked)
    near = [gone for gone in (first - 1, first) if 0 <= gone <= most]
    return left(min(near, key=lambda gone: abs(left(gone)[0] - asked)))[1]
