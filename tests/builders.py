"""Hand-made identities, records and evidence: the smallest ones that every upper floor accepts. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from pruneaudit.audit.evidence import Evidence
from pruneaudit.audit.judge import Finding
from pruneaudit.catalog import Catalog
from pruneaudit.cells import Cell, is_scratch
from pruneaudit.config import DataConfig, Recipe
from pruneaudit.ledger import Ledger
from pruneaudit.records import CellRecord, FailureRecord, RunRecord, RunSpec

DATA = DataConfig(name="digits", size=32, mean=(0.3,), std=(0.4,), pad=2)
RECIPE = Recipe(epochs=3, lr="0:0.01,2:0.001", batch=64, weight_decay=1e-4)
NOTHING = Recipe(steps=0, lr="0:0.003", batch=64)
WEIGHTS = save({"weight": np.arange(4, dtype=np.float32)})
METHODS = Catalog().methods
WEIGHTS_DIGEST = hashlib.sha256(WEIGHTS).hexdigest()
# One pass over the training split in MACs of the dense and of the pruned network.
IMAGES, DENSE_MACS, PRUNED_MACS = 100, 1000, 400


def run_spec(stage: str = "pretrain", **identity: Any) -> RunSpec:
    """An identity; everything but the stage has a value."""
    fields = {"workload": "lenet5-digits", "workload_version": 1, "model": "lenet5", "data": DATA, "recipe": RECIPE}
    return RunSpec.model_validate({**fields, "stage": stage, "seed": 0, "numerics": 1, **identity})


def run_record(spec: RunSpec | None = None, **measured: Any) -> RunRecord:
    """What a run with this identity might have measured: 3 epochs over 100 images in 6 steps."""
    spec = spec or run_spec()
    trains = spec.recipe.total_steps(2)
    pruned = spec.stage in ("prune", "retrain", "scratch")
    images = IMAGES * trains // 2
    per_image = PRUNED_MACS if spec.stage in ("retrain", "scratch") else DENSE_MACS
    fields: dict[str, Any] = {
        "epochs": images / IMAGES,
        "samples": images,
        "scoring_samples": 0,
        "optimiser_steps": trains,
        "training_macs": 3 * per_image * images,
        "learning_rates": [(0.01, trains - 2), (0.001, 2)] if trains else [],
        "hyper_parameters": {"batch": 64, "momentum": 0.9, "weight_decay": 1e-4} if trains else {},
        "train_loss": [0.5],
        "train_accuracy": [80.0],
        "validation_loss": [0.6],
        "validation_accuracy_curve": [70.0],
        "test_loss": [0.6],
        "test_accuracy": [75.0],
        "accuracy": 75.0,
        "validation_accuracy": 70.0,
        "best_accuracy": 75.0,
        "best_epoch": 1,
        "correct": "",
        "test_images": 40,
        "train_images": IMAGES,
        "macs_recounted": PRUNED_MACS if pruned else DENSE_MACS,
        "macs": PRUNED_MACS if pruned else DENSE_MACS,
        "params": 50 if pruned else 100,
        "base_macs": DENSE_MACS,
        "base_params": 100,
        "parent_digest": None if spec.parent is None else "feed" * 16,
        "weights_digest": WEIGHTS_DIGEST,
        "split_digest": "5b" * 32,
        "classes": 10,
        "device": "cpu",
        "environment": {"pruneaudit": "0.1.0", "device": "made up"},
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
    """An arm as its protocol makes it: base, top-up, prune and ``trials`` retrainings; or one scratch training."""
    if is_scratch(method):
        # Equal totals: 3 base + 3 top-up + 3 retraining epochs, of which 6 at 2.5 times the MACs.
        epochs = 18 if protocol == "sx-b" else 9
        result = run_record(run_spec("scratch", seed=seed, ratio=0.5, recipe=RECIPE.for_epochs(epochs), **labels))
        runs: tuple[RunRecord | None, ...] = (None, None, None)
        retrainings = (result,)
    else:
        base = run_record(run_spec(seed=seed, **labels), macs=DENSE_MACS, accuracy=90.0)
        topup = run_record(run_spec("topup", seed=seed, parent=base.run_id, **labels), parent_digest="ba5e" * 16)
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
        rates = [0.01, 0.03, 0.001][:trials]
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
                learning_rates=[(rate, 4), (0.001, 2)],
                validation_accuracy=70.0 - number,
            )
            for number, rate in enumerate(rates)
        )
        result, runs = retrainings[0], (base, topup, prune)
    return Evidence(
        cell_record(method, protocol, seed, runs, retrainings, result, **labels), *runs, retrainings, result
    )


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
    return CellRecord(
        workload="lenet5-digits",
        workload_version=1,
        protocol=protocol,
        protocol_version=1,
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
        total_epochs=9.0,
        total_macs=2_100_000,
        base=base,
        topup=topup,
        prune=prune,
        trials=tuple(run.run_id for run in trials),
        result=result.run_id,
        **labels,
    )


def failed_cell(cell: Cell, error: str = "run lenet5 failed: it broke") -> CellRecord:
    """A cell that could not be measured."""
    names = {"workload": cell.workload, "protocol": cell.protocol, "method": cell.method}
    return CellRecord(
        **names, ratio=cell.ratio, seed=cell.seed, workload_version=1, protocol_version=1, status="failed", error=error
    )


def store(ledger: Ledger, arm: Evidence, accuracy: float | None = None) -> CellRecord:
    """Commit the runs and the cell of an arm, as a campaign would; optionally with another accuracy."""
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
    return Finding.model_validate({"rule": rule, "verdict": verdict, **given})


class FakeStages:
    """Stands in for the stages: writes a line when a run starts, sleeps, and commits a made-up record.

    Args:
        ledger: Where records go.
        log: File that gets one JSON line for each execution, from any process.
        sleep: Seconds that a run takes.
        measured: Measured values of a run, by its identity.
        broken: Whether a run raises.
    """

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
