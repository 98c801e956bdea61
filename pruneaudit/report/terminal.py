"""The report on the terminal: verdicts, what is wrong, tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from tabulate import tabulate

from pruneaudit.errors import printable
from pruneaudit.report.results import Results
from pruneaudit.report.tables import (
    FEW_SEEDS,
    Table,
    accuracy_table,
    arm_matrix,
    audit_matrix,
    base_line,
    besides,
    failed_findings,
    groups_of,
    has_few_seeds,
    legend,
    measured_text,
    named_rules,
    noise_table,
    rules_text,
    standings_table,
    title,
    verdict_counts,
    verdict_line,
    verdict_table,
    why_text,
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
    lines = [*_verdicts(results, fails), *_problems(results)]
    for workload, labels in results.groups:
        name = title(workload, labels)
        accuracies = accuracy_table(results, workload, labels)
        if accuracies[1]:
            base = base_line(results, workload, labels)
            lines += ["", f"{name}: test {results.metric(workload).counted} at the last epoch, mean ± sample std"]
            lines += [*([base] if base else []), *_lines(accuracies)]
        ties = standings_table(results, workload, labels)
        if ties[1]:
            lines += ["", f"{name}: methods in groups that nothing tells apart, best first", *_lines(ties)]
        noise = noise_table(results, workload, labels)
        if noise[1]:
            lines += ["", f"{name}: noise floor, what native and portable arithmetic make of the same seeds"]
            lines += _lines(noise)
        for heading, matrix in (
            ("comparisons, worst over ratios and seeds", audit_matrix(results, workload, labels)),
            ("arms, worst over protocols, ratios and seeds", arm_matrix(results, workload, labels)),
        ):
            if matrix[1]:
                lines += ["", f"{name}: audit of {heading}", *_lines(matrix)]
                lines += [f"  {legend(matrix)}"] if legend(matrix) else []
                named = [rule for rule in named_rules(matrix) if rule in results.rules]
                lines += [f"  {rule} {results.rules[rule]['claim']}" for rule in named]
    # One line each, whatever is in a name or an error message: those of a merged ledger come from strangers.
    return [printable(line, " ") for line in lines]


def _verdicts(results: Results, fails: Callable[[Mapping[str, Any]], bool]) -> list[str]:
    lines: list[str] = []
    for heading, rows in (("verdicts", results.verdicts), ("against the baseline", results.regressions)):
        if not rows:
            continue
        lines += ["", f"{heading}: {verdict_counts(rows)}"]
        failing = [row for row in rows if fails(row)]
        lines += [f"  FAILS: {verdict_line(row)}" for row in failing[:MOST_FINDINGS]]
        lines += [f"  and {len(failing) - MOST_FINDINGS} more that fail"] if len(failing) > MOST_FINDINGS else []
        for name, members in groups_of(rows).items():
            metric = results.metric(members[0]["workload"])
            lines += ["", f"{name}: first arm minus second, {metric.points}; p after Holm over each protocol's table"]
            lines += _lines(verdict_table(members[:MOST_ROWS], metric))
            lines += [f"… {len(members) - MOST_ROWS} more in report.md"] if len(members) > MOST_ROWS else []
            lines += [f"  {FEW_SEEDS}"] if has_few_seeds(members) else []
            lines += [f"  {text}." for text in besides(members)]
    return lines


def _problems(results: Results) -> list[str]:
    statuses = ", ".join(f"{count} {status}" for status, count in sorted(results.statuses.items()))
    lines = ["", f"cells: {len(results.cells)} selected, {statuses}; {results.attempted}"]
    lines += [f"  ledger: {line}" for line in results.ledger]
    kinds = dict.fromkeys(environment.get("arithmetic", "") for environment in results.environments)
    lines += [f"  arithmetic: {one}" for one in kinds if one]
    told: list[str] = []
    for status in ("failed", "missing", "skipped", "outdated"):
        reasons = Counter(row["error"] for row in results.unmeasured if row["status"] == status)
        lines += [f"  {status} ({count}): {reason}" for reason, count in sorted(reasons.items())]
        told += [reason for reason in reasons if status == "failed" and reason]
    required = [row for row in results.findings if row["required"]]
    if required:
        verdicts = Counter("waived" if row["waived"] else row["verdict"] for row in required)
        parts = ", ".join(f"{verdicts[key]} {key}" for key in sorted(verdicts))
        lines.append(f"findings: {len(required)} required checks, {parts}")
    wrong = failed_findings(results)
    # One cause is told once: rules that stand on a failed cell have nothing to add to its reason.
    own = [row for row in wrong if not any(reason in why_text(row) for reason in told)]
    lines += (
        [f"  {len(wrong) - len(own)} lines of findings stand on the failed cells: see report.md"]
        if own != wrong
        else []
    )
    wrong = own
    for row in wrong[:MOST_FINDINGS]:
        seed = "" if row["seed"] is None else f" seed {row['seed']}"
        where = f"{title(row['workload'], tuple(row['labels']))} {row['protocol']} ratio {row['ratio']:g}{seed}"
        values = measured_text(row) or " vs ".join(row["arms"])
        note = f" ({why_text(row)})" if why_text(row) else ""
        lines.append(f"  {rules_text(row)} {row['verdict']}: {where}: {values}{note}")
    lines += [f"  and {len(wrong) - MOST_FINDINGS} more in report.md"] if len(wrong) > MOST_FINDINGS else []
    if results.study is not None:
        waived = sorted(results.study["waive"].items())
        lines += [f"waived by study {results.study['name']}: {rule}: {reason}" for rule, reason in waived]
    return lines


def _lines(table: Table) -> list[str]:
    header, rows = table
    plain = [[" ".join(cell.split()) for cell in row] for row in rows]
    return tabulate(plain, header, tablefmt="simple", disable_numparse=True).splitlines()
