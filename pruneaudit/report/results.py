"""Everything a report shows, as rows of JSON builtins."""

from __future__ import annotations

import gc
import statistics
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import itemgetter
from typing import Any

from pruneaudit.audit import rounds
from pruneaudit.audit.catalogue import get_rule, required
from pruneaudit.audit.currency import method_digests, outdated, stored_cell
from pruneaudit.audit.docket import Docket
from pruneaudit.audit.evidence import Table
from pruneaudit.audit.judge import Finding
from pruneaudit.audit.precedents import Precedents
from pruneaudit.audit.rounds import Standing
from pruneaudit.audit.verdicts import Verdict
from pruneaudit.catalog.cells import Arm, Cell, Comparison, pairs
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.names import UNPRUNED
from pruneaudit.catalog.protocols import Study
from pruneaudit.catalog.settings import Settings
from pruneaudit.errors import DamagedError
from pruneaudit.ledger.records import CellRecord, RunRecord
from pruneaudit.ledger.store import Ledger
from pruneaudit.measure.trainability import trainability_accuracy
from pruneaudit.report.curves import Curve
from pruneaudit.report.noise import noise_rows
from pruneaudit.report.published import published
from pruneaudit.report.standings import profiles, standings, strictest_setups
from pruneaudit.report.values import base_value, value
from pruneaudit.version import __version__
from pruneaudit.workloads.metrics import ACCURACY, Metric
from pruneaudit.workloads.recipes import steps_per_epoch
from pruneaudit.workloads.schema import Workload

#: A workload with its labels: what may stand in one table.
Group = tuple[str, tuple[str, ...]]
#: Rules whose failures figures show: the accuracy still rises at the end of the first stage, of the last one.
RISING = ("F605", "F606")
#: Label of results that somebody states and nobody measured here.
STATED = "stated, not measured"
#: Version of the layout of results.json.
RESULTS_VERSION = 4
_CELL_FIELDS = (
    "workload",
    "workload_version",
    "protocol",
    "protocol_version",
    "method",
    "ratio",
    "seed",
    "budget",
    "precision",
    "backend",
    "labels",
    "status",
    "error",
    "accuracy",
    "base_accuracy",
    "validation_accuracy",
    "speedup",
    "params",
    "macs",
    "granularity",
    "executed_macs",
    "total_epochs",
    "total_macs",
    "result",
)

_cell_values = itemgetter(*_CELL_FIELDS)


@dataclass(frozen=True)
class Statistic:
    """The metric of an arm at one operating point, over seeds.

    Attributes:
        mean: Mean, in the metric's unit.
        std: Sample standard deviation (n - 1); None for one seed.
        n: Number of seeds.
        speedup: MACs(base) / MACs(pruned); None where results that were not measured here do not state it.
        metric: What it is.
    """

    mean: float
    std: float | None
    n: int
    speedup: float | None
    metric: Metric = ACCURACY

    def __str__(self) -> str:
        number = self.metric.number
        return number(self.mean) if self.std is None else f"{number(self.mean)} ± {number(self.std)}"


