"""Runs that a cluster computes: what is submitted and when, what is lost, and who is told. With clusters made up here.

The real ones are in ``tests/cluster``.
"""

import contextlib
import hashlib
import json
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from functools import lru_cache
from pathlib import Path

import pytest
from builders import NOTHING, WEIGHTS, FakeStages, run_record, run_spec, started
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from conftest import ROOT
from pruneaudit.campaign.executors import apart, dispatch, on_ray, remote, slurm
from pruneaudit.campaign.executors import assignment as assignments
from pruneaudit.campaign.executors.assignment import Assignment, Terms
from pruneaudit.campaign.executors.dispatch import RETRIES, Dispatcher, Dispatching, Ended, RefusedError
from pruneaudit.campaign.executors.local import LocalExecutor
from pruneaudit.campaign.executors.orders import Orders
from pruneaudit.campaign.executors.remote import RemoteExecutor
from pruneaudit.campaign.executors.where import Cluster, where
from pruneaudit.cli import app
from pruneaudit.errors import ConfigError, RunFailedError, StoppedError, StorageError
from pruneaudit.ledger.chain import Account
from pruneaudit.ledger.progress import Watcher
from pruneaudit.ledger.store import Ledger

#: Nothing here takes that long unless it hangs.
PATIENCE = 60.0
HERE = Path(__file__).parent


def runs(count=2):
    """A base model, and retrainings that start from it; parents first."""
    base = run_spec()
    return [base, *(run_spec("retrain", parent=base.run_id, seed=seed) for seed in range(count))]


def terms_of(ledger):
    return Terms(session="session", ledger=str(ledger.root), folder=os.getcwd())


class Inside:
    """A cluster in this process: computes what it was given when it is asked what has ended.

    Args:
        ledger: Where runs go.
        log: See :class:`FakeStages`.
        lose: How many times the task of a run is lost before it computes anything.
        room: Tasks that it takes at one time.
        broken: Whether a run raises.
    """

    def __init__(self, ledger, log, lose=None, room=None, broken=lambda spec: False):
        self.executor = LocalExecutor(ledger, FakeStages(ledger, log, broken=broken), "session")
        self.lose, self.room = dict(lose or {}), room
        self.given, self.under_way = [], []
        self.is_cancelled = False
        self.prepared = []

    def prepare(self, terms):
        self.prepared.append((terms, len(self.given)))

    def submit(self, given):
        if self.room is not None and len(self.under_way) + len(given) > self.room:
            raise RefusedError("sbatch refuses: no more than you have")
        self.given += [one.spec.run_id for one in given]
        self.under_way += [one.spec for one in given]

    def ended(self, over):
        if not self.under_way:
            return []
        spec = self.under_way.pop(0)
        if self.lose.get(spec.run_id, 0) > 0:
            self.lose[spec.run_id] -= 1
        else:
            with contextlib.suppress(RunFailedError):
                self.executor.obtain(spec)
        return [spec.run_id]

    def how(self, run_id):
        return Ended("NODE_FAIL, exit code 0:9")

    def cancel(self):
        self.is_cancelled = True


@st.composite
def campaigns(draw):
    """Runs, each with an earlier one as its parent or none, and how many times the task of each is lost."""
    specs, lost = [], {}
    for number in range(draw(st.integers(1, 8))):
        parent = draw(st.none() | st.sampled_from(specs)) if specs else None
        stage = {"stage": "retrain", "parent": parent.run_id} if parent is not None else {"stage": "pretrain"}
        specs.append(run_spec(seed=number, recipe=NOTHING, **stage))
        lost[specs[-1].run_id] = draw(st.sampled_from([0, 0, 0, 1, RETRIES, RETRIES + 1]))
    return specs, lost


