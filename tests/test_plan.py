"""How long a selection takes, said before it starts: the schedule, the lines, the ledger, and a real campaign."""

import os
import time
from statistics import median

import arena
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruneaudit.campaign import calibration as calibrations
from pruneaudit.campaign import plan as plans
from pruneaudit.campaign.busy import busy
from pruneaudit.campaign.calibration import Calibration, Estimate, Speed, decisions, known, scaled
from pruneaudit.campaign.executors.local import LocalExecutor
from pruneaudit.campaign.plan import Check, Work, check_price, make_plan
from pruneaudit.campaign.planner import Campaign
from pruneaudit.campaign.stages import Stages
from pruneaudit.catalog.cells import Cell
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.settings import Settings
from pruneaudit.errors import ConfigError
from pruneaudit.ledger.schedule import Job, makespan
from pruneaudit.ledger.store import Ledger
from pruneaudit.method.conformance import METHOD_CHECKS, check
from pruneaudit.plugin.collection import collect
from pruneaudit.training.runtime import Runtime
from pruneaudit.workloads.data import load

WORKLOAD = "lenet5-digits"
CATALOG = Catalog()
CELLS = [Cell(WORKLOAD, "s3.2", method, 0.5, 0) for method in ("l1", "tpp")]
ATTEMPTS = 3


def campaign_in(folder, backend="torch"):
    ledger = Ledger(folder)
    executor = LocalExecutor(ledger, Stages(ledger, CATALOG, Runtime()), "session")
    return Campaign(CATALOG, ledger, Settings("smoke", backend=backend), executor)


# Schedules


@st.composite
def graphs(draw):
    """Jobs of whole seconds that need some of those before them."""
    durations = draw(st.lists(st.integers(0, 9), min_size=1, max_size=12))
    return [
        Job(str(place), seconds, tuple(str(need) for need in range(place) if draw(st.booleans())))
        for place, seconds in enumerate(durations)
    ]


def critical_path(jobs):
    ends = {}
    for job in jobs:
        ends[job.id] = job.seconds + max((ends[need] for need in job.needs), default=0)
    return max(ends.values())


@given(graphs(), st.integers(1, 5))
def test_a_schedule_is_no_shorter_than_its_longest_chain_and_no_longer_than_one_worker(jobs, workers):
    work = sum(job.seconds for job in jobs)
    found = makespan(jobs, workers)
    assert max(critical_path(jobs), work / workers) <= found <= work
    # Graham 1969: list scheduling is within (1 - 1/workers) critical paths of the work evenly spread.
    assert found <= work / workers + (1 - 1 / workers) * critical_path(jobs) + 1e-9
    assert makespan(jobs, 1) == work
    assert makespan(jobs, len(jobs)) == critical_path(jobs)


def test_parents_come_before_children_and_workers_share_the_rest():
    base = Job("base", 4.0)
    prunes = [Job(f"prune{n}", 1.0, ("base",)) for n in range(4)]
    retrains = [Job(f"retrain{n}", 3.0, (f"prune{n}",)) for n in range(4)]
    assert makespan([base, *prunes, *retrains], 2) == 4 + 2 * (1 + 3)
    assert makespan([base, *prunes, *retrains], 9) == 4 + 1 + 3


def test_what_is_finished_already_keeps_nobody_waiting():
    assert makespan([Job("retrain", 3.0, ("stored",))], 2) == 3.0
    assert makespan([], 2) == 0.0


# Lines


def test_networks_between_timed_ones_lie_on_a_line():
    points = {macs: Speed(1 + 2 * macs, 3 * macs, 0.5, macs) for macs in (10, 20, 40)}
    assert vars(scaled(points, 30)) == pytest.approx(vars(Speed(61, 90, 0.5, 30)))


def test_one_timed_network_scales_with_macs_and_nothing_takes_less_than_no_time():
    assert scaled({10: Speed(1.0, 2.0, 3.0, 4.0)}, 5) == Speed(0.5, 1.0, 1.5, 2.0)
    assert scaled({10: Speed(1.0, 1.0, 1.0, 1.0), 20: Speed(3.0, 3.0, 3.0, 3.0)}, 1).train == 0.0
    with pytest.raises(ValueError, match="nothing was timed"):
        scaled({}, 5)


# Conformance


TRAINS = """from pruneaudit import Budget, TrainedMethod


class Trains(TrainedMethod):
    \"\"\"Made for a test.\"\"\"

    def budget(self, workload):
        return Budget(steps=3)

    def prune(self, task):
        task.train()
        return task.keep({layer.name: layer.weight.flatten(1).norm(dim=1) for layer in task.layers})
"""


@pytest.mark.parametrize("method", ["l1", "random", "trains"])
def test_the_decisions_of_every_conformance_check_are_counted(monkeypatch, tmp_path, method):
    from pruneaudit.method import conduct

    (tmp_path / "trains.py").write_text(TRAINS)
    catalog = Catalog(extra_methods=(str(tmp_path / "trains.py"),))
    calls = []
    real = conduct.decide
    monkeypatch.setattr(conduct, "decide", lambda method, task: calls.append(task._most) or real(method, task))
    workload = catalog.workload(WORKLOAD).scaled("smoke")
    steps = catalog.method(method).create().budget(workload).steps
    for name in METHOD_CHECKS:
        calls.clear()
        check(name, catalog, method, WORKLOAD, Runtime())
        begun = sum(most is not None for most in calls)
        assert decisions(name, method, steps, len(workload.ratios)) == (len(calls) - begun, begun), name


