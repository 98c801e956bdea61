"""Executes runs in this process, and shares the work with the other processes at the same ledger."""

from __future__ import annotations

import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import lru_cache

from filelock import BaseFileLock, Timeout

from pruneaudit.campaign.cost import widths, workload_of
from pruneaudit.campaign.executors.bulletin import Bulletin
from pruneaudit.campaign.stages import Stages
from pruneaudit.catalog.settings import TOGETHER
from pruneaudit.errors import RunFailedError, StorageError, one_line
from pruneaudit.ledger.records import FailureRecord, RunRecord, RunSpec
from pruneaudit.ledger.store import Ledger, storage_error
from pruneaudit.training.loop import DivergedError

#: Seconds between looks at a run that another process trains, when there is nothing else to do.
POLL = 0.1


class LocalExecutor:
    """Obtains runs: reads them, executes them, or waits for the process that does.

    While another process trains a run that this one needs, this one executes other runs of the session that are ready,
    so that no worker stands idle at a lock; where there are none, runs that the session may need later. Such a run
    counts for nothing before somebody asks for it.

    Where the backend trains networks of one shape together, who needs a run takes all of its shape that the session
    still has to train; what these wait for (most of all that they are pruned) is done before.

    Args:
        ledger: Store of records.
        stages: How runs are executed.
        session: Id of the session: a run that failed in it is not tried again in it.
    """

    def __init__(self, ledger: Ledger, stages: Stages, session: str) -> None:
        self.ledger = ledger
        self.stages = stages
        self.session = session
        self.bulletin = Bulletin(ledger, stages.catalog, session)
        self._backlog: list[RunSpec] = []
        self._ahead: Callable[[], Sequence[RunSpec]] = tuple
        self._together: dict[Hashable, list[RunSpec]] = {}

    def share(self, runs: Sequence[RunSpec], cells: Mapping[str, Sequence[str]] | None = None) -> None:
        """Name all runs of the session, parents first: this process helps with them instead of waiting.

        Args:
            runs: The runs.
            cells: For each cell of the session, by its key, the ids of its runs.
        """
        self._backlog = list(runs)
        together = defaultdict(list)
        for run in runs:
            if (shape := self._shape(run)) is not None:
                together[shape].append(run)
        self._together = dict(together)
        self.bulletin.announce(runs, cells or {})

    def help_with(self, runs: Sequence[RunSpec], cells: Mapping[str, Sequence[str]]) -> None:
        """Name runs that the session needs besides those that were shared, parents first.

        Args:
            runs: The runs.
            cells: For each of their cells, by its key, the ids of its runs.
        """
        known = {run.run_id for run in self._backlog}
        more = [run for run in runs if run.run_id not in known]
        for run in more:
            self._backlog.append(run)
            if (shape := self._shape(run)) is not None:
                self._together.setdefault(shape, []).append(run)
        self.bulletin.announce(more, cells)

    def foresee(self, likely: Mapping[str, Sequence[Sequence[tuple[RunSpec, float]]]]) -> None:
        """Tell what the session will probably need besides: it is in no count, and in the time that is left.

        Args:
            likely: Runs, parents first, by table and round, with their chances.
        """
        self.bulletin.foresee(likely)

    def go_ahead_with(self, runs: Callable[[], Sequence[RunSpec]]) -> None:
        """Say who knows runs that the session may need later, in place of who knew them before.

        They are executed where this process would wait otherwise, and are in no plan that others are told.

        Args:
            runs: Gives the runs, parents first; asked when this process has nothing else to do, and once.
        """
        self._ahead = lru_cache(runs)

    def obtain(self, spec: RunSpec) -> RunRecord:
        """The run's record; its parents must be finished.

        Raises:
            RunFailedError: It failed, now or earlier in this session.
            DamagedError: Its record cannot be read.
            StorageError: The ledger cannot be written.
        """
        while True:
            record = self._finished(spec)
            if record is not None:
                return record
            if not self._advance(spec) and not self._help(spec):
                time.sleep(POLL)

    def _finished(self, spec: RunSpec) -> RunRecord | None:
        record = self.ledger.find(spec)
        if record is None:
            failure = self.ledger.failure(spec, self.session)
            if failure is not None:
                raise RunFailedError(failure.error)
        return record

    def _advance(self, spec: RunSpec) -> bool:
        """Execute a run that is ready, with those of its shape, or one that these wait for.

        Returns:
            Whether anything was done; if not, other processes are at it.
        """
        shape = self._shape(spec)
        if shape is None:
            return self._try([spec])
        finished = self.ledger.finished()
        batch = [spec, *(run for run in self._together.get(shape, ()) if run != spec and run.run_id not in finished)]
        awaited = self._awaited(batch, finished)
        if awaited:
            return any(self._is_ready(run, finished) and self._try([run]) for run in awaited)
        return self._try([run for run in batch if self._is_ready(run, finished)])

    def _awaited(self, runs: Sequence[RunSpec], finished: Collection[str]) -> list[RunSpec]:
        """Runs of the session that these wait for and that can still be finished, parents first."""
        needed = {run for spec in runs for run in spec.needs}
        for spec in reversed(self._backlog):
            if spec.run_id in needed:
                needed.update(spec.needs)
        found: dict[str, RunSpec] = {}
        for spec in self._backlog:
            is_open = spec.run_id in needed and spec.run_id not in finished
            if (
                is_open
                and all(run in finished or run in found for run in spec.needs)
                and self.ledger.failure(spec, self.session) is None
            ):
                found[spec.run_id] = spec
        return list(found.values())

    def _help(self, wanted: RunSpec) -> bool:
        """Execute another run that is ready and free: of the session, or of what it may need later.

        Returns:
            Whether there was one.
        """
        finished = self.ledger.finished()
        self._backlog = [run for run in self._backlog if run.run_id not in finished]
        return self._any_of(self._backlog, wanted, finished) or self._any_of(self._ahead(), wanted, finished)

    def _any_of(self, runs: Sequence[RunSpec], wanted: RunSpec, finished: Collection[str]) -> bool:
        """Execute the first of some runs that can be; say whether one could."""
        return any(
            spec != wanted
            and spec.run_id not in finished
            and self._is_ready(spec, finished)
            and not self._over(spec)
            and self._advance(spec)
            for spec in runs
        )

    def _try(self, specs: Sequence[RunSpec]) -> bool:
        """Execute runs, except those that other processes hold; say whether the first one was free."""
        with ExitStack() as stack:
            locks: dict[str, BaseFileLock] = {}
            for spec in specs:
                lock = self.ledger.lock(spec)
                try:
                    stack.enter_context(lock.acquire(timeout=0))
                except Timeout:
                    if not locks:
                        return False
                except OSError as error:
                    raise storage_error(error, self.ledger.root) from None
                else:
                    locks[spec.run_id] = lock
            # They may have been finished between the look and the lock.
            free = [spec for spec in specs if spec.run_id in locks and not self._over(spec)]
            if free:
                self._execute(free, locks)
        return True

    def _execute(self, specs: Sequence[RunSpec], locks: Mapping[str, BaseFileLock]) -> None:
        left = {spec.run_id: spec for spec in specs}

        def over(spec: RunSpec, outcome: RunRecord | Exception) -> None:
            if isinstance(outcome, StorageError):
                # No fault of the run, and nothing that the ledger could keep: it goes on when there is room again.
                raise outcome
            if isinstance(outcome, Exception):
                self._fail(spec, outcome)
            del left[spec.run_id]
            self.bulletin.over(spec, outcome)
            # Who waits for it need not wait for those that train beside it.
            locks[spec.run_id].release()

        self.bulletin.begin(specs)
        try:
            self.stages.execute_many(specs, self.bulletin.progress, over)
        except StorageError:
            raise
        except Exception as error:
            for spec in list(left.values()):
                over(spec, error)
        finally:
            self.bulletin.end()

    def _fail(self, spec: RunSpec, error: Exception) -> None:
        self.ledger.fail(
            FailureRecord(
                spec=spec,
                error=f"run {spec.slug} failed: {one_line(error)}",
                traceback="".join(traceback.format_exception(error)),
                session=self.session,
                finished=datetime.now(UTC).isoformat(timespec="seconds"),
                train_loss=error.losses if isinstance(error, DivergedError) else [],
            )
        )

    def _is_ready(self, spec: RunSpec, finished: Collection[str]) -> bool:
        return all(run in finished for run in spec.needs)

    def _over(self, spec: RunSpec) -> bool:
        return self.ledger.find(spec) is not None or self.ledger.failure(spec, self.session) is not None

    def _shape(self, spec: RunSpec) -> Hashable | None:
        """What runs that train together have in common, as far as it is planned; None: the run trains alone."""
        acts = spec.stage == "prune" or spec.method_digest is not None or spec.checkpoint is not None
        if acts or spec.recipe.only_torch or spec.backend not in TOGETHER:
            return None
        catalog, recipe = self.stages.catalog, spec.recipe
        kept = tuple(sorted(widths(spec, workload_of(spec, catalog), catalog).items()))
        network = spec.model, spec.model_args, spec.model_source, kept
        return network, spec.data, recipe.batch, recipe.nesterov, spec.precision, spec.backend
