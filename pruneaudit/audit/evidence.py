"""What a rule may look at: the measured records of an arm, of two arms, and of the table around them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, wraps
from operator import itemgetter
from typing import Any, TypeVar

from pruneaudit.audit.sequential import Plan
from pruneaudit.catalog.cells import Arm, Cell, Comparison
from pruneaudit.catalog.names import is_scratch
from pruneaudit.ledger.records import CellRecord, RunRecord, unpack
from pruneaudit.ledger.store import Ledger
from pruneaudit.workloads.metrics import ACCURACY, Metric

Value = TypeVar("Value")
#: What is measured of arms, by all that their cells say but the protocol: many protocols ask for the same runs.
Known = dict[tuple[Any, ...], dict[Any, Any]]
_but_the_protocol = itemgetter(*(name for name in CellRecord.model_fields if not name.startswith("protocol")))


def measured(measure: Callable[[Evidence], Value]) -> Callable[[Evidence], Value]:
    """What is measured of an arm, once: it stands in many comparisons, and mostly under several protocols.

    So it may read all that an arm has but the protocol of its cell.
    """

    @wraps(measure)
    def remembered(arm: Evidence) -> Value:
        found: Value
        try:
            found = arm._measured[measure]
        except KeyError:
            found = arm._measured[measure] = measure(arm)
        return found

    return remembered


@dataclass(frozen=True)
class Evidence:
    """One measured cell with its runs.

    Attributes:
        cell: The cell.
        base: The dense model that the arm started from; None for scratch arms.
        topup: Plain training in place of a shorter pruning stage, or None.
        prune: The prune stage; None for scratch arms.
        trials: All retrainings of the arm (or its scratch training).
        result: The run that the accuracy comes from.
    """

    cell: CellRecord
    base: RunRecord | None
    topup: RunRecord | None
    prune: RunRecord | None
    trials: tuple[RunRecord, ...]
    result: RunRecord
    _measured: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def read(cls, cell: CellRecord, ledger: Ledger, known: Known | None = None) -> Evidence:
        """Fetch the runs of a measured cell.

        Args:
            cell: The cell.
            ledger: Where its runs are.
            known: What is measured of other cells that stand on the same runs.

        Raises:
            DamagedError: A run is missing or cannot be read.
        """

        def get(run: str | None) -> RunRecord | None:
            return ledger.get(run) if run is not None else None

        assert cell.result is not None
        found = cls(
            cell=cell,
            base=None if is_scratch(cell.method) else get(cell.base),
            topup=get(cell.topup),
            prune=get(cell.prune),
            trials=tuple(ledger.get(run) for run in cell.trials),
            result=ledger.get(cell.result),
        )
        if known is not None:
            # No argument: an arm that is another one in some respect begins anew.
            object.__setattr__(found, "_measured", known.setdefault(_but_the_protocol(cell.__dict__), found._measured))
        return found

    @property
    def answers(self) -> int:
        """Test images that the result got right by its metric, a bit each, see :func:`unpack`."""
        return _answers(self)

    @property
    def metric(self) -> Metric:
        """What decides, as the workload stated it when the cell was measured."""
        return self.cell.metric

    @cached_property
    def ids(self) -> list[str]:
        """Ids of all runs, in order of stages."""
        return self.cell.runs

    @cached_property
    def pruning_stage(self) -> list[RunRecord]:
        """Runs between base and retraining, in order."""
        return [run for run in (self.topup, self.prune) if run is not None]

    @cached_property
    def stages(self) -> list[RunRecord]:
        """All runs whose cost the result stands on, in order."""
        return [run for run in (self.base, *self.pruning_stage, self.result) if run is not None]

    @cached_property
    def runs(self) -> list[RunRecord]:
        """All runs, trials that were not chosen included, each once."""
        # The ledger has one object for each; its id is a hash of all that it is, and takes its time.
        return list({id(run): run for run in (*self.stages, *self.trials)}.values())


@measured
def _answers(arm: Evidence) -> int:
    return unpack(arm.result.outcomes, arm.result.test_images)


@dataclass(frozen=True)
class Table:
    """All cells of one workload under one set of labels that count today.

    Attributes:
        cells: Records by cell.
        order: Protocols that compare pruning arms, from loosest to strictest.
    """

    cells: Mapping[Cell, CellRecord] = field(default_factory=dict)
    order: tuple[str, ...] = ()

    @cached_property
    def metric(self) -> Metric:
        """What decides on this workload."""
        return next((record.metric for record in self.cells.values()), ACCURACY)

    def values(self, workload: str, protocol: str, method: str, ratio: float) -> dict[int, float]:
        """The metric by seed of the cells of an arm that were measured."""
        return self._values.get((workload, protocol, method, ratio), {})

    def points(self) -> set[tuple[str, str, float]]:
        """Measured (protocol, method, ratio)."""
        return {(protocol, method, ratio) for _, protocol, method, ratio in self._values}

    def ratios(self, protocol: str, method: str) -> list[float]:
        """Ratios at which a method was measured under a protocol, rising."""
        return self._ratios.get((protocol, method), [])

    def methods(self, protocol: str, ratio: float) -> set[str]:
        """Methods that were measured under a protocol at a ratio."""
        return self._methods.get((protocol, ratio), set())

    # Every comparison asks for the table around it: who would scan it each time takes time in the square of its cells.

    @cached_property
    def _values(self) -> dict[tuple[str, str, str, float], dict[int, float]]:
        found: dict[tuple[str, str, str, float], dict[int, float]] = defaultdict(dict)
        for cell, record in self.cells.items():
            if record.value is not None:
                found[cell.workload, cell.protocol, cell.method, cell.ratio][cell.seed] = record.value
        return dict(found)

    @cached_property
    def _ratios(self) -> dict[tuple[str, str], list[float]]:
        found: dict[tuple[str, str], set[float]] = defaultdict(set)
        for protocol, method, ratio in self.points():
            found[protocol, method].add(ratio)
        return {key: sorted(ratios) for key, ratios in found.items()}

    @cached_property
    def _methods(self) -> dict[tuple[str, float], set[str]]:
        found: dict[tuple[str, float], set[str]] = defaultdict(set)
        for protocol, method, ratio in self.points():
            found[protocol, ratio].add(method)
        return dict(found)


@dataclass(frozen=True)
class Case:
    """What is judged: one or two arms over paired seeds, and the table that they stand in.

    Attributes:
        subject: The arm or the comparison.
        seeds: For each seed, the evidence of each arm; empty where a cell is missing or failed.
        broken: Reason for each seed without evidence.
        failed: Seeds of which a cell was tried and failed.
        table: Everything measured of the workload.
        plan: What was fixed of a comparison before its first seed trained; None: its seeds are a fixed number.
        looks: Numbers of seeds over which sessions gave a verdict on it without a plan.
        valid: How many seeds of each arm have evidence; empty: as many as of the pair.
    """

    subject: Arm | Comparison
    seeds: Mapping[int, tuple[Evidence, ...]]
    broken: Mapping[int, str] = field(default_factory=dict)
    failed: frozenset[int] = frozenset()
    table: Table = field(default_factory=Table)
    plan: Plan | None = None
    looks: tuple[int, ...] = ()
    valid: tuple[int, ...] = ()
    _runs: dict[int | None, tuple[str, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _sides: list[Case] = field(default_factory=list, init=False, repr=False, compare=False)
    _measured: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def read(
        cls,
        subject: Arm | Comparison,
        cell_of: Callable[[Cell], CellRecord | None],
        ledger: Ledger,
        table: Table | None = None,
        known: Known | None = None,
    ) -> Case:
        """Fetch the evidence of an arm or a comparison.

        Args:
            subject: What is judged.
            cell_of: Gives the record of a cell, or None where it was not measured.
            ledger: Where the runs are.
            table: Everything measured of the workload.
            known: What is measured of other arms.
        """
        if isinstance(subject, Comparison):
            left, right = (cls.read(arm, cell_of, ledger, table, known) for arm in subject.arms)
            return cls.paired(subject, left, right)
        seeds: dict[int, tuple[Evidence, ...]] = {}
        broken: dict[int, str] = {}
        failed = set()
        for cell in subject.cells():
            record = cell_of(cell)
            if record is not None and record.status == "ok":
                seeds[cell.seed] = (Evidence.read(record, ledger, known),)
                continue
            seeds[cell.seed] = ()
            broken[cell.seed] = f"{cell.id}: {'not measured' if record is None else record.error}"
            if record is not None:
                failed.add(cell.seed)
        return cls(subject, seeds, broken, frozenset(failed), table or Table(), valid=(len(seeds) - len(broken),))

    @classmethod
    def paired(cls, subject: Comparison, left: Case, right: Case) -> Case:
        """The case of a comparison, from those of its arms."""
        seeds: dict[int, tuple[Evidence, ...]] = {}
        broken: dict[int, str] = {}
        for seed in subject.seeds:
            ours, theirs = left.seeds[seed], right.seeds[seed]
            seeds[seed] = ours + theirs if ours and theirs else ()
            if not seeds[seed]:
                broken[seed] = left.broken.get(seed) or right.broken[seed]
        case = cls(subject, seeds, broken, left.failed | right.failed, left.table, valid=left.valid + right.valid)
        # Where all seeds are complete, what is measured of an arm is so in all of its comparisons.
        case._sides.extend([] if broken else [left, right])
        return case

    @cached_property
    def pairs(self) -> list[tuple[Evidence, ...]]:
        """Evidence of the seeds that are complete."""
        return [arms for arms in self.seeds.values() if arms]

    @property
    def series(self) -> str:
        """What tells its seeds from those of other versions of its arms: the results of the first pair."""
        return "-".join(sorted(arm.result.run_id for arm in self.pairs[0])) if self.pairs else ""

    def measured(self, measure: Callable[[Evidence], Value]) -> list[tuple[Value, ...]]:
        """For each arm what is measured of it at each seed that is complete."""
        if self._sides:
            return [values for side in self._sides for values in side.measured(measure)]
        if measure not in self._measured:
            self._measured[measure] = [tuple(map(measure, arms)) for arms in zip(*self.pairs, strict=True)]
        found: list[tuple[Value, ...]] = self._measured[measure]
        return found

    def runs(self, seed: int | None) -> tuple[str, ...]:
        """Ids of all runs of the arms at a seed, or (None) at all seeds, each once."""
        if seed not in self._runs:
            shown = self.pairs if seed is None else [self.seeds[seed]]
            self._runs[seed] = tuple(dict.fromkeys(run for arms in shown for arm in arms for run in arm.ids))
        return self._runs[seed]
