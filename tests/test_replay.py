"""A campaign that decided seed by seed, played again: how long it takes with workers, and what it says of that.

Its runs were recorded under a plan of 40 seeds at most that gave nothing up. A plan of 20 stops everywhere within them.
"""

import json
from functools import cached_property, lru_cache
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import pytest

from pruneaudit.audit.forecast import forecast, rounds_expected
from pruneaudit.audit.rounds import Family
from pruneaudit.audit.sequential import FUTILITY, Plan
from pruneaudit.audit.statistics import seeds_needed
from pruneaudit.campaign.cost import Cost
from pruneaudit.ledger.progress import Planned, Training, seconds_left
from pruneaudit.ledger.schedule import AHEAD, Job, in_turn, makespan
from pruneaudit.workloads.metrics import ACCURACY

#: ``make suite`` on two cores: what it trained (kind, epochs, billions of MACs, calls, needs, seconds), and its cells.
RECORDED = json.loads((Path(__file__).parent / "fixtures" / "decided.json").read_text())
RUNS = [
    (kind, epochs, Cost(epochs, epochs, 0, round(macs * 1e9), 0, calls).work, needs, seconds)
    for kind, epochs, macs, calls, needs, seconds in RECORDED["runs"]
]
CELLS = {(protocol, method, seed): (value, runs) for protocol, method, seed, value, runs in RECORDED["cells"]}
PROTOCOLS = ("s2", "sx-b", "s3.2", "s4.1")
PAIRS = (("l1", "random"), ("l1", "tpp"), ("random", "tpp"))
AGAINST = (("l1", "scratch"), ("random", "scratch"), ("tpp", "scratch"))
#: As recorded, and as ``make suite`` plans today.
PLANS = {40: None, 20: FUTILITY}


@lru_cache
def families(most):
    """Plans of so many seeds at most."""
    plan = Plan(seeds=most, comparisons=3, margin=0.5, futility=PLANS[most])
    pairs = {protocol: AGAINST if protocol == "sx-b" else PAIRS for protocol in PROTOCOLS}
    return [
        Family(
            workload="convnet4-digits",
            protocol=protocol,
            labels=(),
            pairs=tuple((*pair, 0.9) for pair in pairs[protocol]),
            plan=plan,
        )
        for protocol in PROTOCOLS
    ]


#: What runs of a kind usually take.
USUAL = {kind: median(seconds for other, *_, seconds in RUNS if other == kind) for kind, *_ in RUNS}
#: Of each run of the second seed those that do the same for other seeds.
SAME = {
    (like, seed): run
    for (protocol, method, seed), (_, runs) in CELLS.items()
    for like, run in zip(CELLS[protocol, method, 1][1], runs, strict=True)
}


def same(like, seed):
    """What a run of the second seed is for another one; who was not recorded takes as long."""
    if (like, seed) not in SAME:
        kind, epochs, work, needs, seconds = RUNS[like]
        RUNS.append((kind, epochs, work, [same(need, seed) for need in needs], seconds))
        SAME[like, seed] = len(RUNS) - 1
    return SAME[like, seed]


def runs_of(cells):
    """Runs of some cells, parents first."""
    return list(
        dict.fromkeys(same(like, cell.seed) for cell in cells for like in CELLS[cell.protocol, cell.method, 1][1])
    )


#: Accuracies by protocol, method and seed, as they were measured.
MEASURED = {cell: value for cell, (value, _) in CELLS.items()}


def drawn(number, seeds=20):
    """Accuracies of another campaign: from the normal distribution of those that were measured together."""
    found = {}
    for place, protocol in enumerate(PROTOCOLS):
        methods = sorted({method for other, method, _ in CELLS if other == protocol})
        together = [seed for seed in range(40) if all((protocol, method, seed) in CELLS for method in methods)]
        known = np.array([[MEASURED[protocol, method, seed] for seed in together] for method in methods])
        random = np.random.default_rng((number, place))
        values = random.multivariate_normal(known.mean(axis=1), np.cov(known), seeds)
        for row, method in enumerate(methods):
            found |= {(protocol, method, seed): values[seed, row] for seed in range(seeds)}
    return found


