"""The layout of results.json, as types and as JSON Schema."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from pruneaudit.audit.judge import Finding
from pruneaudit.audit.verdicts import Verdict
from pruneaudit.catalog.protocols import Study
from pruneaudit.ledger.records import Granularity, Scope, Stage
from pruneaudit.report.results import RESULTS_VERSION
from pruneaudit.schema import Frozen
from pruneaudit.workloads.metrics import Metric


class Trainability(Frozen):
    """Mean Jacobian singular value of the base model, after pruning and at the end.

    In eval mode; ``base_train`` and ``pruned_train`` with batch norm on the statistics of the batch.
    """

    base: float | None
    pruned: float | None
    end: float | None
    base_train: float | None = None
    pruned_train: float | None = None


class CellRow(Frozen):
    """One cell: accuracies in percent, costs in MACs; None where it was not measured.

    Where another metric than accuracy decides, ``metric`` names it, and ``value``, ``base_value`` and
    ``validation_value`` have it, in its own unit. ``beside``: metrics that the workload asks to see, too.
    """

    workload: str
    workload_version: int | None
    protocol: str
    protocol_version: int | None
    method: str
    ratio: float = Field(gt=0, lt=1)
    seed: int
    budget: str
    precision: str
    backend: str
    labels: list[str]
    status: Literal["ok", "failed", "missing", "skipped", "outdated"]
    error: str
    accuracy: float | None
    base_accuracy: float | None
    validation_accuracy: float | None
    pruned_value: float | None = None
    speedup: float | None
    params: int | None
    macs: int | None
    granularity: Granularity | None
    executed_macs: int | None
    total_epochs: float | None
    total_macs: int | None
    result: str | None
    runs: list[str]
    jsv: Trainability
    trainability_accuracy: float | None
    metric: str = "accuracy"
    value: float | None = None
    base_value: float | None = None
    validation_value: float | None = None
    beside: dict[str, float] = Field(default_factory=dict)


class ArchitectureRow(Frozen):
    """One pruned network: its size; ``layers`` where one threshold for all layers decided."""

    workload: str
    labels: list[str]
    method: str
    ratio: float
    seed: int
    granularity: Granularity
    scope: Scope | None
    params: int
    base_params: int
    macs: int
    base_macs: int
    executed_macs: int
    layers: dict[str, int]
    run: str
    protocols: list[str]


class StandingRow(Frozen):
    """Methods at one operating point in groups that nothing tells apart, best first."""

    workload: str
    labels: list[str]
    protocol: str
    ratio: float
    groups: list[list[str]]
    not_comparable: list[str]


class StrictestRow(Frozen):
    """The strictest setup whose rules hold between two methods; None where none does."""

    workload: str
    labels: list[str]
    ratio: float
    arms: tuple[str, str]
    setup: str | None


class RunRow(Frozen):
    """One run that a valid cell stands on: cost in epochs and MACs, accuracies in percent.

    ``learning_rate`` is the highest one that its optimiser had; ``environment`` counts from 0 in ``environments``;
    ``provenance`` says where a base model came from that was not trained here, and what was done to its file.
    """

    run: str
    slug: str
    workload: str
    labels: list[str]
    stage: Stage
    method: str | None
    ratio: float | None
    seed: int
    parent: str | None
    epochs: float | None
    training_macs: int | None
    learning_rate: float | None
    accuracy: float
    validation_accuracy: float
    environment: int
    provenance: str = "trained here"
    value: float | None = None
    validation_value: float | None = None


class NoiseRow(Frozen):
    """How far cells are apart that were computed in native and in portable arithmetic, in the metric's unit.

    ``typical`` is the root mean square of the differences, ``of_means`` the largest one of an arm's mean over seeds,
    ``spread`` the standard deviation over seeds, pooled over arms.
    """

    workload: str
    labels: list[str]
    protocol: str
    ratio: float
    pairs: int
    differ: int
    typical: float
    largest: float
    of_means: float
    spread: float | None


class ProfileRow(Frozen):
    """Share of operating points at which each method is within so many points of the best."""

    protocol: str
    labels: list[str]
    points: list[str]
    within: list[float]
    share: dict[str, list[float]]
    metric: str = "accuracy"


class PublishedRow(Frozen):
    """One accuracy that a paper states, and ours of the same setup and retraining schedule; None where there is none.

    Accuracies in percent, differences (ours minus theirs, with a 95 % interval) in percentage points. ``file`` is the
    table in ``protocols/published``, ``measured_under`` the protocols whose ``runs`` these are.
    """

    file: str
    paper: str
    source: str
    table: str
    row: str
    workload: str
    labels: list[str]
    protocol: str | None
    method: str | None
    ratio: float
    retraining: str | None
    published_mean: float
    published_std: float | None
    published_n: int
    published_speedup: float | None
    published_base: float | None
    mean: float | None
    std: float | None
    n: int
    speedup: float | None
    base: float | None
    measured_under: list[str]
    runs: list[str]
    difference: float | None
    low: float | None
    high: float | None
    reading: Literal["agrees", "higher", "lower", "undecided", "not comparable", "one seed", "no std", "no run of ours"]
    differs: list[str]
    notes: list[str]


class ProtocolFacts(Frozen):
    """What a protocol makes equal and requires."""

    version: int
    title: str
    base: str
    retraining: str
    requires: list[str]
    margin: float


class RuleFacts(Frozen):
    """What a rule claims, and who asks for it."""

    claim: str
    source: str


class ResultsFile(Frozen):
    """results.json: everything that a report shows; every number comes from a run that it names."""

    schema_version: Literal[RESULTS_VERSION]  # type: ignore[valid-type]
    pruneaudit: str
    study: Study | None
    cells: list[CellRow]
    findings: list[Finding]
    verdicts: list[Verdict]
    regressions: list[Verdict]
    standings: list[StandingRow]
    strictest: list[StrictestRow]
    architectures: list[ArchitectureRow]
    runs: list[RunRow]
    profiles: list[ProfileRow]
    published: list[PublishedRow]
    protocols: dict[str, ProtocolFacts]
    rules: dict[str, RuleFacts]
    environments: list[dict[str, str]]
    metrics: dict[str, Metric] = Field(default_factory=dict)
    noise: list[NoiseRow] = Field(default_factory=list)
    ledger: list[str] = Field(default_factory=list)


def schema() -> dict[str, Any]:
    """JSON Schema of results.json (draft 2020-12)."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **ResultsFile.model_json_schema()}
