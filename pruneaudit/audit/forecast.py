"""How many seeds a plan of verdicts will take, told from a few that are there: seeds to come are drawn like them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from pruneaudit.audit.rounds import Family, by_round, differences
from pruneaudit.audit.sequential import Stop, decide
from pruneaudit.catalog.cells import Cell, Comparison
from pruneaudit.ledger.records import CellRecord
from pruneaudit.workloads.metrics import Metric

#: Paired seeds that a spread is estimated from, at least.
PILOT = 3
# Comparisons that are drawn and decided, in all: some seconds.
_DRAWN = 120

RecordOf = Callable[[Cell], CellRecord | None]


@dataclass(frozen=True)
class Forecast:
    """What to expect of a planned comparison.

    Attributes:
        comparison: The comparison, over all seeds that the plan may take.
        pilot: Paired seeds that its mean and spread come from.
        mean: Mean of their differences, in the metric's unit, more is better; None: too few.
        std: Their standard deviation.
        chances: The chance that it takes each seed of the plan; where nothing is known, of such comparisons.
        decided: Chance that it is decided; None where nothing is known.
    """

    comparison: Comparison
    pilot: int
    mean: float | None
    std: float | None
    chances: tuple[float, ...]
    decided: float | None

    @property
    def seeds(self) -> float:
        """Seeds that it takes, on average."""
        return sum(self.chances)


def forecast(family: Family, here: RecordOf, metric: Metric, pilot: RecordOf | None = None) -> list[Forecast]:
    """Play a plan through with seeds that are drawn from the normal distribution of those that are known.

    Means and spreads of a few seeds are uncertain themselves, and so is what follows from them.

    Args:
        family: The plan.
        here: Gives the record of a cell of the ledger that goes on, or None. Its seeds are the first of the plan.
        metric: What decides.
        pilot: The same of the ledger that means and spreads come from; None: the one that goes on.
    """
    random = np.random.default_rng(0)
    comparisons = family.comparisons
    begun = [differences(one, here, metric) for one in comparisons]
    known = [[gap for gap in differences(one, pilot or here, metric) if gap is not None] for one in comparisons]
    told = [len(gaps) >= PILOT for gaps in known]
    standing = family.standing(here, metric)
    # Of what nothing is known it is assumed that it leaves no level to others: alternating signs decide nothing.
    open_for_ever = [math.copysign(1e6 * family.plan.margin, (-1) ** seed) for seed in range(family.plan.seeds)]
    stops: list[list[Stop]] = []
    for _ in range(max(4, _DRAWN // len(comparisons)) if any(told) else 0):
        series = []
        for first, gaps, is_told in zip(begun, known, told, strict=True):
            drawn = random.normal(fmean(gaps), stdev(gaps), family.plan.seeds).tolist() if is_told else open_for_ever
            series.append([*first, *drawn[len(first) :]] if None not in first else first)
        stops.append(decide(family.plan, series))
    return [
        Forecast(
            comparison,
            len(gaps),
            fmean(gaps) if is_told else None,
            stdev(gaps) if is_told else None,
            tuple(
                fmean(max(found[place].looks, family.plan.first) > seed for found in stops)
                for seed in range(family.plan.seeds)
            )
            if is_told
            else standing.chances(comparison),
            fmean(found[place].word not in (None, "indeterminate") for found in stops) if is_told else None,
        )
        for place, (comparison, gaps, is_told) in enumerate(zip(comparisons, known, told, strict=True))
    ]


def cells_expected(forecasts: list[Forecast]) -> list[Cell]:
    """Cells that the arms of some comparisons take: each as many seeds as the comparison of it that takes most."""
    return list(
        dict.fromkeys(
            cell
            for one in forecasts
            for arm in one.comparison.arms
            for cell in arm.cells()[: math.ceil(one.seeds - 1e-9)]
        )
    )


def rounds_expected(forecasts: list[Forecast]) -> list[list[dict[Cell, float]]]:
    """Table by table what it may take, round by round, each cell with its chance: as :meth:`Standing.likely` says."""
    tables: dict[tuple[str, str], dict[Comparison, tuple[float, ...]]] = {}
    for one in forecasts:
        tables.setdefault((one.comparison.workload, one.comparison.protocol), {})[one.comparison] = one.chances
    found = []
    for chances in tables.values():
        rounds = by_round(chances, 0)
        # Nothing waits for a look that stops nothing.
        sure = next((number for number, cells in enumerate(rounds) if min(cells.values()) < 1), len(rounds))
        opening = {cell: chance for cells in rounds[:sure] for cell, chance in cells.items()}
        found.append([opening, *rounds[sure:]])
    return found
