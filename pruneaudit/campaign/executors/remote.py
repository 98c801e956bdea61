"""Obtains runs that a cluster computes: asks for them, waits, and reads the ledger, which is the only truth."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from pruneaudit.campaign.executors.bulletin import Bulletin
from pruneaudit.campaign.executors.orders import Orders
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.errors import RunFailedError, StoppedError
from pruneaudit.ledger.records import RunRecord, RunSpec
from pruneaudit.ledger.store import Ledger

#: Seconds between looks at a run that is computed elsewhere.
POLL = 0.1


class RemoteExecutor:
    """Waits for runs. Who gives them to the cluster is the controller (:mod:`.dispatch`), in whatever process it is.

    Args:
        ledger: Store of records.
        catalog: What the length of a run is planned from.
        session: Id of the session.
    """

    def __init__(self, ledger: Ledger, catalog: Catalog, session: str) -> None:
        self.ledger = ledger
        self.session = session
        self.bulletin = Bulletin(ledger, catalog, session)
        self._orders = Orders(ledger, session)
        self._asked: set[str] = set()

    def share(self, runs: Sequence[RunSpec], cells: Mapping[str, Sequence[str]] | None = None) -> None:
        """Ask for all runs of the session, parents first.

        Args:
            runs: The runs.
            cells: For each cell of the session, by its key, the ids of its runs.
        """
        self.help_with(runs, cells or {})

    def help_with(self, runs: Sequence[RunSpec], cells: Mapping[str, Sequence[str]]) -> None:
        """Ask for runs that the session needs besides those that were asked for, parents first.

        Args:
            runs: The runs.
            cells: For each of their cells, by its key, the ids of its runs.
        """
        new = {run_id: run for run in runs if (run_id := run.run_id) not in self._asked}
        more = list(new.values())
        self._asked.update(new)
        self._orders.want(more)
        self.bulletin.announce(more, cells)

    def foresee(self, likely: Mapping[str, Sequence[Sequence[tuple[RunSpec, float]]]]) -> None:
        """Tell what the session will probably need besides: it is in no count, and in the time that is left.

        Args:
            likely: Runs, parents first, by table and round, with their chances.
        """
        self.bulletin.foresee(likely)

    def go_ahead_with(self, runs: Callable[[], Sequence[RunSpec]]) -> None:
        """Nothing: who waits here leaves no processor idle, and what may not be needed is not asked of a cluster."""

    def obtain(self, spec: RunSpec) -> RunRecord:
        """The run's record; its parents must be finished, or asked for.

        Raises:
            RunFailedError: It failed in this session.
            DamagedError: Its record cannot be read.
            StoppedError: The cluster is lost.
            StorageError: The ledger cannot be written.
        """
        run_id = spec.run_id
        while True:
            # A run takes its time: what is asked while it is waited for is asked of the system alone.
            if self.ledger.has(spec, run_id) and (record := self.ledger.find(spec)) is not None:
                return record
            failure = self.ledger.failure(spec, self.session)
            if failure is not None:
                raise RunFailedError(failure.error)
            if run_id not in self._asked:
                self.help_with([spec], {})
            stopped = self._orders.stopped()
            if stopped is not None:
                raise StoppedError(stopped)
            time.sleep(POLL)