@settings(max_examples=25, deadline=None)
@given(campaigns(), st.integers(1, 3), st.randoms(use_true_random=False))
def test_parents_come_first_and_what_is_lost_is_tried_again_a_few_times(campaign, workers, random):
    specs, lost = campaign
    with tempfile.TemporaryDirectory() as folder:
        ledger, log = Ledger(Path(folder) / "ledger"), Path(folder) / "log"
        log.touch()
        cluster = Inside(Ledger(ledger.root), log, lost)
        dispatcher = Dispatcher(Ledger(ledger.root), terms_of(ledger), cluster)
        for _ in range(workers):
            # Workers plan the same runs, and some less of them.
            kept = specs[: random.randint(1, len(specs))]
            Orders(ledger, "session").want(kept)
        Orders(ledger, "session").want(specs)
        for _ in range((RETRIES + 2) * len(specs) + 1):
            dispatcher.step()
        reachable = {}
        for spec in specs:
            above = spec.parent is None or reachable[spec.parent]
            reachable[spec.run_id] = above and lost[spec.run_id] <= RETRIES
            expected = 1 + min(lost[spec.run_id], RETRIES) if above else 0
            assert cluster.given.count(spec.run_id) == expected
            if above and not reachable[spec.run_id]:
                failure = ledger.failure(spec, "session")
                assert f"{RETRIES + 1} times without a result: NODE_FAIL" in failure.error
        assert ledger.finished() == {run_id for run_id, is_there in reachable.items() if is_there}
        # Each was computed once, after its parent.
        order = started(log)
        assert sorted(order) == sorted(ledger.finished())
        assert all(spec.parent is None or order.index(spec.parent) < order.index(spec.run_id)
                   for spec in specs if spec.run_id in order)  # fmt: skip


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(remote, "POLL", 0.01)
    monkeypatch.setattr(dispatch, "LATER", 0.0)
    monkeypatch.setattr(slurm, "PAUSE", 0.05)


def executor(ledger):
    """As a worker has it, which only waits."""
    return RemoteExecutor(Ledger(ledger.root), FakeStages.catalog, "session")


def dispatching(ledger, cluster, at_worst=lambda reason: None):
    return Dispatching(Dispatcher(Ledger(ledger.root), terms_of(ledger), cluster), at_worst)


def test_workers_wait_and_the_ledger_answers(ledger, log):
    specs = runs()
    with dispatching(ledger, Inside(Ledger(ledger.root), log)) as _:
        one, other = executor(ledger), executor(ledger)
        one.share(specs)
        other.share(specs)
        # What nobody shared before is asked for when it is needed.
        late = run_spec(seed=9)
        assert [one.obtain(spec).run_id for spec in specs] == [spec.run_id for spec in specs]
        assert other.obtain(late).run_id == late.run_id
    assert len(started(log)) == len(specs) + 1
    assert not (ledger.root / "tasks").exists()


def test_a_cluster_prepares_before_it_is_given_anything(ledger, log):
    (spec, *_) = runs()
    cluster = Inside(Ledger(ledger.root), log)
    with dispatching(ledger, cluster):
        executor(ledger).obtain(spec)
    assert cluster.prepared == [(terms_of(ledger), 0)]


@pytest.mark.parametrize("arithmetic", ["native", "portable"])
def test_a_process_that_prepared_has_what_its_tasks_need(ledger, monkeypatch, arithmetic):
    """The arithmetic is chosen before anything is loaded that computes."""
    told = []
    made = assignments._executor.__wrapped__
    monkeypatch.setattr("pruneaudit.arithmetic.pin", lambda: told.append("pinned"))
    monkeypatch.setattr(assignments, "_executor", lru_cache(1)(lambda terms: told.append("made") or made(terms)))
    terms = terms_of(ledger).model_copy(update={"arithmetic": arithmetic})
    terms.prepare()
    assert told == (["pinned"] if arithmetic == "portable" else []) + ["made"]
    assert assignments._executor(terms).ledger.root == ledger.root
    assert told.count("made") == 1


def test_what_the_ledger_has_is_not_submitted(ledger, log):
    base, retrain, _ = runs()
    LocalExecutor(ledger, FakeStages(ledger, log), "earlier").obtain(base)
    cluster = Inside(Ledger(ledger.root), log)
    with dispatching(ledger, cluster):
        executor(ledger).share([base, retrain])
        executor(ledger).obtain(retrain)
    assert cluster.given == [retrain.run_id]


