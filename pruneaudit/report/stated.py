"""Results that somebody states, judged as measured ones are: the same statistics, verdicts, page and LaTeX.

What only a run of ours can show is not measured, and said to be so; what is stated and breaks a rule forbids the
comparison. All of it carries the label ``stated, not measured``.
"""

from __future__ import annotations

import statistics as means
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from pruneaudit.audit.catalogue import get_rule, required
from pruneaudit.audit.judge import Finding
from pruneaudit.audit.rule import Value
from pruneaudit.audit.rule import Verdict as Outcome
from pruneaudit.audit.statistics import Difference, describe, differences, holm, word
from pruneaudit.audit.verdicts import Verdict
from pruneaudit.catalog.cells import pairs
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.names import NO_SETUP, UNPRUNED
from pruneaudit.catalog.protocols import Protocol
from pruneaudit.report.results import STATED, Results
from pruneaudit.report.standings import profiles, standings
from pruneaudit.report.values import value
from pruneaudit.workloads.metrics import ACCURACY, Metric

#: Differences that do not matter, in points, where no protocol says so.
MARGIN = 0.5
#: Rules that a statement can break: what of it must be equal.
_EQUAL = {"F201": "base", "F311": "epochs", "F321": "schedule", "F411": "pruning_epochs", "F421": "pruning_schedule"}
_SIZES = {"F103": "speedup", "F106": "params"}
_NEAR = 0.02
#: Title of a setup that is not described here.
_UNKNOWN = "as stated"

Run = Mapping[str, Any]
Point = tuple[str, str, float]


@dataclass(frozen=True)
class _Compared:
    """A comparison: its place, its arms, and their runs by seed."""

    point: Point
    arms: tuple[str, str]
    seeds: tuple[int, ...]
    left: tuple[Run, ...]
    right: tuple[Run, ...]
    unpaired: tuple[int, ...]


def judge(catalog: Catalog, runs: Sequence[Run], margin: float | None = None) -> Results:
    """Judge stated runs.

    Args:
        catalog: Where protocols are described. A setup that it does not know requires nothing and compares all pairs.
        runs: One mapping for each run, as :func:`pruneaudit.tables.judge.stated` gives them: workload, protocol (in any
            spelling), method, ratio, seed, metric, value and what is stated of budgets.
        margin: Differences below this do not matter, in the metric's unit; None: as the metric or the protocol says.
    """
    # Papers write S3.2.
    spelled = {name.lower(): name for name in catalog.protocols}
    runs = [{**run, "protocol": spelled.get(run["protocol"].lower(), run["protocol"])} for run in runs]
    names = sorted({run["protocol"] for run in runs})
    known = {name: catalog.protocols[name] for name in names if name in catalog.protocols}
    margins = {name: margin or (known[name].margin if name in known else MARGIN) for name in names}
    metrics: dict[str, Metric] = {run["workload"]: run["metric"] for run in runs}
    if margin is not None:
        metrics = {
            name: metric if metric.margin is None else metric.model_copy(update={"margin": margin})
            for name, metric in metrics.items()
        }
    verdicts: list[Verdict] = []
    findings: list[Finding] = []
    tables: dict[tuple[str, str], list[_Compared]] = defaultdict(list)
    for compared in _comparisons(runs, known):
        tables[compared.point[:2]].append(compared)
    for (workload, name), members in sorted(tables.items()):
        found = {id(one): _findings(one, known.get(name)) for one in members}
        verdicts += _verdicts(members, found, metrics[workload].margin_under(margins[name]), metrics[workload])
        findings += [finding for one in members for finding in found[id(one)]]
    cells = sorted(map(_cell, runs), key=lambda r: (r["workload"], r["protocol"], r["method"], r["ratio"], r["seed"]))
    rules = sorted({finding.rule for finding in findings})
    return Results(
        cells=cells,
        findings=[finding.row() for finding in findings],
        verdicts=[_verdict_row(verdict) for verdict in verdicts],
        standings=standings(cells, verdicts, metrics.__getitem__),
        profiles=profiles(cells, metrics.__getitem__),
        protocols={name: _described(name, known.get(name), margins[name]) for name in names},
        rules={rule: {"claim": get_rule(rule).claim, "source": get_rule(rule).source} for rule in rules},
        metrics=metrics,
    )


def _comparisons(runs: Sequence[Run], known: Mapping[str, Protocol]) -> list[_Compared]:
    points: dict[Point, dict[str, dict[int, Run]]] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        points[run["workload"], run["protocol"], run["ratio"]][run["method"]][run["seed"]] = run
    found = []
    for point, methods in sorted(points.items()):
        names = sorted(methods)
        protocol = known.get(point[1])
        every = [name for name in names if name != UNPRUNED]
        for left, right in pairs(protocol, names) if protocol is not None else combinations(every, 2):
            ours, theirs = ({s: r for s, r in methods[arm].items() if r["value"] is not None} for arm in (left, right))
            both = tuple(sorted(ours.keys() & theirs.keys()))
            unpaired = tuple(sorted((methods[left].keys() | methods[right].keys()) - set(both)))
            compared = (tuple(ours[seed] for seed in both), tuple(theirs[seed] for seed in both))
            found.append(_Compared(point, (left, right), both, *compared, unpaired))
    return found


