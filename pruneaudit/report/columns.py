"""Rows as columns. Nearly all rows have nearly all columns; who lacks one has None there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter, methodcaller
from typing import Any

Row = Mapping[str, Any]
Rows = Sequence[Row]
#: What gives a row's value of each column.
Columns = Mapping[str, Callable[[Row], Any]]

#: Rows that a processor's cache holds: of more, each column would fetch all of them from memory again.
_BLOCK = 500


def own_columns(rows: Rows) -> dict[str, Callable[[Row], Any]]:
    """All columns that some row has, in the order in which they come up."""
    kinds = dict.fromkeys(map(tuple, rows))
    everywhere = set.intersection(*map(set, kinds)) if kinds else set()
    names = dict.fromkeys(name for kind in kinds for name in kind)
    return {name: itemgetter(name) if name in everywhere else methodcaller("get", name) for name in names}


def as_columns(rows: Rows, columns: Columns) -> dict[str, list[Any]]:
    """The values of each column."""
    found: dict[str, list[Any]] = {name: [] for name in columns}
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        for name, of in columns.items():
            found[name].extend(map(of, block))
    return found
