"""From cells to runs: what each protocol makes of an arm, as a graph of runs that cells share.

A run is planned from its cell's own facts alone (never from which other cells were asked for), so that order and
content of a run do not depend on the selection. Ids of runs chain through their parents; nothing has to be trained to
know them.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pruneaudit.catalog.cells import Cell, Resolved
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.names import is_scratch
from pruneaudit.catalog.settings import Settings
from pruneaudit.errors import AuditError, ConfigError, MethodError, StoppedError, one_line
from pruneaudit.ledger.records import (
    MEASURED_LATER,
    NUMERICS_VERSION,
    CellRecord,
    CellScores,
    RunRecord,
    RunSpec,
    total,
)
from pruneaudit.ledger.store import Ledger
from pruneaudit.measure.cost import TRAINING_PASSES
from pruneaudit.method.contract import Method, ScratchArm, refusal, taught
from pruneaudit.pruning import shapes
from pruneaudit.sources import Source
from pruneaudit.workloads.checkpoints import base_path, fitted, found_in, read
from pruneaudit.workloads.data import facts, identity
from pruneaudit.workloads.recipes import Distillation, Optimiser, Recipe, steps_per_epoch
from pruneaudit.workloads.schedule import Schedule
from pruneaudit.workloads.schema import DataConfig, Workload

if TYPE_CHECKING:
    from pruneaudit.method.contract import PublishedRecipe


def check_base(settings: Settings, workload: Workload) -> str | None:
    """Digest of a user's own base model that fits its workload; None where one is trained.

    Raises:
        ConfigError: It does not fit; one line names the first difference.
    """
    path, digest = base_path(settings.base, workload), settings.base_digest(workload)
    if path is None or digest is None:
        return None
    problem, _ = _looked_at(path, digest, workload)
    if problem:
        raise ConfigError(problem)
    return digest


def base_notes(settings: Settings, workload: Workload) -> tuple[str, ...]:
    """What was done to a user's own base model to make it fit: a type cast, a prefix taken off.

    Raises:
        ConfigError: It does not fit; one line names the first difference.
    """
    digest = check_base(settings, workload)
    path = base_path(settings.base, workload)
    return () if path is None or digest is None else _looked_at(path, digest, workload)[1]


@lru_cache(maxsize=64)
def _looked_at(path: Path, digest: str, workload: Workload) -> tuple[str, tuple[str, ...]]:
    """What is wrong with a base model of some digest, or nothing, and notes. Every cell of a workload asks."""
    try:
        network = shapes.dense_network(workload)
        if path.is_dir():
            return "", found_in(path, workload.reading, network, workload.model).notes
        return "", fitted(read(path), path, workload.reading, network, workload.model).notes
    except ConfigError as error:
        return str(error), ()


class Executor(Protocol):
    """Turns an identity into a finished record."""

    def help_with(self, runs: Sequence[RunSpec], cells: Mapping[str, Sequence[str]]) -> None:
        """Runs that are needed besides those that it knows of, parents first, and by cell."""
        ...

    def foresee(self, likely: Mapping[str, Sequence[Sequence[tuple[RunSpec, float]]]]) -> None:
        """By table and round, runs that its open comparisons may need, with their chances."""
        ...

    def go_ahead_with(self, runs: Callable[[], Sequence[RunSpec]]) -> None:
        """Who knows runs that may be needed later, parents first: asked when there is nothing else to do."""
        ...

    def obtain(self, spec: RunSpec) -> RunRecord:
        """The run's record: from the ledger, by waiting for another process, or by executing it."""
        ...


