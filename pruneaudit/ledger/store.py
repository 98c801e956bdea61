"""The append-only store of run records: one folder per run, written aside and renamed, verified by digest when read.

Layout::

    runs/SLUG-ID/record.json, weights.safetensors    finished runs
    failures/SLUG-ID-N.json                          failed attempts, kept
    cells/CELL.json                                  what each cell makes of its runs
    planned/WORKLOAD-PROTOCOL.json                   plans of verdicts, written before their first seed trained
    partial/ID/                                      state of a run under way
    locks/ID.lock                                    held by the process that trains it
    progress/PID.json                                runs that each process has under way
    progress/SESSION.plan                            what each session has to train
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock
from pydantic import BaseModel
from pydantic_core import from_json

from pruneaudit.errors import ConfigError, DamagedError
from pruneaudit.ledger.migration import NewerError, check, migrated
from pruneaudit.ledger.records import SCHEMA_VERSION, CellRecord, FailureRecord, RunRecord, RunSpec

if TYPE_CHECKING:
    import torch

Model = TypeVar("Model", bound=BaseModel)
#: Plans of so many sessions are kept: more will not run side by side.
_PLANS_KEPT = 8


class Ledger:
    """A folder of records.

    Args:
        root: The folder; made where it is missing.
        writable: False: only look. Nothing is made or written, and writing is a programming error.

    Raises:
        ConfigError: A newer version wrote in the folder, it cannot be written, or (to look at) is no ledger.
    """

    def __init__(self, root: Path, writable: bool = True) -> None:
        self.root = root
        self.writable = writable
        self._records: dict[str, RunRecord] = {}
        self._paths: dict[str, Path] = {}
        marker = root / "ledger.json"
        try:
            if writable:
                for name in ("runs", "failures", "cells", "partial", "locks", "progress"):
                    (root / name).mkdir(parents=True, exist_ok=True)
                if not marker.exists():
                    write_json(marker, {"schema_version": SCHEMA_VERSION})
            elif not marker.exists():
                raise ConfigError(
                    f"{root} is no ledger; give the folder of one (--ledger, --audit-ledger), "
                    "or run 'pytest suite' first"
                )
            version = json.loads(marker.read_text(encoding="utf-8")).get("schema_version")
            check(version)
            if writable and version < SCHEMA_VERSION:
                # Its records stay as they are. An older pruneaudit would take new ones for damaged: now it refuses.
                write_json(marker, {"schema_version": SCHEMA_VERSION})
        except NewerError as error:
            raise ConfigError(f"ledger {root}: {error}") from None
        except OSError as error:
            raise ConfigError(
                f"ledger {root}: {error.strerror or error}; choose another folder with --audit-ledger"
            ) from None
        except ValueError:
            raise ConfigError(
                f"ledger {root}: ledger.json is damaged; choose another folder with --audit-ledger"
            ) from None

    def find(self, spec: RunSpec) -> RunRecord | None:
        """The finished run with this identity, or None.

        Raises:
            DamagedError: Its record cannot be read.
        """
        run_id = spec.run_id
        if run_id not in self._records:
            path = self.root / "runs" / spec.folder / "record.json"
            if not path.exists():
                return None
            self._records[run_id] = _read(RunRecord, path)
        return self._records[run_id]

    def get(self, run_id: str) -> RunRecord:
        """The finished run with this id.

        Raises:
            DamagedError: It is not there, or cannot be read.
        """
        if run_id not in self._records:
            if run_id not in self._paths:
                # One look at the folder serves many ids: a report asks for all of them.
                paths = (self.root / "runs").glob("*/record.json")
                self._paths = {path.parent.name.rpartition("-")[2]: path for path in paths}
            if run_id not in self._paths:
                raise DamagedError(f"ledger {self.root}: run {run_id} is missing; run the suite again to train it")
            self._records[run_id] = _read(RunRecord, self._paths[run_id])
        return self._records[run_id]

    def finished(self) -> set[str]:
        """Ids of all finished runs."""
        return {path.parent.name.rpartition("-")[2] for path in (self.root / "runs").glob("*/record.json")}

    def runs(self) -> Iterator[RunRecord]:
        """All finished runs, by folder name."""
        for path in sorted((self.root / "runs").glob("*/record.json")):
            yield _read(RunRecord, path)

    def weights(self, record: RunRecord) -> dict[str, torch.Tensor]:
        """Weights that a run wrote.

        Raises:
            DamagedError: The file does not have the digest of the record.
        """
        from safetensors.torch import load

        return load(self.weights_file(record))

    def weights_file(self, record: RunRecord) -> bytes:
        """Content of the weights file that a run wrote.

        Raises:
            DamagedError: The file does not have the digest of the record.
        """
        folder = self.root / "runs" / record.folder
        path = folder / "weights.safetensors"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DamagedError(f"{path}: {error.strerror}; delete {folder} and run again") from None
        if hashlib.sha256(content).hexdigest() != record.weights_digest:
            raise DamagedError(f"{path}: the weights changed after the run wrote them; delete {folder} and run again")
        return content

    def digest_on_disk(self, record: RunRecord) -> str:
        """SHA-256 of a run's weights file as it is now; empty where it cannot be read."""
        try:
            content = (self.root / "runs" / record.folder / "weights.safetensors").read_bytes()
        except OSError:
            return ""
        return hashlib.sha256(content).hexdigest()

    def commit(self, record: RunRecord, weights: bytes) -> RunRecord:
        """Add a finished run; whole or not at all."""
        self._writing()
        target = self.root / "runs" / record.folder
        aside = self.root / "partial" / f"{record.run_id}-{os.getpid()}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        (aside / "weights.safetensors").write_bytes(weights)
        write_json(aside / "record.json", record.model_dump(mode="json"))
        if target.exists():
            # A folder without a readable record, left by hand: finished runs are never replaced.
            shutil.rmtree(target)
        os.replace(aside, target)
        shutil.rmtree(self.workspace(record, create=False), ignore_errors=True)
        self._records[record.run_id] = record
        return record

    def fail(self, failure: FailureRecord) -> None:
        """Add a failed attempt beside earlier ones."""
        self._writing()
        number = 1
        # The first free one, not one above their count: somebody may have deleted an earlier one.
        while (path := self.root / "failures" / f"{failure.spec.folder}-{number}.json").exists():
            number += 1
        write_json(path, failure.model_dump(mode="json"))

    def failure(self, spec: RunSpec, session: str) -> FailureRecord | None:
        """A failure of this run in this session, or None: the next session tries again."""
        for path in sorted((self.root / "failures").glob(f"{spec.folder}-*.json"), reverse=True):
            failure = _read(FailureRecord, path)
            if failure.session == session:
                return failure
        return None

    def failures(self) -> list[FailureRecord]:
        """All failed attempts."""
        return [_read(FailureRecord, path) for path in sorted((self.root / "failures").glob("*.json"))]

    def lock(self, spec: RunSpec) -> FileLock:
        """Lock of a run: held by the process that trains it, freed by the system if that process dies."""
        self._writing()
        return FileLock(self.root / "locks" / f"{spec.run_id}.lock")

    def workspace(self, spec: RunSpec, create: bool = True) -> Path:
        """Folder for the state of a run under way."""
        folder = self.root / "partial" / spec.run_id
        if create:
            self._writing()
            folder.mkdir(exist_ok=True)
        return folder

    def save_cell(self, record: CellRecord, key: str) -> None:
        """Write what a cell makes of its runs (a view: a later attempt replaces it)."""
        self._writing()
        write_json(self.root / "cells" / f"{key}.json", record.model_dump(mode="json"))

    def cell(self, key: str) -> CellRecord | None:
        """The record of a cell, or None where there is none that can be read: it is only a view, written anew."""
        path = self.root / "cells" / f"{key}.json"
        try:
            return _read(CellRecord, path) if path.exists() else None
        except DamagedError:
            return None

    def cells(self) -> list[CellRecord]:
        """Records of all cells, by file name."""
        return list(self.cells_by_key().values())

    def cells_by_key(self) -> dict[str, CellRecord]:
        """Records of all cells, each under the key that it was saved with."""
        # Names are sorted, not paths: these take ten times as long.
        names = sorted(name for name in os.listdir(self.root / "cells") if name.endswith(".json"))
        return {name.removesuffix(".json"): _read(CellRecord, self.root / "cells" / name) for name in names}

    def plan_once(self, name: str, plan: Model, refuse: str = "") -> Model:
        """Write a plan of verdicts unless there is one of this name, which stays; give what is there.

        Args:
            name: Its name.
            plan: The plan.
            refuse: Why it is too late to write one, or nothing.

        Raises:
            ConfigError: There is none, and it is too late.
            DamagedError: The one that is there cannot be read.
        """
        self._writing()
        path = self.root / "planned" / f"{name}.json"
        with FileLock(self.root / "locks" / f"{name}.plan.lock"):
            if not path.exists():
                if refuse:
                    raise ConfigError(refuse)
                path.parent.mkdir(exist_ok=True)
                write_json(path, {**plan.model_dump(mode="json"), "schema_version": SCHEMA_VERSION})
        return _read_plan(type(plan), path)

    def plan_files(self) -> dict[str, dict[str, object]]:
        """Content of all plans of verdicts, by name, without what was there when they were written.

        Raises:
            DamagedError: One cannot be read.
        """
        found = {}
        for path in sorted((self.root / "planned").glob("*.json")):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                found[path.stem] = {key: content[key] for key in content if key != "seen"}
            except (OSError, ValueError, TypeError):
                raise DamagedError(f"{path}: not a plan; take it from a copy, or choose another ledger") from None
        return found

    def write_plan(self, name: str, plan: dict[str, object]) -> None:
        """Add a plan of another ledger; one that is here stays."""
        self._writing()
        path = self.root / "planned" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            write_json(path, plan)

    def planned(self, kind: type[Model]) -> list[Model]:
        """All plans of verdicts, by name.

        Raises:
            DamagedError: One cannot be read.
        """
        return [_read_plan(kind, path) for path in sorted((self.root / "planned").glob("*.json"))]

    def report_progress(self, runs: Sequence[Mapping[str, Any]]) -> None:
        """Tell other processes which runs this one has under way, and how far they are."""
        path = self.root / "progress" / f"{os.getpid()}.json"
        if runs:
            self._writing()
            who = {"time": time.time(), "pid": os.getpid(), "host": platform.node()}
            write_json(path, [{**facts, **who} for facts in runs])
        elif self.writable:
            path.unlink(missing_ok=True)

    def progress(self) -> list[dict[str, Any]]:
        """The runs that processes have under way; those of killed ones still stand in it."""
        found: list[dict[str, Any]] = []
        for path in sorted((self.root / "progress").glob("*.json")):
            try:
                runs = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue  # just finished, or being replaced
            if isinstance(runs, list):
                found.extend(facts for facts in runs if isinstance(facts, dict))
        return found

    def report_plan(self, session: str, facts: dict[str, Any]) -> str:
        """Tell other processes what a session has to train, unless one of its processes has done so.

        Returns:
            Name of the plan.
        """
        self._writing()
        # Any text can be the id of a session, not any can be the name of a file.
        name = hashlib.sha256(session.encode()).hexdigest()[:16]
        path = self.root / "progress" / f"{name}.plan"
        with FileLock(self.root / "locks" / f"{name}.lock"):
            if not path.exists():
                write_json(path, {**facts, "time": time.time()})
                for old in self.plans()[_PLANS_KEPT:]:
                    old.unlink(missing_ok=True)
        return name

    def plans(self) -> list[Path]:
        """Files of the plans of the last sessions, newest first."""
        times = {}
        for path in (self.root / "progress").glob("*.plan"):
            with contextlib.suppress(OSError):  # just removed
                times[path] = path.stat().st_mtime_ns
        return sorted(times, key=lambda path: times[path], reverse=True)

    def _writing(self) -> None:
        if not self.writable:
            raise RuntimeError(f"ledger {self.root} was opened to look only; nothing may be written to it")


def write_json(path: Path, content: Any) -> None:
    """Write JSON beside and rename over, so that readers see all or nothing.

    Raises:
        ValueError: The content holds NaN or infinity.
        TypeError: The content holds something that is no JSON builtin.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def _read_plan(kind: type[Model], path: Path) -> Model:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        check(content.pop("schema_version"))
        return kind.model_validate(content)
    except NewerError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        raise DamagedError(
            f"{path}: not a plan of this version; take it from a copy, or choose another ledger"
        ) from None


def _read(kind: type[Model], path: Path) -> Model:
    try:
        return kind.model_validate(migrated(from_json(path.read_bytes())))
    except NewerError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (OSError, ValueError, AttributeError) as error:
        reason = "not readable" if isinstance(error, OSError) else "not a record of this version"
        raise DamagedError(
            f"{path}: {reason}; delete {path.parent if path.name == 'record.json' else path} and run again"
        ) from None
