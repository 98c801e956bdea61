"""How far a campaign is: what is counted, what is estimated, and what a terminal shows while pytest prints."""

import contextlib
import fcntl
import json
import os
import platform
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import torch
from builders import CATALOG, DATA, NOTHING, RECIPE, FakeStages, failure, run_spec, started
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from pruneaudit.campaign.cost import Cost, cost
from pruneaudit.campaign.executors import bulletin
from pruneaudit.campaign.executors.local import LocalExecutor, RunFailedError
from pruneaudit.ledger.progress import Planned, State, Training, Watcher, duration, seconds_left
from pruneaudit.ledger.schedule import in_turn
from pruneaudit.ledger.store import Ledger
from pruneaudit.plugin.live import Screen, wants_bars
from pruneaudit.workloads.data import facts

NOW = 1_000_000.0
IDS = [f"{number:016x}" for number in range(20)]


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger")


class Stages(FakeStages):
    """Made-up stages that know the catalogue, as the real ones do; `watch` is called in the middle of a run."""

    catalog = CATALOG

    def __init__(self, ledger, log, watch=lambda spec: None, **options):
        super().__init__(ledger, log, **options)
        self.watch = watch

    def execute(self, spec, progress=None):
        progress(1, 3, 50.0)
        self.watch(spec)
        return super().execute(spec, None)


def executor(ledger, tmp_path, session="session", **options):
    return LocalExecutor(ledger, Stages(ledger, tmp_path / "log", **options), session)


def training(number=0, epoch=1, epochs=4, started=NOW - 10, heard=NOW, **facts):
    return Training(
        run=f"run{number}", id=IDS[number], epoch=epoch, epochs=epochs, started=started, time=heard, **facts
    )


def plan_of(*runs):
    """Runs by id, from (kind, cost)."""
    return {run_id: Planned(id=run_id, run="r", kind=kind, cost=cost) for run_id, (kind, cost) in zip(IDS, runs)}  # noqa: B905


def estimate(runs, busy, spent=(), statuses=None):
    planned = plan_of(*runs)
    under_way = {run.id for run in busy}
    known = {run_id: "busy" if run_id in under_way else "waiting" for run_id in planned} | (statuses or {})
    return seconds_left(planned, known, busy, spent, NOW)


# What is counted


def test_runs_and_cells_are_counted_from_what_the_session_planned(ledger, tmp_path):
    base, lost = run_spec(), run_spec(seed=1)
    good, bad = (run_spec("retrain", parent=run.run_id, seed=run.seed, method="l1", ratio=0.5) for run in (base, lost))
    cells = {"good": [base.run_id, good.run_id], "bad": [lost.run_id, bad.run_id], "late": [base.run_id, "later"]}
    seen = []

    def watch(spec):
        seen.append(Watcher(ledger).look())

    one = executor(ledger, tmp_path, watch=watch, broken=lambda spec: spec == lost)
    one.share([base, lost, good, bad], cells)
    one.obtain(base)
    (state,) = seen
    assert (state.runs[base.run_id], state.runs[good.run_id]) == ("busy", "waiting")
    assert state.cells == {"good": "busy", "bad": "waiting", "late": "busy"}
    (under_way,) = state.busy
    assert (under_way.run, under_way.epoch, under_way.epochs, under_way.accuracy) == (base.slug, 1, 3, 50.0)
    with pytest.raises(RunFailedError):
        one.obtain(lost)
    one.obtain(good)
    state = Watcher(ledger).look()
    # What stands on a run that failed will never be trained.
    assert state.runs == {base.run_id: "done", lost.run_id: "failed", good.run_id: "done", bad.run_id: "failed"}
    assert state.cells == {"good": "done", "bad": "failed", "late": "waiting"}
    assert state.counts == ["2 of 3 cells (1 failed)", "4 of 4 runs"]
    assert state.busy == () and state.seconds_left is None


def test_what_turns_out_to_be_needed_is_counted_from_then_on(ledger, tmp_path):
    first, second = run_spec(), run_spec(seed=1)
    processes = [executor(ledger, tmp_path) for _ in range(2)]
    for one in processes:
        one.share([first], {"a": [first.run_id]})
    for one in processes:
        one.help_with([first, second], {"b": [first.run_id, second.run_id]})
    state = Watcher(ledger).look()
    assert state.counts == ["0 of 2 cells", "0 of 2 runs"]
    processes[0].obtain(first)
    assert Watcher(ledger).look().counts == ["1 of 2 cells", "1 of 2 runs"]


