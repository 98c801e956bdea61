"""What a process tells the others at its ledger: what its session has to train, and what it trains now."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pruneaudit.campaign.cost import Cost, cost
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.ledger.progress import Plan, Planned
from pruneaudit.ledger.records import RunRecord, RunSpec
from pruneaudit.ledger.store import Ledger
from pruneaudit.training.loop import Progress
from pruneaudit.workloads.metrics import ACCURACY

#: Seconds between two words of a process that trains many runs at once, at least.
PAUSE = 0.2


@dataclass
class _UnderWay:
    """A run that this process trains; what it is measured by begins at a time, after so many epochs."""

    spec: RunSpec
    planned: Planned
    started: float
    epochs: int
    epoch: int = 0
    value: float | None = None
    begun: int | None = None
    since: float = 0.0
    is_first: bool = False


class Bulletin:
    """Tells what this process does.

    Args:
        ledger: Where it is told.
        catalog: What a run's length is planned from.
        session: Id of the session.
    """

    def __init__(self, ledger: Ledger, catalog: Catalog, session: str) -> None:
        self._ledger = ledger
        self._catalog = catalog
        self._session = session
        self._told: dict[str, Any] = {"planned": 0}
        # MACs of the runs of each kind that this process has finished, and the seconds that they took.
        self._spent: dict[str, tuple[float, float]] = {}
        # A process's first run loads and compiles in its first epoch, which tells nothing of any other.
        self._is_warm = False
        self._under_way: dict[str, _UnderWay] = {}
        # What was told of a run: it is told again in every round that will probably need it.
        self._known: dict[str, Planned] = {}
        self._heard = 0.0
        #: Called with what is told of the runs under way, where others do not see the ledger.
        self.listener: Callable[[list[dict[str, Any]]], None] | None = None

    def announce(self, runs: Sequence[RunSpec], cells: Mapping[str, Sequence[str]]) -> None:
        """Tell what the session has to train, beyond what was told before.

        Args:
            runs: Its runs, parents first.
            cells: For each cell of the session, by its key, the ids of its runs.
        """
        planned = self._all_planned(runs)
        self._report(Plan(runs=planned, cells={key: tuple(ids) for key, ids in cells.items()}))
        self._told["planned"] += len(planned)

    def foresee(self, likely: Mapping[str, Sequence[Sequence[tuple[RunSpec, float]]]]) -> None:
        """Tell what the session may have to train besides, in place of what was told before.

        Args:
            likely: Runs by table and round, with their chances.
        """
        told = {name: tuple(map(self._perhaps_planned, rounds)) for name, rounds in likely.items()}
        self._report(Plan(likely=told))

    def _perhaps_planned(self, runs: Sequence[tuple[RunSpec, float]]) -> tuple[Planned, ...]:
        planned = self._all_planned([run for run, _ in runs])
        return tuple(run.model_copy(update={"chance": chance}) for run, (_, chance) in zip(planned, runs, strict=True))

    def begin(self, specs: Sequence[RunSpec]) -> None:
        """These runs are under way, side by side."""
        for spec in specs:
            needed = self._cost(spec)
            epochs = needed.passes if needed is not None else 0
            now = time.time()
            self._under_way[spec.run_id] = _UnderWay(
                spec, self._planned(spec, needed), now, epochs, since=now, is_first=not self._is_warm
            )
        self._tell()

    def progress(self, spec: RunSpec) -> Progress:
        """What a run under way calls after every epoch."""
        run = self._under_way[spec.run_id]

        def after_epoch(done: int, total: int, value: float | None) -> None:
            # A run that goes on from a checkpoint begins with a later epoch.
            if run.begun is None and done:
                run.begun, run.since = (done, time.time()) if run.is_first else (done - 1, run.started)
            run.epoch, run.epochs, run.value = done, total, value
            if len(self._under_way) == 1 or time.time() - self._heard > PAUSE:
                self._tell()

        return after_epoch

    def over(self, spec: RunSpec, outcome: RunRecord | Exception) -> None:
        """A run is at its end."""
        run = self._under_way.pop(spec.run_id)
        self._is_warm = True
        if isinstance(outcome, RunRecord) and run.planned.cost is not None and not (run.is_first and not run.begun):
            macs, seconds = self._spent.get(run.planned.kind, (0.0, 0.0))
            trained = run.planned.cost * (1 - (run.begun or 0) / max(run.epochs, 1))
            took = outcome.seconds - (run.since - run.started)
            if trained > 0 and took > 0:
                self._spent[run.planned.kind] = (macs + trained, seconds + took)

    def end(self) -> None:
        """Nothing is under way any more."""
        self._under_way.clear()
        self._tell()

    def _report(self, content: Plan) -> None:
        # Who cannot write may read: a complete ledger needs nothing else, and telling is never worth a run.
        with contextlib.suppress(OSError):
            plan = self._ledger.report_plan(self._session, content.model_dump(mode="json", exclude={"time"}))
            self._told["plan"] = plan

    def _all_planned(self, runs: Sequence[RunSpec]) -> tuple[Planned, ...]:
        ids = [run.run_id for run in runs]
        for run_id, run in zip(ids, runs, strict=True):
            if run_id not in self._known:
                self._known[run_id] = self._planned(run, self._cost(run))
        return tuple(self._known[run_id] for run_id in ids)

    def _tell(self) -> None:
        self._heard = time.time()
        with contextlib.suppress(OSError):
            told = self._ledger.report_progress([self._said(run) for run in self._under_way.values()])
            if self.listener is not None:
                self.listener(told)

    def _said(self, run: _UnderWay) -> dict[str, Any]:
        """What other processes are told of a run under way."""
        return {
            "run": run.spec.slug,
            "id": run.spec.run_id,
            "epoch": run.epoch,
            "epochs": run.epochs,
            # Another metric than accuracy says its name.
            "accuracy": run.value,
            **({} if run.spec.metric == ACCURACY.name else {"metric": run.spec.metric}),
            "begun": run.begun or 0,
            "started": run.started,
            "since": run.since,
            "spent": self._spent,
            **self._told,
        }

    def _planned(self, spec: RunSpec, needed: Cost | None) -> Planned:
        """What other processes are told of a run."""
        if needed is None:
            return Planned(id=spec.run_id, run=spec.slug, needs=spec.needs)
        # Runs of one kind differ in their length alone: a method may do more than train.
        method = f" {spec.method}" if spec.stage == "prune" else ""
        kind = f"{spec.workload} {spec.stage}{method} {needed.macs}"
        return Planned(id=spec.run_id, run=spec.slug, needs=spec.needs, kind=kind, cost=needed.work)

    def _cost(self, spec: RunSpec) -> Cost | None:
        """What a run has to compute; None where that cannot be told: an estimate must not cost a run."""
        try:
            return cost(spec, self._catalog)
        except Exception:
            return None
