"""Published accuracies beside our own runs: what may be compared, by how much it differs, and what else differs."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from pruneaudit.arithmetic import PORTABLE
from pruneaudit.catalog.claims import Claim
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.protocols import Protocol
from pruneaudit.report.curves import Curve
from pruneaudit.workloads.metrics import ACCURACY
from pruneaudit.workloads.schedule import Schedule

#: What stands above the table.
PUBLISHED_NOTE = (
    "Accuracies of papers, in percent, beside runs of ours under the same setup and the same retraining schedule. "
    "Difference: ours minus theirs in percentage points, with the 95 % interval of Welch's t, each on its own. "
    "Agrees: all of the interval is within the protocol's margin. Higher, lower: it leaves out zero. Undecided: too "
    "few repetitions to say either. Nothing else is called reproduced."
)
#: Speedups (as a share) and base models (percentage points) that differ by more are named.
_SPEEDUP, _BASE = 0.01, 0.1
#: Of speedups that differ by more nothing is compared; papers' own counters are up to 3 % away from MACs.
_OTHER_NETWORK = 0.05
_CONFIDENCE = 0.95
_COUNTED = {
    "sample": "",
    "population": "Their deviations are of the population (n); the interval takes n - 1.",
    "not said": "Whether their deviations are of sample or population is not said; the interval takes the wider.",
}
_PICKED = {
    "last": "",
    "best": "Theirs is the best epoch on the test set, ours the last.",
    "not said": "Which epoch theirs are of is not said; ours are of the last.",
}


#: Method, ratio and setup.
_Arm = tuple[str, float, str]


def published(
    catalog: Catalog,
    cells: Iterable[Mapping[str, Any]],
    runs: Iterable[Mapping[str, Any]],
    curves: Mapping[str, Curve],
) -> list[dict[str, Any]]:
    """One row for each claim on a workload that occurs among the cells, and for each set of labels there.

    A run counts as the same where workload, method, ratio, setup and the measured learning rate of every epoch agree.
    A setup that tunes the learning rate tries several schedules on one base and pruned model: such a trial is the run
    that a setup with this one schedule would make, and counts.

    Args:
        catalog: Published tables, protocols and workloads.
        cells: Rows of cells; only those with status ``ok`` count.
        runs: Rows of the runs that they stand on.
        curves: How each of these runs went, by id.
    """
    by_id = {row["run"]: row for row in runs}
    groups: dict[tuple[str, tuple[str, ...]], dict[_Arm, list[Mapping[str, Any]]]] = {}
    for cell in cells:
        arms = groups.setdefault((cell["workload"], tuple(cell["labels"])), defaultdict(list))
        if cell["status"] == "ok":
            arms[cell["method"], cell["ratio"], cell["protocol"]].append(cell)
    rows = []
    for (workload, labels), arms in sorted(groups.items()):
        for name, table in catalog.claims.items():
            for claim in table.claims():
                if claim.point.workload == workload:
                    found = [] if _unlike(catalog, claim) else _same(catalog, claim, arms, by_id, curves)
                    rows.append(_row(catalog, name, claim, labels, found))
    return rows


#: A cell, and the one of its runs that is the claim's.
_Found = tuple[Mapping[str, Any], Mapping[str, Any]]


def _same(
    catalog: Catalog,
    claim: Claim,
    arms: Mapping[_Arm, Sequence[Mapping[str, Any]]],
    runs: Mapping[str, Mapping[str, Any]],
    curves: Mapping[str, Curve],
) -> list[_Found]:
    """Our runs of a claim, one for each seed."""
    wanted = catalog.protocol(claim.row.protocol)
    setups = [wanted.name, *(name for name, protocol in catalog.protocols.items() if _tries(protocol, wanted))]
    found: dict[int, _Found] = {}
    # The claim's own setup first: a seed that several measured counts once.
    points = [(claim.row.method, claim.point.ratio, setup) for setup in setups]
    for cell in (cell for point in points for cell in arms.get(point, ())):
        recipe = _recipe(catalog, claim, cell)
        for run in cell["runs"]:
            row = runs.get(run)
            if row is None or recipe is None or row["stage"] not in ("retrain", "scratch"):
                continue
            if _follows(curves[run], *recipe):
                found.setdefault(cell["seed"], (cell, row))
    return [found[seed] for seed in sorted(found)]


def _unlike(catalog: Catalog, claim: Claim) -> str:
    """Why no run of ours is the same as a claim, whatever is measured; nothing where one may be."""
    metric = catalog.workload(claim.point.workload).metric
    if metric.name != ACCURACY.name:
        return f"theirs is accuracy, here {metric.title} decides"
    return claim.row.unlike


def _tries(protocol: Protocol, wanted: Protocol) -> bool:
    """Whether a protocol tries several schedules on what the wanted one retrains by a single one."""
    same = all(getattr(protocol, key) == getattr(wanted, key) for key in ("base", "pruning", "scratch", "compare"))
    return same and protocol.retraining == "tuned"


def _recipe(catalog: Catalog, claim: Claim, cell: Mapping[str, Any]) -> tuple[int, Schedule] | None:
    """Epochs and schedule of a claim at the budget of a cell; None where there is no telling."""
    budget = cell["budget"]
    if budget == "full":
        return claim.scaled(1.0)
    # In two epochs steps and a cosine are the same: only what the workload itself scales may be meant.
    workload = catalog.workload(cell["workload"])
    schedules = {workload.retrain.lr, workload.scratch.lr, *workload.tune.schedules}
    return claim.scaled(getattr(workload.budget, budget)) if str(claim.schedule) in schedules else None


def _follows(curve: Curve, epochs: int, schedule: Schedule) -> bool:
    """Whether a run had the schedule's learning rate in every epoch."""
    is_known = len(curve.values) == epochs and bool(curve.rates)
    return is_known and _is(tuple(curve.rates), epochs, schedule, curve.per_epoch if schedule.per_step else 1)


