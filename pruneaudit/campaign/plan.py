"""What a selection would train, how long that takes and what it costs: for ``pruneaudit plan``."""

from __future__ import annotations

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pruneaudit.campaign.busy import busy
from pruneaudit.campaign.calibration import Calibration, known
from pruneaudit.campaign.cost import cost
from pruneaudit.campaign.executors.local import LocalExecutor
from pruneaudit.campaign.footprint import Footprint, footprint
from pruneaudit.campaign.planner import Campaign, check_base
from pruneaudit.campaign.stages import Stages
from pruneaudit.catalog.cells import Cell
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.settings import Settings
from pruneaudit.cores import cores
from pruneaudit.errors import AuditError, ConfigError
from pruneaudit.ledger.records import RunSpec
from pruneaudit.ledger.schedule import Job, in_turn, makespan
from pruneaudit.ledger.store import Ledger
from pruneaudit.pruning import shapes
from pruneaudit.pruning.layers import AUTO
from pruneaudit.training.runtime import Runtime
from pruneaudit.workloads.data import facts, load

# Bytes of the largest dataset that is read for a plan: more takes minutes.
_LOADED = 2**30


@dataclass(frozen=True)
class Check:
    """A conformance check: one method on a workload."""

    id: str
    check: str
    method: str
    workload: str


@dataclass(frozen=True)
class Work:
    """What a session would do, and where.

    Attributes:
        catalog: Methods, protocols and workloads.
        ledger: Store of records.
        settings: Budget, precision, backend and base model.
        runtime: Device and data.
        gpus: How many GPUs there are.
        cells: What would be measured.
        checks: Conformance checks that would run.
        collecting: Seconds of this process until here; the one that starts workers spends as many.
        populations: Networks of studies that would be trained, a row for each panel; no part of any estimate.
        rounds: By table of planned comparisons what it may take, round by round, each cell with its chance.
    """

    catalog: Catalog
    ledger: Ledger
    settings: Settings
    runtime: Runtime
    gpus: int
    cells: Sequence[Cell]
    checks: Sequence[Check]
    collecting: float
    populations: Sequence[Mapping[str, Any]] = ()
    rounds: Sequence[Sequence[Mapping[Cell, float]]] = ()


def check_price(price: float | None, probe: bool) -> None:
    """See that a price can be used.

    Raises:
        ConfigError: It is no price, or there is no time to multiply it with.
    """
    if price is not None and not (math.isfinite(price) and price >= 0):
        raise ConfigError(f"--price: expected what an hour costs, not {price:g}")
    if price is not None and not probe:
        raise ConfigError("--price needs an estimate of the time; leave out --no-probe")


