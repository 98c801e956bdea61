"""What a selection would train, how long that takes and what it costs: for ``pruneaudit plan``."""

from __future__ import annotations

import contextlib
import heapq
import io
import math
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pruneaudit.errors import ConfigError

if TYPE_CHECKING:
    from pruneaudit.executors.calibration import Calibration
    from pruneaudit.plugin.session import AuditSession, ConformanceCase
    from pruneaudit.records import RunSpec


# Bytes of the largest dataset that is read for a plan: more takes minutes.
_LOADED = 2**30


class _Collector:
    """Takes the audit session, and the conformance checks, out of a pytest collection."""

    session: AuditSession | None = None
    checks: list[ConformanceCase]

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        from pruneaudit.plugin import audit_session
        from pruneaudit.plugin.session import ConformanceCase, item_target

        self.session = audit_session(session.config)
        targets = map(item_target, session.items)
        self.checks = [target for target in targets if isinstance(target, ConformanceCase)]


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


def makespan(jobs: Sequence[Job], workers: int) -> float:
    """Seconds until some workers have done all jobs, each taking the first one in the list that is ready.

    Args:
        jobs: The jobs, those that are needed before those that need them.
        workers: How many work side by side, at least 1.
    """
    ids = {job.id for job in jobs}
    waits = {job.id: {need for need in job.needs if need in ids} for job in jobs}
    dependants: dict[str, list[int]] = defaultdict(list)
    for place, job in enumerate(jobs):
        for need in waits[job.id]:
            dependants[need].append(place)
    ready = [place for place, job in enumerate(jobs) if not waits[job.id]]
    busy: list[tuple[float, int]] = []
    now = 0.0
    while ready or busy:
        while ready and len(busy) < workers:
            place = heapq.heappop(ready)
            heapq.heappush(busy, (now + jobs[place].seconds, place))
        now, done = heapq.heappop(busy)
        for place in dependants[jobs[done].id]:
            waits[jobs[place].id].discard(jobs[done].id)
            if not waits[jobs[place].id]:
                heapq.heappush(ready, place)
    return now


def make_plan(
    expression: str, options: list[str], workers: int = 1, probe: bool = True, price: float | None = None
) -> dict[str, Any]:
    """Plan a selection.

    Args:
        expression: As pytest's ``-k``.
        options: ``--audit-…`` options of the suite.
        workers: Workers to estimate the time for.
        probe: Whether to estimate the time, which takes ten seconds where the ledger does not tell it.
        price: What an hour of a device costs: of the machine, or of each GPU.

    Returns:
        Totals, and a row for each workload and stage. Stored runs cost nothing any more.

    Raises:
        ConfigError: The selection is wrong or empty.
    """
    if price is not None and not (math.isfinite(price) and price >= 0):
        raise ConfigError(f"--price: expected what an hour costs, not {price:g}")
    if price is not None and not probe:
        raise ConfigError("--price needs an estimate of the time; leave out --no-probe")
    session, checks = _collect(expression, options)
    # Whatever this process did until here, the one that starts the workers does as well: it needs no torch.
    collecting = time.process_time()
    from pruneaudit.campaign import Campaign
    from pruneaudit.executors.cost import cost
    from pruneaudit.executors.local import LocalExecutor
    from pruneaudit.stages import Stages

    session.runtime.prepare()
    executor = LocalExecutor(session.ledger, Stages(session.ledger, session.catalog, session.runtime), session.id)
    campaign = Campaign(session.catalog, session.ledger, session.settings, executor)
    runs = campaign.runs(session.selected)
    missing = [run for run in runs if session.ledger.find(run) is None]
    if probe and (missing or checks):
        _load(session, {run.workload for run in missing} | {check.workload for check in checks})
    started = time.process_time()
    calibration = _calibrated(session, missing, checks) if probe and (missing or checks) else None
    rows: dict[tuple[str, str], dict[str, Any]] = defaultdict(
        lambda: {"runs": 0, "stored": 0, "epochs": 0.0, "training_macs": 0, "seconds": 0.0, "basis": set()}
    )
    jobs: list[Job] = []
    for check in checks:
        row = rows[check.workload, "conformance"]
        row["runs"] += 1
        if calibration is not None:
            jobs.append(Job(check.id, calibration.check(check.check, check.method, check.workload)))
            row["seconds"] += jobs[-1].seconds
            row["basis"].add("scaled")
    open_ids = {run.run_id for run in missing}
    for run in runs:
        row = rows[run.workload, run.stage]
        row["runs"] += 1
        if run.run_id not in open_ids:
            row["stored"] += 1
            continue
        needed = cost(run, session.catalog)
        row["epochs"] += needed.epochs
        row["training_macs"] += needed.training_macs
        if calibration is not None:
            estimate = calibration.estimate(run)
            jobs.append(Job(run.run_id, estimate.seconds, run.needs))
            row["seconds"] += estimate.seconds
            row["basis"].add(estimate.basis)
    stages = [
        {
            "workload": workload,
            "stage": stage,
            **{name: value for name, value in row.items() if name not in ("seconds", "basis")},
            "minutes": row["seconds"] / 60 if probe else None,
            "basis": ", ".join(sorted(row["basis"])),
        }
        for (workload, stage), row in rows.items()
    ]
    trained = [row for row in stages if row["stage"] != "conformance"]
    facts = {
        "cells": len(session.selected),
        "checks": len(checks),
        "runs": sum(row["runs"] for row in trained),
        "stored": sum(row["stored"] for row in trained),
        "epochs": sum(row["epochs"] for row in trained),
        "training_macs": sum(row["training_macs"] for row in trained),
        "stages": stages,
    }
    times: dict[str, Any] = dict.fromkeys(("workers", "minutes", "work_minutes", "device_hours", "cost"))
    if probe:
        # One thread per run, and one run per GPU: more workers than that do not finish earlier.
        places = _places(session.device)
        working = min(workers, places)
        start = started + (calibration.first if calibration is not None else 0.0)
        start += collecting if workers > 1 else 0.0
        seconds = start + makespan(jobs, working)
        hours = seconds / 3600 * (working if session.device == "cuda" else 1)
        times = {
            "workers": working,
            "minutes": seconds / 60,
            "work_minutes": (sum(job.seconds for job in jobs) + start) / 60,
            "device_hours": hours,
            "cost": None if price is None else hours * price,
        }
    return facts | times