def test_a_failure_of_an_earlier_session_is_tried_again(ledger, tmp_path):
    ledger.fail(failure(run_spec(), session="earlier"))
    (path,) = (ledger.root / "failures").iterdir()
    os.utime(path, (1.0, 1.0))
    executor(ledger, tmp_path).share([run_spec()])
    assert Watcher(ledger).look().counts == ["0 of 1 runs"]


def test_all_processes_of_a_session_share_one_plan_and_old_ones_go(ledger, tmp_path):
    for session in ("a", "a", *"bcdefghijk", "../../outside"):
        executor(ledger, tmp_path, session=session).share([run_spec()])
    assert len(ledger.plans()) == 8
    assert all(path.parent == ledger.root / "progress" for path in ledger.plans())
    assert Watcher(ledger).look().counts == ["0 of 1 runs"]
    assert Watcher(ledger, since=time.time() + 60).look().counts == [], "an older session's plan is not this one's"


def test_looking_again_reads_what_is_new(ledger, tmp_path):
    one = executor(ledger, tmp_path)
    one.share([run_spec(), run_spec(seed=1)])
    watcher = Watcher(Ledger(ledger.root, writable=False))
    counts = [watcher.look().counts]
    for seed in (0, 1):
        one.obtain(run_spec(seed=seed))
        counts.append(watcher.look().counts)
    assert counts == [["0 of 2 runs"], ["1 of 2 runs"], ["2 of 2 runs"]]


# Who is at work


def write_progress(ledger, name="1.json", **facts):
    known = {"run": "a-run", "id": IDS[0], "epoch": 2, "epochs": 4, "started": NOW - 100, "time": NOW, **facts}
    (ledger.root / "progress" / name).write_text(json.dumps([known]))


