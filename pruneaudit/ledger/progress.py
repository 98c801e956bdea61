"""How far a campaign is, read from what its processes write into the ledger while they train. Imports no torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from pydantic_core import from_json
from safetensors import SafetensorError, safe_open

from pruneaudit.errors import StorageError, printable
from pruneaudit.ledger.schedule import Job, in_turn, makespan
from pruneaudit.ledger.store import Ledger, process_space, read_file
from pruneaudit.workloads.metrics import ACCURACY, shown

Status = Literal["waiting", "busy", "done", "failed"]

#: Seconds of measured work before there is an estimate.
MEASURED = 5.0
#: Seconds without a word after which a process that cannot be looked for counts as gone: at least, and before its
#: first epoch is over. An epoch of ImageNet takes an hour.
SILENCE = 600.0
FIRST_SILENCE = 7200.0
#: A folder that changed so many seconds ago may change again within one tick of its clock.
_UNSETTLED = 1.0


def plain(text: str) -> str:
    """Text for a terminal or a page, in one line: names may come from strangers."""
    return printable(text, " ")


Plain = Annotated[str, AfterValidator(plain)]


def tell(ledger: Ledger, what: str | None, **facts: Any) -> None:
    """Tell whoever watches a ledger what this process does that is no run; telling is never worth a measurement.

    Args:
        ledger: Where it is told.
        what: In a few words; None: nothing any more.
        facts: What else :class:`Training` says of it.
    """
    told = []
    if what is not None:
        identity = hashlib.sha256(what.encode()).hexdigest()[:16]
        told.append({"run": what, "id": identity, "started": time.time(), **facts})
    with contextlib.suppress(OSError, StorageError):
        ledger.report_progress(told)


Count = Annotated[int, Field(ge=0)]
RunId = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]


class _Said(BaseModel):
    """What a process says of itself; other versions may say more."""

    model_config = ConfigDict(frozen=True, extra="ignore")


Said = TypeVar("Said", bound=_Said)


class Planned(_Said):
    """A run that a session has to obtain.

    Attributes:
        id: Its id.
        run: Its name.
        needs: Ids of the runs that must be finished before it.
        kind: Runs of one kind take as long for each MAC.
        cost: What it takes, in MACs, calls of layers included; None where nobody could tell.
        chance: The chance that it is needed: a comparison may stop before.
    """

    id: RunId
    run: Plain
    needs: tuple[str, ...] = ()
    kind: str = ""
    cost: FiniteFloat | None = None
    chance: Annotated[float, Field(ge=0, le=1)] = 1.0


class Plan(_Said):
    """What a session has to train.

    Attributes:
        runs: Its runs, parents first.
        cells: For each cell, by its key, the ids of its runs; empty where the session did not say.
        likely: By table the runs that it may have to train besides, round by round.
        time: When it began to train, seconds since 1970.
    """

    runs: tuple[Planned, ...] = ()
    cells: dict[Plain, tuple[str, ...]] = Field(default_factory=dict)
    likely: dict[Plain, tuple[tuple[Planned, ...], ...]] = Field(default_factory=dict)
    time: FiniteFloat = 0.0


class Curve(_Said):
    """A run so far, one value per epoch: training loss, test accuracy in percent, and what another metric says."""

    train_loss: tuple[FiniteFloat, ...] = ()
    test_accuracy: tuple[FiniteFloat, ...] = ()
    test_metric: tuple[FiniteFloat, ...] = ()

    @property
    def values(self) -> tuple[float, ...]:
        """What decides."""
        return self.test_metric or self.test_accuracy


class Training(_Said):
    """A run that a process has under way.

    Attributes:
        run: Name of the run.
        id: Its id.
        epoch: Epochs done.
        epochs: Epochs in all; 0 for a pruning stage that trains nothing.
        unit: What is counted so: populations of a study count networks; empty: it is no run, and its name says all.
        accuracy: The metric on the test split after the last epoch, or None.
        metric: Its name.
        begun: Epochs that tell nothing of its speed: those of an earlier, killed attempt, and of a process's first run
            the first one, which loads and compiles.
        started: When the process began with it, seconds since 1970.
        since: When the first epoch began that tells of its speed; 0: when it started.
        time: When the process was last heard of.
        plan: Name of its session's plan.
        spent: For each kind of run, MACs of those that the process has finished, and the seconds that they took.
        pid: Number of the process.
        host: Its machine.
        space: What tells its number from that of another container; empty where that is not known.
        curve: The run's curves so far; none in its first epoch.
    """

    run: Plain
    id: RunId
    epoch: Count = 0
    epochs: Count = 0
    unit: Plain = "epoch"
    accuracy: FiniteFloat | None = None
    metric: Plain = ACCURACY.name
    begun: Count = 0
    started: FiniteFloat = 0.0
    since: FiniteFloat = 0.0
    time: FiniteFloat = 0.0
    plan: str = ""
    spent: dict[str, tuple[FiniteFloat, FiniteFloat]] = Field(default_factory=dict)
    pid: int = 0
    host: str = ""
    space: str = ""
    curve: Curve = Curve()

    @property
    def loss(self) -> float | None:
        """Training loss of the last epoch, or None."""
        return self.curve.train_loss[-1] if self.curve.train_loss else None

    @property
    def words(self) -> str:
        """What it does, such as ``resnet20-digits-retrain-l1-r0.5-seed0 epoch 3/8 94.2 %``."""
        epoch = f" {self.unit} {self.epoch}/{self.epochs}" if self.epochs else ""
        return f"{self.run}{epoch}" + ("" if self.accuracy is None else f" {self.reached}")

    @property
    def reached(self) -> str:
        """What it reached in the last epoch, such as ``94.2 %``; nothing where that is not known."""
        return "" if self.accuracy is None else shown(self.metric, self.accuracy)

    @property
    def process(self) -> tuple[str, str, int]:
        """Who it is: two containers of one machine, with one name, may both have a process of this number."""
        return self.host, self.space, self.pid

    def share(self, begun: int = 0) -> float:
        """Share of the run's epochs that are done, in [0, 1]; without its first ``begun`` epochs."""
        return min(1.0, max(0, self.epoch - begun) / self.epochs) if self.epochs else 0.0

    def is_alive(self, now: float) -> bool:
        """Whether the process is still at work: it may have been killed, or its machine switched off."""
        is_here = self.host == platform.node() and self.space in ("", process_space())
        if is_here and self.pid > 0 and os.name == "posix":
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                return False
            except OSError:
                pass  # somebody else's, and alive
        # Another process may have got its number since, and other machines cannot be asked.
        done = self.epoch - self.begun
        usual = 10 * (self.time - self.started) / done if done > 0 else FIRST_SILENCE
        return now - self.time < max(SILENCE, usual)