def test_an_exception_is_the_failure_of_that_run_alone(ledger, log):
    base, bad, good = runs()
    cluster = Inside(Ledger(ledger.root), log, broken=lambda spec: spec.run_id == bad.run_id)
    with dispatching(ledger, cluster):
        one = executor(ledger)
        one.share([base, bad, good])
        with pytest.raises(RunFailedError, match="the optimiser exploded"):
            one.obtain(bad)
        assert one.obtain(good).run_id == good.run_id
    # It is not tried again: another try would raise again.
    assert cluster.given.count(bad.run_id) == 1


def test_a_cluster_that_takes_nothing_ends_the_session_in_one_line(ledger, log):
    with dispatching(ledger, Inside(Ledger(ledger.root), log, room=0)):
        one = executor(ledger)
        one.share(runs())
        with pytest.raises(StoppedError, match=r"^sbatch refuses: no more than you have$"):
            one.obtain(run_spec())


def test_a_cluster_with_little_room_gets_the_rest_later(ledger, log):
    specs = [run_spec(seed=seed) for seed in range(3)]

    cluster = Inside(Ledger(ledger.root), log, room=3)
    dispatcher = Dispatcher(Ledger(ledger.root), terms_of(ledger), cluster)
    Orders(ledger, "session").want(specs[:2])
    dispatcher.step()
    # Of two tasks one is still under way: an array of three is refused as a whole, and fits when the other has ended.
    Orders(ledger, "session").want([*specs, run_spec(seed=7), run_spec(seed=8)])
    dispatcher.step()
    assert len(cluster.given) == 2
    for _ in range(4):
        dispatcher.step()
    assert len(ledger.finished()) == len(cluster.given) == 5


def test_who_cannot_be_told_that_nothing_comes_is_stopped(ledger, log, monkeypatch):
    heard = threading.Event()

    def full(self, reason):
        raise StorageError("no space left on device")

    monkeypatch.setattr(Orders, "stop", full)
    with dispatching(ledger, Inside(Ledger(ledger.root), log, room=0), lambda reason: heard.set()):
        executor(ledger).share(runs())
        assert heard.wait(PATIENCE)


def test_leaving_cancels_what_was_submitted(ledger, log):
    class Never(Inside):
        def ended(self, over):
            time.sleep(0.01)
            return []

    cluster = Never(Ledger(ledger.root), log)
    with dispatching(ledger, cluster) as at_work:
        executor(ledger).share(runs())
        deadline = time.monotonic() + PATIENCE
        while not cluster.given:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        # As Ctrl-C does, from the thread that hears of it.
        at_work.end()
    assert cluster.is_cancelled
    assert cluster.given == [run_spec().run_id]


class Elsewhere(Inside):
    """A cluster whose node sees nothing of the session's ledger: what travels is pickled, as between machines."""

    def __init__(self, ledger, log, post):
        super().__init__(ledger, log)
        self.post, self.spoil = post, lambda parcel: parcel
        self.errors, self.seen, self.late = {}, [], 0.0

    def tell(self, run_id, told):
        """A word on its way, from a node whose clock is wrong, and what the session shows of it then."""
        wrong = [
            {**facts, **{name: facts[name] + self.late for name in ("time", "started", "since")}} for facts in told
        ]
        self.post.hear(pickle.loads(pickle.dumps({run_id: wrong})))
        self.seen.append(Watcher(Ledger(self.post._ledger.root, writable=False)).look())

    def ended(self, over):
        if not self.under_way:
            return []
        spec = self.under_way.pop(0)
        task = Assignment(terms=terms_of(self.executor.ledger), spec=spec).model_dump_json(exclude_defaults=True)
        sent = pickle.loads(pickle.dumps(self.post.luggage(spec)))
        parcel = self.spoil(pickle.loads(pickle.dumps(apart.perform(task, sent, self.tell))))
        try:
            self.post.receive(spec.run_id, parcel)
        except apart.StrayError as error:
            self.errors[spec.run_id] = error
        self.post.over(spec.run_id)
        return [spec.run_id]

    def how(self, run_id):
        return Ended(str(self.errors[run_id]))


