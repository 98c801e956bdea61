"""Paired comparisons that may be looked at after every seed and stop when they are decided, at a known error rate.

Who looks at a p value after every seed and stops at the first below 0.05 finds a difference where none is far more
often than in 5 % of comparisons. Here alpha is spent over the looks (Lan and DeMets, Biometrika 70, 1983), and what a
look may spend is counted in sign vectors that stop there, as in exact permutational group sequential tests (Mehta,
Patel, Senchaudhuri and Tsiatis, Biometrics 50, 1994). A comparison is ``better`` or ``worse`` by the sequential form of
the sign-flip test, and ``equivalent`` by two of them, one-sided, on differences shifted by the margin (repeated TOST:
Jennison and Turnbull, Stat. Med. 12, 1993). Of a family each is tested at the level that Holm's procedure leaves it,
which holds whenever each of them stops (Ye, Li, Liu and Yao, Stat. Med. 32, 2013; Maurer and Bretz, Stat. Biopharm.
Res. 5, 2013).

A comparison that would need far more seeds than the plan has is given up as ``indeterminate`` (stopping for futility;
Jennison and Turnbull 2000, ch. 10). Nothing is decided by that, and no level is spent or left to others, so that error
rates hold with or without it (it is not binding); what it costs is power.

An always-valid e-process needs no last seed, and takes more seeds to decide (``benchmarks/decide.py`` shows both).

What is assumed: under the null hypothesis a difference has either sign with equal chance, whatever its size, seed by
seed (of equivalence: the difference less the margin). It is so wherever two arms are exchangeable, however skewed each
of them is. A zero mean alone does not suffice: where differences are distributed like an exponential less its mean, a
plan of twelve seeds finds a difference in 12 % of comparisons instead of 5 %, the sign-flip test on all twelve in 9 %.
No test of so few seeds can do better and still decide: differences of accuracies lie between -100 and 100 points, and
one that is -100 with the chance d / (100 + d), and else d, has the mean zero. Then n seeds all show d with the chance
(100 / (100 + d))**n, so that a test that errs in 5 % must not decide on n equal differences of d points as long as this
is above 5 % (after Bahadur and Savage, Ann. Math. Statist. 27, 1956): 102 seeds for three points, 17 for twenty. What
is tested is therefore not a mean of zero, but that two arms are alike.

numpy only: importing this module loads neither scipy nor torch.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Literal

import numpy as np
from pydantic import Field, FiniteFloat

from pruneaudit.audit.outlook import Outlook, outlook
from pruneaudit.audit.statistics import ALPHA, seeds_needed
from pruneaudit.schema import Frozen

#: Times a plan's seeds that a comparison may lack before it is given up: what new plans are written with. It costs few
#: decisions, and saves most of the seeds of what differs little (``benchmarks/decide.py --plans``).
FUTILITY = 2.0
#: Of so many seeds every sign vector is tried; with later ones, each of these vectors goes on with random signs.
EXACT = 14
# Sums closer than this are ties: above float noise, below one image in a million over 50 seeds.
_TIE = 1e-8
# Values of all comparisons and sign vectors that are in memory at once: 16 MB.
_VALUES = 2**21

Spending = Literal["pocock"]
#: Share of alpha that looks at up to a share of the seeds may spend, see :func:`Plan.spent`.
SPENDING: dict[Spending, Callable[[float], float]] = {"pocock": lambda share: math.log1p((math.e - 1) * share)}


class Plan(Frozen):
    """What is fixed of a family of comparisons before its first seed trains.

    Attributes:
        seeds: Seeds at most; a comparison that is open after them is indeterminate.
        comparisons: Size of the family: over them at most ``alpha`` is the chance of any false better or worse, and of
            any false equivalent.
        margin: Differences smaller than this do not matter, in the metric's unit.
        alpha: Rate of false findings of the family.
        first: Seeds before which nothing is looked at: by default the fewest that could show a difference alone.
        spending: How alpha is spent over the looks, one after each seed: ``pocock`` is Lan and DeMets's
            ln(1 + (e - 1) t), t the share of the seeds. It decides large differences early and costs small ones little.
        futility: A comparison is given up when at its present mean and spread it would take more than this many times
            ``seeds`` (:func:`~pruneaudit.audit.outlook.outlook`), looked at from ``first_difference`` on. None: never,
            as in plans of older versions.
    """

    seeds: int = Field(ge=1)
    comparisons: int = Field(ge=1)
    margin: FiniteFloat = Field(gt=0)
    alpha: float = Field(default=ALPHA, gt=0, lt=1)
    first: int = Field(default=seeds_needed(), ge=1)
    spending: Spending = "pocock"
    futility: float | None = Field(default=None, gt=0)

    def spent(self, look: int) -> float:
        """The share of alpha that looks may have spent up to this one: 1 after the last."""
        return SPENDING[self.spending](min(look / self.seeds, 1.0))

    def is_too_far(self, lacks: Outlook) -> bool:
        """Whether a comparison is given up that lacks so much."""
        return self.futility is not None and (lacks.seeds is None or lacks.seeds > self.futility * self.seeds)

    @property
    def levels(self) -> list[float]:
        """Levels that Holm's procedure may leave a comparison: with one, two and more others undecided beside it."""
        return [self.alpha / others for others in range(1, self.comparisons + 1)]

    @property
    def first_look(self) -> int | None:
        """The first number of seeds after which any comparison can stop: before it none needs to be looked at.

        That of equivalence, which is one-sided. None: so few seeds decide nothing.
        """
        return self._first(2.0)

    @property
    def before_any_stop(self) -> int:
        """Seeds that every comparison takes, whatever its differences are; all where they decide nothing."""
        return self.first_look or self.seeds

    @property
    def first_difference(self) -> int | None:
        """The first number of seeds after which a comparison can be better or worse; None: there is none."""
        return self._first(1.0)

    def _first(self, sides: float) -> int | None:
        level = self.alpha / self.comparisons
        looks = range(self.first, self.seeds + 1)
        return next((n for n in looks if 2.0 ** (1 - n) <= sides * level * self.spent(n) + 1e-12), None)


