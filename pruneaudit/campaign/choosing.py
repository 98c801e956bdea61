"""Which backend trains a workload where nobody says it (``--audit-backend auto``). Imports no torch.

Arms that are compared are trained by one backend, whatever else a session selects, however many workers it has and
however often it is resumed: what is chosen, is chosen for a workload, once, and kept in the ledger. A ledger that has
runs of a workload goes on with what made them. Elsewhere the fastest backend is taken that was measured on this
machine, by CPU time on random images in a process of its own; under portable arithmetic, whose numbers must not depend
on what a machine is fast at, the first of a list that trains the network.

Backends that train several runs together are never chosen: their last bits depend on what trained beside a run.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pruneaudit.arithmetic import PORTABLE, of_processor
from pruneaudit.campaign.asking import asked
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.settings import COMPILED, RETIRED, Backend
from pruneaudit.errors import ConfigError
from pruneaudit.ledger.choices import Choice, choice_name, made_by
from pruneaudit.ledger.progress import tell
from pruneaudit.ledger.store import Ledger, write_json
from pruneaudit.state import cache_folder
from pruneaudit.version import __version__
from pruneaudit.workloads.schema import Workload

#: What may be chosen: the first that trains a network where nothing is measured.
CANDIDATES: tuple[Backend, ...] = (*COMPILED, "torch")
#: How many times as fast as torch's loop another one must be: below that, timings decide nothing.
MARGIN = 1.1
#: Rounds of a measurement, and seconds until it is given up.
_ROUNDS, _PATIENCE = 3, 600.0
#: Seconds of a step from which nothing is timed: others save what passes between kernels, which is little of it.
_LONGEST = 5.0


@dataclass
class Choosing:
    """Says of each workload what trains its runs.

    Attributes:
        catalog: Where another process finds the workloads.
        ledger: Where choices are kept.
        budget: And the two below: settings of the runs.
        precision: See ``budget``.
        arithmetic: See ``budget``.
        device: ``cpu`` or ``cuda``.
        baseline: A ledger that results are compared with; None: there is none.
    """

    catalog: Catalog
    ledger: Ledger
    budget: str
    precision: str
    arithmetic: str
    device: str
    baseline: Ledger | None = None
    _chosen: dict[str, Choice] = field(default_factory=dict, init=False, repr=False)
    _made: dict[str, Choice | None] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, workload: Workload) -> Backend:
        """What trains a workload's runs; of one that nothing was chosen for, and nothing is there of, torch."""
        found = self.known(workload.name)
        return "torch" if found is None else found.backend

    def known(self, workload: str) -> Choice | None:
        """What was chosen for a workload, or follows from what ledgers hold; None: neither."""
        if workload not in self._chosen:
            found = self.ledger.choice(self._name(workload)) or self._as_made(workload)
            if found is None:
                return None
            self._chosen[workload] = found
        return self._chosen[workload]

    def settle(self, workload: Workload, keeps: bool = True) -> Choice:
        """Choose what trains a workload's runs, unless that is known: measuring takes seconds.

        Args:
            workload: The workload, at any length.
            keeps: Whether the ledger keeps it; who only plans writes nothing.

        Raises:
            ConfigError: What made the runs that are there cannot be had: it trains no more, or Numba is missing.
        """
        name = workload.name
        if name not in self._chosen:

            def choose() -> Choice:
                return self._as_made(name) or self._best(workload, keeps)

            known = self.ledger.choice(self._name(name))
            if known is None:
                known = self.ledger.choose_once(self._name(name), choose) if keeps else choose()
            self._chosen[name] = known
        found = self._chosen[name]
        if found.backend in RETIRED:
            raise ConfigError(
                f"{name}: its runs are there by {found.backend}, which trains no more: judge them as they are with "
                "--audit-from, or train anew, beside them, with --audit-backend tiled"
            )
        if found.backend in COMPILED and not _has_numba():
            raise ConfigError(
                f"{name}: ledger {self.ledger.root} has its runs by {found.backend}, which needs Numba: "
                "pip install 'pruneaudit[compiled]', or name another one with --audit-backend"
            )
        return found

    def _name(self, workload: str) -> str:
        return choice_name(workload, self.budget, self.precision, self.arithmetic)

    def _as_made(self, workload: str) -> Choice | None:
        """What made the runs that are there."""
        if workload not in self._made:
            found = None
            for ledger in filter(None, (self.ledger, self.baseline)):
                if ledger is not self.ledger:
                    found = found or ledger.choice(self._name(workload))
                backend = made_by(ledger.folders(), workload, self.budget, self.precision, self.arithmetic)
                if found is None and backend is not None:
                    found = Choice(backend=backend, why=f"it made the runs that ledger {ledger.root.name} held before")
            self._made[workload] = found
        return self._made[workload]

    def _best(self, workload: Workload, tells: bool) -> Choice:
        """What is best here; others are told while it is measured, unless nothing may be written."""
        # Methods prune with torch's steps, whatever trains.
        recipes = (workload.pretrain, workload.retrain, workload.scratch)
        reasons = {
            "on CUDA the others train runs together, and last bits depend on what trains beside": self.device != "cpu",
            "a smoke budget is over before anything is compiled": self.budget == "smoke",
            f"the others do not train in {self.precision}": self.precision not in ("fp32", "fp64"),
            "its recipes are torch's alone": all(recipe.only_torch for recipe in recipes),
            "Numba is not installed (pip install 'pruneaudit[compiled]')": not _has_numba(),
        }
        for reason, holds in reasons.items():
            if holds:
                return Choice(backend="torch", why=reason)
        # Of what a CPU needs hours for, a step alone may take seconds.
        measures = self.arithmetic != PORTABLE and not workload.gpu
        ratios = (None, max(workload.ratios)) if measures else (None,)
        found = self._timed(workload, ratios, _ROUNDS if measures else 0, tells)
        return _fastest(found, ratios) if measures else _first(found)

    def _timed(
        self, workload: Workload, ratios: tuple[float | None, ...], rounds: int, tells: bool = False
    ) -> list[dict[str, Any]]:
        """What another process measures, or measured before on this machine: a row for each backend and ratio."""
        job = {
            "root": str(self.catalog.root),
            "workloads": list(self.catalog.extra_workloads),
            "workload": workload.name,
            "precision": self.precision,
            "ratios": ratios,
            "rounds": rounds,
        }
        about = {**job, "content": workload.model_dump_json(), "arithmetic": self.arithmetic, **_machine()}
        place = (
            cache_folder()
            / "backends"
            / f"{hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]}.json"
        )
        with contextlib.suppress(OSError, ValueError):
            before = json.loads(place.read_text(encoding="utf-8"))
            if _is_whole(before, ratios):
                return list(before)
        with self._announced(f"{workload.name}: {'measuring' if rounds else 'asking'} backends", tells):
            found = asked(__name__, job, _PATIENCE)
        if _is_whole(found, ratios):
            # Who can keep nothing measures again next time.
            with contextlib.suppress(OSError):
                place.parent.mkdir(parents=True, exist_ok=True)
                write_json(place, found)
        return found

    @contextlib.contextmanager
    def _announced(self, what: str, tells: bool) -> Iterator[None]:
        """Tell whoever watches the ledger what this process does, as it tells of runs."""
        if tells:
            tell(self.ledger, what, unit="")
        try:
            yield
        finally:
            if tells:
                tell(self.ledger, None)