@dataclass
class Results:
    """What a report is made of.

    Attributes:
        cells: One row for each cell, sorted.
        findings: One row for each finding, sorted.
        verdicts: One row for each comparison, sorted.
        regressions: One row for each arm that was compared with its own earlier results, sorted.
        standings: Methods at each operating point, in groups that nothing tells apart.
        strictest: For each pair of methods the strictest setup whose rules hold between them.
        architectures: One row for each pruned network: its size, and what one threshold for all layers left of each.
        runs: One row for each run that a valid cell stands on: what it cost and what it reached.
        curves: How each of these runs went, by id; not in results.json (``pruneaudit.load`` reads them).
        profiles: Share of operating points at which each method is within some points of the best.
        published: Accuracies of papers beside ours.
        protocols: Title, version and requirements of each protocol.
        rules: Claim and source of each rule that was applied.
        environments: Distinct environments of the runs.
        study: What the session's study says, waivers included; None without one.
        metrics: What decides, by workload; one that is not named: accuracy.
        noise: One row for each operating point that was measured in native and in portable arithmetic.
        ledger: What the signatures of the ledger's records say, one line each; empty: all are this machine's.
    """

    cells: list[dict[str, Any]]
    findings: list[dict[str, Any]]
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    regressions: list[dict[str, Any]] = field(default_factory=list)
    standings: list[dict[str, Any]] = field(default_factory=list)
    strictest: list[dict[str, Any]] = field(default_factory=list)
    architectures: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    profiles: list[dict[str, Any]] = field(default_factory=list)
    published: list[dict[str, Any]] = field(default_factory=list)
    protocols: dict[str, dict[str, Any]] = field(default_factory=dict)
    rules: dict[str, dict[str, str]] = field(default_factory=dict)
    environments: list[dict[str, str]] = field(default_factory=list)
    study: dict[str, Any] | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    noise: list[dict[str, Any]] = field(default_factory=list)
    ledger: list[str] = field(default_factory=list)
    _arms: dict[Group, _Arms] = field(default_factory=dict, init=False, repr=False, compare=False)
    _grouped: dict[str, dict[Group, list[dict[str, Any]]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def as_json(self) -> dict[str, Any]:
        """Content of results.json."""
        metrics = {
            name: metric.model_dump(mode="json") for name, metric in sorted(self.metrics.items()) if metric != ACCURACY
        }
        return {
            "schema_version": RESULTS_VERSION,
            "pruneaudit": __version__,
            "study": self.study,
            "verdicts": self.verdicts,
            "regressions": self.regressions,
            "standings": self.standings,
            "strictest": self.strictest,
            "architectures": self.architectures,
            "runs": self.runs,
            "profiles": self.profiles,
            "published": self.published,
            "protocols": self.protocols,
            "rules": self.rules,
            "environments": self.environments,
            "cells": self.cells,
            "findings": self.findings,
            **({"metrics": metrics} if metrics else {}),
            **({"noise": self.noise} if self.noise else {}),
            **({"ledger": self.ledger} if self.ledger else {}),
        }

    def metric(self, workload: str) -> Metric:
        """What decides on a workload."""
        return self.metrics.get(workload, ACCURACY)

    @property
    def is_stated(self) -> bool:
        """Whether nothing was measured here: numbers are those that somebody states."""
        return bool(self.cells) and all(STATED in row["labels"] for row in self.cells)

    @property
    def origin(self) -> str:
        """Where the numbers come from, in a sentence."""
        if self.is_stated:
            return "Every number is as its owner states it; nothing was measured here"
        return "Every number comes from a run record in the ledger"

    @property
    def moment(self) -> str:
        """When in training the numbers were taken."""
        return "as stated" if self.is_stated else "after the last epoch"

    @cached_property
    def statuses(self) -> Counter[str]:
        """How many cells ended how."""
        return Counter(row["status"] for row in self.cells)

    @property
    def attempted(self) -> str:
        """How many cells were attempted, and how many count."""
        return f"{self.statuses['ok'] + self.statuses['failed']} attempted, {self.statuses['ok']} valid"

    @cached_property
    def unmeasured(self) -> list[dict[str, Any]]:
        """Cells that failed, were skipped or are missing."""
        return [row for row in self.cells if row["status"] != "ok"]

    @cached_property
    def groups(self) -> list[Group]:
        """Workloads with their labels: what may stand in one table."""
        return sorted({(row["workload"], tuple(row["labels"])) for row in self.cells})

    def of(self, rows: str, workload: str, labels: tuple[str, ...]) -> list[dict[str, Any]]:
        """Those of some rows (``"findings"``, say) that are on one workload under one set of labels.

        Sorted into groups once: every table of every workload asks.
        """
        if rows not in self._grouped:
            grouped: dict[Group, list[dict[str, Any]]] = defaultdict(list)
            for row in getattr(self, rows):
                grouped[row["workload"], tuple(row["labels"])].append(row)
            self._grouped[rows] = dict(grouped)
        return self._grouped[rows].get((workload, labels), [])

    def drawn(self, workload: str, labels: tuple[str, ...]) -> Results:
        """What the figures of one workload show: small enough to travel to the process that draws them."""
        runs = self.of("runs", workload, labels)
        return Results(
            cells=self.of("cells", workload, labels),
            findings=[
                row
                for row in self.of("findings", workload, labels)
                if len(row["arms"]) == 1 and row["verdict"] != "pass"
            ],
            runs=runs,
            curves={row["run"]: self.curves[row["run"]] for row in runs},
            architectures=self.of("architectures", workload, labels),
            protocols=self.protocols,
            metrics=self.metrics,
        )

    def statistics(self, workload: str, labels: tuple[str, ...]) -> dict[tuple[str, str, float], Statistic]:
        """Statistic by (protocol, method, ratio) of the cells that were measured."""
        return self._arms_of(workload, labels).statistics

    def removed(self, workload: str, labels: tuple[str, ...]) -> dict[str, str]:
        """What each method with a result removed: ``filter``, ``block`` or ``weight``."""
        return self._arms_of(workload, labels).removed

    def base(self, workload: str, labels: tuple[str, ...]) -> Statistic | None:
        """The metric of the dense base models that arms share (S1's own ones left out); None where there are none."""
        return self._arms_of(workload, labels).base

    def _arms_of(self, workload: str, labels: tuple[str, ...]) -> _Arms:
        """What many tables ask: found once, and in one look at each row."""
        if (workload, labels) not in self._arms:
            metric = self.metric(workload)
            shared = {name for name, protocol in self.protocols.items() if protocol.get("base") == "shared"}
            grouped: dict[tuple[str, str, float], list[tuple[float, float | None]]] = defaultdict(list)
            removed: dict[str, str] = {}
            bases: dict[str, float] = {}
            for row in self.of("cells", workload, labels):
                if row["status"] != "ok":
                    continue
                grouped[row["protocol"], row["method"], row["ratio"]].append((value(row), row["speedup"]))
                removed[row["method"]] = row["granularity"]
                if row["protocol"] in shared and (found := base_value(row)) is not None:
                    bases[row["runs"][0]] = found
            found_of = {
                key: statistic((one for one, _ in rows), _mean(speedup for _, speedup in rows), metric)
                for key, rows in grouped.items()
            }
            base = statistic(bases.values(), 1.0, metric) if bases else None
            self._arms[workload, labels] = _Arms(found_of, removed, base)
        return self._arms[workload, labels]


@dataclass(frozen=True)
class _Arms:
    """What the measured cells of one group say of its arms, see the methods of :class:`Results` of these names."""

    statistics: dict[tuple[str, str, float], Statistic]
    removed: dict[str, str]
    base: Statistic | None


def _mean(speedups: Iterable[float | None]) -> float | None:
    """Mean of those that are known."""
    known = [speedup for speedup in speedups if speedup is not None]
    return statistics.fmean(known) if known else None


def statistic(values: Iterable[float], speedup: float | None, metric: Metric) -> Statistic:
    """Mean and sample standard deviation over seeds."""
    found = list(values)
    std = statistics.stdev(found) if len(found) > 1 else None
    return Statistic(statistics.fmean(found), std, len(found), speedup, metric)


@dataclass(frozen=True)
class Asked:
    """What a session asked, beyond its cells.

    Attributes:
        subjects: Arms and comparisons to judge.
        required: Required checks that were selected, by subject; a subject that is not named: all of them.
        regressions: Verdicts against a baseline.
        skipped: Reason for each cell that was skipped.
        study: What is compared and what is waived.
    """

    subjects: Sequence[Arm | Comparison] = ()
    required: Mapping[Arm | Comparison, Set[str]] = field(default_factory=dict)
    regressions: Sequence[Verdict] = ()
    skipped: Mapping[Cell, str] = field(default_factory=dict)
    study: Study | None = None


@contextmanager
def no_collection() -> Iterator[None]:
    """Pause the search for cyclic garbage: it would look through millions of objects that stay, again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@no_collection()
def gather(
    catalog: Catalog,
    settings: Settings,
    ledger: Ledger,
    cells: Iterable[Cell],
    asked: Asked,
    begin: Callable[[Results], None] = lambda measured: None,
) -> Results:
    """Rows of a session: every selected cell, and what is found of every selected arm and comparison.

    Args:
        catalog: Where protocols are described.
        settings: Settings of the session.
        ledger: Where the records are.
        cells: Selected cells.
        asked: What is judged.
        begin: Is told what figures show before all the rest is judged: cells, runs, and findings of ``RISING``.
    """
    rows = []
    known: dict[Cell, CellRecord] = {}
    for cell in cells:
        # One that no longer counts was stored by an earlier session, and this one ended before measuring it anew.
        try:
            record = None if cell in asked.skipped else stored_cell(cell, catalog, settings, ledger)
        except DamagedError as error:
            # It costs its own cells, not the report.
            empty = _empty_row(cell, settings, catalog.workload(cell.workload), None)
            rows.append(empty | {"status": "failed", "error": str(error)})
            continue
        if record is not None:
            rows.append(_cell_row(record))
            known[cell] = record
        else:
            rows.append(_empty_row(cell, settings, catalog.workload(cell.workload), asked.skipped.get(cell)))
    groups = []
    wanted: dict[Arm | Comparison, Set[str]] = {}
    waive = asked.study.waive if asked.study is not None else {}
    for workload in sorted({cell.workload for cell in known} | {subject.workload for subject in asked.subjects}):
        labels = settings.labels(catalog.workload(workload))
        members = {cell: record for cell, record in known.items() if cell.workload == workload}
        table, looks = Table(members, catalog.strictness), rounds.looks(ledger, workload, labels)
        docket = Docket(catalog, ledger, members.get, labels, waive, table, looks=looks)
        subjects = [subject for subject in asked.subjects if subject.workload == workload]
        counted = _as_planned(docket, workload, subjects)
        wanted |= {counted[subject]: rules for subject, rules in asked.required.items() if subject in counted}
        groups.append((docket, list(counted.values())))
    asked = replace(asked, required=wanted)
    return _results(catalog, ledger, rows, groups, asked, begin)


@no_collection()
def gather_ledger(
    catalog: Catalog,
    ledger: Ledger,
    study: Study | None = None,
    begin: Callable[[Results], None] = lambda measured: None,
) -> Results:
    """Rows of everything a ledger holds: all cells, and all comparisons between them.

    Cells measured by another version of a protocol, workload, method or of the training code are listed as outdated,
    but neither averaged nor judged with the others.

    Args:
        catalog: Where protocols are described.
        ledger: Where the records are.
        study: What is waived.
        begin: As :func:`gather`'s.
    """
    ledger.recall()
    by_key = ledger.cells_by_key()
    stored = list(by_key.values())
    # A file that cannot be read costs its own cells, not the report.
    damaged = {id(record): problem for record in stored if (problem := ledger.damage(record)) is not None}
    ledger.keep()
    everything = [record for record in stored if id(record) not in damaged]
    digests = method_digests(catalog, ledger, everything)
    why = outdated(everything, catalog, ledger, digests)
    tables: dict[tuple[str, tuple[str, ...]], dict[Cell, CellRecord]] = defaultdict(dict)
    for record in everything:
        if not why[id(record)]:
            tables[record.workload, record.labels][record.cell] = record
    precedents = Precedents(ledger, by_key)
    groups = []
    for (workload, labels), members in sorted(tables.items()):
        points: dict[tuple[str, float], list[Cell]] = defaultdict(list)
        for cell in members:
            points[cell.protocol, cell.ratio].append(cell)
        subjects: list[Arm | Comparison] = []
        for (name, ratio), cells in sorted(points.items()):
            seeds = tuple(sorted({cell.seed for cell in cells}))
            methods = sorted({cell.method for cell in cells})
            subjects += [Arm(workload, name, method, ratio, seeds) for method in methods]
            subjects += [
                Comparison(workload, name, left, right, ratio, seeds)
                for left, right in pairs(catalog.protocol(name), methods)
            ]
        table = Table(members, catalog.strictness)
        waive = study.waive if study is not None else {}
        looks = rounds.looks(ledger, workload, labels)
        docket = Docket(catalog, ledger, members.get, labels, waive, table, looks=looks, precedents=precedents)
        groups.append((docket, list(_as_planned(docket, workload, subjects).values())))
    rows = [
        _cell_row(record) | ({"status": "outdated", "error": why[id(record)]} if why[id(record)] else {})
        for record in everything
    ]
    rows += [
        _cell_row(record) | {"status": "failed", "error": damaged[id(record)]}
        for record in stored
        if id(record) in damaged
    ]
    results = _results(catalog, ledger, rows, groups, Asked(study=study), begin)
    precedents.keep()
    return results


def _as_planned(
    docket: Docket, workload: str, subjects: Iterable[Arm | Comparison]
) -> dict[Arm | Comparison, Arm | Comparison]:
    """Subjects over the seeds that count, and in the docket where they stand, as the ledger's plans say.

    Other comparisons of a table that has a plan are left out: nothing was fixed of them before they were seen.
    """
    families = rounds.read(docket.ledger)
    metric = docket.catalog.workload(workload).metric
    found: dict[Arm | Comparison, Arm | Comparison] = {}
    standings: dict[str, Standing] = {}
    for subject in subjects:
        family = families.get((workload, subject.protocol, docket.labels))
        if family is None:
            found[subject] = subject
            continue
        if subject.protocol not in standings:
            standings[subject.protocol] = family.standing(docket.cell_of, metric)
        standing = standings[subject.protocol]
        if isinstance(subject, Arm) or standing.of(subject) is not None:
            found[subject] = standing.over_seeds_taken(subject)
    docket.standings = standings
    return found


def _results(
    catalog: Catalog,
    ledger: Ledger,
    rows: list[dict[str, Any]],
    groups: list[tuple[Docket, list[Arm | Comparison]]],
    asked: Asked,
    begin: Callable[[Results], None],
) -> Results:
    records = [record for docket, _ in groups if docket.table for record in docket.table.cells.values()]
    # Most runs serve several cells.
    labels = {run: row["labels"] for row in rows if row["status"] == "ok" for run in row["runs"]}
    runs = {run: ledger.get(run) for run in labels}
    environment_of = _environments(runs)
    environments = sorted(set(environment_of.values()))
    _add_trainability(rows, runs)
    _add_beside(rows, runs, catalog)
    protocols = sorted({row["protocol"] for row in rows if row["status"] != "outdated"})
    metrics = _metrics(catalog, rows)
    measured = Results(
        cells=sorted(
            rows,
            key=lambda row: (row["workload"], row["labels"], row["protocol"], row["method"], row["ratio"], row["seed"]),
        ),
        findings=list(map(_finding_row, _findings(groups, asked, RISING))),
        architectures=_architectures(records, runs),
        runs=_run_rows(runs, labels, {name: environments.index(one) for name, one in environment_of.items()}),
        curves={name: _curve(run) for name, run in runs.items()},
        protocols={
            name: {
                "version": catalog.protocol(name).version,
                "title": catalog.protocol(name).title,
                "base": catalog.protocol(name).base,
                "retraining": catalog.protocol(name).retraining,
                "requires": list(required(catalog.protocol(name))),
                "margin": catalog.protocol(name).margin,
            }
            for name in protocols
        },
        environments=[dict(environment) for environment in environments],
        study=asked.study.model_dump(mode="json") if asked.study is not None and asked.study.name else None,
        metrics=metrics,
        noise=noise_rows(records, ledger),
    )
    begin(measured)
    findings = _findings(groups, asked)
    verdicts = [
        verdict
        for docket, subjects in groups
        for verdict in docket.verdicts(subject for subject in subjects if isinstance(subject, Comparison)).values()
    ]
    applied = sorted({finding.rule for finding in findings})
    return replace(
        measured,
        findings=sorted(map(_finding_row, findings), key=_finding_order),
        verdicts=_verdict_rows(verdicts),
        regressions=_verdict_rows(asked.regressions),
        standings=standings(rows, verdicts, measured.metric),
        strictest=strictest_setups(catalog, findings),
        profiles=profiles(rows, measured.metric),
        published=published(catalog, rows, measured.runs, measured.curves),
        rules={rule_id: {"claim": get_rule(rule_id).claim, "source": get_rule(rule_id).source} for rule_id in applied},
        ledger=ledger.account().lines(),
    )


def _metrics(catalog: Catalog, rows: Iterable[Mapping[str, Any]]) -> dict[str, Metric]:
    """What decides on each workload, as it states it now."""
    names = {row["workload"] for row in rows} & catalog.workloads.keys()
    return {name: catalog.workload(name).metric for name in sorted(names)}


def _findings(
    groups: Iterable[tuple[Docket, Sequence[Arm | Comparison]]], asked: Asked, only: Sequence[str] = ()
) -> list[Finding]:
    """What is found of all subjects: by all rules, or by some."""
    return [
        finding
        for docket, subjects in groups
        for subject in subjects
        for wanted in (asked.required.get(subject),)
        for finding in docket.findings(subject, only)
        if wanted is None or not finding.required or finding.rule in wanted or get_rule(finding.rule).always
    ]


def _architectures(records: Iterable[CellRecord], runs: Mapping[str, RunRecord]) -> list[dict[str, Any]]:
    """Sizes of the pruned networks, each once, and the protocols that they stand under."""
    # Arms may share a run: scratch and scratch-e, say.
    found: dict[tuple[str, str], dict[str, Any]] = {}
    protocols: dict[tuple[str, str], set[str]] = defaultdict(set)
    for record in records:
        name = record.prune or record.result
        if record.status != "ok" or name is None or record.method == UNPRUNED:
            continue
        protocols[record.method, name].add(record.protocol)
        if (record.method, name) in found:
            continue
        run = runs[name]
        target = run.conduct.target if run.conduct is not None else None
        found[record.method, name] = {
            "workload": record.workload,
            "labels": list(record.labels),
            "method": record.method,
            "ratio": record.ratio,
            "seed": record.seed,
            "granularity": run.granularity,
            "scope": target.scope if target is not None else None,
            "params": run.params,
            "base_params": run.base_params,
            "macs": run.macs,
            "base_macs": run.base_macs,
            "executed_macs": run.executed_macs or run.macs,
            # Where every layer loses its share, the ratio says it all.
            "layers": run.left if target is not None and target.scope == "global" else {},
            "run": name,
        }
    return sorted(
        (row | {"protocols": sorted(protocols[key])} for key, row in found.items()),
        key=lambda row: (row["workload"], row["labels"], row["method"], row["ratio"], row["seed"], row["protocols"]),
    )


def _run_rows(
    runs: Mapping[str, RunRecord], labels: Mapping[str, list[str]], environments: Mapping[str, int]
) -> list[dict[str, Any]]:
    """What each run cost and reached. Runs of one workload under different settings have different ids."""
    rows = [
        {
            "run": name,
            "slug": run.slug,
            "workload": run.workload,
            "labels": labels[name],
            "stage": run.stage,
            "method": run.method,
            "ratio": run.ratio,
            "seed": run.seed,
            "parent": run.parent,
            "epochs": run.epochs,
            "training_macs": run.training_macs,
            "learning_rate": max((rate for rate, _ in run.learning_rates), default=None),
            "accuracy": run.accuracy,
            "validation_accuracy": run.validation_accuracy,
            **({} if run.scores is None else {"value": run.value, "validation_value": run.validation_value}),
            "environment": environments[name],
            **({"provenance": run.provenance} if run.provenance != "trained here" else {}),
        }
        for name, run in runs.items()
    ]
    return sorted(rows, key=lambda row: (row["workload"], row["slug"], row["run"]))


def _environments(runs: Mapping[str, RunRecord]) -> dict[str, tuple[tuple[str, str], ...]]:
    """Versions and hardware of each run, and what it was computed with where that is told."""
    found: dict[str, tuple[tuple[str, str], ...]] = {}
    # Records of one index have them in common.
    known: dict[tuple[Any, ...], tuple[tuple[str, str], ...]] = {}
    for name, run in runs.items():
        key = (id(run.environment), run.arithmetic, run.kind)
        if key not in known:
            told = {} if run.kind is None else {"arithmetic": f"{run.arithmetic}: {run.kind}"}
            known[key] = tuple(sorted({**run.environment, **told}.items()))
        found[name] = known[key]
    return found


def _curve(run: RunRecord) -> Curve:
    per_epoch = steps_per_epoch(run.train_images, run.recipe.batch)
    rates, step = [], 0
    starts = run.epoch_starts
    for rate, steps in run.learning_rates:
        if starts:
            # Epochs that are parts, too, take their place on the axis of epochs.
            epoch = bisect_right(starts, step) - 1
            end = starts[epoch + 1] if epoch + 1 < len(starts) else run.optimiser_steps
            rates.append((epoch + (step - starts[epoch]) / (end - starts[epoch]), rate))
        else:
            rates.append((step / per_epoch, rate))
        step += steps
    return Curve(run.curve, rates, per_epoch)


def _add_trainability(rows: list[dict[str, Any]], runs: Mapping[str, RunRecord]) -> None:
    """Add what the runs say of trainability to the rows of cells."""
    found: dict[tuple[str | None, ...], tuple[dict[str, float | None], float | None]] = {}
    for row in rows:
        # Cells of many protocols stand on the same runs.
        key = (row["result"], *row["runs"])
        if key not in found:
            found[key] = _trainability(row, runs)
        row["jsv"], row["trainability_accuracy"] = found[key]


def _trainability(
    row: Mapping[str, Any], runs: Mapping[str, RunRecord]
) -> tuple[dict[str, float | None], float | None]:
    """Jacobian singular values of a cell's stages, and trainability accuracy."""
    chain = [runs[run] for run in row["runs"] if run in runs]
    by_stage = {run.stage: run.jacobian.mean for run in chain if run.jacobian is not None}
    in_training = {run.stage: run.jacobian_train.mean for run in chain if run.jacobian_train is not None}
    result = runs.get(row["result"]) if row["result"] else None
    jsv = {
        "base": by_stage.get("pretrain") if "prune" in by_stage else None,
        "pruned": by_stage.get("prune"),
        "end": result.jacobian.mean if result is not None and result.jacobian is not None else None,
    }
    if "prune" in in_training:
        jsv |= {"base_train": in_training.get("pretrain"), "pruned_train": in_training["prune"]}
    return jsv, trainability_accuracy(result.curve, result.recipe) if result is not None else None


def _add_beside(rows: list[dict[str, Any]], runs: Mapping[str, RunRecord], catalog: Catalog) -> None:
    """Add the metrics that workloads ask to see beside the one that decides, as far as they were measured."""
    for row in rows:
        run = runs.get(row["result"]) if row["result"] else None
        if run is None:
            continue
        metric, found = catalog.workload(row["workload"]).metric, {**run.beside, ACCURACY.name: run.accuracy}
        shown = {name: found[name] for name in metric.also if name in found}
        if shown or metric.beside:
            row["beside"] = shown


def _verdict_rows(verdicts: Iterable[Verdict]) -> list[dict[str, Any]]:
    rows = [verdict.model_dump(mode="json") for verdict in verdicts]
    for row in rows:
        # As everywhere: what is not said is accuracy.
        if row["metric"] == ACCURACY.name:
            del row["metric"]
        if row["plan"] is None:  # A fixed number of seeds.
            del row["plan"], row["looks"]
        if row["outlook"] is None:
            del row["outlook"]
    return sorted(rows, key=lambda row: (row["workload"], row["labels"], row["protocol"], row["ratio"], row["arms"]))


def _cell_row(record: CellRecord) -> dict[str, Any]:
    # Its values are JSON's, but for one: a dump of each record takes three times as long.
    row = dict(zip(_CELL_FIELDS, _cell_values(record.__dict__), strict=True)) | {"labels": list(record.labels)}
    after = {} if record.pruned_value is None else {"pruned_value": record.pruned_value}
    return row | after | _scores(record) | {"runs": record.runs}


def _scores(record: CellRecord) -> dict[str, Any]:
    """Columns of a metric that is not accuracy."""
    found = record.scores
    if found is None:
        return {}
    return {
        "metric": record.metric.name,
        "value": found.test,
        "base_value": found.base,
        "validation_value": found.validation,
    }


def _empty_row(cell: Cell, settings: Settings, workload: Workload, reason: str | None) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(_CELL_FIELDS)
    row |= {
        "workload": cell.workload,
        "protocol": cell.protocol,
        "method": cell.method,
        "ratio": cell.ratio,
        "seed": cell.seed,
        "budget": settings.budget,
        "precision": settings.precision,
        "backend": settings.backend_of(workload),
        "labels": list(settings.labels(workload)),
        "status": "missing" if reason is None else "skipped",
        "error": reason or "not measured",
        "runs": [],
    }
    return row


def _finding_row(finding: Finding) -> dict[str, Any]:
    row = finding.row()
    if finding.verdict == "pass":
        # The rows of its cells name them; a report of thousands of checks should not repeat them.
        del row["runs"]
    return row


def _finding_order(row: dict[str, Any]) -> tuple[Any, ...]:
    return (row["workload"], row["labels"], row["protocol"], row["ratio"], row["arms"], row["rule"])