@lru_cache(maxsize=4096)
def _is(rates: tuple[tuple[float, float], ...], epochs: int, schedule: Schedule, unit: int) -> bool:
    """Whether these rates are the schedule's where epochs begin; all seeds of an arm have the same ones."""
    place = 0
    for epoch in range(epochs):
        while place + 1 < len(rates) and rates[place + 1][0] <= epoch + 1e-9:
            place += 1
        if not math.isclose(rates[place][1], schedule.rate(epoch * unit, epochs * unit, unit), rel_tol=1e-9):
            return False
    return True


def _row(catalog: Catalog, file: str, claim: Claim, labels: tuple[str, ...], found: Sequence[_Found]) -> dict[str, Any]:
    table, row, point = claim.table, claim.row, claim.point
    ours = [run["accuracy"] for _, run in found]
    mean = statistics.fmean(ours) if ours else None
    std = statistics.stdev(ours) if len(ours) > 1 else None
    speedup = statistics.fmean(cell["speedup"] for cell, _ in found) if found else None
    # A network that is trained from random weights starts from no base model.
    bases = [cell["base_accuracy"] for cell, run in found if run["stage"] == "retrain"]
    base = statistics.fmean(bases) if bases else None
    difference = None if mean is None else mean - claim.mean
    comparable = not labels and _apart(speedup, point.speedup) <= _OTHER_NETWORK
    low, high = None, None
    if difference is not None and comparable and std is not None and claim.sample_std is not None:
        low, high = welch(difference, (std, len(ours)), (claim.sample_std, table.n))
    margin = catalog.protocol(row.protocol).margin if row.protocol else 0.0
    counted = _COUNTED[table.std] if any(member.std for member in table.rows) else ""
    return {
        "file": file,
        "paper": table.paper,
        "source": table.source,
        "table": table.table,
        "row": row.label,
        "workload": point.workload,
        "labels": list(labels),
        "protocol": row.protocol or None,
        "method": row.method or None,
        "ratio": point.ratio,
        "retraining": None if claim.schedule is None else f"{claim.epochs} epochs, {claim.schedule}",
        "published_mean": claim.mean,
        "published_std": claim.std,
        "published_n": table.n,
        "published_speedup": point.speedup,
        "published_base": point.base,
        "mean": mean,
        "std": std,
        "n": len(ours),
        "speedup": speedup,
        "base": base,
        "measured_under": sorted({cell["protocol"] for cell, _ in found}),
        "runs": [run["run"] for _, run in found],
        "difference": difference,
        "low": low,
        "high": high,
        "reading": _reading(comparable, len(ours), low, high, margin),
        "differs": _differs(claim, _unlike(catalog, claim), labels, found, speedup, base),
        "notes": [text for text in (_PICKED[table.epoch], counted, *table.notes) if text],
    }