class Campaign:
    """What is trained round by round for plans of so many seeds at most, when these accuracies come out."""

    def __init__(self, most, values):
        self.families, self.values = families(most), values

    def standing(self, family, seeds):
        """Where a family stands when so many seeds of its arms are measured."""

        def record_of(cell):
            value = self.values.get((cell.protocol, cell.method, cell.seed))
            return SimpleNamespace(value=value) if value is not None and cell.seed < seeds else None

        return family.standing(record_of, ACCURACY)

    @cached_property
    def rounds(self):
        """By round its table, what it wants, what it may take besides, and cells for who would wait, by their seed."""
        found = []
        for family in self.families:
            seeds = family.plan.before_any_stop
            while cells := (here := self.standing(family, seeds)).wanted():
                later = {}
                for cell in here.ahead(AHEAD):
                    later.setdefault(cell.seed, []).append(cell)
                found.append((family.protocol, runs_of(cells), likely_of(here), list(later.values())))
                assert max(cell.seed for cell in cells) >= seeds, "what was recorded was decided otherwise"
                seeds = max(cell.seed for cell in cells) + 1
        return found

    @cached_property
    def opening(self):
        """Runs of all seeds before which nothing can stop: the longest first, as the suite has them."""
        cells = list(dict.fromkeys(cell for family in self.families for cell in family.certain))
        return runs_of(sorted(cells, key=lambda cell: cell.method != "scratch"))

    @cached_property
    def selected(self):
        """By table the runs of the seeds that the suite selects."""
        fewest = seeds_needed()
        return {one.protocol: runs_of(cell for cell in one.certain if cell.seed < fewest) for one in self.families}

    @cached_property
    def foretold(self):
        """By table what is likely at first, when all that is selected of it is there, and before its first look."""
        stages = {"": 0, "selected": seeds_needed(), "certain": self.families[0].plan.before_any_stop}
        return {
            family.protocol: {stage: likely_of(self.standing(family, seeds)) for stage, seeds in stages.items()}
            for family in self.families
        }


def likely_of(standing):
    """Runs that a table may take, round by round, each with its chance."""
    return [with_chances(cells) for cells in standing.likely()]


def with_chances(cells):
    """Runs of some cells, each with the chance of the most probable one, as a campaign tells it."""
    found = {}
    for cell, chance in cells.items():
        found |= {run: max(chance, found.get(run, 0.0)) for run in runs_of([cell])}
    return found


class Replay:
    """A campaign with so many workers.

    Attributes:
        times: When each run began and ended, in seconds, and who trained it.
        said: What was known from which moment on: runs that are planned, and by family those that are likely.
        end: When all was decided.
    """

    def __init__(self, campaign, workers):
        self.times, self.said, self.end = {}, [], 0.0
        planned, wanted, ahead, here = dict.fromkeys(campaign.opening), campaign.opening, [], ""
        free, left, is_opening = dict.fromkeys(range(workers), 0.0), iter(campaign.rounds), True
        likely = {protocol: stages[""] for protocol, stages in campaign.foretold.items()}
        while True:
            done = {run for run, (_, end, _) in self.times.items() if end <= self.end}
            for protocol, stages in campaign.foretold.items() if is_opening else ():
                if set(campaign.selected[protocol]) <= done:
                    likely = {**likely, protocol: stages["selected"]}
            while set(wanted) <= done:
                if is_opening:
                    likely = {protocol: stages["certain"] for protocol, stages in campaign.foretold.items()}
                if (following := next(left, None)) is None:
                    return
                if here and here != following[0]:
                    likely = {**likely, here: []}
                is_opening, (here, wanted, besides, later) = False, following
                ahead = runs_of(cell for cells in later[: min(workers - 1, AHEAD)] for cell in cells)
                likely = {**likely, here: besides}
                planned |= dict.fromkeys(wanted)
            self.said.append((self.end, list(planned), likely))
            for worker in [worker for worker, end in free.items() if end <= self.end]:
                ready = (run for run in (*planned, *ahead) if run not in self.times and set(RUNS[run][3]) <= done)
                if (run := next(ready, None)) is not None:
                    self.times[run] = self.end, self.end + RUNS[run][4], worker
                    free[worker] = self.times[run][1]
            self.end = min(end for end in free.values() if end > self.end)

    def told(self, now):
        """The time that is left at a moment, as the bar tells it."""
        _, planned, likely = max((said for said in self.said if said[0] <= now), key=lambda said: said[0])
        every = dict.fromkeys(planned, 1.0)
        for runs in (runs for table in likely.values() for runs in table):
            every |= {run: max(chance, every.get(run, 0.0)) for run, chance in runs.items()}
        names = {run: f"{run:016x}" for run in (*every, *self.times)}
        facts, statuses, busy, spent = {}, {}, [], []
        for run, chance in every.items():
            kind, _, work, needs, _ = RUNS[run]
            known = {"needs": [names[n] for n in needs if n in names], "kind": kind, "cost": work, "chance": chance}
            facts[names[run]] = Planned(id=names[run], run="r", **known)
            begins, ends, _ = self.times.get(run, (now + 1, now + 1, 0))
            statuses[names[run]] = "done" if ends <= now else "busy" if begins <= now else "waiting"
        # As the bulletin tells it: the first epoch of a process's first run, which compiles, tells nothing.
        first = {}
        for run, (_, _, worker) in self.times.items():
            first.setdefault(worker, run)
        for run, (begins, ends, worker) in self.times.items():
            kind, epochs, work, _, seconds = RUNS[run]
            begun = int(run == first[worker])
            usual = USUAL[kind] if begun else seconds
            since = ends - usual * (1 - begun / max(epochs, 1))
            if ends <= now and (epochs or not begun):
                spent.append({kind: (work * (1 - begun / max(epochs, 1)), ends - since)})
            elif begins <= now < ends:
                epoch = max(int(epochs * (1 - (ends - now) / usual)), 0)
                heard = max(ends - usual * (1 - epoch / max(epochs, 1)), begins)
                about = {"started": begins, "since": max(since, begins), "begun": begun, "time": heard}
                busy.append(Training(run="r", id=names[run], epoch=epoch, epochs=epochs, pid=worker + 1, **about))
        workers = len({worker for begins, _, worker in self.times.values() if begins <= now})
        turns = in_turn(([[names[run] for run in runs] for runs in table] for table in likely.values()), workers)
        turns = {run: before for run, before in turns.items() if run not in {names[each] for each in planned}}
        return seconds_left(facts, statuses, busy, spent, now, workers, turns)