def gone():
    """Number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


HERE, AWAY = {"host": platform.node()}, {"host": "another machine", "pid": 1}
ALIVE = {
    "this process": lambda: {**HERE, "pid": os.getpid()},
    "another user's": lambda: {**HERE, "pid": 1},
    "on another machine": lambda: AWAY,
    "quiet for ten minutes": lambda: {**AWAY, "time": NOW - 599},
    # Two epochs in two hours: it may be silent for long.
    "slow": lambda: {**AWAY, "time": NOW - 3600, "started": NOW - 10800},
    "in a long first epoch": lambda: {**AWAY, "time": NOW - 3600, "epoch": 0},
}
DEAD = {
    "gone": lambda: {**HERE, "pid": gone()},
    "silent": lambda: {**AWAY, "time": NOW - 601, "started": NOW - 611},
    "its number is another's now": lambda: {**HERE, "pid": os.getpid(), "time": NOW - 601, "started": NOW - 611},
    "silent from the start": lambda: {**AWAY, "time": NOW - 9000, "epoch": 0},
}


@pytest.mark.parametrize("kind", [*ALIVE, *DEAD])
def test_a_process_that_died_is_not_busy(ledger, kind):
    write_progress(ledger, **(ALIVE | DEAD)[kind]())
    assert bool(Watcher(ledger).look(NOW).busy) == (kind in ALIVE)


@pytest.mark.parametrize(
    "facts",
    [
        {"id": "../../../etc/passwd"},
        {"id": None},
        {"epoch": "many"},
        {"epoch": -1},
        {"accuracy": float("nan")},
        {"run": 3},
    ],
)
def test_what_no_process_of_ours_wrote_is_not_shown(ledger, facts):
    write_progress(ledger, **facts)
    (ledger.root / "progress" / "2.json").write_text("[1, {}]")
    (ledger.root / "progress" / "3.json").write_text("{")
    (ledger.root / "progress" / "4.plan").write_text('{"runs": [{"id": 1}], "cells": [1]}')
    assert Watcher(ledger).look(NOW) == State(NOW)


def test_names_of_strangers_stay_text_in_one_line(ledger):
    write_progress(ledger, run="<b>\x1b[2J\r\nx" + "x" * 300 + "🦊[red]")
    state = Watcher(ledger).look(NOW)
    assert state.line() == "now <b> [2J  x" + "x" * 300 + "🦊[red] epoch 2/4"
    screen = Terminal(columns=100)
    screen.feed(drawn(state, 100))
    assert screen.text.startswith("pruneaudit")
    assert len(screen.text.splitlines()) == 2 and screen.text.splitlines()[1].startswith("<b> [2J  xxxx")


def test_a_run_under_way_has_curves_from_its_checkpoint(ledger):
    write_progress(ledger)
    workspace = ledger.root / "partial" / IDS[0]
    workspace.mkdir()
    watcher = Watcher(ledger)
    assert watcher.look(NOW).busy[0].loss is None
    for losses in ([2.0], [2.0, 1.5]):
        facts = {"history": {"train_loss": losses, "test_accuracy": [50.0] * len(losses), "nonzero": []}}
        save_file({"x": torch.zeros(1)}, workspace / "state.safetensors", metadata={"facts": json.dumps(facts)})
        (run,) = watcher.look(NOW).busy
        assert run.curve.train_loss == tuple(losses) and run.loss == losses[-1]
        assert run.curve.test_accuracy == (50.0,) * len(losses)
    (workspace / "state.safetensors").write_bytes(b"half")
    assert watcher.look(NOW).busy[0].loss is None


# What is estimated


def test_the_cost_of_a_run_counts_training_and_evaluation():
    dense = cost(run_spec(), CATALOG)
    sizes = facts(DATA)
    small = cost(run_spec("retrain", method="l1", ratio=0.5, parent="x"), CATALOG)
    weights = cost(run_spec("retrain", method="magnitude-global", ratio=0.5, parent="x"), CATALOG)
    nothing = cost(run_spec("prune", method="l1", ratio=0.5, recipe=NOTHING), CATALOG)
    assert dense.epochs == RECIPE.epochs and dense.training_macs == 3 * dense.macs * dense.epochs * sizes.train
    assert dense.evaluation_macs == dense.macs * (RECIPE.epochs + 1) * (sizes.validation + sizes.test)
    assert small.macs < dense.macs == weights.macs == nothing.macs, "masked weights are multiplied all the same"
    assert nothing.training_macs == 0 and nothing.total > 0


def test_what_is_left_is_divided_by_what_was_measured():
    # A quarter of 400 MACs in 10 seconds: 30 seconds for the rest, 80 for two more.
    assert estimate([("a", 400.0)] * 3, [training()]) == pytest.approx(110)
    two = [training(number, pid=number + 1) for number in range(2)]
    # Two processes cannot share the third run: one takes it when its own is over.
    assert estimate([("a", 400.0)] * 3, two) == pytest.approx(30 + 40)
    assert estimate([("a", 400.0)] * 4, two) == pytest.approx(30 + 40)


def test_runs_of_one_process_share_its_time():
    # Half of the ten seconds each: what takes one of them 30 seconds alone takes both 30 together.
    both = [training(0, pid=1), training(1, pid=1)]
    assert estimate([("a", 400.0)] * 2, both) == pytest.approx(30)
    assert estimate([("a", 400.0)] * 3, both) == pytest.approx(30 + 20)
    # Beside another process as slow as both together: 20 seconds for each run, and who trains two needs the longest.
    assert estimate([("a", 400.0)] * 3, [*both, training(2, pid=2)]) == pytest.approx(40)


def test_who_waits_for_a_run_will_help_with_the_rest():
    runs = [("a", 400.0)] * 3
    assert seconds_left(plan_of(*runs), dict.fromkeys(IDS[:3], "waiting"), [training()], (), NOW, 2) == pytest.approx(
        estimate(runs, [training()]) - 40
    )


def test_what_is_likely_is_in_the_time_and_in_no_count(ledger, tmp_path):
    first, later = run_spec(), [run_spec(seed=seed) for seed in (1, 2)]
    one = executor(ledger, tmp_path)
    one.share([first])
    seen = []
    sure, doubtful = ([(run, chance) for run in later] for chance in (1.0, 0.25))
    for likely in ({}, {"table": [[(first, 1.0)], doubtful]}, {"other": [sure]}, {"table": []}, {"other": []}):
        one.foresee(likely)
        write_progress(ledger, id=first.run_id, plan=ledger.plans()[0].stem, epoch=2, epochs=4)
        seen.append(Watcher(ledger).look(NOW))
    assert {tuple(state.counts) for state in seen} == {("0 of 1 runs",)}
    # Half of the first in a hundred seconds: as much for the rest, and twice that for each other one, by its chance.
    # Of two tables that may need a run the more probable one counts.
    assert [state.seconds_left for state in seen] == pytest.approx([100, 200, 500, 500, 100])
    assert seen[2].left == "about 8 min left"


def test_what_comes_round_by_round_is_not_shared_out():
    """Three rounds of one run each, and two more tables of one round: workers train a round ahead, or two."""
    rounds = [["a", "b"], ["c", "d"], ["e", "f"]]
    assert in_turn([rounds, [["g"]]], 1) == {
        "a": (), "b": (), "c": ("a", "b"), "d": ("a", "b"), "e": ("c", "d"), "f": ("c", "d"), "g": ("e", "f"),
    }  # fmt: skip
    assert {run for run, before in in_turn([rounds], 2).items() if before} == {"e", "f"}
    assert not any(in_turn([rounds], 3).values()) and not any(in_turn([rounds], 99).values())
    # Of a table that is decided nothing waits but the next one for the one before it.
    assert in_turn([rounds, [], [["g"]]], 4)["g"] == ("e", "f")
    runs, statuses = [("a", 400.0)] * 4, dict.fromkeys(IDS[:4], "waiting")
    alone = in_turn([[[run] for run in IDS[:4]]], 2)
    left = [seconds_left(plan_of(*runs), statuses, [training()], (), NOW, 2, turns) for turns in (None, alone)]
    # Two workers share them, in turn as well, for one is trained ahead.
    assert left[0] == left[1] == pytest.approx(80)
    one_by_one = in_turn([[[run] for run in IDS[:4]]], 1)
    assert seconds_left(plan_of(*runs), statuses, [training()], (), NOW, 2, one_by_one) == pytest.approx(30 + 3 * 40)


def test_a_hundredfold_difference_of_stages_is_seen():
    runs = [("pretrain", 100.0), *[("retrain", 1.0)] * 9]
    assert estimate(runs, [training()]) == pytest.approx(30 + 9 * 0.4)


def test_each_kind_of_run_has_its_own_rate():
    spent = [{"small": (10.0, 20.0)}, {"small": (10.0, 40.0), "large": (100.0, 10.0)}]
    # 3 seconds per MAC of small networks, from both processes; the large ones' rate is their own.
    assert estimate([("large", 100.0), ("small", 10.0)], [training(heard=NOW, epoch=0)], spent) == pytest.approx(
        10 + 30
    )


def test_the_last_run_is_not_shared_out():
    # Ten processes cannot share one long run.
    busy = [training(number, epoch=3) for number in range(1, 5)] + [training()]
    assert estimate([("a", 4000.0), *[("b", 4.0)] * 4], busy) == pytest.approx(30)


def test_between_two_reports_the_estimate_goes_on():
    assert estimate([("a", 400.0)], [training(started=NOW - 14, heard=NOW - 4)]) == pytest.approx(30 - 4)
    assert estimate([("a", 400.0)], [training(started=NOW - 110, heard=NOW - 100)]) == pytest.approx(30 - 10)


def test_a_resumed_run_measures_only_what_it_did_itself():
    assert estimate([("a", 400.0)], [training(epoch=3, begun=2)]) == pytest.approx(10)


def campaigns():
    """Recorded campaigns of ``make suite`` on two calm cores: kind, epochs, cost, needs and seconds of each run."""
    rows = json.loads((Path(__file__).parent / "fixtures" / "campaigns.json").read_text())["campaigns"]
    return [
        [
            (kind, epochs, Cost(epochs, epochs, 0, round(macs * 1e9), 0, calls).work, needs, seconds)
            for kind, epochs, macs, calls, needs, seconds in campaign
        ]
        for campaign in rows
    ]


def worked_through(runs, workers):
    """When each run begins and ends where workers take them in order, and who trains it."""
    times, free = {}, dict.fromkeys(range(1, workers + 1), 0.0)
    waiting = list(range(len(runs)))
    while waiting:
        ready = {
            place: max((times[need][1] for need in runs[place][3] if need in times), default=0.0)
            for place in waiting
            if all(need in times for need in runs[place][3])
        }
        worker = min(free, key=free.get)
        place = next((place for place in ready if ready[place] <= free[worker]), min(ready, key=ready.get))
        begins = max(free[worker], ready[place])
        times[place] = begins, begins + runs[place][4], worker
        free[worker] = times[place][1]
        waiting.remove(place)
    return times


def told(runs, times, now):
    """The time that is left at a moment, from what processes have told until then."""
    ids = [f"{number:016x}" for number in range(len(runs))]
    planned, statuses, busy, spent = {}, {}, [], []
    for place, (kind, epochs, work, needs, seconds) in enumerate(runs):
        begins, ends, worker = times[place]
        planned[ids[place]] = Planned(id=ids[place], run="r", needs=[ids[need] for need in needs], kind=kind, cost=work)
        statuses[ids[place]] = "done" if ends <= now else "busy" if begins <= now else "waiting"
        if ends <= now:
            spent.append({kind: (work, seconds)})
        elif begins <= now:
            epoch = int(epochs * (now - begins) / seconds)
            heard = begins + seconds * epoch / max(epochs, 1)
            about = {"started": NOW + begins, "time": NOW + heard, "pid": worker, "epochs": epochs}
            busy.append(Training(run="r", id=ids[place], epoch=epoch, **about))
    return seconds_left(planned, statuses, busy, spent, NOW + now)


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize(("number", "within"), [(0, 0.25), (1, 0.35)], ids=["steady", "slow at first"])
def test_the_time_that_a_recorded_campaign_took_is_told_after_its_first_tenth(number, within, workers):
    # In the second one the machine was slower at first than later: nobody could know, and 34 % is the worst.
    runs = campaigns()[number]
    times = worked_through(runs, workers)
    end = max(ends for _, ends, _ in times.values())
    for tenth in range(1, 9):
        now = end * tenth / 10
        assert told(runs, times, now) == pytest.approx(end - now, rel=within), tenth


@pytest.mark.parametrize(
    ("runs", "busy"),
    [
        ([("a", 400.0)], []),
        ([("a", 400.0)], [training(epoch=0)]),
        ([("a", 400.0)], [training(started=NOW - 4)]),
        ([("a", 400.0), ("b", None)], [training()]),
    ],
    ids=["nobody trains", "no epoch is over", "four seconds", "a cost that nobody knows"],
)
def test_no_estimate_without_data(runs, busy):
    assert estimate(runs, busy) is None


def test_a_failed_run_is_not_left():
    assert estimate([("a", 400.0)] * 2, [training()], statuses={IDS[1]: "failed"}) == pytest.approx(30)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "less than a minute"),
        (40, "about 1 min"),
        (3600, "about 60 min"),
        (7800, "about 2 h 10 min"),
        (2e5, "about 55 h"),
    ],
)
def test_an_estimate_in_words(seconds, words):
    assert duration(seconds) == words


def test_a_process_tells_what_each_kind_took(ledger, tmp_path, monkeypatch):
    spent = []
    one = executor(ledger, tmp_path, watch=lambda spec: spent.append(Watcher(ledger).look().busy[0].spent), sleep=0.05)
    runs = [run_spec(seed=seed) for seed in range(4)]
    one.share(runs)
    for run in runs:
        one.obtain(run)
    assert spent[0] == {}
    ((kind, (_, seconds)),) = spent[3].items()
    assert kind == f"lenet5-digits pretrain {cost(runs[0], CATALOG).macs}"
    # Of the first run its first epoch, which loads and compiles, tells nothing.
    needed = cost(runs[0], CATALOG)
    first = 1 - 1 / needed.passes
    assert first > 0
    told = [known[kind][0] / needed.work for known in spent[1:]]
    assert told == pytest.approx([first, first + 1, first + 2]) and 0.1 <= seconds < 60


def test_an_estimate_never_costs_a_run(ledger, tmp_path, monkeypatch):
    def unknown(spec, catalog):
        raise RuntimeError("no such network")

    monkeypatch.setattr(bulletin, "cost", unknown)
    one = executor(ledger, tmp_path)
    one.share([run_spec()])
    one.obtain(run_spec())
    assert started(tmp_path / "log") == [run_spec().run_id]
    assert Watcher(ledger).look().counts == ["1 of 1 runs"]


def test_one_line_says_it_all():
    runs = {run_id: "done" if number < 3 else "waiting" for number, run_id in enumerate(IDS)}
    state = State(NOW, (training(),) * 6, runs, {"x": "failed", "y": "waiting"}, 400.0)
    doing = "; ".join(["run0 epoch 1/4"] * 4)
    assert state.line() == f"1 of 2 cells (1 failed), 3 of 20 runs, about 7 min left; now {doing}; and 2 more"
    assert State(NOW).line() == ""


# What a terminal shows


class Terminal:
    """What a terminal of so many columns shows, from what was written to it. Knows what rich and pytest use."""

    def __init__(self, columns=80):
        self.columns = columns
        self.rows = [[]]
        self.row = self.column = 0
        self.cursor_shown = True

    @property
    def text(self):
        return "\n".join("".join(row).rstrip() for row in self.rows).rstrip("\n")

    def feed(self, text):
        for control, number, kind, mark in re.findall(r"(\x1b\[([0-9;?]*)([A-Za-z]))|([^\x1b])", text, re.S):
            if control:
                self._control(number, kind)
            elif mark == "\r":
                self.column = 0
            elif mark == "\n":
                self._next_row()
            else:
                self._put(mark)

    def _control(self, number, kind):
        if kind == "A":
            self.row = max(0, self.row - int(number or 1))
        elif kind == "K":
            self.rows[self.row][0 if number == "2" else self.column :] = []
        elif kind == "J":
            self.rows[self.row][self.column :] = []
            self.rows[self.row + 1 :] = []
        elif number == "?25":
            self.cursor_shown = kind == "h"
        else:
            assert kind == "m", f"unknown control {number}{kind}"

    def _put(self, mark):
        if self.column == self.columns:
            self._next_row()
            self.column = 0
        row = self.rows[self.row]
        row.extend(" " * (self.column - len(row)))
        row[self.column : self.column + 1] = mark
        self.column += 1

    def _next_row(self):
        self.row += 1
        if self.row == len(self.rows):
            self.rows.append([])


class Pty:
    """A terminal and the program's end of it."""

    def __init__(self, columns=80, lines=24):
        self._outer, self.inner = os.openpty()
        fcntl.ioctl(self.inner, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.written = ""

    def read(self, patience=0.05):
        """Everything written until nothing comes for a while; False at the end."""
        while select.select([self._outer], [], [], patience)[0]:
            try:
                data = os.read(self._outer, 65536)
            except OSError:
                return False
            if not data:
                return False
            self.written += data.decode(errors="replace")
        return True

    def type(self, text):
        os.write(self._outer, text.encode())

    def close(self):
        for descriptor in (self._outer, self.inner):
            with contextlib.suppress(OSError):
                os.close(descriptor)


def shown(text, columns=80):
    terminal = Terminal(columns)
    terminal.feed(text)
    return terminal.text


def drawn(state, columns=80):
    """What drawing a state once writes."""
    pty = Pty(columns)
    with os.fdopen(os.dup(pty.inner), "w") as file:
        Screen(file).draw(state)
        pty.read()
    pty.close()
    return pty.written


STATE = State(NOW, (training(), training(1)), dict.fromkeys(IDS, "waiting"), {}, 400.0)
PIECES = st.sampled_from([".", "F", "\x1b[32m.\x1b[0m", "\n", "line\n", " [ 50%]\n", "wide " * 20, "\n\nnew ", "ä✓"])


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.one_of(PIECES, st.just(STATE), st.none()), max_size=25))
def test_everything_printed_is_there_exactly_once_and_no_bar_is_left(steps):
    """Text, drawings and clearings in any order: in the end the terminal shows the text as if nothing was drawn."""
    pty = Pty()
    with os.fdopen(os.dup(pty.inner), "w") as file:
        screen = Screen(file)
        for step in steps:
            if isinstance(step, str):
                screen.write(step)
                screen.flush()
            elif step is None:
                screen.clear()
            else:
                screen.draw(step)
            pty.read(0)
        screen.clear()
        pty.read()
    pty.close()
    terminal = Terminal()
    terminal.feed(pty.written)
    assert terminal.text == shown("".join(step for step in steps if isinstance(step, str)).replace("\n", "\r\n"))
    assert terminal.cursor_shown


