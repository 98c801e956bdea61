"""A ledger as tidy tables for pandas: one row for each cell, finding, verdict and epoch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pruneaudit.catalog.discovery import Catalog
from pruneaudit.errors import ConfigError
from pruneaudit.ledger.records import RunRecord
from pruneaudit.ledger.store import Ledger
from pruneaudit.method.outside import describing
from pruneaudit.report.results import gather_ledger

#: Curves of a run, by column.
_CURVES = {
    "train_loss": "train_loss",
    "train_accuracy": "train_accuracy",
    "validation_loss": "validation_loss",
    "validation_accuracy": "validation_accuracy_curve",
    "test_loss": "test_loss",
    "test_accuracy": "test_accuracy",
}


@dataclass(frozen=True)
class Frames:
    """What a ledger holds, judged; each table one row per thing, accuracies in percent, cost in MACs.

    Where another metric than accuracy decides, ``metric`` names it and ``value`` has it, in its own unit.

    Attributes:
        cells: Workload × protocol × method × ratio × seed: accuracy, sizes, cost, trainability, status.
        findings: What each rule found of each arm or comparison.
        verdicts: What each comparison comes to, with its statistics.
        curves: Loss and accuracy after each epoch of each run (of retraining also before the
            first, epoch 0), with the learning rate at its first step (None
            where an older record does not tell it).
    """

    cells: pd.DataFrame
    findings: pd.DataFrame
    verdicts: pd.DataFrame
    curves: pd.DataFrame


def load(ledger: str | Path, methods: Iterable[str] = (), workloads: Iterable[str] = ()) -> Frames:
    """Read and judge a ledger; trains nothing and writes nothing.

    Args:
        ledger: Its folder, such as ``.pruneaudit/ledger``.
        methods: Methods of your own that it holds, as for ``--audit-method``.
        workloads: Workloads of your own that it holds, as for ``--audit-workload``.

    Raises:
        ConfigError: There is no ledger.
    """
    path = Path(ledger)
    if not (path / "ledger.json").exists():
        raise ConfigError(f"no ledger at {path}; name the folder that --audit-ledger wrote")
    store = Ledger(path, writable=False)
    catalog = Catalog(
        extra_methods=tuple(methods), extra_workloads=tuple(workloads), isolate="foreign", outside=describing(path)
    )
    results = gather_ledger(catalog, store)
    runs = sorted(store.runs(), key=lambda run: (run.workload, run.slug, run.run_id))
    by_id = {run.run_id: run for run in runs}
    return Frames(
        cells=pd.DataFrame([_flat(row, "jsv") for row in results.cells]),
        findings=pd.DataFrame(results.findings),
        verdicts=pd.DataFrame([_flat(row, "difference", prefix=False) for row in results.verdicts]),
        curves=pd.DataFrame([line for run in runs for line in _curves(run, by_id)]),
    )


def _flat(row: Mapping[str, Any], key: str, prefix: bool = True) -> dict[str, Any]:
    """A row whose nested values are columns of their own."""
    rest = {name: value for name, value in row.items() if name not in (key, "outlook")}
    return rest | {f"{key}_{name}" if prefix else name: value for name, value in (row[key] or {}).items()}


def _curves(run: RunRecord, known: Mapping[str, RunRecord]) -> list[dict[str, Any]]:
    """One row for each epoch of a run, and one for what a retraining starts from."""
    about = {name: getattr(run, name) for name in ("run_id", "workload", "stage", "method", "ratio", "seed", "budget")}
    values = {column: getattr(run, name) for column, name in _CURVES.items()}
    if run.scores is not None:
        values |= {"validation_value": run.validation_curve, "test_value": run.curve}
    rates = [rate for rate, steps in run.learning_rates for _ in range(steps)]
    starts = run.starts
    first = known.get(run.parent or "") if run.stage == "retrain" else None
    before: list[dict[str, Any]] = []
    if first is not None:
        accuracies = {"validation_accuracy": first.validation_accuracy, "test_accuracy": first.accuracy}
        before = [{**about, "epoch": 0, "learning_rate": None} | dict.fromkeys(_CURVES) | accuracies]
    return before + [
        {**about, "epoch": epoch + 1, "learning_rate": None if starts is None else rates[starts[epoch]]}
        | {column: found[epoch] for column, found in values.items()}
        for epoch in range(len(run.test_accuracy))
    ]
