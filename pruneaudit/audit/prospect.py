"""How long comparisons of a plan will probably stay open, for the time that is left: played through in milliseconds.

Seeds to come are drawn from a normal distribution whose mean and standard deviation are as uncertain as few seeds leave
them, and each is looked at as the plan does, with sign-flip tests in their normal form. Nothing is decided by that.

numpy only: importing this module loads neither scipy nor torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from statistics import fmean, stdev

import numpy as np

from pruneaudit.audit.outlook import seeds_that_decide
from pruneaudit.audit.sequential import Plan

#: Mean differences of comparisons of which nothing is known, in spreads: normal, with this standard deviation. A guess
#: from the one campaign that was looked at: those of ``make suite`` have 3.4.
UNKNOWN = 3.0
# Series that are drawn of a comparison, and of two arms that are alike.
_DRAWN, _ALIKE = 400, 10_000


def chances_open(plan: Plan, gaps: Sequence[float], undecided: int) -> np.ndarray:
    """The chance that a comparison which is open now takes each seed, ``[plan.seeds]``: is open after those before.

    Args:
        plan: The plan.
        gaps: Its differences so far.
        undecided: Comparisons of the family that are undecided, this one included.
    """
    series, margin = _series(plan, gaps)
    looks = np.arange(1, plan.seeds + 1)
    level = plan.alpha / max(undecided, 1)
    stops = np.abs(_signs(series)) >= _bounds(plan, level, 2)
    near = [_signs(margin + side * series) >= _bounds(plan, level, 1) for side in (-1.0, 1.0)]
    stops |= near[0] & near[1]
    if plan.futility is not None and plan.first_difference is not None:
        sums, squares = np.cumsum(series, axis=1), np.cumsum(series**2, axis=1)
        means = sums / looks
        spreads = np.sqrt(np.maximum(squares / looks - means**2, 0.0) * looks / np.maximum(looks - 1, 1))
        lacks = seeds_that_decide(means, spreads, margin, undecided)
        stops |= (lacks > plan.futility * plan.seeds) & (looks >= plan.first_difference)
    stops[:, : len(gaps)] = False
    still = ~np.maximum.accumulate(stops, axis=1)
    return np.concatenate(([1.0], still[:, :-1].mean(axis=0)))


def _series(plan: Plan, gaps: Sequence[float]) -> tuple[np.ndarray, float]:
    """Differences of all seeds of a plan, ``[_DRAWN, plan.seeds]``, and the margin in their unit."""
    random = np.random.default_rng(0)
    noise, of_mean = random.normal(size=(_DRAWN, plan.seeds)), random.normal(size=(_DRAWN, 1))
    known = len(gaps)
    if known < 2:
        # Without a spread there is no unit, and nothing says that they are near.
        return UNKNOWN * of_mean + noise, 0.0
    freedom = known - 1
    spread = stdev(gaps) * np.sqrt(freedom / random.chisquare(freedom, size=(_DRAWN, 1)))
    # What was known before counts as a fraction of a seed.
    weight = known + UNKNOWN**-2
    series = fmean(gaps) * known / weight + spread * (of_mean / np.sqrt(weight) + noise)
    series[:, :known] = gaps
    return series, plan.margin


def _signs(series: np.ndarray) -> np.ndarray:
    """Sums after each look, in standard deviations of those that random signs make."""
    squares = np.cumsum(series**2, axis=1)
    return np.cumsum(series, axis=1) / np.sqrt(np.where(squares > 0, squares, 1.0))


@lru_cache(maxsize=64)
def _bounds(plan: Plan, level: float, sides: int) -> np.ndarray:
    """What :func:`_signs` must reach at each look for as few series of arms that are alike to stop as may."""
    alike = _signs(np.random.default_rng(1).normal(size=(_ALIKE, plan.seeds)))
    alike = np.abs(alike) if sides == 2 else alike
    bounds = np.full(plan.seeds, np.inf)
    for look in range(plan.first, plan.seeds + 1):
        left = alike[:, look - 1]
        may = int(level * plan.spent(look) * _ALIKE) - (_ALIKE - len(alike))
        if may > 0 and sides * 0.5**look <= level * plan.spent(look) + 1e-12:
            bounds[look - 1] = np.partition(left, -may)[-may]
            alike = alike[left < bounds[look - 1]]
    return bounds
