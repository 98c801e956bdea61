"""Looks at everything that a campaign stands on, and says what to do about what is wrong."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from filelock import FileLock

from pruneaudit import sandbox
from pruneaudit.arithmetic import is_pinned, kind, lacks_portable
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.errors import AuditError, ConfigError, DataMissingError, MethodError, one_line
from pruneaudit.ledger.chain import keys_folder, own_key
from pruneaudit.ledger.locks import LEASE, LOCKS_VARIABLE, is_shared
from pruneaudit.ledger.records import RunRecord
from pruneaudit.ledger.store import Ledger
from pruneaudit.plugin.device import visible_gpus

#: ``ok``; ``note``: nothing to do now, but to know; ``wrong``: to mend, or numbers are lost or cannot be believed.
State = Literal["ok", "note", "wrong"]
#: Bytes that should be free where runs are kept.
_ROOM = 1 << 30
#: Problems of one kind that are told one by one.
_TOLD = 5


@dataclass(frozen=True)
class Symptom:
    """What was looked at.

    Attributes:
        about: What it is.
        state: In one word.
        found: What was found.
        advice: What to do about it; empty: nothing.
    """

    about: str
    state: State
    found: str
    advice: str = ""


def examine(ledger: Path, catalog: Catalog, data_root: Path | None) -> Iterator[Symptom]:
    """Look at versions, devices, isolation, keys, disks, data and a ledger.

    Args:
        ledger: Where the ledger is, or will be.
        catalog: What there is to run.
        data_root: Folder of datasets, or None.
    """
    yield from _versions()
    yield from _devices()
    yield _arithmetic()
    yield from _isolation()
    yield _keys()
    yield from _disk(ledger)
    yield from _ledger(ledger)
    yield from _data(ledger, catalog, data_root)


def _versions() -> Iterator[Symptom]:
    from packaging.requirements import Requirement

    yield Symptom("python", "ok", f"{platform.python_version()} at {sys.executable}, {platform.platform()}")
    try:
        wanted = [Requirement(text) for text in metadata.requires("pruneaudit") or ()]
    except metadata.PackageNotFoundError:
        yield Symptom(
            "packages", "wrong", "pruneaudit is not installed", "pip install -e . (or pip install pruneaudit)"
        )
        return
    found, wrong = [], []
    for one in wanted:
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{one.name} is missing")
        else:
            found.append(f"{one.name} {version}")
            if not one.specifier.contains(version, prereleases=True):
                wrong.append(f"{one.name} {version}, needed {one.specifier}")
    if wrong:
        yield Symptom("packages", "wrong", "; ".join(wrong), "pip install --upgrade pruneaudit")
    else:
        yield Symptom("packages", "ok", f"pruneaudit {metadata.version('pruneaudit')}: {', '.join(found)}")


def _devices() -> Iterator[Symptom]:
    import torch

    gpus = visible_gpus()
    if not gpus:
        yield Symptom("devices", "ok", f"CPU, {os.cpu_count()} cores; no GPU is visible")
    elif not torch.cuda.is_available():
        advice = "install a torch with CUDA that fits the driver, or give --audit-device cpu"
        yield Symptom("devices", "wrong", f"{len(gpus)} GPU(s), and torch {torch.__version__} cannot use them", advice)
    else:
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        yield Symptom("devices", "ok", f"{len(names)} GPU(s): {', '.join(sorted(set(names)))}")


def _arithmetic() -> Symptom:
    if is_pinned():
        return Symptom("arithmetic", "ok", f"portable: {kind()}")
    lacking = lacks_portable()
    if lacking:
        found = f"native: {kind()}; portable arithmetic, the same on all x86-64 machines, needs {lacking}"
        return Symptom("arithmetic", "note", found)
    return Symptom("arithmetic", "ok", f"native: {kind()}; --audit-arithmetic portable can be had")


def _isolation() -> Iterator[Symptom]:
    from pruneaudit.method.process import warm

    try:
        line, *_, printed = warm().fork()
        line.close()
        printed.close()
    except MethodError as error:
        advice = "foreign methods cannot run here (--audit-isolate never runs them unprotected: never judged fair)"
        yield Symptom("isolation", "wrong", one_line(error), advice)
        return
    version = sandbox.version()
    if not version:
        found = "methods run in processes of their own, but this kernel has no Landlock to confine them"
        yield Symptom("isolation", "note", found, "Linux 5.13 or newer with landlock among its security modules has")
    else:
        missing = [name for name, since in (("network", 4), ("signals", 6)) if version < since]
        rest = f"; {' and '.join(missing)} are not kept from them" if missing else ""
        yield Symptom("isolation", "ok", f"methods run in processes of their own, confined by Landlock {version}{rest}")


def _keys() -> Symptom:
    if own_key() is None:
        advice = "make it writable, or set XDG_STATE_HOME to a folder that is"
        return Symptom("key", "wrong", f"{keys_folder()} cannot be written: records will not be signed", advice)
    mode = (keys_folder() / "own.key").stat().st_mode
    if mode & 0o077:
        path = keys_folder() / "own.key"
        return Symptom("key", "wrong", f"{path} can be read by others: they can sign records", f"chmod 600 {path}")
    return Symptom("key", "ok", f"{keys_folder()}")


def _disk(ledger: Path) -> Iterator[Symptom]:
    place = next(folder for folder in (ledger, *ledger.absolute().parents) if folder.is_dir())
    if not os.access(place, os.W_OK):
        yield Symptom("disk", "wrong", f"{place} cannot be written", "choose another folder with --audit-ledger")
        return
    free = shutil.disk_usage(place).free
    room = f"{free / 2**30:.1f} GiB free at {place}"
    if free < _ROOM:
        yield Symptom("disk", "wrong", room, "make room: a run keeps its weights and, while it trains, its state")
    else:
        yield Symptom("disk", "ok", room)


def _ledger(path: Path) -> Iterator[Symptom]:
    if path.exists() and not path.is_dir():
        yield Symptom("ledger", "wrong", f"{path} is no folder", "choose another one with --audit-ledger")
        return
    if not (path / "ledger.json").exists():
        yield Symptom("ledger", "ok", f"{path} is none yet")
        return
    try:
        ledger = Ledger(path, writable=False)
        runs, failures, cells = list(ledger.runs()), ledger.failures(), ledger.cells()
    except ConfigError as error:
        yield Symptom("ledger", "wrong", one_line(error))
        return
    ids = {run.run_id for run in runs}
    unlike = [run for run in runs if ledger.digest_on_disk(run) != run.weights_digest]
    orphans = [run for run in runs if any(needed not in ids for needed in run.needs)]
    lost = [cell for cell in cells if any(run not in ids for run in cell.runs)]
    found = f"{len(runs)} runs, {len(failures)} failed attempts, {len(cells)} cells in {path}"
    yield Symptom("ledger", "ok", found)
    yield from _some("records", list(ledger.damaged.values()))
    yield from _some(
        "weights",
        [f"{run.folder}: its weights are not those of the record" for run in unlike],
        f"delete these folders in {path / 'runs'} and run again",
    )
    yield from _some(
        "parents",
        [f"{run.folder}: what it was trained from is not there" for run in orphans],
        "merge the ledger that has it, or run again",
    )
    yield from _some(
        "cells", [f"{cell.cell.id}: a run that it stands on is not there" for cell in lost], "run the suite again"
    )
    for line in ledger.account().lines():
        is_wrong = "not there any more" in line or "do not follow" in line
        yield Symptom(
            "signatures", "wrong" if is_wrong else "note", line, "pruneaudit verify --all" if is_wrong else ""
        )
    yield _lock(path)


def _some(about: str, problems: list[str], advice: str = "") -> Iterator[Symptom]:
    for problem in problems[:_TOLD]:
        yield Symptom(about, "wrong", problem, advice)
    if len(problems) > _TOLD:
        yield Symptom(about, "wrong", f"and {len(problems) - _TOLD} more", advice)


def _lock(path: Path) -> Symptom:
    """Whether the file system keeps locks: on some shared ones two processes get the same one."""
    try:
        is_leased = Ledger(path, writable=False).locks == "lease"
    except ConfigError:
        is_leased = False
    if is_leased:
        return Symptom("locks", "ok", f"leases: a run whose process is silent for {LEASE:g} s is anybody's")
    place = path / "locks" / "doctor.lock"
    try:
        with FileLock(place, timeout=1):
            # Another object of the same process: as another process sees it.
            other = FileLock(place, timeout=0, is_singleton=False)
            try:
                other.acquire()
            except TimeoutError:
                if is_shared(path):
                    found = "the file system keeps locks between processes of this host; other hosts may share it"
                    return Symptom(
                        "locks", "note", found, f"for several hosts make a ledger with {LOCKS_VARIABLE}=lease"
                    )
                return Symptom("locks", "ok", "the file system keeps locks")
            other.release()
    except OSError as error:
        return Symptom("locks", "note", f"cannot be tried: {error.strerror or error}")
    found = "the file system gives one lock twice: processes would train the same run"
    return Symptom("locks", "wrong", found, "choose a ledger on another disk")


def _data(path: Path, catalog: Catalog, root: Path | None) -> Iterator[Symptom]:
    """Whether the data are those that the ledger's runs were trained on."""
    if not (path / "ledger.json").exists():
        return
    from pruneaudit.workloads.data import load

    first: dict[tuple[str, str], RunRecord] = {}
    for run in Ledger(path, writable=False).runs():
        first.setdefault((run.workload, run.split_digest), run)
    for (workload, digest), run in sorted(first.items()):
        folder = catalog.workloads[workload].data.folder if workload in catalog.workloads else None
        about = f"data of {workload}"
        try:
            dataset = load(run.data.model_copy(update={"folder": folder}), root)
        except DataMissingError as error:
            yield Symptom(about, "note", one_line(error))
        except (AuditError, OSError) as error:
            yield Symptom(about, "wrong", one_line(error))
        else:
            if dataset.split_digest == digest:
                yield Symptom(about, "ok", f"{run.data.name} has the digest of the ledger's runs")
            else:
                found = f"{run.data.name} is not what {run.folder} was trained on"
                yield Symptom(about, "wrong", found, "take the data from a copy, or begin another ledger")