def _fastest(rows: list[dict[str, Any]], ratios: tuple[float | None, ...]) -> Choice:
    """The backend that takes the least time for networks of all ratios together."""
    if not _is_whole(rows, ratios):
        return Choice(backend="torch", why="nothing else could be measured")
    times = {backend: [row["seconds"] for row in rows if row["backend"] == backend] for backend in CANDIDATES}
    totals = {backend: sum(found) for backend, found in times.items() if None not in found}
    best = min(totals, key=lambda backend: totals[backend])
    if len(totals) == 1:
        return Choice(backend="torch", why=next(filter(None, (row["note"] for row in rows)), "no other one trains it"))
    if best == "torch" or totals["torch"] < MARGIN * totals[best]:
        return Choice(backend="torch", why=f"no other one that trains it is {MARGIN:g} times as fast here")
    shown = " and ".join("dense" if ratio is None else f"at ratio {ratio:g}" for ratio in ratios)
    return Choice(
        backend=best, why=f"measured here, {totals['torch'] / totals[best]:.1f} times as fast as torch ({shown})"
    )


def _first(rows: list[dict[str, Any]]) -> Choice:
    """The first of all that trains a network."""
    able = {row["backend"] for row in rows if row["seconds"] is not None}
    best: Backend = next((backend for backend in CANDIDATES if backend in able), "torch")
    return Choice(
        backend=best, why=f"the first of {', '.join(CANDIDATES)} that trains such networks; nothing was timed"
    )


def _is_whole(rows: object, ratios: tuple[float | None, ...]) -> bool:
    """Whether each backend was asked at each ratio, and torch answered."""
    try:
        found = {(row["backend"], row["ratio"]): row["seconds"] for row in rows}  # type: ignore[attr-defined]
    except (TypeError, KeyError):
        return False
    every = [(backend, ratio) for backend in CANDIDATES for ratio in ratios]
    return all(key in found for key in every) and all(found["torch", ratio] is not None for ratio in ratios)


def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


def _machine() -> Mapping[str, str]:
    """What timings depend on."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "numba")}
    processor = of_processor("model name") or platform.processor() or platform.machine()
    return {**versions, "pruneaudit": __version__, "python": platform.python_version(), "processor": processor}


def main() -> None:
    """Measure what standard input names, and write a line of JSON for each backend and ratio."""
    from pruneaudit.campaign.backends import measure

    job = json.load(sys.stdin)
    # What user's code prints is no word of ours.
    out, sys.stdout = sys.stdout, sys.stderr
    catalog = Catalog(root=Path(job["root"]), extra_workloads=tuple(job["workloads"]))
    workload, rounds = catalog.workload(job["workload"]), job["rounds"]
    for ratio in job["ratios"]:
        found = measure(workload, "cpu", job["precision"], 1, ratio, CANDIDATES, rounds, _LONGEST)
        if sum(one.seconds is not None for one in found) == 1:
            # Nothing that smaller networks take would change the choice.
            rounds = 0
        for one in found:
            row = {"backend": one.backend, "ratio": ratio, "seconds": one.seconds, "note": one.note}
            print(json.dumps(row), file=out, flush=True)
