"""Everything a report shows, as rows of JSON builtins."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pruneaudit import __version__
from pruneaudit.audit.catalogue import get_rule
from pruneaudit.audit.currency import method_digests, stored_cell, why_outdated
from pruneaudit.audit.judge import Finding, judge
from pruneaudit.catalog import Catalog
from pruneaudit.cells import Cell, Comparison, pairs
from pruneaudit.ledger import Ledger
from pruneaudit.records import CellRecord
from pruneaudit.settings import Settings

#: Version of the layout of results.json.
RESULTS_VERSION = 1
_CELL_FIELDS = (
    "workload",
    "workload_version",
    "protocol",
    "protocol_version",
    "method",
    "ratio",
    "seed",
    "budget",
    "precision",
    "labels",
    "status",
    "error",
    "accuracy",
    "base_accuracy",
    "validation_accuracy",
    "speedup",
    "params",
    "macs",
    "total_epochs",
    "total_macs",
)


@dataclass(frozen=True)
class Statistic:
    """Accuracy of an arm at one operating point, over seeds.

    Attributes:
        mean: Mean in percent.
        std: Sample standard deviation (n - 1) in percentage points; None for one seed.
        n: Number of seeds.
        speedup: MACs(base) / MACs(pruned).
    """

    mean: float
    std: float | None
    n: int
    speedup: float

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.std is None else f"{self.mean:.2f} ± {self.std:.2f}"


@dataclass
class Results:
    """What a report is made of.

    Attributes:
        cells: One row for each cell, sorted.
        findings: One row for each finding, sorted.
        protocols: Title, version and requirements of each protocol.
        environments: Distinct environments of the runs.
    """

    cells: list[dict[str, Any]]
    findings: list[dict[str, Any]]
    protocols: dict[str, dict[str, Any]] = field(default_factory=dict)
    environments: list[dict[str, str]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Content of results.json."""
        return {
            "schema_version": RESULTS_VERSION,
            "pruneaudit": __version__,
            "protocols": self.protocols,
            "environments": self.environments,
            "cells": self.cells,
            "findings": self.findings,
        }

    def groups(self) -> list[tuple[str, tuple[str, ...]]]:
        """Workloads with their labels: what may stand in one table."""
        return sorted({(row["workload"], tuple(row["labels"])) for row in self.cells})

    def statistics(self, workload: str, labels: tuple[str, ...]) -> dict[tuple[str, str, float], Statistic]:
        """Statistic by (protocol, method, ratio) of the cells that were measured."""
        grouped: dict[tuple[str, str, float], list[dict[str, Any]]] = defaultdict(list)
        for row in self.cells:
            if row["workload"] == workload and tuple(row["labels"]) == labels and row["status"] == "ok":
                grouped[row["protocol"], row["method"], row["ratio"]].append(row)
        return {
            key: _statistic([row["accuracy"] for row in rows], statistics.fmean(row["speedup"] for row in rows))
            for key, rows in grouped.items()
        }

    def base(self, workload: str, labels: tuple[str, ...]) -> Statistic | None:
        """Accuracy of the dense base models that arms share (S1's own ones left out); None where none was measured."""
        bases = {
            row["runs"][0]: row["base_accuracy"]
            for row in self.cells
            if row["workload"] == workload
            and tuple(row["labels"]) == labels
            and row["status"] == "ok"
            and self.protocols.get(row["protocol"], {}).get("base") == "shared"
        }
        return _statistic(list(bases.values()), 1.0) if bases else None


def _statistic(values: list[float], speedup: float) -> Statistic:
    std = statistics.stdev(values) if len(values) > 1 else None
    return Statistic(statistics.fmean(values), std, len(values), speedup)


