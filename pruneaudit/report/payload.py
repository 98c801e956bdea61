"""What the script of the web page reads: the tables of a report by column, small enough to travel inside the page."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from operator import itemgetter, methodcaller
from typing import Any

from pruneaudit.catalog.discovery import cell_test
from pruneaudit.report.columns import as_columns, own_columns
from pruneaudit.report.curves import Curve
from pruneaudit.report.published import published_notes, published_table
from pruneaudit.report.results import Results
from pruneaudit.report.style import styles
from pruneaudit.report.tables import accuracy_table, noise_table, profile_table, strictest_matrix, title
from pruneaudit.report.values import validation_value, value
from pruneaudit.workloads.metrics import ACCURACY, Metric
from pruneaudit.workloads.metrics import title as metric_title

_FINDING = ("protocol", "ratio", "seed", "rule", "verdict", "required", "arms", "note", "waived")
_CELL = ("protocol", "method", "ratio", "seed", "status", "error", "budget", "precision", "backend")
_CELL_COST = ("speedup", "granularity", "total_epochs", "total_macs")
_STAGES = ("base", "pruned", "end")
#: What the page opens with, where it is there: the recommended minimum of Wang et al. 2023.
USUAL_PROTOCOL = "s3.2"
#: Of a run's row: what the page has elsewhere.
_RUN_LEFT_OUT = ("labels", "parent", "workload", "value", "validation_value")
#: Points of a learning curve that are shown; longer ones are thinned.
MOST_POINTS = 60
#: Learning rates of a run that are marked in its curve; a cosine has one for each step.
MOST_RATES = 8


def payload(results: Results) -> dict[str, Any]:
    """Tables by column, as JSON builtins; accuracies in percent, costs in epochs and MACs.

    Columns called ``accuracy`` have the metric of their workload, which ``groups`` describe.

    Rows of a workload carry its place in ``groups``, and what rests on runs their places in ``runs``.
    """
    groups, cells = results.groups, results.cells
    number = {group: place for place, group in enumerate(groups)}
    place_of = {row["run"]: place for place, row in enumerate(results.runs)}
    base_params = {(row["workload"], *row["labels"]): row["base_params"] for row in results.architectures}

    def group(row: Mapping[str, Any]) -> int:
        return number[row["workload"], tuple(row["labels"])]

    def runs(names: Iterable[str]) -> list[int]:
        return [place_of[name] for name in names if name in place_of]

    def left(row: Mapping[str, Any]) -> float | None:
        base = base_params.get((row["workload"], *row["labels"]))
        return 100 * row["params"] / base if base and row["params"] else None

    bases = {key: results.base(*key) for key in groups}
    return {
        "groups": [
            {
                "workload": workload,
                "title": title(workload, labels),
                **_metric(results.metric(workload)),
                "base": base.mean if base is not None else None,
                "means": _table(*accuracy_table(results, workload, labels)),
                "noise": _table(*noise_table(results, workload, labels)),
                "strictest": _table(*strictest_matrix(results, workload, labels)),
                "published": _table(*published_table(results.of("published", workload, labels))),
                "notes": published_notes(results.of("published", workload, labels)),
            }
            for (workload, labels), base in bases.items()
        ],
        "methods": {
            name: {"colour": look.colour, "dark": look.on_dark, "marker": look.marker, "dash": look.dash}
            for name, look in styles(row["method"] for row in results.cells).items()
        },
        "cells": _packed(
            as_columns(
                cells,
                {
                    "g": group,
                    **{name: itemgetter(name) for name in _CELL},
                    "accuracy": value,
                    "validation_accuracy": validation_value,
                    **{name: itemgetter(name) for name in _CELL_COST},
                    "left": left,
                    **{f"jsv_{stage}": partial(_jsv, stage) for stage in _STAGES},
                    "ta": methodcaller("get", "trainability_accuracy"),
                    "result": lambda row: place_of.get(row["result"]) if row["result"] else None,
                    "runs": lambda row: runs(row["runs"]),
                },
            )
        ),
        "runs": _packed(
            as_columns(
                results.runs,
                {
                    "g": group,
                    **{name: of for name, of in own_columns(results.runs).items() if name not in _RUN_LEFT_OUT},
                    "accuracy": value,
                    "validation_accuracy": validation_value,
                },
            )
        ),
        "curves": _columns(_curves(results, group)),
        "findings": _packed(
            as_columns(
                results.findings,
                {
                    "g": group,
                    **{name: itemgetter(name) for name in _FINDING},
                    "measured": lambda row: _measured(row["measured"], row["arms"]),
                    "runs": lambda row: runs(row["runs"]) if "runs" in row else (),
                },
            )
        ),
        "cell_test": cell_test(),
        "verdicts": _columns(_verdict(row, group, against) for against, row in _all_verdicts(results)),
        "profiles": [
            {
                "heading": title(row["protocol"], tuple(row["labels"])),
                "points": row["points"],
                **_profile_metric(row.get("metric") or ACCURACY.name),
                **_table(*profile_table(row)),
            }
            for row in results.profiles
        ],
        "rules": results.rules,
        "protocols": results.protocols,
        "environments": results.environments,
        "usual": USUAL_PROTOCOL,
    }


def _metric(metric: Metric) -> dict[str, Any]:
    """How the page speaks of what decides; nothing where that is accuracy."""
    if metric == ACCURACY:
        return {}
    return {
        "metric": {
            "title": metric.title,
            "axis": metric.axis,
            "unit": metric.unit_text,
            "points": metric.points,
            "aside": metric.aside,
            "decimals": metric.decimals,
            "improving": "rising" if metric.direction == "higher" else "falling",
        }
    }


def _profile_metric(name: str) -> dict[str, Any]:
    return {} if name == ACCURACY.name else {"metric": metric_title(name)}


def _all_verdicts(results: Results) -> Iterable[tuple[str, Mapping[str, Any]]]:
    yield from (("each other", row) for row in results.verdicts)
    yield from (("the baseline", row) for row in results.regressions)


def _verdict(row: Mapping[str, Any], group: Any, against: str) -> dict[str, Any]:
    gap = row["difference"] or {}
    return {
        "g": group(row),
        "against": against,
        **{name: row[name] for name in ("protocol", "ratio", "arms", "verdict", "forbidden_by", "uncontrolled")},
        **{name: gap.get(name) for name in ("mean", "low", "high")},
        "p": row["p_adjusted"],
        "seeds": len(row["seeds"]),
        "summary": row["summary"],
        "waived": list(row["waived"]),
    }


def _curves(results: Results, group: Any) -> Iterable[dict[str, Any]]:
    """The test metric after each epoch of each arm's result runs: mean, smallest and largest over seeds."""
    stages = {row["run"]: row["stage"] for row in results.runs}
    decimals = [results.metric(workload).decimals for workload, _ in results.groups]
    arms: dict[tuple[Any, ...], list[Curve]] = defaultdict(list)
    for row in results.cells:
        curve = results.curves.get(row["result"]) if row["status"] == "ok" else None
        if curve is not None and len(curve.values) > 1:
            arms[group(row), row["protocol"], row["method"], row["ratio"], stages[row["result"]]].append(curve)
    for (place, protocol, method, ratio, stage), curves in arms.items():
        length = min(len(curve.values) for curve in curves)
        epochs = _thinned(length)
        values = [[curve.values[epoch - 1] for curve in curves] for epoch in epochs]
        rates = tuple(map(tuple, curves[0].rates))
        digits = decimals[place]
        yield {
            "g": place,
            "protocol": protocol,
            "method": method,
            "ratio": ratio,
            "stage": stage,
            "n": len(curves),
            "epochs": epochs,
            "mean": [round(statistics.fmean(found), digits) for found in values],
            "low": [round(min(found), digits) for found in values],
            "high": [round(max(found), digits) for found in values],
            # Seeds of one arm may have tuned to different rates: then there is no one drop to mark.
            "rates": rates if len(rates) <= MOST_RATES and all(c.rates == curves[0].rates for c in curves) else (),
        }


