"""Is the reported number the right one, and can it carry the claim?"""

from __future__ import annotations

import math
from functools import lru_cache

from pruneaudit.arithmetic import ArithmeticKind
from pruneaudit.audit.evidence import Case, Evidence, measured
from pruneaudit.audit.rule import Outcome, arm_rule, same_rule, series_rule
from pruneaudit.audit.statistics import ALPHA, seeds_needed, trend
from pruneaudit.catalog.names import CONTROLS_OF
from pruneaudit.ledger.records import RunRecord
from pruneaudit.workloads.metrics import Metric

#: Epochs without which no slope can be told from noise.
FEWEST_EPOCHS = 3
#: Operating points that a trade-off claim needs.
OPERATING_POINTS = 5
_WANG = "Wang et al. 2023 (arXiv 2301.05219)"
_BLALOCK = "Blalock et al. 2020"


@arm_rule("F601", "Last epoch reported, not the best on test", "DomainBed, issue 24; Torch-Pruning, reproduce logs")
def reports_the_last_epoch(arm: Evidence) -> Outcome:
    """The cell's value, the run's, the last value of its test curve, and a recount of the images that were right.

    A metric that is no share of images has none to recount.

    Example: 93.1 everywhere passes, though epoch 97 had 93.4; reporting 93.4 does not.
    """
    run = arm.result
    recount = 100.0 * arm.answers.bit_count() / run.test_images if run.outcomes else None
    curve = run.curve
    last = curve[-1] if curve else run.value if recount is None else recount
    reported = arm.cell.value
    # Verdicts are made of the run's own number.
    known = (run.value, last, *(() if recount is None else (recount,)))
    same = reported is not None and all(math.isclose(reported, value, abs_tol=1e-6) for value in known)
    recounted = "" if recount is None else f", recounted {recount:.6g}"
    epoch, best = _best(arm)
    return Outcome(
        "pass" if same else "fail",
        f"reported {reported}, run {run.value}, last epoch {last}{recounted}",
        note=f"best on test: {best:g} in epoch {epoch}",
    )


def _best(arm: Evidence) -> tuple[int, float]:
    """The best epoch on test, and the metric then: an oracle, never compared."""
    run = arm.result
    if run.scores is None:
        return run.best_epoch, run.best_accuracy
    curve = run.curve or [run.value]
    best = max(range(len(curve)), key=lambda epoch: arm.metric.merit(curve[epoch]))
    return best + 1, curve[best]


@arm_rule("F602", "One MAC counter, two counters agree", f"{_BLALOCK}, sec. 5.2 (FLOPs of AlexNet differ fourfold)")
def counters_agree(arm: Evidence) -> Outcome:
    """MACs of the tested network by fvcore, which traces it, and by torch, which watches it run.

    Example: 125,485,706 by both passes; twice as many by one of them is the multiply-and-add convention.
    """
    run = arm.result
    return Outcome("pass" if run.macs == run.macs_recounted else "fail", f"{run.macs} and {run.macs_recounted} MACs")


@series_rule("F603", "Enough seeds, paired", "Fisher 1935 (sign-flip test): smallest two-sided p of n seeds is 2/2^n")
def enough_seeds(case: Case) -> Outcome:
    """Seeds that both arms ran with, each once, against the number from which a paired test can find anything.

    Example: six paired seeds reach p = 0.031 and pass; three reach 0.25 and only describe.
    """
    sides = [[arms[side].result.seed for arms in case.pairs] for side in range(len(case.subject.methods))]
    paired = all(seeds == sides[0] for seeds in sides) and len(set(sides[0])) == len(sides[0])
    values = [f"{len(set(seeds))} seeds" + ("" if paired else f": {', '.join(map(str, seeds))}") for seeds in sides]
    needed = seeds_needed(ALPHA)
    note = f"smallest possible p {2 / 2 ** len(sides[0]):.3g}; {needed} seeds are needed" if sides[0] else ""
    return Outcome("pass" if paired and len(sides[0]) >= needed else "fail", values[0], values[-1], note)


@same_rule("F604", "Equal final learning rate", f"{_WANG}, appendix A, rule 1")
def same_final_rate(arm: Evidence) -> float | None:
    """Learning rate of the last step of both arms (of retraining, or of training from scratch).

    Example: both end at 1e-4: passes. Scratch that ends at 1e-3 has not been annealed as far.
    """
    return arm.result.learning_rates[-1][0] if arm.result.learning_rates else None


@arm_rule("F605", "Converged before the first learning-rate decay", f"{_WANG}, Fig. 2")
def converged_before_decay(arm: Evidence) -> Outcome:
    """Slope of the metric on validation over the last third of the first learning-rate stage.

    Getting better means that the rate fell before the network had converged: another one would have looked better.

    Example: 91.2, 91.3, 91.2, 91.3 % passes; 74.0, 75.1, 76.2, 77.4 % does not.
    """
    run = arm.result
    schedule = run.recipe.schedule
    if run.recipe.epochs is None or schedule.kind != "step":
        return Outcome("not measured", None, note="no stage of constant learning rate")
    length = min(schedule.first_stage or run.recipe.epochs, run.recipe.epochs)
    return _flat(tuple(run.validation_curve[:length]), "the first learning-rate stage", arm.metric)