@dataclass(frozen=True)
class State:
    """How far a campaign is.

    Attributes:
        time: When this was so, seconds since 1970.
        busy: The runs under way.
        runs: Status of each planned run, by id.
        cells: Status of each selected cell, by key; empty where the session did not say.
        seconds_left: Estimated time to the end; None while too little is measured to say.
    """

    time: float
    busy: tuple[Training, ...] = ()
    runs: Mapping[str, Status] = field(default_factory=dict)
    cells: Mapping[str, Status] = field(default_factory=dict)
    seconds_left: float | None = None

    @property
    def counts(self) -> list[str]:
        """What is done of what, cells first, such as ``3 of 24 cells (1 failed)``."""
        found: list[str] = []
        for name, statuses in (("cells", self.cells), ("runs", self.runs)):
            if statuses:
                count = Counter(statuses.values())
                failed = f" ({count['failed']} failed)" if count["failed"] and not found else ""
                found.append(f"{count['done'] + count['failed']} of {len(statuses)} {name}{failed}")
        return found

    @property
    def share(self) -> float:
        """Share of what is planned that is over, in [0, 1]: of cells where they are known, else of runs."""
        statuses = (self.cells or self.runs).values()
        return sum(status in ("done", "failed") for status in statuses) / max(len(statuses), 1)

    @property
    def left(self) -> str:
        """Estimated time to the end in words; empty while there is no estimate."""
        if self.seconds_left is None:
            return ""
        return f"{duration(self.seconds_left)} left"

    def line(self, most: int = 4) -> str:
        """All of it in one line of plain text, with at most so many processes."""
        parts = [*self.counts, *([self.left] if self.left else [])]
        doing = [training.words for training in self.busy[:most]]
        doing += [f"and {len(self.busy) - most} more"] if len(self.busy) > most else []
        return "; ".join([", ".join(parts)] * bool(parts) + [f"now {'; '.join(doing)}"] * bool(doing))


