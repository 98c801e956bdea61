"""Writes a report: the page, report.md, tables (CSV and LaTeX), results.json and a badge."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from operator import is_
from pathlib import Path
from typing import Any

from tabulate import tabulate

from pruneaudit.errors import printable
from pruneaudit.report import latex
from pruneaudit.report.badge import badge
from pruneaudit.report.columns import as_columns, own_columns
from pruneaudit.report.drawing import Drawing
from pruneaudit.report.page import page
from pruneaudit.report.published import PUBLISHED_NOTE, published_notes, published_table
from pruneaudit.report.results import Results, no_collection
from pruneaudit.report.tables import (
    FEW_SEEDS,
    NOISE_NOTE,
    Table,
    accuracy_table,
    architecture_table,
    arm_matrix,
    audit_matrix,
    base_line,
    beside_table,
    besides,
    failed_findings,
    groups_of,
    has_few_seeds,
    legend,
    measured_text,
    metric_facts,
    no_outcomes,
    noise_table,
    profile_table,
    profile_words,
    rules_text,
    size_table,
    standings_table,
    strictest_matrix,
    title,
    trainability_table,
    verdict_counts,
    verdict_table,
    why_text,
)
from pruneaudit.workloads.metrics import ACCURACY, Metric

#: How a text begins that a spreadsheet would calculate.
_FORMULA = frozenset("=+-@\t\r")
_NUMBERS = frozenset((int, float, bool, type(None)))
#: Names of the files that the last report in a folder wrote.
_LISTED = ".report-files"


@no_collection()
def write(results: Results, folder: Path, figures: str | Drawing = "none") -> list[Path]:
    """Write all files of a report, each whole or not at all, and remove what an earlier report has left over.

    Figures come last, since they take longest; without one that cannot be drawn the report is whole, and a warning
    says so.

    Args:
        results: What is reported.
        folder: Where to; made where it is missing. Files that no report wrote stay.
        figures: ``1`` or ``2`` columns of a paper wide; ``auto``: 2; ``none``; or those that are being drawn already.

    Returns:
        Paths of the files.
    """
    if isinstance(figures, str):
        with Drawing(figures) as drawing:
            return write(results, folder, drawing)
    figures.begin(results)
    figures.conclude(results)
    with _alone(folder):
        return _write(results, folder, figures)


def _write(results: Results, folder: Path, figures: Drawing) -> list[Path]:
    mark = badge(results)
    files: list[Path] = _place(
        {
            folder / "results.json": _json(results.as_json()),
            folder / "report.html": page(results),
            folder / "report.md": markdown(results),
            folder / "badge.svg": mark.svg,
            folder / "badge.json": mark.endpoint,
            folder / "tables" / "cells.csv": _csv(results.cells),
            folder / "tables" / "findings.csv": _csv(results.findings),
            folder / "tables" / "verdicts.csv": _verdicts_csv(results),
            **{folder / "tables" / f"{name}.csv": rows for name, rows in _metric_csvs(results).items()},
            **{folder / "tables" / name: text for name, text in latex.tables(results).items()},
        }
    )
    # Figures of an earlier report go now: they never stand beside a page of other results.
    _forget_others(folder, files)
    for images in figures.images():
        files += _place({folder / "figures" / name: image for name, image in images.items()})
        _forget_others(folder, files)
    return files


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for another session that writes its report here: files of two would stand beside each other."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = None
    # Where the system cannot lock a folder, each file is still one of the two, and whole.
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _place(files: Mapping[Path, str | bytes | Iterator[str]]) -> list[Path]:
    """Write files: all of them, or none where one cannot be written whole."""
    for parent in {path.parent for path in files}:
        parent.mkdir(parents=True, exist_ok=True)
    mark = secrets.token_hex(8)
    parts = {path: path.with_name(f".{path.name}.{mark}.part") for path in files}
    try:
        for path, text in files.items():
            if isinstance(text, bytes):
                parts[path].write_bytes(text)
                continue
            with parts[path].open("w", encoding="utf-8", newline="") as part:
                part.writelines([text] if isinstance(text, str) else text)
        # Only now: what cannot be written whole (because it is no JSON, say) replaces nothing.
        for path, whole in parts.items():
            os.replace(whole, path)
    finally:
        for rest in parts.values():
            rest.unlink(missing_ok=True)
    return list(files)


def _forget_others(folder: Path, files: Iterable[Path]) -> None:
    """Remove what the last report wrote here and this one did not: a table of a workload that is not in it, say."""
    listed = folder / _LISTED
    names = {path.relative_to(folder).as_posix() for path in files}
    before = listed.read_text(encoding="utf-8").split("\n") if listed.exists() else []
    for name in set(before) - names - {""}:
        # Only where a report writes: the list may have been edited.
        if Path(name).parent.as_posix() in ("tables", "figures"):
            (folder / name).unlink(missing_ok=True)
    listed.write_text("".join(f"{name}\n" for name in sorted(names)), encoding="utf-8")


def _json(content: Mapping[str, Any]) -> Iterator[str]:
    """Strict JSON with one row of a list on a line: thousands of findings stay readable and comparable line by line."""
    encode = json.JSONEncoder(sort_keys=True, allow_nan=False).encode
    before = "{\n "
    for key, value in sorted(content.items()):
        yield f"{before}{encode(key)}: "
        if isinstance(value, list) and value:
            yield f"[\n  {encode(value[0])}"
            for row in value[1:]:
                yield f",\n  {encode(row)}"
            yield "\n ]"
        else:
            yield encode(value)
        before = ",\n "
    yield "\n}\n"


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
    named = "." if results.is_stated else "; `results.json` names the runs of each cell."
    blocks += [f"{results.origin}{named}", ""]
    return "\n".join(blocks)


def markdown_sections(results: Results) -> list[tuple[str, str]]:
    """Heading and body of every section: verdicts, what is wrong, tables, how it was measured."""
    sections: list[tuple[str, str]] = []
    for heading, rows in (("Verdicts", results.verdicts), ("Against the baseline", results.regressions)):
        sections += [
            (f"{heading}: {as_text(name)}", _verdicts(members, results.metric(members[0]["workload"])))
            for name, members in groups_of(rows).items()
        ]
    sections += _problems(results)
    if results.study is not None and results.study["waive"]:
        lines = [f"- {rule}: {as_text(reason)}" for rule, reason in sorted(results.study["waive"].items())]
        sections.append((f"Waived by study {as_text(results.study['name'])}", "\n".join(lines)))
    for workload, labels in results.groups:
        sections += _workload(results, workload, labels)
    for profile in results.profiles:
        points = ", ".join(profile["points"])
        what, counted = profile_words(profile)
        text = (
            f"Share of operating points ({as_text(points)}) at which the method's mean {what} is within so many "
            f"{counted} of the best one's."
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
    metrics = [f"- {as_text(name)}: {as_text(text)}" for name, text in metric_facts(results)]
    ends = (("Protocols", protocols), ("Metrics", metrics), ("Rules", rules), ("Environment", environments))
    return [*sections, *((heading, "\n".join(lines)) for heading, lines in ends if lines)]


def _verdicts(rows: list[Mapping[str, Any]], metric: Metric) -> str:
    note = (
        f"First arm minus second, {metric.points}, over paired seeds: mean, 95 % t interval, p of the exact sign-flip "
        "test after Holm's correction over the protocol's table. Ties stay ties: indeterminate is no verdict on either."
    )
    notes = [note, *([FEW_SEEDS] if has_few_seeds(rows) else []), *filter(None, [no_outcomes(rows, metric)])]
    others = "".join(f"\n- {as_text(text)}." for text in besides(rows))
    return "\n\n".join([*notes, _table(*verdict_table(rows, metric)), *([others.strip()] if others else [])])


def _workload(results: Results, workload: str, labels: tuple[str, ...]) -> list[tuple[str, str]]:
    """Tables of one workload."""
    name = as_text(title(workload, labels))
    base = base_line(results, workload, labels)
    trainability = trainability_table(results, workload, labels)
    comparisons, arms = (matrix(results, workload, labels) for matrix in (audit_matrix, arm_matrix))
    metric = results.metric(workload)
    parts = [
        (
            metric.title,
            f"Test {metric.counted} {results.moment}, mean ± sample standard deviation over n seeds. "
            f"In brackets the speedup, MACs(base) / MACs(pruned). {base}",
            accuracy_table(results, workload, labels),
        ),
        (
            "other metrics",
            "Metrics of the same runs on the test split after the last epoch, mean ± sample standard deviation over n "
            "seeds. They decide nothing.",
            beside_table(results, workload, labels),
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
            "noise floor",
            f"{NOISE_NOTE} In {metric.points}.",
            noise_table(results, workload, labels),
        ),
        (
            "strictest common setup",
            "The strictest setup of Wang et al. 2023 whose rules hold between two methods at every ratio, as measured.",
            strictest_matrix(results, workload, labels),
        ),
        (
            "published and ours",
            f"{PUBLISHED_NOTE} {' '.join(map(as_text, published_notes(results.of('published', workload, labels))))}",
            published_table(results.of("published", workload, labels)),
        ),
        (
            "trainability",
            "Mean Jacobian singular value (JSV) of the base model, after pruning and at the end; trainability "
            f"{metric.title} (TA): mean test {metric.title} over the first learning-rate stage, comparable only "
            f"between arms with the same retraining schedule. Means over seeds.{_both_modes(trainability)}",
            trainability,
        ),
    ]
    return [(f"{name}: {what}", f"{text.rstrip()}\n\n{_table(*table)}") for what, text, table in parts if table[1]]


def _both_modes(table: Table) -> str:
    """What the columns of a table of trainability mean that older results do not have."""
    if not any("(train)" in column for column in table[0]):
        return ""
    return (
        " JSV is measured in eval mode, (train) with batch norm on the statistics of the batch, as in TPP's release: "
        "what only one of the two shows may be stale running statistics. Pruned: the metric right after pruning."
    )


def _sentence(text: str) -> str:
    return f"{text}." if text else ""


def _problems(results: Results) -> list[tuple[str, str]]:
    sections: list[tuple[str, str]] = []
    findings, cells = failed_findings(results), results.unmeasured
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
    if results.ledger:
        sections.append(("Who wrote the records", "\n".join(f"- {as_text(line)}." for line in results.ledger)))
    return sections


@lru_cache(maxsize=2**16)
def as_text(value: str) -> str:
    """Text from records, safe inside Markdown: method names and error messages come from strangers."""
    plain = " ".join(printable(value, " ").split())
    escaped = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # Links and images too: a report must not fetch what an error message names. An underscore inside a word is text.
    return re.sub(r"[\\|`\[\]!*~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", escaped)


def _table(header: list[str], rows: list[list[str]]) -> str:
    safe = [[as_text(value) for value in row] for row in rows]
    return tabulate(safe, [as_text(name) for name in header], tablefmt="pipe", disable_numparse=True)


class _Lines(list[str]):
    """What a csv writer writes to: a StringIO takes four bytes for each character of all of it."""

    write = list.append


def _csv(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    lines = _Lines()
    writer = csv.writer(lines, lineterminator="\n")
    found = as_columns(rows, own_columns(rows))
    writer.writerow(found)
    # By column: of most texts and lists there are few, and each is looked at once.
    writer.writerows(zip(*(_fields(column, name) for name, column in found.items()), strict=True))
    yield from lines


def _fields(values: list[Any], column: str) -> list[Any]:
    kinds = set(map(type, values))
    if kinds <= _NUMBERS:
        return values
    if kinds <= {str, list, type(None)}:
        keys = [tuple(value) if type(value) is list else value for value in values] if list in kinds else values
        texts = {key: _field(key, column) for key in set(keys)}
        # Most columns are texts that stand as they are.
        return keys if all(map(is_, texts, texts.values())) else [texts[key] for key in keys]
    return [_field(value, column) for value in values]


def _field(value: Any, column: str) -> Any:
    if type(value) in _NUMBERS:
        return value
    if isinstance(value, dict):
        value = "; ".join([f"{key}: {item}" for key, item in value.items()])
    elif not isinstance(value, str):
        value = " ".join(map(str, value))
    # A spreadsheet would take it for a formula. Summaries are our own words, and begin with signed numbers.
    return f"'{value}" if value[:1] in _FORMULA and column != "summary" else str(value)


def _verdicts_csv(results: Results) -> Iterator[str]:
    """One row for each verdict; statistics in columns of their own."""
    rows = []
    for row in (*results.verdicts, *results.regressions):
        flat = {key: value for key, value in row.items() if key not in ("difference", "images", "outlook", "besides")}
        rows.append(flat | (row["difference"] or {}))
    return _csv(rows)


def _metric_csvs(results: Results) -> dict[str, Iterator[str]]:
    """The metric of every arm, a table for each metric that decides somewhere."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for workload, labels in results.groups:
        found = rows.setdefault(results.metric(workload).name, [])
        for (protocol, method, ratio), statistic in sorted(results.statistics(workload, labels).items()):
            found.append(
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
    return {name: _csv(found) for name, found in (rows or {ACCURACY.name: []}).items()}
