"""All rules of tables, and what they find."""

from __future__ import annotations

from collections.abc import Sequence

import pruneaudit.tables.rules  # noqa: F401  (registers them)
from pruneaudit.errors import unknown
from pruneaudit.tables.rows import Table
from pruneaudit.tables.rule import Finding, Rule, registered


def rules() -> dict[str, Rule]:
    """All rules by id."""
    return dict(sorted(registered.items()))


def get_rule(rule_id: str) -> Rule:
    """The rule called so.

    Raises:
        ConfigError: There is none.
    """
    known = rules()
    if rule_id not in known:
        raise unknown("table rule", rule_id, known)
    return known[rule_id]


def audit(tables: Sequence[Table]) -> list[Finding]:
    """Everything that the rules find in some tables, in the order of files and lines."""
    found: list[Finding] = []
    for rule_ in rules().values():
        if rule_.scope == "files":
            found += [Finding(rule_, mark) for mark in rule_.check(tables)]
        else:
            found += [Finding(rule_, mark) for table in tables for mark in rule_.check(table)]
    order = {id(table): place for place, table in enumerate(tables)}
    return sorted(found, key=lambda one: (order[id(one.mark.table)], one.mark.line, one.rule.id, one.mark.message))
