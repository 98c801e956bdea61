"""What a ledger holds, in object storage (S3, GCS, …) through fsspec: hosts without a shared folder exchange it there.

Objects can be neither renamed nor locked, so that a session's own ledger stays a folder: ``pruneaudit push`` adds to
the store what is finished in it, and ``pruneaudit merge`` takes a store for a ledger. Nothing in it is ever replaced,
since every object is named by what it holds, and put only where none is: by a conditional put, which S3, GCS and Azure
decide themselves, whoever else puts it at that moment::

    ledger.json                       version of the layout
    weights/SHA256.safetensors        weights: written before the record that names them
    PLACE/NAME/SHA256.json            records as they were signed: runs, planned, failures, cells, looks, merged

Two hosts that trained one run both have their word: merging them says whether they agree, as of any two ledgers.
Content may come from strangers: names lead nowhere else, sizes are limited, and what was fetched is verified as any
ledger that is merged. Imports no torch.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic_core import from_json, to_json

from pruneaudit.errors import AuditError, ConfigError, DamagedError, StorageError, one_line
from pruneaudit.ledger.migration import NewerError, check
from pruneaudit.ledger.records import SCHEMA_VERSION, Stage
from pruneaudit.ledger.store import MOST_OF_RECORD, MOST_OF_WEIGHTS, Ledger, read_file

#: Places of a ledger, plans before the seeds that were trained by them: a push may be killed.
_PLACES = ("planned", "runs", "failures", "cells", "looks", "merged")
_NAME = re.compile(rf"({'|'.join(_PLACES)})/([^/\\\0.][^/\\\0]*)/([0-9a-f]{{64}})\.json")
_STAGES = get_args(Stage)


@dataclass
class Pushed:
    """What a push added.

    Attributes:
        runs: Finished runs.
        others: Failed attempts, cells, plans and notes.
        size: Bytes of it all.
    """

    runs: int = 0
    others: int = 0
    size: int = 0


def is_store(name: str) -> bool:
    """Whether the name of a ledger is a URL and no folder."""
    return "://" in name


def _named(place: str, name: str, content: bytes) -> str:
    return f"{place}/{name}/{hashlib.sha256(content).hexdigest()}.json"


class Store:
    """Object storage.

    Args:
        url: Such as ``s3://bucket/ledger``: whatever fsspec knows.

    Raises:
        ConfigError: There is no such storage, or its library is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            from fsspec.core import url_to_fs
            from fsspec.spec import AbstractFileSystem

            self._system, self._root = url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"{url}: {one_line(error)}") from None
        # What has no put of its own opens a file and writes into it.
        self._has_files = type(self._system).pipe_file is AbstractFileSystem.pipe_file

    def push(self, ledger: Ledger) -> Pushed:
        """Add what a ledger holds and the store does not.

        Raises:
            DamagedError: A record or weights cannot be read.
            StorageError: The store refuses.
        """
        there, pushed = self._names(), Pushed()
        # Parents before children.
        runs = sorted(ledger.runs(), key=lambda run: _STAGES.index(run.stage))
        for problem in ledger.damaged.values():
            raise DamagedError(problem)
        self._put("ledger.json", to_json({"schema_version": SCHEMA_VERSION}))
        for place in _PLACES:
            if place == "runs":
                for run in runs:
                    content = read_file(ledger.file_of(run))
                    name = _named(place, run.folder, content)
                    if name not in there:
                        weights = f"weights/{run.weights_digest}.safetensors"
                        # Another host may have trained the same.
                        if weights not in there:
                            pushed.size += self._put(weights, ledger.weights_file(run))
                        pushed.size += self._put(name, content)
                        pushed.runs += 1
                continue
            for path in sorted((ledger.root / place).glob("*.json")):
                content = read_file(path)
                # What failed is numbered in each ledger anew.
                name = _named(place, path.stem.rpartition("-")[0] if place == "failures" else path.stem, content)
                if name not in there:
                    pushed.size += self._put(name, content)
                    pushed.others += 1
        return pushed

    def fetch(self, folder: Path, target: Path) -> list[Path]:
        """What is in the store as ledgers, several where hosts say different things of one cell.

        Args:
            folder: Where they are made.
            target: The ledger that they are to be merged into: weights that it has are not fetched.

        Raises:
            ConfigError: There is no ledger in the store, or one of a newer version.
            DamagedError: Something in it is not what its name promises.
            StorageError: The store refuses.
        """
        names = self._names()
        if "ledger.json" not in names:
            raise ConfigError(f"{self.url} is no ledger; fill it with `pruneaudit push LEDGER {self.url}`")
        try:
            check(from_json(self._get("ledger.json", MOST_OF_RECORD))["schema_version"])
        except NewerError as error:
            raise ConfigError(f"ledger {self.url}: {error}") from None
        except (ValueError, TypeError, KeyError):
            raise DamagedError(f"{self.url}/ledger.json: damaged") from None
        ledgers = [Ledger(folder / "0")]
        words: Counter[str] = Counter()
        for name in sorted(names):
            found = _NAME.fullmatch(name)
            if found is None:
                continue
            place, said, digest = found.groups()
            content = self._get(name, MOST_OF_RECORD)
            if hashlib.sha256(content).hexdigest() != digest:
                raise DamagedError(f"{self.url}/{name}: it changed after it was written; remove it and push again")
            # Of failures a folder holds many; of anything else one, so that each further word is another ledger's.
            number = 0 if place == "failures" else words[f"{place}/{said}"]
            words[f"{place}/{said}"] += 1
            if number == len(ledgers):
                ledgers.append(Ledger(folder / str(number)))
            path = ledgers[number].root / place / said
            if place == "runs":
                self._lay_run(path, content, name, None if number else target)
                continue
            path.parent.mkdir(exist_ok=True)
            path.with_name(f"{said}-{digest[:16]}.json" if place == "failures" else f"{said}.json").write_bytes(content)
        return [ledger.root for ledger in ledgers]

    def _lay_run(self, folder: Path, content: bytes, name: str, target: Path | None) -> None:
        """Put a run where a ledger has it, with its weights where these may be asked for."""
        folder.mkdir()
        (folder / "record.json").write_bytes(content)
        if target is None or (target / "runs" / folder.name / "record.json").exists():
            return
        try:
            digest = str(from_json(content)["weights_digest"])
        except (ValueError, TypeError, KeyError):
            digest = ""
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise DamagedError(f"{self.url}/{name}: damaged, or not a record; remove it and push again")
        weights = self._get(f"weights/{digest}.safetensors", MOST_OF_WEIGHTS)
        (folder / "weights.safetensors").write_bytes(weights)

    def _put(self, name: str, content: bytes) -> int:
        """Write an object unless there is one; give the bytes that were written."""
        path = f"{self._root}/{name}"
        folder, _, last = path.rpartition("/")
        with self._asking():
            try:
                # Object stores have no folders; file systems that fsspec shows as such do.
                self._system.makedirs(folder, exist_ok=True)
                if not self._has_files:
                    self._system.pipe_file(path, content, mode="create")
                elif self._system.exists(path):
                    return 0
                else:
                    # Files are written bit by bit, and renamed when they are whole: over none but their equals.
                    part = f"{folder}/.{last}.{secrets.token_hex(8)}.part"
                    self._system.pipe_file(part, content)
                    self._system.mv(part, path)
            except FileExistsError:
                return 0
        return len(content)

    def _get(self, name: str, most: int) -> bytes:
        path = f"{self._root}/{name}"
        with self._asking():
            try:
                if self._system.size(path) > most:
                    raise DamagedError(f"{self.url}/{name}: is larger than {most >> 20} MiB")
                content: bytes = self._system.cat_file(path)
            except FileNotFoundError:
                raise DamagedError(f"{self.url}/{name} is missing; push it again from where it was trained") from None
        return content

    def _names(self) -> set[str]:
        """Names of all objects."""
        with self._asking():
            self._system.invalidate_cache()
            try:
                found: list[Any] = self._system.find(self._root)
            except FileNotFoundError:
                return set()
        start = len(self._root.rstrip("/")) + 1
        return {str(path)[start:] for path in found}

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Say in one line what a store refuses: every library has errors of its own."""
        try:
            yield
        except AuditError:
            raise
        except Exception as error:
            raise StorageError(f"{self.url}: {one_line(error) or type(error).__name__}") from None
