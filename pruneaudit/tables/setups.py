"""The strictest comparison setup that two rows can be shown to satisfy by what is stated, and why it is no higher.

Setups are those of Wang et al. 2023, Table 2. What is not stated is not shown: a table that leaves out its retraining
schedule cannot reach S3.2, whatever was done.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from pruneaudit.tables.numbers import Number
from pruneaudit.tables.rows import Row, Table, accuracy
from pruneaudit.tables.rules.evidence import results
from pruneaudit.tables.rules.sizes import lefts

#: Speedups that differ by more are other operating points; papers group what is "about 2x".
_SAME_POINT = 0.1
#: Pairs of a table that are judged.
MOST = 10_000


class Setup(NamedTuple):
    """What two rows share.

    Attributes:
        table: Their table.
        arms: Both rows.
        name: Strictest setup that is shown, such as ``S2``; empty: not even S1.
        why: Why it is no higher; empty for the strictest.
    """

    table: Table
    arms: tuple[Row, Row]
    name: str
    why: str

    def row(self) -> dict[str, Any]:
        """As JSON builtins."""
        left, right = self.arms
        return {
            "file": str(self.table.path),
            "lines": [left.line, right.line],
            "rows": [left.method, right.method],
            "setup": self.name or None,
            "why_no_higher": self.why or None,
        }


def setups(tables: Iterable[Table]) -> list[Setup]:
    """The strictest setup of every pair of methods on one network and data at one operating point.

    Of a table with more than :data:`MOST` pairs the first ones: nobody reads them, and they grow with the square of it.
    """
    return [
        Setup(table, pair, *strictest(*pair)) for table in tables for pair in itertools.islice(_pairs_of(table), MOST)
    ]


def is_cut(table: Table) -> bool:
    """Whether a table has more pairs than :func:`setups` gives."""
    return next(itertools.islice(_pairs_of(table), MOST, None), None) is not None


def _pairs_of(table: Table) -> Iterator[tuple[Row, Row]]:
    tasks: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in results(table):
        tasks[row.task].append(row)
    for rows in tasks.values():
        yield from _pairs(rows)


def _pairs(rows: list[Row]) -> Iterator[tuple[Row, Row]]:
    """Rows of one point. Of tables with several, rows at other points are no pairs of anything."""
    together: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in rows:
        together[row.group, row.section, row.text("tier")].append(row)
    for members in together.values():
        # A row that states no ratio may be at any.
        ratios = dict.fromkeys(row.text("ratio") for row in members)
        at = {ratio: [row for row in members if not _differ(row.text("ratio"), ratio)] for ratio in ratios}
        begun = dict.fromkeys(ratios, 0)
        for left in members:
            for ratio in ratios:
                begun[ratio] += not _differ(left.text("ratio"), ratio)
            ratio = left.text("ratio")
            others = itertools.islice(at[ratio], begun[ratio], None)
            yield from ((left, right) for right in others if left.method != right.method)


def _differ(left: str, right: str) -> bool:
    return bool(left and right and left != right)


def strictest(left: Row, right: Row) -> tuple[str, str]:
    """The strictest setup of two rows, and why it is no higher."""
    scratch = [row for row in (left, right) if is_scratch(row)]
    if len(scratch) == 1:
        return _against_scratch(left, right, scratch[0])
    name, apart = "", ""
    for setup, check in _LADDER:
        why = check(left, right)
        if why and setup == "S1" and left.text("tier") and left.text("tier") == right.text("tier"):
            # The table calls them one tier, and that is what S1 asks for; a reader should know how wide it is.
            why, apart = "", f"; one tier by name, {why}"
        if why:
            return name, f"{why}{apart}"
        name = setup
    return name, ""


def is_scratch(row: Row) -> bool:
    """Whether a row trains from random weights."""
    return bool(re.search(r"scratch|re-?init", f"{row.method} {row.section}".lower()))


def _point(left: Row, right: Row) -> str:
    if left.network is None and (not all(left.task[:1]) or not all(right.task[:1])):
        return "network or data not specified"
    # A pruning ratio that both state is their point; a speedup is what came of it.
    if left.text("ratio") and left.text("ratio") == right.text("ratio"):
        return ""
    for what in ("macs", "params"):
        first, second = lefts(left, what), lefts(right, what)
        if first and second:
            ratio = max(first[0].middle, second[0].middle) / max(min(first[0].middle, second[0].middle), 1e-9)
            if ratio > 1 + _SAME_POINT:
                shown = f"{left.method} {first[0].text}, {right.method} {second[0].text}"
                return f"other operating points: {shown}"
            return ""
    return "speedup and compression not specified"


def _base(left: Row, right: Row) -> str:
    first, second = left.text("base"), right.text("base")
    if first and second:
        return "" if first == second else f"other base models: {first} and {second}"
    one, other = accuracy(left, base=True), accuracy(right, base=True)
    if one is None or other is None:
        return f"base model of {left.method if one is None else right.method} not specified"
    if not _meet(one, other):
        return f"other base models: {one} % and {other} %"
    return ""


def _meet(left: Number, right: Number) -> bool:
    return left.low <= right.high and right.low <= left.high


def _same(kind: str, what: str) -> Callable[[Row, Row], str]:
    def check(left: Row, right: Row) -> str:
        first, second = (" ".join(row.text(kind).split()).lower() for row in (left, right))
        if not first or not second:
            return f"{what} of {left.method if not first else right.method} not specified"
        return "" if left.budget(kind) == right.budget(kind) else f"other {what}: {first} and {second}"

    return check


_LADDER: list[tuple[str, Callable[[Row, Row], str]]] = [
    ("S1", _point),
    ("S2", _base),
    ("S3.1", _same("epochs", "retraining epochs")),
    ("S3.2", _same("schedule", "retraining learning-rate schedule")),
    ("S4.1", _same("pruning_epochs", "pruning epochs")),
    ("S4.2", _same("pruning_schedule", "pruning learning-rate schedule")),
]


def _against_scratch(left: Row, right: Row, scratch: Row) -> tuple[str, str]:
    """SX-B or SX-A, where a pruned network is compared with the same one from random weights."""
    why = _point(left, right)
    if why:
        return "", why
    pruned = right if scratch is left else left
    stages = [pruned.number(kind) for kind in ("base_epochs", "pruning_epochs", "epochs")]
    own, speedup = scratch.number("epochs"), pruned.number("speedup")
    if own is None or stages[0] is None or stages[2] is None:
        return "S1", "epochs of the base model, of retraining or of training from scratch not specified"
    dense = stages[0].value + (stages[1].value if stages[1] is not None else 0.0)
    total = dense + stages[2].value
    if abs(own.value - total) <= 0.5:
        return "SX-A", "equal epochs, not equal MACs"
    if speedup is not None and abs(own.value - (dense * speedup.value + stages[2].value)) <= 0.005 * own.value + 0.5:
        return "SX-B", ""
    return "S1", f"{own.value:g} epochs from scratch against {total:g} of base model, pruning and retraining"