# Prediction and truth


def test_a_real_campaign_takes_what_was_predicted_within_30_percent(tmp_path):
    # Processor time, which others on the machine change least; of a busy machine still by more than 30 % now and then.
    load(CATALOG.workload(WORKLOAD).data)
    ratios = []
    for attempt in range(ATTEMPTS):
        campaign = campaign_in(tmp_path / str(attempt))
        runs = campaign.runs(CELLS)
        # A slow machine, on which coverage traces besides, needs longer until every network was timed.
        for seconds in (3.0, 10.0, 30.0):
            calibration = Calibration(CATALOG, "cpu")
            calibration.probe(runs, seconds=seconds)
            estimates = [calibration.estimate(run) for run in runs]
            if all(estimate.basis == "timed" for estimate in estimates):
                break
        assert {estimate.basis for estimate in estimates} == {"timed"}
        started = time.process_time()
        for cell in CELLS:
            assert campaign.obtain(cell).error == ""
        took = time.process_time() - started
        ratios.append(sum(estimate.seconds for estimate in estimates) / took)
        if sum(abs(ratio - 1) <= 0.3 for ratio in ratios) == 2:
            break  # the median of three will be, too
    assert abs(median(ratios) - 1) <= 0.3, f"predicted / measured: {ratios}"


def test_what_the_ledger_knows_is_not_probed(tmp_path, monkeypatch):
    campaign = campaign_in(tmp_path)
    cells = [Cell(WORKLOAD, "s3.2", "l1", 0.5, seed) for seed in (0, 1)]
    assert campaign.obtain(cells[0]).error == ""
    records = list(campaign.ledger.runs())
    device = records[0].environment["device"]
    calibration = Calibration(CATALOG, "cpu", known(records, CATALOG, "cpu", device))
    monkeypatch.setattr(calibrations, "place", None)  # nothing is built
    runs = campaign.runs(cells[1:])
    calibration.probe(runs)
    for run, record in zip(runs, (campaign.ledger.find(run) for run in campaign.runs(cells[:1])), strict=True):
        estimate = calibration.estimate(run)
        assert (estimate.basis, estimate.seconds) == ("ledger", pytest.approx(record.seconds))
    # Other devices, and runs that were killed in between, tell nothing.
    assert known(records, CATALOG, "cpu", "another one") == {}
    assert known([record.model_copy(update={"resumed": 1}) for record in records], CATALOG, "cpu", device) == {}


@pytest.mark.parametrize(
    ("line", "wrong", "why"),
    [
        ('model = "nets.py:Tiny"', 'model = "nets.py:Small"', r"model 'nets.py:Small': unknown name 'Small'"),
        ('prunable = ["0"]', 'prunable = ["conv*"]', r"prunable pattern 'conv\*' matches no layer; layers: 0, 3"),
        ("seeds = [0]", "seeds = [0, 0]", "seeds: expected whole numbers from 0 on, each once"),
    ],
)
def test_what_cannot_be_planned_says_why(tmp_path, line, wrong, why):
    """It was a plan of nothing to train."""
    for name, text in arena.FILES.items():
        (tmp_path / name).write_text(text.replace(line, wrong), encoding="utf-8")
    options = ["--audit-workload", str(tmp_path / "tiny.toml"), "--audit-ledger", str(tmp_path / "ledger")]
    with pytest.raises(ConfigError, match=why):
        make_plan(collect("tiny and s3.2 and l1", [*options, "--audit-methods", "l1"])[0], probe=False)


def test_a_busy_machine_takes_longer():
    cores = len(os.sched_getaffinity(0))
    assert busy(3 * cores, 0.2) > 2.0 and busy(1, 0.05) >= 1.0


def test_the_plan_is_for_the_machine_as_busy_as_it_is(tmp_path, monkeypatch):
    """What is timed now is slowed down by what else runs; what the ledger tells has taken that long already."""
    campaign = campaign_in(tmp_path)
    told = iter([1.0, 4.0, 4.0])
    monkeypatch.setattr(plans, "busy", lambda workers: next(told))
    monkeypatch.setattr(plans, "_load", lambda work, workloads: None)

    def planned(basis):
        class Known:
            first = 0.0

            def estimate(self, run):
                return Estimate(30.0, basis)

            def check(self, *_):
                return 12.0

        monkeypatch.setattr(plans, "_calibrated", lambda work, runs: Known())
        checks = [Check("describes", "describes", "l1", WORKLOAD)]
        work = Work(CATALOG, campaign.ledger, campaign.settings, Runtime(), 0, CELLS[:1], checks, 0.0)
        return make_plan(work)

    assert len(campaign.runs(CELLS[:1])) == 3
    quiet, crowded, stored = planned("timed"), planned("timed"), planned("ledger")
    assert quiet["idle_minutes"] == pytest.approx(quiet["minutes"])
    assert crowded["busy"] == 4.0 and crowded["minutes"] == pytest.approx(4 * crowded["idle_minutes"])
    # Beside the runs there is what this process has spent until here, the same in both.
    assert 60 * (crowded["minutes"] - stored["minutes"]) == pytest.approx(3 * 3 * 30, abs=4)


@pytest.mark.parametrize(("price", "probe"), [(-1.0, True), (float("nan"), True), (1.0, False)])
def test_a_price_that_cannot_be_used_is_refused_before_anything_is_collected(price, probe):
    with pytest.raises(ConfigError, match="--price"):
        check_price(price, probe)
