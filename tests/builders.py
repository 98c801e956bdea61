"""Hand-made identities, records and evidence: the smallest ones that pass every rule. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from pruneaudit.arithmetic import ArithmeticKind
from pruneaudit.audit.evidence import Case, Evidence, Table
from pruneaudit.audit.judge import Finding
from pruneaudit.catalog.cells import Cell, Comparison
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.names import CROSS_PREFIX, MAGNITUDE, RANDOM, is_scratch
from pruneaudit.errors import ConfigError
from pruneaudit.ledger.records import (
    CellRecord,
    CellScores,
    Conduct,
    FailureRecord,
    Jacobian,
    RunRecord,
    RunSpec,
    Scores,
    Shown,
    Target,
    pack,
    total,
)
from pruneaudit.ledger.store import Ledger
from pruneaudit.pruning.ratios import removed_filters
from pruneaudit.version import __version__
from pruneaudit.workloads.metrics import Metric
from pruneaudit.workloads.recipes import Recipe, steps_per_epoch
from pruneaudit.workloads.schema import DataConfig

DATA = DataConfig(name="digits", size=32, mean=(0.3,), std=(0.4,), pad=2)
RECIPE = Recipe(epochs=3, lr="0:0.01,2:0.001", batch=64, weight_decay=1e-4)
NOTHING = Recipe(steps=0, lr="0:0.003", batch=64)
WEIGHTS = save({"weight": np.arange(4, dtype=np.float32)})
CATALOG = Catalog()
METHODS = CATALOG.methods
WEIGHTS_DIGEST = hashlib.sha256(WEIGHTS).hexdigest()
# One pass over the training split in MACs of the dense and of the pruned network.
IMAGES, DENSE_MACS, PRUNED_MACS = 100, 1000, 400
#: Filters of each prunable layer of the dense network.
CHANNELS = {"conv1": 6, "conv2": 16}
#: Filters that stay at ratio 0.5.
TARGET = Target(stay={"conv1": 3, "conv2": 8}, macs=PRUNED_MACS, unit=60)
TEST_IMAGES = 40
ENVIRONMENT = {"pruneaudit": __version__, "python": "3.12.3", "torch": "2.9.0", "device": "made up"}
#: Seeds of a comparison that can carry a claim, and one that may be lost.
SEEDS = tuple(range(7))


def run_spec(stage: str = "pretrain", **identity: Any) -> RunSpec:
    """An identity; everything but the stage has a value."""
    fields = {"workload": "lenet5-digits", "workload_version": 1, "model": "lenet5", "data": DATA, "recipe": RECIPE}
    return RunSpec.model_validate({**fields, "stage": stage, "seed": 0, "numerics": 1, **identity})


def kind(**facts: Any) -> ArithmeticKind:
    """A kind of arithmetic; everything has a value."""
    fields = {
        "torch": "2.9.0",
        "vectors": "AVX2",
        "libraries": {"oneDNN": "3.9"},
        "digests": {"torch": "00", "MKL": "00"},
    }
    return ArithmeticKind.model_validate({**fields, **facts})


def right_answers(accuracy: float, images: int = TEST_IMAGES) -> str:
    """Per-image correctness, packed: the first images are right."""
    return pack(np.arange(images) < round(images * accuracy / 100))


def run_record(spec: RunSpec | None = None, **measured: Any) -> RunRecord:
    """What a run with this identity might have measured, by default 3 epochs over 100 images in 6 steps.

    What follows from other values follows from ``measured`` too: curves and answers from ``accuracy``, for one.
    """
    spec = spec or run_spec()
    recipe = spec.recipe
    per_epoch = steps_per_epoch(IMAGES, recipe.batch)
    steps = recipe.total_steps(per_epoch)
    passes = -(-steps // per_epoch)
    rates = [recipe.rate(step // per_epoch, step) for step in range(steps)]
    pruned = spec.stage in ("prune", "retrain", "scratch")
    images = recipe.images(IMAGES)
    per_image = PRUNED_MACS if spec.stage in ("retrain", "scratch") else DENSE_MACS
    accuracy = measured.get("accuracy", 75.0)
    validation_accuracy = measured.get("validation_accuracy", 70.0)
    parent_digest = None if spec.parent is None else WEIGHTS_DIGEST
    kept = {name: list(range(n - removed_filters(n, spec.ratio or 0.5))) for name, n in CHANNELS.items()}
    fields: dict[str, Any] = {
        "epochs": images / IMAGES,
        "samples": images,
        "scoring_samples": 0,
        "optimiser_steps": steps,
        "training_macs": 3 * per_image * images,
        "learning_rates": [(rate, len(list(same))) for rate, same in groupby(rates)],
        "hyper_parameters": {name: getattr(recipe, name) for name in ("batch", "momentum", "weight_decay") if steps},
        "declared_steps": steps if spec.stage == "prune" else 0,
        "train_loss": [0.5] * passes,
        "train_accuracy": [80.0] * passes,
        "validation_loss": [0.6] * passes,
        "validation_accuracy_curve": [validation_accuracy] * passes,
        "test_loss": [0.6] * passes,
        "test_accuracy": [accuracy] * passes,
        "accuracy": accuracy,
        "validation_accuracy": validation_accuracy,
        "best_accuracy": accuracy,
        "best_epoch": 1,
        "correct": right_answers(accuracy, measured.get("test_images", TEST_IMAGES)),
        "test_images": TEST_IMAGES,
        "train_images": IMAGES,
        "initial_accuracy": 10.0 if spec.stage == "scratch" else None,
        "macs": PRUNED_MACS if pruned else DENSE_MACS,
        "macs_recounted": measured.get("macs", PRUNED_MACS if pruned else DENSE_MACS),
        "params": 50 if pruned else 100,
        "base_macs": DENSE_MACS,
        "base_params": 100,
        "kept": kept if spec.stage in ("prune", "retrain") else {},
        "jacobian": Jacobian(mean=1.2, std=0.5, condition=8.0, samples=64),
        "conduct": (
            Conduct(
                channels=CHANNELS,
                target=TARGET,
                equivalence=1e-16,
                replay="same",
                parent_digest_after=measured.get("parent_digest", parent_digest) or "",
            )
            if spec.stage == "prune"
            else None
        ),
        "shown": Shown() if spec.stage == "prune" else None,
        "parent_digest": parent_digest,
        "weights_digest": WEIGHTS_DIGEST,
        "split_digest": "5b" * 32,
        "classes": 10,
        "device": "cpu",
        "environment": ENVIRONMENT,
        "seconds": 1.0,
        "training_seconds": 0.5,
        "finished": "2026-01-01T00:00:00+00:00",
    }
    return RunRecord.model_validate({**dict(spec), **fields, **measured})


def failure(spec: RunSpec, session: str = "session", error: str = "it broke") -> FailureRecord:
    """A failed attempt."""
    return FailureRecord(
        spec=spec, error=error, traceback="Traceback: it broke", session=session, finished="2026-01-01"
    )


def changed(record: RunRecord, **fields: Any) -> RunRecord:
    """The same run with other measured values."""
    return record.model_copy(update=fields)


def evidence(method: str = "l1", protocol: str = "s3.2", seed: int = 0, trials: int = 1, **labels: Any) -> Evidence:
    """An arm that passes every rule: base, top-up, prune and ``trials`` retrainings; or one scratch training.

    Args:
        method: Its name.
        protocol: Its protocol; against scratch the top-up is another run, since it counts steps.
        seed: Seed of all its runs.
        trials: Number of retrainings; the first is the result.
        labels: Identity of all runs that is not the default (budget, precision).
    """
    if is_scratch(method):
        # Equal totals: 3 base + 3 top-up + 3 retraining epochs, of which 6 at 2.5 times the MACs.
        epochs = 18 if protocol == "sx-b" else 9
        result = run_record(run_spec("scratch", seed=seed, ratio=0.5, recipe=RECIPE.for_epochs(epochs), **labels))
        runs: tuple[RunRecord | None, ...] = (None, None, None)
        retrainings = (result,)
    else:
        base = run_record(run_spec(seed=seed, **labels), accuracy=90.0)
        longer = Recipe(steps=6, lr="0:0.01,4:0.001", batch=64, weight_decay=1e-4)
        recipe = longer if protocol.startswith("sx") else RECIPE
        topup = run_record(run_spec("topup", seed=seed, parent=base.run_id, recipe=recipe, **labels))
        pruning = run_spec(
            "prune",
            seed=seed,
            parent=topup.run_id,
            method=method,
            ratio=0.5,
            recipe=NOTHING,
            # A known method's own digest: a cell measured with another version of its file is outdated.
            method_digest=METHODS[method].digest if method in METHODS else method,
            **labels,
        )
        prune = run_record(pruning)
        retrainings = tuple(
            run_record(
                run_spec(
                    "retrain",
                    seed=seed,
                    parent=prune.run_id,
                    method=method,
                    ratio=0.5,
                    recipe=RECIPE.model_copy(update={"lr": f"0:{rate:g},2:0.001"}),
                    **labels,
                ),
                validation_accuracy=70.0 - number,
            )
            for number, rate in enumerate([0.01, 0.03, 0.001][:trials])
        )
        result, runs = retrainings[0], (base, topup, prune)
    return Evidence(
        cell_record(method, protocol, seed, runs, retrainings, result, **labels), *runs, retrainings, result
    )


def scored(arm: Evidence, accuracy: float, images: int = 2000) -> Evidence:
    """The same arm with another accuracy, throughout: cell, result run, its curve and its answers."""
    result = changed(
        arm.result,
        accuracy=accuracy,
        best_accuracy=accuracy,
        test_accuracy=[accuracy] * len(arm.result.test_accuracy),
        test_images=images,
        correct=right_answers(accuracy, images),
    )
    trials = tuple(result if run.run_id == result.run_id else run for run in arm.trials)
    cell = arm.cell.model_copy(update={"accuracy": accuracy})
    return replace(arm, cell=cell, result=result, trials=trials)


def series(
    left: str = "l1", right: str = "tpp", protocol: str = "s4.2", seeds: Iterable[int] = SEEDS, trials: int = 1
) -> Case:
    """A comparison that passes every rule: both arms at every seed, and the table that it stands in."""
    subject = Comparison("lenet5-digits", protocol, left, right, 0.5, tuple(seeds))
    arms = {seed: tuple(evidence(name, protocol, seed, trials) for name in (left, right)) for seed in subject.seeds}
    return Case(subject, arms, table=table(protocol, left, right, subject.seeds))


@lru_cache
def table(protocol: str, left: str, right: str, seeds: tuple[int, ...]) -> Table:
    """Everything that the rules on whole tables look for: six ratios, both controls, cross-validated recipes.

    The first arm is one point better everywhere.
    """
    order = CATALOG.strictness
    cells = {}
    for setup in dict.fromkeys((protocol, order[-1], CROSS_PREFIX + left, CROSS_PREFIX + right)):
        for method in dict.fromkeys((left, right, MAGNITUDE, RANDOM)):
            known = evidence(method, setup).cell
            for ratio in (0.1, 0.3, 0.5, 0.7, 0.8, 0.9):
                for seed in seeds:
                    fields = {"ratio": ratio, "seed": seed, "accuracy": 76.0 if method == left else 75.0}
                    record = known.model_copy(update=fields)
                    cells[record.cell] = record
    return Table(cells, order)


def protocol_version(protocol: str) -> int:
    """Version of a protocol as it is today; 1 where there is none of this name."""
    try:
        return CATALOG.protocol(protocol).version
    except ConfigError:
        return 1


def cell_record(
    method: str,
    protocol: str,
    seed: int,
    runs: tuple[RunRecord | None, RunRecord | None, RunRecord | None],
    trials: tuple[RunRecord, ...],
    result: RunRecord,
    **labels: Any,
) -> CellRecord:
    """What a cell makes of its runs."""
    base, topup, prune = (None if run is None else run.run_id for run in runs)
    stages = [run for run in (*runs, result) if run is not None]
    return CellRecord(
        workload="lenet5-digits",
        workload_version=1,
        protocol=protocol,
        protocol_version=protocol_version(protocol),
        method=method,
        ratio=0.5,
        seed=seed,
        labels=tuple(labels.values()),
        status="ok",
        accuracy=result.accuracy,
        base_accuracy=90.0,
        validation_accuracy=result.validation_accuracy,
        speedup=result.speedup,
        params=result.params,
        macs=result.macs,
        total_epochs=total(run.epochs for run in stages),
        total_macs=total(run.training_macs for run in stages),
        base=base,
        topup=topup,
        prune=prune,
        trials=tuple(run.run_id for run in trials),
        result=result.run_id,
        **labels,
    )


def failed_cell(cell: Cell, error: str = "run lenet5 failed: it broke") -> CellRecord:
    """A cell that could not be measured."""
    return CellRecord(
        workload=cell.workload,
        workload_version=1,
        protocol=cell.protocol,
        protocol_version=protocol_version(cell.protocol),
        method=cell.method,
        ratio=cell.ratio,
        seed=cell.seed,
        status="failed",
        error=error,
    )


def store(ledger: Ledger, arm: Evidence, accuracy: float | None = None) -> CellRecord:
    """Commit the runs and the cell of an arm, as a campaign would.

    Another ``accuracy`` is the cell's alone, so that the cell and its run disagree; ``scored`` changes both.
    """
    for run in (arm.base, arm.topup, arm.prune, *arm.trials):
        if run is not None and ledger.find(run) is None:
            ledger.commit(run, WEIGHTS)
    cell = arm.cell if accuracy is None else arm.cell.model_copy(update={"accuracy": accuracy})
    ledger.save_cell(cell, "-".join([cell.cell.id, *cell.labels]))
    return cell


def finding(rule: str = "F321", verdict: str = "pass", **fields: Any) -> Finding:
    """A finding of l1 against tpp."""
    given: dict[str, Any] = {
        "workload": "lenet5-digits",
        "protocol": "s3.2",
        "ratio": 0.5,
        "arms": ("l1", "tpp"),
        "seeds": (0, 1),
        "seed": 0,
        "measured": {"l1": "0.01×4", "tpp": "0.01×4"},
        "runs": ("aa", "bb"),
        **fields,
    }
    return Finding(rule=rule, verdict=verdict, **given)


class FakeStages:
    """Stands in for the stages: writes a line when a run starts, sleeps, and commits a made-up record.

    Args:
        ledger: Where records go.
        log: File that gets one JSON line for each execution, from any process.
        sleep: Seconds that a run takes.
        measured: Measured values of a run, by its identity.
        broken: Whether a run raises.

    Attributes:
        batches: Ids of the runs that were executed together.
    """

    catalog = CATALOG

    def __init__(
        self,
        ledger: Ledger,
        log: Path,
        sleep: float = 0.0,
        measured: Callable[[RunSpec], dict[str, Any]] = lambda spec: {},
        broken: Callable[[RunSpec], bool] = lambda spec: False,
    ) -> None:
        self.ledger = ledger
        self.log = log
        self.sleep = sleep
        self.measured = measured
        self.broken = broken
        self.batches: list[list[str]] = []

    def execute(self, spec: RunSpec, progress: Callable[[int, int, float], None] | None = None) -> RunRecord:
        """Pretend to train."""
        if spec.parent is not None:
            self.ledger.get(spec.parent)
        self._note("start", spec)
        if progress is not None:
            progress(1, 3, 50.0)
        time.sleep(self.sleep)
        if self.broken(spec):
            raise RuntimeError("the optimiser\nexploded")
        record = self.ledger.commit(run_record(spec, **self.measured(spec)), WEIGHTS)
        self._note("end", spec)
        return record

    def execute_many(
        self,
        specs: Sequence[RunSpec],
        progress: Callable[[RunSpec], Callable[[int, int, float], None]],
        over: Callable[[RunSpec, RunRecord | Exception], None],
    ) -> None:
        """Pretend to train several, one after the other."""
        self.batches.append([spec.run_id for spec in specs])
        for spec in specs:
            try:
                record = self.execute(spec, progress(spec))
            except Exception as error:
                over(spec, error)
            else:
                over(spec, record)

    def _note(self, event: str, spec: RunSpec) -> None:
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "run": spec.run_id, "slug": spec.slug, "time": time.time()}) + "\n")


def started(log: Path) -> list[str]:
    """Ids of the runs that were executed, in order, once for each execution."""
    if not log.exists():
        return []
    events = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [event["run"] for event in events if event["event"] == "start"]


class FakeExecutor:
    """Gives made-up records at once and remembers the order in which they were asked for."""

    def __init__(self, measured: Callable[[RunSpec], dict[str, Any]] = lambda spec: {}) -> None:
        self.measured = measured
        self.obtained: list[RunSpec] = []

    def obtain(self, spec: RunSpec) -> RunRecord:
        """A record of this run."""
        self.obtained.append(spec)
        return run_record(spec, **self.measured(spec))


def write_method(folder: Path, name: str, body: str) -> str:
    """Write a method file; return the spec that the catalogue takes."""
    path = folder / f"{name}.py"
    path.write_text(
        "from pruneaudit import Budget, FilterScore, Method, PublishedRecipe, TrainedMethod\n\n\n"
        f'class Made(FilterScore):\n    """Made for a test."""\n\n{body}',
        encoding="utf-8",
    )
    return str(path)


def catalog(*specs: str) -> Catalog:
    """The project's own catalogue with extra methods."""
    return Catalog(extra_methods=specs)


