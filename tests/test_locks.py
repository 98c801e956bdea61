"""Ledgers on several hosts: leases instead of the system's locks, names that no two processes share, late commits."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from builders import WEIGHTS, FakeStages, changed, run_record, run_spec, started
from filelock import FileLock, SoftFileLease, Timeout

from pruneaudit import doctor
from pruneaudit.campaign.executors import local
from pruneaudit.campaign.executors.local import LocalExecutor
from pruneaudit.errors import ConfigError
from pruneaudit.ledger import locks
from pruneaudit.ledger.locks import LOCKS_VARIABLE, is_shared, kind_for
from pruneaudit.ledger.store import Ledger
from pruneaudit.training.checkpoint import Checkpoint, Snapshot

SPAWN = multiprocessing.get_context("spawn")
#: Nothing here takes that long unless it hangs.
PATIENCE = 60.0
#: Seconds of a lease that nobody waits for.
LONG = 10 * PATIENCE


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A ledger as hosts share it, whose leases are over soon."""
    monkeypatch.setenv(LOCKS_VARIABLE, "lease")
    monkeypatch.setattr(locks, "LEASE", 0.6)
    monkeypatch.setattr(locks, "HEARTBEAT", 0.05)
    monkeypatch.setattr(local, "POLL", 0.01)
    Ledger(tmp_path / "ledger")
    monkeypatch.delenv(LOCKS_VARIABLE)
    return tmp_path / "ledger"


def mark(root, spec=None):
    """The file of a run's lease."""
    return root / "locks" / f"{(spec or run_spec()).run_id}.lease"


def test_the_kind_of_locks_stays_with_a_ledger(root, monkeypatch):
    assert json.loads((root / "ledger.json").read_text())["locks"] == "lease"
    assert Ledger(root).locks == Ledger(root, writable=False).locks == "lease"
    assert isinstance(Ledger(root).lock(run_spec()), SoftFileLease)
    monkeypatch.setenv(LOCKS_VARIABLE, "system")
    assert Ledger(root, when_needed=True).locks == "lease", "whoever joins takes what there is"


def test_a_ledger_on_a_disk_of_ones_own_has_the_systems_locks(tmp_path):
    ledger = Ledger(tmp_path / "ledger")
    assert ledger.locks == "system" and isinstance(ledger.lock(run_spec()), FileLock)
    assert "locks" not in json.loads((tmp_path / "ledger" / "ledger.json").read_text())


def test_who_makes_a_ledger_first_says_of_what_kind_its_locks_are(tmp_path, monkeypatch):
    """Two hosts that see its file system differently, as its server and its clients do, begin at once."""
    late = Ledger(tmp_path / "ledger", when_needed=True)
    monkeypatch.setenv(LOCKS_VARIABLE, "lease")
    early = Ledger(tmp_path / "ledger")
    monkeypatch.delenv(LOCKS_VARIABLE)
    late.workspace(run_spec())
    assert late.locks == early.locks == "lease"


def test_another_kind_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv(LOCKS_VARIABLE, "flock")
    with pytest.raises(ConfigError, match=r"^PRUNEAUDIT_LOCKS is 'flock'; it is one of: system, lease$"):
        Ledger(tmp_path / "ledger")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "ledger.json").write_text('{"schema_version": 3, "locks": "flock"}')
    with pytest.raises(ConfigError, match=r"ledger\.json is damaged"):
        Ledger(tmp_path / "other")


MOUNTS = """\
22 1 8:1 / / rw - ext4 /dev/sda1 rw
30 22 0:40 / /home rw - nfs4 server:/home rw
31 30 8:2 / /home/scratch rw - xfs /dev/sdb1 rw
32 22 0:41 / /my\\040bucket rw - fuse.s3fs s3fs rw
"""


@pytest.mark.parametrize(
    ("place", "shared"),
    [("/var/ledger", False), ("/home/me/new/ledger", True), ("/home/scratch/ledger", False), ("/homes/me", False)],
)
def test_file_systems_that_hosts_share_are_known(place, shared, monkeypatch):
    read = Path.read_text
    told = lambda path, **options: MOUNTS if str(path) == "/proc/self/mountinfo" else read(path, **options)  # noqa: E731
    monkeypatch.setattr(Path, "read_text", told)
    monkeypatch.setattr(Path, "resolve", lambda path: Path(place))
    assert is_shared(Path(place)) == shared
    assert kind_for(Path(place)) == ("lease" if shared else "system")


def test_a_lease_keeps_others_out_for_as_long_as_its_holder_lives(root, monkeypatch):
    # A machine that stands still for so long takes the lease from whom it stops, as it should.
    monkeypatch.setattr(locks, "LEASE", 3.0)
    mine, theirs = Ledger(root).lock(run_spec()), Ledger(root).lock(run_spec())
    with mine.acquire(timeout=0):
        deadline = time.monotonic() + 1.3 * locks.LEASE
        while time.monotonic() < deadline:
            with pytest.raises(Timeout):
                theirs.acquire(timeout=0)
            time.sleep(0.05)
    with theirs.acquire(timeout=0):
        assert mark(root).exists()
    assert not mark(root).exists()


