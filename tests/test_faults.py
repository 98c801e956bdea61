"""What goes wrong around a campaign: disks, damaged files, killed processes, clocks. Nothing is lost or misused."""

import ctypes
import errno
import json
import locale
import multiprocessing
import os
import platform
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from builders import CATALOG, NOTHING, WEIGHTS, FakeStages, evidence, failure, run_record, run_spec, started, store
from faulty import disk
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneaudit.campaign.executors import local
from pruneaudit.campaign.executors.local import LocalExecutor, RunFailedError
from pruneaudit.campaign.stages import Stages
from pruneaudit.errors import ConfigError, DamagedError, StorageError
from pruneaudit.ledger.progress import Watcher
from pruneaudit.ledger.records import VOLATILE, CellRecord, FailureRecord
from pruneaudit.ledger.store import Ledger, process_space
from pruneaudit.training.checkpoint import Checkpoint, Snapshot
from pruneaudit.training.memory import is_out_of_memory
from pruneaudit.training.runtime import Runtime
from pruneaudit.workloads.recipes import Recipe

# Torch has computed in this process already: with one thread a fork goes on as if nothing had been.
FORK = multiprocessing.get_context("fork")
PATIENCE = 120.0
# Seconds that are few beside those for which the dead would have gone on, even on a busy machine.
SOON = 60.0


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(local, "POLL", 0.005)
    torch.set_num_threads(1)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "ledger"


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


def chain(seed=0):
    """Base, pruning and retraining of one arm."""
    base = run_spec(seed=seed)
    prune = run_spec("prune", seed=seed, parent=base.run_id, method="l1", ratio=0.5, recipe=NOTHING)
    return base, prune, run_spec("retrain", seed=seed, parent=prune.run_id, method="l1", ratio=0.5)


def campaign(root, log, session="session", runs=None, **stages):
    """Obtain a chain of runs and write a cell, as a session does."""
    ledger = Ledger(root)
    one = LocalExecutor(ledger, FakeStages(ledger, log, **stages), session)
    runs = chain() if runs is None else runs
    one.share(runs)
    found = [one.obtain(run) for run in runs]
    ledger.save_cell(evidence().cell, "cell")
    return found


def assert_whole(root):
    """Everything in a ledger can be read, and nothing is left of what was not finished."""
    ledger = Ledger(root, writable=False)
    for record in ledger.runs():
        assert ledger.weights(record)["weight"].tolist() == [0, 1, 2, 3]
    ledger.cells()
    ledger.failures()
    assert not list(root.rglob("*.part"))
    return ledger


# Disks


def writes_of_a_campaign(tmp_path_factory):
    folder = tmp_path_factory.mktemp("counted")
    Ledger(folder / "ledger")
    with disk(folder / "ledger") as found:
        campaign(folder / "ledger", folder / "log")
    return found.writes


def test_whatever_write_fails_the_ledger_is_whole_and_the_same_command_goes_on(tmp_path, tmp_path_factory):
    total = writes_of_a_campaign(tmp_path_factory)
    assert total > 12
    for number in range(total):
        code = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT)[number % 4]
        root, log = tmp_path / f"ledger-{number}", tmp_path / f"log-{number}"
        Ledger(root)
        with disk(root, number, code), pytest.raises(StorageError) as caught:
            campaign(root, log)
        message = str(caught.value)
        assert message.startswith(f"ledger {root}: {os.strerror(code)}; make room or access, and give the same command")
        assert "\n" not in message
        # The disk is to blame, and no run.
        assert assert_whole(root).failures() == []
        before = assert_whole(root).finished()
        found = campaign(root, log, session="later")
        assert [record.run_id for record in found] == [run.run_id for run in chain()]
        again = started(log)[-len(chain()) + len(before) :] if len(before) < len(chain()) else []
        assert not set(again) & before, "what was finished was trained again"
        assert_whole(root)


def test_a_ledger_that_is_complete_needs_no_writing(root, log, monkeypatch):
    campaign(root, log)
    shutil.rmtree(root / "progress")
    (root / "progress").mkdir()
    with disk(root, 0, errno.EROFS):
        ledger = Ledger(root)
        one = LocalExecutor(ledger, FakeStages(ledger, log), "later")
        one.share(chain())
        assert [one.obtain(run).run_id for run in chain()] == [run.run_id for run in chain()]


def remount(place, how):
    subprocess.run(["mount", "-o", f"remount,{how}", place], check=True)