@lru_cache
def recorded(most):
    return Campaign(most, MEASURED)


@lru_cache
def others():
    return [Campaign(20, drawn(number)) for number in range(9)]


@lru_cache
def others_with(workers):
    return [Replay(campaign, workers) for campaign in others()]


@lru_cache
def replay(most, workers):
    return Replay(recorded(most), workers)


def test_workers_wait_little_for_the_next_seed():
    # As recorded, one seed after the other, two workers took 332 seconds: a quarter of their time they waited.
    assert replay(40, 2).times.keys() == replay(40, 1).times.keys()
    assert replay(40, 1).end == pytest.approx(sum(RUNS[run][4] for run in replay(40, 1).times))
    assert replay(40, 2).end < 0.54 * replay(40, 1).end


def test_in_this_campaign_nothing_is_trained_ahead_in_vain():
    ahead = {run for *_, later in recorded(40).rounds for cells in later[:1] for run in runs_of(cells)}
    assert len(ahead) > 100 and ahead <= set(replay(40, 1).times)


def told_by_truth(found):
    """What the bar tells after each tenth of a campaign, by what it then takes."""
    moments = [found.end * tenth / 10 for tenth in range(1, 10)]
    return [found.told(now) / (found.end - now) for now in moments]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_time_that_is_left_is_told_before_anything_is_known_of_a_difference(workers):
    found = replay(20, workers)
    for share in (0.01, 0.02, 0.03, 0.05, 0.08):
        told = found.told(found.end * share)
        # Nothing is told while a first run compiles: it would be ten times the truth.
        assert told is None or 1 / 1.5 < told / found.end / (1 - share) < 1.5, share
    assert all(0.75 < each < 1.25 for each in told_by_truth(found))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_where_comparisons_stop_is_chance_and_the_time_left_is_right_in_the_middle(workers):
    # Campaigns like the recorded one, whose comparisons stop elsewhere: of one alone the last tenths are mostly luck.
    told = [told_by_truth(found) for found in others_with(workers)]
    assert all(0.75 < median(of_tenth) < 1.25 for of_tenth in zip(*told, strict=True))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_plan_tells_the_whole_time_by_the_same_expectation(workers):
    forecasts = [one for family in families(20) for one in forecast(family, lambda _: None, ACCURACY)]
    tables = [[with_chances(cells) for cells in rounds] for rounds in rounds_expected(forecasts)]
    chances = {}
    for runs in (runs for table in tables for runs in table):
        chances |= {run: max(chance, chances.get(run, 0.0)) for run, chance in runs.items()}
    turns = in_turn([[list(map(str, runs)) for runs in table] for table in tables], workers)
    jobs = [
        Job(str(run), RUNS[run][4] * chance, (*map(str, RUNS[run][3]), *turns[str(run)]))
        for run, chance in chances.items()
    ]
    assert makespan(jobs, workers) == pytest.approx(replay(20, workers).end, rel=0.2)
    ends = [found.end for found in others_with(workers)]
    assert makespan(jobs, workers) == pytest.approx(median(ends), rel=0.2)
