"""The append-only store of run records: one folder per run, written aside and renamed, verified by digest when read.

Layout::

    runs/SLUG-ID/record.json, weights.safetensors    finished runs
    failures/SLUG-ID-N.json                          failed attempts, kept
    cells/CELL.json                                  what each cell makes of its runs
    planned/WORKLOAD-PROTOCOL.json                   plans of verdicts, written before their first seed trained
    looks/WORKLOAD-PROTOCOL.json                     over how many seeds there were verdicts without a plan
    partial/ID/                                      state of a run under way
    locks/ID.lock, ID.lease                          held by the process that trains it (:mod:`.locks`)
    progress/HOST-PID-NUMBER.json                    runs that each process has under way
    progress/SESSION.plan                            what each session has to train
    backends/WORKLOAD.json                           what trains its runs, where nobody said it
    populations/STUDY-ID/PART.json                   pruned networks of a study, retrained
    merged/DIGEST.json                               links of records that merges, or late commits, left out
    tasks/SESSION/                                   runs that a session wants computed by a cluster
    checked/DIGEST.json                              of which records the stored weights were evaluated again

Records hold the digest of everything else in them (:func:`sealed`), and a link to what their writer wrote before
(:mod:`pruneaudit.ledger.chain`). Several machines may share the folder: locks are of the kind that its file system
keeps, and no name is told by the number of a process alone, which another container has as well. Files of a ledger may
come from strangers: links of the file system are not followed, and nothing is read that is larger than it may be
(:func:`read_file`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import BaseFileLock
from pydantic import BaseModel, TypeAdapter
from pydantic_core import from_json

from pruneaudit.catalog.discovery import suite_command
from pruneaudit.errors import ConfigError, DamagedError, StorageError
from pruneaudit.ledger.chain import Account, Link, Writer, account, known_keys
from pruneaudit.ledger.choices import Choice, choice_name
from pruneaudit.ledger.index import LEAST, Index, Reader, Row, Seen, all_seen, content_of, index_of, seen
from pruneaudit.ledger.locks import KINDS, Kind, Locks, kind_for
from pruneaudit.ledger.migration import OLDEST, NewerError, check, migrated
from pruneaudit.ledger.records import SCHEMA_VERSION, CellRecord, FailureRecord, RunRecord, RunSpec

if TYPE_CHECKING:
    import torch

Model = TypeVar("Model", bound=BaseModel)
_LOOKS = TypeAdapter(dict[str, list[int]])
#: Plans of so many sessions are kept: more will not run side by side.
_PLANS_KEPT = 8
#: Seconds after which what a process told is nobody's any more, where it was killed and could not take it back.
_FORGOTTEN = 86400.0
#: What is wrong with a record whose digest fits and whose link does not.
_FOREIGN = "somebody else wrote it"
#: Digest and link in the text of a record.
_SEAL, _LINK = re.compile(rb'\n "digest": "[0-9a-f]{64}",\n'), re.compile(rb'\n "link": \{[^{}]*\},\n')
#: Bytes that a file of a ledger may have: records, weights.
MOST_OF_RECORD, MOST_OF_WEIGHTS = 1 << 28, 1 << 36


class Ledger:
    """A folder of records.

    Args:
        root: The folder; made where it is missing.
        writable: False: only look. Nothing is made or written, and writing is a programming error.
        when_needed: Make a missing folder only when something is written.

    Raises:
        ConfigError: A newer version wrote in the folder, it cannot be written, or (to look at) is no ledger.
    """

    def __init__(self, root: Path, writable: bool = True, when_needed: bool = False) -> None:
        self.root = root
        self.writable = writable
        self._made = False
        self._older = False
        self._records: dict[str, RunRecord] = {}
        self._folders: dict[str, str] = {}
        #: What is wrong with records that were left out of a list of all.
        self.damaged: dict[Path, str] = {}
        self._number = secrets.token_hex(8)
        self._locks = Locks(root / "locks", "system")
        self._writer = Writer()
        self._keys = known_keys()
        # Links of the records that were read, by path.
        self._links: dict[str, Link | None] = {}
        # Where all are asked for: what is known of files, and the cells that it knows, until they are asked for.
        self._index: Index | None = None
        self._cells: dict[str, CellRecord] = {}
        self._checks: dict[str, str] | None = None
        marker = root / "ledger.json"
        try:
            if writable and not when_needed:
                self._make()
            elif writable and not marker.exists():
                return
            elif not marker.exists():
                raise ConfigError(
                    f"{root} is no ledger; give the folder of one (--ledger, --audit-ledger), "
                    f"or run '{suite_command()}' first"
                )
            facts = from_json(read_file(marker))
            check(facts.get("schema_version"))
            self._older = facts["schema_version"] < SCHEMA_VERSION
            self._locks = Locks(root / "locks", _kind_of(facts))
            if writable and not when_needed:
                self._make()
        except NewerError as error:
            raise ConfigError(f"ledger {root}: {error}") from None
        except OSError as error:
            raise ConfigError(
                f"ledger {root}: {error.strerror or error}; choose another folder with --audit-ledger"
            ) from None
        except (ValueError, AttributeError):
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
            if not self.has(spec, run_id):
                return None
            self._records[run_id] = self._read_run(self.root / "runs" / f"{spec.slug}-{run_id}" / "record.json")
        return self._records[run_id]

    def has(self, spec: RunSpec, run_id: str = "") -> bool:
        """Whether this run is finished: one question to the system, however many runs there are.

        Args:
            spec: The run.
            run_id: Its id, for who knows it already: to find it takes longer than to ask.
        """
        return os.path.exists(f"{self.root}/runs/{spec.slug}-{run_id or spec.run_id}/record.json")

    def get(self, run_id: str) -> RunRecord:
        """The finished run with this id.

        Raises:
            DamagedError: It is not there, or cannot be read.
        """
        if run_id not in self._records:
            if run_id not in self._folders:
                # One look at the folder serves many ids: a report asks for all of them. Which are finished is not
                # asked of all: a node of a cluster wants one of a hundred thousand.
                self._folders = {name.rpartition("-")[2]: name for name in self.folders()}
            path = self.root / "runs" / self._folders.get(run_id, run_id) / "record.json"
            if not path.exists():
                self._folders.pop(run_id, None)
                raise DamagedError(f"ledger {self.root}: run {run_id} is missing; run the suite again to train it")
            self._records[run_id] = self._read_run(path)
        return self._records[run_id]

    def above(self, run: RunSpec | RunRecord) -> list[RunRecord]:
        """Finished runs that a run stands on, parents first.

        Raises:
            DamagedError: One is missing, or cannot be read.
        """
        found: dict[str, RunRecord] = {}

        def add(one: RunSpec | RunRecord) -> None:
            for needed in one.needs:
                if needed not in found:
                    parent = self.get(needed)
                    add(parent)
                    found[needed] = parent

        add(run)
        return list(found.values())

    def finished(self) -> set[str]:
        """Ids of all finished runs."""
        return {name.rpartition("-")[2] for name in self._finished()}

    def _finished(self) -> list[str]:
        """Names of the folders of all finished runs, as the system lists them."""
        # Of a hundred thousand folders, paths would take ten times as long.
        runs = self.root / "runs"
        return [name for name in self.folders() if os.path.exists(f"{runs}/{name}/record.json")]

    def recall(self, cells: bool = True) -> None:
        """Take what an index knows of its files, so that only what is new, or changed since, is read.

        For who asks for all of them. A ledger of few runs has no index (:mod:`.index`).

        Args:
            cells: Also of cells. A run is read once; a cell whenever all are asked for, as it may have been measured
                anew, so that who asks for none need not know them.
        """
        self._cells = {}
        with contextlib.suppress(OSError):
            folders = [entry.name for entry in os.scandir(self.root / "runs") if not entry.is_symlink()]
            self._index = self._index or (index_of(self.root) if len(folders) >= LEAST else None)
            if self._index is None:
                return
            root, keys = self.root, self._keys
            reader = Reader(lambda folder: _read(RunRecord, root / "runs" / folder / "record.json", keys)[0])
            names = [f"runs/{name}/record.json" for name in folders if name.rpartition("-")[2] not in self._records]
            checks = self.checks()
            for path, row in self._rows(self._index, "runs", names):
                # What a damaged index knows by half is read anew.
                with contextlib.suppress(KeyError):
                    run, link = reader.run(row)
                    # What its weights contradict is refused where it is read.
                    if not checks.get(link.mac):
                        self._records[run.run_id], self._links[path] = run, link
            names = [f"cells/{name}" for name in os.listdir(self.root / "cells")] if cells else []
            for path, row in self._rows(self._index, "cells", names):
                with contextlib.suppress(KeyError):
                    cell, self._links[path] = reader.cell(row)
                    self._cells[path.rpartition(os.sep)[2].removesuffix(".json")] = cell

    def _rows(self, index: Index, folder: str, names: list[str]) -> Iterator[tuple[str, Row]]:
        """What an index knows of files as they are now, each with its path."""
        prefix = str(self.root / folder).removesuffix(folder)
        for name, row in index.rows(folder, all_seen(str(self.root), names)) if names else ():
            yield prefix + name.replace("/", os.sep), row

    def keep(self) -> None:
        """Have the index know what was read since :meth:`recall`."""
        if self._index is not None:
            self._index.save()

    def derived(self) -> dict[str, bytes] | None:
        """What an index holds that was derived of its records, by name; None: it has no index."""
        return None if self._index is None else self._index.derived()

    def keep_derived(self, new: Mapping[str, bytes], asked: Set[str]) -> None:
        """Have the index hold what was derived of its records, and forget what nobody asked for any more."""
        if self._index is not None:
            self._index.keep_derived(new, asked)

    def marks(self) -> dict[str, str]:
        """What no other record has, nor this one once it is edited, by id of a run and key of a cell.

        Of those that were read, and that a key which is here signed.
        """
        found = {}
        for path, link in self._links.items():
            if link is not None and link.key in self._keys:
                folder, _, name = path.rpartition(os.sep)
                name = folder.rpartition("-")[2] if name == "record.json" else name.removesuffix(".json")
                found[name] = link.mac
        return found

    def folders(self) -> list[str]:
        """Names of the folders of all runs, finished or not, see :attr:`RunSpec.folder`."""
        try:
            return os.listdir(self.root / "runs")
        except FileNotFoundError:
            # Made when something is written.
            return []

    def runs(self) -> Iterator[RunRecord]:
        """All finished runs, by folder name; those that cannot be read are left out, and named in ``damaged``."""
        for name in sorted(self._finished()):
            path = self.root / "runs" / name / "record.json"
            try:
                yield self._read_run(path)
            except DamagedError as error:
                self.damaged[path] = str(error)

    def damage(self, record: CellRecord) -> str | None:
        """What is wrong with a run that a cell stands on, in one line; None: all of them can be read."""
        try:
            for run_id in record.runs:
                self.get(run_id)
        except DamagedError as error:
            return str(error)
        return None

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
            content = read_file(path, MOST_OF_WEIGHTS)
        except OSError as error:
            raise DamagedError(f"{path}: {error.strerror}; delete {folder} and run again") from None
        if hashlib.sha256(content).hexdigest() != record.weights_digest:
            raise DamagedError(f"{path}: the weights changed after the run wrote them; delete {folder} and run again")
        return content

    def digest_on_disk(self, record: RunRecord) -> str:
        """SHA-256 of a run's weights file as it is now; empty where it cannot be read."""
        try:
            content = read_file(self.root / "runs" / record.folder / "weights.safetensors", MOST_OF_WEIGHTS)
        except OSError:
            return ""
        return hashlib.sha256(content).hexdigest()

    def commit(self, record: RunRecord, weights: bytes, as_written: bytes | None = None) -> RunRecord:
        """Add a finished run; whole or not at all. Who commits it holds its lock.

        A lease may be lost to another host while its holder is stopped: who is first is believed, and who comes later
        gets what is there.

        Args:
            record: The run.
            weights: Content of its weights file.
            as_written: The record as another ledger has it, with the link of who wrote it; None: it is this process's.

        Raises:
            StorageError: There is no room for it, or the ledger may not be written.
        """
        self._writing()
        target = self.root / "runs" / record.folder
        aside = self.root / "partial" / f"{record.run_id}-{secrets.token_hex(8)}-whole"
        with self._storing():
            aside.mkdir()
            try:
                (aside / "weights.safetensors").write_bytes(weights)
                self._write(aside / "record.json", record, as_written, place=target / "record.json")
                record = self._place(aside, target, record)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(self.workspace(record, create=False), ignore_errors=True)
        self._records[record.run_id] = record
        return record

    def _place(self, aside: Path, target: Path, record: RunRecord) -> RunRecord:
        """Put a run into its place, where it stays; give what is there then."""
        while True:
            try:
                os.replace(aside, target)
                return record
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            path = target / "record.json"
            ours = self._links.get(str(path))
            try:
                there = self._read_run(path)
            except DamagedError:
                # A folder without a readable record, left by hand: finished runs are never replaced.
                self._links[str(path)] = ours
                shutil.rmtree(target)
            else:
                # Nobody is to take what was left out for something that was removed.
                self.leave_out([] if ours is None else [ours])
                return there

    def fail(self, failure: FailureRecord, as_written: bytes | None = None) -> None:
        """Add a failed attempt beside earlier ones.

        Args:
            failure: The attempt.
            as_written: As :meth:`commit`'s.

        Raises:
            StorageError: There is no room for it, or the ledger may not be written.
        """
        self._writing()
        number = 1
        # The first free one, not one above their count: somebody may have deleted an earlier one.
        while (path := self.root / "failures" / f"{failure.spec.folder}-{number}.json").exists():
            number += 1
        with self._storing():
            self._write(path, failure, as_written)

    def failure(self, spec: RunSpec, session: str) -> FailureRecord | None:
        """A failure of this run in this session, or None: the next session tries again."""
        folder = self.root / "failures"
        names = os.listdir(folder) if folder.is_dir() else []
        # Mostly nothing failed, and who waits for a run asks again and again.
        if names:
            begin = f"{spec.folder}-"
            names = [name for name in names if name.startswith(begin) and name.endswith(".json")]
        for name in sorted(names, reverse=True):
            failure = self._read(FailureRecord, folder / name)
            if failure.session == session:
                return failure
        return None

    def failures(self) -> list[FailureRecord]:
        """All failed attempts; those that cannot be read are left out, and named in ``damaged``."""
        return list(self.failures_by_file().values())

    def failures_by_file(self) -> dict[Path, FailureRecord]:
        """All failed attempts, each with its file; damaged ones are named in ``damaged``."""
        paths = sorted((self.root / "failures").glob("*.json"))
        found = {path: failure for path in paths for failure in self._readable(FailureRecord, [path])}
        for path, failure in list(found.items()):
            # Its name becomes a file's in a merge: that of a stranger might lead out of the ledger.
            if not path.name.startswith(f"{failure.spec.folder}-"):
                self.damaged[path] = f"{path}: is not named by the run that failed; delete it"
                del found[path]
        return found

    def lock(self, spec: RunSpec) -> BaseFileLock:
        """Lock of a run: held by the process that trains it, and free when that process dies."""
        self._writing()
        return self._locks.of(spec.run_id)

    @property
    def locks(self) -> Kind:
        """Kind of its locks."""
        return self._locks.kind

    def workspace(self, spec: RunSpec, create: bool = True) -> Path:
        """Folder for the state of a run under way."""
        folder = self.root / "partial" / spec.run_id
        if create:
            self._writing()
            with self._storing():
                folder.mkdir(exist_ok=True)
        return folder

    def save_part(self, population: str, name: str, content: Mapping[str, Any]) -> None:
        """Write a part of what a study measured of a population of networks.

        Raises:
            StorageError: There is no room for it, or the ledger may not be written.
        """
        self._writing()
        folder = self.root / "populations" / population
        with self._storing():
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / f"{name}.json", sealed(content))

    def part(self, population: str, name: str) -> dict[str, Any] | None:
        """A part of a population as it was written; None where there is none.

        Raises:
            DamagedError: It cannot be read, or changed since it was written.
        """
        path = self.root / "populations" / population / f"{name}.json"
        if not path.exists():
            return None
        try:
            content = dict(from_json(read_file(path)))
            if "digest" not in content:
                # All have one: a record without one is older, a part without one lost its name.
                raise ValueError("no digest")
            return _opened(content, {})
        except (OSError, ValueError, TypeError):
            raise DamagedError(f"{path}: not readable, or damaged; delete it and run again") from None

    def population_lock(self, population: str, name: str) -> BaseFileLock:
        """Lock of a part: held by the process that measures it."""
        self._writing()
        return self._locks.of(f"{population}-{name}")

    def save_cell(self, record: CellRecord, key: str, as_written: bytes | None = None) -> None:
        """Write what a cell makes of its runs (a view: a later attempt replaces it).

        Args:
            record: The cell.
            key: Its name in the ledger.
            as_written: As :meth:`commit`'s.

        Raises:
            StorageError: There is no room for it, or the ledger may not be written.
        """
        self._writing()
        with self._storing():
            self._write(self.root / "cells" / f"{key}.json", record, as_written, view=True)

    def cell(self, key: str) -> CellRecord | None:
        """The record of a cell, or None where there is none that can be read: it is only a view, written anew."""
        path = self.root / "cells" / f"{key}.json"
        try:
            return self._read(CellRecord, path) if path.exists() else None
        except DamagedError:
            return None

    def cell_keys(self) -> set[str]:
        """Keys of all cells."""
        folder = self.root / "cells"
        names = os.listdir(folder) if folder.is_dir() else []
        return {name.removesuffix(".json") for name in names if name.endswith(".json")}

    def cells(self) -> list[CellRecord]:
        """Records of all cells, by file name."""
        return list(self.cells_by_key().values())

    def cells_by_key(self) -> dict[str, CellRecord]:
        """Records of all cells, each under the key that it was saved with; damaged ones are named in ``damaged``."""
        # Names are sorted, not paths: these take ten times as long.
        known, self._cells = self._cells, {}
        found = {}
        for name in sorted(f"{key}.json" for key in self.cell_keys()):
            key = name.removesuffix(".json")
            if key in known:
                found[key] = known[key]
                continue
            path = self.root / "cells" / name
            before = self._seen(path)
            for cell in self._readable(CellRecord, [path]):
                found[key] = cell
                self._note(path, before, cell)
        return found

    def _seen(self, path: Path) -> Seen | None:
        """What tells a file that is about to be read from what it will be, where there is an index."""
        return None if self._index is None else seen(str(path))

    def _note(self, path: Path, before: Seen | None, record: RunRecord | CellRecord) -> None:
        """Have an index know a record that was read: one whose link was verified."""
        link = self._links[str(path)]
        if self._index is not None and before is not None and link is not None and link.key in self._keys:
            self._index.note(path.relative_to(self.root).as_posix(), before, content_of(record, link))

    def _readable(self, kind: type[Model], paths: Iterable[Path]) -> Iterator[Model]:
        """The records that can be read."""
        for path in paths:
            try:
                yield self._read(kind, path)
            except DamagedError as error:
                self.damaged[path] = str(error)

    def _read_run(self, path: Path) -> RunRecord:
        if path.parent.is_symlink():
            raise DamagedError(f"{path.parent}: is a link, which no ledger has; delete it and run again")
        before = self._seen(path)
        record = self._read(RunRecord, path)
        # The bits of a record may be right, and their place another run's.
        if record.folder != path.parent.name:
            raise DamagedError(
                f"{path}: holds run {record.folder}, which was moved here; delete {path.parent} and run again"
            )
        if contradiction := self.checks().get(self._identity(record)):
            raise DamagedError(f"{path}: {contradiction}; delete {path.parent} and run again")
        self._note(path, before, record)
        return record

    def _identity(self, record: RunRecord) -> str:
        """What no other record has, nor this one once it is edited."""
        link = self._links.get(str(self.file_of(record)))
        return _digest(record.model_dump(mode="json")) if link is None else link.mac

    def checks(self) -> dict[str, str]:
        """Of which records the weights were evaluated again, and what contradicts them, or nothing.

        Only what a key that is here signed counts.
        """
        if self._checks is None:
            self._checks = {}
            for path in sorted((self.root / "checked").glob("*.json")):
                # What cannot be read is checked again.
                with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, KeyError):
                    content = from_json(read_file(path))
                    if (link := _link(content)) is not None and link.key in self._keys:
                        found = _opened(content, self._keys)["records"]
                        self._checks |= {str(name): str(why) for name, why in found.items()}
        return self._checks

    def is_checked(self, record: RunRecord) -> bool:
        """Whether the weights of a run were evaluated again since its record was written."""
        return self._identity(record) in self.checks()

    def remember_checks(self, found: Sequence[tuple[RunRecord, str]]) -> None:
        """Keep what came of evaluating stored weights again: records that they contradict are read no more.

        Args:
            found: Runs, each with what contradicts its record, or nothing.
        """
        records = {self._identity(record): why for record, why in found}
        self.checks().update(records)
        for record, why in found:
            if why:
                self._records.pop(record.run_id, None)
        # A look changes no ledger of an older layout.
        if not records or not self.writable or self._older:
            return
        content = sealed({"records": records})
        link = self._writer.link(content["digest"], view=True)
        # Who can keep no key, or may not write, looks again next time.
        with contextlib.suppress(StorageError), self._storing():
            self._writing()
            (self.root / "checked").mkdir(exist_ok=True)
            path = self.root / "checked" / f"{content['digest'][:16]}.json"
            write_json(path, content if link is None else {**content, "link": link.model_dump()})

    def _read(self, kind: type[Model], path: Path) -> Model:
        found, self._links[str(path)] = _read(kind, path, self._keys)
        return found

    def _write(
        self,
        path: Path,
        record: BaseModel,
        as_written: bytes | None = None,
        view: bool = False,
        place: Path | None = None,
    ) -> None:
        """Write a record with its digest and its link."""
        link: Link | None
        if as_written is None:
            content = sealed(record.model_dump(mode="json"))
            link = self._writer.link(content["digest"], view)
            write_json(path, content if link is None else {**content, "link": link.model_dump()})
            if not view:
                self._writer.written(link)
            # A key may just have been made.
            self._keys = self._keys or known_keys()
        else:
            _write_whole(path, as_written)
            link = link_of(as_written)
        self._links[str(place or path)] = link

    def file_of(self, record: RunSpec | str) -> Path:
        """The file of a run, or of the cell with a key."""
        if isinstance(record, str):
            return self.root / "cells" / f"{record}.json"
        return self.root / "runs" / record.folder / "record.json"

    def account(self) -> Account:
        """What the links of all records say of the ledger as a whole."""
        links: dict[str, Link | None] = {}
        kinds = {"runs": "", "failures": "", "cells": "", "planned": "plan ", "looks": "looks at "}
        for place, kind in kinds.items():
            folder = str(self.root / place)
            for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
                if place != "runs" and not name.endswith(".json"):
                    continue
                # Of a hundred thousand files, paths and their patterns would take ten times as long.
                path = f"{folder}{os.sep}{name}" + (f"{os.sep}record.json" if place == "runs" else "")
                if path not in self._links and Path(path) not in self.damaged:
                    # Whether it holds what it promises is told where it is read.
                    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
                        self._links[path] = link_of(read_file(Path(path)))
                if path in self._links:
                    links[kind + name.removesuffix(".json")] = self._links[path]
        return account(links, self.left_out(), self._keys)

    def left_out(self) -> list[Link]:
        """Links of records that merges left out, as far as a key that is here says so."""
        found: list[Link] = []
        for path in sorted((self.root / "merged").glob("*.json")):
            try:
                content = from_json(read_file(path))
                if (link := _link(content)) is not None and link.key in self._keys:
                    found += map(Link.model_validate, _opened(content, self._keys)["links"])
            except (OSError, ValueError, TypeError, AttributeError, KeyError):
                self.damaged[path] = f"{path}: damaged; what that merge left out counts as removed"
        return found

    def leave_out(self, links: Sequence[Link]) -> None:
        """Keep the links of records that a merge, or a commit, left out, so that nobody takes them for removed."""
        self._writing()
        listed = [link.model_dump() for link in sorted(links, key=lambda link: (link.writer, link.number))]
        path = self.root / "merged" / f"{_digest({'links': listed})[:16]}.json"
        if listed and not path.exists():
            path.parent.mkdir(exist_ok=True)
            content = sealed({"links": listed})
            signed = self._writer.link(content["digest"], view=True)
            write_json(path, content if signed is None else {**content, "link": signed.model_dump()})

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
        path = self.plan_file(name)
        with self._locks.of(f"{name}.plan"):
            if not path.exists():
                if refuse:
                    raise ConfigError(refuse)
                path.parent.mkdir(exist_ok=True)
                content = sealed({**plan.model_dump(mode="json"), "schema_version": SCHEMA_VERSION})
                link = self._writer.link(content["digest"])
                write_json(path, content if link is None else {**content, "link": link.model_dump()})
                self._writer.written(link)
                self._keys = self._keys or known_keys()
        return self._read_plan(type(plan), path)

    def _read_plan(self, kind: type[Model], path: Path) -> Model:
        found, self._links[str(path)] = _read_plan(kind, path, self._keys)
        return found

    def plan_files(self) -> dict[str, dict[str, object]]:
        """Content of all plans of verdicts, by name, without what was there when they were written, and who did.

        Raises:
            DamagedError: One cannot be read.
        """
        found = {}
        for path in sorted((self.root / "planned").glob("*.json")):
            try:
                content = _opened(from_json(read_file(path)), self._keys)
                found[path.stem] = {key: content[key] for key in content if key != "seen"}
            except (OSError, ValueError, TypeError) as error:
                raise _no_plan(path, error) from None
        return found

    def plan_file(self, name: str) -> Path:
        """The file of a plan."""
        return self.root / "planned" / f"{name}.json"

    def write_plan(self, name: str, as_written: bytes) -> None:
        """Add a plan of another ledger, as its file has it; one that is here stays."""
        self._writing()
        path = self.plan_file(name)
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            _write_whole(path, as_written)

    def planned(self, kind: type[Model]) -> list[Model]:
        """All plans of verdicts, by name.

        Raises:
            DamagedError: One cannot be read.
        """
        return [self._read_plan(kind, path) for path in sorted((self.root / "planned").glob("*.json"))]

    def choice(self, name: str) -> Choice | None:
        """What trains the runs of a workload, see :func:`choice_name`; None: nothing was chosen.

        Raises:
            DamagedError: It cannot be read.
        """
        path = self.root / "backends" / f"{name}.json"
        try:
            return Choice.model_validate(_opened(from_json(read_file(path)), self._keys)) if path.exists() else None
        except (OSError, ValueError, TypeError, AttributeError) as error:
            edited = str(error) == _FOREIGN
            reason = "edited: this pruneaudit did not write it so" if edited else "damaged, or no choice of a backend"
            raise DamagedError(f"{path}: {reason}; delete it, and name what shall train with --audit-backend") from None

    def choice_of(self, spec: RunSpec) -> Choice | None:
        """What trains the runs of a run's workload, where that is what was asked to train this one."""
        name = choice_name(spec.workload, spec.budget, spec.precision, spec.arithmetic)
        found = self.choice(name)
        return found if found is not None and found.backend == spec.backend else None

    def choose_once(self, name: str, choose: Callable[[], Choice]) -> Choice:
        """What trains the runs of a workload: as it was chosen before, or now; others wait for who chooses.

        Raises:
            DamagedError: What was chosen before cannot be read.
            StorageError: There is no room for it, or the ledger may not be written.
        """
        self._writing()
        path = self.root / "backends" / f"{name}.json"
        with self._locks.of(f"{name}.backend"):
            if (found := self.choice(name)) is not None:
                return found
            found = choose()
            with self._storing():
                path.parent.mkdir(exist_ok=True)
                content = sealed(found.model_dump(mode="json"))
                link = self._writer.link(content["digest"], view=True)
                write_json(path, content if link is None else {**content, "link": link.model_dump()})
        return found

    def looks(self, name: str) -> dict[str, list[int]]:
        """Over how many seeds there were verdicts of a table without a plan, by series of seeds.

        Raises:
            DamagedError: It cannot be read.
        """
        path = self.root / "looks" / f"{name}.json"
        try:
            return _LOOKS.validate_python(_opened(from_json(read_file(path)), self._keys)) if path.exists() else {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            edited = str(error) == _FOREIGN
            reason = "edited: this pruneaudit did not write it so" if edited else "damaged, or not a list of looks"
            raise DamagedError(f"{path}: {reason}; take it from a copy, or choose another ledger") from None

    def looked_at(self) -> list[str]:
        """Names of the tables that :meth:`looks` knows."""
        return sorted(path.stem for path in (self.root / "looks").glob("*.json"))

    def remember_looks(self, name: str, looks: Mapping[str, Sequence[int]]) -> None:
        """Add to them; what is there stays."""
        there = self.looks(name)
        if all(set(found) <= set(there.get(series, ())) for series, found in looks.items()):
            return
        self._writing()
        path = self.root / "looks" / f"{name}.json"
        with self._storing(), self._locks.of(f"{name}.looks"):
            path.parent.mkdir(exist_ok=True)
            there = self.looks(name)
            known = {series: sorted({*there.get(series, ()), *looks.get(series, ())}) for series in {*there, *looks}}
            content = sealed(known)
            link = self._writer.link(content["digest"], view=True)
            write_json(path, content if link is None else {**content, "link": link.model_dump()})

    def report_progress(self, runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Tell other processes which runs this one has under way, and how far they are.

        Returns:
            What was told, with who told it and when.
        """
        who = {"time": time.time(), "pid": os.getpid(), "host": platform.node(), "space": process_space()}
        told = [{**facts, **who} for facts in runs]
        self._say(told, "")
        return told

    def relay_progress(self, told: Sequence[Mapping[str, Any]]) -> None:
        """Tell what processes said of themselves that do not see this ledger, in place of what they said before."""
        self._say(told, "-relayed")

    def _say(self, told: Sequence[Mapping[str, Any]], kind: str) -> None:
        path = self.root / "progress" / f"{_host_in_names()}-{os.getpid()}-{self._number}{kind}.json"
        if told:
            self._writing()
            write_json(path, told)
        elif self.writable:
            path.unlink(missing_ok=True)

    def progress(self) -> list[dict[str, Any]]:
        """The runs that processes have under way; those of killed ones still stand in it."""
        found: list[dict[str, Any]] = []
        for path in sorted((self.root / "progress").glob("*.json")):
            try:
                runs = from_json(read_file(path))
            except (OSError, ValueError):
                continue  # just finished, or being replaced
            if isinstance(runs, list):
                found.extend(facts for facts in runs if isinstance(facts, dict))
        return found

    def report_plan(self, session: str, facts: dict[str, Any]) -> str:
        """Tell other processes what a session has to train, beyond what its processes have told so far.

        Args:
            session: Id of the session.
            facts: ``runs``, each with its ``id``, ``cells`` by key, and ``likely``: runs by table and round, in place
                of those that were told of a table before.

        Returns:
            Name of the plan.
        """
        self._writing()
        # Any text can be the id of a session, not any can be the name of a file.
        name = hashlib.sha256(session.encode()).hexdigest()[:16]
        path = self.root / "progress" / f"{name}.plan"
        with self._locks.of(name):
            if not path.exists():
                write_json(path, {**facts, "time": time.time()})
                for old in self.plans()[_PLANS_KEPT:]:
                    old.unlink(missing_ok=True)
                self._forget()
                return name
            try:
                there = json.loads(path.read_text(encoding="utf-8"))
                known = {run["id"] for run in there["runs"]}
            except (ValueError, KeyError, TypeError):
                return name  # It only tells, and is no reason to stop.
            runs = [*there["runs"], *(run for run in facts["runs"] if run["id"] not in known)]
            known_cells, likely = there.get("cells", {}), there.get("likely", {})
            told = {**likely, **facts.get("likely", {})}
            found = {"runs": runs, "cells": {**known_cells, **facts["cells"]}, "likely": told}
            if found != {"runs": there["runs"], "cells": known_cells, "likely": likely}:
                write_json(path, {**there, **found})
        return name

    def plans(self) -> list[Path]:
        """Files of the plans of the last sessions, newest first."""
        times = {}
        for path in (self.root / "progress").glob("*.plan"):
            with contextlib.suppress(OSError):  # just removed
                times[path] = path.stat().st_mtime_ns
        return sorted(times, key=lambda path: times[path], reverse=True)

    def _make(self) -> None:
        """Make what is missing of the folder."""
        for name in ("runs", "failures", "cells", "partial", "locks", "progress"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        marker = self.root / "ledger.json"
        if not marker.exists():
            facts = {"schema_version": SCHEMA_VERSION, **_noted(kind_for(self.root))}
            # Who makes it first says of what kind its locks are.
            with contextlib.suppress(FileExistsError):
                write_json(marker, facts, replace=False)
        elif self._older:
            # Its records stay as they are. An older pruneaudit would take new ones for damaged: now it refuses.
            write_json(marker, {"schema_version": SCHEMA_VERSION, **_noted(self.locks)})
        self._locks = Locks(self.root / "locks", _kind_of(from_json(read_file(marker))))
        self._made = True

    def _forget(self) -> None:
        """Remove what killed processes have told of themselves, and runs that they were about to commit."""
        for path in [*(self.root / "progress").glob("*.json"), *(self.root / "partial").glob("*-whole")]:
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _FORGOTTEN:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    @contextlib.contextmanager
    def _storing(self) -> Iterator[None]:
        """Say in one line what to do where the system refuses to write."""
        try:
            yield
        except OSError as error:
            raise storage_error(error, self.root) from None

    def _writing(self) -> None:
        if not self.writable:
            raise RuntimeError(f"ledger {self.root} was opened to look only; nothing may be written to it")
        if not self._made:
            with self._storing():
                self._make()


def _kind_of(facts: Mapping[str, Any]) -> Kind:
    """Kind of the locks of a ledger, by its marker.

    Raises:
        ValueError: It is no kind.
    """
    for kind in KINDS:
        if facts.get("locks", "system") == kind:
            return kind
    raise ValueError("no kind of locks")


def _noted(kind: Kind) -> dict[str, str]:
    """What the marker of a ledger says of its locks."""
    return {} if kind == "system" else {"locks": kind}


def _host_in_names() -> str:
    """The name of this machine, as far as it can be part of a file's."""
    return "".join(mark if mark.isascii() and mark.isalnum() else "_" for mark in platform.node())[:40]


def process_space() -> str:
    """What tells numbers of processes apart that are counted anew: of containers on one machine, with one name."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def storage_error(error: OSError, root: Path) -> StorageError:
    """What the system says when it refuses to write, and what to do about it."""
    return StorageError(
        f"ledger {root}: {error.strerror or error}; make room or access, and give the same command again: "
        "what is finished is kept"
    )


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A record as its file has it: with the digest of everything else in it."""
    return {**content, "digest": _digest(content)}


def _is_written(text: bytes, digest: str) -> bool:
    """Whether a record's text, as :func:`write_json` lays it out with digest and link, is the one that was digested.

    It takes less than half the time that writing its content anew takes. No says nothing: the layout may be another.
    Line ends stand between values alone, since JSON escapes them in texts, so that without them nothing else changes.
    """
    text, links = _LINK.subn(b"\n", text)
    text, digests = _SEAL.subn(b"\n", text)
    text = b"".join(map(bytes.lstrip, text.replace(b",\n", b", \n").split(b"\n")))
    return links == digests == 1 and hashlib.sha256(text).hexdigest() == digest


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _opened(content: dict[str, Any], keys: Mapping[str, bytes], text: bytes = b"") -> dict[str, Any]:
    """A record without its digest and its link.

    Args:
        content: The record.
        keys: The keys that are here.
        text: What its file holds, where that is known.

    Raises:
        ValueError: It does not hold what they promise.
    """
    content = dict(content)
    digest, link = content.pop("digest", None), _link(content)
    content.pop("link", None)
    ours = link is not None and link.key in keys and link.fits(str(digest), keys[link.key])
    if ours and text and _is_written(text, str(digest)):
        return content
    # Older records have none. No error of a disk takes it away: a key with another name is one that nobody knows.
    if digest is not None and digest != _digest(content):
        raise ValueError("it changed after it was written")
    if link is not None and link.key in keys and not ours:
        raise ValueError(_FOREIGN)
    return content


def _link(content: Mapping[str, Any]) -> Link | None:
    found = content.get("link")
    return None if found is None else Link.model_validate(found)


def link_of(written: bytes) -> Link | None:
    """The link of a record as its file has it."""
    return _link(from_json(written))


def read_file(path: Path, most: int = MOST_OF_RECORD) -> bytes:
    """Content of a file of a ledger.

    Raises:
        OSError: It is no plain file, such as a link or a pipe, is larger than it may be, or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with open(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "is no plain file", str(path))
        if facts.st_size > most:
            raise OSError(errno.EFBIG, f"is larger than {most >> 20} MiB", str(path))
        # Not what is written behind it meanwhile.
        return file.read(facts.st_size)


def write_json(path: Path, content: Any, replace: bool = True) -> None:
    """Write JSON beside and rename over, so that readers see all or nothing.

    Args:
        path: The file.
        content: What it is to hold.
        replace: False: a file that is there stays.

    Raises:
        FileExistsError: It is there, and stays.
        ValueError: The content holds NaN or infinity.
        TypeError: The content holds something that is no JSON builtin.
    """
    _write_whole(path, (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode(), replace)


def _write_whole(path: Path, content: bytes, replace: bool = True) -> None:
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        part.write_bytes(content)
        if replace or not _linked(part, path):
            os.replace(part, path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def _linked(part: Path, path: Path) -> bool:
    """Give a file its second name and take away the first; False where the file system knows one name only.

    Raises:
        FileExistsError: Another file has that name.
    """
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        return False
    part.unlink()
    return True


def _read_plan(kind: type[Model], path: Path, keys: Mapping[str, bytes]) -> tuple[Model, Link | None]:
    """A plan and its link."""
    try:
        content = from_json(read_file(path))
        check(content["schema_version"])
        link, content = _link(content), _opened(content, keys)
        del content["schema_version"]
        return kind.model_validate(content), link
    except NewerError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise _no_plan(path, error) from None


def _no_plan(path: Path, error: Exception) -> DamagedError:
    """Why a plan does not count. It cannot be written anew: seeds may have been seen since."""
    edited = str(error) == _FOREIGN
    reason = "edited: this pruneaudit did not write it so" if edited else "damaged, or not a plan of this version"
    return DamagedError(f"{path}: {reason}; take it from a copy, or choose another ledger")


def _read(kind: type[Model], path: Path, keys: Mapping[str, bytes]) -> tuple[Model, Link | None]:
    """A record and its link."""
    try:
        text = read_file(path)
        content = from_json(text)
        version = content.get("schema_version", OLDEST)
        link = None
        # A newer version may seal its records in another way.
        if version in range(SCHEMA_VERSION + 1):
            link, content = _link(content), _opened(content, keys, text)
        return kind.model_validate(migrated(content)), link
    except NewerError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = "damaged, or not a record of this version"
        if isinstance(error, OSError):
            reason = "is a link, which no ledger has" if error.errno == errno.ELOOP else "not readable"
            reason += "" if error.errno != errno.EFBIG else f": {error.strerror}"
        elif str(error) == _FOREIGN:
            reason = "edited: this pruneaudit did not write it so"
        raise DamagedError(
            f"{path}: {reason}; delete {path.parent if path.name == 'record.json' else path} and run again"
        ) from None
