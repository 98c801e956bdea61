"""Writes a report: report.md, tables/*.csv and results.json."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

from tabulate import tabulate

from pruneaudit.ledger import write_json
from pruneaudit.report.results import Results
from pruneaudit.report.tables import (
    LEGEND,
    accuracy_table,
    arm_matrix,
    audit_matrix,
    base_line,
    failed_findings,
    profile_table,
    standings_table,
    strictest_matrix,
    title,
    trainability_table,
    unmeasured_cells,
    verdict_table,
)


def write(results: Results, folder: Path) -> list[Path]:
    """Write all files of a report; each is whole or not there. Returns their paths."""
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    # First, because it refuses what is no JSON: nothing else is then replaced.
    write_json(folder / "results.json", results.as_json())
    files = {
        folder / "report.md": markdown(results),
        folder / "tables" / "cells.csv": _csv(_columns(results.cells), results.cells),
        folder / "tables" / "findings.csv": _csv(_columns(results.findings), results.findings),
        folder / "tables" / "verdicts.csv": _verdicts_csv(results),
        folder / "tables" / "accuracy.csv": _accuracy_csv(results),
    }
    for path, text in files.items():
        part = path.with_name(f".{path.name}.part")
        part.write_text(text, encoding="utf-8", newline="")
        os.replace(part, path)
    return [*files, folder / "results.json"]


def markdown(results: Results) -> str:
    """The report as Markdown."""
    required = [row for row in results.findings if row["required"]]
    passed = sum(row["verdict"] == "pass" for row in required)
    blocks = [
        "# pruneaudit report",
        "",
        f"{len(results.cells)} cells: {results.attempted}. {len(required)} required fairness checks, {passed} passed.",
        "",
    ]
    for heading, body in markdown_sections(results):
        blocks += [f"## {heading}", "", body, ""]
    blocks += ["Every number comes from a run record in the ledger; `results.json` names the runs of each cell.", ""]
    return "\n".join(blocks)


def markdown_sections(results: Results) -> list[tuple[str, str]]:
    """Heading and body of every section: verdicts, what is wrong, tables, how it was measured."""
    sections: list[tuple[str, str]] = []
    for heading, rows in (("Verdicts", results.verdicts), ("Against the baseline", results.regressions)):
        for workload, labels in dict.fromkeys((row["workload"], tuple(row["labels"])) for row in rows):
            members = [row for row in rows if (row["workload"], tuple(row["labels"])) == (workload, labels)]
            sections.append((f"{heading}: {_text(title(workload, labels))}", _verdicts(members)))
    sections += _problems(results)
    if results.study is not None and results.study["waive"]:
        lines = [f"- {rule}: {_text(reason)}" for rule, reason in sorted(results.study["waive"].items())]
        sections.append((f"Waived by study {_text(results.study['name'])}", "\n".join(lines)))
    for workload, labels in results.groups():
        sections += _workload(results, workload, labels)
    for profile in results.profiles:
        points = ", ".join(profile["points"])
        text = (
            f"Share of operating points ({_text(points)}) at which the method's mean accuracy is within so many "
            "percentage points of the best one's."
        )
        name = title(profile["protocol"], tuple(profile["labels"]))
        sections.append((f"Performance profile: {_text(name)}", f"{text}\n\n{_table(*profile_table(profile))}"))
    lines = [
        f"- {name} (version {facts['version']}): {facts['title']}; margin {facts['margin']:g} percentage points; "
        f"requires {', '.join(facts['requires'])}"
        for name, facts in results.protocols.items()
    ]
    sections.append(("Protocols", "\n".join(lines)))
    if results.rules:
        lines = [f"- {rule}: {facts['claim']} ({facts['source']})" for rule, facts in results.rules.items()]
        sections.append(("Rules", "\n".join(lines)))
    lines = [
        "- " + ", ".join(f"{key} {value}" for key, value in environment.items()) for environment in results.environments
    ]
    return [*sections, ("Environment", "\n".join(lines))]


def _verdicts(rows: list[dict[str, Any]]) -> str:
    seeds = [row["summary"].partition("descriptive: ")[2].partition(";")[0] for row in rows]
    note = (
        "First arm minus second, percentage points, over paired seeds: mean, 95 % t interval, p of the exact sign-flip "
        "test after Holm's correction over the protocol's table. Ties stay ties: indeterminate is no verdict on either."
    )
    descriptive = [f"Descriptive: {text}." for text in sorted(set(seeds) - {""})]
    return "\n\n".join([note, *descriptive, _table(*verdict_table(rows))])


def _workload(results: Results, workload: str, labels: tuple[str, ...]) -> list[tuple[str, str]]:
    """Tables of one workload."""
    name = _text(title(workload, labels))
    base = base_line(results, workload, labels)
    parts = [
        (
            "accuracy",
            "Test accuracy in percent after the last epoch, mean ± sample standard deviation over n seeds. "
            f"In brackets the speedup, MACs(base) / MACs(pruned). {base}".rstrip(),
            accuracy_table(results, workload, labels),
        ),
        (
            "standings",
            "Methods in groups that nothing tells apart, best first; within a group the order means nothing.",
            standings_table(results, workload, labels),
        ),
        (
            "audit of comparisons",
            f"Worst verdict over ratios and seeds. {LEGEND}.",
            audit_matrix(results, workload, labels),
        ),
        (
            "audit of arms",
            f"Worst verdict over protocols, ratios and seeds. {LEGEND}.",
            arm_matrix(results, workload, labels),
        ),
        (
            "strictest common setup",
            "The strictest setup of Wang et al. 2023 whose rules hold between two methods at every ratio, as measured.",
            strictest_matrix(results, workload, labels),
        ),
        (
            "trainability",
            "Mean Jacobian singular value of the base model, after pruning and at the end; trainability accuracy (TA): "
            "mean test accuracy over the first learning-rate stage, under one schedule only. Means over seeds.",
            trainability_table(results, workload, labels),
        ),
    ]
    return [(f"{name}: {what}", f"{text}\n\n{_table(*table)}") for what, text, table in parts if table[1]]


def _problems(results: Results) -> list[tuple[str, str]]:
    sections: list[tuple[str, str]] = []
    findings, cells = failed_findings(results), unmeasured_cells(results)
    if findings:
        header = ["rule", "verdict", "workload", "protocol", "ratio", "seed", "measured", "note"]
        rows = [
            [
                row["rule"],
                f"{row['verdict']}, waived" if row["waived"] else row["verdict"],
                row["workload"],
                row["protocol"],
                f"{row['ratio']:g}",
                "all" if row["seed"] is None else str(row["seed"]),
                "; ".join(f"{arm}: {row['measured'].get(arm)}" for arm in row["arms"]),
                "; ".join(text for text in (row["note"], row["waived"]) if text),
            ]
            for row in findings
        ]
        sections.append(("Required findings that are no pass", _table(header, rows)))
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
        sections.append(("Cells without a result", _table(header, rows)))
    return sections


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
    """All columns that some row has, in the order in which they come up."""
    return list(dict.fromkeys(column for row in rows for column in row))


def _csv(columns: list[str], rows: list[dict[str, Any]]) -> str:
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_field(row.get(column)) for column in columns])
    return sink.getvalue()


def _field(value: Any) -> Any:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {item}" for key, item in value.items())
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    return value


def _verdicts_csv(results: Results) -> str:
    """One row for each verdict; statistics in columns of their own."""
    rows = []
    for row in (*results.verdicts, *results.regressions):
        flat = {key: value for key, value in row.items() if key not in ("difference", "images")}
        rows.append(flat | (row["difference"] or {}))
    return _csv(_columns(rows), rows)


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
