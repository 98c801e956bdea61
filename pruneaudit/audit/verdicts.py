"""From findings and paired differences to verdicts: what may be said of two arms, and what forbids saying it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pruneaudit.audit.besides import besides
from pruneaudit.audit.evidence import Case, Evidence
from pruneaudit.audit.judge import Finding
from pruneaudit.audit.outlook import Outlook, outlook
from pruneaudit.audit.sequential import Plan, Stop
from pruneaudit.audit.statistics import (
    ALPHA,
    Difference,
    McNemar,
    describe,
    differences,
    holm,
    mcnemar,
    seeds_needed,
    word,
)
from pruneaudit.catalog.cells import Comparison
from pruneaudit.schema import Frozen
from pruneaudit.workloads.metrics import ACCURACY, Metric

Judgement = Literal["better", "worse", "equivalent", "indeterminate", "not comparable"]


class Verdict(Frozen):
    """What may be said of the first arm of a comparison, seen from the second.

    Attributes:
        verdict: ``better``, ``worse``, ``equivalent``, ``indeterminate`` or ``not comparable``.
        workload: And the four fields below it: what was compared.
        labels: Settings that are not the default.
        forbidden_by: Required rules that do not hold: why it is ``not comparable``.
        waived: Reason by rule, of rules that did not hold and were waived.
        uncontrolled: Rules that were not required and do not hold: what else may explain the difference.
        seeds: Paired seeds that were measured.
        difference: Statistics of the paired differences, in the metric's unit; None where no seed is complete.
        family: Comparisons of this table, over which p values are adjusted.
        p_adjusted: p after Holm's correction over the family.
        p_equivalent_adjusted: The same of the equivalence test.
        images: McNemar's test on the test images, by seed: a second line, it does not decide; none where the metric has
            no outcome for each image.
        summary: One line for people.
        plan: What was fixed before the first seed trained; None: a fixed number of seeds was judged at the end.
        looks: With a plan, seeds that the comparison was looked at after. p values are then those of the seeds that are
            there, adjusted ones 0.05 for what the plan decided and 1 for what it did not.
        metric: Name of what decided. Differences are first arm minus second, whatever is better.
        outlook: What an indeterminate one lacks; None where fewer than two seeds show anything.
        besides: What the arms do beside deciding what goes, in sentences.
    """

    verdict: Judgement
    workload: str
    protocol: str
    ratio: float
    arms: tuple[str, str]
    labels: tuple[str, ...] = ()
    forbidden_by: tuple[str, ...] = ()
    waived: dict[str, str] = {}
    uncontrolled: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    difference: Difference | None = None
    family: int = 1
    p_adjusted: float | None = None
    p_equivalent_adjusted: float | None = None
    images: dict[int, McNemar] = {}
    summary: str = ""
    plan: Plan | None = None
    looks: int | None = None
    metric: str = ACCURACY.name
    outlook: Outlook | None = None
    besides: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The verdict in one line."""
        left, right = self.arms
        where = f"{self.workload} {self.protocol} ratio {self.ratio:g}"
        return f"{where}: {left} against {right}: {self.verdict}; {self.summary}"


@dataclass(frozen=True)
class Judged:
    """A comparison with everything that was found about it.

    Attributes:
        case: The comparison and its evidence.
        findings: Findings of the comparison and of both of its arms.
        margin: Differences below this do not matter, in the metric's unit.
        labels: Settings that are not the default.
        metric: What decides.
        plan: What was fixed before the first seed trained, or None.
        stop: Where the comparison stands by its plan, or None.
    """

    case: Case
    findings: tuple[Finding, ...]
    margin: float
    labels: tuple[str, ...] = ()
    metric: Metric = ACCURACY
    plan: Plan | None = None
    stop: Stop | None = None


def decide(table: Sequence[Judged]) -> list[Verdict]:
    """Verdicts of the comparisons of one table, p values adjusted over those that may be compared.

    Args:
        table: All comparisons of one workload under one protocol.
    """
    complete = [place for place, entry in enumerate(table) if entry.case.pairs]
    known = dict(zip(complete, differences(_values(table[place]) for place in complete), strict=True))
    forbidden = [_forbidden(entry) for entry in table]
    judged = [place for place in known if not forbidden[place]]
    adjusted = dict(zip(judged, holm([known[place].p for place in judged]), strict=True))
    testable = [place for place in judged if known[place].p_equivalent is not None]
    equivalence = dict(zip(testable, holm([known[place].p_equivalent or 0.0 for place in testable]), strict=True))
    images = _images(table)
    found = [
        _verdict(
            entry,
            known.get(place),
            forbidden[place],
            adjusted.get(place),
            equivalence.get(place),
            len(judged),
            images[place],
        )
        for place, entry in enumerate(table)
    ]
    undecided = sum(verdict.verdict == "indeterminate" for verdict in found)
    return [
        _with_outlook(verdict, entry, undecided) if verdict.verdict == "indeterminate" else verdict
        for verdict, entry in zip(found, table, strict=True)
    ]


def _with_outlook(verdict: Verdict, entry: Judged, undecided: int) -> Verdict:
    """An indeterminate verdict with what it lacks."""
    left, right, margin = _values(entry)
    gaps = [ours - theirs for ours, theirs in zip(left, right, strict=True)]
    bases, pruned = _stage(entry, _base_gap), _stage(entry, _pruned_gap)
    lacks = outlook(gaps, margin, undecided, entry.plan is not None, bases, pruned)
    if lacks is None:
        return verdict
    told = f"{verdict.summary}; {lacks.text}"
    if entry.plan is None and len(gaps) >= seeds_needed() and lacks.seeds is not None:
        told += "; now that these were looked at, in another ledger (F611)"
    return verdict.model_copy(update={"outlook": lacks, "summary": told})