@arm_rule("F606", "Plateaued at the end", f"{_WANG}, sec. 5.2 (the gap closes with epochs)")
def plateaued(arm: Evidence) -> Outcome:
    """Slope of the metric on validation over the last third of the last learning-rate stage.

    Example: 92.0, 92.1, 92.0 % passes; still rising by a point per epoch says that more epochs would change the table.
    """
    run: RunRecord = arm.result
    schedule = run.recipe.schedule
    if run.recipe.epochs is None:
        return Outcome("not measured", None, note="no epochs")
    starts = [start for start, _ in schedule.points if start < run.recipe.epochs] if schedule.kind == "step" else [0]
    return _flat(tuple(run.validation_curve[starts[-1] :]), "the last learning-rate stage", arm.metric)


@lru_cache(maxsize=2**15)  # Arms share runs, and figures ask before the report does.
def _flat(curve: tuple[float, ...], where: str, metric: Metric) -> Outcome:
    """Pass where the last third of a curve does not improve significantly (least squares, t test of the slope)."""
    tail = curve[-math.ceil(len(curve) / 3) :]
    if len(tail) < FEWEST_EPOCHS:
        needed = 3 * (FEWEST_EPOCHS - 1) + 1
        return Outcome("not measured", None, note=f"{where} has {len(curve)} epochs; {needed} show a slope")
    if max(tail) == min(tail):
        return Outcome("pass", f"+0{metric.suffix} per epoch")
    slope, p = trend(tail)
    improving = metric.merit(slope) > 0 and p < ALPHA
    value = f"{slope:+.2g}{metric.suffix} per epoch"
    return Outcome("fail" if improving else "pass", value, note=f"p = {p:.2g} over {len(tail)} epochs")


@series_rule("F607", "No missing, failed or excluded cell", "MLPerf training, issue 848 (cherry-picking)")
def nothing_left_out(case: Case) -> Outcome:
    """Cells attempted and valid. Failed ones stay in the ledger and count.

    Example: 3 attempted, 3 valid passes; a diverged seed that is left out of the mean does not.
    """
    verdict = "pass" if not case.broken else "fail" if case.failed else "incomplete"
    values = [f"{len(case.seeds)} attempted, {valid} valid" for valid in case.valid or (len(case.pairs),)]
    why = "; ".join(dict.fromkeys(case.broken.values()))
    return Outcome(verdict, values[0], values[-1], why)  # type: ignore[arg-type]


@series_rule(
    "F608", "One software stack, device kind, protocol and workload version", "MTEB, issue 5228; lm-eval, 2211"
)
def one_stack(case: Case) -> Outcome:
    """Versions of torch, Python, pruneaudit and its training code, kind of device, versions of protocol and workload.

    And the kind of arithmetic: what libraries computed with, whatever the processor's name. Older runs do not tell it.
    And how many devices shared the training of what is tested: under batch normalisation that is another training.

    Example: torch 2.15 on CPU in all runs passes; one arm on a GPU, on two of them, from last year's version, or on a
    processor with longer vectors, does not.
    """
    found: list[set[tuple[str, str, str]]] = [set() for _ in case.subject.methods]
    for arms in case.pairs:
        for side, arm in zip(found, arms, strict=True):
            protocol = f"{arm.cell.protocol}@{arm.cell.protocol_version}"
            side |= {(before, protocol, after) for before, after in _stacks(arm)}
    sides = [set(map(", ".join, side)) for side in found]
    values = [" and ".join(sorted(side)) for side in sides]
    if not case.pairs:
        return Outcome("incomplete", None, None, "; ".join(dict.fromkeys(case.broken.values())))
    if len(set().union(*sides)) != 1:
        return Outcome("fail", values[0], values[-1])
    return _one_arithmetic(case, values)


def _one_arithmetic(case: Case, values: list[str]) -> Outcome:
    """Whether runs that were made with the same versions were also computed alike; values tell the versions."""
    kinds = [dict.fromkeys(kind for found in side for kind in found) for side in case.measured(_kinds)]
    every = list(dict.fromkeys(kind for side in kinds for kind in side))
    if len(every) < 2:
        return Outcome("pass", values[0], values[-1])
    left, right = (" and ".join(map(str, side)) or "not told" for side in (kinds[0], kinds[-1]))
    advice = "judge what one kind of machine measured, or measure with --audit-arithmetic portable"
    return Outcome("fail", left, right, f"{'; '.join(every[0].differences(every[1]))}; {advice}")


@measured
def _stacks(arm: Evidence) -> set[tuple[str, str]]:
    """Stacks of the runs of an arm in words: what comes before the protocol, and what behind it."""
    ranks = arm.result.recipe.ranks
    shared = f", trained by {ranks} ranks" if ranks > 1 else ""
    return {(_stack(run), f"{arm.cell.workload}@{run.workload_version}{shared}") for run in arm.runs}