def test_while_bars_are_drawn_the_open_line_stands_above_them():
    pty = Pty()
    with os.fdopen(os.dup(pty.inner), "w") as file:
        screen = Screen(file)
        screen.write("test_a.py .")
        screen.draw(STATE)
        screen.write("F.")
        screen.draw(STATE)
        pty.read()
        rows = shown(pty.written).splitlines()
        assert rows[0] == "test_a.py .F."
        assert rows[1].startswith("pruneaudit ") and rows[1].endswith("0 of 20 runs · about 7 min left")
        assert [row.split()[0] for row in rows[2:]] == ["run0", "run1"] and all("epoch 1/4" in row for row in rows[2:])
        screen.clear()
        screen.write(" [100%]\n")
    pty.read()
    pty.close()
    assert shown(pty.written) == "test_a.py .F. [100%]"


def test_few_lines_for_many_processes():
    state = State(NOW, tuple(training(number) for number in range(20)))
    rows = shown(drawn(state)).splitlines()
    assert len(rows) == 13 and rows[-1].strip() == "and 9 more"


SESSION = """
import json, os, pytest, time
from pathlib import Path
from pruneaudit.ledger.store import Ledger
from pruneaudit.plugin import live

live.PAUSE, live.LOOK, live.DRAW = 0.2, 0.1, 0.05
LEDGER = Path(__file__).parent / "ledger"

@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session):
    if hasattr(session.config, "workerinput"):
        return (yield)
    with live.Teller(session.config, Ledger(LEDGER)):
        return (yield)

@pytest.fixture
def train():
    def run(seconds=0.4):
        ledger = Ledger(LEDGER)
        for epoch in range(5):
            facts = {"run": f"run-{os.getpid()}", "id": "0" * 16, "epoch": epoch, "epochs": 5, "accuracy": 90.0 + epoch}
            ledger.report_progress([{**facts, "started": time.time() - 1}])
            time.sleep(seconds / 5)
        ledger.report_progress([])
    return run
"""
TESTS = """
import warnings, pytest
def test_before(): pass
def test_trains(train):
    train()
    print("captured", flush=True)
def test_fails(train):
    train()
    assert 0, "this one"
def test_warns(train):
    train()
    warnings.warn("careful")
@pytest.mark.skip
def test_skips(): pass
def test_last(train): train()
"""


