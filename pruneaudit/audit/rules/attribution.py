"""Does the advantage come from the pruning?"""

from __future__ import annotations

from statistics import fmean

from pruneaudit.audit.evidence import Case, Evidence, measured
from pruneaudit.audit.rule import Outcome, rule, series_rule
from pruneaudit.catalog.names import CROSS_PREFIX
from pruneaudit.measure.trainability import comparable_trainability, trainability_accuracy

_WANG = "Wang et al. 2023 (arXiv 2301.05219)"


def _advantage(case: Case, protocol: str) -> tuple[float, int] | None:
    """Mean difference (first arm minus second) over paired seeds under another protocol, and n."""
    subject = case.subject
    left, right = (case.table.values(subject.workload, protocol, method, subject.ratio) for method in subject.methods)
    seeds = sorted(left.keys() & right.keys())
    return (fmean(left[seed] - right[seed] for seed in seeds), len(seeds)) if seeds else None


def _gap(case: Case, value: float) -> str:
    """A difference with its unit."""
    return f"{case.table.metric.gap(value)}{case.table.metric.suffix}"


def _sign(value: float) -> int:
    return (value > 1e-9) - (value < -1e-9)


@series_rule("F701", "Winner consistent when recipes are cross-validated", f"{_WANG}, sec. 6", whole_table=True)
def wins_under_both_recipes(case: Case) -> Outcome:
    """Mean difference of the arms when both retrain by the first method's published recipe, and by the second's.

    The four arms come from ``pruneaudit crossvalidate``; without them the rule says ``not measured``.

    Example: +0.4 points under A's recipe and +0.2 under B's pass; +0.4 and −0.3 say that the recipe wins.
    """
    found = [_advantage(case, f"{CROSS_PREFIX}{method}") for method in case.subject.methods]
    if any(entry is None for entry in found):
        left, right = case.subject.methods
        return Outcome("not measured", None, None, f"run: pruneaudit crossvalidate {left} {right}")
    values = [f"{_gap(case, mean)} under its recipe (n = {n})" for mean, n in (entry for entry in found if entry)]
    signs = {_sign(entry[0]) for entry in found if entry} - {0}
    return Outcome("fail" if len(signs) > 1 else "pass", values[0], values[1])


@series_rule("F702", "The advantage survives at the strictest setup", f"{_WANG}, Table 2", whole_table=True)
def survives_the_strictest(case: Case) -> Outcome:
    """Sign of the mean difference here and under the strictest setup that both arms can be put under.

    Example: +1.2 points under S2 and +0.3 under S4.2 pass; +1.2 and −0.1 say that the setup won.
    """
    order = case.table.order
    if case.subject.protocol not in order:
        return Outcome("not measured", None, None, "no stricter setup is defined")
    strictest = order[-1]
    here, there = _advantage(case, case.subject.protocol), _advantage(case, strictest)
    if here is None or there is None:
        return Outcome("not measured", None, None, f"run {strictest} as well")
    value = f"{_gap(case, here[0])} here, {case.table.metric.gap(there[0])} under {strictest}"
    return Outcome("fail" if _sign(here[0]) * _sign(there[0]) < 0 else "pass", value, value)


@measured
def _trainability(arm: Evidence) -> tuple[bool, str]:
    """Whether all of it was measured, and the values."""
    chain = [run for run in (arm.base, arm.prune, arm.result) if run is not None]
    values = [run.jacobian.mean if run.jacobian is not None else None for run in chain]
    accuracy = trainability_accuracy(arm.result.curve, arm.result.recipe)
    jsv = " → ".join("?" if value is None else f"{value:.3g}" for value in values)
    text = f"JSV {jsv}, TA {'?' if accuracy is None else arm.metric.value(accuracy)}"
    return None not in values and accuracy is not None, text


@rule("F703", "Trainability reported for both arms", "TPP (ICLR 2023), sec. 4; " + f"{_WANG}, Eq. 1")
def trainability_reported(left: Evidence, right: Evidence) -> Outcome:
    """Mean Jacobian singular value before pruning, after it and at the end, and trainability accuracy, of both arms.

    Trainability accuracies are comparable under one learning-rate schedule only.

    Example: JSV 3.2, 0.7 and 1.1, TA 90.1 % beside 3.2, 0.9 and 1.2, 91.0 % passes.
    """
    (ours, left_text), (theirs, right_text) = _trainability(left), _trainability(right)
    guarded = comparable_trainability(left.result.recipe, right.result.recipe)
    note = "" if guarded else "trainability accuracies under different schedules are not comparable"
    return Outcome("pass" if ours and theirs and guarded else "not measured", left_text, right_text, note)
