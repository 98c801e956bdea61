"""Executing runs, alone and beside other processes at the same ledger."""

import json
import multiprocessing
import random
import re
import threading
import time

import pytest
from builders import NOTHING, FakeStages, run_spec, started

from pruneaudit.campaign import stages
from pruneaudit.campaign.executors import local
from pruneaudit.campaign.executors.local import LocalExecutor, RunFailedError
from pruneaudit.campaign.stages import Stages
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.errors import DamagedError
from pruneaudit.ledger.progress import Watcher
from pruneaudit.ledger.records import VOLATILE
from pruneaudit.ledger.store import Ledger
from pruneaudit.training.runtime import Runtime

SPAWN = multiprocessing.get_context("spawn")
#: Nothing here takes that long unless it hangs.
PATIENCE = 60.0


@pytest.fixture
def root(tmp_path):
    return tmp_path / "ledger"


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(local, "POLL", 0.01)


class ThreadLedger(Ledger):
    """A handle for one thread of several: progress files are named by process, so threads would share one."""

    def report_progress(self, facts):
        """Tell nobody."""


def executor(root, log, session="session", ledger_type=ThreadLedger, **stages):
    """An executor with its own ledger handle, as another process would have."""
    ledger = ledger_type(root)
    return LocalExecutor(ledger, FakeStages(ledger, log, **stages), session)


def ended(log):
    """Ids of the runs that came to an end, in order."""
    events = [json.loads(line) for line in log.read_text().splitlines()]
    return [event["run"] for event in events if event["event"] == "end"]


