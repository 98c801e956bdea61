"""What GitHub Actions shows of a session: a step summary and annotations."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from pruneaudit.report.results import Results
from pruneaudit.report.writer import markdown_sections

#: GitHub drops a step summary above 1 MiB as a whole.
SUMMARY_LIMIT = 1024 * 1024
#: GitHub shows about ten annotations of a kind for a step.
MOST_ANNOTATIONS = 10


def tell_github(
    results: Results,
    fails: Callable[[Mapping[str, Any]], bool],
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
        output: Where annotations go.
    """
    if environment.get("GITHUB_ACTIONS") != "true":
        return
    path = environment.get("GITHUB_STEP_SUMMARY")
    if path:
        used = Path(path).stat().st_size if Path(path).exists() else 0
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(step_summary(results, report, SUMMARY_LIMIT - used))
    stream = output or sys.stdout
    for line in error_lines(results, fails):
        stream.write(f"{line}\n")


def step_summary(results: Results, report: Path, limit: int = SUMMARY_LIMIT) -> str:
    """The report as Markdown, verdicts first, long tables folded; cut between sections to ``limit`` bytes."""
    pointer = f"\nThe rest is in `{report / 'report.md'}`: upload it as an artefact.\n"
    text = f"### pruneaudit\n\n{results.attempted}.\n\n"
    for heading, body in markdown_sections(results):
        folded = body.count("\n") > MOST_ANNOTATIONS + 2
        section = f"#### {heading}\n\n"
        section += f"<details><summary>show</summary>\n\n{body}\n\n</details>\n\n" if folded else f"{body}\n\n"
        if len((text + section + pointer).encode()) > limit:
            # A summary that is too long is dropped as a whole.
            return (text + pointer) if len((text + pointer).encode()) <= limit else ""
        text += section
    return text


def error_lines(results: Results, fails: Callable[[Mapping[str, Any]], bool]) -> list[str]:
    """``::error`` lines for verdicts and findings that fail, and one that counts the rest."""
    lines = []
    for row in (*results.verdicts, *results.regressions):
        if fails(row):
            where = f"{row['workload']} {row['protocol']} ratio {row['ratio']:g}"
            lines.append(
                _annotation(f"{' against '.join(row['arms'])}: {row['verdict']}", f"{where}: {row['summary']}")
            )
    for row in results.findings:
        if fails(row):
            values = "; ".join(f"{arm}: {row['measured'].get(arm)}" for arm in row["arms"])
            where = f"{row['workload']} {row['protocol']} ratio {row['ratio']:g}"
            claim = results.rules[row["rule"]]["claim"]
            lines.append(_annotation(f"{row['rule']} {claim}", f"{where}: {values}"))
    if len(lines) > MOST_ANNOTATIONS:
        more = len(lines) - MOST_ANNOTATIONS + 1
        lines = [*lines[: MOST_ANNOTATIONS - 1], _annotation("pruneaudit", f"{more} more failures in the report")]
    return lines


def _annotation(title: str, message: str) -> str:
    return f"::error title={_escaped(title, ':,')}::{_escaped(message)}"


def _escaped(text: str, more: Iterable[str] = ()) -> str:
    for mark in ("%", "\r", "\n", *more):
        text = text.replace(mark, f"%{ord(mark):02X}")
    return text