def _stage(entry: Judged, gap: Callable[[Evidence, Evidence], float | None]) -> list[float] | None:
    """What a stage says of each pair; None where it does not say it of all."""
    found = [gap(left, right) for left, right in entry.case.pairs]
    return None if None in found else [value for value in found if value is not None]


def _base_gap(left: Evidence, right: Evidence) -> float | None:
    """The metric of the base model of a pair; where each arm has its own, the difference."""
    bases = {arm.base.run_id: arm.base.value for arm in (left, right) if arm.base is not None}
    if left.base is not None and right.base is not None and len(bases) == 2:
        return left.base.value - right.base.value
    return next(iter(bases.values()), None)


def _pruned_gap(left: Evidence, right: Evidence) -> float | None:
    """The difference right after pruning."""
    ours, theirs = left.cell.pruned_value, right.cell.pruned_value
    return None if ours is None or theirs is None else ours - theirs


def _verdict(
    entry: Judged,
    gap: Difference | None,
    forbidden: tuple[str, ...],
    p: float | None,
    p_equivalent: float | None,
    family: int,
    images: dict[int, McNemar],
) -> Verdict:
    subject = entry.case.subject
    assert isinstance(subject, Comparison)
    judgement: Judgement = "not comparable" if gap is None or p is None else word(gap, p, p_equivalent, entry.metric)
    plan, stop = entry.plan, entry.stop
    if plan is not None and stop is not None:
        family = plan.comparisons
        if judgement != "not comparable":
            judgement = stop.word or "indeterminate"
            p = ALPHA if judgement in ("better", "worse") else 1.0
            p_equivalent = ALPHA if judgement == "equivalent" else 1.0
    failing = [finding for finding in entry.findings if finding.verdict != "pass"]
    # Where a cell is missing every rule says so, and F607 says which.
    repeats = {finding.rule for finding in failing if finding.verdict == "incomplete"} - {"F607"}
    causes = [rule for rule in forbidden if rule not in repeats] or forbidden
    parts = [f"not comparable because of {', '.join(causes)}"] if forbidden else []
    parts += [describe(gap, max(family, 1), entry.metric)] if gap is not None else ["no seed is complete"]
    if plan is not None and stop is not None:
        state = "open" if stop.word is None else "given up" if stop.is_given_up else "stopped"
        parts.append(f"{state} after {stop.looks} of at most {plan.seeds} planned seeds")
    waived = {finding.rule: finding.waived for finding in failing if finding.waived}
    parts += [f"{rule} waived: {reason}" for rule, reason in waived.items()]
    others = tuple(dict.fromkeys(text for arms in entry.case.pairs for arm in arms for text in besides(arm)))
    parts += others
    return Verdict(
        verdict=judgement,
        workload=subject.workload,
        protocol=subject.protocol,
        ratio=subject.ratio,
        arms=subject.methods,
        labels=entry.labels,
        forbidden_by=forbidden,
        waived=waived,
        uncontrolled=tuple(sorted({found.rule for found in failing if not found.required and found.verdict == "fail"})),
        seeds=tuple(seed for seed, arms in entry.case.seeds.items() if arms),
        difference=gap,
        family=max(family, 1),
        p_adjusted=p,
        p_equivalent_adjusted=p_equivalent,
        images=images,
        summary="; ".join(parts),
        plan=plan,
        looks=None if stop is None else stop.looks,
        metric=entry.metric.name,
        besides=others,
    )


def _forbidden(entry: Judged) -> tuple[str, ...]:
    return tuple(sorted({finding.rule for finding in entry.findings if not finding.holds}))


def _values(entry: Judged) -> tuple[list[float], list[float], float]:
    """The metric of both arms over paired seeds, and the margin."""
    left, right = ([arms[side].result.value for arms in entry.case.pairs] for side in (0, 1))
    return left, right, entry.margin


def _images(table: Sequence[Judged]) -> list[dict[int, McNemar]]:
    """McNemar's test of each comparison, by seed.

    None where the arms were tested on different images, or their metric has no outcome for each image.
    """
    counted = [
        {seed: counts for seed, arms in entry.case.seeds.items() if arms and (counts := _discordant(*arms))}
        for entry in table
    ]
    tests = iter(mcnemar([counts for seeds in counted for counts in seeds.values()]))
    return [{seed: next(tests) for seed in seeds} for seeds in counted]


def _discordant(left: Evidence, right: Evidence) -> tuple[int, int] | None:
    """How many images only the left arm got right, and only the right one; None where these were not the same."""
    ours, theirs = left.result, right.result
    if ours.split_digest != theirs.split_digest or not ours.outcomes or not theirs.outcomes:
        return None
    return (left.answers & ~right.answers).bit_count(), (right.answers & ~left.answers).bit_count()


def tiers(merits: Mapping[str, float], verdicts: Iterable[Verdict]) -> list[tuple[str, ...]]:
    """Methods of one operating point in groups that nothing tells apart: ties are grouped, never ranked.

    A group holds the best method that is left and every method that is not shown to be worse than it.

    Args:
        merits: Mean of the metric by method, as :meth:`Metric.merit` gives it: the greater the better.
        verdicts: Verdicts between them.
    """
    worse = set()
    for verdict in verdicts:
        left, right = verdict.arms
        if verdict.verdict == "worse":
            worse.add((left, right))
        elif verdict.verdict == "better":
            worse.add((right, left))
    left_over = sorted(merits, key=lambda name: (-merits[name], name))
    groups = []
    while left_over:
        best = left_over[0]
        group = tuple(name for name in left_over if (name, best) not in worse)
        groups.append(group)
        left_over = [name for name in left_over if name not in group]
    return groups