@pytest.fixture
def elsewhere(ledger, log, tmp_path, monkeypatch):
    """A node with another folder, whose runs are made up; those of the seeds given raise."""
    monkeypatch.setenv("PRUNEAUDIT_CACHE", str(tmp_path / "node"))

    def there(*broken):
        def executor_there(terms):
            # On a node, the session's ledger is not to be seen.
            assert Path(terms.ledger).is_relative_to(tmp_path / "node")
            own = Ledger(Path(terms.ledger))
            return LocalExecutor(own, FakeStages(own, log, broken=lambda spec: spec.seed in broken), terms.session)

        monkeypatch.setattr(assignments, "_executor", executor_there)
        return Elsewhere(Ledger(ledger.root), log, apart.Post(Ledger(ledger.root)))

    return there


def test_without_a_shared_folder_runs_travel_and_the_controller_commits(ledger, log, elsewhere):
    base, retrain, bad = runs()
    cluster = elsewhere(bad.seed)
    with dispatching(ledger, cluster):
        one = executor(ledger)
        one.share([base, retrain, bad])
        assert one.obtain(retrain).run_id == retrain.run_id
        with pytest.raises(RunFailedError, match="the optimiser exploded"):
            one.obtain(bad)
    # As if it had been computed here: readable, with weights, vouched for by this ledger's writer alone.
    there = Ledger(ledger.root, writable=False)
    for run in there.runs():
        assert hashlib.sha256(there.weights_file(run)).hexdigest() == run.weights_digest
    assert there.finished() == {base.run_id, retrain.run_id}
    assert not there.damaged
    assert there.account() == Account(signed=3)
    # What both start from went to the node; it trained once.
    assert started(log).count(base.run_id) == 1
    assert cluster.post.sent > 2 * len(WEIGHTS)
    assert "MiB came back" in cluster.post.words


@pytest.mark.parametrize("late", [0.0, 7200.0, -7200.0])
def test_how_far_a_run_is_that_travels_is_told_where_the_session_is(ledger, log, elsewhere, monkeypatch, late):
    monkeypatch.setattr(apart, "PAUSE", 0.0)
    base, retrain, bad = runs()
    cluster = elsewhere(bad.seed)
    cluster.late = late
    with dispatching(ledger, cluster):
        one = executor(ledger)
        one.share([base, retrain, bad])
        one.obtain(retrain)
        with pytest.raises(RunFailedError):
            one.obtain(bad)
    (first, *_), shown = cluster.seen[0].busy, [state.line() for state in cluster.seen]
    assert first.run == base.slug and first.pid == os.getpid() and abs(time.time() - first.started) < 3600
    # What is planned may be told after the first run has begun.
    assert {f"0 of 3 runs; now {base.slug} epoch 1/3 50.0 %", f"now {base.slug} epoch 1/3 50.0 %"} & set(shown)
    assert f"1 of 3 runs; now {retrain.slug} epoch 1/3 50.0 %" in shown
    # Nobody is at anything any more.
    assert Ledger(ledger.root).progress() == []


def test_words_that_nobody_takes_cost_no_run(ledger, log, elsewhere, monkeypatch):
    def torn(run_id, told):
        raise ConnectionError("gone")

    cluster = elsewhere()
    monkeypatch.setattr(cluster, "tell", torn)
    with dispatching(ledger, cluster):
        assert executor(ledger).obtain(run_spec()).run_id == run_spec().run_id


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda parcel: apart.Parcel(parcel.record, parcel.weights + b"!"), "do not have the digest"),
        (lambda parcel: apart.Parcel(run_record(runs()[1]).model_dump_json().encode(), parcel.weights), "is run"),
        (lambda parcel: apart.Parcel(b"{}", parcel.weights), "cannot be read"),
    ],
)
def test_what_comes_back_must_be_what_was_sent_for(ledger, log, elsewhere, spoil, said):
    base = run_spec()
    cluster = elsewhere()
    cluster.spoil = spoil
    dispatcher = Dispatcher(Ledger(ledger.root), terms_of(ledger), cluster)
    Orders(ledger, "session").want([base])
    for _ in range(RETRIES + 1):
        dispatcher.step()
    error = ledger.failure(base, "session").error
    assert f"{RETRIES + 1} times without a result: " in error
    assert said in error
    assert not ledger.finished()


