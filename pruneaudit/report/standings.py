"""Across comparisons: ties in groups, the strictest setup two methods share, performance profiles."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pruneaudit.audit.catalogue import get_rule, required
from pruneaudit.audit.judge import Finding
from pruneaudit.audit.verdicts import Verdict, tiers
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.names import UNPRUNED, is_derived
from pruneaudit.report.values import value
from pruneaudit.workloads.metrics import ACCURACY, Metric

#: Distances from the best method at which a profile is read: percentage points of accuracy; margins of other metrics.
PROFILE_POINTS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
PROFILE_MARGINS = (0.0, 1.0, 2.0, 4.0, 10.0, 20.0)
#: Operating points below which a profile says nothing.
FEWEST_POINTS = 2


#: What decides on a workload of this name.
MetricOf = Callable[[str], Metric]


def _accuracy(workload: str) -> Metric:
    return ACCURACY


def standings(
    rows: Iterable[Mapping[str, Any]], verdicts: Iterable[Verdict], metric_of: MetricOf = _accuracy
) -> list[dict[str, Any]]:
    """Methods of each operating point in groups that nothing tells apart, best group first, by name within a group.

    Only methods that verdicts connect stand in one row: smaller networks and networks with zeros are in rows of their
    own, and methods that may be compared with no other are listed apart.
    """
    means = _means(rows)
    found: dict[tuple[Any, ...], list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        found[verdict.workload, verdict.labels, verdict.protocol, verdict.ratio].append(verdict)
    result = []
    for (workload, labels, protocol, ratio), members in sorted(found.items()):
        fair = [verdict for verdict in members if verdict.verdict != "not comparable"]
        together = connected(verdict.arms for verdict in fair)
        apart = sorted({name for verdict in members for name in verdict.arms}.difference(*together))
        # Where nothing may be compared, a row still says so.
        for number, names in enumerate(together or [set()]):
            merits = {
                name: metric_of(workload).merit(means[workload, labels, protocol, name, ratio])
                for name in names
                if (workload, labels, protocol, name, ratio) in means
            }
            result.append(
                {
                    "workload": workload,
                    "labels": list(labels),
                    "protocol": protocol,
                    "ratio": ratio,
                    "groups": [sorted(group) for group in tiers(merits, fair)],
                    "not_comparable": apart if number == 0 else [],
                }
            )
    return result


def connected(pairs: Iterable[Sequence[str]]) -> list[set[str]]:
    """Names in sets that pairs connect, the largest set first."""
    found: list[set[str]] = []
    for pair in pairs:
        touched = [names for names in found if names & set(pair)]
        found = [names for names in found if names not in touched] + [set(pair).union(*touched)]
    return sorted(found, key=lambda names: (-len(names), sorted(names)))


def strictest_setups(catalog: Catalog, findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """The strictest setup of Wang et al. 2023, Table 2, whose comparability rules were measured to hold between a pair.

    A pair may meet a stricter setup than the one that it was run under: two one-shot methods under S3.2 meet S4.2.
    """
    passed: dict[tuple[Any, ...], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for finding in findings:
        if len(finding.arms) == 2 and catalog.protocol(finding.protocol).compare == "pruning":
            key = (finding.workload, finding.labels, finding.ratio, tuple(sorted(finding.arms)))
            met = passed[key][finding.protocol]
            if finding.verdict == "pass":
                met.add(finding.rule)
    demands = {
        name: {rule_id for rule_id in required(catalog.protocol(name)) if _is_comparability(rule_id)}
        for name in catalog.strictness
    }
    result = []
    for (workload, labels, ratio, arms), by_protocol in sorted(passed.items()):
        setups = [name for name, demand in demands.items() if any(demand <= met for met in by_protocol.values())]
        result.append(
            {
                "workload": workload,
                "labels": list(labels),
                "ratio": ratio,
                "arms": list(arms),
                "setup": setups[-1] if setups else None,
            }
        )
    return result


def _is_comparability(rule_id: str) -> bool:
    return rule_id[1] in "1234" and get_rule(rule_id).scope == "pair"


def profiles(rows: Iterable[Mapping[str, Any]], metric_of: MetricOf = _accuracy) -> list[dict[str, Any]]:
    """Share of operating points (workload × ratio) at which a method's mean is within some points of the best one's.

    Dolan and Moré 2002, on the metric. Only where every method has every cell: a profile over other points would
    compare methods on other tasks. Smaller networks, networks with zeros and other metrics have profiles of their own.
    """
    listed = [row for row in rows if not is_derived(row["protocol"]) and row["method"] != UNPRUNED]
    means = _means(listed)
    result = []
    masked = {row["method"] for row in listed if row["granularity"] == "weight"}
    groups: dict[tuple[str, tuple[str, ...], bool, str], list[Mapping[str, Any]]] = defaultdict(list)
    for row in listed:
        what = metric_of(row["workload"]).name
        groups[row["protocol"], tuple(row["labels"]), row["method"] in masked, what].append(row)
    for (protocol, labels, _, _), members in sorted(groups.items()):
        methods = sorted({row["method"] for row in members})
        points = sorted({(row["workload"], row["ratio"]) for row in members})
        complete = all(row["status"] == "ok" for row in members) and all(
            (workload, labels, protocol, method, ratio) in means for workload, ratio in points for method in methods
        )
        if len(points) < FEWEST_POINTS or len(methods) < 2 or not complete:
            continue
        gaps: dict[str, list[float]] = {method: [] for method in methods}
        for workload, ratio in points:
            merit = metric_of(workload).merit
            here = {method: merit(means[workload, labels, protocol, method, ratio]) for method in methods}
            for method, mean in here.items():
                gaps[method].append(max(here.values()) - mean)
        metric = metric_of(points[0][0])
        within = _within(metric_of(workload) for workload, _ in points)
        result.append(
            {
                "protocol": protocol,
                "labels": list(labels),
                "points": [f"{workload} r{ratio:g}" for workload, ratio in points],
                "within": list(within),
                "share": {
                    method: [sum(gap <= most + 1e-9 for gap in found) / len(found) for most in within]
                    for method, found in gaps.items()
                },
                **({} if metric.name == ACCURACY.name else {"metric": metric.name}),
            }
        )
    return result


def _within(metrics: Iterable[Metric]) -> Sequence[float]:
    """Distances at which a profile of some workloads is read."""
    margins = [metric.margin for metric in metrics if metric.margin is not None]
    return tuple(round(min(margins) * most, 9) for most in PROFILE_MARGINS) if margins else PROFILE_POINTS


def _means(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[Any, ...], float]:
    """Mean of the metric over seeds by workload, labels, protocol, method and ratio."""
    values: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for row in rows:
        if row["status"] == "ok":
            values[row["workload"], tuple(row["labels"]), row["protocol"], row["method"], row["ratio"]].append(
                value(row)
            )
    return {key: statistics.fmean(found) for key, found in values.items()}