@dataclass(frozen=True)
class Stop:
    """Where a comparison stands.

    Attributes:
        word: ``better``, ``worse`` (of the first arm, where more is better) or ``equivalent``; ``indeterminate`` after
            the last seed, where a seed has no value, or where it was given up; None: open.
        looks: Seeds that it was looked at after.
        level: Level of the test that decided it, as Holm's procedure left it; None where nothing was decided.
        is_given_up: Whether it stopped for futility.
    """

    word: Literal["better", "worse", "equivalent", "indeterminate"] | None
    looks: int
    level: float | None = None
    is_given_up: bool = False


def decide(plan: Plan, series: Sequence[Sequence[float | None]]) -> list[Stop]:
    """Work through a family of comparisons seed by seed; a pure function of the differences in the order of seeds.

    Seeds are taken in rounds: a round looks at every comparison that is open, after which those that are decided take
    no further seeds. Where an open comparison lacks its next seed, the family stays where it is until it has it.
    ``equivalent`` comes before ``better`` and ``worse`` where one round shows both.

    Args:
        plan: What was fixed before.
        series: Of each comparison of the family the differences, first arm minus second, so that more is better; None
            for a seed that failed, after which the comparison is closed. What lies behind its stop is not looked at.

    Returns:
        Where each comparison stands.

    Raises:
        ValueError: There are more comparisons than planned.
    """
    if len(series) > plan.comparisons:
        raise ValueError(f"{len(series)} comparisons, but {plan.comparisons} were planned")
    known = [_known(differences)[: plan.seeds] for differences in series]
    apart = _reached(plan, known, lambda gaps: [_found(plan, gaps)])
    near = _reached(
        plan, known, lambda gaps: [_found(plan, plan.margin + side * gaps, one_sided=True) for side in (-1.0, 1.0)]
    )
    found = [Stop(None, 0) for _ in series]
    levels = plan.levels
    for look in range(1, plan.seeds + 1):
        still_open = [place for place, stop in enumerate(found) if stop.word is None]
        if any(len(series[place]) < look for place in still_open):
            break
        for place in still_open:
            found[place] = Stop(None if len(known[place]) >= look else "indeterminate", look)
        looks = np.array([stop.looks for stop in found])
        left_apart, left_near = (_left_by_holm(reached, looks, plan.comparisons) for reached in (apart, near))
        for place in still_open:
            if found[place].word is not None:
                continue
            if left_near[place]:
                found[place] = Stop("equivalent", look, levels[left_near[place] - 1])
            elif left_apart[place]:
                found[place] = Stop(
                    "better" if sum(known[place][:look]) > 0 else "worse", look, levels[left_apart[place] - 1]
                )
            elif look == plan.seeds:
                found[place] = Stop("indeterminate", look)
        # Those that are given up stay undecided in Holm's procedure: they leave nothing to the others.
        undecided = plan.comparisons - sum(stop.word not in (None, "indeterminate") for stop in found)
        for place in still_open:
            if found[place].word is None and _is_futile(plan, known[place][:look], undecided):
                found[place] = Stop("indeterminate", look, is_given_up=True)
    return found