def test_a_node_forgets_sessions_that_are_long_over(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEAUDIT_CACHE", str(tmp_path))
    old, recent = (apart._own_ledger(name) for name in ("old", "recent"))
    long_ago = time.time() - 2 * apart.FORGOTTEN
    os.utime(old, (long_ago, long_ago))
    assert apart._own_ledger("new").is_dir()
    assert not old.exists()
    assert recent.is_dir()


#: What a task does in a process of its own.
TASK = """
import os, signal, sys
sys.path.insert(0, {here!r})
from pathlib import Path
from builders import FakeStages
from pruneaudit.campaign.executors import assignment
from pruneaudit.campaign.executors.local import LocalExecutor
from pruneaudit.cli import main
from pruneaudit.ledger.store import Ledger

class Stages(FakeStages):
    def execute(self, spec, progress=None):
        mark = self.ledger.workspace(spec) / "begun"
        if not mark.exists():
            # The first try keeps something, and is killed: its lock is free then.
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().execute(spec, progress)

def executor(terms):
    ledger = Ledger(Path(terms.ledger))
    return LocalExecutor(ledger, Stages(ledger, Path(terms.ledger).parent / "log"), terms.session)

assignment._executor = executor
sys.argv = ["pruneaudit", "run", sys.argv[1]]
main()
"""


class Processes:
    """A cluster whose tasks are processes of this machine."""

    def __init__(self, folder, python):
        self.folder, self.python = folder, python
        self.tasks, self.codes = {}, {}

    def prepare(self, terms):
        pass

    def submit(self, given):
        for one in given:
            path = self.folder / f"{one.spec.run_id}.json"
            path.write_text(one.model_dump_json(exclude_defaults=True))
            command = [self.python, "-c", TASK.format(here=str(HERE)), str(path)]
            self.tasks[one.spec.run_id] = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def ended(self, over):
        time.sleep(0.02)
        over = [run_id for run_id, task in self.tasks.items() if task.poll() is not None]
        for run_id in over:
            self.codes.setdefault(run_id, []).append(self.tasks.pop(run_id).returncode)
        return over

    def how(self, run_id):
        return Ended(f"exit code {self.codes[run_id][-1]}")

    def cancel(self):
        for task in self.tasks.values():
            task.kill()
            task.wait()


def test_a_killed_task_goes_on_in_another_process(ledger, tmp_path, warm):
    cluster = Processes(tmp_path, warm)
    with dispatching(ledger, cluster):
        one = executor(ledger)
        one.share([run_spec()])
        assert one.obtain(run_spec()).run_id == run_spec().run_id
    first, *later = cluster.codes[run_spec().run_id]
    assert first in (-signal.SIGKILL, 128 + signal.SIGKILL)
    # The record may be there before its process has ended.
    assert later in ([], [0])
    assert started(tmp_path / "log") == [run_spec().run_id]


@pytest.fixture
def fake_executor(ledger, log, monkeypatch):
    """Runs of ``pruneaudit run`` are made up."""

    def given(**stages):
        local = LocalExecutor(ledger, FakeStages(ledger, log, **stages), "session")
        monkeypatch.setattr(assignments, "_executor", lambda terms: local)

    return given


def assigned(tmp_path, ledger, spec):
    path = tmp_path / "assignment.json"
    path.write_text(Assignment(terms=terms_of(ledger), spec=spec).model_dump_json(exclude_defaults=True))
    return str(path)


def test_exit_codes_of_a_task_tell_what_became_of_it(tmp_path, ledger, fake_executor):
    base, retrain, _ = runs()
    fake_executor()
    done = CliRunner().invoke(app, ["run", assigned(tmp_path, ledger, retrain)])
    assert done.exit_code == 3
    assert "is missing" in done.output
    done = CliRunner().invoke(app, ["run", assigned(tmp_path, ledger, base)])
    assert (done.exit_code, done.output) == (0, f"{base.folder}: accuracy 75.00\n")
    fake_executor(broken=lambda spec: True)
    # What is there is not computed again.
    assert CliRunner().invoke(app, ["run", assigned(tmp_path, ledger, base)]).exit_code == 0
    done = CliRunner().invoke(app, ["run", assigned(tmp_path, ledger, retrain)])
    assert (done.exit_code, len(done.output.splitlines())) == (1, 1)
    assert "the optimiser exploded" in done.output
    assert ledger.failure(retrain, "session") is not None


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "No such file"), ("{", "not valid JSON"), ('{"terms": 1}', "terms: Input should be"), ("[]", "valid")],
)
def test_a_file_that_is_no_assignment_is_told_in_one_line(tmp_path, content, said):
    path = tmp_path / "assignment.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=said) as found:
        Assignment.read(path)
    assert "\n" not in str(found.value)


