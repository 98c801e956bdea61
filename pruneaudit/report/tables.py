"""Tables of a report, as header and rows of text."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from pruneaudit.cells import is_scratch
from pruneaudit.report.results import Results

Table = tuple[list[str], list[list[str]]]

_MARKS = {"pass": "ok", "fail": "FAIL", "not measured": "n/m", "incomplete": "INC"}
_WORST = ("FAIL", "INC", "n/m", "ok")


def accuracy_table(results: Results, workload: str, labels: tuple[str, ...]) -> Table:
    """Mean ± sample std of the accuracy (percent) by protocol and method, one column for each ratio."""
    found = results.statistics(workload, labels)
    ratios = sorted({ratio for _, _, ratio in found})
    speedups = {
        ratio: {f"{found[key].speedup:.2f}" for key in found if key[2] == ratio and key[1] != "unpruned"}
        for ratio in ratios
    }
    header = ["protocol", "method", "n", *(_ratio_header(ratio, speedups[ratio]) for ratio in ratios)]
    rows = []
    for protocol, method in sorted({key[:2] for key in found}, key=lambda key: (key[0], is_scratch(key[1]), key[1])):
        cells = [found.get((protocol, method, ratio)) for ratio in ratios]
        counts = sorted({cell.n for cell in cells if cell is not None})
        rows.append(
            [protocol, method, "/".join(map(str, counts)), *("–" if cell is None else str(cell) for cell in cells)]
        )
    return header, rows


def base_line(results: Results, workload: str, labels: tuple[str, ...]) -> str:
    """One line on the dense base models, or nothing where none is shared."""
    base = results.base(workload, labels)
    return "" if base is None else f"Base model: {base} % (n = {base.n}, speedup 1)."


def _ratio_header(ratio: float, speedups: set[str]) -> str:
    return f"ratio {ratio:g} ({' / '.join(sorted(speedups))}x)" if speedups else f"ratio {ratio:g}"


def audit_matrix(results: Results, workload: str, labels: tuple[str, ...]) -> Table:
    """Comparisons × rules: the worst verdict over ratios and seeds."""
    verdicts: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for row in results.findings:
        if row["workload"] == workload and tuple(row["labels"]) == labels:
            key = (row["protocol"], " vs ".join(row["arms"]))
            mark = _MARKS[row["verdict"]]
            verdicts[key][row["rule"]] = min(mark, verdicts[key].get(row["rule"], "ok"), key=_WORST.index)
    rules = sorted({rule for marks in verdicts.values() for rule in marks})
    header = ["protocol", "comparison", *rules]
    rows = [[*key, *(marks.get(rule, "") for rule in rules)] for key, marks in sorted(verdicts.items())]
    return header, rows


def failed_findings(results: Results) -> list[dict[str, Any]]:
    """Findings that are no pass."""
    return [row for row in results.findings if row["verdict"] != "pass"]


def unmeasured_cells(results: Results) -> list[dict[str, Any]]:
    """Cells that failed, were skipped or are missing."""
    return [row for row in results.cells if row["status"] != "ok"]


def title(workload: str, labels: tuple[str, ...]) -> str:
    """Heading of a workload's tables."""
    return f"{workload} [{', '.join(labels)}]" if labels else workload