def test_a_ledger_on_a_small_disk_goes_on_when_there_is_room_again(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", small], capture_output=True)
    if mounted.returncode:
        pytest.skip("no small disk can be mounted here; the other tests make writes fail by themselves")
    try:
        root, log = small / "ledger", tmp_path / "log"
        Ledger(root)
        (small / "ballast").write_bytes(bytes(56 * 1024))
        runs = [run for seed in range(8) for run in chain(seed)][:6]
        with pytest.raises(StorageError, match="No space left on device; make room"):
            campaign(root, log, runs=runs)
        before = assert_whole(root).finished()
        assert before, "not even the first run fitted: nothing is tested"
        (small / "ballast").unlink()
        remount(small, "ro")
        with pytest.raises(StorageError, match="Read-only file system; make room or access"):
            campaign(root, log, runs=runs)
        # What is there can be judged all the same.
        assert assert_whole(root).finished() == before
        remount(small, "rw")
        campaign(root, log, session="later", runs=runs)
        assert len(started(log)) <= len(runs) + 1
        assert assert_whole(root).finished() == {run.run_id for run in runs}
    finally:
        subprocess.run(["umount", small], check=True)


FULL = """
import errno, sys, pytest
sys.path.insert(0, {tests!r})
from faulty import Disk, _hear, _armed

@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session):
    sys.addaudithook(_hear)
    _armed.append(Disk(session.config.rootpath / ".pruneaudit" / "ledger" / "partial", 5))
"""


def test_a_full_disk_stops_a_session_with_one_line(checkout):
    with (checkout.root / "conftest.py").open("a") as file:
        file.write(FULL.format(tests=str(Path(__file__).parent)))
    checkout.write("reports/latest/report.html", "the last good one")
    done = checkout.pytest(
        *("suite", "-k", "lenet5-digits and s3.2 and r0.5 and not conformance", "--audit-methods", "l1,random"),
        *("--audit-budget", "smoke", "--audit-seeds", "2"),
    )
    assert done.code not in (0, 130), done.text
    # Where it happened, and where the session says what is kept.
    failed, stopped = [line for line in done.lines if line.startswith(f"ledger {checkout.ledger}: No space")]
    assert failed.endswith("give the same command again: what is finished is kept")
    assert stopped == f"{failed}: 1 of 44 items are done"
    assert "to go on: pytest" in done.text and "Traceback" not in done.text and len(done.lines) < 40
    assert (checkout.report / "report.html").read_text() == "the last good one"
    ledger = Ledger(checkout.ledger, writable=False)
    assert ledger.failures() == [] and all(record.status == "ok" for record in ledger.cells())


# Damage


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run, a cell, a failure and a checkpoint; for each file what reading it gives."""
    folder = tmp_path_factory.mktemp("kept")
    ledger = Ledger(folder / "ledger")
    cell = store(ledger, evidence())
    ledger.fail(failure(run_spec("scratch")))
    result = ledger.get(cell.result)
    state = ledger.workspace(run_spec(seed=9)) / "state.safetensors"
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(True), "c": torch.zeros(0)}
    Checkpoint(state, "cpu").save(Snapshot(tensors, {"epochs_done": 3, "optimiser": {}}))

    def loaded():
        found = Checkpoint(state, "cpu").load()
        return None if found is None else ({name: t.tolist() for name, t in found.tensors.items()}, found.facts)

    root = folder / "ledger"
    return {
        root / "runs" / result.folder / "record.json": lambda: Ledger(root).find(result.spec),
        root / "runs" / result.folder / "weights.safetensors": lambda: Ledger(root).weights(result)["weight"].tolist(),
        next((root / "cells").iterdir()): lambda: Ledger(root).cell(next((root / "cells").iterdir()).stem),
        next((root / "failures").iterdir()): lambda: Ledger(root).failures(),
        state: loaded,
    }


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_no_flipped_bit_and_no_lost_end_is_used(kept, data):
    path = data.draw(st.sampled_from(list(kept)))
    whole = path.read_bytes()
    right = kept[path]()
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        content = bytearray(whole)
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    else:
        content = whole[:place]
    path.write_bytes(content)
    try:
        found = kept[path]()
    except (DamagedError, ConfigError) as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        # Nothing, so that it is done anew; or a bit that says nothing, of white space. Of many, the others are left.
        assert found in (None, []) or found == right
    finally:
        path.write_bytes(whole)


def test_a_record_that_was_edited_is_told(root):
    ledger = Ledger(root)
    record = ledger.commit(run_record(), WEIGHTS)
    path = root / "runs" / record.folder / "record.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"accuracy": content["accuracy"] + 1}))
    with pytest.raises(DamagedError, match="damaged"):
        Ledger(root).find(record.spec)
    # Written before there were digests, and links.
    del content["digest"], content["link"]
    path.write_text(json.dumps(content))
    assert Ledger(root).find(record.spec) == record


def test_layouts_of_records_are_sealed_alike():
    assert {"spec", "train_loss"} <= set(FailureRecord.model_fields) and "digest" not in CellRecord.model_fields


# Killed processes


def work(root, log, number, runs):
    """What a process does that is killed again and again: it wants all runs, in an order of its own."""
    order = list(runs)
    random.Random(number).shuffle(order)
    by_id = {run.run_id: run for run in runs}
    ledger = Ledger(root)
    one = LocalExecutor(ledger, FakeStages(ledger, log, sleep=0.004), f"session-{number}")
    one.share(runs)

    def obtain(run):
        for parent in run.needs:
            obtain(by_id[parent])
        one.obtain(run)

    for run in order:
        obtain(run)


def test_fifty_kills_lose_and_tear_and_double_nothing(root, log):
    draw = random.Random(5)
    runs = [run for seed in range(10) for run in chain(seed)]
    Ledger(root)
    killed, number = 0, 0
    alive = []
    while killed < 50 or alive:
        while killed < 50 and len(alive) < 3:
            process = FORK.Process(target=work, args=(root, log, number, runs))
            process.start()
            alive.append(process)
            number += 1
        time.sleep(draw.uniform(0.0, 0.03))
        process = draw.choice(alive)
        if killed < 50:
            process.kill()
            killed += 1
        process.join(PATIENCE)
        assert not process.is_alive()
        alive.remove(process)
        assert_readable(root)
    work(root, log, number, runs)
    ledger = Ledger(root, writable=False)
    assert ledger.finished() == {run.run_id for run in runs}
    assert len(list(ledger.runs())) == len(runs) and ledger.failures() == []
    assert_readable(root)


def assert_readable(root):
    ledger = Ledger(root, writable=False)
    for record in ledger.runs():
        assert ledger.weights(record)["weight"].tolist() == [0, 1, 2, 3]


def want(root, log, barrier, node, sleep):
    """One of several processes that want a run; in another container it has the number that another has here."""
    os.getpid = lambda: 7
    local.POLL = 0.005
    ledger = Ledger(root)
    one = LocalExecutor(ledger, FakeStages(ledger, log, sleep=sleep), f"session of {node}")
    barrier.wait(PATIENCE)
    one.obtain(run_spec())
    for _ in range(20):
        ledger.save_cell(evidence().cell, "cell")


def test_eight_processes_with_equal_numbers_train_a_run_once(root, log):
    barrier = FORK.Barrier(8)
    processes = [FORK.Process(target=want, args=(root, log, barrier, node, 0.2)) for node in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    assert [process.exitcode for process in processes] == [0] * 8
    assert started(log) == [run_spec().run_id]
    assert Ledger(root).cell("cell") == evidence().cell
    assert_whole(root)
    assert Ledger(root).progress() == []


def test_a_dead_holder_is_noticed_in_seconds(root, log):
    barrier = FORK.Barrier(2)
    holder = FORK.Process(target=want, args=(root, log, barrier, 0, 600.0))
    holder.start()
    barrier.wait(PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while not started(log):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    holder.kill()
    began = time.monotonic()
    campaign(root, log, runs=[run_spec()])
    assert time.monotonic() - began < SOON
    holder.join(PATIENCE)


_NEW_PIDS = 0x20000000


def in_container(send, target, *arguments):
    """Do something as the first process of a space of process numbers of its own; tells its number out here."""
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_PIDS):
        send.send(None)
        return
    pid = os.fork()
    if not pid:
        target(*arguments)
        os._exit(0)
    send.send(pid)
    os.waitpid(pid, 0)


def hold(root, log, sleep):
    """Want a run, as a worker of one host does; numbers of processes are its container's."""
    assert os.getpid() == 1
    local.POLL = 0.005
    ledger = Ledger(root)
    LocalExecutor(ledger, FakeStages(ledger, log, sleep=sleep), "session").obtain(run_spec())


def contained(root, log, sleep):
    """A process that wants the run in a container, and the number that it has out here."""
    heard, send = FORK.Pipe(duplex=False)
    process = FORK.Process(target=in_container, args=(send, hold, root, log, sleep))
    process.start()
    assert heard.poll(PATIENCE)
    number = heard.recv()
    if number is None:
        pytest.skip("no container can be made here: namespaces of process numbers need privileges")
    return process, number


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_two_containers_with_equal_numbers_on_one_folder_train_a_run_once(root, log):
    """Both are process 1 of their machine; one trains, the other waits, and notices soon that the first is dead."""
    Ledger(root)
    holder, number = contained(root, log, 600.0)
    until(lambda: started(log))
    waiting, _ = contained(root, log, 0.0)
    # Another machine of one name: what process 1 is doing here says nothing of it.
    (training,) = Watcher(Ledger(root, writable=False)).look().busy
    assert (training.pid, training.host) == (1, platform.node()) and training.space not in ("", process_space())
    time.sleep(0.2)
    assert waiting.is_alive() and len(started(log)) == 1
    os.kill(number, signal.SIGKILL)
    began = time.monotonic()
    waiting.join(PATIENCE)
    assert time.monotonic() - began < SOON and waiting.exitcode == 0
    holder.join(PATIENCE)
    assert started(log) == [run_spec().run_id] * 2
    assert assert_whole(root).finished() == {run_spec().run_id}
    # What the dead one was doing stands there under a name of its own.
    (left,) = (root / "progress").glob("*.json")
    assert "-1-" in left.name


def digits(epochs):
    """A few epochs of lenet5-digits."""
    workload = CATALOG.workload("lenet5-digits")
    return run_spec(data=workload.data, recipe=workload.pretrain.for_epochs(epochs), budget="short")


def train(root, spec):
    """Really train."""
    torch.set_num_threads(1)
    ledger = Ledger(root)
    return LocalExecutor(ledger, Stages(ledger, CATALOG, Runtime()), "session").obtain(spec)


def test_a_training_that_is_killed_again_and_again_ends_bit_identical(tmp_path):
    spec, draw = digits(5), random.Random(3)
    whole = train(tmp_path / "whole", spec)
    root = tmp_path / "killed"
    for _ in range(3):
        process = FORK.Process(target=train, args=(root, spec))
        process.start()
        process.join(draw.uniform(0.1, 0.9))
        process.kill()
        process.join(PATIENCE)
    resumed = train(root, spec)
    assert resumed.weights_digest == whole.weights_digest
    assert resumed.model_dump(exclude=VOLATILE) == whole.model_dump(exclude=VOLATILE)
    assert list((root / "partial").iterdir()) == []


# Numbers, clocks, memory


def test_clock_time_zone_locale_and_place_change_no_number(tmp_path, monkeypatch):
    spec = digits(1)
    whole = train(tmp_path / "whole", spec)
    known = locale.setlocale(locale.LC_ALL)
    clock = iter(range(10**9, 0, -3600))
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Pacific/Kiritimati")
        time.tzset()
        # An hour back with every look.
        patch.setattr(time, "time", lambda: float(next(clock)))
        for name in ("de_DE.UTF-8", "C.UTF-8", "C"):
            try:
                locale.setlocale(locale.LC_ALL, name)
                break
            except locale.Error:
                continue
        other = train(tmp_path / "an other pläce", spec)
    time.tzset()
    locale.setlocale(locale.LC_ALL, known)
    assert other.model_dump(exclude=VOLATILE) == whole.model_dump(exclude=VOLATILE)


def test_a_training_that_diverges_is_kept_with_its_curve_and_others_go_on(root):
    workload = CATALOG.workload("lenet5-digits")
    wild = Recipe(epochs=3, lr="0:0.01,2:1e18", batch=256)
    spec = run_spec(data=workload.data, recipe=wild)
    with pytest.raises(RunFailedError, match=r"training loss is (nan|inf) in epoch 3 of 3: it diverged"):
        train(root, spec)
    (kept,) = Ledger(root).failures()
    assert len(kept.train_loss) == 2 and all(loss < 3 for loss in kept.train_loss)
    assert train(root, digits(1)).accuracy > 10


def test_memory_that_does_not_suffice_is_one_line(root, monkeypatch):
    from pruneaudit.training.loop import TorchSteps

    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert is_out_of_memory(caught.value) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes differ")) and not is_out_of_memory(None)

    def scarce(self, *_):
        torch.empty(2**55)

    monkeypatch.setattr(TorchSteps, "run_epoch", scarce)
    with pytest.raises(RunFailedError, match=r"memory does not suffice \(.*\); run fewer workers") as told:
        train(root, digits(1))
    assert "\n" not in str(told.value)
