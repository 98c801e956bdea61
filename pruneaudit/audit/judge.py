"""From records to findings: one arm or comparison × one rule, over paired seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import ConfigDict

from pruneaudit.audit.catalogue import get_rule
from pruneaudit.audit.evidence import Case
from pruneaudit.audit.rule import Outcome, Rule, Value, Verdict, equal

# Worst first: the verdict over seeds is the worst of them.
_RANK: dict[Verdict, int] = {"fail": 0, "incomplete": 1, "not measured": 2, "pass": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a rule reports of an arm or a comparison.

    Attributes:
        rule: Id of the rule.
        verdict: ``pass``, ``fail``, ``not measured`` or ``incomplete``.
        required: Whether the protocol requires the rule; where not, a failure means "not controlled".
        waived: Reason why a failure does not count, or nothing. It is recorded and printed.
        workload: And the three fields below it: what was judged.
        arms: The method, or the two methods.
        seeds: Paired seeds.
        seed: The seed whose values are shown: the first with the worst verdict; None where all seeds were seen at once.
        measured: Measured value by method.
        labels: Settings that are not the default.
        runs: Ids of the runs that the values come from.
        note: Why, where the values do not say it alone.
    """

    # A report makes hundreds of thousands of them: they are validated where a results.json is, by its schema.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    rule: str
    verdict: Verdict
    required: bool = True
    waived: str = ""
    workload: str
    protocol: str
    ratio: float
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    seed: int | None
    measured: dict[str, Value]
    runs: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    note: str = ""

    def row(self) -> dict[str, Any]:
        """As JSON builtins."""
        return {
            "rule": self.rule,
            "verdict": self.verdict,
            "required": self.required,
            "waived": self.waived,
            "workload": self.workload,
            "protocol": self.protocol,
            "ratio": self.ratio,
            "arms": list(self.arms),
            "seeds": list(self.seeds),
            "seed": self.seed,
            "measured": self.measured,
            "runs": list(self.runs),
            "labels": list(self.labels),
            "note": self.note,
        }

    @property
    def holds(self) -> bool:
        """Whether it stands in no comparison's way."""
        return self.verdict == "pass" or not self.required or bool(self.waived)

    @property
    def line(self) -> str:
        """The finding in one line."""
        values = "; ".join(f"{arm}: {self.measured.get(arm)}" for arm in self.arms)
        notes = [self.note, f"waived: {self.waived}" if self.waived else ""]
        note = f" ({'; '.join(text for text in notes if text)})" if any(notes) else ""
        seed = "" if self.seed is None else f", seed {self.seed}"
        return f"{self.rule} {get_rule(self.rule).claim}: {self.verdict}{seed}: {values}{note}"


def judge(rule_id: str, case: Case, required: bool = True, waived: str = "", labels: tuple[str, ...] = ()) -> Finding:
    """Apply one rule to one case.

    Args:
        rule_id: The rule.
        case: The arm or comparison.
        required: Whether its protocol requires the rule.
        waived: Reason why a failure does not count, or nothing.
        labels: Settings that are not the default.
    """
    rule = get_rule(rule_id)
    subject = case.subject
    seed, outcome = (None, rule.check(case)) if rule.scope == "series" else _worst(rule, case)
    return Finding(
        rule=rule_id,
        verdict=outcome.verdict,
        required=required,
        waived=waived if outcome.verdict != "pass" else "",
        workload=subject.workload,
        protocol=subject.protocol,
        ratio=subject.ratio,
        arms=subject.methods,
        seeds=subject.seeds,
        seed=seed,
        measured=dict(zip(subject.methods, (outcome.left, outcome.right), strict=False)),
        runs=case.runs(seed),
        labels=labels,
        note=outcome.note,
    )


def _worst(rule: Rule, case: Case) -> tuple[int, Outcome]:
    """The first seed with the worst verdict, and what was seen there."""
    if rule.measure is not None and not case.broken:
        left, right = case.measured(rule.measure)
        if left == right and None not in left:  # Passes at every seed.
            return next(iter(case.seeds)), equal(left[0], right[0])
    worst: tuple[int, Outcome] | None = None
    for seed, arms in case.seeds.items():
        outcome = rule.check(*arms) if arms else Outcome("incomplete", None, None, case.broken[seed])
        if worst is None or _RANK[outcome.verdict] < _RANK[worst[1].verdict]:
            worst = seed, outcome
        if outcome.verdict == "fail":  # Nothing is worse: other seeds need not be looked at.
            break
    assert worst is not None
    return worst
