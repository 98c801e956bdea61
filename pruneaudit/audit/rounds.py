"""Families of comparisons whose seeds are trained round by round: their plan in the ledger, and what they need next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from statistics import fmean
from typing import TypeVar

from pruneaudit.audit.prospect import chances_open
from pruneaudit.audit.sequential import Plan, Stop, decide
from pruneaudit.catalog.cells import Arm, Cell, Comparison
from pruneaudit.errors import ConfigError
from pruneaudit.ledger.records import CellRecord
from pruneaudit.ledger.store import Ledger
from pruneaudit.schema import Frozen
from pruneaudit.workloads.metrics import Metric

#: Chance below which nobody counts on a seed: what is told of seeds to come stays short.
RARE = 0.05

Subject = TypeVar("Subject", bound=Arm | Comparison)


class Family(Frozen):
    """Comparisons of one workload under one protocol, and the plan that was made for them before a seed trained.

    Attributes:
        workload: What is compared: name of the workload,
        protocol: of the protocol,
        labels: and settings that are not the default.
        pairs: First method, second method and ratio of each comparison, sorted.
        plan: What was fixed.
        seen: Paired seeds that the ledger held already of the comparison with most: fewer than show anything.
    """

    workload: str
    protocol: str
    labels: tuple[str, ...]
    pairs: tuple[tuple[str, str, float], ...]
    plan: Plan
    seen: int = 0

    @property
    def name(self) -> str:
        """Name of its file in the ledger."""
        return table_name(self.workload, self.protocol, self.labels)

    def with_rules_of(self, other: Family) -> Family:
        """The same comparisons, seeds and margin, by the rules that a plan of another version was written with."""
        rules = {"spending": other.plan.spending, "futility": other.plan.futility}
        return self.model_copy(update={"plan": self.plan.model_copy(update=rules)})

    @property
    def comparisons(self) -> list[Comparison]:
        """Its comparisons over all seeds that the plan may take."""
        seeds = tuple(range(self.plan.seeds))
        return [
            Comparison(self.workload, self.protocol, left, right, ratio, seeds) for left, right, ratio in self.pairs
        ]

    @property
    def certain(self) -> list[Cell]:
        """Cells of all seeds before which nothing can stop, seed by seed: they are trained whatever comes out."""
        return _by_seed(self.comparisons, range(self.plan.before_any_stop))

    def standing(self, record_of: Callable[[Cell], CellRecord | None], metric: Metric) -> Standing:
        """Where each comparison stands, whatever was trained beyond.

        Args:
            record_of: Gives the record of a cell, or None where it is not measured yet.
            metric: What decides.
        """
        comparisons = self.comparisons
        series = [differences(comparison, record_of, metric) for comparison in comparisons]
        stops = dict(zip(comparisons, decide(self.plan, series), strict=True))
        return Standing(self, stops, dict(zip(comparisons, series, strict=True)))


def _supposed(gaps: Sequence[float | None], count: int) -> list[float | None]:
    """Differences of so many seeds: those that come show the mean of those that are there."""
    known = [gap for gap in gaps if gap is not None]
    return [*gaps, *[fmean(known)] * (count - len(gaps))] if known else list(gaps)


def _by_seed(comparisons: Sequence[Comparison], seeds: Iterable[int]) -> list[Cell]:
    """Cells of both arms of some comparisons, each once, the first seed's first."""
    return list(
        dict.fromkeys(arm.cells()[seed] for seed in seeds for comparison in comparisons for arm in comparison.arms)
    )


def by_round(chances: Mapping[Comparison, Sequence[float]], start: int) -> list[dict[Cell, float]]:
    """Cells of one seed after the other, each with the chance that a comparison of its arm takes it.

    Args:
        chances: Of each comparison the chance that it takes each seed.
        start: The first seed.
    """
    rounds = []
    for seed in range(start, max(map(len, chances.values()), default=0)):
        found: dict[Cell, float] = {}
        for comparison, of_seeds in chances.items():
            if seed < len(of_seeds) and of_seeds[seed] >= RARE:
                for cell in _by_seed([comparison], [seed]):
                    found[cell] = 1 - (1 - found.get(cell, 0.0)) * (1 - of_seeds[seed])
        if not found:
            break
        rounds.append(found)
    return rounds


def table_name(workload: str, protocol: str, labels: Sequence[str]) -> str:
    """Name of what a ledger holds of a table: its plan, and looks at it."""
    return "-".join((workload, protocol, *labels))


def looks(ledger: Ledger, workload: str, labels: Sequence[str]) -> Callable[[str], dict[str, list[int]]]:
    """Gives of a protocol over how many seeds there were verdicts without a plan, see :meth:`Ledger.looks`."""
    return lru_cache(lambda protocol: ledger.looks(table_name(workload, protocol, labels)))


def differences(
    comparison: Comparison, record_of: Callable[[Cell], CellRecord | None], metric: Metric
) -> list[float | None]:
    """First arm minus second by seed, more is better, up to the first that is not measured, or that failed (None)."""
    found: list[float | None] = []
    for cells in zip(*(arm.cells() for arm in comparison.arms), strict=True):
        left, right = map(record_of, cells)
        if left is None or right is None:
            break
        if left.value is None or right.value is None:
            return [*found, None]
        found.append(metric.merit(left.value - right.value))
    return found


