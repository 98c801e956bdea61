"""Executes runs in this process, and shares the work with the other processes at the same ledger."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from filelock import Timeout

from pruneaudit.errors import AuditError, one_line
from pruneaudit.executors.cost import Cost, cost
from pruneaudit.ledger import Ledger
from pruneaudit.progress import Plan, Planned
from pruneaudit.records import FailureRecord, RunRecord, RunSpec
from pruneaudit.stages import Stages

#: Seconds between looks at a run that another process trains, when there is nothing else to do.
POLL = 0.1


class RunFailedError(AuditError):
    """A run did not come to an end; the message names it and says why."""


class LocalExecutor:
    """Obtains runs: reads them, executes them, or waits for the process that does.

    While another process trains a run that this one needs, this one executes other runs of the session that are ready,
    so that no worker stands idle at a lock.

    Args:
        ledger: Store of records.
        stages: How a run is executed.
        session: Id of the session: a run that failed in it is not tried again in it.
    """

    def __init__(self, ledger: Ledger, stages: Stages, session: str) -> None:
        self.ledger = ledger
        self.stages = stages
        self.session = session
        self._backlog: list[RunSpec] = []
        # What other processes are told: all runs of the session, and what those of each kind took this process.
        self._told: dict[str, Any] = {"planned": 0}
        self._spent: dict[str, tuple[float, float]] = {}

    def share(self, runs: Sequence[RunSpec], cells: Mapping[str, Sequence[str]] | None = None) -> None:
        """Name all runs of the session, parents first: this process helps with them instead of waiting.

        Args:
            runs: The runs.
            cells: For each cell of the session, by its key, the ids of its runs.
        """
        self._backlog = list(runs)
        planned = tuple(self._planned(run) for run in runs)
        content = Plan(runs=planned, cells={key: tuple(ids) for key, ids in (cells or {}).items()})
        plan = self.ledger.report_plan(self.session, content.model_dump(mode="json", exclude={"time"}))
        self._told = {"planned": len(planned), "plan": plan}

    def obtain(self, spec: RunSpec) -> RunRecord:
        """The run's record; its parents must be finished.

        Raises:
            RunFailedError: It failed, now or earlier in this session.
            DamagedError: Its record cannot be read.
        """
        while True:
            record = self._finished(spec)
            if record is not None:
                return record
            if not self._try(spec) and not self._help(spec):
                time.sleep(POLL)

    def _finished(self, spec: RunSpec) -> RunRecord | None:
        record = self.ledger.find(spec)
        if record is None:
            failure = self.ledger.failure(spec, self.session)
            if failure is not None:
                raise RunFailedError(failure.error)
        return record

    def _try(self, spec: RunSpec) -> bool:
        """Execute a run unless another process holds it; say whether it was free."""
        lock = self.ledger.lock(spec)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        try:
            # It may have been finished between the look and the lock.
            if not self._over(spec):
                self._execute(spec)
        finally:
            lock.release()
        return True

    def _execute(self, spec: RunSpec) -> None:
        started = time.time()
        planned, needed = self._planned(spec), self._cost(spec)
        epochs = needed.passes if needed is not None else 0
        first: int | None = None

        def progress(done: int, total: int, accuracy: float | None) -> None:
            nonlocal first
            # A run that goes on from a checkpoint begins with a later epoch.
            first = done - 1 if first is None and done else first
            facts = {"run": spec.slug, "id": spec.run_id, "epoch": done, "epochs": total, "accuracy": accuracy}
            facts |= {"begun": first or 0, "started": started, "spent": self._spent}
            self.ledger.report_progress({**facts, **self._told})

        try:
            progress(0, epochs, None)
            self.stages.execute(spec, progress)
            if planned.cost is not None:
                macs, seconds = self._spent.get(planned.kind, (0.0, 0.0))
                trained = planned.cost * (1 - (first or 0) / max(epochs, 1))
                self._spent[planned.kind] = (macs + trained, seconds + time.time() - started)
        except Exception as error:
            # Not only our own errors: whatever a method or a driver raises must cost this run alone.
            self.ledger.fail(
                FailureRecord(
                    spec=spec,
                    error=f"run {spec.slug} failed: {one_line(error)}",
                    traceback=traceback.format_exc(),
                    session=self.session,
                    finished=datetime.now(UTC).isoformat(timespec="seconds"),
                )
            )
        finally:
            self.ledger.report_progress(None)

    def _planned(self, spec: RunSpec) -> Planned:
        """What other processes are told of a run."""
        needed = self._cost(spec)
        if needed is None:
            return Planned(id=spec.run_id, run=spec.slug, needs=spec.needs)
        # A small network takes longer for each MAC than a large one, and so does a method that does more than train.
        method = f" {spec.method}" if spec.stage == "prune" else ""
        kind = f"{spec.workload} {spec.stage}{method} {needed.macs}"
        return Planned(id=spec.run_id, run=spec.slug, needs=spec.needs, kind=kind, cost=needed.total)

    def _cost(self, spec: RunSpec) -> Cost | None:
        """What a run has to compute; None where that cannot be told: an estimate must not cost a run."""
        try:
            return cost(spec, self.stages.catalog)
        except Exception:
            return None

    def _help(self, wanted: RunSpec) -> bool:
        """Execute one other run of the session that is ready and free; say whether there was one."""
        finished = self.ledger.finished()
        self._backlog = [run for run in self._backlog if run.run_id not in finished]
        for spec in self._backlog:
            ready = all(run in finished for run in spec.needs)
            if spec != wanted and ready and not self._over(spec) and self._try(spec):
                return True
        return False

    def _over(self, spec: RunSpec) -> bool:
        return self.ledger.find(spec) is not None or self.ledger.failure(spec, self.session) is not None
