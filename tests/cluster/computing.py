"""What tests of all clusters have in common: runs that take a while, given to a cluster, against the same ones here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pruneaudit.campaign.executors.assignment import Terms
from pruneaudit.campaign.executors.dispatch import Dispatcher, Dispatching, Scheduler
from pruneaudit.campaign.executors.local import LocalExecutor
from pruneaudit.campaign.executors.remote import RemoteExecutor
from pruneaudit.campaign.planner import Campaign
from pruneaudit.campaign.stages import Stages
from pruneaudit.campaign.verification import compare
from pruneaudit.catalog.cells import Cell
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.settings import Settings
from pruneaudit.ledger.records import RunRecord, RunSpec
from pruneaudit.ledger.store import Ledger
from pruneaudit.training.runtime import Runtime

#: These tests start daemons, and are slow: ``make cluster`` sets the variable.
ONLY_WHERE_WANTED = pytest.mark.skipif(not os.environ.get("PRUNEAUDIT_CLUSTER"), reason="starts daemons: make cluster")
#: Seconds until it is given up that something happens, on a machine that does much else.
PATIENCE = 300.0


@dataclass
class Computing:
    """A ledger whose runs a cluster computes.

    Attributes:
        root: The ledger's folder.
        session: Id of the session.
    """

    root: Path
    session: str = "0123456789abcdef"

    @property
    def folder(self) -> Path:
        """Where a scheduler may keep something."""
        return self.root / "tasks" / self.session

    @contextmanager
    def by(self, scheduler: Scheduler) -> Iterator[RemoteExecutor]:
        """An executor whose runs a scheduler gets."""
        ledger = Ledger(self.root)
        terms = Terms(session=self.session, ledger=str(self.root), folder=os.getcwd())
        with Dispatching(Dispatcher(ledger, terms, scheduler), lambda reason: None):
            yield RemoteExecutor(Ledger(self.root), Catalog(), self.session)

    def epochs(self, spec: RunSpec) -> int:
        """How many epochs of a run its process has told of."""
        told = Ledger(self.root).progress()
        return max((run["epoch"] for run in told if run["id"] == spec.run_id), default=0)


def cell_of(method: str = "l1") -> list[RunSpec]:
    """The runs of a small cell, parents first."""
    catalog = Catalog(isolate="foreign")
    campaign = Campaign(catalog, Ledger(Path("unused"), when_needed=True), Settings("smoke"), executor=None)
    return campaign.runs([Cell("lenet5-digits", "s3.2", method, 0.5, 0)])


def long_run(epochs: int = 60) -> RunSpec:
    """A training that takes long enough for something to happen to it."""
    base = cell_of()[0]
    return base.model_copy(update={"recipe": base.recipe.model_copy(update={"epochs": epochs})})


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def computed_here(root: Path, specs: Sequence[RunSpec]) -> list[RunRecord]:
    """The same runs, computed by this process."""
    ledger = Ledger(root)
    local = LocalExecutor(ledger, Stages(ledger, Catalog(isolate="foreign"), Runtime()), "local")
    local.stages.runtime.prepare()
    return [local.obtain(spec) for spec in specs]


def assert_same(ours: Sequence[RunRecord], theirs: Sequence[RunRecord]) -> None:
    """Runs that were computed twice are the same, bit by bit."""
    found = [compare(one, other, 0.0) for one, other in zip(ours, theirs, strict=True)]
    assert [each.word for each in found] == ["bit-identical"] * len(found), found
