"""Rules by id, and how a rule is written.

A rule compares two arms at one seed. It is a pure function of measured records, registered with a stable id, a one-line
claim and a citation::

    @rule("F311", "Same retraining epochs", "Wang et al. 2023, Table 2, S3.1")
    def same_retraining_epochs(left: Evidence, right: Evidence) -> Outcome:
        ...
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pruneaudit.audit.evidence import Evidence
from pruneaudit.errors import unknown

Verdict = Literal["pass", "fail", "not measured", "incomplete"]
Value = str | int | float | None


@dataclass(frozen=True)
class Outcome:
    """What a rule sees at one seed.

    Attributes:
        verdict: ``pass``, ``fail``, or ``not measured`` where a record lacks what the rule reads.
        left: Measured value of the first arm.
        right: Measured value of the second arm.
        note: Why, where the values do not say it alone.
    """

    verdict: Verdict
    left: Value
    right: Value
    note: str = ""


@dataclass(frozen=True)
class Rule:
    """A registered rule."""

    id: str
    claim: str
    source: str
    check: Callable[[Evidence, Evidence], Outcome]

    @property
    def explanation(self) -> str:
        """The docstring of its check, on one line."""
        return " ".join((self.check.__doc__ or "").split())


_RULES: dict[str, Rule] = {}


def rule(rule_id: str, claim: str, source: str) -> Callable[[Callable[[Evidence, Evidence], Outcome]], Rule]:
    """Register a check as a rule.

    Raises:
        ValueError: The id is taken.
    """

    def register(check: Callable[[Evidence, Evidence], Outcome]) -> Rule:
        if rule_id in _RULES:
            raise ValueError(f"rule {rule_id} is registered twice")
        _RULES[rule_id] = Rule(rule_id, claim, source, check)
        return _RULES[rule_id]

    return register


def rules() -> dict[str, Rule]:
    """All rules by id."""
    import pruneaudit.audit.rules  # noqa: F401  (registers them)

    return dict(sorted(_RULES.items()))


def get_rule(rule_id: str) -> Rule:
    """The rule with this id, or an error that names the nearest one."""
    known = rules()
    if rule_id not in known:
        raise unknown("rule", rule_id, known)
    return known[rule_id]


def equal(left: Value, right: Value, note: str = "") -> Outcome:
    """Pass where two measured values are the same; ``not measured`` where one is missing."""
    if left is None or right is None:
        return Outcome("not measured", left, right, note)
    return Outcome("pass" if left == right else "fail", left, right, note)