@dataclass(frozen=True)
class Standing:
    """Where the comparisons of a family stand.

    Attributes:
        family: The family.
        stops: Of each comparison, over all seeds that the plan may take.
        series: Of each comparison the differences by seed, see :func:`differences`.
    """

    family: Family
    stops: Mapping[Comparison, Stop]
    series: Mapping[Comparison, Sequence[float | None]]

    def of(self, comparison: Comparison) -> Stop | None:
        """Where a comparison stands, over whatever seeds; None: it was not planned."""
        seeds = tuple(range(self.family.plan.seeds))
        return self.stops.get(replace(comparison, seeds=seeds))

    @property
    def _open(self) -> list[Comparison]:
        return [comparison for comparison, stop in self.stops.items() if stop.word is None]

    @property
    def _asked(self) -> range:
        """Seeds that open comparisons need: the next one, and all before which nothing can stop."""
        looks = max((self.stops[comparison].looks for comparison in self._open), default=0)
        return range(looks, max(looks + 1, self.family.plan.before_any_stop))

    def wanted(self) -> list[Cell]:
        """Cells that the comparisons need that are open, seed by seed: of the next seed; at first of several."""
        return _by_seed(self._open, self._asked)

    def ahead(self, seeds: int) -> list[Cell]:
        """Cells of later seeds that will probably be wanted: for processes that have nothing else to do.

        They are those of comparisons that stay open where each seed to come shows what the seeds so far showed on
        average. Nothing follows from them before their look comes.

        Args:
            seeds: How many seeds beyond the wanted ones, at most.
        """
        found: list[Cell] = []
        # What was measured beyond the looks is not looked at.
        seen = {comparison: self.series[comparison][: stop.looks] for comparison, stop in self.stops.items()}
        if any(not seen[comparison] for comparison in self._open):
            return []
        for seed in range(self._asked.stop, min(self._asked.stop + seeds, self.family.plan.seeds)):
            supposed = [_supposed(gaps, seed) for gaps in seen.values()]
            stops = zip(seen, decide(self.family.plan, supposed), strict=True)
            found += _by_seed([comparison for comparison, stop in stops if stop.word is None], [seed])
        return found

    def likely(self) -> list[dict[Cell, float]]:
        """Cells that the open comparisons may take, round by round, the wanted ones first; each with its chance."""
        wanted = self.wanted()
        return [dict.fromkeys(wanted, 1.0), *by_round(self._chances, self._asked.stop)] if wanted else []

    def expected(self, comparison: Comparison) -> float:
        """Seeds that a comparison will probably have taken when it stops: those that it took, where it did."""
        return sum(self.chances(comparison))

    def chances(self, comparison: Comparison) -> tuple[float, ...]:
        """The chance that a comparison takes each seed of the plan: 1 of those that it took, or that are wanted."""
        seeds, stop = range(self.family.plan.seeds), self.stops[comparison]
        if stop.word is not None:
            return tuple(float(seed < stop.looks) for seed in seeds)
        return tuple(1.0 if seed in range(self._asked.stop) else self._chances[comparison][seed] for seed in seeds)

    @cached_property
    def _chances(self) -> dict[Comparison, list[float]]:
        """Of each open comparison the chance that it takes each seed."""
        plan, count = self.family.plan, len(self._open)
        found = {}
        for comparison in self._open:
            gaps = [gap for gap in self.series[comparison][: plan.seeds] if gap is not None]
            found[comparison] = chances_open(plan, gaps, count).tolist()
        return found

    def over_seeds_taken(self, subject: Subject) -> Subject:
        """The same arm or comparison over the seeds that it took; of an open one with the seed that it lacks."""
        first = self.family.plan.first
        taken = [
            max(first, stop.looks + (stop.word is None))
            for comparison, stop in self.stops.items()
            if subject.ratio == comparison.ratio
            and (
                subject.methods == comparison.methods
                or (isinstance(subject, Arm) and subject.method in comparison.methods)
            )
        ]
        return replace(subject, seeds=tuple(range(max(taken, default=first))))


def read(ledger: Ledger) -> dict[tuple[str, str, tuple[str, ...]], Family]:
    """Plans that a ledger holds, by workload, protocol and labels.

    Raises:
        DamagedError: One cannot be read.
    """
    families = ledger.planned(Family)
    return {(family.workload, family.protocol, family.labels): family for family in families}


def register(ledger: Ledger, family: Family, record_of: Callable[[Cell], CellRecord | None], metric: Metric) -> Family:
    """Write a plan before its first seed trains, or find the same one there.

    Raises:
        ConfigError: There is another plan for the same table, or so many seeds that its verdicts could be read:
            what was looked at cannot be planned, nor a plan changed when its results are known.
    """
    seen = max((len(differences(one, record_of, metric)) for one in family.comparisons), default=0)
    there = ledger.plan_once(
        family.name, family.model_copy(update={"seen": seen}), refuse=_too_late(family, seen, ledger)
    )
    if there.model_copy(update={"seen": 0}) != family:
        raise ConfigError(
            f"{family.workload} {family.protocol}: ledger {ledger.root} holds another plan, "
            f"{_text(there)}, and not {_text(family)}: go on with that one, or choose another --audit-ledger"
        )
    return there


def _too_late(family: Family, seen: int, ledger: Ledger) -> str:
    if seen < family.plan.first:
        return ""
    return (
        f"{family.workload} {family.protocol}: ledger {ledger.root} holds {seen} seeds trained without a plan: "
        "their verdicts can be known, and cannot be extended by --audit-decide; choose another --audit-ledger"
    )


def _text(family: Family) -> str:
    count = len(family.pairs)
    return (
        f"{family.plan.seeds} seeds at most for {count} comparison{'s' * (count != 1)}, margin {family.plan.margin:g}"
    )
