"""Runs that are computed where nobody sees the session's ledger: what they stand on goes with them. Imports no torch.

A node has a ledger of its own for each session, in its cache folder: the runs that a task starts from are put into it,
and a task that comes again after it was lost goes on from what it kept there. What a task makes comes back, and the
controller commits it: the session's ledger stays the only truth, and its writer the only one who vouches for it. How
far a task is comes back meanwhile, and is told in the session's ledger as its node tells it in its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruneaudit.campaign.executors import assignment as tasks
from pruneaudit.errors import AuditError, RunFailedError
from pruneaudit.ledger.choices import Choice, choice_name
from pruneaudit.ledger.records import FailureRecord, RunRecord, RunSpec
from pruneaudit.ledger.store import Ledger
from pruneaudit.state import cache_folder

#: Seconds after which a node forgets a session of which no task has come since.
FORGOTTEN = 86400.0
#: Seconds between two words of a task about how far it is, at least.
PAUSE = 1.0

#: What a process tells of its runs under way, see :meth:`~pruneaudit.ledger.store.Ledger.report_progress`.
Told = list[dict[str, Any]]


class StrayError(AuditError):
    """What came back is not the run that was sent for."""


@dataclass(frozen=True)
class Parcel:
    """A run as it travels.

    Attributes:
        record: Its record as JSON; of one that failed its :class:`FailureRecord`.
        weights: Content of its weights file; None: it failed.
    """

    record: bytes
    weights: bytes | None

    @classmethod
    def of(cls, ledger: Ledger, run: RunRecord) -> Parcel:
        """A finished run of a ledger.

        Raises:
            DamagedError: Its weights cannot be read.
        """
        return cls(run.model_dump_json().encode(), ledger.weights_file(run))

    @property
    def size(self) -> int:
        """Bytes of it."""
        return len(self.record) + len(self.weights or b"")


@dataclass(frozen=True)
class Luggage:
    """What goes with every task that stands on the same runs.

    Attributes:
        parcels: The runs, parents first.
        choice: What trains its workload, as JSON, where nobody said it and the session chose.
    """

    parcels: tuple[Parcel, ...] = ()
    choice: str | None = None

    @property
    def size(self) -> int:
        """Bytes of it."""
        return sum(parcel.size for parcel in self.parcels)


class Post:
    """The controller's side.

    Args:
        ledger: The session's.

    Attributes:
        sent: Bytes that went to nodes, each run once for all who start from it.
        received: Bytes that came back.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._under_way: dict[str, Told] = {}
        self.sent = self.received = 0

    def luggage(self, spec: RunSpec) -> Luggage:
        """What a run stands on.

        Raises:
            DamagedError: A run is missing, or cannot be read.
        """
        parcels = tuple(Parcel.of(self._ledger, run) for run in self._ledger.above(spec))
        choice = self._ledger.choice_of(spec)
        made = Luggage(parcels, None if choice is None else choice.model_dump_json())
        self.sent += made.size
        return made

    def receive(self, run_id: str, parcel: Parcel) -> None:
        """Commit what came back for a run.

        Raises:
            StrayError: It is another run, or not whole.
            StorageError: The ledger cannot be written.
        """
        self.received += parcel.size
        try:
            found = (FailureRecord if parcel.weights is None else RunRecord).model_validate_json(parcel.record)
        except ValueError:
            raise StrayError("what came back cannot be read: nodes need the session's version of pruneaudit") from None
        spec = found.spec
        if spec.run_id != run_id:
            raise StrayError(f"what came back is run {spec.run_id}, not {run_id}")
        if isinstance(found, FailureRecord):
            self._ledger.fail(found)
        elif parcel.weights is None or hashlib.sha256(parcel.weights).hexdigest() != found.weights_digest:
            raise StrayError("the weights that came back do not have the digest of their record")
        else:
            self._ledger.commit(found, parcel.weights)

    def hear(self, words: Mapping[str, Told]) -> None:
        """Tell in the session's ledger how far tasks are.

        Args:
            words: What the process of each task told last, by the id of its run.
        """
        if words:
            self._under_way |= {run_id: [_by_our_clock(facts) for facts in told] for run_id, told in words.items()}
            self._relay()

    def over(self, run_id: str) -> None:
        """A task is at its end."""
        if self._under_way.pop(run_id, None) is not None:
            self._relay()

    def close(self) -> None:
        """No task is under way any more."""
        self._under_way.clear()
        self._relay()

    def _relay(self) -> None:
        # Telling is never worth a run.
        with contextlib.suppress(OSError):
            self._ledger.relay_progress([facts for told in self._under_way.values() for facts in told])

    @property
    def words(self) -> str:
        """How much travelled, in words."""
        return f"runs travelled: {self.sent / 2**20:.1f} MiB went to nodes, {self.received / 2**20:.1f} MiB came back"


