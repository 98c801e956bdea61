"""Differences at a glance: per ratio one row a comparison and one column a setup, for the page and for figures."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pruneaudit.catalog.names import is_derived
from pruneaudit.report.results import Results
from pruneaudit.workloads.metrics import Metric

#: Rows of a picture; of more comparisons those with a decision are shown first, and the rest is counted.
MOST_ROWS = 40
#: Verdicts in the order in which a picture has room for them.
_FIRST = ("better", "worse", "equivalent", "not comparable", "indeterminate")
#: So many times the largest difference an interval may reach before it is cut: two seeds reach across any axis.
_CUT = 2.0


@dataclass(frozen=True)
class Gap:
    """One comparison under one setup, first arm minus second.

    Attributes:
        verdict: What it comes to.
        summary: The verdict's own line.
        mean: In the metric's unit; None where no seed is complete.
        low: Lower end of the 95 % interval; None for one seed.
        high: Upper end.
        margin: Differences below this do not matter.
    """

    verdict: str
    summary: str
    mean: float | None
    low: float | None
    high: float | None
    margin: float


@dataclass(frozen=True)
class Picture:
    """The differences at one ratio.

    Attributes:
        ratio: Share that was removed.
        setups: Protocols with a comparison, by name, cross-validated recipes last: the columns.
        rows: Names of a comparison's arms, with what is known under each setup.
        reach: The axis goes from minus this to this, in the metric's unit, the same for all columns.
        left_out: Comparisons that have no row here.
        metric: What decides.
    """

    ratio: float
    setups: tuple[str, ...]
    rows: tuple[tuple[tuple[str, str], Mapping[str, Gap]], ...]
    reach: float
    left_out: int
    metric: Metric

    @property
    def is_drawn(self) -> bool:
        """Whether anything stands on the axis."""
        return any(gap.mean is not None for _, gaps in self.rows for gap in gaps.values())

    @property
    def tick(self) -> float:
        """The largest of 1, 2, 5, 10, 20, … that has room on the axis."""
        power = 10.0 ** math.floor(math.log10(0.8 * self.reach))
        return max(step * power for step in (1, 2, 5) if step * power <= 0.8 * self.reach)

    def share(self, value: float) -> float:
        """Where a value stands between the ends of the axis, 0 to 1; one beyond stands at the end."""
        return min(max(0.5 + value / (2 * self.reach), 0.0), 1.0)

    def beyond(self, value: float) -> bool:
        """Whether a value does not fit on the axis."""
        return abs(value) > self.reach


def pictures(results: Results, workload: str, labels: tuple[str, ...]) -> list[Picture]:
    """A picture for each ratio, the largest first: that is where methods differ."""
    found: dict[float, dict[tuple[str, str], dict[str, Gap]]] = defaultdict(lambda: defaultdict(dict))
    for row in results.of("verdicts", workload, labels):
        found[row["ratio"]][tuple(row["arms"])][row["protocol"]] = _gap(row)
    return [_picture(ratio, found[ratio], results.metric(workload)) for ratio in sorted(found, reverse=True)]


def _gap(row: Mapping[str, Any]) -> Gap:
    known = row["difference"] or {}
    return Gap(
        row["verdict"],
        row["summary"],
        known.get("mean"),
        known.get("low"),
        known.get("high"),
        known.get("margin") or 0.0,
    )


def _picture(ratio: float, found: Mapping[tuple[str, str], Mapping[str, Gap]], metric: Metric) -> Picture:
    setups = {setup for gaps in found.values() for setup in gaps}
    first = sorted(found, key=lambda arms: min(_FIRST.index(gap.verdict) for gap in found[arms].values()))
    shown = sorted(first[:MOST_ROWS])
    return Picture(
        ratio,
        tuple(sorted(setups, key=lambda name: (is_derived(name), name))),
        tuple((arms, found[arms]) for arms in shown),
        _reach([gap for arms in shown for gap in found[arms].values()]),
        len(found) - len(shown),
        metric,
    )


def _reach(gaps: Iterable[Gap]) -> float:
    """An axis on which every mean and margin has room, and intervals that are not absurdly wide."""
    gaps = list(gaps)
    known = [abs(gap.mean) for gap in gaps if gap.mean is not None]
    ends = [abs(end) for gap in gaps for end in (gap.low, gap.high) if end is not None]
    needed = max([*known, *(2 * gap.margin for gap in gaps)], default=0.0)
    return 1.08 * max(needed, min(max(ends, default=0.0), _CUT * needed)) or 1.0
