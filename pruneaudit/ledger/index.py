"""An index of a large ledger, so that a report need not read, parse and verify each of its files again.

It is derived and never the truth: a row counts for a file that has the size, times and number that it had when it was
read and verified, so that whatever is edited, even with its time of modification put back, is read anew. What a report
does not look at is not in it: such a field of a record is read from the record's own file (:class:`IndexedRun`).

It lies in the user's cache folder and not in the ledger. Ledgers come from strangers and lie on network drives: SQLite
should open no file of the former, and its locks do not hold on the latter. Each row has an HMAC with this user's key
(:mod:`.chain`), without which nobody can have a record believed that was never verified. What others derive of records
lies beside the rows (:meth:`Index.derived`), under names that say what it was derived from.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import sqlite3
import stat
import struct
import sys
import time
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

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
_BATCH, _THREADS = 2000, 4
#: Folders of a ledger whose files it knows, each in a table of its name.
_FOLDERS = ("runs", "cells")
#: Fields of a run that are read from its file when somebody asks.
_ELSEWHERE = frozenset({"train_loss", "train_accuracy", "validation_loss", "test_loss"})
#: Models whose fields are rarely another record's, though parts of them are.
_APART = (Conduct, Jacobian, Scores)


def _floats(values: list[float]) -> bytes:
    return array("d", values).tobytes()


def _of_floats(content: bytes) -> list[float]:
    return array("d", content).tolist()


#: Fields of a run that are long: how each is packed, and how it is unpacked when somebody asks.
_PACKED: dict[str, tuple[Callable[[Any], bytes], Callable[[bytes], Any]]] = {
    "correct": (str.encode, bytes.decode),
    "validation_accuracy_curve": (_floats, _of_floats),
    "test_accuracy": (_floats, _of_floats),
    "kept": (
        lambda kept: zlib.compress(json.dumps(kept, separators=(",", ":")).encode(), 1),
        lambda content: from_json(zlib.decompress(content)),
    ),
}
# fmt: off
#: Fields that differ from record to record: all others are in texts that many have in common,
_OWN: dict[type[BaseModel], frozenset[str]] = {
    RunRecord: frozenset({
        "seed", "parent", "shape_of", "teacher", "own_images", "own_per_image", "taught", "accuracy",
        "validation_accuracy", "best_accuracy", "best_epoch", "initial_accuracy", "beside", "jacobian",
        "jacobian_train", "conduct", "parent_digest", "weights_digest", "resumed", "seconds", "training_seconds",
        "finished", "scores", "shown", "_run_id", "_lengths",
    }),
    CellRecord: frozenset({
        "seed", "status", "error", "accuracy", "base_accuracy", "validation_accuracy", "pruned_value", "base", "topup",
        "prune", "trials", "result", "scores",
    }),
    Conduct: frozenset({"equivalence", "parent_digest_after", "untrained", "renumbered"}),
}
#: and these in one of their own: they go with the size of the network.
_SIZES = frozenset({
    "widths", "stay", "_left", "nonzero", "macs", "macs_recounted", "params", "executed_macs", "training_macs",
    "speedup", "total_epochs", "total_macs",
})
# fmt: on

#: What is signed of a file and of its row: :data:`Seen`, and the length of the row's content.
_FACTS = struct.Struct("<QqqQQQ")

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
            return _PACKED[name][1](self._part(name))
        if name in _ELSEWHERE:
            return getattr(self.whole, name)
        raise AttributeError(name)

    def _part(self, name: str) -> bytes:
        """A field that was left packed, as it lies there."""
        start, values = 0, self.__dict__
        for field, length in zip(_PACKED, values["_lengths"], strict=True):
            if field == name:
                break
            start += length
        return values["_packed"][start : start + length]

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

    @property
    def curve(self) -> Sequence[float]:
        """As :attr:`RunRecord.curve`; of hundreds of numbers few are looked at, so that they are not all unpacked."""
        return array("d", self._part("test_accuracy")) if self.scores is None else self.scores.test_curve

    @property
    def left(self) -> dict[str, int]:
        """As :attr:`RunRecord.left`, for which nobody need count."""
        found: dict[str, int] = self.__dict__["_left"]
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


class Row(NamedTuple):
    """What an index knows of a record.

    Attributes:
        content: JSON builtins: the record's own values and its link.
        packed: Its long fields.
        texts: JSON of what it may have in common with others, by digest.
    """

    content: list[Any]
    packed: bytes
    texts: dict[str, str]


class Index:
    """What is known of the files of one ledger.

    Args:
        root: The ledger.
        key: This user's key.
    """

    def __init__(self, root: Path, key: bytes) -> None:
        place = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
        # Its tables are not those that the first ones had.
        self.path = cache_folder().resolve() / "index" / f"{place}-3.sqlite"
        self._key = key
        self._new: list[tuple[str, Seen, bytes, bytes]] = []
        self._texts: dict[str, str] = {}

    def rows(self, folder: str, seen: Mapping[str, Seen]) -> Iterator[tuple[str, Row]]:
        """What is known of files as they are now, each with the name of its file; nothing where no index can be read.

        Args:
            folder: The folder in which all of them are.
            seen: The files, by name: paths from the root of the ledger.
        """
        if not self.path.exists():
            return
        with contextlib.suppress(sqlite3.Error), contextlib.closing(self._open("ro")) as database:
            # A text is what its digest says, and rows, which name the digest, are signed.
            texts = {
                digest: text
                for digest, text in database.execute("SELECT digest, text FROM texts")
                if isinstance(text, str) and _digest(text) == digest
            }
            # Whatever stands in a damaged file, or a forged one.
            bytes_only = " AND ".join(f"typeof({column}) = 'blob'" for column in ("mac", "content", "packed"))
            for name, mac, content, packed in database.execute(f"SELECT * FROM {folder} WHERE {bytes_only}"):
                known = seen.get(name)
                if known is not None and hmac.compare_digest(mac, self._mac(name, known, content, packed)):
                    yield name, Row(from_json(content), packed, texts)

    def note(self, name: str, seen: Seen, row: Row) -> None:
        """Add what is known of a file, unless it may still change unseen."""
        if max(seen[1:3]) < time.time_ns() - _SETTLED:
            content = json.dumps(row.content, separators=(",", ":")).encode()
            self._new.append((name, seen, content, row.packed))
            self._texts |= row.texts
        if len(self._new) >= _BATCH:
            self.save()

    def save(self) -> None:
        """Write what was noted, where that can be done: an index only saves time."""
        new, self._new = self._new, []
        texts, self._texts = self._texts, {}
        if not new:
            return
        rows = [(name, self._mac(name, seen, *parts), *parts) for name, seen, *parts in new]
        with contextlib.suppress(OSError, sqlite3.Error):
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                self._write(rows, texts)
            except sqlite3.OperationalError:
                pass  # Another process writes, or there is no room.
            except sqlite3.DatabaseError:
                # Damaged: what it knew is read again.
                self.path.unlink()
                self._write(rows, texts)
            for other in self.path.parent.glob("*.sqlite"):
                if other.stat().st_mtime < time.time() - 86400 * _FORGOTTEN:
                    other.unlink()

    def derived(self) -> dict[str, bytes]:
        """What was derived of records, by name; nothing where no index can be read."""
        found: dict[str, bytes] = {}
        if self.path.exists():
            with contextlib.suppress(sqlite3.Error), contextlib.closing(self._open("ro")) as database:
                whole = "typeof(mac) = 'blob' AND typeof(content) = 'blob'"
                for name, mac, content in database.execute(f"SELECT * FROM derived WHERE {whole}"):
                    if hmac.compare_digest(mac, self._mac_of_derived(name, content)):
                        found[name] = content
        return found

    def keep_derived(self, new: Mapping[str, bytes], asked: Set[str]) -> None:
        """Add to it, and forget what nobody asked for once that is the larger part.

        Args:
            new: What was derived, by name.
            asked: Names that were asked for.
        """
        rows = [(name, self._mac_of_derived(name, content), content) for name, content in new.items()]
        # What it cannot write is derived again.
        with contextlib.suppress(sqlite3.Error), contextlib.closing(self._open("rw")) as database, database:
            database.execute("PRAGMA synchronous = OFF")
            database.execute("CREATE TABLE IF NOT EXISTS derived (name TEXT PRIMARY KEY, mac BLOB, content BLOB)")
            database.executemany("REPLACE INTO derived VALUES (?, ?, ?)", rows)
            others = [(name,) for (name,) in database.execute("SELECT name FROM derived") if name not in asked]
            if len(others) > len(asked):
                database.executemany("DELETE FROM derived WHERE name = ?", others)

    def _mac_of_derived(self, name: str, content: bytes) -> bytes:
        return hmac.digest(self._key, f"derived {name} ".encode() + content, "sha256")

    def _write(self, rows: Sequence[tuple[Any, ...]], texts: Mapping[str, str]) -> None:
        with contextlib.closing(self._open("rwc")) as database, database:
            # What a power cut tears is read again.
            database.execute("PRAGMA synchronous = OFF")
            for folder in _FOLDERS:
                database.execute(
                    f"CREATE TABLE IF NOT EXISTS {folder} (name TEXT PRIMARY KEY, mac BLOB, content BLOB, packed BLOB)"
                )
                its = (row for row in rows if row[0].startswith(f"{folder}/"))
                database.executemany(f"REPLACE INTO {folder} VALUES (?, ?, ?, ?)", its)
            database.execute("CREATE TABLE IF NOT EXISTS texts (digest TEXT PRIMARY KEY, text TEXT)")
            database.executemany("REPLACE INTO texts VALUES (?, ?)", texts.items())

    def _open(self, mode: str) -> sqlite3.Connection:
        database = sqlite3.connect(f"{self.path.as_uri()}?mode={mode}", uri=True, timeout=_PATIENCE)
        # Of a new one: rows take kilobytes, and all of them are read.
        database.execute("PRAGMA page_size = 65536")
        return database

    def _mac(self, name: str, seen: Seen, content: bytes, packed: bytes) -> bytes:
        facts = _FACTS.pack(*seen, len(content))
        whole = b"".join((b"index ", _layout(), facts, name.encode(), b"\0", content, packed))
        return hmac.digest(self._key, whole, "sha256")


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
    # Some systems number files with more bits.
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino % 2**64, facts.st_dev % 2**64


def all_seen(root: str, names: list[str]) -> dict[str, Seen]:
    """The same of many files: side by side, since a disk answers many questions in the time of one."""
    parts = [names[start : start + _BATCH] for start in range(0, len(names), _BATCH)]

    def look(part: list[str]) -> list[Seen | None]:
        return [seen(f"{root}/{name}") for name in part]

    with ThreadPoolExecutor(_THREADS) as threads:
        found = [one for part in threads.map(look, parts) for one in part]
    return {name: one for name, one in zip(names, found, strict=True) if one is not None}


@cache
def _layout() -> bytes:
    """What rows look like: those of another version are read anew."""
    kinds: tuple[type[BaseModel], ...] = (RunRecord, CellRecord, Link, *_APART)
    fields = [[(name, repr(field.default)) for name, field in kind.model_fields.items()] for kind in kinds]
    ways = [list(names) for kind in (*kinds, IndexedRun) for names in (_shape(kind).own, *_shape(kind).groups)]
    layout = json.dumps([__version__, SCHEMA_VERSION, sys.byteorder, fields, ways, sorted(_ELSEWHERE), list(_PACKED)])
    return hashlib.sha256(layout.encode()).digest()[:16]


def content_of(record: RunRecord | CellRecord, link: Link) -> Row:
    """A record and its link as an index has them."""
    texts: dict[str, str] = {}
    more: dict[str, Any] = {}
    parts: list[bytes] = []
    if isinstance(record, RunRecord):
        parts = [pack(getattr(record, name)) for name, (pack, _) in _PACKED.items()]
        more = {"_run_id": record.run_id, "_left": record.left, "_lengths": list(map(len, parts))}
    kind = IndexedRun if isinstance(record, RunRecord) else CellRecord
    return Row([_flat(kind, record.__dict__ | more, texts), list(link.__dict__.values())], b"".join(parts), texts)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Reader:
    """Makes records of rows. What many have in common (a recipe, data, an environment) is one object for all.

    Args:
        read: Reads the record of a run in the folder of this name.
    """

    def __init__(self, read: Callable[[str], RunRecord]) -> None:
        self._read = read
        self._shared: dict[tuple[Any, ...], Any] = {}

    def run(self, row: Row) -> tuple[RunRecord, Link]:
        """A run and its link.

        Raises:
            KeyError: One of its texts is missing.
        """
        values, link = row.content
        found = self._made(IndexedRun, values, row.texts)
        found.__dict__["_read"], found.__dict__["_packed"] = self._read, row.packed
        return found, self._link(link)

    def cell(self, row: Row) -> tuple[CellRecord, Link]:
        """A cell and its link.

        Raises:
            KeyError: One of its texts is missing.
        """
        values, link = row.content
        return self._made(CellRecord, values, row.texts), self._link(link)

    def _link(self, values: list[Any]) -> Link:
        names = dict(zip(Link.model_fields, values, strict=True))
        # All records of a writer, and all of a key, name it.
        names["writer"], names["key"] = sys.intern(names["writer"]), sys.intern(names["key"])
        return _instance(Link, names)

    def _made(self, kind: type[Made], row: list[Any], texts: Mapping[str, str]) -> Made:
        shape = _shape(kind)
        places = len(shape.groups)
        key = (kind, *row[:places])
        if key not in self._shared:
            common: dict[str, Any] = {}
            for names, digest in zip(shape.groups, row, strict=False):
                common |= zip(names, from_json(texts[digest]), strict=True)
            self._convert(common, shape.ways, texts)
            self._shared[key] = shape.empty | common
        values = self._shared[key].copy()
        values.update(zip(shape.own, row[places:], strict=True))
        self._convert(values, shape.own_ways, texts)
        return _instance(kind, values)

    def _convert(self, values: dict[str, Any], ways: Mapping[str, Way], texts: Mapping[str, str]) -> None:
        """Make values of what stands for them in a row."""
        for name, way in ways.items():
            value = values.get(name)
            if value is None:
                continue
            if way == "names":
                values[name] = tuple(value)
            elif isinstance(way, TypeAdapter):
                key = (name, value)
                if key not in self._shared:
                    self._shared[key] = way.validate_json(value)
                values[name] = self._shared[key]
            else:
                values[name] = self._made(way, value, texts)


def _instance(kind: type[Made], values: dict[str, Any]) -> Made:
    """A model of values that were validated before."""
    made: Made = kind.__new__(kind)
    put = object.__setattr__
    put(made, "__dict__", values)
    put(made, "__pydantic_fields_set__", _names(kind))
    put(made, "__pydantic_extra__", None)
    put(made, "__pydantic_private__", None)
    return made


def _flat(kind: type[BaseModel], model: Mapping[str, Any], texts: dict[str, str]) -> list[Any]:
    """The fields of a model as a row has them: digests of what it may have in common with others, and its own."""
    shape = _shape(kind)
    values = dict(model)
    for name, way in (shape.ways | shape.own_ways).items():
        value = values[name]
        if value is None or way == "names":
            continue
        values[name] = (
            way.dump_json(value).decode() if isinstance(way, TypeAdapter) else _flat(way, value.__dict__, texts)
        )
    digests = []
    for names in shape.groups:
        text = json.dumps([values[name] for name in names], separators=(",", ":"))
        digests.append(_digest(text))
        texts[digests[-1]] = text
    return [*digests, *(values[name] for name in shape.own)]


@cache
def _names(kind: type[BaseModel]) -> set[str]:
    return set(kind.model_fields)


#: How a value stands in a row: as names, a tuple; as JSON text, one object for all that have it; as a model's fields.
Way = Literal["names"] | TypeAdapter[Any] | type[BaseModel]


@dataclass(frozen=True)
class _Shape:
    """How the fields of a model stand in a row.

    Attributes:
        own: Those of each record.
        groups: Those that many have in common: a text each.
        own_ways: How those of the first stand there that do not stand as they are.
        ways: And those of the others.
        empty: All of them, in order, without values.
    """

    own: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    own_ways: dict[str, Way]
    ways: dict[str, Way]
    empty: dict[str, None]


@cache
def _shape(kind: type[BaseModel]) -> _Shape:
    names = dict.fromkeys(kind.model_fields)
    if kind is IndexedRun:
        names = {name: None for name in names if name not in _ELSEWHERE and name not in _PACKED}
        names |= dict.fromkeys(("_run_id", "_left", "_lengths"))
    own = _OWN.get(RunRecord if kind is IndexedRun else kind, names.keys())
    common = [name for name in names if name not in own]
    groups = (tuple(set(common) & _SIZES), tuple(set(common) - _SIZES))
    ways: dict[str, Way] = {}
    for name, field in kind.model_fields.items():
        if name not in names:
            continue
        apart = [one for one in _APART if one in (field.annotation, *get_args(field.annotation))]
        if apart:
            ways[name] = apart[0]
        elif name == "trials":
            ways[name] = "names"
        elif not _as_it_is(field.annotation):
            ways[name] = TypeAdapter(field.rebuild_annotation())
    return _Shape(
        tuple(name for name in names if name in own),
        tuple(tuple(sorted(group)) for group in groups if group),
        {name: way for name, way in ways.items() if name in own},
        {name: way for name, way in ways.items() if name not in own},
        names,
    )


def _as_it_is(annotation: Any) -> bool:
    """Whether JSON gives back a value of this kind as it is: text, number, or list of numbers."""
    if get_origin(annotation) is Literal:
        return True
    if get_origin(annotation) in (Union, type(int | str)):
        return all(map(_as_it_is, get_args(annotation)))
    plain = (str, int, float, bool, type(None))
    return annotation in plain or (get_origin(annotation) is list and get_args(annotation)[0] in plain)
