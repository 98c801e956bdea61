"""Tables of a report, as header and rows of text."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pruneaudit.cells import is_scratch
from pruneaudit.report.results import Results

Table = tuple[list[str], list[list[str]]]
Matrix = dict[tuple[str, ...], dict[str, str]]

_MARKS = {"pass": "ok", "fail": "FAIL", "not measured": "n/m", "incomplete": "INC"}
_WORST = ("FAIL", "INC", "waived", "n/m", "no", "ok")
#: What the marks of an audit matrix mean.
LEGEND = "FAIL: required and broken; INC: cells are missing; n/m: not measured; no: not required and not so"


def _mark(row: Mapping[str, Any]) -> str:
    if row["verdict"] == "fail" and row["waived"]:
        return "waived"
    if row["verdict"] == "fail" and not row["required"]:
        return "no"
    return _MARKS[row["verdict"]]


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


def _matrix(rows: Iterable[Mapping[str, Any]], key: Callable[[Mapping[str, Any]], tuple[str, ...]]) -> Matrix:
    """The worst mark by row and rule."""
    marks: Matrix = defaultdict(dict)
    for row in rows:
        line = marks[key(row)]
        line[row["rule"]] = min(_mark(row), line.get(row["rule"], "ok"), key=_WORST.index)
    return marks


def audit_matrix(results: Results, workload: str, labels: tuple[str, ...]) -> Table:
    """Comparisons × rules that some protocol requires: the worst verdict over ratios and seeds.

    The last column names stricter rules that do not hold: what else may explain a difference.
    """
    rows = [row for row in _of(results.findings, workload, labels) if len(row["arms"]) == 2]
    marks = _matrix(rows, lambda row: (row["protocol"], " vs ".join(row["arms"])))
    needed = sorted({row["rule"] for row in rows if row["required"]})
    header = ["protocol", "comparison", *needed, "not controlled"]
    table = []
    for key, found in sorted(marks.items()):
        demanded = results.protocols[key[0]]["requires"]
        loose = [rule for rule, mark in sorted(found.items()) if mark == "no"]
        table.append([*key, *(found.get(rule, "") if rule in demanded else "" for rule in needed), " ".join(loose)])
    return (header, table) if needed else (header, [])


def arm_matrix(results: Results, workload: str, labels: tuple[str, ...]) -> Table:
    """Methods × rules on single arms: the worst verdict over protocols, ratios and seeds."""
    rows = [row for row in _of(results.findings, workload, labels) if len(row["arms"]) == 1]
    marks = _matrix(rows, lambda row: tuple(row["arms"]))
    rules = sorted({rule for found in marks.values() for rule in found})
    order = sorted(marks, key=lambda arms: (is_scratch(arms[0]), arms))
    return ["method", *rules], [[*arms, *(marks[arms].get(rule, "") for rule in rules)] for arms in order]


def verdict_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Verdicts with their evidence; differences in percentage points, first arm minus second."""
    header = ["protocol", "ratio", "comparison", "verdict", "difference", "95 % interval", "p", "n", "because of"]
    table = []
    for row in rows:
        gap = row["difference"]
        interval = "" if gap is None or gap["low"] is None else f"[{gap['low']:+.2f}, {gap['high']:+.2f}]"
        p = "" if row["p_adjusted"] is None else f"{row['p_adjusted']:.3g}"
        reasons = [*row["forbidden_by"], *(f"{rule} waived" for rule in row["waived"])]
        table.append(
            [
                row["protocol"],
                f"{row['ratio']:g}",
                " vs ".join(row["arms"]),
                row["verdict"],
                "" if gap is None else f"{gap['mean']:+.2f}",
                interval,
                p,
                str(len(row["seeds"])),
                " ".join(reasons),
            ]
        )
    return header, table


def standings_table(results: Results, workload: str, labels: tuple[str, ...]) -> Table:
    """Groups of methods that nothing tells apart, best first, by protocol and ratio."""
    rows = _of(results.standings, workload, labels)
    most = max((len(row["groups"]) for row in rows), default=0)
    header = ["protocol", "ratio", *(f"group {number + 1}" for number in range(most)), "not comparable"]
    table = []
    for row in rows:
        groups = [", ".join(group) for group in row["groups"]] + [""] * (most - len(row["groups"]))
        table.append([row["protocol"], f"{row['ratio']:g}", *groups, ", ".join(row["not_comparable"])])
    return header, table


def strictest_matrix(results: Results, workload: str, labels: tuple[str, ...]) -> Table:
    """Method × method: the strictest setup whose rules hold between them at every ratio; – where none was measured."""
    setups: dict[tuple[str, str], str] = {}
    for row in _of(results.strictest, workload, labels):
        left, right = row["arms"]
        setup = row["setup"] or "none"
        # Where ratios differ, the looser one: "none" sorts before "s…".
        for pair in ((left, right), (right, left)):
            setups[pair] = min(setup, setups.get(pair, setup))
    names = sorted({name for pair in setups for name in pair})
    return ["", *names], [[name, *(setups.get((name, other), "–") for other in names)] for name in names]


def profile_table(profile: Mapping[str, Any]) -> Table:
    """Share of operating points within so many points of the best, by method."""
    header = ["method", *(f"≤ {most:g}" for most in profile["within"])]
    order = sorted(profile["share"], key=lambda name: ([-share for share in profile["share"][name]], name))
    return header, [[name, *(f"{share:.0%}" for share in profile["share"][name])] for name in order]


def trainability_table(results: Results, workload: str, labels: tuple[str, ...]) -> Table:
    """Mean Jacobian singular value before pruning, after it and at the end; trainability accuracy; means over seeds."""
    grouped: dict[tuple[str, str, float], list[Mapping[str, Any]]] = defaultdict(list)
    for row in _of(results.cells, workload, labels):
        if row["status"] == "ok":
            grouped[row["protocol"], row["method"], row["ratio"]].append(row)
    header = ["protocol", "method", "ratio", "JSV base", "JSV pruned", "JSV end", "TA"]
    table = []
    for (protocol, method, ratio), rows in sorted(grouped.items()):
        values = [[row["jsv"][stage] for row in rows] for stage in ("base", "pruned", "end")]
        accuracies = [row["trainability_accuracy"] for row in rows]
        shown = [_mean(found, "{:.3g}") for found in values]
        table.append([protocol, method, f"{ratio:g}", *shown, _mean(accuracies, "{:.2f}")])
    return header, table


def _mean(values: list[Any], form: str) -> str:
    return "" if None in values else form.format(statistics.fmean(values))


def _of(rows: Iterable[dict[str, Any]], workload: str, labels: tuple[str, ...]) -> list[dict[str, Any]]:
    return [row for row in rows if row["workload"] == workload and tuple(row["labels"]) == labels]


def failed_findings(results: Results) -> list[dict[str, Any]]:
    """Required findings that are no pass."""
    return [row for row in results.findings if row["verdict"] != "pass" and row["required"]]


def unmeasured_cells(results: Results) -> list[dict[str, Any]]:
    """Cells that failed, were skipped or are missing."""
    return [row for row in results.cells if row["status"] != "ok"]


def title(workload: str, labels: tuple[str, ...]) -> str:
    """Heading of a workload's tables."""
    return f"{workload} [{', '.join(labels)}]" if labels else workload
