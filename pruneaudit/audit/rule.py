"""What a rule is, and how one is written.

A rule is a pure function of measured records, registered with a stable id, a one-line claim and a citation. Its
docstring says what is measured and gives an example of what passes and what does not. Four kinds::

    @arm_rule("F501", "Declared budget equals measured", "DESIGN of the meter", on="pruning")
    def spends_what_it_declares(arm: Evidence) -> Outcome: ...            # one arm at one seed

    @rule("F103", "Matched MACs (within 2 %)", "Wang et al. 2023, Table 2, S1")
    def matched_macs(left: Evidence, right: Evidence) -> Outcome: ...     # two arms at one seed

    @same_rule("F311", "Same retraining epochs", "Wang et al. 2023, Table 2, S3.1")
    def same_retraining_epochs(arm: Evidence) -> Value: ...               # what two arms must share at each seed

    @series_rule("F603", "Enough paired seeds", "Bouthillier et al. 2021")
    def enough_seeds(case: Case) -> Outcome: ...                          # two arms over all seeds, and their table
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal, NamedTuple

from pruneaudit.audit.evidence import Case, Evidence, measured
from pruneaudit.catalog.names import UNPRUNED, is_scratch

Verdict = Literal["pass", "fail", "not measured", "incomplete"]
Value = str | int | float | None
Scope = Literal["arm", "pair", "series"]


class Outcome(NamedTuple):
    """What a rule sees.

    Attributes:
        verdict: ``pass``, ``fail``, or ``not measured`` where a record lacks what the rule reads.
        left: Measured value of the first (or only) arm.
        right: Measured value of the second arm.
        note: Why, where the values do not say it alone.
    """

    verdict: Verdict
    left: Value
    right: Value = None
    note: str = ""


@dataclass(frozen=True)
class Rule:
    """A registered rule.

    Attributes:
        id: Stable id.
        claim: What holds where it passes, in one line.
        source: Who asks for it.
        scope: What it looks at: one ``arm`` or a ``pair`` at one seed, or a ``series`` of pairs over all seeds.
        check: The function.
        on: Arms that an arm rule looks at: ``all``, ``pruning``, ``scratch``, or a control and its kin (``random``).
        measure: What a pair must share, where the rule asks for nothing else.
        whole_table: True where it reads other cells than the comparison's own: judged when a session ends, so that no
            protocol can require it of a single test.
        always: True where every verdict requires it, whatever the protocol.
    """

    id: str
    claim: str
    source: str
    scope: Scope
    check: Callable[..., Outcome]
    on: str = "all"
    measure: Callable[[Evidence], Value] | None = None
    whole_table: bool = False
    always: bool = False

    @property
    def explanation(self) -> str:
        """What is measured, on one line."""
        return " ".join((self.check.__doc__ or "").partition("Example:")[0].split())

    @property
    def example(self) -> str:
        """What passes and what does not, on one line."""
        return " ".join((self.check.__doc__ or "").partition("Example:")[2].split())

    def applies(self, method: str) -> bool:
        """Whether an arm rule looks at a method's arms."""
        if self.on == "all":
            return True
        if self.on in ("pruning", "scratch"):
            return is_scratch(method) == (self.on == "scratch") and method != UNPRUNED
        return method == self.on or method.startswith(f"{self.on}-")


registered: dict[str, Rule] = {}


def rule(
    rule_id: str, claim: str, source: str, always: bool = False
) -> Callable[[Callable[[Evidence, Evidence], Outcome]], Rule]:
    """Register a check of two arms at one seed.

    Raises:
        ValueError: The id is taken.
    """
    return _register(rule_id, claim, source, "pair", always=always)


def same_rule(
    rule_id: str, claim: str, source: str, always: bool = False
) -> Callable[[Callable[[Evidence], Value]], Rule]:
    """Register a measured value that two arms must share at every seed; its docstring is the rule's.

    Raises:
        ValueError: The id is taken.
    """

    def register(measure: Callable[[Evidence], Value]) -> Rule:
        measure = measured(measure)

        @wraps(measure)
        def check(left: Evidence, right: Evidence) -> Outcome:
            return equal(measure(left), measure(right))

        rule: Rule = _register(rule_id, claim, source, "pair", measure=measure, always=always)(check)
        return rule

    return register


def arm_rule(rule_id: str, claim: str, source: str, on: str = "all") -> Callable[[Callable[[Evidence], Outcome]], Rule]:
    """Register a check of one arm at one seed, which sees it once (:func:`measured`).

    Raises:
        ValueError: The id is taken.
    """

    def register(check: Callable[[Evidence], Outcome]) -> Rule:
        rule: Rule = _register(rule_id, claim, source, "arm", on=on)(measured(check))
        return rule

    return register


def series_rule(
    rule_id: str, claim: str, source: str, whole_table: bool = False, always: bool = False
) -> Callable[[Callable[[Case], Outcome]], Rule]:
    """Register a check of two arms over all seeds.

    Raises:
        ValueError: The id is taken.
    """
    return _register(rule_id, claim, source, "series", whole_table=whole_table, always=always)


def _register(rule_id: str, claim: str, source: str, scope: Scope, **more: Any) -> Any:
    def register(check: Callable[..., Outcome]) -> Rule:
        if rule_id in registered:
            raise ValueError(f"rule {rule_id} is registered twice")
        registered[rule_id] = Rule(rule_id, claim, source, scope, check, **more)
        return registered[rule_id]

    return register


def equal(left: Value, right: Value, note: str = "") -> Outcome:
    """Pass where two measured values are the same; ``not measured`` where one is missing."""
    if left is None or right is None:
        return Outcome("not measured", left, right, note)
    return Outcome("pass" if left == right else "fail", left, right, note)
