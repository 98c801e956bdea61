"""Writes a report: report.md, tables/*.csv and results.json."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

from tabulate import tabulate

from pruneaudit.audit.catalogue import get_rule
from pruneaudit.ledger import write_json
from pruneaudit.report.results import Results
from pruneaudit.report.tables import accuracy_table, audit_matrix, base_line, failed_findings, title, unmeasured_cells


def write(results: Results, folder: Path) -> list[Path]:
    """Write all files of a report; each is whole or not there. Returns their paths."""
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    # First, because it refuses what is no JSON: nothing else is then replaced.
    write_json(folder / "results.json", results.as_json())
    files = {
        folder / "report.md": markdown(results),
        folder / "tables" / "cells.csv": _csv(_columns(results.cells), results.cells),
        folder / "tables" / "findings.csv": _csv(_columns(results.findings), results.findings),
        folder / "tables" / "accuracy.csv": _accuracy_csv(results),
    }
    for path, text in files.items():
        part = path.with_name(f".{path.name}.part")
        part.write_text(text, encoding="utf-8", newline="")
        os.replace(part, path)
    return [*files, folder / "results.json"]


def markdown(results: Results) -> str:
    """The report as Markdown."""
    blocks = ["# pruneaudit report", ""]
    attempted = len(results.cells)
    valid = sum(row["status"] == "ok" for row in results.cells)
    passed = sum(row["verdict"] == "pass" for row in results.findings)
    blocks += [
        f"{attempted} cells attempted, {valid} valid. {len(results.findings)} fairness checks, {passed} passed.",
        "",
    ]
    for workload, labels in results.groups():
        blocks += [f"## {_text(title(workload, labels))}", ""]
        header, rows = accuracy_table(results, workload, labels)
        if rows:
            blocks += [
                "Test accuracy in percent after the last epoch, mean ± sample standard deviation over n seeds. "
                f"In brackets the speedup, MACs(base) / MACs(pruned). {base_line(results, workload, labels)}".rstrip(),
                "",
                _table(header, rows),
                "",
            ]
        header, rows = audit_matrix(results, workload, labels)
        if rows:
            blocks += ["### Audit", "", "Worst verdict over ratios and seeds.", "", _table(header, rows), ""]
            blocks += [f"- {rule}: {get_rule(rule).claim} ({get_rule(rule).source})" for rule in header[2:]] + [""]
    blocks += _problems(results)
    blocks += ["## Protocols", ""]
    for name, facts in results.protocols.items():
        blocks.append(
            f"- {name} (version {facts['version']}): {facts['title']}; requires {', '.join(facts['requires'])}"
        )
    blocks += ["", "## Environment", ""]
    for environment in results.environments:
        blocks.append("- " + ", ".join(f"{key} {value}" for key, value in environment.items()))
    blocks += ["", "Every number comes from a run record in the ledger; `results.json` names the runs of each.", ""]
    return "\n".join(blocks)


def _problems(results: Results) -> list[str]:
    blocks: list[str] = []
    findings, cells = failed_findings(results), unmeasured_cells(results)
    if findings:
        header = ["rule", "verdict", "workload", "protocol", "ratio", "seed", "measured", "note"]
        rows = [
            [
                row["rule"],
                row["verdict"],
                row["workload"],
                row["protocol"],
                f"{row['ratio']:g}",
                str(row["seed"]),
                "; ".join(f"{arm}: {row['measured'][arm]}" for arm in row["arms"]),
                row["note"],
            ]
            for row in findings
        ]
        blocks += ["## Findings that are no pass", "", _table(header, rows), ""]
    if cells:
        rows = [
            [
                row["status"],
                row["workload"],
                row["protocol"],
                row["method"],
                f"{row['ratio']:g}",
                str(row["seed"]),
                row["error"],
            ]
            for row in cells
        ]
        header = ["status", "workload", "protocol", "method", "ratio", "seed", "reason"]
        blocks += ["## Cells without a result", "", _table(header, rows), ""]
    return blocks


def _text(value: str) -> str:
    """Text from records, safe inside Markdown: method names and error messages come from strangers."""
    escaped = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # Links and images too: a report must not fetch what an error message names.
    for mark in "|`[]!":
        escaped = escaped.replace(mark, f"\\{mark}")
    return " ".join(escaped.split())


def _table(header: list[str], rows: list[list[str]]) -> str:
    safe = [[_text(value) for value in row] for row in rows]
    return tabulate(safe, [_text(name) for name in header], tablefmt="pipe", disable_numparse=True)


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    return list(rows[0]) if rows else []


def _csv(columns: list[str], rows: list[dict[str, Any]]) -> str:
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_field(row[column]) for column in columns])
    return sink.getvalue()


def _field(value: Any) -> Any:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {item}" for key, item in value.items())
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    return value


def _accuracy_csv(results: Results) -> str:
    rows = []
    for workload, labels in results.groups():
        for (protocol, method, ratio), statistic in sorted(results.statistics(workload, labels).items()):
            rows.append(
                {
                    "workload": workload,
                    "labels": list(labels),
                    "protocol": protocol,
                    "method": method,
                    "ratio": ratio,
                    "speedup": statistic.speedup,
                    "n": statistic.n,
                    "mean": statistic.mean,
                    "std": statistic.std,
                }
            )
    return _csv(_columns(rows), rows)