def _collect(expression: str, options: list[str]) -> tuple[AuditSession, list[ConformanceCase]]:
    """Collect what pytest would run.

    Raises:
        ConfigError: The selection is wrong or empty.
    """
    from pruneaudit.catalog import suite_arguments

    collector = _Collector()
    output = io.StringIO()
    arguments = [
        *suite_arguments(),
        "--collect-only",
        "-q",
        "-p",
        "no:xdist",
        "-p",
        "no:cacheprovider",
        "-k",
        expression,
    ]
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        status = pytest.main([*arguments, *options], plugins=[collector])
    if status == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise ConfigError(f"nothing is selected by -k '{expression}'")
    if status != pytest.ExitCode.OK or collector.session is None:
        lines = [line for line in output.getvalue().splitlines() if line.strip()]
        # argparse puts its usage first and the reason behind "error: "; pytest puts the reason behind "ERROR: ".
        reason = next((line for line in lines if ": error: " in line), "")
        reason = reason or next((line for line in lines if line.startswith("ERROR")), "ERROR: collection failed")
        raise ConfigError(reason.rpartition(": error: ")[2].removeprefix("ERROR: "))
    return collector.session, collector.checks


def _load(session: AuditSession, workloads: set[str]) -> None:
    """Read the data that is there, as each process of a session does before it trains."""
    from pruneaudit.errors import AuditError
    from pruneaudit.workloads.datasets import facts, load

    for name in sorted(workloads):
        data = session.catalog.workload(name).data
        sizes = facts(data)
        if (sizes.train + sizes.test) * sizes.height**2 * sizes.channels < _LOADED:
            with contextlib.suppress(AuditError):  # it may be planned where it cannot run
                load(data, session.runtime.data_root)


def _calibrated(session: AuditSession, runs: Sequence[RunSpec], checks: Sequence[ConformanceCase]) -> Calibration:
    """What the ledger knows of such runs, and what a probe tells of the rest."""
    from pruneaudit.executors.calibration import Calibration, known

    name = session.runtime.environment()["device"]
    calibration = Calibration(
        session.catalog, session.device, known(session.ledger.runs(), session.catalog, session.device, name)
    )
    calibration.probe(runs, [(check.method, check.workload) for check in checks])
    return calibration


def _places(device: str) -> int:
    """How many runs can be at work side by side: GPUs, or cores that this process may use."""
    from pruneaudit.plugin.device import visible_gpus

    if device == "cuda":
        return max(len(visible_gpus()), 1)
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
