"""What a rule may look at: the measured records of an arm, of two arms, and of the table around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pruneaudit.catalog import is_scratch
from pruneaudit.cells import Arm, Cell, Comparison
from pruneaudit.ledger import Ledger
from pruneaudit.records import CellRecord, RunRecord


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

    @classmethod
    def read(cls, cell: CellRecord, ledger: Ledger) -> Evidence:
        """Fetch the runs of a measured cell.

        Raises:
            DamagedError: A run is missing or cannot be read.
        """

        def get(run: str | None) -> RunRecord | None:
            return ledger.get(run) if run is not None else None

        assert cell.result is not None
        return cls(
            cell=cell,
            base=None if is_scratch(cell.method) else get(cell.base),
            topup=get(cell.topup),
            prune=get(cell.prune),
            trials=tuple(ledger.get(run) for run in cell.trials),
            result=ledger.get(cell.result),
        )

    @property
    def pruning_stage(self) -> list[RunRecord]:
        """Runs between base and retraining, in order."""
        return [run for run in (self.topup, self.prune) if run is not None]

    @property
    def stages(self) -> list[RunRecord]:
        """All runs whose cost the result stands on, in order."""
        return [run for run in (self.base, *self.pruning_stage, self.result) if run is not None]

    @property
    def runs(self) -> list[RunRecord]:
        """All runs, trials that were not chosen included, each once."""
        return list({run.run_id: run for run in (*self.stages, *self.trials)}.values())


@dataclass(frozen=True)
class Table:
    """All cells of one workload under one set of labels that count today.

    Attributes:
        cells: Records by cell.
        order: Protocols that compare pruning arms, from loosest to strictest.
    """

    cells: Mapping[Cell, CellRecord] = field(default_factory=dict)
    order: tuple[str, ...] = ()

    def accuracies(self, workload: str, protocol: str, method: str, ratio: float) -> dict[int, float]:
        """Accuracy by seed of the cells of an arm that were measured."""
        return {
            cell.seed: record.accuracy
            for cell, record in self.cells.items()
            if (cell.workload, cell.protocol, cell.method, cell.ratio) == (workload, protocol, method, ratio)
            and record.accuracy is not None
        }

    def points(self) -> set[tuple[str, str, float]]:
        """Measured (protocol, method, ratio)."""
        return {
            (cell.protocol, cell.method, cell.ratio)
            for cell, record in self.cells.items()
            if record.accuracy is not None
        }


@dataclass(frozen=True)
class Case:
    """What is judged: one or two arms over paired seeds, and the table that they stand in.

    Attributes:
        subject: The arm or the comparison.
        seeds: For each seed, the evidence of each arm; empty where a cell is missing or failed.
        broken: Reason for each seed without evidence.
        failed: Seeds of which a cell was tried and failed.
        table: Everything measured of the workload.
    """

    subject: Arm | Comparison
    seeds: Mapping[int, tuple[Evidence, ...]]
    broken: Mapping[int, str] = field(default_factory=dict)
    failed: frozenset[int] = frozenset()
    table: Table = field(default_factory=Table)

    @classmethod
    def read(
        cls,
        subject: Arm | Comparison,
        cell_of: Callable[[Cell], CellRecord | None],
        ledger: Ledger,
        table: Table | None = None,
    ) -> Case:
        """Fetch the evidence of an arm or a comparison.

        Args:
            subject: What is judged.
            cell_of: Gives the record of a cell, or None where it was not measured.
            ledger: Where the runs are.
            table: Everything measured of the workload.
        """
        seeds: dict[int, tuple[Evidence, ...]] = {}
        broken: dict[int, str] = {}
        failed = set()
        for seed in subject.seeds:
            cells = [Cell(subject.workload, subject.protocol, name, subject.ratio, seed) for name in subject.methods]
            records = [cell_of(cell) for cell in cells]
            seeds[seed] = ()
            for cell, record in zip(cells, records, strict=True):
                if record is None or record.status != "ok":
                    broken.setdefault(seed, f"{cell.id}: {'not measured' if record is None else record.error}")
                if record is not None and record.status != "ok":
                    failed.add(seed)
            if seed not in broken:
                seeds[seed] = tuple(Evidence.read(record, ledger) for record in records if record is not None)
        return cls(subject, seeds, broken, frozenset(failed), table or Table())

    @property
    def pairs(self) -> list[tuple[Evidence, ...]]:
        """Evidence of the seeds that are complete."""
        return [arms for arms in self.seeds.values() if arms]
