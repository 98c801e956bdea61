"""What the kind of arithmetic changes: one run computed twice, beside what another seed changes. Imports no torch."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from pruneaudit.ledger.records import RunRecord

#: Where papers' numbers come from: runs of other stages are on the way.
_LAST_STAGES = ("retrain", "scratch")


@dataclass(frozen=True)
class Noise:
    """How far results are apart that differ in their arithmetic alone, in the metric's unit.

    Attributes:
        pairs: Results that were computed twice.
        differ: Those of them that are not the same number.
        typical: Root mean square of their differences.
        largest: Largest absolute difference.
        of_means: Largest absolute difference of an arm's mean over seeds.
        spread: Sample standard deviation over seeds, pooled over arms; None where no arm has two seeds.
    """

    pairs: int
    differ: int
    typical: float
    largest: float
    of_means: float
    spread: float | None

    @classmethod
    def of(cls, arms: Iterable[Mapping[int, tuple[float, float]]]) -> Self:
        """Summarise, for each arm, the two results of each seed; at least one arm has one."""
        found = [list(arm.values()) for arm in arms if arm]
        gaps = [right - left for arm in found for left, right in arm]
        means = [abs(statistics.fmean(right - left for left, right in arm)) for arm in found]
        several = [[left for left, _ in arm] for arm in found if len(arm) > 1]
        freedom = sum(len(values) - 1 for values in several)
        squares = sum((len(values) - 1) * statistics.variance(values) for values in several)
        return cls(
            len(gaps),
            sum(gap != 0 for gap in gaps),
            statistics.fmean(gap * gap for gap in gaps) ** 0.5,
            max(map(abs, gaps)),
            max(means),
            (squares / freedom) ** 0.5 if freedom else None,
        )

    def __str__(self) -> str:
        spread = "" if self.spread is None else f"; over seeds the standard deviation is {self.spread:.2f}"
        return (
            f"{self.differ} of {self.pairs} results differ, typically by {self.typical:.2f} and at most by "
            f"{self.largest:.2f}{spread}"
        )


def between(left: Iterable[RunRecord], right: Iterable[RunRecord]) -> Noise | None:
    """What sets the results of runs apart that both of two ledgers hold; None where they share none."""
    others = {run.run_id: run for run in right if run.stage in _LAST_STAGES}
    arms: dict[str, dict[int, tuple[float, float]]] = {}
    for run in left:
        if run.run_id in others:
            # Seeds of one arm: all else that sets its runs apart stands in the slug, or in the recipe.
            arm = f"{run.model_copy(update={'seed': 0}).slug} {run.recipe.model_dump_json()}"
            arms.setdefault(arm, {})[run.seed] = run.value, others[run.run_id].value
    return Noise.of(arms.values()) if arms else None


def explained(left: RunRecord, right: RunRecord) -> str:
    """Why two records of one run may hold other numbers: a fault, or what is to be expected of another machine."""
    if left.kind is None or right.kind is None:
        return "one of them does not tell what arithmetic it was computed with"
    if left.kind == right.kind:
        return f"both were computed alike ({left.kind}), so that one of them is at fault"
    apart = "; ".join(left.kind.differences(right.kind))
    return f"they were computed with different arithmetic, where other numbers are expected ({apart})"
