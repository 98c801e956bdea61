"""What GitHub Actions shows of a session: a step summary and annotations."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from pruneaudit.report.results import Results
from pruneaudit.report.tables import measured_text, title, verdict_counts, verdict_line
from pruneaudit.report.writer import as_text, markdown_sections

#: GitHub drops a step summary above 1 MiB as a whole.
SUMMARY_LIMIT = 1024 * 1024
#: GitHub shows about ten annotations of a kind for a step.
MOST_ANNOTATIONS = 10
#: Lines of a section that is shown unfolded.
MOST_LINES = 12

Fails = Callable[[Mapping[str, Any]], bool]


def tell_github(
    results: Results,
    fails: Fails,
    report: Path,
    environment: Mapping[str, str] = os.environ,
    output: TextIO | None = None,
) -> None:
    """Append the step summary and print annotations, where this is a GitHub Actions step; else do nothing.

    Args:
        results: What was measured and found.
        fails: Whether a row of a verdict or finding fails the session.
        report: Folder of the whole report.
        environment: Environment of the process.
        output: Where annotations go, at the start of a line: elsewhere GitHub does not read them.
    """
    if environment.get("GITHUB_ACTIONS") != "true":
        return
    lines = error_lines(results, fails)
    path = environment.get("GITHUB_STEP_SUMMARY")
    if path:
        try:
            _append(Path(path), results, fails, report)
        except OSError as error:
            # The report itself is written: a session is not incomplete for want of a summary.
            lines.append(_annotation("warning", "pruneaudit", f"no step summary: {error.strerror or error}"))
    stream = output or sys.stdout
    for line in lines:
        stream.write(f"{line}\n")


def _append(path: Path, results: Results, fails: Fails, report: Path) -> None:
    used = path.stat().st_size if path.exists() else 0
    gap = "\n\n" if used else ""
    text = step_summary(results, fails, report, SUMMARY_LIMIT - used - len(gap))
    if text:
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(gap + text)


def step_summary(results: Results, fails: Fails, report: Path, limit: int = SUMMARY_LIMIT) -> str:
    """The report as Markdown, verdicts first, long sections folded; cut between sections to ``limit`` bytes.

    Nothing where not even the first lines fit: GitHub would drop what was there before as well.
    """
    pointer = f"The rest is in `{report / 'report.md'}`: upload it as an artefact.\n"
    counts = [f"{results.attempted}."]
    for name, rows in (("Verdicts", results.verdicts), ("Against the baseline", results.regressions)):
        counts += [f"{name}: {verdict_counts(rows)}."] if rows else []
    parts = [f"### pruneaudit\n\n{' '.join(counts)}\n\n"]
    failing = [row for row in (*results.verdicts, *results.regressions) if fails(row)]
    if failing:
        lines = [f"- {as_text(verdict_line(row))}" for row in failing[:MOST_ANNOTATIONS]]
        more = len(failing) - len(lines)
        lines += [f"- and {more} more"] if more else []
        parts.append("#### Fails\n\n" + "\n".join(lines) + "\n\n")
    parts += [_section(heading, body) for heading, body in markdown_sections(results)]
    sizes = [len(part.encode()) for part in parts]
    if sum(sizes) <= limit:
        return "".join(parts)
    room = limit - len(pointer.encode())
    kept = 0
    while sum(sizes[: kept + 1]) <= room:
        kept += 1
    return "".join([*parts[:kept], pointer]) if kept else ""


def _section(heading: str, body: str) -> str:
    lines = body.count("\n") + 1
    if lines <= MOST_LINES:
        return f"#### {heading}\n\n{body}\n\n"
    return f"#### {heading}\n\n<details><summary>{lines} lines</summary>\n\n{body}\n\n</details>\n\n"


def error_lines(results: Results, fails: Fails) -> list[str]:
    """``::error`` lines for cells, verdicts and findings that fail, and one that counts what is too many.

    Cells come first, one line for each reason: a cell that failed is why verdicts and findings behind it fail.
    """
    broken = Counter(
        (title(row["workload"], tuple(row["labels"])), row["error"])
        for row in results.cells
        if row["status"] == "failed"
    )
    found = [
        (f"{count} cell{'' if count == 1 else 's'} failed", f"{where}: {reason}")
        for (where, reason), count in broken.items()
    ]
    for row in (*results.verdicts, *results.regressions):
        if fails(row):
            found.append((f"{' against '.join(row['arms'])}: {row['verdict']}", f"{_where(row)}: {row['summary']}"))
    for row in results.findings:
        if fails(row):
            claim = results.rules[row["rule"]]["claim"]
            found.append((f"{row['rule']} {claim}", f"{_where(row)}: {measured_text(row)}"))
    if len(found) > MOST_ANNOTATIONS:
        more = len(found) - MOST_ANNOTATIONS + 1
        found = [*found[: MOST_ANNOTATIONS - 1], ("pruneaudit", f"{more} more failures in the report")]
    return [_annotation("error", *texts) for texts in found]


def _where(row: Mapping[str, Any]) -> str:
    return f"{title(row['workload'], tuple(row['labels']))} {row['protocol']} ratio {row['ratio']:g}"


def _annotation(kind: str, heading: str, message: str) -> str:
    return f"::{kind} title={_escaped(heading, ':,')}::{_escaped(message)}"


def _escaped(text: str, more: Iterable[str] = ()) -> str:
    for mark in ("%", "\r", "\n", *more):
        text = text.replace(mark, f"%{ord(mark):02X}")
    return text
