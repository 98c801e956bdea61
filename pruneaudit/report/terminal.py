"""The report on the terminal."""

from __future__ import annotations

from collections import Counter

from tabulate import tabulate

from pruneaudit.audit.catalogue import get_rule
from pruneaudit.report.results import Results
from pruneaudit.report.tables import accuracy_table, audit_matrix, base_line, failed_findings, title, unmeasured_cells


def summary(results: Results) -> list[str]:
    """Lines for the end of a session: tables, audit matrix, what went wrong."""
    lines: list[str] = []
    for workload, labels in results.groups():
        header, rows = accuracy_table(results, workload, labels)
        if rows:
            lines += ["", f"{title(workload, labels)}: test accuracy in percent at the last epoch, mean ± sample std"]
            lines += [base_line(results, workload, labels)] if base_line(results, workload, labels) else []
            lines += tabulate(rows, header, tablefmt="simple", disable_numparse=True).splitlines()
        header, rows = audit_matrix(results, workload, labels)
        if rows:
            lines += ["", f"{title(workload, labels)}: audit (worst over ratios and seeds)"]
            lines += tabulate(rows, header, tablefmt="simple", disable_numparse=True).splitlines()
            lines += [f"  {rule} {get_rule(rule).claim}" for rule in header[2:]]
    counts = Counter(row["status"] for row in results.cells)
    lines += [
        "",
        f"cells: {len(results.cells)} selected, " + ", ".join(f"{counts[key]} {key}" for key in sorted(counts)),
    ]
    for status in ("failed", "missing", "skipped", "outdated"):
        reasons = Counter(row["error"] for row in unmeasured_cells(results) if row["status"] == status)
        lines += [f"  {status} ({count}): {reason}" for reason, count in sorted(reasons.items())]
    verdicts = Counter(row["verdict"] for row in results.findings)
    if verdicts:
        parts = ", ".join(f"{verdicts[key]} {key}" for key in sorted(verdicts))
        lines.append(f"findings: {len(results.findings)} checks, {parts}")
    for row in failed_findings(results)[:20]:
        values = "; ".join(f"{arm}: {row['measured'][arm]}" for arm in row["arms"])
        note = f" ({row['note']})" if row["note"] else ""
        where = f"{row['workload']} {row['protocol']} ratio {row['ratio']:g} seed {row['seed']}"
        lines.append(f"  {row['rule']} {row['verdict']}: {where}: {values}{note}")
    return lines