@dataclass(frozen=True)
class CellPlan:
    """The runs of one cell.

    Attributes:
        base: The dense base model.
        topup: Plain training that fills a shorter pruning stage, or None.
        prune: The prune stage, or None for scratch arms.
        found: Runs that find the architecture of a scratch arm; their cost is not the arm's.
        trials: Retrainings (or the scratch training); more than one where the learning rate is tuned.
        cap: Tokens that a pruning stage which only calibrates may have at most, in place of a top-up; None elsewhere.
    """

    base: RunSpec
    topup: RunSpec | None
    prune: RunSpec | None
    trials: tuple[RunSpec, ...]
    found: tuple[RunSpec, ...] = ()
    cap: int | None = None

    @property
    def runs(self) -> list[RunSpec]:
        """All runs, parents first."""
        return [run for run in (self.base, *self.found, self.topup, self.prune, *self.trials) if run is not None]


@dataclass
class Campaign:
    """Plans cells, obtains their runs, and writes what each cell makes of them.

    Attributes:
        catalog: Methods, protocols and workloads.
        ledger: Store of records.
        settings: Budget, precision and base model of the session.
        executor: Who executes runs.
    """

    catalog: Catalog
    ledger: Ledger
    settings: Settings
    executor: Executor
    _resolved: dict[Cell, Resolved] = field(default_factory=dict)
    _plans: dict[Cell, CellPlan] = field(default_factory=dict)

    def resolve(self, cell: Cell) -> Resolved:
        """What the names of a cell stand for.

        Raises:
            ConfigError: A name is unknown.
        """
        if cell not in self._resolved:
            self._resolved[cell] = Resolved.of(cell, self.catalog)
        return self._resolved[cell]

    def plan(self, cell: Cell) -> CellPlan:
        """The runs of a cell.

        Raises:
            AuditError: The cell cannot be planned: a name is unknown, or its method cannot be imported.
        """
        if cell not in self._plans:
            try:
                self._plans[cell] = Planner(self.catalog, self.settings, self.resolve(cell)).plan()
            except AuditError:
                raise
            except Exception as error:
                raise MethodError(f"method '{cell.method}' cannot be planned: {one_line(error)}") from error
        return self._plans[cell]

    def runs(self, cells: Iterable[Cell]) -> list[RunSpec]:
        """Distinct runs of some cells, parents first; cells that cannot be planned are left out."""
        return self.planned(cells)[0]

    def planned(self, cells: Iterable[Cell]) -> tuple[list[RunSpec], dict[str, int]]:
        """Distinct runs of some cells, parents first; and why others cannot be planned, how many for each reason."""
        found: dict[str, RunSpec] = {}
        reasons: Counter[str] = Counter()
        for cell in cells:
            try:
                plan = self.plan(cell)
            except AuditError as error:
                reasons[one_line(error)] += 1  # its own test will say so
                continue
            for run in plan.runs:
                found.setdefault(run.run_id, run)
        return list(found.values()), dict(reasons)

    def share_more(self, cells: Iterable[Cell]) -> None:
        """Name cells that are measured beyond those that the executor knew of, for those who would wait for them."""
        cells = list(cells)
        self.executor.help_with(self.runs(cells), self.runs_by_cell(cells))

    def foresee(self, likely: Mapping[str, Iterable[Mapping[Cell, float]]]) -> None:
        """Tell of tables what their open comparisons may need, for the time that is left.

        Args:
            likely: By name of the table its cells, round by round, with their chances.
        """
        self.executor.foresee({name: [self.chances(cells) for cells in rounds] for name, rounds in likely.items()})

    def chances(self, cells: Mapping[Cell, float]) -> list[tuple[RunSpec, float]]:
        """Runs of some cells, parents first, each with the chance that the most probable of its cells is needed."""
        found: dict[str, tuple[RunSpec, float]] = {}
        for cell, chance in cells.items():
            for run in self.runs([cell]):
                _, before = found.get(run.run_id, (run, 0.0))
                found[run.run_id] = run, max(chance, before)
        return list(found.values())

    def share_ahead(self, cells: Callable[[], Iterable[Cell]]) -> None:
        """Say who knows cells that may be measured later: asked where there is nothing else to do; replaces another."""
        self.executor.go_ahead_with(lambda: self.runs(cells()))

    def runs_by_cell(self, cells: Iterable[Cell]) -> dict[str, list[str]]:
        """Ids of the runs of each cell, by the key of its record; cells that cannot be planned are left out."""
        found = {}
        for cell in cells:
            with contextlib.suppress(AuditError):  # its own test will say so
                key = self.settings.key(cell, self.resolve(cell).workload)
                found[key] = [run.run_id for run in self.plan(cell).runs]
        return found

    def obtain(self, cell: Cell) -> CellRecord:
        """Measure a cell: obtain its runs and note what they say.

        Returns:
            The record, also when the cell failed: ``status`` and ``error`` then say so.
        """
        resolved = self.resolve(cell)
        key = self.settings.key(cell, resolved.workload)
        try:
            record = self._measure(resolved)
        except StoppedError:
            # Nothing is wrong with the cell.
            raise
        except AuditError as error:
            record = self._record(resolved, status="failed", error=one_line(error))
        stored = self.ledger.cell(key)
        # What an earlier version wrote stays as it is where it only lacks what is measured since then.
        lacking = {name for name in MEASURED_LATER & record.model_fields_set if not getattr(stored, name, None)}
        if stored is None or stored.model_copy(update={name: getattr(record, name) for name in lacking}) != record:
            self.ledger.save_cell(record, key)
        return record

    def _measure(self, resolved: Resolved) -> CellRecord:
        plan = self.plan(resolved.cell)
        done = {run.run_id: self.executor.obtain(run) for run in plan.runs}
        trials = [done[run.run_id] for run in plan.trials]
        # Validation decides, and the first of the grid wins a tie; the test set has no say.
        metric = resolved.workload.metric
        result = max(trials, key=lambda run: metric.merit(run.validation_value))
        base = done[plan.base.run_id]
        stages = (
            [result]
            if plan.prune is None
            else [done[run.run_id] for run in (plan.base, plan.topup, plan.prune) if run is not None] + [result]
        )
        return self._record(
            resolved,
            status="ok",
            accuracy=result.accuracy,
            base_accuracy=base.accuracy,
            validation_accuracy=result.validation_accuracy,
            pruned_value=done[plan.prune.run_id].value if plan.prune is not None else None,
            speedup=result.speedup,
            params=result.params,
            macs=result.macs,
            granularity=result.granularity,
            executed_macs=result.executed_macs,
            total_epochs=total(run.epochs for run in stages),
            total_macs=total(run.training_macs for run in stages),
            base=plan.base.run_id,
            topup=plan.topup.run_id if plan.topup else None,
            prune=plan.prune.run_id if plan.prune else None,
            trials=tuple(run.run_id for run in plan.trials),
            result=result.run_id,
            cap=plan.cap,
            scores=None
            if result.scores is None
            else CellScores(test=result.value, base=base.value, validation=result.validation_value),
        )

    def _record(self, resolved: Resolved, **measured: object) -> CellRecord:
        cell, workload = resolved.cell, resolved.workload
        return CellRecord.model_validate(
            {
                "workload": cell.workload,
                "workload_version": workload.version,
                "protocol": cell.protocol,
                "protocol_version": resolved.protocol.version,
                "method": cell.method,
                "ratio": cell.ratio,
                "seed": cell.seed,
                "budget": self.settings.budget,
                "precision": self.settings.precision,
                "backend": self.settings.backend_of(workload),
                "arithmetic": self.settings.arithmetic,
                "labels": self.settings.labels(workload),
                "metric": workload.metric,
                **measured,
            }
        )


