"""A campaign that decided seed by seed, played again: how long it takes with workers, and what it says of that."""

import json
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from pruneaudit.audit.rounds import Family
from pruneaudit.audit.sequential import Plan
from pruneaudit.campaign.cost import Cost
from pruneaudit.ledger.progress import Planned, Training, seconds_left
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
FAMILIES = [
    Family(
        workload="convnet4-digits",
        protocol=protocol,
        labels=(),
        pairs=tuple((*pair, 0.9) for pair in (AGAINST if protocol == "sx-b" else PAIRS)),
        plan=Plan(seeds=40, comparisons=3, margin=0.5),
    )
    for protocol in PROTOCOLS
]
OPENING = 6
#: What the second of two workers was given ahead, in all rounds.
AHEAD = set()


def runs_of(cells):
    """Runs of some cells, parents first; what was not recorded was not taken."""
    known = [CELLS[key][1] for cell in cells if (key := (cell.protocol, cell.method, cell.seed)) in CELLS]
    return list(dict.fromkeys(run for runs in known for run in runs))


def standing(family, seeds):
    """Where a family stands when so many seeds of its arms are measured."""

    def record_of(cell):
        found = CELLS.get((cell.protocol, cell.method, cell.seed))
        return SimpleNamespace(value=found[0]) if found is not None and cell.seed < seeds else None

    return family.standing(record_of, ACCURACY)


def likely_of(standing):
    return None if (cells := standing.likely()) is None else runs_of(cells)


@lru_cache(maxsize=1)
def rounds():
    """Round by round: runs that are wanted, runs for who would wait, and by family what is likely besides."""
    opening = [cell for family in FAMILIES for arm in family.comparisons for cell in arm.cells() if cell.seed < OPENING]
    # The longest first, as the suite has them.
    opening.sort(key=lambda cell: cell.method != "scratch")
    found = [(runs_of(opening), [], dict.fromkeys(PROTOCOLS))]
    likely = {family.protocol: likely_of(standing(family, OPENING)) for family in FAMILIES}
    for family in FAMILIES:
        seeds = OPENING
        while cells := (here := standing(family, seeds)).wanted():
            likely = {**likely, family.protocol: likely_of(here)}
            later = here.ahead(1)
            AHEAD.update((cell.protocol, cell.method, cell.seed) for cell in later)
            found.append((runs_of(cells), runs_of(later), likely))
            assert max(cell.seed for cell in cells) >= seeds, "what was recorded was decided otherwise"
            seeds = max(cell.seed for cell in cells) + 1
        likely = {**likely, family.protocol: []}
    return found


class Replay:
    """The campaign with so many workers.

    Attributes:
        times: When each run began and ended, in seconds, and who trained it.
        said: What was known from which moment on: runs that are planned, and by family those that are likely.
        end: When all was decided.
    """

    def __init__(self, workers):
        self.times, self.said, self.end = {}, [], 0.0
        planned = dict.fromkeys([*rounds()[0][0], *(run for family in FAMILIES for run in runs_of(family.certain))])
        free, left = dict.fromkeys(range(workers), 0.0), iter(rounds())
        wanted, ahead, likely = next(left)
        while True:
            done = {run for run, (_, end, _) in self.times.items() if end <= self.end}
            while set(wanted) <= done:
                if (following := next(left, None)) is None:
                    return
                wanted, ahead, likely = following
                planned |= dict.fromkeys(wanted)
            self.said.append((self.end, list(planned), likely))
            for worker in [worker for worker, end in free.items() if end <= self.end]:
                ready = (run for run in (*planned, *ahead) if run not in self.times and set(RUNS[run][3]) <= done)
                if (run := next(ready, None)) is not None:
                    self.times[run] = self.end, self.end + RUNS[run][4], worker
                    free[worker] = self.times[run][1]
            self.end = min(end for end in free.values() if end > self.end)

    def told(self, now):
        """The time that is left at a moment, as the bar tells it, and whether it is the least."""
        _, planned, likely = max((said for said in self.said if said[0] <= now), key=lambda said: said[0])
        every = dict.fromkeys([*planned, *(run for runs in likely.values() for run in runs or ())])
        names = {run: f"{run:016x}" for run in (*every, *self.times)}
        facts, statuses, busy, spent = {}, {}, [], []
        for run in every:
            kind, _, work, needs, _ = RUNS[run]
            facts[names[run]] = Planned(
                id=names[run], run="r", needs=[names[n] for n in needs if n in names], kind=kind, cost=work
            )
            begins, ends, _ = self.times.get(run, (now + 1, now + 1, 0))
            statuses[names[run]] = "done" if ends <= now else "busy" if begins <= now else "waiting"
        for worker in {worker for *_, worker in self.times.values()}:
            own = [run for run, (_, ends, by) in self.times.items() if by == worker and ends <= now]
            # As the bulletin tells it: the first run counts as long as no other of its kind is over.
            again = own and RUNS[own[0]][0] in {RUNS[run][0] for run in own[1:]}
            spent += [{RUNS[run][0]: (RUNS[run][2], RUNS[run][4])} for run in own[bool(again) :]]
        for run, (begins, ends, worker) in self.times.items():
            _, epochs, _, _, seconds = RUNS[run]
            if begins <= now < ends:
                epoch = int(epochs * (now - begins) / seconds)
                heard = begins + seconds * epoch / max(epochs, 1)
                about = {"started": begins, "time": heard, "pid": worker + 1, "epochs": epochs}
                busy.append(Training(run="r", id=names[run], epoch=epoch, **about))
        workers = len({worker for begins, _, worker in self.times.values() if begins <= now})
        return seconds_left(facts, statuses, busy, spent, now, workers), None in likely.values()


@lru_cache
def replay(workers):
    return Replay(workers)


def test_workers_wait_little_for_the_next_seed():
    # As recorded, one seed after the other, two workers took 332 seconds: a quarter of their time they waited.
    assert replay(2).times.keys() == replay(1).times.keys()
    assert replay(1).end == pytest.approx(sum(RUNS[run][4] for run in replay(1).times))
    assert replay(2).end < 0.54 * replay(1).end


def test_in_this_campaign_nothing_is_trained_ahead_in_vain():
    rounds()
    assert len(AHEAD) > 60 and CELLS.keys() >= AHEAD


@pytest.mark.parametrize("workers", [1, 2])
def test_the_time_that_is_left_is_told_when_the_first_seeds_are_there(workers):
    found = replay(workers)
    for tenth in range(1, 9):
        now = found.end * tenth / 10
        told, is_least = found.told(now)
        # Before every arm has its first seeds nobody knows how many more there will be, and it says so.
        assert is_least == (tenth < 5)
        assert told < found.end - now if is_least else told == pytest.approx(found.end - now, rel=0.25), tenth
