"""Paper-ready tables: booktabs, one for each workload, laid out like Wang et al. 2023, Tables 4 and 6."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from pruneaudit.catalog import is_scratch
from pruneaudit.cells import UNPRUNED
from pruneaudit.report.results import Results, Statistic
from pruneaudit.report.tables import title

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}
#: Longer names would leave the page; titles stand in a line of their own.
_LONGEST = 60
_LONGEST_TITLE = 110


def tables(results: Results) -> dict[str, str]:
    r"""A table for each workload and set of labels, by file name.

    The files need ``\usepackage{booktabs}`` and nothing else.
    """
    found = {}
    for workload, labels in results.groups():
        if results.statistics(workload, labels):
            name = "-".join(["accuracy", workload, *labels])
            found[f"{_file_name(name)}.tex"] = _table(results, workload, labels)
    return found


def escaped(text: str, longest: int = _LONGEST) -> str:
    """Text from records for LaTeX: what is special is escaped, what is not ASCII is spelled near it or left out."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")
    plain = " ".join("".join(mark if mark.isprintable() else " " for mark in plain).split())
    short = plain if len(plain) <= longest else f"{plain[: longest - 3]}..."
    return "".join(_SPECIAL.get(mark, mark) for mark in short) or "?"


def _file_name(text: str) -> str:
    return "".join(mark if mark.isalnum() or mark in "-." else "-" for mark in text)[:120]


def _table(results: Results, workload: str, labels: tuple[str, ...]) -> str:
    found = results.statistics(workload, labels)
    ratios = sorted({ratio for _, _, ratio in found})
    best, removed = _best(results, workload, labels), results.removed(workload, labels)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_caption(results, workload, labels, list(found.values()))}}}",
        rf"\begin{{tabular}}{{l{'c' * len(ratios)}}}",
        r"\toprule",
        " & ".join(["Method", *(_ratio(ratio, found) for ratio in ratios)]) + r" \\",
    ]
    for protocol in sorted({protocol for protocol, _, _ in found}):
        methods = sorted(
            {name for known, name, _ in found if known == protocol}, key=lambda name: (is_scratch(name), name)
        )
        lines += [
            r"\midrule",
            rf"\multicolumn{{{len(ratios) + 1}}}{{l}}{{{_setup(results, protocol)}}} \\",
            r"\midrule",
        ]
        for method in methods:
            cells = [_cell(found.get((protocol, method, ratio)), (protocol, ratio, method) in best) for ratio in ratios]
            # Zeros are no smaller network: such rows are not to be compared with the others.
            name = escaped(method) + (" (single weights)" if removed[method] == "weight" else "")
            lines.append(" & ".join([name, *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _caption(results: Results, workload: str, labels: tuple[str, ...], found: Sequence[Statistic]) -> str:
    counts = sorted({statistic.n for statistic in found})
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    base = results.base(workload, labels)
    sentences = [
        f"Test accuracy (\\%) of {escaped(title(workload, labels))} after the last epoch,",
        f"mean $\\pm$ sample standard deviation, n = {n}.",
        *([f"Base model: {_plain(base)}."] if base is not None else []),
        "Bold: better than every method that it may be compared with, by the exact sign-flip test",
        "after Holm's correction; without it nothing is shown to be best.",
    ]
    return "\n".join(sentences)


def _setup(results: Results, protocol: str) -> str:
    """A protocol with MLPerf's word for it: closed where arms share base and retraining, else open."""
    facts = results.protocols.get(protocol, {})
    closed = facts.get("base") == "shared" and facts.get("retraining") != "own"
    division = "closed" if closed else "open: arms differ in more than the pruning"
    return f"{escaped(protocol.upper())} ({division}): {escaped(facts.get('title', ''), _LONGEST_TITLE)}"


def _ratio(ratio: float, found: Mapping[tuple[str, str, float], Statistic]) -> str:
    """Heading of a ratio, with the speedups that were reached."""
    speedups = [key_value.speedup for key, key_value in found.items() if key[2] == ratio and key[1] != UNPRUNED]
    ends = dict.fromkeys(f"{speedup:.2f}" for speedup in (min(speedups, default=1.0), max(speedups, default=1.0)))
    return rf"{ratio:g} (${'$--$'.join(ends)}\times$)"


def _best(results: Results, workload: str, labels: tuple[str, ...]) -> set[tuple[str, float, str]]:
    """(protocol, ratio, method) of methods that verdicts set above all others that they may be compared with."""
    rows: list[dict[str, Any]] = [
        row for row in results.standings if row["workload"] == workload and tuple(row["labels"]) == labels
    ]
    return {
        (row["protocol"], row["ratio"], row["groups"][0][0])
        for row in rows
        if len(row["groups"]) > 1 and len(row["groups"][0]) == 1
    }


def _cell(statistic: Statistic | None, best: bool) -> str:
    if statistic is None:
        return "--"
    text = _plain(statistic)
    return rf"\textbf{{{text}}}" if best else text


def _plain(statistic: Statistic) -> str:
    mean = f"{statistic.mean:.2f}"
    return mean if statistic.std is None else rf"{mean} $\pm$ {statistic.std:.2f}"
