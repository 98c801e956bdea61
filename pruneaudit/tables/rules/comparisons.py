"""Rules of what differs between rows that are compared, apart from the method."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from pruneaudit.tables.numbers import Number
from pruneaudit.tables.rows import Row, Table, accuracy
from pruneaudit.tables.rule import Mark, cells_of, rule
from pruneaudit.tables.rules.accuracies import is_base, is_relative
from pruneaudit.tables.rules.evidence import results
from pruneaudit.tables.rules.sizes import is_whole, of_another_base


def _tasks(table: Table, least: int = 2) -> list[list[Row]]:
    """Rows with results on the same network and data, where there are enough of them."""
    found: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in results(table):
        found[row.task].append(row)
    return [rows for rows in found.values() if len(rows) >= least]


def _is_scratch(row: Row) -> bool:
    return bool(re.search(r"scratch|re-?init", f"{row.method} {row.section}".lower()))


@rule(
    "T021",
    "Methods that are compared start from one base model",
    "Wang et al. 2023, setup S2; Torch-Pruning's README: ten bases behind one ranking",
    "unequal",
)
def t021(table: Table) -> Iterator[Mark]:
    """Base accuracies (and names of base models) of rows on the same network and data, beyond rounding.

    Where the base is a row of its own, differences and sizes of the others against it: where they are of another one,
    either that is so or a number is wrong, and which of both nobody can tell.

    Example: bases from 92.80 to 93.93 in one comparison.
    """
    for rows in _tasks(table, least=1):
        dense = [row for row in table.rows if row.task == rows[0].task and is_base(row)]
        if len(dense) == 1 and is_whole(dense[0]):
            yield from _against(table, rows, dense[0])
    for rows in _tasks(table):
        bases = [(base, row) for row in rows if (base := accuracy(row, base=True)) is not None and not _is_scratch(row)]
        distinct: dict[str, tuple[Number, Row]] = {}
        for base, row in bases:
            if not any(_overlap(base, other) for other, _ in distinct.values()):
                distinct[str(base)] = (base, row)
        if len(distinct) > 1:
            values = sorted(base.value for base, _ in distinct.values())
            _, row = list(distinct.values())[1]
            message = (
                f"{len(distinct)} base models, from {values[0]:g} to {values[-1]:g} %, stand behind one comparison"
            )
            yield Mark(table, row.line, message, cells_of(row, ("base_accuracy", "base_error")), "", _where(row))
            continue
        for kind in ("base", "base_source"):
            names = dict.fromkeys(row.text(kind) for row in rows if row.text(kind))
            if len(names) > 1:
                row = next(row for row in rows if row.text(kind) == list(names)[1])
                message = f"{len(names)} base models stand behind one comparison: {', '.join(list(names)[:4])}"
                yield Mark(table, row.line, message, cells_of(row, (kind,)), "", _where(row))
                break


def _against(table: Table, rows: list[Row], base: Row) -> Iterator[Mark]:
    """Rows whose numbers are not of the base that stands in the same table."""
    for row in (one for one in rows if not _is_scratch(one)):
        for kinds, text in (*_other_accuracy(row, base), *of_another_base(row, base)):
            message = f"{text}: another base than {base.method} in line {base.line}, or a wrong number"
            yield Mark(table, row.line, message, cells_of(row, kinds), "", row.method)


def _other_accuracy(row: Row, base: Row) -> Iterator[tuple[tuple[str, ...], str]]:
    """Kinds and text of a difference that is not that of a row and its base, in either direction."""
    before, after, drop = accuracy(base), accuracy(row), row.number("drop")
    if before is None or after is None or drop is None or accuracy(row, base=True) is not None:
        return
    slack = before.half + after.half + drop.half
    lost = before.value - after.value
    if abs(abs(drop.value) - abs(lost)) > slack and not is_relative(before, after, drop):
        text = f"printed difference {row.text('drop')}, but {before} and {after} differ by {abs(lost):.2f}"
        yield ("drop", "accuracy", "error"), text


def _overlap(left: Number, right: Number) -> bool:
    return left.low <= right.high and right.low <= left.high


def _where(row: Row) -> str:
    return " ".join(part for part in (row.text("workload") or row.text("network"), row.text("dataset")) if part)


@rule(
    "T022",
    "Methods that are compared are retrained for as long and by the same learning rates",
    "Wang et al. 2023, setups S3.1 and S3.2",
    "unequal",
)
def t022(table: Table) -> Iterator[Mark]:
    """Retraining epochs and schedules of rows on the same network and data; training from scratch left out.

    Example: one method retrained for 20 epochs, another for 180.
    """
    for rows in _tasks(table):
        pruned = [row for row in rows if not _is_scratch(row)]
        for kind, what in (
            ("epochs", "retraining epochs"),
            ("schedule", "retraining schedules"),
            ("pruning_epochs", "pruning epochs"),
        ):
            values: dict[str, Row] = {}
            for row in pruned:
                if row.text(kind):
                    values.setdefault(row.budget(kind), row)
            if len(values) > 1:
                texts = [row.text(kind) for row in values.values()]
                row = list(values.values())[1]
                message = f"{len(values)} {what} in one comparison: {', '.join(texts[:5])}"
                yield Mark(table, row.line, message, cells_of(row, (kind,)), "", _where(row))


@rule(
    "T023",
    "Results that are compared were measured by the same people",
    "Torch-Pruning's README, note 2: baselines are copied; ShrinkBench, C16",
    "unequal",
)
def t023(table: Table) -> Iterator[Mark]:
    """Whether rows are own runs or copied, as a column says.

    Example: own accuracies beside accuracies of other papers.
    """
    for rows in _tasks(table):
        copied = [row for row in rows if re.search(r"cop(y|ied)|reported|paper|cited", row.text("origin").lower())]
        own = [row for row in rows if row.text("origin") and row not in copied]
        if copied and own:
            names = ", ".join(dict.fromkeys(row.method for row in copied[:4]))
            message = f"{len(copied)} of {len(rows)} results are copied ({names}), the others are own runs"
            yield Mark(table, copied[0].line, message, cells_of(copied[0], ("origin",)), "", _where(copied[0]))


@rule(
    "T024",
    "Results that are compared were made with one library",
    "Liu et al. 2019, Tables 2 and 3: drops in Caffe beside drops in PyTorch",
    "unequal",
)
def t024(table: Table) -> Iterator[Mark]:
    """Libraries of rows on the same network and data, as a column says.

    Example: a drop from Caffe's base beside one from PyTorch's.
    """
    for rows in _tasks(table):
        names = dict.fromkeys(row.text("framework") for row in rows if row.text("framework"))
        if len(names) > 1:
            row = next(row for row in rows if row.text("framework") == list(names)[1])
            message = f"results of {' and of '.join(names)} in one comparison"
            yield Mark(table, row.line, message, cells_of(row, ("framework",)), "", _where(row))