def wait_for(condition):
    """Wait until something is true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def in_threads(*tasks):
    """Run tasks side by side; return their results in order, or raise what one raised."""
    results, errors = [None] * len(tasks), []

    def run(number, task):
        try:
            results[number] = task()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number, task), daemon=True) for number, task in enumerate(tasks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a task hangs"
    if errors:
        raise errors[0]
    return results


def test_a_finished_run_is_not_executed_again(root, log):
    one = executor(root, log)
    record = one.obtain(run_spec())
    assert one.obtain(run_spec()) == record
    assert executor(root, log, session="later").obtain(run_spec()) == record
    assert started(log) == [record.run_id]
    assert [run.run_id for run in Ledger(root).runs()] == [record.run_id]


def obtain_after_the_others(root, log, barrier, answers):
    """What one of two processes does: both ask for the run at the same moment."""
    one = executor(root, log, ledger_type=Ledger, sleep=0.5)
    barrier.wait(PATIENCE)
    answers.put(one.obtain(run_spec()).model_dump(mode="json"))


def test_two_processes_need_one_run_and_only_one_trains_it(root, log, spawned):
    barrier, answers = SPAWN.Barrier(2), SPAWN.Queue()
    processes = [SPAWN.Process(target=obtain_after_the_others, args=(root, log, barrier, answers)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=PATIENCE) for _ in processes]
    for process in processes:
        process.join(PATIENCE)
    assert found[0] == found[1]
    assert started(log) == [run_spec().run_id]


def test_a_run_that_was_finished_between_look_and_lock_is_not_trained_again(root, log):
    class LateLedger(ThreadLedger):
        def lock(self, spec):
            # Another process finishes the run after this one has looked, and before it gets the lock.
            if not self.finished():
                executor(root, log).obtain(spec)
            return super().lock(spec)

    assert executor(root, log, ledger_type=LateLedger).obtain(run_spec()).run_id == run_spec().run_id
    assert len(started(log)) == 1


def test_a_waiting_process_helps_with_other_runs(root, log):
    wanted, other, third = (run_spec(seed=seed) for seed in range(3))
    # Whoever idles until the wanted run is done, waits in vain.
    busy = executor(root, log, broken=lambda spec: wait_for(lambda: len(ended(log)) == 2))
    helper = executor(root, log)
    helper.share([wanted, other, third])

    def help_out():
        wait_for(lambda: started(log))
        return helper.obtain(wanted)

    first, second = in_threads(lambda: busy.obtain(wanted), help_out)
    assert first == second
    assert started(log) == [wanted.run_id, other.run_id, third.run_id]
    assert ended(log)[-1] == wanted.run_id


def test_who_would_wait_trains_what_may_be_asked_for_later(root, log):
    wanted, other, later = (run_spec(seed=seed) for seed in range(3))
    child = run_spec("prune", seed=2, parent=later.run_id, method="l1", ratio=0.5, recipe=NOTHING)
    busy = executor(root, log, broken=lambda spec: wait_for(lambda: len(ended(log)) == 3))
    helper = executor(root, log, ledger_type=Ledger)
    asked = []
    helper.share([wanted, other])
    helper.go_ahead_with(lambda: asked.append(len(started(log))) or [later, child])

    def help_out():
        wait_for(lambda: started(log))
        return helper.obtain(wanted)

    in_threads(lambda: busy.obtain(wanted), help_out)
    assert started(log) == [wanted.run_id, other.run_id, later.run_id, child.run_id]
    assert asked == [2], "asked once, and not before everything else was done"
    # Nobody was told that it is to be done, and whoever asks for it finds it.
    assert Watcher(Ledger(root)).look().counts == ["2 of 2 runs"]
    helper.help_with([later, child], {})
    assert helper.obtain(child).run_id == child.run_id and len(started(log)) == 4
    assert Watcher(Ledger(root)).look().counts == ["4 of 4 runs"]


def test_alone_nothing_is_trained_before_it_is_asked_for(root, log):
    alone = executor(root, log)
    alone.share([run_spec()])
    alone.go_ahead_with(lambda: pytest.fail("there was something to do"))
    alone.obtain(run_spec())
    assert started(log) == [run_spec().run_id]


def test_what_fails_ahead_costs_nothing_until_it_is_asked_for(root, log):
    wanted, later = run_spec(), run_spec(seed=1)
    busy = executor(root, log, broken=lambda spec: wait_for(lambda: Ledger(root).failures()))
    helper = executor(root, log, broken=lambda spec: spec == later)
    helper.go_ahead_with(lambda: [later])

    def help_out():
        wait_for(lambda: started(log))
        return helper.obtain(wanted)

    _, found = in_threads(lambda: busy.obtain(wanted), help_out)
    assert found.run_id == wanted.run_id
    with pytest.raises(RunFailedError, match="the optimiser exploded"):
        helper.obtain(later)
    assert started(log) == [wanted.run_id, later.run_id], "tried once in a session"


def test_nobody_helps_with_a_run_whose_parent_is_not_there(root, log):
    base = run_spec()
    child = run_spec("prune", parent=base.run_id, method="l1", ratio=0.5, recipe=NOTHING)
    grandchild = run_spec("retrain", parent=child.run_id, method="l1", ratio=0.5)
    busy, helper = executor(root, log, sleep=0.3), executor(root, log)
    helper.share([grandchild, child, base])

    def help_out():
        wait_for(lambda: started(log))
        return helper.obtain(base)

    in_threads(lambda: busy.obtain(base), help_out)
    assert started(log) == [base.run_id]
    assert Ledger(root).failures() == []


@pytest.mark.parametrize("seed", range(3))
def test_many_workers_execute_every_run_once_and_parents_first(root, log, seed):
    draw = random.Random(seed)
    Ledger(root)
    runs = [run_spec()]
    for number in range(1, 13):
        parent = draw.choice([None, *runs])
        runs.append(run_spec("topup", seed=number, parent=parent.run_id if parent else None))

    def work(order):
        one = executor(root, log, sleep=0.01)
        one.share(runs)
        return [one.obtain(run).run_id for run in order]

    # Each worker wants other runs first, but every run after its parent, as a campaign does.
    wishes = [runs, [run for run in runs if draw.random() < 0.5], runs[:4]]

    def with_parents(wish):
        by_id, chain = {run.run_id: run for run in runs}, {}

        def add(run):
            if run.parent:
                add(by_id[run.parent])
            chain[run.run_id] = run

        for run in wish:
            add(run)
        return list(chain.values())

    orders = [with_parents(wish) for wish in wishes]
    found = in_threads(*(lambda order=order: work(order) for order in orders))
    assert found == [[run.run_id for run in order] for order in orders]
    assert sorted(started(log)) == sorted(run.run_id for run in runs)
    assert Ledger(root).failures() == []


def test_a_failing_run_is_one_line_and_leaves_a_traceback(root, log):
    one = executor(root, log, ledger_type=Ledger, broken=lambda spec: True)
    with pytest.raises(RunFailedError) as caught:
        one.obtain(run_spec())
    assert str(caught.value) == "run lenet5-digits-pretrain-seed0 failed: RuntimeError: the optimiser exploded"
    (failure,) = Ledger(root).failures()
    assert failure.error == str(caught.value)
    assert failure.session == "session" and failure.spec == run_spec()
    assert "Traceback" in failure.traceback and "in execute" in failure.traceback
    assert list(Ledger(root).runs()) == []
    assert list((root / "progress").iterdir()) == []


def test_a_failed_run_is_not_tried_twice_in_a_session(root, log):
    for _ in range(2):
        with pytest.raises(RunFailedError):
            executor(root, log, broken=lambda spec: True).obtain(run_spec())
    assert len(started(log)) == 1
    assert len(Ledger(root).failures()) == 1


def test_a_later_session_tries_again_and_the_failure_is_kept(root, log):
    with pytest.raises(RunFailedError):
        executor(root, log, broken=lambda spec: True).obtain(run_spec())
    record = executor(root, log, session="later").obtain(run_spec())
    assert started(log) == [record.run_id] * 2
    assert [failure.session for failure in Ledger(root).failures()] == ["session"]


def test_who_waits_for_a_run_that_fails_is_told_so(root, log):
    busy = executor(root, log, sleep=0.3, broken=lambda spec: True)
    waiting = executor(root, log)

    def obtain():
        with pytest.raises(RunFailedError):
            busy.obtain(run_spec())

    def wait():
        wait_for(lambda: started(log))
        with pytest.raises(RunFailedError, match="the optimiser exploded"):
            waiting.obtain(run_spec())

    in_threads(obtain, wait)
    assert len(started(log)) == 1


def test_a_run_that_fails_while_helping_costs_no_other_run(root, log):
    wanted, bad, good = (run_spec(seed=seed) for seed in range(3))
    busy = executor(root, log, broken=lambda spec: wait_for(lambda: good.run_id in ended(log)))
    helper = executor(root, log, broken=lambda spec: spec == bad)
    helper.share([bad, good, wanted])

    def help_out():
        wait_for(lambda: started(log))
        return helper.obtain(wanted)

    in_threads(lambda: busy.obtain(wanted), help_out)
    assert started(log) == [wanted.run_id, bad.run_id, good.run_id]
    assert [failure.spec for failure in Ledger(root).failures()] == [bad]


def test_an_interrupt_is_no_failure_of_the_run(root, log):
    def interrupt(spec):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        executor(root, log, ledger_type=Ledger, broken=interrupt).obtain(run_spec())
    assert Ledger(root).failures() == []
    assert list((root / "progress").iterdir()) == []
    # Same session, lock released: it simply goes on.
    executor(root, log).obtain(run_spec())


def test_a_damaged_record_is_told_and_not_trained_over(root, log):
    record = executor(root, log).obtain(run_spec())
    path = root / "runs" / record.folder / "record.json"
    path.write_text("{")
    with pytest.raises(DamagedError, match=re.escape(str(path))):
        executor(root, log).obtain(run_spec())
    assert len(started(log)) == 1


def test_progress_says_what_the_process_does(root, log):
    seen = []

    def look(spec):
        seen.extend(Ledger(root).progress())
        return False

    one = executor(root, log, ledger_type=Ledger, broken=look)
    one.share([run_spec(), run_spec(seed=1)])
    one.obtain(run_spec())
    (facts,) = seen
    assert facts["run"] == "lenet5-digits-pretrain-seed0"
    assert (facts["epoch"], facts["epochs"], facts["accuracy"], facts["planned"]) == (1, 3, 50.0, 2)
    assert Ledger(root).progress() == []


def obtain_forever(root, log):
    """A process that holds the lock of a run and never comes back."""
    executor(root, log, sleep=10 * PATIENCE).obtain(run_spec())


def test_a_killed_process_frees_its_run(root, log):
    process = SPAWN.Process(target=obtain_forever, args=(root, log), daemon=True)
    process.start()
    wait_for(lambda: started(log))
    survivor = executor(root, log)
    lock = survivor.ledger.lock(run_spec())
    with pytest.raises(TimeoutError):
        lock.acquire(timeout=0)
    process.kill()
    process.join(PATIENCE)
    assert survivor.obtain(run_spec()).run_id == run_spec().run_id
    assert len(started(log)) == 2
    assert Ledger(root).failures() == []


def real_executor(root):
    """An executor that really trains, on the CPU."""
    ledger, catalog = Ledger(root), Catalog()
    return LocalExecutor(ledger, Stages(ledger, catalog, Runtime()), "session")


def base_model():
    """The base of lenet5-digits, cut to 10 epochs."""
    workload = Catalog().workload("lenet5-digits")
    return run_spec(data=workload.data, recipe=workload.pretrain.for_epochs(10), budget="short")


def train(root):
    """What the process does that is killed: it trains, and waits for that before its last epochs."""
    stages._SAVE_ALONE = 0.0
    one = real_executor(root)
    progress = one.bulletin.progress

    def of(spec):
        after_epoch = progress(spec)

        def told(done, total, value):
            after_epoch(done, total, value)
            if done == total - 3:
                time.sleep(10 * PATIENCE)

        return told

    one.bulletin.progress = of
    one.obtain(base_model())


def epochs_done(root):
    """Epochs that the state of a run under way holds."""
    from safetensors import safe_open

    for path in root.glob("partial/*/state.safetensors"):
        with safe_open(path, framework="np") as file:
            return json.loads(file.metadata()["facts"])["epochs_done"]
    return 0


def test_a_killed_training_goes_on_and_ends_bit_identical(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = SPAWN.Process(target=train, args=(killed,), daemon=True)
    process.start()
    wait_for(lambda: epochs_done(killed) >= 3 or not process.is_alive())
    process.kill()
    process.join(PATIENCE)
    assert process.exitcode == -9
    assert Ledger(killed).finished() == set()

    resumed = real_executor(killed).obtain(base_model())
    uninterrupted = real_executor(whole).obtain(base_model())
    assert resumed.resumed >= 3
    assert uninterrupted.resumed == 0
    assert resumed.weights_digest == uninterrupted.weights_digest
    measured = uninterrupted.model_dump(exclude=set(VOLATILE))
    assert resumed.model_dump(exclude=set(VOLATILE)) == measured
    assert measured["epochs"] == 10 and len(measured["test_accuracy"]) == 10
    # Nothing of the attempt is left behind.
    assert list((killed / "partial").iterdir()) == []


# Runs that train together


def chain(seed, method="l1", ratio=0.5, backend="grouped"):
    """Base, pruning and retraining of one arm."""
    base = run_spec(seed=seed, backend=backend)
    prune = run_spec(
        "prune", seed=seed, backend=backend, parent=base.run_id, method=method, ratio=ratio, recipe=NOTHING
    )
    retrain = run_spec("retrain", seed=seed, backend=backend, parent=prune.run_id, method=method, ratio=ratio)
    return base, prune, retrain


def test_runs_of_one_shape_are_executed_together(root, log):
    one = executor(root, log)
    runs = [run for seed in range(2) for run in (*chain(seed), *chain(seed, ratio=0.9)[1:])]
    one.share(runs)
    for run in runs:
        assert one.obtain(run).run_id == run.run_id
    together = [batch for batch in one.stages.batches if len(batch) > 1]
    bases, half, tenth = (
        [run.run_id for run in runs if run.stage != "prune" and run.ratio == r] for r in (None, 0.5, 0.9)
    )
    assert together == [bases, half, tenth]
    # Whatever a batch waits for is done before, and nothing twice.
    assert sorted(started(log)) == sorted({run.run_id for run in runs})


def test_one_at_a_time_is_one_at_a_time(root, log):
    one = executor(root, log)
    runs = [run for seed in range(2) for run in chain(seed, backend="torch")]
    one.share(runs)
    for run in runs:
        one.obtain(run)
    assert one.stages.batches == [[run.run_id] for run in runs]


def test_a_failed_pruning_holds_up_nobody_of_its_shape(root, log):
    one = executor(root, log, broken=lambda spec: spec.stage == "prune" and spec.seed == 1)
    chains = [chain(seed) for seed in range(3)]
    one.share([run for runs in chains for run in runs])
    for run in chains[0]:
        one.obtain(run)
    assert one.stages.batches[-1] == [chains[0][2].run_id, chains[2][2].run_id]
    with pytest.raises(RunFailedError, match="prune-l1"):
        one.obtain(chains[1][1])


def test_a_run_that_fails_in_a_batch_costs_that_one_alone(root, log):
    one = executor(root, log, broken=lambda spec: spec.seed == 1)
    runs = [run_spec(seed=seed, backend="grouped") for seed in range(3)]
    one.share(runs)
    assert one.obtain(runs[0]).seed == 0
    assert one.stages.batches == [[run.run_id for run in runs]]
    with pytest.raises(RunFailedError, match="the optimiser exploded"):
        one.obtain(runs[1])
    assert one.obtain(runs[2]).seed == 2
    assert len(one.stages.batches) == 1


def test_a_batch_waits_for_what_another_process_prunes(root, log):
    chains = [chain(seed) for seed in range(2)]
    runs = [run for found in chains for run in found]
    busy, waiting = executor(root, log, sleep=0.3), executor(root, log)
    waiting.share(runs)
    for found in chains:
        waiting.obtain(found[0])
    waiting.obtain(chains[0][1])

    def wait():
        wait_for(lambda: chains[1][1].run_id in started(log))
        return waiting.obtain(chains[0][2])

    in_threads(lambda: busy.obtain(chains[1][1]), wait)
    # Which of the two leads depends on whether the other process ends between two looks at it.
    assert sorted(waiting.stages.batches[-1]) == sorted(found[2].run_id for found in chains)


def test_who_waits_for_one_of_a_batch_need_not_wait_for_all(root, log):
    first, second = (run_spec(seed=seed, backend="grouped") for seed in range(2))
    obtained = threading.Event()
    # The second one fails where the first was not to be had before it ended.
    batch = executor(root, log, broken=lambda spec: spec == second and not obtained.wait(PATIENCE))
    other = executor(root, log)
    batch.share([first, second])

    def wait():
        wait_for(lambda: started(log))
        assert other.obtain(first).run_id == first.run_id
        obtained.set()

    in_threads(lambda: batch.obtain(first), wait)
    assert batch.obtain(second).run_id == second.run_id and started(log) == [first.run_id, second.run_id]


def test_all_runs_of_a_batch_are_told_as_under_way(root, log):
    told = []

    def look(spec):
        told.append({facts["id"]: facts["epoch"] for facts in Ledger(root).progress()})
        return False

    one = executor(root, log, ledger_type=Ledger, broken=look)
    runs = [run_spec(seed=seed, backend="grouped") for seed in range(2)]
    one.share(runs)
    one.obtain(runs[0])
    assert [set(ids) for ids in told] == [{run.run_id for run in runs}, {runs[1].run_id}]
    assert Ledger(root).progress() == []


def test_together_or_alone_gives_the_same_weights(tmp_path):
    """Through the real stages, in float64."""
    found = {}
    for backend in ("torch", "grouped"):
        one = real_executor(tmp_path / backend)
        recipe = base_model().recipe.model_copy(update={"epochs": None, "steps": 6})
        chains = []
        for seed in range(2):
            same = {"seed": seed, "backend": backend, "precision": "fp64", "data": base_model().data, "recipe": recipe}
            base = run_spec(**same)
            source = Catalog().method("l1")
            prune = run_spec(
                "prune",
                **{**same, "recipe": NOTHING},
                parent=base.run_id,
                method="l1",
                method_digest=source.digest,
                ratio=0.5,
                prunable=("conv*",),
            )
            retrain = run_spec("retrain", **same, parent=prune.run_id, method="l1", ratio=0.5)
            chains.append((base, prune, retrain))
        one.share([run for runs in chains for run in runs])
        found[backend] = [one.obtain(run) for runs in chains for run in runs]
        weights = [one.ledger.weights(record) for record in found[backend]]
        found[backend, "weights"] = weights
        assert one.ledger.failures() == []
    for left, right in zip(found["torch"], found["grouped"], strict=True):
        assert (left.accuracy, left.samples, left.learning_rates) == (
            right.accuracy,
            right.samples,
            right.learning_rates,
        )
        assert right.hyper_parameters.get("steps") == (None if right.stage == "prune" else "grouped")
        assert left.test_loss == pytest.approx(right.test_loss, abs=1e-10)
        assert 0 < right.training_seconds < right.seconds or right.stage == "prune"
    for left, right in zip(found["torch", "weights"], found["grouped", "weights"], strict=True):
        assert max(float((left[name] - right[name]).abs().max()) for name in left) < 1e-10


def test_workers_share_the_memory_of_a_device(tmp_path, monkeypatch):
    asked = []

    def train_nothing(trainings, backend, memory, **options):
        asked.append((backend, memory))

    monkeypatch.setattr(stages, "train_many", train_nothing)
    real = Stages(Ledger(tmp_path), Catalog(), Runtime(processes=4))
    spec = run_spec(data=base_model().data, backend="grouped")
    real.execute_many([spec], lambda spec: None, lambda spec, outcome: None)
    assert asked == [("grouped", 0.25)]