def _by_our_clock(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a process said, as if it had said it now: clocks of nodes may be wrong."""
    late = time.time() - facts["time"]
    # What has no time has none here either.
    return {**facts, **{name: facts[name] + late for name in ("time", "started", "since") if facts.get(name)}}


def perform(assignment: str, luggage: Luggage, tell: Callable[[str, Told], object] | None = None) -> Parcel:
    """What a node does: computes a run in its own ledger, and gives it back.

    Args:
        assignment: The run and its terms, as JSON.
        luggage: What it stands on.
        tell: Called with the run's id and what is told of it while it is under way, now and then.

    Raises:
        ConfigError: What it takes is not on this machine.
        StorageError: The node's ledger cannot be written.
    """
    given = tasks.Assignment.model_validate_json(assignment)
    here = on_this_node(given.terms)
    ledger = Ledger(Path(here.ledger))
    for parcel in luggage.parcels:
        run = RunRecord.model_validate_json(parcel.record)
        if not ledger.has(run):
            ledger.commit(run, parcel.weights or b"")
    if luggage.choice is not None:
        spec, choice = given.spec, Choice.model_validate_json(luggage.choice)
        ledger.choose_once(choice_name(spec.workload, spec.budget, spec.precision, spec.arithmetic), lambda: choice)
    try:
        record = given.model_copy(update={"terms": here}).perform(tell and _now_and_then(given.spec.run_id, tell))
    except RunFailedError:
        failure = ledger.failure(given.spec, here.session)
        if failure is None:
            raise
        return Parcel(failure.model_dump_json().encode(), None)
    return Parcel.of(ledger, record)


def on_this_node(terms: tasks.Terms) -> tasks.Terms:
    """The terms of a session on a node, which has a ledger of its own for it."""
    root = _own_ledger(terms.session)
    # Names of files are meant from the session's folder, where this machine has one of this name.
    folder = terms.folder if os.path.isdir(terms.folder) else str(root)
    return terms.model_copy(update={"ledger": str(root), "folder": folder})


def _now_and_then(run_id: str, tell: Callable[[str, Told], object]) -> Callable[[Told], None]:
    """A listener that passes on what it hears, not too often; nobody hears it where that fails."""
    heard = -PAUSE

    def listener(told: Told) -> None:
        nonlocal heard
        if told and time.monotonic() - heard >= PAUSE:
            heard = time.monotonic()
            with contextlib.suppress(Exception):
                tell(run_id, told)

    return listener


def _own_ledger(session: str) -> Path:
    """The ledger of this machine for a session; those of sessions that are long over are removed."""
    place = cache_folder() / "apart"
    root = place / hashlib.sha256(session.encode()).hexdigest()[:16]
    root.mkdir(parents=True, exist_ok=True)
    os.utime(root)
    for other in place.iterdir():
        if other != root and time.time() - other.stat().st_mtime > FORGOTTEN:
            shutil.rmtree(other, ignore_errors=True)
    return root
