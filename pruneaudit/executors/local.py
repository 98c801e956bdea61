"""Executes runs in this process, and shares the work with the other processes at the same ledger."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime

from filelock import Timeout

from pruneaudit.errors import AuditError, one_line
from pruneaudit.ledger import Ledger
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
        self._planned = 0

    def share(self, runs: Sequence[RunSpec]) -> None:
        """Name all runs of the session, parents first: this process helps with them instead of waiting."""
        self._backlog = list(runs)
        self._planned = len(self._backlog)

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

        def progress(done: int, total: int, accuracy: float) -> None:
            facts = {"run": spec.slug, "epoch": done, "epochs": total, "accuracy": accuracy, "started": started}
            self.ledger.report_progress({**facts, "planned": self._planned})

        try:
            self.stages.execute(spec, progress)
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