def test_an_assignment_is_what_it_was_when_it_comes_back_from_a_file(tmp_path, ledger):
    spec = run_spec("prune", method="l1", ratio=0.5, parent="0" * 16, layer_ratios=(("conv*", 0.5),))
    read = Assignment.read(Path(assigned(tmp_path, ledger, spec)))
    assert read.spec.run_id == spec.run_id
    assert read == Assignment(terms=terms_of(ledger), spec=spec)


@pytest.mark.parametrize(
    ("executor", "task", "said"),
    [
        ("slrum", None, "unknown executor 'slrum'. Did you mean 'slurm'?"),
        ("local:1", None, "unknown executor"),
        ("local", "gpus=1", "add --audit-executor slurm or ray"),
        ("slurm", None, "there is no sbatch here"),
        ("slurm", "--comment='", "give options of sbatch"),
        ("ray:1.2.3.4:6379", None, "pip install 'pruneaudit[cluster]'"),
    ],
)
def test_what_cannot_compute_is_refused_in_one_line(monkeypatch, executor, task, said):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(on_ray.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as found:
        where(executor, task)
    assert said in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("executor", "task", "said"),
    [
        ("ray", None, "no cluster is named"),
        ("ray:6379", None, "'6379' is no HOST:PORT"),
        ("ray:ray://head:10001", None, "no HOST:PORT"),
        ("ray:head:99999", None, "no HOST:PORT"),
        ("ray:head:6379", "gpu=1", "'gpu=1' is nothing"),
        ("ray:head:6379", "gpus=1.5", "'gpus=1.5' is nothing"),
        ("ray:head:6379", "cpus=nan", "'cpus=nan' is nothing"),
    ],
)
def test_what_is_no_cluster_of_ray_is_refused_in_one_line(monkeypatch, executor, task, said):
    monkeypatch.setattr(on_ray.importlib.util, "find_spec", lambda name: name)
    monkeypatch.delenv(on_ray.ADDRESS, raising=False)
    with pytest.raises(ConfigError) as found:
        where(executor, task)
    assert said in str(found.value)


def test_options_say_where_and_what_a_task_asks_for(monkeypatch):
    monkeypatch.setattr(on_ray.importlib.util, "find_spec", lambda name: name)
    assert where("local", None) is None
    named = where("ray:head:6379", "cpus=2, gpus=0.25")
    assert named == Cluster("ray", "head", 6379, cpus=2, gpus=0.25)
    assert not named.apart
    assert where("ray:head:6379", "apart,cpus=2") == Cluster("ray", "head", 6379, cpus=2, apart=True)
    assert (named.sharing("cuda"), where("ray:head:6379", None).sharing("cuda")) == (4, 1)
    # As `ray job submit` says it to what it starts.
    monkeypatch.setenv(on_ray.ADDRESS, "10.0.0.1:6379")
    assert str(where("ray", None)) == "ray at 10.0.0.1:6379"


def test_a_dead_address_is_told_before_ray_is_asked():
    with pytest.raises(ConfigError, match="nothing answers there"):
        on_ray.Ray("127.0.0.1", 9)


