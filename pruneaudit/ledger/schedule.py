"""How long some workers take for jobs that wait for each other: for plans, and for the time that is left."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

#: Rounds of seeds that workers train at most before theirs has come: what a comparison that stops first does not take.
AHEAD = 2


@dataclass(frozen=True)
class Job:
    """Something that a worker does in one go.

    Attributes:
        id: Its id.
        seconds: How long it takes.
        needs: Ids of the jobs that must be finished before it; others than the given ones are finished.
    """

    id: str
    seconds: float
    needs: tuple[str, ...] = ()


def in_turn(tables: Iterable[Sequence[Sequence[str]]], workers: int) -> dict[str, tuple[str, ...]]:
    """What jobs wait for that come round by round: that a round is over, less those that workers do ahead.

    Args:
        tables: Ids by table and round; one table comes after the other.
        workers: How many work side by side.

    Returns:
        By id those of the jobs that must be finished before it.
    """
    found: dict[str, tuple[str, ...]] = {}
    before: tuple[str, ...] = ()
    for rounds in tables:
        ends = [*[before] * (1 + max(0, min(workers - 1, AHEAD))), *map(tuple, rounds)]
        for number, ids in enumerate(rounds):
            for each in ids:
                found.setdefault(each, ends[number])
        before = ends[-1]
    return found


def makespan(jobs: Sequence[Job], workers: int, begun: Sequence[Job] = ()) -> float:
    """Seconds until some workers have done all jobs, each taking the first one in the list that is ready.

    Args:
        jobs: The jobs, those that are needed before those that need them.
        workers: How many work side by side, at least 1.
        begun: Jobs that workers are at already, with the seconds that they still take: at most one for each worker.
    """
    ids = {job.id for job in (*jobs, *begun)}
    waits = {job.id: {need for need in job.needs if need in ids} for job in jobs}
    dependants: dict[str, list[int]] = defaultdict(list)
    for place, job in enumerate(jobs):
        for need in waits[job.id]:
            dependants[need].append(place)
    ready = [place for place, job in enumerate(jobs) if not waits[job.id]]
    busy = [(job.seconds, job.id) for job in begun]
    heapq.heapify(busy)
    now = 0.0
    while ready or busy:
        while ready and len(busy) < workers:
            place = heapq.heappop(ready)
            heapq.heappush(busy, (now + jobs[place].seconds, jobs[place].id))
        now, done = heapq.heappop(busy)
        for place in dependants[done]:
            waits[jobs[place].id].discard(done)
            if not waits[jobs[place].id]:
                heapq.heappush(ready, place)
    return now
