"""What a method decided, checked against what it was asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch

from pruneaudit.errors import AuditError, MethodError, one_line
from pruneaudit.method.contract import Method
from pruneaudit.method.task import PruningTask, RepetitionOverError, RetrainingTask
from pruneaudit.pruning import shapes
from pruneaudit.training.loop import Hooks


@dataclass(frozen=True, eq=False)
class Answer:
    """What a method decided, checked.

    Attributes:
        kept: Sorted indices of the filters that stay, by layer; empty where single weights were removed.
        masks: Which weights stay, by layer, bool; empty where filters were removed.
    """

    kept: dict[str, list[int]]
    masks: dict[str, torch.Tensor]

    @property
    def stay(self) -> dict[str, int]:
        """Weights that stay, by layer."""
        return {name: int(mask.sum()) for name, mask in self.masks.items()}

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Answer)
            and self.kept == other.kept
            and self.masks.keys() == other.masks.keys()
            and all(torch.equal(mask, other.masks[name]) for name, mask in self.masks.items())
        )

    __hash__ = None  # type: ignore[assignment]


def decide(method: Method, task: PruningTask) -> Answer:
    """Let a method prune, and check its answer.

    Raises:
        MethodError: It raised, or its answer is none; one line says which.
    """
    try:
        answer = method.prune(task)
    except (AuditError, RepetitionOverError):
        raise
    except Exception as error:
        raise MethodError(f"method '{method.name}' raised {one_line(error)}") from error
    return checked(answer, task, method)


def adds(method: Method, task: RetrainingTask) -> Hooks:
    """What a method adds to retraining.

    Raises:
        MethodError: It raised; one line says what.
    """
    try:
        return method.retraining(task)
    except AuditError:
        raise
    except Exception as error:
        raise MethodError(f"method '{method.name}' raised {one_line(error)}") from error


def checked(kept: Any, task: PruningTask, method: Method) -> Answer:
    """A method's answer as plain sorted lists, or as masks on the CPU.

    Raises:
        MethodError: It is no answer to the task; one line that names the layer and what was expected.
    """
    layers = task.layers
    who = f"method '{method.name}'"
    if not isinstance(kept, Mapping):
        raise MethodError(f"{who} returned {type(kept).__name__}; expected {{layer name: kept filter indices}}")
    expected = [layer.name for layer in layers]
    strangers = [str(name) for name in kept if name not in expected]
    if strangers:
        raise MethodError(f"{who} returned layer '{strangers[0]}', which is not prunable here")
    answer: dict[str, list[int]] = {}
    units = {unit.name: unit for unit in task.prunable}
    for name in units:
        if name not in kept:
            raise MethodError(f"{who} returned no indices for layer '{name}'")
    if task.target.granularity == "weight":
        return _checked_masks(kept, task, method)
    layers = tuple(layer for layer in layers if layer.name in kept)
    for layer in layers:
        indices = kept[layer.name]
        listed = indices.tolist() if isinstance(indices, torch.Tensor) else indices
        # A bare number or None is no list of indices; it fails the check like any other wrong element.
        values: list[Any] = list(listed) if isinstance(listed, Iterable) else [None]
        if not all(isinstance(value, Integral) and not isinstance(value, bool) for value in values):
            raise MethodError(f"{who}, layer '{layer.name}': filter indices must be integers")
        values = [int(value) for value in values]
        if len(set(values)) != len(values):
            raise MethodError(f"{who}, layer '{layer.name}': a filter index is repeated")
        if any(not 0 <= value < layer.channels for value in values):
            raise MethodError(f"{who}, layer '{layer.name}': a filter index is outside 0…{layer.channels - 1}")
        if task.target.granularity == "block" and 0 < len(values) < layer.channels:
            raise MethodError(
                f"{who}, layer '{layer.name}': a block stays whole or goes; it keeps {len(values)} filters"
            )
        if not values and task.target.granularity != "block":
            raise MethodError(f"{who} removes every filter of layer '{layer.name}'; at least one must stay")
        answer[layer.name] = sorted(values)
    given, answer = answer, {name: answer[name] for name in units}
    for layer in layers:
        if layer.name not in units and given[layer.name] != task.stays_in(layer, answer):
            assert layer.unit is not None
            raise MethodError(
                f"{who} keeps other filters of layer '{layer.name}' than of '{layer.unit.name}', which goes with it"
            )
    for name, unit in units.items():
        problem = unit.problem(answer[name])
        if problem and answer[name]:
            raise MethodError(f"{who}, layer '{name}': {problem}")
    removed = sum(unit.channels - len(answer[name]) for name, unit in units.items())
    if not method.prunes:
        if removed:
            raise MethodError(f"{who} is a control that must not prune, but removes {removed} filters")
        return Answer(answer, {})
    if not removed:
        raise MethodError(f"{who} removes no filter; ratio {task.ratio:g} asks for some in every layer")
    counts = {name: len(indices) for name, indices in answer.items()}
    _meets_target(counts, task, who)
    return Answer(answer, {})


def _checked_masks(kept: Mapping[str, Any], task: PruningTask, method: Method) -> Answer:
    """Masks of a method that removes single weights.

    Raises:
        MethodError: They are no answer to the task.
    """
    who = f"method '{method.name}'"
    masks: dict[str, torch.Tensor] = {}
    for layer in task.layers:
        mask = kept[layer.name]
        if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool or mask.shape != layer.weight.shape:
            raise MethodError(
                f"{who}, layer '{layer.name}': expected a bool mask of shape {list(layer.weight.shape)}, True where a "
                "weight stays"
            )
        if not bool(mask.any()):
            raise MethodError(f"{who} removes every weight of layer '{layer.name}'; at least one must stay")
        masks[layer.name] = mask.detach().cpu()
    answer = Answer({}, masks)
    _meets_target(answer.stay, task, who)
    return answer


def _meets_target(stay: Mapping[str, int], task: PruningTask, who: str) -> None:
    """See that as many filters or weights stay as asked for.

    Raises:
        MethodError: Another number stays.
    """
    kind = f"{task.target.granularity}s"
    if task.target.scope == "global":
        problem = shapes.missed(task.target, stay, shapes.costs(task.workload))
        if problem:
            raise MethodError(f"{who} misses its target: {problem}; that is what ratio {task.ratio:g} asks for")
        return
    for layer in task.layers:
        asked = task.target.stay.get(layer.name)
        if asked is not None and stay[layer.name] != asked:
            raise MethodError(
                f"{who} misses its target in layer '{layer.name}': keeps {stay[layer.name]} of {task.units(layer)} "
                f"{kind}; ratio {task.ratio:g} asks for {asked}"
            )