def duration(seconds: float) -> str:
    """A time in words, no more exact than an estimate is."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    if minutes < 120:
        return f"about {minutes} min"
    return f"about {minutes // 60} h" if minutes >= 600 else f"about {minutes // 60} h {minutes % 60} min"


class Watcher:
    """Looks at a ledger again and again, reading only what has changed; not for several threads at once.

    Args:
        ledger: The ledger; it is not written to.
        since: What older sessions left is not looked at; seconds since 1970.
    """

    def __init__(self, ledger: Ledger, since: float = 0.0) -> None:
        self.ledger = ledger
        self.since = since
        self._listings: dict[str, tuple[int, frozenset[str]]] = {}
        self._plans: dict[Path, tuple[tuple[int, int], Plan]] = {}
        self._curves: dict[Path, tuple[tuple[int, int], Curve]] = {}
        # A process says nothing between two runs: what it had measured still counts.
        self._last: dict[tuple[str, str, int], Training] = {}

    def look(self, now: float | None = None) -> State:
        """How far the campaign is now."""
        now = time.time() if now is None else now
        said = [known for facts in self.ledger.progress() if (known := _read(Training, facts)) is not None]
        busy = tuple(
            training.model_copy(update={"curve": self._curve(training)})
            for training in said
            if training.time >= self.since and training.is_alive(now)
        )
        for training in busy:
            self._last[training.process] = training
        workers = sum(training.is_alive(now) for training in self._last.values())
        plans = self._chosen_plans({training.plan for training in busy})
        planned = {run.id: run for plan in plans for run in plan.runs}
        started = min((plan.time for plan in plans), default=0.0)
        tables = [rounds for plan in plans for rounds in plan.likely.values()]
        # What is certain comes first, as in the session.
        every = dict(planned)
        for run in (run for rounds in tables for runs in rounds for run in runs):
            # Two tables may need it: the more probable one counts.
            if run.id not in every or every[run.id].chance < run.chance:
                every[run.id] = run
        turns = in_turn(([[run.id for run in runs] for runs in rounds] for rounds in tables), workers)
        statuses = self._statuses(every.values(), {training.id for training in busy}, started)
        cells = {key: ids for plan in plans for key, ids in plan.cells.items() if ids}
        return State(
            time=now,
            busy=busy,
            runs={run: statuses[run] for run in planned},
            cells={key: _of_cell([statuses.get(run, "waiting") for run in ids]) for key, ids in cells.items()},
            seconds_left=seconds_left(
                every,
                statuses,
                busy,
                [training.spent for training in self._last.values()],
                now,
                workers,
                {run: before for run, before in turns.items() if run not in planned},
            ),
        )

    def _chosen_plans(self, named: Collection[str]) -> list[Plan]:
        """The plans of the processes at work; where nobody is, the last one."""
        paths = [path for path in self.ledger.plans() if _modified(path) / 1e9 >= self.since]
        return [self._plan(path) for path in ([path for path in paths if path.stem in named] or paths[:1])]

    def _plan(self, path: Path) -> Plan:
        version = _version(path)
        if path not in self._plans or self._plans[path][0] != version:
            try:
                content = from_json(read_file(path))
            except (OSError, ValueError):
                return Plan()
            self._plans[path] = (version, _read(Plan, content) or Plan())
        return self._plans[path][1]

    def _statuses(self, runs: Iterable[Planned], busy: Collection[str], started: float) -> dict[str, Status]:
        """Status of each run, parents first; what stands on a failed run has failed too."""
        finished = {name.rpartition("-")[2] for name in self._names("runs")}
        failed = set()
        for name in self._names("failures"):
            # SLUG-ID-N.json; failures of earlier sessions are tried again.
            run_id = name.rpartition("-")[0].rpartition("-")[2]
            if _modified(self.ledger.root / "failures" / name) / 1e9 >= started:
                failed.add(run_id)
        found: dict[str, Status] = {}
        for run in runs:
            status: Status = "waiting"
            if run.id in finished:
                status = "done"
            elif run.id in busy:
                status = "busy"
            elif run.id in failed or any(found.get(parent) == "failed" for parent in run.needs):
                status = "failed"
            found[run.id] = status
        return found

    def _names(self, folder: str) -> frozenset[str]:
        """Names in a folder of the ledger."""
        path = self.ledger.root / folder
        modified = _modified(path)
        if (
            folder not in self._listings
            or self._listings[folder][0] != modified
            or time.time() - modified / 1e9 < _UNSETTLED
        ):
            try:
                self._listings[folder] = (modified, frozenset(os.listdir(path)))
            except OSError:
                return frozenset()
        return self._listings[folder][1]

    def _curve(self, training: Training) -> Curve:
        """Curves in the checkpoint that a run under way writes after each epoch but the last."""
        path = self.ledger.root / "partial" / training.id / "state.safetensors"
        version = _version(path)
        if version[0] and (path not in self._curves or self._curves[path][0] != version):
            if (history := _facts(path).get("history")) is None:
                return Curve()
            self._curves[path] = (version, _read(Curve, history) or Curve())
        return self._curves[path][1] if version[0] else Curve()


def kept_epochs(ledger: Ledger) -> dict[str, int]:
    """Epochs that the checkpoints of runs under way hold, by run id; without those that cannot be read."""
    paths = (ledger.root / "partial").glob("*/state.safetensors")
    found = {path.parent.name: _facts(path).get("epochs_done") for path in sorted(paths)}
    finished = ledger.finished()
    return {run: epochs for run, epochs in found.items() if isinstance(epochs, int) and run not in finished}


def _facts(path: Path) -> dict[str, Any]:
    """What the checkpoint of a run tells beside its tensors; nothing where it is not there, or damaged."""
    try:
        with safe_open(path, framework="np") as file:
            facts = json.loads(file.metadata()["facts"])
    except (SafetensorError, KeyError, TypeError, ValueError, OSError):
        return {}
    return facts if isinstance(facts, dict) else {}


def seconds_left(
    planned: Mapping[str, Planned],
    statuses: Mapping[str, Status],
    busy: Sequence[Training],
    spent: Iterable[Mapping[str, tuple[float, float]]],
    now: float,
    workers: int = 0,
    turns: Mapping[str, Sequence[str]] | None = None,
) -> float | None:
    """Time to the end from the throughput measured so far; None where nobody trains, or too little is measured.

    What is left takes as long for each MAC as runs of the same kind took; what may be needed counts by its chance.
    Kinds that no process has met yet get the median rate of the others: the first run of a process is often a slow one.
    Workers then take runs as they are ready, as ``pruneaudit plan`` lets them.

    Args:
        planned: Runs by id.
        statuses: Their statuses.
        busy: The runs under way. Those of one process train side by side, each in a share of its time.
        spent: For each process and kind, MACs of the runs that it finished, and the seconds that they took.
        now: Seconds since 1970.
        workers: Processes at work, those included that wait for a run of another one; at least those that train.
        turns: What runs wait for besides what they stand on, see :func:`~pruneaudit.ledger.schedule.in_turn`.
    """
    open_runs = [run for run in planned.values() if statuses[run.id] in ("waiting", "busy")]
    if not busy or any(run.cost is None for run in open_runs):
        return None
    measured: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for by_kind in spent:
        for kind, (macs, seconds) in by_kind.items():
            measured[kind][0] += macs
            measured[kind][1] += seconds
    under_way = {training.id: training for training in busy}
    beside = Counter(training.process for training in busy)
    for training in busy:
        if training.id in planned and training.epoch > training.begun:
            run = planned[training.id]
            measured[run.kind][0] += (run.cost or 0.0) * training.share(training.begun)
            measured[run.kind][1] += (training.time - (training.since or training.started)) / beside[training.process]
    macs, seconds = (sum(column) for column in zip((0.0, 0.0), *measured.values(), strict=True))
    if macs <= 0 or seconds < MEASURED:
        return None
    usual = _median_rate(measured.values())
    waiting: list[Job] = []
    left: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for run in open_runs:
        macs_of_kind, seconds_of_kind = measured.get(run.kind, (0.0, 0.0))
        needed = (run.cost or 0.0) * (seconds_of_kind / macs_of_kind if macs_of_kind > 0 else usual)
        current = under_way.get(run.id)
        if current is None:
            waiting.append(Job(run.id, needed * run.chance, (*run.needs, *(turns or {}).get(run.id, ()))))
            continue
        # Between two reports a process has gone on, by an epoch at most.
        worker = current.process
        ahead = min((now - current.time) / beside[worker], needed / max(current.epochs, 1))
        left[worker].append(max(0.0, needed * (1 - current.share()) - ahead))
    # The longest of the runs that a process trains side by side goes on in its share of the time. What waits for one of
    # them waits for all.
    ends = {training.id: str(worker) for worker in left for training in busy if training.process == worker}
    jobs = [replace(job, needs=tuple(ends.get(need, need) for need in job.needs)) for job in waiting]
    begun = [Job(str(worker), max(sum(each), max(each) * beside[worker])) for worker, each in left.items()]
    return makespan(jobs, max(workers, len(beside)), begun)


def _median_rate(measured: Iterable[Sequence[float]]) -> float:
    """Seconds per MAC of kinds of runs, the median over MACs."""
    rates = sorted((seconds / macs, macs) for macs, seconds in measured if macs > 0)
    half, reached = sum(macs for _, macs in rates) / 2, 0.0
    for rate, macs in rates:
        reached += macs
        if reached >= half:
            return rate
    raise ValueError("nothing was measured")


def _of_cell(runs: Sequence[Status]) -> Status:
    """Status of a cell, from those of its runs."""
    for status in ("failed", "busy"):
        if status in runs:
            return status
    return "done" if all(status == "done" for status in runs) else "waiting"


def _read(kind: type[Said], content: Any) -> Said | None:
    """What a process said, or None where that is not ours: progress is for looking only, and no reason to stop."""
    try:
        return kind.model_validate(content)
    except ValidationError:
        return None


def _modified(path: Path) -> int:
    """When a file or folder last changed, in nanoseconds; 0 where it is not there."""
    return _version(path)[0]


def _version(path: Path) -> tuple[int, int]:
    """What differs when a file is replaced: time of its last change, and its number; zeros where it is not there."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_ino
