"""What a run has to compute, known before it starts: its length and its MACs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pruneaudit.catalog.discovery import Catalog
from pruneaudit.ledger.records import RunSpec
from pruneaudit.measure.cost import TRAINING_PASSES
from pruneaudit.pruning import shapes
from pruneaudit.workloads.data import facts
from pruneaudit.workloads.recipes import steps_per_epoch
from pruneaudit.workloads.schema import Workload

#: MACs that a core computes while it calls a layer on a batch, and while it begins and ends a run. In the campaign of
#: ``make suite`` (ResNet-20, 183 runs) the rates of kinds of runs then differ by 15 %; by MACs alone fivefold.
_CALL = 8e6
_RUN = 8e9


@dataclass(frozen=True)
class Cost:
    """Length and computation of a run.

    Attributes:
        epochs: Training passes over the training split; the last may be a part of one.
        passes: How many times the network is evaluated for the curves: after each epoch, a part of one included.
        macs: MACs of the trained network on one image.
        training_macs: MACs of all training steps, a teacher's passes included.
        evaluation_macs: MACs of the passes over validation and test, the last one for the record included.
        calls: How often a layer is called on a batch: of a training step thrice, as its MACs count thrice.
    """

    epochs: float
    passes: int
    macs: int
    training_macs: int
    evaluation_macs: int
    calls: int

    @property
    def total(self) -> int:
        """MACs of everything: above zero for any run."""
        return self.training_macs + self.evaluation_macs

    @property
    def work(self) -> float:
        """What it takes, in MACs: all of it, and what calling a layer and beginning a run are worth.

        Runs of all shapes then take about as long for each MAC; of small networks the calls are most of it.
        """
        return self.total + _CALL * self.calls + _RUN


def cost(run: RunSpec, catalog: Catalog) -> Cost:
    """Cost of a run by its plan: what a threshold will leave is not known yet, so its target counts.

    Raises:
        AuditError: It names a workload, method or dataset that is not there.
    """
    workload = workload_of(run, catalog)
    sizes = facts(workload.data)
    images = run.recipe.images(sizes.train)
    per_epoch = steps_per_epoch(sizes.train, run.recipe.batch)
    passes = math.ceil(run.recipe.total_steps(per_epoch) / per_epoch)
    costs = shapes.costs(workload)
    macs = costs.of_widths(widths(run, workload, catalog))
    held_out = sizes.validation + sizes.test
    steps = run.recipe.total_steps(per_epoch)
    batches = TRAINING_PASSES * steps + (passes + 1) * math.ceil(held_out / run.recipe.batch)
    # A teacher is the dense network, which images pass without gradients.
    batches += steps if run.teacher is not None else 0
    taught = images * costs.of_widths({}) if run.teacher is not None else 0
    return Cost(
        images / sizes.train,
        passes,
        macs,
        TRAINING_PASSES * macs * images + taught,
        macs * (passes + 1) * held_out,
        batches * len(costs.macs),
    )


def workload_of(run: RunSpec, catalog: Catalog) -> Workload:
    """The workload of a run, with the dataset and the architecture of the run's identity."""
    known = catalog.workload(run.workload)
    return known.model_copy(
        update={
            # What a ledger holds does not say where relative paths start.
            "data": run.data.model_copy(update={"folder": known.data.folder}),
            "model": run.model,
            "model_args": run.model_args,
            "model_source": run.model_source,
        }
    )


def widths(run: RunSpec, workload: Workload, catalog: Catalog) -> dict[str, int]:
    """Widths of the network that a run trains: the pruned one only when retraining or from scratch."""
    if run.stage == "scratch" and run.widths:
        return run.widths
    # What a threshold will leave is not known before; it leaves as many MACs as uniform pruning.
    method = catalog.method(run.method).cls if run.method is not None else None
    smaller = method is None or (method.prunes and method.granularity != "weight")
    if run.stage in ("retrain", "scratch") and smaller and run.ratio is not None:
        return shapes.widths_at(workload, run.ratio)
    return {}