#: What is imported already, and cannot be rewritten, is no news of the project's.
NO_NEWS = "ignore::pytest.PytestAssertRewriteWarning"


@pytest.fixture
def project(pytester):
    """A project of six tests whose session tells how far it is."""
    pytester.makeconftest(SESSION)
    pytester.makepyfile(test_it=TESTS)
    return pytester


def on_a_terminal(project, *arguments, python=sys.executable, interrupt_at=None, answers=None, columns=80, **environ):
    """Run pytest on a terminal: exit code, everything that was written, and the terminal in the end.

    What stands in for ``python`` hears no keys that interrupt, and changes nothing of what is shown.
    """
    pty = Pty(columns)
    hidden = ("PYTEST_", "CI", "BUILD_NUMBER", "NO_COLOR", "COLUMNS", "COV_")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    process = subprocess.Popen(
        [python, "-m", "pytest", "-p", "no:cacheprovider", "-W", NO_NEWS, *arguments],
        cwd=project.path,
        env=inherited | {"TERM": "xterm-256color"} | environ,
        stdin=pty.inner,
        stdout=pty.inner,
        stderr=pty.inner,
        start_new_session=True,
    )
    os.close(pty.inner)
    deadline = time.monotonic() + 240
    while pty.read():
        assert time.monotonic() < deadline, pty.written
        if interrupt_at is not None and interrupt_at in pty.written:
            process.send_signal(signal.SIGINT)
            interrupt_at = None
        for question in [text for text in answers or {} if text in pty.written]:
            pty.type(answers.pop(question))
    pty.close()
    terminal = Terminal(columns)
    terminal.feed(pty.written)
    return process.wait(240), pty.written, terminal


