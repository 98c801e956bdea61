"""What a rule may look at: the measured records of one arm at one seed."""

from __future__ import annotations

from dataclasses import dataclass

from pruneaudit.cells import is_scratch
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