def _findings(compared: _Compared, protocol: Protocol | None) -> list[Finding]:
    """What the rules of a protocol can say of statements, and where they can say nothing."""
    asked = required(protocol) if protocol is not None else ("F103", "F201", "F311", "F321", "F607")
    found = []
    for rule in asked:
        outcome, seed, values, note = _outcome(rule, compared)
        workload, name, ratio = compared.point
        found.append(
            Finding(
                rule=rule,
                verdict=outcome,
                # What is not stated, or cannot be, forbids nothing: the label says that nobody measured it.
                required=protocol is not None and outcome != "not measured",
                workload=workload,
                protocol=name,
                ratio=ratio,
                arms=compared.arms,
                seeds=compared.seeds,
                seed=seed,
                measured=values,
                labels=(STATED,),
                note=note,
            )
        )
    return found


def _outcome(rule: str, compared: _Compared) -> tuple[Outcome, int | None, dict[str, Value], str]:
    """Verdict of a rule, the seed that shows it, the values there, and why."""
    arms = compared.arms
    if rule == "F607":
        if compared.unpaired:
            seeds = ", ".join(map(str, compared.unpaired))
            return "fail", None, {}, f"seeds without a result of both: {seeds}"
        return "pass", None, {}, ""
    if rule == "F601":
        epochs = [(run["epoch_reported"] or "").lower() for run in (*compared.left, *compared.right)]
        if all(epochs):
            best = any("last" not in epoch for epoch in epochs)
            return ("fail" if best else "pass"), None, {}, "an epoch that the test set chose" if best else ""
        return "not measured", None, {}, "not stated"
    key = _EQUAL.get(rule) or _SIZES.get(rule)
    if key is None:
        return "not measured", None, {}, "only a run that was measured here shows it"
    verdict: Outcome = "pass"
    shown: tuple[int | None, dict[str, Value]] = (None, {})
    for seed, left, right in zip(compared.seeds, compared.left, compared.right, strict=True):
        values = tuple(_fact(run, key) for run in (left, right))
        if None in values:
            return "not measured", None, {}, "not stated"
        if not _agree(rule, *values):
            verdict, shown = "fail", (seed, dict(zip(arms, values, strict=True)))
            break
        shown = (seed, dict(zip(arms, values, strict=True))) if shown[0] is None else shown
    return (verdict, *shown, "") if compared.seeds else ("not measured", None, {}, "no paired seed")


def _fact(run: Run, key: str) -> Value:
    found: Value = run[key]
    if key == "base" and found is None and run["base_value"] is not None:
        # A base without a name is known by what it reaches.
        found = f"{run['base_value']:g}{run['metric'].unit_text}"
    return " ".join(found.split()) if isinstance(found, str) else found


def _agree(rule: str, left: Value, right: Value) -> bool:
    if rule in _SIZES and isinstance(left, int | float) and isinstance(right, int | float):
        return abs(left - right) <= _NEAR * max(abs(left), abs(right))
    return left == right


def _verdicts(
    members: Sequence[_Compared], findings: Mapping[int, Sequence[Finding]], margin: float, metric: Metric
) -> list[Verdict]:
    """Verdicts of one table, p values adjusted over those that may be compared."""
    complete = [one for one in members if one.seeds]
    values = [([run["value"] for run in one.left], [run["value"] for run in one.right], margin) for one in complete]
    gaps = {id(one): gap for one, gap in zip(complete, differences(values), strict=True)}
    forbidden = {id(one): tuple(sorted({f.rule for f in findings[id(one)] if not f.holds})) for one in members}
    judged = [one for one in complete if not forbidden[id(one)]]
    adjusted = dict(zip(map(id, judged), holm([gaps[id(one)].p for one in judged]), strict=True))
    testable = [one for one in judged if gaps[id(one)].p_equivalent is not None]
    alike = holm([gaps[id(one)].p_equivalent or 0.0 for one in testable])
    equivalence = dict(zip(map(id, testable), alike, strict=True))
    found = []
    for one in members:
        key, gap = id(one), gaps.get(id(one))
        p, alike_p = adjusted.get(key), equivalence.get(key)
        found.append(_verdict(one, gap, forbidden[key], p, alike_p, max(len(judged), 1), metric))
    return found