def _is_futile(plan: Plan, gaps: Sequence[float], undecided: int) -> bool:
    """Whether a comparison would take far more seeds than the plan has, at its present mean and spread."""
    if plan.futility is None or plan.first_difference is None or len(gaps) < plan.first_difference:
        return False
    lacks = outlook(gaps, plan.margin, undecided, is_planned=True)
    return lacks is not None and plan.is_too_far(lacks)


def stops(plan: Plan, differences: np.ndarray, one_sided: bool = False) -> np.ndarray:
    """The look at which each comparison stops at each level of the plan, ``[C, L]``; 0 where it does not.

    At look n all sign vectors that did not stop are ranked by the sum of their first n differences. The most extreme
    ones stop: as many as keep the share of all that stopped at ``level * spent(n)`` or below, ties together or not at
    all. The signs that were observed are those of one vector, and had a coin thrown them, each vector were as likely.
    After ``EXACT`` seeds the vectors go on with signs drawn with a fixed seed.

    Args:
        plan: Levels, seeds at most, and spending.
        differences: Paired differences in the order of their seeds, ``[C, n]``.
        one_sided: Only sums above 0 stop.
    """
    count, looks = differences.shape
    rows = max(1, _VALUES // 2 ** min(looks, EXACT))
    parts = [
        reduce(_Walk.after, part.T[:, :, None], _Walk.start(plan, len(part), one_sided)).found
        for part in (differences[start : start + rows] for start in range(0, count, rows))
    ]
    return np.concatenate(parts) if parts else np.zeros((0, plan.comparisons), dtype=int)


@dataclass(frozen=True)
class _Walk:
    """Sign vectors of some comparisons after some looks; nothing in it changes.

    Attributes:
        plan: Levels and spending.
        one_sided: Only sums above 0 stop.
        look: Looks taken.
        sums: Sums of each vector, the first of which has the signs that were observed, ``[C, V]``.
        stopped: Which ones stopped at each level, ``[L, C, V]``.
        found: The look at which the first one did, ``[C, L]``; 0: not yet.
    """

    plan: Plan
    one_sided: bool
    look: int
    sums: np.ndarray
    stopped: np.ndarray
    found: np.ndarray

    @classmethod
    def start(cls, plan: Plan, count: int, one_sided: bool) -> _Walk:
        """Before the first look at so many comparisons."""
        stopped = np.zeros((plan.comparisons, count, 1), dtype=bool)
        return cls(plan, one_sided, 0, np.zeros((count, 1)), stopped, np.zeros((count, plan.comparisons), dtype=int))

    def after(self, step: np.ndarray) -> _Walk:
        """After one more look, at these differences ``[C, 1]``."""
        look, sums, stopped, found = self.look + 1, self.sums, self.stopped, self.found
        # A vector and its opposite stop together: one is kept.
        if look > EXACT:
            sums = sums + _signs(look, sums.shape[1]) * step
        elif look == 1 and not self.one_sided:
            sums = sums + step
        else:
            sums = np.concatenate((sums + step, sums - step), axis=1)
            stopped = np.concatenate((stopped, stopped), axis=2)
        if look >= self.plan.first:
            stopped, found = stopped.copy(), found.copy()
            self._stop(look, sums, stopped, found)
        return _Walk(self.plan, self.one_sided, look, sums, stopped, found)

    def _stop(self, look: int, sums: np.ndarray, stopped: np.ndarray, found: np.ndarray) -> None:
        """Let the most extreme vectors stop at a look, as many as may."""
        extreme = sums if self.one_sided else np.abs(sums)
        # The small number: 1/32 of 32 vectors is one of them.
        share = self.plan.spent(look) * sums.shape[1]
        allowed = [math.floor(level * share + 1e-9) for level in self.plan.levels]
        # Whatever stopped before, the next ones to stop are among so many that are most extreme.
        most = min(2 * allowed[0] + 1, sums.shape[1])
        places = np.argpartition(extreme, -most, axis=1)[:, -most:]
        ranked = np.take_along_axis(extreme, places, axis=1)
        places = np.take_along_axis(places, np.argsort(ranked, axis=1), axis=1)
        ranked = np.sort(ranked, axis=1)
        for level, room in enumerate(allowed):
            if room == 0:
                break
            free = room - np.count_nonzero(stopped[level], axis=1)
            before = np.take_along_axis(stopped[level], places, axis=1)
            now = ~before & (ranked > _bound(ranked, before, free) + _TIE)
            np.put_along_axis(stopped[level], places, before | now, axis=1)
            found[(now & (places == 0)).any(axis=1), level] = look


@lru_cache(maxsize=128)
def _signs(look: int, count: int) -> np.ndarray:
    """Signs that vectors go on with at a look after all were tried; the first has the one that was observed."""
    signs = 2.0 * np.random.default_rng(0).integers(0, 2, (look - EXACT, count))[-1] - 1
    signs[0] = 1.0
    return signs


#: Walks of the last comparisons that were looked at: with the next seed they go on from there.
_WALKS: OrderedDict[tuple[Plan, bool, tuple[float, ...]], _Walk] = OrderedDict()
_KEPT = 64


def _found(plan: Plan, gaps: np.ndarray, one_sided: bool = False) -> np.ndarray:
    """The same as :func:`stops` of one comparison, ``[L]``, which gets its seeds one after the other."""
    known = tuple(gaps.tolist())
    seen = next((n for n in range(len(known), 0, -1) if (plan, one_sided, known[:n]) in _WALKS), 0)
    walk = _WALKS[plan, one_sided, known[:seen]] if seen else _Walk.start(plan, 1, one_sided)
    walk = reduce(_Walk.after, gaps[seen:, None, None], walk)
    _WALKS[plan, one_sided, known] = walk
    _WALKS.move_to_end((plan, one_sided, known))
    while len(_WALKS) > _KEPT:
        _WALKS.popitem(last=False)
    return walk.found[0]


def _bound(ranked: np.ndarray, stopped: np.ndarray, free: np.ndarray) -> np.ndarray:
    """The greatest value that may not stop any more, ``[C, 1]``, where ``free`` of each row (rising) still may."""
    left = np.cumsum(~stopped[:, ::-1], axis=1)  # From the greatest one on, how many did not stop.
    place = ranked.shape[1] - 1 - np.argmax(left > free[:, None], axis=1)
    return np.take_along_axis(ranked, place[:, None], axis=1)


def _reached(
    plan: Plan, series: Sequence[Sequence[float]], tests: Callable[[np.ndarray], list[np.ndarray]]
) -> np.ndarray:
    """The look from which each comparison counts as decided at each level, ``[C, L]``; beyond the last seed: never.

    By all of its tests, and at all greater levels as well: vectors that stop early at a great level can make room for
    others at a smaller one, and Holm's procedure needs a test that rejects more where it may err more.
    """
    found = np.full((len(series), plan.comparisons), plan.seeds + 1)
    for place, one in enumerate(series):
        if one:
            looks = np.stack(tests(np.array(one, dtype=float)))
            found[place] = np.maximum.accumulate(np.where(looks == 0, plan.seeds + 1, looks).max(axis=0))
    return found


def _left_by_holm(reached: np.ndarray, looks: np.ndarray, comparisons: int) -> list[int]:
    """Of each comparison how many were undecided when it was: its level is alpha by this; 0: it was not decided."""
    rejected = [0] * len(reached)
    while True:
        undecided = comparisons - sum(map(bool, rejected))
        new = [
            place
            for place in range(len(reached))
            if not rejected[place] and undecided and reached[place, undecided - 1] <= looks[place]
        ]
        if not new:
            return rejected
        for place in new:
            rejected[place] = undecided


def _known(differences: Sequence[float | None]) -> list[float]:
    """Differences up to the first that is missing, to 9 decimals: float noise makes none."""
    known = []
    for difference in differences:
        if difference is None:
            break
        if not math.isfinite(difference):
            raise ValueError("differences must be finite numbers")
        known.append(round(float(difference), 9))
    return known