#: Slurm of one directory: jobs are what a test says they are.
COMMANDS = {
    "sbatch": 'echo "$@" >>"$STATE/asked"; cat >"$STATE/script"; n=$(wc -l <"$STATE/asked"); [ -e "$STATE/full" ] && '
    '{ echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1; }; echo "$n;cluster"',
    "squeue": 'cat "$STATE/queue"',
    "scancel": 'echo "$@" >>"$STATE/cancelled"',
    "scontrol": 'echo "JobId=1 JobState=$(cat "$STATE/how") Reason=None ExitCode=$(cat "$STATE/code")"',
}


@pytest.fixture
def state(tmp_path, monkeypatch):
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, script in COMMANDS.items():
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("STATE", str(folder))
    return folder


def given_to(ledger, specs):
    return [Assignment(terms=terms_of(ledger), spec=spec) for spec in specs]


def test_slurm_gets_an_array_and_is_asked_what_is_left_of_it(tmp_path, ledger, state, monkeypatch):
    monkeypatch.setattr(slurm, "MOST", 2)
    specs = [run_spec(seed=seed) for seed in range(3)]
    cluster = slurm.Slurm(tmp_path / "a folder", "0123456789abcdef", "--partition=gpu --comment='two words'")
    cluster.submit(given_to(ledger, specs))
    first, second = (state / "asked").read_text().splitlines()
    assert "--array=0-1" in first
    assert "--array=0-0" in second
    assert "--partition=gpu --comment=two words" in first
    # The script finds the run of its own element.
    script = (state / "script").read_text().replace(f"exec {sys.executable}", "echo")
    found = subprocess.run(["sh", "-c", script], env=os.environ | {"SLURM_ARRAY_TASK_ID": "0"}, capture_output=True)
    path = tmp_path / "a folder" / f"{specs[2].run_id}.json"
    assert found.stdout.decode().split("run ")[1].strip() == str(path)
    assert Assignment.read(path).spec == specs[2]

    (state / "queue").write_text("1_0\n1_1\n2_0\n")
    assert list(cluster.ended(threading.Event())) == []
    (state / "queue").write_text("1_1\n")
    assert sorted(cluster.ended(threading.Event())) == sorted([specs[0].run_id, specs[2].run_id])
    (state / "how").write_text("NODE_FAIL")
    (state / "code").write_text("0:9")
    (tmp_path / "a folder" / "1_0.log").write_text("one\nKilled\n\n")
    how = cluster.how(specs[0].run_id)
    assert how.lost
    assert "task 1_0: NODE_FAIL, exit code 0:9;" in how.why
    assert how.why.endswith("1_0.log ends with: Killed")
    # What the command refuses as bad input, it would refuse again.
    (state / "code").write_text("2:0")
    assert not cluster.how(specs[0].run_id).lost
    cluster.cancel()
    assert (state / "cancelled").read_text().split() == ["1"]


def test_slurm_that_is_busy_or_full_is_asked_again(tmp_path, ledger, state):
    cluster = slurm.Slurm(tmp_path / "folder", "session")
    (state / "full").touch()
    with pytest.raises(RefusedError, match="sbatch refuses: sbatch: error: QOSMaxSubmitJobPerUserLimit"):
        cluster.submit(given_to(ledger, runs()))
    (state / "full").unlink()
    cluster.submit(given_to(ledger, runs()))
    # No answer says nothing of jobs.
    assert list(cluster.ended(threading.Event())) == []
    (state / "queue").write_text("")
    assert len(cluster.ended(threading.Event())) == 3


#: Each command of docs/scale.md by a word of it, and what shows that it does what the page says.
COMMANDS_OF_THE_PAGE = {
    "--audit-ranks 2": "test_ranks.py",
    "--audit-ledger /shared/ledger -n 4": "test_locks.py",
    "pruneaudit push": "test_a_ledger_in_object_storage_is_filled_and_taken_as_the_page_says",
    "--audit-executor slurm": "test_a_session_has_its_runs_computed_by_a_cluster",
    "--audit-executor ray": "test_what_the_page_asks_of_ray_is_understood",
}