def _verdict(
    one: _Compared,
    gap: Difference | None,
    forbidden: tuple[str, ...],
    p: float | None,
    alike: float | None,
    family: int,
    metric: Metric,
) -> Verdict:
    workload, protocol, ratio = one.point
    parts = [STATED]
    parts += [f"not comparable because of {', '.join(forbidden)}"] if forbidden else []
    parts += [describe(gap, family, metric)] if gap is not None else ["no seed is complete"]
    return Verdict(
        verdict="not comparable" if gap is None or p is None else word(gap, p, alike, metric),
        workload=workload,
        protocol=protocol,
        ratio=ratio,
        arms=one.arms,
        labels=(STATED,),
        forbidden_by=forbidden,
        seeds=one.seeds,
        difference=gap,
        family=family,
        p_adjusted=p,
        p_equivalent_adjusted=alike,
        metric=metric.name,
        summary="; ".join(parts),
    )


def _verdict_row(verdict: Verdict) -> dict[str, Any]:
    row = verdict.model_dump(mode="json")
    # As everywhere: what is not said is accuracy, and a number of seeds that was fixed.
    for key in ("plan", "looks", *(("metric",) if verdict.metric == ACCURACY.name else ())):
        del row[key]
    return row


def _cell(run: Run) -> dict[str, Any]:
    """A row of cells as measured ones have it; what is not stated is None."""
    has, metric = run["value"] is not None, run["metric"]
    base = run["base"] or (f"{run['base_value']:g}" if run["base_value"] is not None else "not named")
    scores = {
        "metric": metric.name,
        "value": run["value"],
        "base_value": run["base_value"],
        "validation_value": None,
    }
    # Of accuracy the columns of its own say it all.
    is_accuracy = metric.name == ACCURACY.name
    return {
        "workload": run["workload"],
        "workload_version": 1,
        "protocol": run["protocol"],
        "protocol_version": 1,
        "method": run["method"],
        "ratio": run["ratio"],
        "seed": run["seed"],
        "budget": "full",
        "precision": "fp32",
        "backend": "torch",
        "labels": [STATED],
        "status": "ok" if has else "failed",
        "error": "" if has else f"no {metric.title} is stated",
        "accuracy": run["value"] if is_accuracy else run["accuracy"],
        "base_accuracy": run["base_value"] if is_accuracy else run["base_accuracy"],
        "validation_accuracy": None,
        "speedup": run["speedup"],
        "params": run["params"],
        "macs": None,
        "granularity": run["granularity"] or "filter",
        "executed_macs": None,
        "total_epochs": None,
        "total_macs": None,
        "result": None,
        "runs": [f"stated base {base}, seed {run['seed']}"],
        "jsv": {"base": None, "pruned": None, "end": None},
        "trainability_accuracy": None,
        **({} if is_accuracy else scores),
    }


def _described(name: str, protocol: Protocol | None, margin: float) -> dict[str, Any]:
    if protocol is None:
        return {
            "version": 1,
            "title": _UNKNOWN,
            "base": "own",
            "retraining": "own",
            "requires": [],
            "margin": margin,
        }
    return {
        "version": protocol.version,
        "title": protocol.title,
        "base": protocol.base,
        "retraining": protocol.retraining,
        "requires": list(required(protocol)),
        "margin": margin,
    }


def lines(results: Results) -> list[str]:
    """Verdicts for a terminal, the mean of each arm first."""
    reached: dict[tuple[str, str, float, str], list[float]] = defaultdict(list)
    for row in results.cells:
        if row["status"] == "ok":
            reached[row["workload"], row["protocol"], row["ratio"], row["method"]].append(value(row))
    found = []
    for (workload, protocol, ratio, method), values in sorted(reached.items()):
        metric = results.metric(workload)
        spread = f" ± {metric.number(means.stdev(values))}" if len(values) > 1 else ""
        what = "" if metric.name == ACCURACY.name else f"{metric.title} "
        mean = metric.number(means.fmean(values))
        found.append(
            f"{workload} {protocol} ratio {ratio:g}: {method}: {what}{mean}{spread}{metric.aside}, n = {len(values)}"
        )
    for row in results.verdicts:
        left, right = row["arms"]
        where = f"{row['workload']} {row['protocol']} ratio {row['ratio']:g}"
        corrected = f"; p = {row['p_adjusted']:.3g} after correction" if row["family"] > 1 and row["p_adjusted"] else ""
        found.append(f"{where}: {left} against {right}: {row['verdict']}; {row['summary']}{corrected}")
    for name, facts in sorted(results.protocols.items()):
        if facts["title"] == _UNKNOWN and name != NO_SETUP:
            found.append(f"{name} is no setup of 'pruneaudit protocols': no rule forbids its comparisons")
    unmeasured = sorted({row["rule"] for row in results.findings if row["verdict"] == "not measured"})
    if unmeasured:
        found.append(f"not measured, so that nobody knows whether they hold: {', '.join(unmeasured)}")
    return found