def assert_nothing_is_left(terminal):
    assert "━" not in terminal.text and "pruneaudit " not in terminal.text and "epoch" not in terminal.text
    assert terminal.cursor_shown


@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "workers"])
def test_bars_come_and_go_and_leave_pytests_own_output(project, warm, workers):
    code, written, terminal = on_a_terminal(project, *workers, python=warm)
    assert code == 1
    # Which epochs it is drawn at is a matter of time.
    assert "run-" in written and "━" in written and re.search(r"epoch [0-4]/5 · 9[0-4]\.0 %", written)
    assert_nothing_is_left(terminal)
    rows = terminal.text.splitlines()
    (dots,) = [row for row in rows if row.endswith("[100%]")]
    outcomes = dots.removeprefix("test_it.py ").split()[0]
    assert sorted(outcomes) == sorted("..F.s."), terminal.text
    assert dots == "test_it.py ..F.s." + "[100%]".rjust(62) or workers
    assert sum("1 failed, 4 passed, 1 skipped, 1 warning" in row for row in rows) == 1
    assert sum(row.strip() == "E       AssertionError: this one" or "this one" in row for row in rows) >= 1
    assert terminal.text.count("UserWarning: careful") == 1
    assert "captured" not in terminal.text, "what a test prints is captured as ever"