@measured
def _kinds(arm: Evidence) -> tuple[ArithmeticKind, ...]:
    return tuple(dict.fromkeys(run.kind for run in arm.runs if run.kind is not None))


def _stack(run: RunRecord) -> str:
    known = run.environment
    kind = f"{run.device} {known.get('device', '')}".strip() if run.device != "cpu" else "cpu"
    return (
        f"torch {known.get('torch')}, python {known.get('python')}, pruneaudit {known.get('pruneaudit')}, "
        f"training code {run.numerics}, {kind}, {run.precision}"
    )


@series_rule("F609", "At least 5 operating points for a trade-off claim", f"{_BLALOCK}, sec. 6, R7", whole_table=True)
def enough_operating_points(case: Case) -> Outcome:
    """Ratios at which an arm was measured under this protocol.

    Example: ratios 0.3, 0.5, 0.7, 0.9 and 0.95 pass; one ratio shows one point, not a curve.
    """
    values = [case.table.ratios(case.subject.protocol, method) for method in case.subject.methods]
    common = set(values[0]).intersection(*values)
    texts = [f"{len(ratios)}: {', '.join(f'{ratio:g}' for ratio in ratios)}" for ratios in values]
    return Outcome("pass" if len(common) >= OPERATING_POINTS else "fail", texts[0], texts[-1])


@measured
def _removed(arm: Evidence) -> str:
    """Kind of what an arm removed: filters, single weights or blocks."""
    return arm.result.granularity


@series_rule("F610", "Magnitude and random controls present", f"{_BLALOCK}, appendix B, C14 and C15", whole_table=True)
def controls_present(case: Case) -> Outcome:
    """Controls of all that the arms removed, measured under the same protocol at the same ratio.

    Filters, heads and neurons have l1 and random, single weights magnitude-layer and random-weight, and whole blocks
    have global-random-block: chance among filters says nothing of chance among blocks.

    Example: l1 and random beside a filter pruner pass; beside ShortGPT, which removes blocks, they do not.
    """
    subject = case.subject
    here = case.table.methods(subject.protocol, subject.ratio)
    kinds = {kind for side in case.measured(_removed) for kind in side} or {"filter"}
    wanted = [name for kind, names in CONTROLS_OF.items() if kind in kinds for name in names]
    missing = [name for name in wanted if name not in here]
    value = f"{', '.join(missing)} missing" if missing else f"{', '.join(wanted)} present"
    return Outcome("fail" if missing else "pass", value, value)


@series_rule(
    "F611",
    "Number of seeds fixed before they were looked at",
    "Armitage, McPherson and Rowe 1969 (repeated significance tests); Jennison and Turnbull 2000, sec. 1",
    always=True,
)
def seeds_as_planned(case: Case) -> Outcome:
    """Seeds of a comparison against its plan in the ledger, and against those over which it had a verdict without one.

    Who looks and then adds seeds, or leaves some out, chooses among verdicts. Fewer than six seeds give none to choose.

    Example: eight seeds that were looked at as eight pass, and so do eight of at most twelve that were planned; eight
    that had been looked at as six do not.
    """
    n, fewest = len(case.pairs), seeds_needed(ALPHA)
    decisive = {look for look in case.looks if look >= fewest} if n >= fewest else set()
    others = sorted(look for look in decisive if look != n or case.plan is not None)
    note = f"a verdict over {', '.join(map(str, others))} seeds was known before" if others else ""
    if case.plan is not None:
        value = f"{n} seeds, planned: {case.plan.seeds} at most, looked at from the {case.plan.first}th on"
        return Outcome("pass" if n <= case.plan.seeds and not others else "fail", value, value, note)
    if not n:
        return Outcome("incomplete", None, None, "; ".join(dict.fromkeys(case.broken.values())))
    value = f"{n} seeds, a fixed number"
    return Outcome("fail" if others else "pass", value, value, note)


@measured
def _network(arm: Evidence) -> str:
    """What tells the network of one seed from that of another; training with a seed's batches makes another one."""
    trained = any(run.optimiser_steps for run in (*arm.pruning_stage, arm.result))
    return arm.result.run_id if trained else arm.result.weights_digest


@series_rule("F612", "Seeds are repetitions", "Hurlbert 1984 (pseudoreplication): copies of one result are no sample")
def seeds_are_repetitions(case: Case) -> Outcome:
    """Different networks that the seeds gave of each arm.

    Without training a seed draws a base model, and what to score with. Where the base is one file, and neither method
    looks at data, all seeds are one and the same measurement.

    Example: calibration draws that change one of the arms pass; two arms by magnitude from one checkpoint, the same
    three times, do not.
    """
    if not case.pairs:
        return Outcome("incomplete", None, None, "; ".join(dict.fromkeys(case.broken.values())))
    sides = case.measured(_network)
    values = [f"{len(set(side))} networks of {len(side)} seeds" for side in sides]
    alone = len(case.pairs) > 1 and all(len(set(side)) == 1 for side in sides)
    note = "seeds change neither arm: it is one measurement, whatever their number" if alone else ""
    return Outcome("fail" if alone else "pass", values[0], values[-1], note)
