"""Rows as columns. Nearly all rows have nearly all columns; who lacks one has None there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def names_of(rows: Rows) -> list[str]:
    """All columns that some row has, in the order in which they come up."""
    return list(dict.fromkeys(name for names in dict.fromkeys(map(tuple, rows)) for name in names))


def column(rows: Rows, name: str) -> list[Any]:
    """The values of one column."""
    # Where all have it, in a third of the time.
    try:
        return list(map(itemgetter(name), rows))
    except KeyError:
        return [row.get(name) for row in rows]
