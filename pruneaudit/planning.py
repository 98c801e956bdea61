"""What a selection would train, and how long that takes: for ``pruneaudit plan``."""

from __future__ import annotations

import contextlib
import io
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest

from pruneaudit.errors import ConfigError

if TYPE_CHECKING:
    from pruneaudit.config import Workload
    from pruneaudit.plugin.session import AuditSession
    from pruneaudit.records import RunSpec


class _Collector:
    """Takes the audit session out of a pytest collection."""

    session: AuditSession | None = None

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        from pruneaudit.plugin import audit_session

        self.session = audit_session(session.config)


def make_plan(expression: str, options: list[str], workers: int = 1, probe: bool = True) -> dict[str, Any]:
    """Plan a selection.

    Args:
        expression: As pytest's ``-k``.
        options: ``--audit-…`` options of the suite.
        workers: Workers to estimate the time for.
        probe: Whether to time a few steps.

    Returns:
        Totals, and a row for each workload and stage. Stored runs cost nothing any more.

    Raises:
        ConfigError: The selection is wrong or empty.
    """
    from pruneaudit.campaign import Campaign
    from pruneaudit.catalog import suite_arguments
    from pruneaudit.executors.cost import cost
    from pruneaudit.executors.local import LocalExecutor
    from pruneaudit.stages import Stages

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
    session = collector.session
    session.runtime.prepare()
    executor = LocalExecutor(session.ledger, Stages(session.ledger, session.catalog, session.runtime), session.id)
    campaign = Campaign(session.catalog, session.ledger, session.settings, executor)
    groups: dict[tuple[str, str], dict[str, Any]] = defaultdict(
        lambda: {"runs": 0, "stored": 0, "epochs": 0.0, "training_macs": 0, "seconds": 0.0}
    )
    clock = Clock(session)
    for run in campaign.runs(session.selected):
        row = groups[run.workload, run.stage]
        row["runs"] += 1
        if session.ledger.find(run) is not None:
            row["stored"] += 1
            continue
        needed = cost(run, session.catalog)
        row["epochs"] += needed.epochs
        row["training_macs"] += needed.training_macs
        row["seconds"] += clock.seconds(run, needed.epochs) if probe else 0.0
    stages = [
        {"workload": workload, "stage": stage, **row, "minutes": row["seconds"] / 60 if probe else None}
        for (workload, stage), row in groups.items()
    ]
    seconds = sum(row.pop("seconds") for row in stages)
    return {
        "cells": len(session.selected),
        "runs": sum(row["runs"] for row in stages),
        "stored": sum(row["stored"] for row in stages),
        "epochs": sum(row["epochs"] for row in stages),
        "training_macs": sum(row["training_macs"] for row in stages),
        "minutes": seconds / 60 / workers if probe else None,
        "stages": stages,
    }


def _workload(run: RunSpec, session: AuditSession) -> Workload:
    return session.catalog.workload(run.workload).model_copy(update={"data": run.data, "model": run.model})


class Clock:
    """Times steps of each shape once, on random images, and scales."""

    def __init__(self, session: AuditSession) -> None:
        self._session = session
        self._known: dict[tuple[Any, ...], tuple[float, float]] = {}

    def seconds(self, run: RunSpec, epochs: float) -> float:
        """Estimated duration of a run: training passes, and one pass over validation and test for each epoch."""
        from pruneaudit.workloads.datasets import facts

        sizes = facts(run.data)
        train, test = self._per_image(run)
        return epochs * (train * sizes.train + test * (sizes.validation + sizes.test))

    def _per_image(self, run: RunSpec) -> tuple[float, float]:
        """Seconds per image of a training step and of a test pass."""
        import torch
        import torch.nn.functional as F

        from pruneaudit import shapes
        from pruneaudit.executors.cost import widths as widths_of
        from pruneaudit.training.precision import place, weight_type

        workload, device = _workload(run, self._session), self._session.device
        widths = widths_of(run, workload, self._session.catalog)
        key = (run.workload, run.recipe.batch, run.precision, tuple(widths.items()))
        if key in self._known:
            return self._known[key]
        dtype = weight_type(run.precision)
        model = place(shapes.network(workload, widths), device, run.precision)
        example = shapes.example(workload).to(device=device, dtype=dtype)
        images = torch.randn(run.recipe.batch, *example.shape[1:], device=device, dtype=dtype)
        images = images.to(memory_format=torch.channels_last)
        labels = torch.zeros(run.recipe.batch, dtype=torch.int64, device=device)
        optimiser = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, fused=True)

        def step(train: bool) -> None:
            with torch.set_grad_enabled(train), torch.autocast(device, torch.bfloat16, enabled=run.precision == "bf16"):
                logits = model(images)
            if train:
                optimiser.zero_grad()
                F.cross_entropy(logits.float(), labels).backward()
                optimiser.step()

        times = []
        for train in (True, False):
            model.train(train)
            step(train)
            count, started = 0, time.perf_counter()
            while count < 3 or (time.perf_counter() - started < 0.3 and count < 50):
                step(train)
                count += 1
            if device == "cuda":
                torch.cuda.synchronize()
            times.append((time.perf_counter() - started) / count / run.recipe.batch)
        self._known[key] = (times[0], times[1])
        return self._known[key]