@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "workers"])
def test_long_lines_of_v_appear_once(project, warm, workers):
    code, written, terminal = on_a_terminal(project, "-v", *workers, python=warm, columns=40)
    assert code == 1 and "━" in written
    assert_nothing_is_left(terminal)
    joined = "".join(row.ljust(40) for row in terminal.text.splitlines())
    for name, outcome in (("trains", "PASSED"), ("fails", "FAILED"), ("skips", "SKIPPED"), ("last", "PASSED")):
        lines = re.findall(rf"test_it.py::test_{name}.{{0,60}}{outcome}|{outcome} *test_it.py::test_{name}", joined)
        assert len(lines) == (2 if outcome == "FAILED" else 1), terminal.text


def test_an_interrupt_leaves_the_terminal_as_it_was(project):
    code, written, terminal = on_a_terminal(project, interrupt_at="epoch 3/5")
    assert code == 2 and "━" in written
    assert_nothing_is_left(terminal)
    rows = terminal.text.splitlines()
    assert any("KeyboardInterrupt" in row for row in rows) and sum(" passed" in row for row in rows) == 1
    assert sum(row.startswith("test_it.py .") for row in rows) == 1


def test_an_internal_error_leaves_the_terminal_as_it_was(project, warm):
    project.path.joinpath("conftest.py").write_text(
        SESSION + "\ndef pytest_runtest_logreport(report):\n    if 'fails' in report.nodeid:\n        1 / 0\n"
    )
    code, written, terminal = on_a_terminal(project, python=warm)
    assert code == 3 and "━" in written
    assert_nothing_is_left(terminal)
    assert terminal.text.count("INTERNALERROR> ZeroDivisionError: division by zero") == 1