def test_a_holder_on_another_host_that_falls_silent_loses_its_lease(root):
    """And no clock says so but that of who waits: the file may seem to be of tomorrow, or of last year."""
    for shift in (0.0, 86400.0, -3e7):
        path = mark(root)
        with SoftFileLease(path, lease_duration=locks.LEASE, heartbeat_interval=locks.HEARTBEAT):
            content = path.read_text()
        path.write_text(re.sub(r"(?m)^host=.*$", "host=another-host", content))
        os.utime(path, (time.time() + shift,) * 2)
        ledger = Ledger(root)
        began = time.monotonic()
        with pytest.raises(Timeout):
            ledger.lock(run_spec()).acquire(timeout=0)
        ledger.lock(run_spec()).acquire(timeout=PATIENCE).lock.release()
        assert time.monotonic() - began > 0.9 * locks.LEASE


def executor(root, log, session="session", **stages):
    ledger = Ledger(root)
    return LocalExecutor(ledger, FakeStages(ledger, log, **stages), session)


def obtain_forever(root, log):
    """A process that holds the lease of a run and never comes back."""
    locks.LEASE = LONG
    executor(root, log, sleep=10 * PATIENCE).obtain(run_spec())


def test_a_killed_process_frees_its_lease_at_once(root, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "LEASE", LONG)
    log = tmp_path / "log"
    process = SPAWN.Process(target=obtain_forever, args=(root, log), daemon=True)
    process.start()
    deadline = time.monotonic() + PATIENCE
    while not started(log):
        assert time.monotonic() < deadline and process.is_alive()
        time.sleep(0.01)
    survivor = executor(root, log)
    with pytest.raises(Timeout):
        survivor.ledger.lock(run_spec()).acquire(timeout=0)
    os.kill(process.pid, signal.SIGKILL)
    process.join(PATIENCE)
    began = time.monotonic()
    assert survivor.obtain(run_spec()).run_id == run_spec().run_id
    assert time.monotonic() - began < PATIENCE and len(started(log)) == 2


@pytest.mark.parametrize("kind", ["system", "lease"])
def test_runs_that_train_together_are_locked_together_and_freed_one_by_one(kind, root, tmp_path):
    ledger = Ledger(root) if kind == "lease" else Ledger(tmp_path / "other")
    specs = [run_spec(seed=seed) for seed in range(3)]
    held = [ledger.lock(spec).acquire(timeout=0) for spec in specs]
    others = Ledger(ledger.root)
    held[1].lock.release()
    with others.lock(specs[1]).acquire(timeout=0), pytest.raises(Timeout):
        others.lock(specs[2]).acquire(timeout=0)
    for lock in held:
        lock.lock.release()


def test_who_commits_late_gets_what_is_there(root):
    """As two hosts do of which one was stopped for longer than a lease."""
    first, late = Ledger(root), Ledger(root)
    record = first.commit(run_record(), WEIGHTS)
    before = (root / "runs" / record.folder / "record.json").read_bytes()
    found = late.commit(changed(run_record(), seconds=99.0), WEIGHTS)
    assert found == record == late.find(record.spec) and found.seconds != 99.0
    assert (root / "runs" / record.folder / "record.json").read_bytes() == before
    assert not list((root / "partial").iterdir())
    # What the late one had signed is not missed.
    late.commit(run_record(run_spec(seed=1)), WEIGHTS)
    assert Ledger(root).account().lines() == []


def test_a_folder_without_a_readable_record_is_replaced(root):
    ledger = Ledger(root)
    folder = root / "runs" / run_record().folder
    folder.mkdir()
    (folder / "record.json").write_text("{")
    ledger.commit(run_record(), WEIGHTS)
    assert Ledger(root).find(run_spec()) == run_record()


def test_no_two_processes_write_one_file_of_progress_or_state(root, tmp_path, monkeypatch):
    """Containers count their processes anew, and may have one name: seen with both."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    one, other = Ledger(root), Ledger(root)
    one.report_progress([{"run": "a"}])
    other.report_progress([{"run": "b"}])
    assert {facts["run"] for facts in one.progress()} == {"a", "b"}
    (tmp_path / "state").mkdir()
    places = []
    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda path, content: (places.append(path), write(path, content))[1])
    for _ in range(2):
        Checkpoint(tmp_path / "state" / "state.safetensors", "cpu").save(Snapshot({}, {"epoch": 1}))
    assert len(set(places)) == 2 and [path.name for path in (tmp_path / "state").iterdir()] == ["state.safetensors"]


def test_what_killed_processes_were_about_to_commit_is_swept_away(root):
    aside = root / "partial" / f"{run_spec().run_id}-00-whole"
    aside.mkdir()
    (aside / "weights.safetensors").write_bytes(b"half")
    Ledger(root).report_plan("first", {"runs": [], "cells": {}})
    assert aside.exists(), "it may be under way"
    os.utime(aside, (1e9, 1e9))
    Ledger(root).report_plan("second", {"runs": [], "cells": {}})
    assert not aside.exists()


def test_the_doctor_knows_leases(root, tmp_path, monkeypatch):
    assert doctor._lock(root).found.startswith("leases: a run whose process is silent for 20 s")
    Ledger(tmp_path / "other")
    monkeypatch.setattr(doctor, "is_shared", lambda path: True)
    told = doctor._lock(tmp_path / "other")
    assert told.state == "note" and "PRUNEAUDIT_LOCKS=lease" in told.advice
    shutil.rmtree(tmp_path / "other" / "locks")
    assert doctor._lock(tmp_path / "other").state in ("note", "ok")
