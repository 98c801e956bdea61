"""Rules of tables: pure functions of what is printed, registered once with an id.

A rule looks at a whole table, or at several (``scope="files"``), and yields what it finds, each with its place and with
what should stand there where that can be computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from pruneaudit.tables.rows import Row, Table

#: ``contradiction``: numbers that cannot all be right. ``unequal``: what is compared is not alike. ``missing``: what a
#: reader needs and does not find.
Kind = Literal["contradiction", "unequal", "missing"]


class Place(NamedTuple):
    """A cell of a table: its row and its column, both from 0. Several rows may stand in one line of a file."""

    row: int
    column: int


@dataclass(frozen=True, slots=True)
class Mark:
    """What a rule says of a place.

    Attributes:
        table: The table.
        line: Line of the file.
        message: What is wrong, with the numbers.
        cells: The cells that it is about.
        expected: What should stand there, where it can be computed.
        subject: Row that it is about, as people call it; empty: the table.
    """

    table: Table
    line: int
    message: str
    cells: tuple[Place, ...] = ()
    expected: str = ""
    subject: str = ""


@dataclass(frozen=True)
class Rule:
    """A registered rule.

    Attributes:
        id: Stable id.
        claim: What holds where it finds nothing, in one line.
        source: Who asks for it, or where it was found broken.
        kind: Contradiction, unequal conditions, or something missing.
        scope: ``table``, or ``files``: all tables that were given.
        check: The function.
    """

    id: str
    claim: str
    source: str
    kind: Kind
    scope: Literal["table", "files"]
    check: Callable[[Any], Iterator[Mark]] = field(repr=False)

    @property
    def explanation(self) -> str:
        """What is compared, on one line."""
        return " ".join((self.check.__doc__ or "").partition("Example:")[0].split())

    @property
    def example(self) -> str:
        """What breaks it, on one line."""
        return " ".join((self.check.__doc__ or "").partition("Example:")[2].split())


@dataclass(frozen=True, slots=True)
class Finding:
    """A mark with the rule that made it."""

    rule: Rule
    mark: Mark

    @property
    def line(self) -> str:
        """``file:line: T001 message``."""
        subject = f"{self.mark.subject}: " if self.mark.subject else ""
        return f"{self.mark.table.path}:{self.mark.line}: {self.rule.id} {subject}{self.mark.message}"

    def row(self) -> dict[str, Any]:
        """As JSON builtins."""
        mark = self.mark
        return {
            "rule": self.rule.id,
            "kind": self.rule.kind,
            "file": str(mark.table.path),
            "line": mark.line,
            "table": mark.table.name,
            "row": mark.subject,
            "columns": [mark.table.grid.header[place.column] for place in mark.cells],
            "message": mark.message,
            "expected": mark.expected or None,
        }


registered: dict[str, Rule] = {}


def rule(
    rule_id: str, claim: str, source: str, kind: Kind, scope: Literal["table", "files"] = "table"
) -> Callable[[Callable[[Any], Iterator[Mark]]], Rule]:
    """Register a check.

    Raises:
        ValueError: The id is taken.
    """

    def register(check: Callable[[Any], Iterator[Mark]]) -> Rule:
        if rule_id in registered:
            raise ValueError(f"rule {rule_id} is registered twice")
        registered[rule_id] = Rule(rule_id, claim, source, kind, scope, check)
        return registered[rule_id]

    return register


def cells_of(row: Row, kinds: Iterable[str]) -> tuple[Place, ...]:
    """The cells that a row states some kinds in."""
    places = [row.entries[kind].column for kind in kinds if kind in row.entries]
    return tuple(Place(row.index, place) for place in dict.fromkeys(places) if place >= 0)
