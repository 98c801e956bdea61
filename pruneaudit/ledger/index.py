"""An index of a large ledger, so that a report need not read, parse and verify each of its files again.

It is derived and never the truth: a row counts for a file that has the size, times and number that it had when it was
read and verified, so that whatever is edited, even with its time of modification put back, is read anew. What a report
does not look at is not in it: such a field of a record is read from the record's own file (:class:`IndexedRun`).

It lies in the user's cache folder and not in the ledger. Ledgers come from strangers and lie on network drives: SQLite
should open no file of the former, and its locks do not hold on the latter. Each row has an HMAC with this user's key
(:mod:`.chain`), without which nobody can have a record believed that was never verified.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import sqlite3
import stat
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter
from pydantic_core import from_json

from pruneaudit.ledger.chain import Link, own_key
from pruneaudit.ledger.records import SCHEMA_VERSION, CellRecord, Conduct, Jacobian, RunRecord, Scores
from pruneaudit.state import cache_folder
from pruneaudit.version import __version__

#: Ledgers of fewer runs are read within a second or two.
LEAST = 1000
#: Nanoseconds for which a file was left alone, at least: an edit within a tick of the clock shows in none of its times.
_SETTLED = 2_000_000_000
#: Days after which the index of a ledger on which nobody reported is removed.
_FORGOTTEN = 90
#: Seconds to wait for another process that writes to it.
_PATIENCE = 1.0
#: Rows that are written together, and files that are looked at together.
_BATCH, _THREADS = 2000, 16
#: Fields of a run that are read from its file when somebody asks, and those that are unpacked then: each is long.
_ELSEWHERE = frozenset({"train_loss", "train_accuracy", "validation_loss", "test_loss"})
_PACKED = frozenset({"validation_accuracy_curve", "kept"})
#: Models whose fields are rarely another record's, though parts of them are.
_APART = (Conduct, Jacobian, Scores)

Made = TypeVar("Made", bound=BaseModel)
#: Size, times of modification and change (ns), number and device of a file.
Seen = tuple[int, int, int, int, int]


class IndexedRun(RunRecord):
    """A run as an index knows it, and its file where the index does not; equal to the record of the file.

    It holds a tenth of what a record read from a file holds.
    """

    def __getattr__(self, name: str) -> Any:
        """Give a field that was left packed, or in the file."""
        if name in _PACKED:
            return from_json(zlib.decompress(self.__dict__["_" + name]))
        if name in _ELSEWHERE:
            return getattr(self.whole, name)
        raise AttributeError(name)

    @property
    def whole(self) -> RunRecord:
        """The record as its file has it.

        Raises:
            DamagedError: It cannot be read any more.
        """
        read: Callable[[str], RunRecord] = self.__dict__["_read"]
        return read(self.folder)

    @property
    def run_id(self) -> str:
        """As :attr:`RunSpec.run_id`, which was found when the record was verified."""
        found: str = self.__dict__["_run_id"]
        return found

    def model_dump(self, **how: Any) -> dict[str, Any]:
        """As of the whole record."""
        return self.whole.model_dump(**how)

    def model_dump_json(self, **how: Any) -> str:
        """As of the whole record."""
        return self.whole.model_dump_json(**how)

    def model_copy(self, **how: Any) -> RunRecord:  # type: ignore[override]
        """As of the whole record."""
        return self.whole.model_copy(**how)

    def __iter__(self) -> Any:
        return iter(self.whole)

    def __eq__(self, other: object) -> bool:
        return self.whole == (other.whole if isinstance(other, IndexedRun) else other)

    def __reduce__(self) -> Any:
        return _itself, (self.whole,)


def _itself(record: RunRecord) -> RunRecord:
    return record


class Index:
    """What is known of the files of one ledger.

    Args:
        root: The ledger.
        key: This user's key.
    """

    def __init__(self, root: Path, key: bytes) -> None:
        place = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
        self.path = cache_folder().resolve() / "index" / f"{place}.sqlite"
        self._key = key
        self._new: list[tuple[str, Seen, bytes]] = []

    def rows(self, seen: Mapping[str, Seen]) -> Iterator[tuple[str, Any]]:
        """What is known of files as they are now, each with the name of its file; nothing where no index can be read.

        Args:
            seen: The files, by name.
        """
        if not self.path.exists():
            return
        with contextlib.suppress(sqlite3.Error), contextlib.closing(self._open("ro")) as database:
            for name, mac, content in database.execute("SELECT name, mac, content FROM files"):
                known = seen.get(name)
                # Whatever stands in a damaged file, or a forged one.
                if known is None or not (isinstance(mac, bytes) and isinstance(content, bytes)):
                    continue
                if hmac.compare_digest(mac, self._mac(name, known, content)):
                    yield name, from_json(content)

    def note(self, name: str, seen: Seen, content: Any) -> None:
        """Add what is known of a file, unless it may still change unseen."""
        if max(seen[1:3]) < time.time_ns() - _SETTLED:
            self._new.append((name, seen, json.dumps(content, separators=(",", ":")).encode()))
        if len(self._new) >= _BATCH:
            self.save()

    def save(self) -> None:
        """Write what was noted, where that can be done: an index only saves time."""
        new, self._new = self._new, []
        if not new:
            return
        rows = [(name, self._mac(name, seen, content), content) for name, seen, content in new]
        with contextlib.suppress(OSError, sqlite3.Error):
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                self._write(rows)
            except sqlite3.OperationalError:
                pass  # Another process writes, or there is no room.
            except sqlite3.DatabaseError:
                # Damaged: what it knew is read again.
                self.path.unlink()
                self._write(rows)
            for other in self.path.parent.glob("*.sqlite"):
                if other.stat().st_mtime < time.time() - 86400 * _FORGOTTEN:
                    other.unlink()

    def _write(self, rows: Iterable[tuple[str, bytes, bytes]]) -> None:
        with contextlib.closing(self._open("rwc")) as database, database:
            # What a power cut tears is read again.
            database.execute("PRAGMA synchronous = OFF")
            database.execute("CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, mac BLOB, content BLOB)")
            database.executemany("REPLACE INTO files VALUES (?, ?, ?)", rows)

    def _open(self, mode: str) -> sqlite3.Connection:
        return sqlite3.connect(f"{self.path.as_uri()}?mode={mode}", uri=True, timeout=_PATIENCE)

    def _mac(self, name: str, seen: Seen, content: bytes) -> bytes:
        text = f"index {_layout()} {name} {' '.join(map(str, seen))} ".encode()
        return hmac.digest(self._key, text + content, "sha256")


def index_of(root: Path) -> Index | None:
    """The index of a ledger; None where no key can be kept."""
    key = own_key()
    return None if key is None else Index(root, key)


def seen(path: str) -> Seen | None:
    """What tells a file from what it was before; None: it is no plain file."""
    try:
        facts = os.lstat(path)
    except OSError:
        return None
    if not stat.S_ISREG(facts.st_mode):
        return None
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino, facts.st_dev


def all_seen(root: str, names: list[str]) -> dict[str, Seen]:
    """The same of many files: side by side, since a disk answers many questions in the time of one."""
    parts = [names[start : start + _BATCH] for start in range(0, len(names), _BATCH)]

    def look(part: list[str]) -> list[Seen | None]:
        return [seen(f"{root}/{name}") for name in part]

    with ThreadPoolExecutor(_THREADS) as threads:
        found = [one for part in threads.map(look, parts) for one in part]
    return {name: one for name, one in zip(names, found, strict=True) if one is not None}


@cache
def _layout() -> str:
    """What rows look like: those of another version are read anew."""
    kinds: tuple[type[BaseModel], ...] = (RunRecord, CellRecord, Link, *_APART)
    fields = [[(name, repr(field.default)) for name, field in kind.model_fields.items()] for kind in kinds]
    layout = json.dumps([__version__, SCHEMA_VERSION, fields, sorted(_ELSEWHERE), sorted(_PACKED)])
    return hashlib.sha256(layout.encode()).hexdigest()[:16]


def content_of(record: RunRecord | CellRecord, link: Link) -> list[Any]:
    """A record and its link as a row has them: JSON builtins."""
    values = _flat(record)
    if isinstance(record, RunRecord):
        values["_run_id"] = record.run_id
    return [values, list(link.__dict__.values())]


class Reader:
    """Makes records of rows. What many have in common (a recipe, data, an environment) is one object for all.

    Args:
        read: Reads the record of a run in the folder of this name.
    """

    def __init__(self, read: Callable[[str], RunRecord]) -> None:
        self._read = read
        self._shared: dict[tuple[Any, str], Any] = {}

    def run(self, content: list[Any]) -> tuple[RunRecord, Link]:
        """A run and its link."""
        values, link = content
        found = self._made(IndexedRun, values)
        found.__dict__["_read"] = self._read
        return found, self._link(link)

    def cell(self, content: list[Any]) -> tuple[CellRecord, Link]:
        """A cell and its link."""
        values, link = content
        return self._made(CellRecord, values), self._link(link)

    def _link(self, values: list[Any]) -> Link:
        names = dict(zip(Link.model_fields, values, strict=True))
        # All records of a writer, and all of a key, name it.
        names["writer"], names["key"] = self._one(names["writer"]), self._one(names["key"])
        return _instance(Link, names)

    def _one(self, text: str) -> Any:
        return self._shared.setdefault((None, text), text)

    def _made(self, kind: type[Made], values: dict[str, Any]) -> Made:
        for name, way in _ways(kind):
            value = values.get(name)
            if value is None:
                continue
            if way == "packed":
                values["_" + name] = bytes.fromhex(values.pop(name))
            elif way == "names":
                values[name] = tuple(value)
            elif isinstance(way, TypeAdapter):
                key = (name, value)
                if key not in self._shared:
                    self._shared[key] = way.validate_json(value)
                values[name] = self._shared[key]
            else:
                values[name] = self._made(way, value)
        return _instance(kind, values)


def _instance(kind: type[Made], values: dict[str, Any]) -> Made:
    """A model of values that were validated before."""
    made: Made = kind.__new__(kind)
    for name, value in (
        ("__dict__", values),
        ("__pydantic_fields_set__", _names(kind)),
        ("__pydantic_extra__", None),
        ("__pydantic_private__", None),
    ):
        object.__setattr__(made, name, value)
    return made


def _flat(model: BaseModel) -> dict[str, Any]:
    """A model as a row has it."""
    kind = type(model)
    values = {name: value for name, value in model.__dict__.items() if name not in _ELSEWHERE}
    for name, way in _ways(kind):
        value = values[name]
        if value is None:
            continue
        if way == "packed":
            values[name] = zlib.compress(json.dumps(value, separators=(",", ":")).encode(), 1).hex()
        elif isinstance(way, TypeAdapter):
            values[name] = way.dump_json(value).decode()
        elif way != "names":
            values[name] = _flat(value)
    return values


@cache
def _names(kind: type[BaseModel]) -> set[str]:
    return set(kind.model_fields)


#: How a value stands in a row: packed; as names, a tuple; as JSON text, one object for all that have it; as a model's
#: fields.
Way = Literal["packed", "names"] | TypeAdapter[Any] | type[BaseModel]


@cache
def _ways(kind: type[BaseModel]) -> list[tuple[str, Way]]:
    """How the fields of a model stand in a row that do not stand there as they are."""
    found: list[tuple[str, Way]] = []
    for name, field in kind.model_fields.items():
        apart = [one for one in _APART if one in (field.annotation, *get_args(field.annotation))]
        if issubclass(kind, RunRecord) and name in _ELSEWHERE:
            continue
        if issubclass(kind, RunRecord) and name in _PACKED:
            found.append((name, "packed"))
        elif apart:
            found.append((name, apart[0]))
        elif name == "trials":
            found.append((name, "names"))
        elif not _as_it_is(field.annotation):
            found.append((name, TypeAdapter(field.rebuild_annotation())))
    return found


def _as_it_is(annotation: Any) -> bool:
    """Whether JSON gives back a value of this kind as it is: text, number, or list of numbers."""
    if get_origin(annotation) is Literal:
        return True
    if get_origin(annotation) in (Union, type(int | str)):
        return all(map(_as_it_is, get_args(annotation)))
    plain = (str, int, float, bool, type(None))
    return annotation in plain or (get_origin(annotation) is list and get_args(annotation)[0] in plain)