def gather(
    catalog: Catalog,
    settings: Settings,
    ledger: Ledger,
    cells: Iterable[Cell],
    findings: Iterable[Finding],
    skipped: Mapping[Cell, str] | None = None,
) -> Results:
    """Rows of a session: every selected cell and every finding.

    Args:
        catalog: Where protocols are described.
        settings: Settings of the session.
        ledger: Where the records are.
        cells: Selected cells.
        findings: Findings of the selected comparisons.
        skipped: Reason for each cell that was skipped.
    """
    skipped = skipped or {}
    rows, records = [], []
    for cell in cells:
        # One that no longer counts was stored by an earlier session, and this one ended before measuring it anew.
        record = None if cell in skipped else stored_cell(cell, catalog, settings, ledger)
        if record is not None:
            rows.append(_cell_row(record))
            records.append(record)
        else:
            labels = settings.labels(catalog.workload(cell.workload))
            rows.append(_empty_row(cell, settings, labels, skipped.get(cell)))
    return _results(catalog, ledger, rows, records, findings)


def gather_ledger(catalog: Catalog, ledger: Ledger) -> Results:
    """Rows of everything a ledger holds: all cells, and all comparisons between them.

    Cells measured by another version of a protocol, workload, method or of the training code are listed as outdated,
    but neither averaged nor judged with the others.
    """
    everything = ledger.cells()
    digests = method_digests(catalog, ledger, everything)
    outdated = {id(record): why_outdated(record, catalog, ledger, digests) for record in everything}
    records = [record for record in everything if not outdated[id(record)]]
    by_group: dict[tuple[str, str, float, tuple[str, ...]], list[CellRecord]] = defaultdict(list)
    for record in records:
        by_group[record.workload, record.protocol, record.ratio, record.labels].append(record)
    findings = []
    for (workload, name, ratio, labels), members in by_group.items():
        protocol = catalog.protocol(name)
        seeds = tuple(sorted({record.seed for record in members}))
        methods = sorted({record.method for record in members})
        known = {record.cell: record for record in members}
        for left, right in pairs(protocol, methods):
            comparison = Comparison(workload, name, left, right, ratio, seeds)
            findings += [judge(comparison, rule, known.get, ledger, labels) for rule in protocol.requires]
    rows = [
        _cell_row(record) | ({"status": "outdated", "error": outdated[id(record)]} if outdated[id(record)] else {})
        for record in everything
    ]
    return _results(catalog, ledger, rows, records, findings)


def _results(
    catalog: Catalog,
    ledger: Ledger,
    rows: list[dict[str, Any]],
    records: list[CellRecord],
    findings: Iterable[Finding],
) -> Results:
    runs = {run: ledger.get(run) for record in records if record.status == "ok" for run in record.runs}
    environments = {tuple(sorted(run.environment.items())) for run in runs.values()}
    names = [name for name in catalog.protocols if any(row["protocol"] == name for row in rows)]
    return Results(
        cells=sorted(
            rows,
            key=lambda row: (row["workload"], row["labels"], row["protocol"], row["method"], row["ratio"], row["seed"]),
        ),
        findings=sorted(map(_finding_row, findings), key=_finding_order),
        protocols={
            name: {
                "version": catalog.protocol(name).version,
                "title": catalog.protocol(name).title,
                "base": catalog.protocol(name).base,
                "requires": list(catalog.protocol(name).requires),
            }
            for name in names
        },
        environments=[dict(environment) for environment in sorted(environments)],
    )


def _cell_row(record: CellRecord) -> dict[str, Any]:
    row = record.model_dump(mode="json", include=set(_CELL_FIELDS))
    return {name: row[name] for name in _CELL_FIELDS} | {"runs": record.runs}


def _empty_row(cell: Cell, settings: Settings, labels: tuple[str, ...], reason: str | None) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(_CELL_FIELDS)
    row |= {
        "workload": cell.workload,
        "protocol": cell.protocol,
        "method": cell.method,
        "ratio": cell.ratio,
        "seed": cell.seed,
        "budget": settings.budget,
        "precision": settings.precision,
        "labels": list(labels),
        "status": "missing" if reason is None else "skipped",
        "error": reason or "the session ended before it was measured",
        "runs": [],
    }
    return row


def _finding_row(finding: Finding) -> dict[str, Any]:
    row = finding.model_dump(mode="json")
    return {"rule": row.pop("rule"), "claim": get_rule(finding.rule).claim, **row}


def _finding_order(row: dict[str, Any]) -> tuple[Any, ...]:
    return (row["workload"], row["labels"], row["protocol"], row["ratio"], row["arms"], row["rule"])
