"""Gives the runs of a session to a cluster: parents first, lost ones again. Imports no torch.

This is no scheduler: when a task starts, where, and beside which others, the cluster says. What is known here is the
graph of runs, and that the ledger alone tells whether one is finished: a task that ended and left neither record nor
failure was lost, whatever its cluster says of it.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from pruneaudit.campaign.executors.assignment import Assignment, Terms
from pruneaudit.campaign.executors.orders import Orders
from pruneaudit.errors import AuditError, StorageError, one_line
from pruneaudit.ledger.records import FailureRecord, RunSpec
from pruneaudit.ledger.store import Ledger

#: How many times a run is given out again after its task was lost: with a node, or killed.
RETRIES = 3
#: Seconds until tasks that were refused while others are under way are tried again, and that cancelling may take.
LATER, PATIENCE = 30.0, 30.0
#: Seconds between looks at all runs of the ledger, for those that somebody else finished.
LOOK = 1.0


class RefusedError(AuditError):
    """The cluster takes no task, or cannot be reached; the message is its own."""


@dataclass(frozen=True)
class Ended:
    """How a task ended, in its cluster's words.

    Attributes:
        why: One line.
        lost: Whether another try may succeed; not where the task itself says that it cannot.
    """

    why: str
    lost: bool = True


class Scheduler(Protocol):
    """A cluster that takes tasks."""

    def prepare(self, terms: Terms) -> None:
        """Have processes load what tasks will need, where the cluster can, while there are none yet."""
        ...

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Give tasks to the cluster, to be computed in any order.

        Raises:
            RefusedError: It takes none of them, now or ever.
        """
        ...

    def ended(self, over: threading.Event) -> Collection[str]:
        """Ids of runs whose tasks have ended since this was asked last; waits a while where there is none.

        Args:
            over: Set when nobody waits for anything any more.
        """
        ...

    def how(self, run_id: str) -> Ended:
        """How the last task of a run ended; asked of those that left no result."""
        ...

    def cancel(self) -> None:
        """End all tasks that were submitted, and let the cluster go."""
        ...

    def words(self) -> str:
        """What its user should know of it when all is over, in one line; empty: nothing."""
        ...


class Dispatcher:
    """Submits what a session wants.

    Args:
        ledger: Where the runs are to be.
        terms: What all its runs have in common.
        scheduler: The cluster.
    """

    def __init__(self, ledger: Ledger, terms: Terms, scheduler: Scheduler) -> None:
        self.ledger = ledger
        self.terms = terms
        self.scheduler = scheduler
        self.orders = Orders(ledger, terms.session)
        self._runs: dict[str, RunSpec] = {}
        # What each run still waits for, and who waits for each run.
        self._lacks: dict[str, set[str]] = {}
        self._children: dict[str, list[str]] = defaultdict(list)
        self._finished: set[str] = set()
        self._ready: dict[str, None] = {}
        self._under_way: set[str] = set()
        self._lost: dict[str, list[str]] = defaultdict(list)
        #: Set when nobody waits for anything any more.
        self.over = threading.Event()
        self._not_before = self._next_look = 0.0

    def step(self) -> None:
        """Look once at what is wanted, finished and lost, and submit what is ready.

        Raises:
            RefusedError: The cluster takes nothing, although nothing of this session is under way there.
            StorageError: The ledger cannot be written.
        """
        wanted = self.orders.wanted()
        if wanted or time.monotonic() >= self._next_look:
            self._look()
        for run in wanted:
            self._add(run)
        self._submit()
        for run_id in self.scheduler.ended(self.over):
            self._end(run_id)

    def _look(self) -> None:
        """See which runs were finished since the last look, by whomever."""
        self._next_look = time.monotonic() + LOOK
        runs = self.ledger.root / "runs"
        new = [name for name in self.ledger.folders() if name.rpartition("-")[2] not in self._finished]
        # Somebody may have left a folder without a record.
        for name in new:
            if (runs / name / "record.json").exists():
                self._finish(name.rpartition("-")[2])

    def _finish(self, run_id: str) -> None:
        """A run is finished: those that waited for nothing else are ready."""
        self._finished.add(run_id)
        self._ready.pop(run_id, None)
        for child in self._children.pop(run_id, ()):
            self._lacks[child].discard(run_id)
            if not self._lacks[child] and child not in self._finished:
                self._ready[child] = None

    def _add(self, run: RunSpec) -> None:
        run_id = run.run_id
        if run_id in self._runs or run_id in self._finished:
            return
        self._runs[run_id] = run
        self._lacks[run_id] = set(run.needs) - self._finished
        for parent in self._lacks[run_id]:
            self._children[parent].append(run_id)
        if not self._lacks[run_id]:
            self._ready[run_id] = None

    def _submit(self) -> None:
        if not self._ready or time.monotonic() < self._not_before:
            return
        try:
            self.scheduler.submit([Assignment(terms=self.terms, spec=self._runs[run_id]) for run_id in self._ready])
        except RefusedError:
            if not self._under_way:
                raise
            # A user may have so many tasks and no more: there is room when some have ended.
            self._not_before = time.monotonic() + LATER
        else:
            self._under_way.update(self._ready)
            self._ready.clear()

    def _end(self, run_id: str) -> None:
        """A task has ended; its run may be finished, failed or lost."""
        self._under_way.discard(run_id)
        run = self._runs[run_id]
        # Asked of this run alone: tasks may end faster than all runs of a ledger are listed.
        if run_id not in self._finished and self.ledger.has(run, run_id):
            self._finish(run_id)
        if run_id in self._finished or self.ledger.failure(run, self.terms.session) is not None:
            return
        how, tries = self.scheduler.how(run_id), self._lost[run_id]
        tries.append(how.why)
        if how.lost and len(tries) <= RETRIES:
            self._ready[run_id] = None
            return
        times = "once" if len(tries) == 1 else f"{len(tries)} times"
        self.ledger.fail(
            FailureRecord(
                spec=run,
                error=f"run {run.slug} failed: its task ended {times} without a result: {how.why}",
                traceback="".join(f"try {number}: {why}\n" for number, why in enumerate(tries, 1)),
                session=self.terms.session,
                finished=datetime.now(UTC).isoformat(timespec="seconds"),
            )
        )

    @property
    def lost_any(self) -> bool:
        """Whether a task ended without a result: what it printed may say why."""
        return bool(self._lost)


class Dispatching:
    """A dispatcher at work beside the session, in a thread of its controller, until the session ends.

    Args:
        dispatcher: Who submits.
        at_worst: Called with one line where those who wait cannot be told that nothing more will come.
    """

    def __init__(self, dispatcher: Dispatcher, at_worst: Callable[[str], None]) -> None:
        self._dispatcher = dispatcher
        self._at_worst = at_worst
        self._thread = threading.Thread(target=self._work, name="pruneaudit-dispatch", daemon=True)

    def __enter__(self) -> Dispatching:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._thread.join(PATIENCE)
        if not self._dispatcher.lost_any:
            self._dispatcher.orders.remove()

    def end(self) -> None:
        """Cancel what is under way, soon; from any thread."""
        self._dispatcher.over.set()

    def _work(self) -> None:
        try:
            self._dispatcher.scheduler.prepare(self._dispatcher.terms)
            while not self._dispatcher.over.is_set():
                self._dispatcher.step()
        except Exception as error:
            # Whatever it is, nobody is to wait for what will not come.
            try:
                self._dispatcher.orders.stop(one_line(error))
            except StorageError as second:
                self._at_worst(one_line(second))
        finally:
            self._dispatcher.scheduler.cancel()