def make_plan(work: Work, workers: int = 1, probe: bool = True, price: float | None = None) -> dict[str, Any]:
    """Plan what a session would do.

    Args:
        work: What that is.
        workers: Workers to estimate the time for.
        probe: Whether to estimate the time, which takes ten seconds where the ledger does not tell it.
        price: What an hour of a device costs: of the machine, or of each GPU.

    Returns:
        Totals, and a row for each workload and stage. Stored runs cost nothing any more. ``minutes`` is for this
        machine as busy as it is now, ``idle_minutes`` for one that does nothing else; what the ledger tells took so
        long as it was then. ``unplanned`` says why cells cannot be planned, and how many.

    Raises:
        ConfigError: No cell can be planned; the message is the first one's reason.
    """
    work.runtime.prepare()
    executor = LocalExecutor(work.ledger, Stages(work.ledger, work.catalog, work.runtime), "plan")
    campaign = Campaign(work.catalog, work.ledger, work.settings, executor)
    for name in {cell.workload for cell in work.cells}:
        # Cells of a wrong base cannot be planned and would be left out without a word.
        check_base(work.settings, work.catalog.workload(name).scaled(work.settings.budget))
    counted, unplanned = campaign.planned(work.cells)
    if work.cells and not counted:
        raise ConfigError(next(iter(unplanned)))
    tables = [[campaign.chances(cells) for cells in rounds] for rounds in work.rounds]
    # Of seeds that are looked at one after the other each counts by its chance, and what is expected is counted.
    chances: dict[str, float] = {}
    for run, chance in (each for rounds in tables for runs in rounds for each in runs):
        chances[run.run_id] = max(chance, chances.get(run.run_id, 0.0))
    perhaps = {run.run_id: run for rounds in tables for runs in rounds for run, _ in runs}
    runs = list(({run.run_id: run for run in counted} | perhaps).values())
    missing = [run for run in runs if work.ledger.find(run) is None]
    checks = work.checks
    if probe and (missing or checks):
        _load(work, {run.workload for run in missing} | {check.workload for check in checks})
    started = time.process_time()
    calibration = _calibrated(work, missing) if probe and (missing or checks) else None
    rows: dict[tuple[str, str], dict[str, Any]] = defaultdict(
        lambda: {"runs": 0, "stored": 0, "epochs": 0.0, "training_macs": 0, "seconds": 0.0, "basis": set()}
    )
    jobs: list[Job] = []
    known_jobs: set[str] = set()
    for check in checks:
        row = rows[check.workload, "conformance"]
        row["runs"] += 1
        if calibration is not None:
            jobs.append(Job(check.id, calibration.check(check.check, check.method, check.workload)))
            row["seconds"] += jobs[-1].seconds
            row["basis"].add("scaled")
    open_ids, counted_ids = ({run.run_id for run in some} for some in (missing, counted))
    for run in runs:
        row = rows[run.workload, run.stage]
        is_counted, is_open = run.run_id in counted_ids, run.run_id in open_ids
        row["runs"] += is_counted
        row["stored"] += is_counted and not is_open
        if not is_open:
            continue
        if is_counted:
            needed = cost(run, work.catalog)
            row["epochs"] += needed.epochs
            row["training_macs"] += needed.training_macs
        if calibration is not None:
            estimate = calibration.estimate(run)
            jobs.append(Job(run.run_id, chances.get(run.run_id, 1.0) * estimate.seconds, run.needs))
            known_jobs |= {run.run_id} if estimate.basis == "ledger" else set()
            row["seconds"] += jobs[-1].seconds
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
        "cells": len(work.cells),
        "checks": len(checks),
        "runs": sum(row["runs"] for row in trained),
        "stored": sum(row["stored"] for row in trained),
        "epochs": sum(row["epochs"] for row in trained),
        "training_macs": sum(row["training_macs"] for row in trained),
        "stages": stages,
    }
    names = ("workers", "minutes", "idle_minutes", "busy", "work_minutes", "device_hours", "cost")
    times: dict[str, Any] = dict.fromkeys(names)
    if probe:
        # One thread per run, and one run per GPU: more workers than that do not finish earlier.
        places = _places(work)
        working = min(workers, places)
        start = started + (calibration.first if calibration is not None else 0.0)
        start += work.collecting if workers > 1 else 0.0
        # On a GPU the probe's clock is that of the wall already.
        slower = busy(working) if jobs and work.runtime.device == "cpu" else 1.0
        turns = in_turn([[[run.run_id for run, _ in runs] for runs in rounds] for rounds in tables], working)
        jobs = [replace(job, needs=(*job.needs, *turns.get(job.id, ()))) for job in jobs]
        slowed = [job if job.id in known_jobs else replace(job, seconds=slower * job.seconds) for job in jobs]
        seconds = slower * start + makespan(slowed, working)
        hours = seconds / 3600 * (working if work.runtime.device == "cuda" else 1)
        times = {
            "workers": working,
            "minutes": seconds / 60,
            "idle_minutes": (start + makespan(jobs, working)) / 60,
            "busy": slower,
            "work_minutes": (sum(job.seconds for job in jobs) + start) / 60,
            "device_hours": hours,
            "cost": None if price is None else hours * price,
        }
    whole = _kept_whole(work)
    more = {
        "kept_whole": whole,
        "memory": _memory(work, missing),
        "unplanned": unplanned,
        "populations": [dict(row) for row in work.populations],
    }
    return facts | times | {name: value for name, value in more.items() if value}


def _memory(work: Work, runs: Sequence[RunSpec]) -> dict[str, dict[str, dict[str, float]]]:
    """What the memory of a GPU must hold for each stage at most, in GiB, by workload: of those that are large."""
    found: dict[str, dict[str, Footprint]] = defaultdict(dict)
    known: dict[tuple[Any, ...], Footprint] = {}
    for run in runs:
        workload = work.catalog.workload(run.workload)
        if not (workload.gpu or workload.network.described):
            continue
        place = (run.workload, run.stage, run.checkpoint, run.ratio, run.method, run.recipe)
        if place not in known:
            known[place] = footprint(run, work.catalog)
        needed = known[place]
        before = found[run.workload].get(run.stage)
        if before is None or needed.total > before.total:
            found[run.workload][run.stage] = needed
    return {
        name: {stage: {**asdict(needed), "total": needed.total} for stage, needed in stages.items()}
        for name, stages in found.items()
    }


def _kept_whole(work: Work) -> dict[str, dict[str, str]]:
    """Layers that lose no filters, and why, by workload: of those whose ``prunable`` is ``auto``."""
    workloads = {cell.workload: work.catalog.workload(cell.workload) for cell in work.cells}
    return {
        name: dict(shapes.units(workload).refused) for name, workload in workloads.items() if workload.prunable == AUTO
    }


def _load(work: Work, workloads: set[str]) -> None:
    """Read the data that is there, as each process of a session does before it trains."""
    for name in sorted(workloads):
        data = work.catalog.workload(name).data
        sizes = facts(data)
        if (sizes.train + sizes.test) * sizes.values < _LOADED:
            with contextlib.suppress(AuditError):  # it may be planned where it cannot run
                load(data, work.runtime.data_root)


def _calibrated(work: Work, runs: Sequence[RunSpec]) -> Calibration:
    """What the ledger knows of such runs, and what a probe tells of the rest."""
    device, name = work.runtime.device, work.runtime.environment()["device"]
    calibration = Calibration(work.catalog, device, known(work.ledger.runs(), work.catalog, device, name))
    calibration.probe(runs, [(check.method, check.workload) for check in work.checks])
    return calibration


def _places(work: Work) -> int:
    """How many runs can be at work side by side: on GPUs, or on cores that this process may use."""
    places = work.gpus if work.runtime.device == "cuda" else cores()
    return max(places // (work.settings.ranks or 1), 1)
