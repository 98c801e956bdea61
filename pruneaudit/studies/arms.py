"""What a sentence about two arms reads off them, and what the page shows beside it. Imports no torch."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pruneaudit.audit.evidence import Evidence
from pruneaudit.audit.rules.measurement import converged_before_decay
from pruneaudit.catalog.studies import ArmClaim, Quantity
from pruneaudit.errors import ConfigError
from pruneaudit.ledger.records import Jacobian, RunRecord
from pruneaudit.measure.trainability import comparable_trainability, trainability_accuracy
from pruneaudit.workloads.metrics import ACCURACY, Metric

_HEAD = [
    "where",
    "arm",
    "after the last epoch",
    "trainability accuracy",
    "converged at the first decay",
    "JSV base",
    "JSV pruned",
    "JSV base (train)",
    "JSV pruned (train)",
    "JSV end",
    "epochs in all",
]


@dataclass(frozen=True)
class Place:
    """Where a sentence about two arms is looked at.

    Attributes:
        name: Workload and ratio.
        left: What was measured of the left arm, by seed.
        right: What was measured of the right one, the same seeds.
    """

    name: str
    left: tuple[Evidence, ...]
    right: tuple[Evidence, ...]


def metric_of(quantity: Quantity, metric: Metric) -> Metric:
    """What says which of two numbers is better: the workload's metric, or that a larger singular value is."""
    return metric if quantity in ("result", "trainability") else ACCURACY


def numbers(quantity: Quantity, place: Place) -> tuple[list[float], list[float]]:
    """What is compared of both arms, by seed.

    Raises:
        ConfigError: Something of it was not measured, or cannot be compared between these arms.
    """
    if quantity == "trainability":
        for one, other in zip(place.left, place.right, strict=True):
            if not comparable_trainability(one.result.recipe, other.result.recipe):
                raise ConfigError(
                    f"{place.name}: trainability accuracies under different schedules rank the schedules; compare arms "
                    "that retrain by one"
                )
    left, right = ([_number(quantity, arm, place.name) for arm in arms] for arms in (place.left, place.right))
    return left, right


def _number(quantity: Quantity, arm: Evidence, where: str) -> float:
    found: float | None
    if quantity == "result":
        found = arm.result.value
    elif quantity == "trainability":
        found = trainability_accuracy(arm.result.curve, arm.result.recipe)
    else:
        found = {
            "jsv": _mean_of(arm.prune),
            "jsv-train": _mean_of(arm.prune, batch_statistics=True),
            "jsv-end": _mean_of(arm.result),
        }[quantity]
    if found is None:
        raise ConfigError(f"{where}: {quantity} of {arm.cell.cell.id} was not measured; compare another quantity")
    return found


def _mean_of(run: RunRecord | None, batch_statistics: bool = False) -> float | None:
    """Mean Jacobian singular value of what a run left."""
    if run is None:
        return None
    found: Jacobian | None = run.jacobian_train if batch_statistics else run.jacobian
    return None if found is None else found.mean


def described(claim: ArmClaim, places: Sequence[Place]) -> dict[str, Any]:
    """Both arms at each place as a table: ``caption``, ``head`` and ``rows``; mean and deviation over seeds.

    Whether an arm had converged when its rate first fell is what Wang et al. 2023 explain the better result of larger
    rates with (Fig. 2): the validation curve of the first stage no longer rises over its last third.
    """
    rows = []
    for place in places:
        # Under different schedules these rank the schedules.
        pairs = zip(place.left, place.right, strict=True)
        comparable = all(comparable_trainability(one.result.recipe, other.result.recipe) for one, other in pairs)
        for name, arms in zip(claim.arms, (place.left, place.right), strict=True):
            metric = arms[0].metric
            converged = [converged_before_decay.check(arm).verdict for arm in arms]
            judged = [verdict for verdict in converged if verdict in ("pass", "fail")]
            cells = [
                _spread([arm.result.value for arm in arms], metric.decimals),
                _spread([trainability_accuracy(arm.result.curve, arm.result.recipe) for arm in arms], metric.decimals)
                if comparable
                else "",
                f"{judged.count('pass')} of {len(judged)}" if judged else "",
                _spread([_mean_of(arm.base) for arm in arms], 2),
                _spread([_mean_of(arm.prune) for arm in arms], 2),
                _spread([_mean_of(arm.base, batch_statistics=True) for arm in arms], 2),
                _spread([_mean_of(arm.prune, batch_statistics=True) for arm in arms], 2),
                _spread([_mean_of(arm.result) for arm in arms], 2),
                _spread([arm.cell.total_epochs for arm in arms], 1),
            ]
            rows.append([place.name, name, *cells])
    shown = [place for place in range(len(_HEAD)) if any(row[place] for row in rows)]
    return {
        "caption": "both arms, mean ± standard deviation over seeds; JSV: mean Jacobian singular value, in eval mode "
        "or (train) on batch statistics; trainability accuracy: mean over the first stage of the learning rate, where "
        "both arms have one schedule",
        "head": [_HEAD[place] for place in shown],
        "rows": [[row[place] for place in shown] for row in rows],
    }


def _spread(values: Sequence[float | None], decimals: int) -> str:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return ""
    deviation = f" ± {statistics.stdev(known):.{decimals}f}" if len(known) > 1 and len(set(known)) > 1 else ""
    return f"{statistics.fmean(known):.{decimals}f}{deviation}"