def measured_by(arm: Evidence, metric: Metric, value: float, validation: float | None = None) -> Evidence:
    """The same arm on a workload whose metric is another one, which says this of its result.

    Its accuracies stay: who looks at them instead finds no difference.
    """
    names: dict[str, str] = {}

    def other(run: RunRecord | None, value: float = 50.0) -> RunRecord | None:
        if run is None:
            return None
        validated = value if validation is None else validation
        scores = Scores(
            test=value,
            validation=validated,
            test_curve=[value] * len(run.test_accuracy),
            validation_curve=[validated] * len(run.test_accuracy),
        )
        parent = None if run.parent is None else names[run.parent]
        made = changed(run, metric=metric.name, parent=parent, scores=scores)
        names[run.run_id] = made.run_id
        return made

    base, topup, prune = (other(run) for run in (arm.base, arm.topup, arm.prune))
    trials = tuple(other(run, value) for run in arm.trials)
    fields = ("base", "topup", "prune", "result")
    links = {name: names.get(getattr(arm.cell, name) or "") for name in fields}
    links["trials"] = tuple(names[run] for run in arm.cell.trials)
    scores = CellScores(test=value, base=50.0, validation=value if validation is None else validation)
    cell = arm.cell.model_copy(update={**links, "metric": metric, "scores": scores})
    return Evidence(cell, base, topup, prune, trials, trials[0])


def catalog_by(metric: Metric) -> Catalog:
    """The project's own catalogue, in which this metric decides on lenet5-digits."""
    made = Catalog()
    workload = made.workload("lenet5-digits").model_copy(update={"metric": metric})
    vars(made)["workloads"] = {**made.workloads, workload.name: workload}
    return made