class Planner:
    """Plans one cell.

    Args:
        catalog: Methods, protocols and workloads.
        settings: Budget, precision and base model.
        resolved: The cell, and what its names stand for.
    """

    def __init__(self, catalog: Catalog, settings: Settings, resolved: Resolved) -> None:
        self.catalog = catalog
        self.settings = settings
        self.resolved = resolved
        self.cell = cell = resolved.cell
        self.protocol = resolved.protocol
        workload, course = resolved.workload, resolved.protocol.course
        if course is not None:
            workload = course.of(workload, facts(workload.data).train)
        self.workload = workload.scaled(settings.budget)
        if settings.ranks:
            self.workload = self.workload.over(settings.ranks)
        shapes.check(self.workload)
        self.source = resolved.method
        self.method = self.source.create()
        if isinstance(self.method, ScratchArm) != is_scratch(cell.method):
            raise MethodError(f"method '{cell.method}': scratch arms, and only they, are called 'scratch-…'; rename it")
        if not 0 < cell.ratio < 1:
            raise ConfigError(f"ratio {cell.ratio:g} is outside (0, 1); it is the share of filters to remove")
        reason = refusal(self.method, self.workload, self.protocol)
        if reason:
            raise ConfigError(f"method '{cell.method}' does not apply to {cell.workload}: {reason}")
        shapes.see_units(self.workload)

    @property
    def _metric_digest(self) -> str | None:
        """Digest of the source of a metric of the user's own."""
        function = self.workload.metric.function
        return Source.parse(function, self.workload.folder or Path()).digest if function else None

    def plan(self) -> CellPlan:
        """The cell's runs."""
        if isinstance(self.method, ScratchArm):
            return self._scratch_plan(self.method)
        base = self._base(own=self.protocol.base == "own")
        topup, recipe = self._pruning(self.method)
        topup_run = None if topup is None else self._run("topup", topup, parent=base.run_id)
        prune = self._run(
            "prune",
            recipe,
            parent=(topup_run or base).run_id,
            method=self.cell.method,
            method_digest=self.source.digest,
            method_parameters=self.method.parameters(),
            ratio=self.cell.ratio,
            prunable=self.workload.prunable,
            skip=self.workload.skip,
            layer_ratios=tuple(self.workload.shares_at(self.cell.ratio).items()),
            operating_point=self._operating_point(),
            calibration=self.protocol.calibration,
        )
        soft = taught(self.method)
        # Retraining depends on the method's code only where the method acts in it.
        acts: dict[str, Any] = {"method_digest": self.source.digest, "method_parameters": self.method.parameters()}
        trials = tuple(
            self._run(
                "retrain",
                # What a method adds acts in one process, as a teacher does, and is compared as that (F322, F608).
                self._taught(recipe, soft) if soft else recipe.over(1) if self.method.in_retraining else recipe,
                parent=prune.run_id,
                teacher=base.run_id if soft else None,
                method=self.cell.method,
                ratio=self.cell.ratio,
                **(acts if self.method.in_retraining else {}),
            )
            for recipe in self._retraining()
        )
        return CellPlan(base, topup_run, prune, trials, cap=self._cap)

    def _run(self, stage: str, recipe: Recipe, seed: int | None = None, **identity: object) -> RunSpec:
        if recipe.ranks > 1 and (reason := recipe.indivisible(facts(self.workload.data).train)):
            raise ConfigError(f"{self.workload.name}: {stage} by {recipe.ranks} ranks: {reason}")
        return RunSpec.model_validate(
            {
                "workload": self.workload.name,
                "workload_version": self.workload.version,
                "stage": stage,
                "model": self.workload.model,
                "model_args": self.workload.model_args,
                "model_source": self.workload.model_source,
                "data": self.workload.data,
                "data_digest": _data_digest(self.workload.data),
                "recipe": recipe,
                "seed": self.cell.seed if seed is None else seed,
                "precision": self.settings.precision,
                "backend": self.settings.backend_of(self.workload),
                "budget": self.settings.budget,
                "arithmetic": self.settings.arithmetic,
                "numerics": NUMERICS_VERSION,
                "metric": self.workload.metric.name,
                "metric_digest": self._metric_digest,
                **identity,
            }
        )

    def _base(self, own: bool) -> RunSpec:
        """The shared base model, an independent one for this arm, or the user's own checkpoint."""
        checkpoint = check_base(self.settings, self.workload)
        if checkpoint is not None:
            # One file, whatever the seed: evaluated once.
            return self._run(
                "pretrain",
                _nothing(self.workload.pretrain),
                seed=0,
                checkpoint=checkpoint,
                reading=self.workload.reading,
            )
        return self._run("pretrain", self.workload.pretrain, own_base_of=self.cell.method if own else "")

    def _pruning(self, method: Method) -> tuple[Recipe | None, Recipe]:
        """Recipes of the top-up (or None) and of the pruning stage itself."""
        budget = method.budget(self.workload)
        full = self.workload.prune
        assert full.steps is not None
        imposed = self.protocol.pruning == "equal-schedule"
        rates = full.lr if imposed or budget.lr is None or not budget.steps else budget.lr
        own = self.protocol.pruning == "own" or self._cap is not None
        missing = 0 if own else max(0, full.steps - budget.steps)
        # Under one imposed schedule the method goes on where the top-up stopped; a constant rate has no position, and
        # without one S4.1 and S4.2 share their runs.
        joined = imposed and not Schedule.parse(rates).is_constant
        span = full.steps if joined else 0
        topup = full.model_copy(update={"steps": missing, "lr": rates, "span": span}) if missing else None
        if not budget.steps:
            return topup, full.model_copy(update={"steps": 0})
        start = missing if joined else 0
        return topup, full.model_copy(update={"steps": budget.steps, "lr": rates, "start": start, "span": span})

    @property
    def _cap(self) -> int | None:
        """Tokens of the pruning budget, where a method only calibrates: it is capped by them, not topped up.

        Of texts, where pruning arms are compared with each other: what scratch arms are matched to keeps its length.
        """
        if self.protocol.pruning != "equal-epochs" or self.protocol.compare != "pruning":
            return None
        sizes = facts(self.workload.data)
        if not sizes.labels or self.method.budget(self.workload).steps:
            return None
        return self.workload.prune.images(sizes.train) * math.prod(sizes.labels)

    def _retraining(self) -> list[Recipe]:
        """Retraining recipes to try: one, or the whole grid where the learning rate is tuned."""
        usual = self.workload.retrain
        if self.protocol.retraining == "none":
            return [_nothing(usual)]
        if self.protocol.retraining == "tuned":
            return [usual.model_copy(update={"lr": schedule}) for schedule in self.workload.tune.schedules]
        published = None
        if self.protocol.retraining == "own":
            published = self.method.published
        elif self.protocol.retraining == "method":
            published = self.catalog.method(self.protocol.recipe_of).create().published
        return [usual if published is None else own_recipe(published, self.workload, self.catalog)]

    def _taught(self, recipe: Recipe, soft: Distillation) -> Recipe:
        """A retraining recipe with a teacher: each image passes the dense network once as well.

        Where training MACs are matched to those of a scratch arm, it is so much shorter (to the nearest whole epoch),
        and ends at the rate that both have (F604).
        """
        if self.protocol.scratch == "equal-macs" and recipe.epochs:
            method = self.method
            small = shapes.target(self.workload, self.cell.ratio, method.granularity, method.scope).macs
            share = TRAINING_PASSES * small / (TRAINING_PASSES * small + shapes.shape(self.workload).macs)
            last = recipe.last_rate(steps_per_epoch(facts(self.workload.data).train, recipe.batch))
            epochs = max(1, round(recipe.epochs * share))
            recipe = recipe.for_epochs(epochs)
            recipe = recipe.model_copy(update={"lr": str(recipe.schedule.ending_at(last, epochs))})
        return recipe.over(1).model_copy(update={"distillation": soft})

    def _scratch_plan(self, arm: ScratchArm) -> CellPlan:
        """A scratch arm: the architecture of uniform pruning, or the one that a method found."""
        base = self._base(own=False)
        if self.source.found_by is None:
            widths = shapes.widths_at(self.workload, self.cell.ratio)
            return CellPlan(base, None, None, (self._scratch(arm, self.method, widths=widths),))
        finder_of = self.catalog.method(self.source.found_by)
        other = replace(self.resolved, cell=replace(self.cell, method=finder_of.name), method=finder_of)
        planner = Planner(self.catalog, self.settings, other)
        finder = planner.plan()
        if finder.prune is None:
            raise ConfigError(
                f"'{self.cell.method}': '{self.source.found_by}' finds no architecture; it prunes nothing"
            )
        found = tuple(run for run in (finder.base, finder.topup, finder.prune) if run is not None)
        return CellPlan(base, None, None, (self._scratch(arm, planner.method, shape_of=finder.prune.run_id),), found)

    def _operating_point(self) -> str:
        """What a global threshold over filters must reach; it changes nothing for any other method."""
        over_filters = (self.method.granularity, self.method.scope) == ("filter", "global")
        return self.workload.operating_point if over_filters else "macs"

    def _scratch(self, arm: ScratchArm, finder: Method, **shape: Any) -> RunSpec:
        """Training from random weights; what a threshold will find is planned by its target."""
        target = shapes.target(self.workload, self.cell.ratio, finder.granularity, finder.scope)
        speedup = shapes.shape(self.workload).macs / target.macs
        recipe = arm.recipe(self.workload, speedup)
        if arm.follows_protocol and self.protocol.scratch != "recipe":
            factor = speedup if self.protocol.scratch == "equal-macs" else 1.0
            recipe = recipe.for_epochs(scratch_epochs(self.workload, factor))
            # Appendix A, rule 1: scratch and pruned arms end at the same learning rate.
            retrain = self.workload.retrain
            last = retrain.last_rate(steps_per_epoch(facts(self.workload.data).train, retrain.batch))
            recipe = recipe.model_copy(update={"lr": str(recipe.schedule.ending_at(last, recipe.epochs or 0))})
        return self._run("scratch", recipe, ratio=self.cell.ratio, **shape)


