"""The rules by id: all that the files in ``rules/`` register, and which of them a protocol requires."""

from __future__ import annotations

import pruneaudit.audit.rules  # noqa: F401  (registers them)
from pruneaudit.audit.rule import Rule, registered
from pruneaudit.catalog.protocols import Protocol
from pruneaudit.errors import ConfigError, nearest, unknown


def rules() -> dict[str, Rule]:
    """All rules by id."""
    return dict(sorted(registered.items()))


def get_rule(rule_id: str) -> Rule:
    """The rule with this id, or an error that names the nearest one."""
    if rule_id not in registered:
        raise unknown("rule", rule_id, rules())
    return registered[rule_id]


def select(wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Ids for a list of ids and prefixes: ``F5`` means every rule whose id starts so.

    Raises:
        ConfigError: An entry selects no rule.
    """
    known = rules()
    found: dict[str, None] = {}
    for entry in wanted:
        chosen = [rule_id for rule_id in known if rule_id == entry or (len(entry) < 4 and rule_id.startswith(entry))]
        if not chosen:
            raise ConfigError(f"unknown rule '{entry}'.{nearest(entry, known)} Known: {', '.join(known)}.")
        found.update(dict.fromkeys(chosen))
    return tuple(sorted(found))


def required(protocol: Protocol) -> tuple[str, ...]:
    """Ids of the rules that must hold under a protocol.

    Raises:
        ConfigError: It requires a rule that there is not, or one that only a whole table can answer.
    """
    chosen = select(protocol.requires)
    for rule_id in chosen:
        if rules()[rule_id].whole_table:
            raise ConfigError(f"rule {rule_id} looks at a whole table; a protocol cannot require it of one comparison")
    return chosen