def page_commands():
    """The commands of docs/scale.md, in order."""
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page, re.M | re.S)
    return [line for language, block in blocks if not language for line in block.splitlines()]


def stated(word):
    """The words of the command of docs/scale.md that has a word in it."""
    (found,) = (line for line in page_commands() if word in line)
    return shlex.split(found)


def test_each_command_of_the_page_is_run_by_a_test():
    left = [line for line in page_commands() if not line.startswith(("pip install", "pruneaudit merge"))]
    assert [next(word for word in COMMANDS_OF_THE_PAGE if word in line) for line in left] == list(COMMANDS_OF_THE_PAGE)
    named = {name for name in COMMANDS_OF_THE_PAGE.values() if not name.endswith(".py")}
    assert named <= set(globals())


def test_what_the_page_asks_of_ray_is_understood(monkeypatch):
    monkeypatch.setattr(on_ray.importlib.util, "find_spec", lambda name: name)
    words = stated("--audit-executor ray")
    task = next(word for word in words if word.startswith("--audit-task=")).partition("=")[2]
    cluster = where(words[words.index("--audit-executor") + 1], task)
    assert (cluster.sharing("cuda"), str(cluster)) == (4, "ray at 10.0.0.1:6379")


def test_a_ledger_in_object_storage_is_filled_and_taken_as_the_page_says(ledger, log, tmp_path, monkeypatch):
    LocalExecutor(ledger, FakeStages(ledger, log), "session").obtain(run_spec())
    monkeypatch.chdir(tmp_path)
    for host in ("one", "other"):
        Ledger(tmp_path / host / ".pruneaudit" / "ledger")
    shutil.copytree(ledger.root, tmp_path / "one" / ".pruneaudit" / "ledger", dirs_exist_ok=True)
    for host, word in (("one", "pruneaudit push"), ("other", "pruneaudit merge")):
        monkeypatch.chdir(tmp_path / host)
        _, *arguments = stated(word)
        done = CliRunner().invoke(app, [one.replace("s3://", "memory://scale-") for one in arguments])
        assert done.exit_code == 0, done.output
        assert "1 run(s)" in done.output
    assert Ledger(tmp_path / "other" / ".pruneaudit" / "ledger").find(run_spec()) is not None


#: As much of Slurm as a whole session needs: each element of an array is run at once, here, one after the other.
LOCAL_SBATCH = """
for word in "$@"; do case "$word" in --array=0-*) last=${word#--array=0-};; esac; done
cat >"$STATE/script"
number=$(($(cat "$STATE/number") + 1)); echo $number >"$STATE/number"
for index in $(seq 0 "$last"); do
  SLURM_ARRAY_TASK_ID=$index PYTEST_ADDOPTS= sh "$STATE/script" >>"$STATE/output" 2>&1
done
echo $number
"""


def test_a_session_has_its_runs_computed_by_a_cluster(checkout, state):
    (state / "sbatch").write_text("#!/bin/sh\n" + LOCAL_SBATCH)
    for name, content in (("number", "0"), ("queue", "")):
        (state / name).write_text(content)
    # As docs/scale.md says it, of a smaller workload, without a GPU, and in a folder that is here.
    pytest_, pyargs, suite, *options = stated("--audit-executor slurm")
    assert (pytest_, pyargs, suite) == ("pytest", "--pyargs", "pruneaudit.suite")
    outcome = checkout.pytest(
        *("suite", "-q", *options, "-k", "lenet5-digits and r0.5 and sx-a and test_cell", "--audit-methods", "scratch"),
        *("--audit-budget", "smoke", "--audit-seeds", "1", "--audit-protocols", "sx-a", "--audit-device", "cpu"),
        *("--audit-ledger", str(checkout.ledger)),
        PATH=os.environ["PATH"],
        STATE=str(state),
    )  # fmt: skip
    assert outcome.code == 0, outcome.text + (state / "output").read_text()
    printed = (state / "output").read_text().splitlines()
    records = [json.loads(path.read_text()) for path in (checkout.ledger / "runs").glob("*/record.json")]
    assert len(printed) == len(records) == 2
    assert not (checkout.ledger / "tasks").exists()
