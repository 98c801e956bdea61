"""Rules of what a reader needs to judge a table and does not find in it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from pruneaudit.tables.numbers import is_missing
from pruneaudit.tables.rows import Row, Table
from pruneaudit.tables.rule import Mark, cells_of, rule
from pruneaudit.tables.rules.accuracies import is_base

#: Controls by what papers call them.
_CONTROLS = {
    "random": r"\brand(om)?\b",
    "magnitude": r"\bl1\b|\bl2\b|magnitude|\bnorm\b|l1[- ]norm|group-l1|filter ?norm|\bweight ?norm",
    "scratch": r"scratch|re-?init|from random",
}
_SIZES = (
    "speedup",
    "compression",
    "macs",
    "params",
    "macs_removed",
    "params_removed",
    "macs_kept",
    "params_kept",
    "ratio",
)


def results(table: Table) -> list[Row]:
    """Rows that state what pruning reached; not those of single seeds."""
    return [row for row in table.rows if row.number("seed") is None and not is_base(row) and _states_result(row)]


def _states_result(row: Row) -> bool:
    if row.number("accuracy") is not None or row.number("error") is not None:
        return True
    # A difference alone may be one of anything; beside a size or a base it is what pruning cost.
    return row.number("drop") is not None and any(row.number(kind) is not None for kind in (*_SIZES, "base_accuracy"))


def methods(table: Table) -> dict[str, list[Row]]:
    """Rows with a result by method."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in results(table):
        if row.text("method") or row.arm:
            found[row.method.lower()].append(row)
    return found


@rule(
    "T017",
    "Results have a spread, and the number of runs that it is of",
    "ShrinkBench (Blalock et al. 2020), C11 and C12: one of 81 papers gives a spread",
    "missing",
)
def t017(table: Table) -> Iterator[Mark]:
    """Whether any row states a deviation, and whether the number of runs is stated, where methods are compared.

    Example: twelve methods with one accuracy each.
    """
    if len(methods(table)) < 2 or len(results(table)) < 2:
        return
    rows = results(table)
    bare = [row for row in rows if row.number("spread") is None]
    if len(bare) == len(rows):
        yield Mark(
            table, table.grid.number, f"{len(rows)} results without a spread: nobody can tell a lead from chance"
        )
    elif bare:
        names = ", ".join(dict.fromkeys(row.method for row in bare[:3]))
        yield Mark(table, bare[0].line, f"{len(bare)} of {len(rows)} results have no spread: {names}")
    elif not table.says("runs"):
        yield Mark(table, table.grid.number, "deviations without the number of runs that they are of")


@rule(
    "T018",
    "Accuracies are of the last epoch, or of one that no test image chose",
    "Torch-Pruning's logs: best minus last epoch on the test set is 0.01 to 0.29 points",
    "unequal",
)
def t018(table: Table) -> Iterator[Mark]:
    """Which epoch is reported, as a column, the caption or the log says.

    Example: "Best Acc" of a loop that evaluates the test set after every epoch.
    """
    best = [row for row in results(table) if re.search(r"\bbest\b|\bmax", row.text("epoch_reported").lower())]
    if best:
        count = "all" if len(best) == len(results(table)) else f"{len(best)} of {len(results(table))}"
        message = (
            f"{count} accuracies are those of the best epoch on the test set: best of as many draws as there are epochs"
        )
        yield Mark(table, best[0].line, message, cells_of(best[0], ("epoch_reported", "accuracy")))


@rule(
    "T019",
    "Methods are shown at five operating points or more",
    "ShrinkBench (Blalock et al. 2020), R7: at least 5 operating points, such as 2, 4, 8, 16 and 32",
    "missing",
)
def t019(table: Table) -> Iterator[Mark]:
    """Most operating points that any method has on one network and data, where methods are compared.

    Example: every method at 2x only.
    """
    named = methods(table)
    if len(named) < 2:
        return
    points: dict[tuple[object, ...], set[str]] = defaultdict(set)
    for name, rows in named.items():
        for row in rows:
            points[name, row.task].add(_point(row))
    most = max(map(len, points.values()))
    if most < 5:
        message = f"no method has more than {most} operating point{'s' if most > 1 else ''}: no trade-off can be seen"
        yield Mark(table, table.grid.number, message)


def _point(row: Row) -> str:
    for kind in ("ratio", "speedup", "macs_removed", "params_removed", "macs", "params", "compression", "tier"):
        if kind in row.entries and not is_missing(row.entries[kind].text):
            return f"{kind} {row.entries[kind].text}"
    return row.point


@rule(
    "T020",
    "Random and magnitude pruning and training from scratch are among what is compared",
    "ShrinkBench (Blalock et al. 2020), C14 and C15; Liu et al. 2019",
    "missing",
)
def t020(table: Table) -> Iterator[Mark]:
    """Names of methods, arms and sections against what papers call these controls, where methods are compared.

    Example: five published methods, none of them random, by magnitude or from scratch.
    """
    named = methods(table)
    if len(named) < 2:
        return
    text = " ".join(f"{name} {row.section}" for name, rows in named.items() for row in rows[:1]).lower()
    absent = [control for control, pattern in _CONTROLS.items() if not re.search(pattern, text)]
    if absent:
        yield Mark(table, table.grid.number, f"no row is the control {' or '.join(absent)}")