def welch(difference: float, left: tuple[float, int], right: tuple[float, int]) -> tuple[float, float]:
    """95 % t interval of a difference of two means with unequal variances.

    Args:
        difference: The difference.
        left: Sample standard deviation and number of repetitions of one mean.
        right: Those of the other.
    """
    # All of scipy.stats, whose t.ppf is this, takes half a second to load.
    from scipy.special import stdtrit

    parts = [(std**2 / n, n) for std, n in (left, right)]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return difference, difference
    # Welch and Satterthwaite's degrees of freedom.
    freedom = variance**2 / sum(part**2 / (n - 1) for part, n in parts)
    half = float(stdtrit(freedom, (1 + _CONFIDENCE) / 2)) * math.sqrt(variance)
    return difference - half, difference + half


def _reading(comparable: bool, n: int, low: float | None, high: float | None, margin: float) -> str:
    """What the difference comes to, in a word or two."""
    if not n:
        return "no run of ours"
    if not comparable:
        return "not comparable"
    if n < 2:
        return "one seed"
    if low is None or high is None:
        return "no std"
    # As with verdicts: a difference that is proven smaller than the margin does not matter.
    if -margin < low and high < margin:
        return "agrees"
    return "higher" if low > 0 else "lower" if high < 0 else "undecided"


def _differs(
    claim: Claim,
    unlike: str,
    labels: tuple[str, ...],
    found: Sequence[_Found],
    speedup: float | None,
    base: float | None,
) -> list[str]:
    """What differs between a claim and our runs of it, or why there are none."""
    if unlike:
        return [unlike]
    if not found:
        return [*claim.row.notes, *([] if claim.schedule else ["their schedule is not known"])]
    cell, run = found[0]
    texts = list(claim.row.notes)
    for label in labels:
        if label == cell["budget"]:
            texts.append(f"budget {label}: {run['epochs']:g} of {claim.epochs} epochs")
        elif label == cell["precision"]:
            texts.append(f"precision {label}")
        elif label == PORTABLE:
            texts.append("portable arithmetic")
        else:
            texts.append(f"base model from a file ({label})")
    theirs = claim.point
    if _apart(speedup, theirs.speedup) > _SPEEDUP:
        texts.append(f"speedup {speedup:.2f}x, theirs {theirs.speedup:.2f}x")
    if theirs.base is not None and base is not None and abs(base - theirs.base) > _BASE:
        texts.append(f"base model {base:.2f} %, theirs {theirs.base:.2f} %")
    return texts


def _apart(ours: float | None, theirs: float | None) -> float:
    """By what share two speedups differ; 0 where one is not known."""
    return abs(ours / theirs - 1) if ours and theirs else 0.0


def published_table(rows: Iterable[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Claims beside our runs, as header and rows of text."""
    header = ["table", "row", "setup", "ratio", "retraining", "published", "ours", "difference", "reading", "differs"]
    return header, [
        [
            f"{row['paper']}, {row['table']}",
            row["row"],
            row["protocol"] or "none",
            f"{row['ratio']:g}",
            row["retraining"] or "not known",
            _value(row["published_mean"], row["published_std"], row["published_n"], row["published_speedup"]),
            _value(row["mean"], row["std"], row["n"], row["speedup"]),
            _difference(row),
            row["reading"],
            "; ".join(row["differs"]),
        ]
        for row in rows
    ]


def published_notes(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """What must be known of each of these tables, a text for each."""
    found = {row["file"]: row for row in rows}
    return [f"{row['paper']}, {row['table']} ({row['source']}): {' '.join(row['notes'])}" for row in found.values()]


def _value(mean: float | None, std: float | None, n: int, speedup: float | None) -> str:
    if mean is None:
        return "–"
    facts = [f"n = {n}", *([f"{speedup:.2f}x"] if speedup else [])]
    return f"{mean:.2f}{'' if std is None else f' ± {std:.2f}'} ({', '.join(facts)})"


def _difference(row: Mapping[str, Any]) -> str:
    if row["difference"] is None:
        return ""
    interval = "" if row["low"] is None else f" [{row['low']:+.2f}, {row['high']:+.2f}]"
    return f"{row['difference']:+.2f}{interval}"