def _nothing(usual: Recipe) -> Recipe:
    """The recipe of a stage that trains nothing, in place of the usual one."""
    return Recipe(steps=0, lr="0:0", batch=usual.batch)


@lru_cache(maxsize=16)
def _data_digest(data: DataConfig) -> str | None:
    """Digest of a workload's data, found once: stages ask whether it still holds."""
    return identity(data)


def scratch_epochs(workload: Workload, factor: float) -> int:
    """Epochs of the scratch arm: K1 · factor + K2, rounded to the nearest whole epoch.

    K1 counts the dense model's epochs (pretraining and pruning stage), K2 the retraining epochs. The factor is 1 for
    equal epochs (SX-A) and F1/F2 = MACs(base) / MACs(pruned) for equal training MACs (SX-B).
    """
    images = facts(workload.data).train
    dense = (workload.pretrain.epochs or 0) + workload.prune.images(images) / images
    return round(dense * factor + (workload.retrain.epochs or 0))


def own_recipe(published: PublishedRecipe, workload: Workload, catalog: Catalog) -> Recipe:
    """A method's published retraining recipe, on this workload.

    Its epochs scale by the ratio of this workload's retraining epochs to those of the paper's workload; its learning
    rates stay; what it does not state follows the workload.
    """
    paper = catalog.workload(published.workload)
    scale = (workload.retrain.epochs or 1) / (paper.retrain.epochs or 1)
    stated = workload.retrain.model_copy(
        update={
            # A rate is one of its optimiser; where the workload has another one, the paper's comes with its defaults.
            **({} if workload.retrain.optimiser.name == published.optimiser else _settings_of(published)),
            "epochs": published.epochs,
            "lr": str(Schedule.parse(published.lr)),
            "batch": published.batch or workload.retrain.batch,
            "weight_decay": workload.retrain.weight_decay if published.weight_decay is None else published.weight_decay,
        }
    )
    return stated.for_epochs(max(1, round(published.epochs * scale)))


def _settings_of(published: PublishedRecipe) -> dict[str, Any]:
    """The optimiser of a published recipe, with its own defaults."""
    defaults = {name: Recipe.model_fields[name].default for name in ("momentum", "nesterov")}
    return {"optimiser": Optimiser(name=published.optimiser), **defaults}
