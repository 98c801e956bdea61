"""Makes one ledger of several, so that what was measured on several machines is judged together. Imports no torch.

Signed records are copied as they were written: who merges does not vouch for what others measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from filelock import Timeout

from pruneaudit.errors import ConfigError, DamagedError
from pruneaudit.ledger.chain import Link
from pruneaudit.ledger.noise import between, explained
from pruneaudit.ledger.records import MEASURED_LATER, VOLATILE, CellRecord, FailureRecord, RunRecord, RunSpec, Stage
from pruneaudit.ledger.store import Ledger, link_of, read_file, storage_error
from pruneaudit.schema import stated_twice

#: Parents before children, so that no run of a merge that was killed stands on one that is missing.
_STAGES = get_args(Stage)


@dataclass(frozen=True)
class Merged:
    """What a merge added to its target.

    Attributes:
        runs: Finished runs.
        failures: Failed attempts.
        cells: Cells, those included that replaced a failed one.
    """

    runs: int
    failures: int
    cells: int


@dataclass
class _Union:
    """What several ledgers hold together, each thing with the ledger that it comes from.

    ``left_out``: links of what another ledger has as well.
    """

    runs: dict[str, tuple[RunRecord, Ledger]] = field(default_factory=dict)
    failures: dict[str, tuple[FailureRecord, Path, Ledger]] = field(default_factory=dict)
    cells: dict[str, tuple[CellRecord, Ledger]] = field(default_factory=dict)
    plans: dict[str, tuple[dict[str, object], Ledger]] = field(default_factory=dict)
    looks: list[tuple[str, dict[str, list[int]]]] = field(default_factory=list)
    left_out: list[Link] = field(default_factory=list)

    def add(self, ledger: Ledger) -> None:
        """Take in what a ledger holds; what is there already stays.

        Raises:
            ConfigError: Something contradicts what is there.
        """
        for run in ledger.runs():
            known, origin = self.runs.setdefault(run.run_id, (run, ledger))
            _agree(f"run {run.folder}", known, origin, run, ledger)
            if origin is not ledger:
                self._leave_out(ledger.file_of(run))
        for path, failure in ledger.failures_by_file().items():
            if self.failures.setdefault(failure.model_dump_json(), (failure, path, ledger))[1] != path:
                self._leave_out(path)
        for name, plan in ledger.plan_files().items():
            known_plan, plan_origin = self.plans.setdefault(name, (plan, ledger))
            if plan_origin is not ledger:
                self._leave_out(ledger.plan_file(name))
            if known_plan != plan:
                raise ConfigError(
                    f"plan {name}: ledgers {plan_origin.root} and {ledger.root} planned these comparisons differently; "
                    "judge them apart"
                )
        self.looks += [(name, ledger.looks(name)) for name in ledger.looked_at()]
        for key, cell in ledger.cells_by_key().items():
            there, origin = self.cells.setdefault(key, (cell, ledger))
            if there.status == cell.status == "ok":
                _agree(f"cell {key}", there, origin, cell, ledger)
            elif _rank(cell) > _rank(there):
                self.cells[key] = (cell, ledger)
        for problem in ledger.damaged.values():
            # What cannot be read cannot be compared: nothing is lost by mending it first.
            raise DamagedError(problem)
        self.left_out += ledger.left_out()

    def _leave_out(self, path: Path) -> None:
        link = link_of(read_file(path))
        if link is not None:
            self.left_out.append(link)


def merge(target: Path, sources: Sequence[Path]) -> Merged:
    """Make a ledger the union of itself and others; everything is checked before anything is copied.

    Finished runs, failed attempts and cells are copied; state of runs under way, locks and progress are not. A merge
    that was killed is completed by repeating it, and repeating a complete one adds nothing.

    Args:
        target: The ledger that grows; made where it is missing.
        sources: Ledgers that are only read.

    Raises:
        ConfigError: A source is no ledger or is the target, or ledgers contradict each other.
        StorageError: The target cannot be written.
        DamagedError: A file does not hold what its record promises.
    """
    for source in sources:
        if source.resolve() == target.resolve():
            raise ConfigError(f"ledger {source} cannot be merged into itself; name it once")
    ledgers = [Ledger(source, writable=False) for source in sources]
    if (target / "ledger.json").exists():
        ledgers.insert(0, Ledger(target, writable=False))
    union = _Union()
    for ledger in ledgers:
        union.add(ledger)
    runs = [(run, origin) for run, origin in union.runs.values() if origin.root != target]
    failures = [(failure, path) for failure, path, origin in union.failures.values() if origin.root != target]
    cells = {key: (cell, origin) for key, (cell, origin) in union.cells.items() if origin.root != target}
    for run, origin in runs:
        origin.weights_file(run)
    as_written = {
        path: _as_written(path)
        for path in (
            *(origin.file_of(run) for run, origin in runs),
            *(path for _, path in failures),
            *(origin.file_of(key) for key, (_, origin) in cells.items()),
        )
    }
    plans = {name: read_file(origin.plan_file(name)) for name, (_, origin) in union.plans.items()}
    merged = Ledger(target)
    try:
        # First, so that a merge that was killed left no seeds without the plan that they were trained by.
        for name, as_planned in plans.items():
            merged.write_plan(name, as_planned)
        for name, looks in union.looks:
            merged.remember_looks(name, looks)
        for run, origin in sorted(runs, key=lambda pair: _STAGES.index(pair[0].stage)):
            with _held(merged, run.spec):
                if merged.find(run.spec) is None:
                    merged.commit(run, origin.weights_file(run), as_written[origin.file_of(run)])
        for failure, path in failures:
            with _held(merged, failure.spec):
                merged.fail(failure, as_written[path])
        for key, (cell, origin) in cells.items():
            merged.save_cell(cell, key, as_written[origin.file_of(key)])
        merged.leave_out(union.left_out)
    except OSError as error:
        raise storage_error(error, target) from None
    return Merged(len(runs), len(failures), len(cells))


def _as_written(path: Path) -> bytes | None:
    """A signed record as its file has it; None: nobody signed it, and it is written in today's layout.

    Raises:
        DamagedError: It says one thing twice: programs differ in which of the two they believe.
    """
    content = read_file(path)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = stated_twice(pairs)
        if twice is not None:
            raise DamagedError(f"{path}: says '{twice}' twice; no pruneaudit writes so")
        return dict(pairs)

    json.loads(content, object_pairs_hook=once)
    return None if link_of(content) is None else content


def _agree(
    what: str, left: RunRecord | CellRecord, left_of: Ledger, right: RunRecord | CellRecord, right_of: Ledger
) -> None:
    """Refuse two records of one thing that differ in more than time and machine."""
    ours, theirs = (record.model_dump(mode="json", exclude=set(VOLATILE)) for record in (left, right))
    if isinstance(left, CellRecord) and isinstance(right, CellRecord) and left.metric.decides_as(right.metric):
        # Margins, and what is shown beside, are the workload's of today.
        ours["metric"] = theirs["metric"]
    for name in ours:
        if ours[name] != theirs[name] and not (name in MEASURED_LATER and not (ours[name] and theirs[name])):
            raise ConfigError(
                f"{what}: ledgers {left_of.root} and {right_of.root} differ in '{name}'; "
                f"{_reason(left, left_of, right, right_of)}"
                "judge them apart, or delete it from one of them and merge again"
            )


def _reason(left: RunRecord | CellRecord, left_of: Ledger, right: RunRecord | CellRecord, right_of: Ledger) -> str:
    """Whether that is a fault, or what another arithmetic does; then how much it does to all that both ledgers hold."""
    if not (isinstance(left, RunRecord) and isinstance(right, RunRecord)):
        return ""
    text = f"{explained(left, right)}; "
    noise = between(left_of.runs(), right_of.runs()) if left.kind != right.kind else None
    return text if noise is None else f"{text}of runs in both, {noise}; "


def _rank(cell: CellRecord) -> tuple[bool, str]:
    """A measured cell before a failed one; of two failed ones any, but the same whatever the order of ledgers."""
    return cell.status == "ok", cell.model_dump_json()


@contextmanager
def _held(ledger: Ledger, spec: RunSpec) -> Iterator[None]:
    """Hold a run's lock, as the process does that trains it."""
    try:
        lock = ledger.lock(spec).acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"ledger {ledger.root}: run {spec.slug} is under way; merge again when that session is over"
        ) from None
    with lock:
        yield