def _thinned(length: int) -> list[int]:
    """Epochs from 1 to ``length``, at most so many, ends included."""
    if length <= MOST_POINTS:
        return list(range(1, length + 1))
    return sorted({1 + round(place * (length - 1) / (MOST_POINTS - 1)) for place in range(MOST_POINTS)})


def _table(header: list[str], rows: list[list[str]]) -> dict[str, Any]:
    return {"header": header, "rows": rows}


def _measured(found: Mapping[str, Any], arms: Iterable[str]) -> tuple[str | None, ...]:
    return tuple([None if (one := found.get(arm)) is None else str(one) for arm in arms])


def _jsv(stage: str, row: Mapping[str, Any]) -> float | None:
    return (row.get("jsv") or {}).get(stage)


def _columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    found = list(rows)
    return _packed(as_columns(found, own_columns(found)))


def _packed(columns: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Columns as a page carries them: numbers at the precision of a screen, texts and lists each once.

    A column of texts or lists becomes ``{"of": distinct values, "at": place of each row's value}``: a hundred thousand
    findings have a few thousand different notes.
    """
    packed: dict[str, Any] = {}
    for name, values in columns.items():
        kinds = set(map(type, values))
        if kinds & {str, list, tuple}:
            keys = [tuple(value) if type(value) is list else value for value in values] if list in kinds else values
            places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
            packed[name] = {"of": list(places), "at": [places[key] for key in keys]}
        elif float in kinds:
            packed[name] = [float(f"{value:.6g}") if isinstance(value, float) else value for value in values]
        else:
            packed[name] = values
    return packed
