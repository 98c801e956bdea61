"""``pruneaudit tables``: files in, findings out, as lines, JSON, SARIF and pages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruneaudit.errors import ConfigError, nearest
from pruneaudit.tables.catalogue import audit, rules
from pruneaudit.tables.columns import OTHERS, check_headers
from pruneaudit.tables.readers import NoTableError, read
from pruneaudit.tables.rows import Table, understand
from pruneaudit.tables.rule import Finding
from pruneaudit.tables.setups import MOST, Setup, is_cut, setups

_KINDS = ("contradiction", "unequal", "missing")


@dataclass(frozen=True)
class Audited:
    """What was found in some files.

    Attributes:
        tables: Their tables.
        findings: What the rules found, in order.
        empty: Files without a table, each in a line.
    """

    tables: list[Table]
    findings: list[Finding]
    empty: tuple[str, ...] = ()

    def setups(self) -> list[Setup]:
        """Strictest setups of pairs of rows."""
        return setups(self.tables)

    def cut(self) -> list[str]:
        """Tables with more pairs than :meth:`setups` gives, a line each."""
        return [
            f"{table.path}:{table.grid.number}: {table.name}: of more than {MOST:,} pairs of rows these are the first"
            for table in self.tables
            if is_cut(table)
        ]

    def notes(self) -> list[str]:
        """What was understood, for people: columns as guessed, and cells that could not be read."""
        lines = list(self.empty)
        for table in self.tables:
            meaning = [f"{column.header} = {column.kind}" for column in table.columns if column.kind != OTHERS]
            ignored = [column.header or "(no name)" for column in table.columns if column.kind == OTHERS]
            rest = f"; not used: {', '.join(ignored)}" if ignored else ""
            where = f"{table.path}:{table.grid.number}"
            rows = f"{len(table.rows)} row{'s' if len(table.rows) != 1 else ''}"
            lines.append(f"{where}: {table.name}: {rows}; {', '.join(meaning) or 'no column is known'}{rest}")
            lines += [f"{where}: {remark}" for remark in table.remarks]
            lines += [f"{table.path}:{line}: {note}" for line, note in table.grid.notes]
            lines += unread(table)
        return lines

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON builtins."""
        return {
            "tables": [
                {
                    "file": str(table.path),
                    "line": table.grid.number,
                    "name": table.name,
                    "rows": len(table.rows),
                    "columns": [
                        {"header": column.header, "kind": column.kind, "of": column.context or None}
                        for column in table.columns
                    ],
                    "notes": [
                        *({"line": None, "note": remark} for remark in table.remarks),
                        *({"line": line, "note": note} for line, note in table.grid.notes),
                        *({"line": None, "note": note} for note in unread(table)),
                    ],
                }
                for table in self.tables
            ],
            "findings": [finding.row() for finding in self.findings],
            "setups": [setup.row() for setup in self.setups()],
            "setups_cut": self.cut(),
        }


def unread(table: Table) -> list[str]:
    """Cells of columns of numbers that hold none, a line for each column: nothing is dropped without a word."""
    from pruneaudit.tables.columns import NUMBERS
    from pruneaudit.tables.numbers import is_missing

    found = []
    for column in table.columns:
        if column.kind not in NUMBERS:
            continue
        cells = {
            (row.line, entry.text, "deviation" if kind == "spread" != column.kind else "number")
            for row in table.rows
            for kind, entry in row.entries.items()
            if entry.column == column.place and entry.number is None and not is_missing(entry.text)
        }
        if cells:
            line, text, what = min(cells)
            more = f", and {len(cells) - 1} more cells of this column" if len(cells) > 1 else ""
            found.append(f"{table.path}:{line}: {column.header}: no {what} in {text[:60]!r}{more}")
    return found


def audit_files(paths: Sequence[Path], mapping: Mapping[str, str] | None = None) -> Audited:
    """Read files and apply all rules.

    Args:
        paths: Files with tables.
        mapping: Kind of column by header, where the guess is wrong.

    Raises:
        ConfigError: A file cannot be read, or none of its tables can; or a header of the mapping is in no table.
    """
    tables: list[Table] = []
    empty: list[str] = []
    for path in paths:
        try:
            tables += [understand(grid, mapping) for grid in read(path)]
        except NoTableError as error:
            # Among many documents, as a hook names them, some have none.
            if len(paths) == 1:
                raise
            empty.append(str(error))
    if not tables:
        raise ConfigError(f"none of {len(paths)} files holds a table, the first: {empty[0]}")
    check_headers(mapping or {}, [column.header for table in tables for column in table.columns])
    return Audited(tables, audit(tables), tuple(empty))


def failing(choice: str) -> frozenset[str]:
    """Rules that fail, of ``--fail-on``: ids and kinds, separated by commas; ``all`` or ``none``.

    Raises:
        ConfigError: A name is neither.
    """
    known = rules()
    found: set[str] = set()
    for name in filter(None, (part.strip() for part in choice.split(","))):
        if name == "all":
            found |= set(known)
        elif name in _KINDS:
            found |= {rule.id for rule in known.values() if rule.kind == name}
        elif name in known:
            found.add(name)
        elif name != "none":
            options = [*_KINDS, "all", "none", *known]
            raise ConfigError(
                f"--fail-on: no rule or kind '{name}'.{nearest(name, options)} Known: {', '.join(options)}"
            )
    return frozenset(found)


def sarif(audited: Audited) -> str:
    """Findings in SARIF 2.1.0, as code hosts show them beside the lines."""
    from pruneaudit.version import __version__

    levels = {"contradiction": "error", "unequal": "warning", "missing": "note"}
    used = sorted({finding.rule.id for finding in audited.findings})
    known = rules()
    document = {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "pruneaudit tables",
                        "version": __version__,
                        "rules": [
                            {
                                "id": known[rule_id].id,
                                "shortDescription": {"text": known[rule_id].claim},
                                "fullDescription": {"text": known[rule_id].explanation},
                                "help": {"text": known[rule_id].source},
                                "defaultConfiguration": {"level": levels[known[rule_id].kind]},
                            }
                            for rule_id in used
                        ],
                    }
                },
                "results": [
                    {
                        "ruleId": finding.rule.id,
                        "ruleIndex": used.index(finding.rule.id),
                        "level": levels[finding.rule.kind],
                        "message": {"text": finding.line.partition(f" {finding.rule.id} ")[2]},
                        "locations": [
                            {
                                "physicalLocation": {
                                    "artifactLocation": {"uri": finding.mark.table.path.as_posix()},
                                    "region": {"startLine": max(finding.mark.line, 1)},
                                }
                            }
                        ],
                    }
                    for finding in audited.findings
                ],
            }
        ],
    }
    return json.dumps(document, indent=1)
