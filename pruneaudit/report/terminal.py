"""The report on the terminal: verdicts, what is wrong, tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from tabulate import tabulate

from pruneaudit.audit.catalogue import get_rule
from pruneaudit.report.results import Results
from pruneaudit.report.tables import (
    LEGEND,
    Table,
    accuracy_table,
    arm_matrix,
    audit_matrix,
    base_line,
    failed_findings,
    standings_table,
    title,
    unmeasured_cells,
    verdict_table,
)

#: Rows of a table of verdicts, and lines of findings, that a terminal shows; the report has all.
MOST_ROWS = 40
MOST_FINDINGS = 20


def summary(results: Results, fails: Callable[[Mapping[str, Any]], bool] = lambda row: False) -> list[str]:
    """Lines for the end of a session.

    Args:
        results: What was measured and found.
        fails: Whether a verdict's row fails the session's gate.
    """
    lines = _verdicts(results, fails)
    lines += _problems(results)
    for workload, labels in results.groups():
        name = title(workload, labels)
        header, rows = accuracy_table(results, workload, labels)
        if rows:
            lines += ["", f"{name}: test accuracy in percent at the last epoch, mean ± sample std"]
            lines += [base_line(results, workload, labels)] if base_line(results, workload, labels) else []
            lines += _lines((header, rows))
        ties = standings_table(results, workload, labels)
        if ties[1]:
            lines += ["", f"{name}: methods in groups that nothing tells apart, best first"]
            lines += _lines(ties)
        for heading, matrix in (
            ("comparisons, worst over ratios and seeds", audit_matrix(results, workload, labels)),
            ("arms, worst over protocols, ratios and seeds", arm_matrix(results, workload, labels)),
        ):
            if matrix[1]:
                lines += ["", f"{name}: audit of {heading}", *_lines(matrix)]
                lines += [f"  {rule} {get_rule(rule).claim}" for rule in matrix[0] if rule in results.rules]
    lines += [f"  {LEGEND}"] if results.findings else []
    return lines


def _verdicts(results: Results, fails: Callable[[Mapping[str, Any]], bool]) -> list[str]:
    lines: list[str] = []
    for heading, rows in (("verdicts", results.verdicts), ("against the baseline", results.regressions)):
        if not rows:
            continue
        counts = Counter(row["verdict"] for row in rows)
        words = ", ".join(f"{counts[word]} {word}" for word in sorted(counts))
        lines += ["", f"{heading}: {len(rows)} comparisons, {words}"]
        failing = [row for row in rows if fails(row)]
        lines += [
            f"  FAILS: {row['workload']} {row['protocol']} ratio {row['ratio']:g}: {' against '.join(row['arms'])}: "
            f"{row['verdict']}; {row['summary']}"
            for row in failing[:MOST_FINDINGS]
        ]
        lines += [f"  and {len(failing) - MOST_FINDINGS} more that fail"] if len(failing) > MOST_FINDINGS else []
        for workload in dict.fromkeys(row["workload"] for row in rows):
            members = [row for row in rows if row["workload"] == workload]
            lines += [f"{workload}: first arm minus second, percentage points; p after Holm over each protocol's table"]
            lines += _lines(verdict_table(members[:MOST_ROWS]))
            lines += [f"… {len(members) - MOST_ROWS} more in report.md"] if len(members) > MOST_ROWS else []
    needed = {row["summary"].partition("descriptive: ")[2].partition(";")[0] for row in results.verdicts} - {""}
    return lines + [f"descriptive only: {text}" for text in sorted(needed)]


def _problems(results: Results) -> list[str]:
    counts = Counter(row["status"] for row in results.cells)
    statuses = ", ".join(f"{counts[key]} {key}" for key in sorted(counts))
    lines = ["", f"cells: {len(results.cells)} selected, {statuses}; {results.attempted}"]
    for status in ("failed", "missing", "skipped", "outdated"):
        reasons = Counter(row["error"] for row in unmeasured_cells(results) if row["status"] == status)
        lines += [f"  {status} ({count}): {reason}" for reason, count in sorted(reasons.items())]
    required = [row for row in results.findings if row["required"]]
    if required:
        verdicts = Counter("waived" if row["waived"] else row["verdict"] for row in required)
        parts = ", ".join(f"{verdicts[key]} {key}" for key in sorted(verdicts))
        lines.append(f"findings: {len(required)} required checks, {parts}")
    wrong = failed_findings(results)
    for row in wrong[:MOST_FINDINGS]:
        values = "; ".join(f"{arm}: {row['measured'].get(arm)}" for arm in row["arms"])
        notes = [row["note"], f"waived: {row['waived']}" if row["waived"] else ""]
        note = f" ({'; '.join(text for text in notes if text)})" if any(notes) else ""
        seed = "" if row["seed"] is None else f" seed {row['seed']}"
        where = f"{row['workload']} {row['protocol']} ratio {row['ratio']:g}{seed}"
        lines.append(f"  {row['rule']} {row['verdict']}: {where}: {values}{note}")
    lines += [f"  and {len(wrong) - MOST_FINDINGS} more in report.md"] if len(wrong) > MOST_FINDINGS else []
    return lines


def _lines(table: Table) -> list[str]:
    header, rows = table
    return tabulate(rows, header, tablefmt="simple", disable_numparse=True).splitlines()
