"""Writes a report: the page, report.md, tables (CSV and LaTeX), results.json and a badge."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from pruneaudit.report import latex
from pruneaudit.report.badge import badge
from pruneaudit.report.page import page
from pruneaudit.report.results import Results
from pruneaudit.report.tables import (
    FEW_SEEDS,
    accuracy_table,
    architecture_table,
    arm_matrix,
    audit_matrix,
    base_line,
    failed_findings,
    groups_of,
    has_few_seeds,
    legend,
    measured_text,
    profile_table,
    rules_text,
    size_table,
    standings_table,
    strictest_matrix,
    title,
    trainability_table,
    unmeasured_cells,
    verdict_counts,
    verdict_table,
    why_text,
)


def write(results: Results, folder: Path) -> list[Path]:
    """Write all files of a report; each is whole or not there. Returns their paths."""
    mark = badge(results)
    files = {
        # First, because it refuses what is no JSON: nothing is then replaced.
        folder / "results.json": _json(results.as_json()),
        folder / "report.html": page(results),
        folder / "report.md": markdown(results),
        folder / "badge.svg": mark.svg,
        folder / "badge.json": mark.endpoint,
        folder / "tables" / "cells.csv": _csv(_columns(results.cells), results.cells),
        folder / "tables" / "findings.csv": _csv(_columns(results.findings), results.findings),
        folder / "tables" / "verdicts.csv": _verdicts_csv(results),
        folder / "tables" / "accuracy.csv": _accuracy_csv(results),
        **{folder / "tables" / name: text for name, text in latex.tables(results).items()},
    }
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        part = path.with_name(f".{path.name}.part")
        part.write_text(text, encoding="utf-8", newline="")
        os.replace(part, path)
    return list(files)


def _json(content: Mapping[str, Any]) -> str:
    """Strict JSON with one row of a list on a line: thousands of findings stay readable and comparable line by line."""
    entries = []
    for key, value in sorted(content.items()):
        if isinstance(value, list) and value:
            rows = ",\n  ".join(json.dumps(row, sort_keys=True, allow_nan=False) for row in value)
            entries.append(f"{json.dumps(key)}: [\n  {rows}\n ]")
        else:
            entries.append(f"{json.dumps(key)}: {json.dumps(value, sort_keys=True, allow_nan=False)}")
    return "{\n " + ",\n ".join(entries) + "\n}\n"


def markdown(results: Results) -> str:
    """The report as Markdown."""
    required = [row for row in results.findings if row["required"]]
    passed = sum(row["verdict"] == "pass" for row in required)
    facts = [
        f"{len(results.cells)} cells: {results.attempted}.",
        f"{len(required)} required fairness checks, {passed} passed.",
        f"{verdict_counts(results.verdicts)}." if results.verdicts else "",
    ]
    blocks = ["# pruneaudit report", "", " ".join(text for text in facts if text), ""]
    for heading, body in markdown_sections(results):
        blocks += [f"## {heading}", "", body, ""]
    blocks += ["Every number comes from a run record in the ledger; `results.json` names the runs of each cell.", ""]
    return "\n".join(blocks)


def markdown_sections(results: Results) -> list[tuple[str, str]]:
    """Heading and body of every section: verdicts, what is wrong, tables, how it was measured."""
    sections: list[tuple[str, str]] = []
    for heading, rows in (("Verdicts", results.verdicts), ("Against the baseline", results.regressions)):
        sections += [(f"{heading}: {as_text(name)}", _verdicts(members)) for name, members in groups_of(rows).items()]
    sections += _problems(results)
    if results.study is not None and results.study["waive"]:
        lines = [f"- {rule}: {as_text(reason)}" for rule, reason in sorted(results.study["waive"].items())]
        sections.append((f"Waived by study {as_text(results.study['name'])}", "\n".join(lines)))
    for workload, labels in results.groups():
        sections += _workload(results, workload, labels)
    for profile in results.profiles:
        points = ", ".join(profile["points"])
        text = (
            f"Share of operating points ({as_text(points)}) at which the method's mean accuracy is within so many "
            "percentage points of the best one's."
        )
        name = title(profile["protocol"], tuple(profile["labels"]))
        sections.append((f"Performance profile: {as_text(name)}", f"{text}\n\n{_table(*profile_table(profile))}"))
    protocols = [
        f"- {as_text(name)} (version {facts['version']}): {as_text(facts['title'])}; margin {facts['margin']:g} "
        f"percentage points; requires {', '.join(facts['requires'])}"
        for name, facts in results.protocols.items()
    ]
    rules = [
        f"- {rule}: {as_text(facts['claim'])}. {as_text(facts['source'])}" for rule, facts in results.rules.items()
    ]
    environments = [
        "- " + ", ".join(f"{as_text(key)} {as_text(value)}" for key, value in environment.items())
        for environment in results.environments
    ]
    ends = (("Protocols", protocols), ("Rules", rules), ("Environment", environments))
    return [*sections, *((heading, "\n".join(lines)) for heading, lines in ends if lines)]


def _verdicts(rows: list[Mapping[str, Any]]) -> str:
    note = (
        "First arm minus second, percentage points, over paired seeds: mean, 95 % t interval, p of the exact sign-flip "
        "test after Holm's correction over the protocol's table. Ties stay ties: indeterminate is no verdict on either."
    )
    return "\n\n".join([note, *([FEW_SEEDS] if has_few_seeds(rows) else []), _table(*verdict_table(rows))])


def _workload(results: Results, workload: str, labels: tuple[str, ...]) -> list[tuple[str, str]]:
    """Tables of one workload."""
    name = as_text(title(workload, labels))
    base = base_line(results, workload, labels)
    comparisons, arms = (matrix(results, workload, labels) for matrix in (audit_matrix, arm_matrix))
    parts = [
        (
            "accuracy",
            "Test accuracy in percent after the last epoch, mean ± sample standard deviation over n seeds. "
            f"In brackets the speedup, MACs(base) / MACs(pruned). {base}",
            accuracy_table(results, workload, labels),
        ),
        (
            "sizes",
            "Speedup, MACs(base) / MACs(pruned), and share of the parameters that is left, means over seeds. Where "
            "single weights are removed, both count what is not zero, and hardware executes the dense network.",
            size_table(results, workload, labels),
        ),
        (
            "architectures found",
            "What one threshold for all layers left of each, in the network's order, means over n seeds. A scratch arm "
            "called scratch-of-METHOD trains exactly these.",
            architecture_table(results, workload, labels),
        ),
        (
            "standings",
            "Methods in groups that nothing tells apart, best first; within a group the order means nothing.",
            standings_table(results, workload, labels),
        ),
        (
            "audit of comparisons",
            "How many of the rules that the protocol requires hold, and a column for each one that somewhere does not, "
            "worst over ratios and seeds. Not controlled: stricter rules that do not hold, so that they may explain a "
            f"difference. {_sentence(legend(comparisons))}",
            comparisons,
        ),
        (
            "audit of arms",
            "How many of the rules on single arms hold, and a column for each one that somewhere does not, worst over "
            f"protocols, ratios and seeds. {_sentence(legend(arms))}",
            arms,
        ),
        (
            "strictest common setup",
            "The strictest setup of Wang et al. 2023 whose rules hold between two methods at every ratio, as measured.",
            strictest_matrix(results, workload, labels),
        ),
        (
            "trainability",
            "Mean Jacobian singular value (JSV) of the base model, after pruning and at the end; trainability accuracy "
            "(TA): mean test accuracy over the first learning-rate stage, comparable only between arms with the same "
            "retraining schedule. Means over seeds.",
            trainability_table(results, workload, labels),
        ),
    ]
    return [(f"{name}: {what}", f"{text.rstrip()}\n\n{_table(*table)}") for what, text, table in parts if table[1]]


def _sentence(text: str) -> str:
    return f"{text}." if text else ""


def _problems(results: Results) -> list[tuple[str, str]]:
    sections: list[tuple[str, str]] = []
    findings, cells = failed_findings(results), unmeasured_cells(results)
    if findings:
        header = ["rules", "verdict", "workload", "protocol", "ratio", "seed", "arms", "measured", "note"]
        rows = [
            [
                rules_text(row),
                f"{row['verdict']}, waived" if row["waived"] else row["verdict"],
                title(row["workload"], tuple(row["labels"])),
                row["protocol"],
                f"{row['ratio']:g}",
                "all" if row["seed"] is None else str(row["seed"]),
                " vs ".join(row["arms"]),
                measured_text(row),
                why_text(row),
            ]
            for row in findings
        ]
        sections.append(("Required findings that are no pass", _table(header, rows)))
    if cells:
        rows = [
            [
                row["status"],
                title(row["workload"], tuple(row["labels"])),
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


def as_text(value: str) -> str:
    """Text from records, safe inside Markdown: method names and error messages come from strangers."""
    plain = " ".join("".join(mark if mark.isprintable() else " " for mark in value).split())
    escaped = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # Links and images too: a report must not fetch what an error message names. An underscore inside a word is text.
    return re.sub(r"[\\|`\[\]!*~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", escaped)


def _table(header: list[str], rows: list[list[str]]) -> str:
    safe = [[as_text(value) for value in row] for row in rows]
    return tabulate(safe, [as_text(name) for name in header], tablefmt="pipe", disable_numparse=True)


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