def test_a_debugger_has_the_terminal_to_itself(project, warm):
    code, written, _ = on_a_terminal(project, "-k", "trains", "--pdb", python=warm)
    assert code == 0 and "━" not in written
    test = "def test_it(train):\n    train()\n    breakpoint()\n    train()\n"
    project.makepyfile(test_it=test)
    code, written, terminal = on_a_terminal(project, answers={"(Pdb)": "c\n"})
    assert code == 0 and "━" in written.partition("(Pdb)")[0]
    assert "━" not in written.partition("(Pdb)")[2] and terminal.cursor_shown


PLAIN = {
    "quiet": (("-q",), {}),
    "dumb": ((), {"TERM": "dumb"}),
    "continuous integration": ((), {"CI": "true"}),
    "nothing captured": (("-s",), {}),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_lines_where_bars_would_be_in_the_way(project, warm, kind):
    arguments, environ = PLAIN[kind]
    code, written, terminal = on_a_terminal(project, *arguments, "--color=no", python=warm, **environ)
    assert code == 1 and "━" not in written and "\x1b" not in written
    assert "[pruneaudit 0.0 min] now run-" in terminal.text


@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "workers"])
def test_plain_lines_in_a_pipe(project, workers):
    outcome = project.runpytest_subprocess("-p", "no:cacheprovider", *workers)
    outcome.assert_outcomes(passed=4, failed=1, skipped=1, warnings=1)
    lines = [line for line in outcome.outlines if "[pruneaudit" in line]
    # Also while a test runs in this process, where pytest captures what is written.
    assert len(lines) >= 3
    doing = r"run-\d+ epoch \d/5 \d\d\.0 %"
    assert all(re.fullmatch(rf"\[pruneaudit \d\.\d min\] now {doing}(; {doing})?", line) for line in lines)
    dots = [re.match(r"(?:test_it.py )?([.Fs]+)(?: |$)", line) for line in outcome.outlines]
    assert sorted("".join(found[1] for found in dots if found)) == sorted("..F.s.")


def test_bars_need_a_terminal(pytestconfig):
    assert not wants_bars(pytestconfig, {"TERM": "xterm", "CI": "1"})


def test_a_real_session_tells_how_far_it_is(checkout):
    """With workers, into a pipe: what they train, of how many runs, and no estimate before there is data."""
    body = "    def score(self, layer, task):\n        import time\n        time.sleep(0.3)\n"
    head = "from pruneaudit import FilterScore\n\n\nclass Slow(FilterScore):\n    '''Slow.'''\n\n"
    checkout.write("slow.py", f"{head}{body}        return layer.weight.flatten(1).sum(dim=1)\n")
    checkout.write("often.py", "from pruneaudit.plugin import live\nlive.PAUSE = 0.1\n")
    selection = ("-k", "lenet5-digits and slow and r0.5", "--audit-protocols", "s3.2", "--audit-methods", "l1")
    outcome = checkout.pytest(
        "suite/test_cells.py", *selection, "--audit-method", "slow.py", "--audit-budget", "smoke",
        "--audit-seeds", "2", "-n2", "-p", "often",
    )  # fmt: skip
    assert outcome.code == 0, outcome.text
    lines = [line for line in outcome.lines if line.startswith("[pruneaudit ")]
    counted = r"\[pruneaudit \d\.\d min\] (\d of 2 cells, )?\d of 6 runs"
    assert lines and all(re.match(counted, line) for line in lines)
    doing = r"lenet5-digits-prune-slow-r0\.5-seed[01]-smoke"
    assert any(re.fullmatch(rf"{counted}(, .* left)?; now {doing}( epoch .*)?(; {doing}.*)?", line) for line in lines)
    assert "left" not in lines[0]
    assert not [path for path in (checkout.ledger / "progress").iterdir() if path.suffix == ".json"]
