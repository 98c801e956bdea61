"""How each stage of a run is executed: from an identity to a committed record."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save as save_weights
from torch import nn

from pruneaudit.arithmetic import is_pinned, kind
from pruneaudit.catalog.discovery import Catalog, MethodSource
from pruneaudit.errors import AuditError, ConfigError, MethodError
from pruneaudit.ledger.chain import keys_folder
from pruneaudit.ledger.choices import CHOSEN
from pruneaudit.ledger.records import (
    Conduct,
    Granularity,
    Jacobian,
    Pattern,
    RunRecord,
    RunSpec,
    Scores,
    Shown,
    Taught,
    own_training,
    pack,
)
from pruneaudit.ledger.store import Ledger
from pruneaudit.measure.accuracy import Score
from pruneaudit.measure.cost import TRAINING_PASSES
from pruneaudit.measure.metric import BY_ACCURACY, Measure, beside
from pruneaudit.measure.questions import task_measure
from pruneaudit.measure.text import text_measure
from pruneaudit.measure.trainability import jacobian, takes_batch_statistics
from pruneaudit.method import isolation
from pruneaudit.method.answers import adds
from pruneaudit.method.conduct import Job
from pruneaudit.method.contract import Method
from pruneaudit.method.outside import closed
from pruneaudit.method.task import RetrainingTask
from pruneaudit.pruning import shapes
from pruneaudit.pruning.layers import LAYERS
from pruneaudit.pruning.patterns import crowded, removed_of
from pruneaudit.pruning.removal import shrink, thinned, zeros_left
from pruneaudit.streams import generator
from pruneaudit.training import ranks
from pruneaudit.training.checkpoint import Checkpoint
from pruneaudit.training.distillation import Teacher
from pruneaudit.training.grouped import jacobians
from pruneaudit.training.loop import BACKENDS, History, Hooks, Observer, Progress, Trainer
from pruneaudit.training.many import train_many
from pruneaudit.training.metering import Consumption, Meter, beside_the_network, training_macs
from pruneaudit.training.precision import place
from pruneaudit.training.runs import Trained, Training
from pruneaudit.training.runtime import Runtime
from pruneaudit.workloads import sharded
from pruneaudit.workloads.checkpoints import base_path, fitted, found_in, read
from pruneaudit.workloads.data import Dataset, identity, load, stored_at
from pruneaudit.workloads.models.described import Decoder, with_fresh_weights
from pruneaudit.workloads.models.tensors import state_of, take
from pruneaudit.workloads.networks import version_of
from pruneaudit.workloads.recipes import steps_per_epoch
from pruneaudit.workloads.schema import Budget, Workload

#: Masks travel with the weights of a run, under names that no parameter has.
_MASK = "mask:"
#: Seconds between two checkpoints of a run: alone, and of runs that train together. What a kill can cost.
_SAVE_ALONE = 0.5
_SAVE_EVERY = 30.0


@dataclass
class Outcome:
    """What a stage leaves: a network, what it consumed, and its curves."""

    model: nn.Module
    consumption: Consumption
    history: History = field(default_factory=History)
    epoch_starts: list[int] = field(default_factory=list)
    kept: dict[str, list[int]] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)
    masks: dict[str, torch.Tensor] = field(default_factory=dict)
    granularity: Granularity = "filter"
    in_retraining: str = ""
    backend: str = "torch"
    reason: str = ""
    conduct: Conduct | None = None
    jacobian_train: Jacobian | None = None
    initial_accuracy: float | None = None
    declared_steps: int = 0
    resumed: int = 0
    training_seconds: float = 0.0
    waited: float = 0.0
    provenance: str = "trained here"
    measured: bool = True
    shown: Shown | None = None
    pattern: tuple[int, int] | None = None
    taught: Taught | None = None
    own_images: float | None = None
    own_per_image: float | None = None


@dataclass(frozen=True)
class Trainable:
    """A network whose trainability is to be measured."""

    model: nn.Module
    dataset: Dataset


@dataclass(frozen=True)
class _Slopes:
    """Its trainability (none where inputs are tokens, which have no slopes), and the seconds that measuring took."""

    jacobian: Jacobian | None
    seconds: float


#: Up to an outcome: asks for the plain training that it needs, if any, and is told what became of it.
_Stage = Generator[Training, Any, Outcome]
#: Up to a record: asks for the training, then for the trainability.
_Run = Generator[Training | Trainable, Any, RunRecord]


class Stages:
    """Executes runs.

    Args:
        ledger: Where parents are read and results committed.
        catalog: Where methods and workloads are found.
        runtime: Device and data.
        observer: Looks at each network after every epoch of its retraining, or None.
    """

    def __init__(self, ledger: Ledger, catalog: Catalog, runtime: Runtime, observer: Observer | None = None) -> None:
        self.ledger = ledger
        self.catalog = catalog
        self.runtime = runtime
        self._observer = observer
        # Of the last network that was evaluated: what told it, and its scores on test and validation split.
        self._known: tuple[Any, Score, Score] | None = None

    def execute(self, spec: RunSpec, progress: Progress | None = None) -> RunRecord:
        """Execute one run and commit its record.

        Raises:
            AuditError: The run cannot be done; one line says why.
        """
        found: list[RunRecord | Exception] = []
        self.execute_many([spec], lambda spec: progress, lambda spec, outcome: found.append(outcome))
        (outcome,) = found
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def execute_many(
        self,
        specs: Sequence[RunSpec],
        progress: Callable[[RunSpec], Progress | None],
        over: Callable[[RunSpec, RunRecord | Exception], None],
    ) -> None:
        """Execute runs whose parents are finished: those of one shape as one program, where the backend does that.

        What goes wrong with one of them, whatever a method or a driver raises, costs that one alone.

        Args:
            specs: The runs, of one backend.
            progress: For each run, what is called after every epoch of it.
            over: Called with each run and its record, or what went wrong, as soon as it is committed or has failed.
        """
        self.runtime.prepare()

        waiting: list[tuple[RunSpec, _Run, Training]] = []
        trained: list[tuple[RunSpec, _Run, Trainable]] = []

        def advance(spec: RunSpec, run: _Run, told: Trained | _Slopes | Exception | None = None) -> None:
            try:
                asked = run.throw(told) if isinstance(told, Exception) else run.send(told)
            except StopIteration as end:
                over(spec, end.value)
            except Exception as error:
                over(spec, error)
            else:
                if isinstance(asked, Training):
                    waiting.append((spec, run, asked))
                else:
                    trained.append((spec, run, asked))

        def measure() -> None:
            """Bring trained runs to their end, those over one dataset together."""
            for dataset in {id(asked.dataset): asked.dataset for *_, asked in trained}.values():
                found = [(spec, run, asked.model) for spec, run, asked in trained if asked.dataset is dataset]
                started = time.perf_counter()
                if dataset.example().is_floating_point():
                    slopes: Sequence[Jacobian | Exception | None] = jacobians([model for *_, model in found], dataset)
                else:
                    slopes = [None] * len(found)
                seconds = (time.perf_counter() - started) / len(found)
                for (spec, run, _), told in zip(found, slopes, strict=True):
                    advance(spec, run, told if isinstance(told, Exception) else _Slopes(told, seconds))
            trained.clear()

        def finished(results: dict[int, Trained]) -> None:
            for number, result in results.items():
                spec, run, _ = waiting[number]
                advance(spec, run, result.error or result)
            measure()

        for spec in specs:
            advance(spec, self._run(spec, progress(spec)))
            measure()
        train_many(
            [training for *_, training in waiting],
            specs[0].backend,
            memory=1 / self.runtime.processes,
            save_every=_SAVE_EVERY,
            finished=finished,
        )

    def _run(self, spec: RunSpec, progress: Progress | None) -> _Run:
        started = time.perf_counter()
        if spec.arithmetic == "portable" and not is_pinned():
            raise ConfigError(f"run {spec.slug}: this process computes in native arithmetic; start it again")
        # The catalogue's recipes do not matter here: the identity carries everything that changes numbers.
        scaled = self.catalog.workload(spec.workload).scaled(cast(Budget, spec.budget))
        # Where a user's data are found is no part of an identity: it travels with none, and no record has it.
        spec = spec.model_copy(update={"data": spec.data.model_copy(update={"folder": scaled.data.folder})})
        workload = scaled.model_copy(
            update={
                "data": spec.data,
                "model": spec.model,
                "model_args": spec.model_args,
                "model_source": spec.model_source,
                "operating_point": spec.operating_point,
                "layer_ratios": () if spec.ratio is None else ((spec.ratio, spec.layer_ratios),),
                **({"prunable": spec.prunable, "skip": spec.skip} if spec.prunable else {}),
            }
        )
        if version_of(workload.network) != spec.model_source:
            raise ConfigError(f"workload '{spec.workload}': {spec.model} changed while the suite ran; start again")
        dataset = load(spec.data, self.runtime.data_root, self.runtime.download, self.runtime.device)
        if spec.data_digest is not None and identity(spec.data, self.runtime.data_root) != spec.data_digest:
            raise ConfigError(f"data '{spec.data.name}' changed while the suite ran; start again")
        parent = self.ledger.get(spec.parent) if spec.parent else None
        if parent is not None and parent.split_digest != dataset.split_digest:
            raise ConfigError(
                f"data '{spec.data.name}' are not those that {parent.folder} was trained on: a file is damaged, or "
                "another one; take them from a copy, or choose another --audit-ledger"
            )
        # A network that nobody can count is told before it is trained.
        shapes.shape(workload)
        stage: Callable[..., _Stage] = getattr(self, f"_{spec.stage}")
        outcome = yield from stage(spec, workload, dataset, parent, progress)
        asked = time.perf_counter()
        slopes: _Slopes = yield Trainable(outcome.model, dataset)
        outcome.waited += time.perf_counter() - asked - slopes.seconds
        if spec.stage in ("pretrain", "prune"):
            outcome.jacobian_train = _on_batch_statistics(outcome.model, dataset, slopes.jacobian)
        return self._commit(spec, workload, dataset, parent, outcome, slopes.jacobian, started)

    def _pretrain(
        self, spec: RunSpec, workload: Workload, dataset: Dataset, parent: RunRecord | None, progress: Progress | None
    ) -> _Stage:
        model = shapes.dense_network(workload)
        if spec.checkpoint:
            provenance = self._load_external(model, spec)
            held = _not_zero(model) if spec.reading.zeros == "hold" else {}
            model = self._place(model, spec)
            return Outcome(model, Consumption(), masks=held, measured=False, provenance=provenance)
        names = ["pretrain", *([spec.own_base_of] if spec.own_base_of else [])]
        _initialise(model, spec.seed, *names)
        return (yield from self._train(model, spec, dataset, "/".join(names), progress))

    def _topup(
        self, spec: RunSpec, workload: Workload, dataset: Dataset, parent: RunRecord, progress: Progress | None
    ) -> _Stage:
        model, held = self._inherit(workload, parent)
        return (yield from self._train(model, spec, dataset, "topup", progress, held))

    def _retrain(
        self, spec: RunSpec, workload: Workload, dataset: Dataset, parent: RunRecord, progress: Progress | None
    ) -> _Stage:
        model, masks = self._inherit(workload, parent)
        if spec.recipe.steps == 0:
            # What was pruned is what is tested; its zeros are counted as behind an epoch.
            masked = [model.get_parameter(f"{name}.weight") for name in masks]
            return Outcome(
                self._place(model, spec),
                Consumption(),
                History(nonzero=[sum(int(weight.count_nonzero()) for weight in masked)] if masked else []),
                kept=parent.kept,
                widths={name: len(kept) for name, kept in parent.kept.items()},
                masks=masks,
                granularity=parent.granularity,
                pattern=_pattern_of(parent),
            )
        # Its source is part of the run's identity where the method acts in retraining, and only there.
        source = self._method(spec) if spec.method_digest else None
        method = source.create() if source is not None else None
        teacher = self._teacher(spec, workload)
        # Before the method has the network.
        each = training_macs(model, dataset.example()) if method is not None else 0
        state: dict[str, Any] = {}
        hooks, digest = None, ""
        if source is not None and source.outside is not None:
            outcome, digest = self._retrain_outside(
                source, model, spec, workload, dataset, parent, masks, progress, teacher
            )
        else:
            if method is not None:
                model = self._place(model, spec)
                assert spec.ratio is not None
                steps = spec.recipe.total_steps(steps_per_epoch(len(dataset.train), spec.recipe.batch))
                hooks = adds(method, RetrainingTask(model, workload, spec.ratio, steps, state))
            outcome = yield from self._train(model, spec, dataset, "retrain", progress, masks, hooks, state, teacher)
        if teacher is not None:
            samples = outcome.consumption.taught_samples
            macs = samples * self.ledger.get(str(spec.teacher)).macs
            outcome.taught = Taught(digest=digest or teacher.digest, samples=samples, macs=macs)
        if method is not None:
            own = beside_the_network(outcome.consumption.steps_macs, each)
            outcome.own_images, outcome.own_per_image = own
        outcome.kept, outcome.granularity = parent.kept, parent.granularity
        outcome.pattern = _pattern_of(parent)
        outcome.widths = {name: len(kept) for name, kept in parent.kept.items()}
        outcome.in_retraining = method.in_retraining if method is not None else ""
        return outcome

    def _retrain_outside(
        self,
        source: MethodSource,
        model: nn.Module,
        spec: RunSpec,
        workload: Workload,
        dataset: Dataset,
        parent: RunRecord,
        masks: dict[str, torch.Tensor],
        progress: Progress | None,
        teacher: Teacher | None,
    ) -> tuple[Outcome, str]:
        """Retrain with what a method adds, in the method's own process; tell the digest of its teacher there, too."""
        job = Job.of(
            spec,
            lambda: self._place(copy.deepcopy(model), spec),
            workload,
            dataset,
            measure=self._measure(spec),
            held=masks,
        )
        widths = {name: len(indices) for name, indices in parent.kept.items()}
        retrained = isolation.retrain(
            source, job, widths, self._off_limits(spec), self._checkpoint(spec), progress, self.runtime, teacher
        )
        trained, consumption, history, resumed, seconds, digest = retrained
        outcome = Outcome(
            trained,
            consumption,
            history,
            masks=masks,
            reason="" if spec.backend == "torch" else f"not {spec.backend}: its method acts in training",
            resumed=resumed,
            training_seconds=seconds,
        )
        return outcome, digest

    def _teacher(self, spec: RunSpec, workload: Workload) -> Teacher | None:
        """The dense network that teaches in a run, where one does."""
        if spec.teacher is None or spec.recipe.distillation is None:
            return None
        network, masks = self._inherit(workload, self.ledger.get(spec.teacher))
        beside = {f"{_MASK}{name}": mask for name, mask in masks.items()}
        return Teacher(self._place(network, spec), spec.recipe.distillation, spec.precision, beside)

    def _method(self, spec: RunSpec) -> MethodSource:
        """The method of a run, as it was when the run was planned.

        Raises:
            MethodError: It has changed since.
        """
        assert spec.method is not None
        source = self.catalog.method(spec.method)
        if source.digest != spec.method_digest:
            raise MethodError(f"method '{spec.method}' changed while the suite ran; start again")
        return source

    def _scratch(
        self, spec: RunSpec, workload: Workload, dataset: Dataset, parent: RunRecord | None, progress: Progress | None
    ) -> _Stage:
        widths, masks = spec.widths, dict[str, torch.Tensor]()
        granularity: Granularity = "filter"
        if spec.shape_of is not None:
            # Exactly the architecture that a method found, and nothing else of it.
            donor = self.ledger.get(spec.shape_of)
            widths, granularity = {name: len(kept) for name, kept in donor.kept.items()}, donor.granularity
            masks = self._masks(donor)
        model = shapes.network(workload, widths)
        _initialise(model, spec.seed, "scratch")
        model = thinned(model, masks)
        fresh = BY_ACCURACY.evaluate(self._place(model, spec), dataset, dataset.test, spec.precision)
        outcome = yield from self._train(model, spec, dataset, "scratch", progress, masks)
        outcome.initial_accuracy = fresh.accuracy
        outcome.widths, outcome.granularity = widths, granularity
        return outcome

    def _prune(
        self, spec: RunSpec, workload: Workload, dataset: Dataset, parent: RunRecord, progress: Progress | None
    ) -> _Stage:
        # What a method trains, it trains itself.
        yield from ()
        source = self._method(spec)
        # Read once: every repetition starts from the same weights, whatever becomes of their file.
        dense, held = self._inherit(workload, parent)
        pruned = isolation.observe(
            source,
            Job.of(
                spec,
                lambda: self._place(copy.deepcopy(dense), spec),
                workload,
                dataset,
                lambda epoch: self._base_after(epoch, parent, workload, dataset),
                self._measure(spec),
                held,
            ),
            lambda: self.ledger.digest_on_disk(parent),
            self._off_limits(spec),
            self._checkpoint(spec),
            progress,
            self.runtime,
        )
        answer = pruned.answer
        masks = zeros_left(dense, held, answer.kept, dataset.example()) if answer.kept else dict(held)
        masks |= {name: mask & held.get(name, mask) for name, mask in answer.masks.items()}
        if held and answer.masks:
            _some_go(spec, pruned.conduct, masks)
        conduct = pruned.conduct
        if source.outside is None and self.catalog.isolate == "never" and not self.catalog.is_shipped(source):
            conduct = conduct.model_copy(update={"isolation": "none"})
        widths = {name: len(kept) for name, kept in answer.kept.items()}
        # Only weights leave the stage: whatever else the method hung on the network stays behind.
        model = shapes.network(workload, widths)
        try:
            whole = answer.masks or not answer.kept
            small = pruned.model if whole else shrink(pruned.model, answer.kept, dataset.example())
            take(model, state_of(thinned(small, masks) if masks else small))
        except RuntimeError as error:
            raise MethodError(f"method '{spec.method}' left another network than it was given: {error}") from None
        model = self._place(model, spec)
        bad = [name for name, tensor in model.state_dict().items() if not bool(torch.isfinite(tensor).all())]
        if bad:
            raise MethodError(f"method '{spec.method}' left values that are not finite in '{bad[0]}'")
        if not math.isfinite(pruned.conduct.equivalence):
            raise MethodError(f"method '{spec.method}' left values that are not finite in filters that it removes")
        return Outcome(
            model,
            pruned.consumption,
            pruned.history,
            pruned.epoch_starts,
            answer.kept,
            widths,
            masks,
            pruned.conduct.target.granularity,
            conduct=conduct,
            declared_steps=spec.recipe.steps or 0,
            resumed=pruned.resumed,
            shown=pruned.shown,
            pattern=_declared(source.create(), spec.ratio),
        )

    def _off_limits(self, spec: RunSpec) -> dict[str, list[Path]]:
        """What a method has no business with: datasets on disk, other runs, reports."""
        data = stored_at(self.runtime.data_root, spec.data)
        return {**closed(self.ledger.root, self.runtime.reports, data), "keys": [keys_folder()]}

    def _train(
        self,
        model: nn.Module,
        spec: RunSpec,
        dataset: Dataset,
        stream: str,
        progress: Progress | None,
        masks: dict[str, torch.Tensor] | None = None,
        hooks: Hooks | None = None,
        state: dict[str, Any] | None = None,
        teacher: Teacher | None = None,
    ) -> _Stage:
        model, checkpoint = self._place(model, spec), self._checkpoint(spec)
        asked = time.perf_counter()
        trained: Trained = yield Training(
            model,
            dataset,
            spec.recipe,
            spec.seed,
            stream,
            spec.precision,
            checkpoint,
            progress,
            state,
            masks,
            hooks,
            self._measure(spec),
            self._observer if spec.stage == "retrain" else None,
            teacher,
        )
        return Outcome(
            model,
            trained.consumption,
            trained.history,
            masks=masks or {},
            backend=trained.backend,
            reason=trained.reason,
            resumed=trained.resumed_from,
            training_seconds=trained.training_seconds,
            # While others trained.
            waited=time.perf_counter() - asked - trained.seconds,
        )

    def _inherit(self, workload: Workload, parent: RunRecord) -> tuple[nn.Module, dict[str, torch.Tensor]]:
        """The network that a run left, with its weights, and the masks of its weights."""
        widths = {name: len(indices) for name, indices in parent.kept.items()}
        model = shapes.network(workload, widths)
        tensors = self.ledger.weights(parent)
        masks = {name.removeprefix(_MASK): tensors.pop(name) for name in list(tensors) if name.startswith(_MASK)}
        take(model, tensors)
        return model, masks

    def _masks(self, run: RunRecord) -> dict[str, torch.Tensor]:
        """Which weights stay, by layer, where a run removed single weights."""
        tensors = self.ledger.weights(run)
        return {name.removeprefix(_MASK): mask for name, mask in tensors.items() if name.startswith(_MASK)}

    def _base_after(
        self, epoch: int, parent: RunRecord, workload: Workload, dataset: Dataset
    ) -> dict[str, torch.Tensor]:
        """State of the base model after some epochs: trained once more from its own streams, which is no new training.

        A base that was trained beside others is trained alone here: the same up to rounding.

        Raises:
            MethodError: The base model was not trained here, or not so long.
        """
        base = parent
        while base.parent is not None:
            base = self.ledger.get(base.parent)
        if base.checkpoint is not None:
            raise MethodError("the initial weights of an external base model are not known; train the base here")
        if not 0 <= epoch < (base.recipe.epochs or 0):
            raise MethodError(f"cannot rewind to epoch {epoch}: the base model trained {base.recipe.epochs} epochs")
        names = ["pretrain", *([base.own_base_of] if base.own_base_of else [])]
        model = shapes.dense_network(workload)
        _initialise(model, base.seed, *names)
        model = self._place(model, base.spec)
        stream = "/".join(names)
        if epoch and base.recipe.ranks > 1:
            ranks.train(Training(model, dataset, base.recipe, base.seed, stream, base.precision), until=epoch)
        elif epoch:
            with Meter(model) as meter:
                steps = base.backend if base.backend in BACKENDS else "torch"
                Trainer(model, dataset, base.recipe, base.seed, stream, meter, base.precision, backend=steps).fit(
                    until=epoch
                )
        return model.state_dict()

    def _measure(self, spec: RunSpec) -> Measure:
        """The metric of a run, as it was when the run was planned.

        Raises:
            ConfigError: It has changed since, or its function is not there.
        """
        workload = self.catalog.workload(spec.workload)
        measure = Measure.of(workload.metric, workload.folder)
        if (measure.name, measure.digest) != (spec.metric, spec.metric_digest):
            raise ConfigError(f"metric '{spec.metric}' of {spec.workload} changed while the suite ran; start again")
        return measure

    def _place(self, model: nn.Module, spec: RunSpec) -> nn.Module:
        return place(model, self.runtime.device, spec.precision)

    def _checkpoint(self, spec: RunSpec) -> Checkpoint:
        return Checkpoint(self.ledger.workspace(spec) / "state.safetensors", self.runtime.device, _SAVE_ALONE)

    def _load_external(self, model: nn.Module, spec: RunSpec) -> str:
        """Load a user's own base model: where it came from, and what was done to it, for the record."""
        path = base_path(self.runtime.base, self.catalog.workload(spec.workload))
        assert path is not None
        content = b"" if path.is_dir() else read(path)
        found = sharded.digest(path) if path.is_dir() else hashlib.sha256(content).hexdigest()
        if found != spec.checkpoint:
            raise ConfigError(f"base {path} changed while the suite ran; start again")
        if path.is_dir():
            shards = found_in(path, spec.reading, model, spec.model)
            take(model, shards.read())
            return "; ".join(["external: pretraining cost not measured", *shards.notes])
        weights = fitted(content, path, spec.reading, model, spec.model)
        take(model, weights.tensors)
        return "; ".join(["external: pretraining cost not measured", *weights.notes])

    def _commit(
        self,
        spec: RunSpec,
        workload: Workload,
        dataset: Dataset,
        parent: RunRecord | None,
        outcome: Outcome,
        slopes: Jacobian | None,
        started: float,
    ) -> RunRecord:
        model, history, consumption = outcome.model, outcome.history, outcome.consumption
        dense = shapes.shape(workload)
        stay = {name: int(mask.sum()) for name, mask in outcome.masks.items()}
        widths = outcome.widths
        whole = shapes.shape_of(workload, widths)
        size = shapes.shape_of_weights(workload, stay, widths) if stay else whole
        singly = outcome.granularity == "weight"
        # During pruning and topping up it is the network of before that trains.
        training_shape = parent.macs if parent is not None and spec.stage in ("topup", "prune") else size.macs
        tensors = {**state_of(model), **{f"{_MASK}{name}": mask for name, mask in outcome.masks.items()}}
        weights = save_weights({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
        digest = hashlib.sha256(weights).hexdigest()
        measure = self._measure(spec)
        test, validation = self._scores_of(spec, model, dataset, measure, digest)
        curve = history.test_accuracy or [test.accuracy]
        best = max(range(len(curve)), key=curve.__getitem__)
        cost = TRAINING_PASSES * training_shape * consumption.training_samples
        cost += training_shape * consumption.scoring_samples
        cost += outcome.taught.macs if outcome.taught is not None else 0
        own_images = outcome.own_images
        if outcome.conduct is not None:
            own_images = consumption.own_macs / (TRAINING_PASSES * training_shape)
        record = RunRecord(
            **dict(spec),
            epochs=consumption.training_samples / len(dataset.train) if outcome.measured else None,
            samples=consumption.training_samples,
            scoring_samples=consumption.scoring_samples,
            own_images=own_images,
            own_per_image=outcome.own_per_image,
            optimiser_steps=consumption.optimiser_steps,
            training_macs=cost if outcome.measured else None,
            learning_rates=[(rate, int(steps)) for rate, steps in consumption.rates],
            hyper_parameters=_hyper_parameters(spec, dataset, outcome),
            fallback=outcome.reason,
            declared_steps=outcome.declared_steps,
            train_loss=history.train_loss,
            train_accuracy=history.train_accuracy,
            validation_loss=history.validation_loss,
            validation_accuracy_curve=history.validation_accuracy,
            test_loss=history.test_loss,
            test_accuracy=history.test_accuracy,
            accuracy=test.accuracy,
            validation_accuracy=validation.accuracy,
            best_accuracy=max(curve),
            best_epoch=best + 1,
            correct=pack(test.correct),
            test_images=len(test.correct),
            train_images=len(dataset.train),
            initial_accuracy=outcome.initial_accuracy,
            macs=size.macs,
            macs_recounted=size.recounted,
            params=size.params,
            base_macs=dense.macs,
            base_params=dense.params,
            kept=outcome.kept,
            granularity=outcome.granularity,
            stay=stay if singly else {},
            executed_macs=whole.macs if stay else None,
            nonzero=history.nonzero,
            epoch_starts=_uneven(outcome.epoch_starts, steps_per_epoch(len(dataset.train), spec.recipe.batch)),
            jacobian=slopes,
            jacobian_train=outcome.jacobian_train,
            conduct=outcome.conduct,
            parent_digest=parent.weights_digest if parent is not None else None,
            weights_digest=digest,
            split_digest=dataset.split_digest,
            pipeline=dataset.pipeline,
            classes=dataset.classes,
            provenance=outcome.provenance,
            device=self.runtime.device,
            environment=self.runtime.environment() | self._chosen(spec),
            resumed=outcome.resumed,
            seconds=time.perf_counter() - started - outcome.waited,
            training_seconds=outcome.training_seconds,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            scores=None if measure.is_accuracy else _scores(measure, test, validation, history),
            beside=beside(test, measure.name),
            kind=kind(self.runtime.device, spec.backend),
            shown=outcome.shown,
            frozen=consumption.frozen,
            text=text_measure(dataset),
            task=task_measure(dataset),
            pattern=_left(model, outcome),
            taught=outcome.taught,
        )
        return self.ledger.commit(record, weights)

    def _scores_of(
        self, spec: RunSpec, model: nn.Module, dataset: Dataset, measure: Measure, digest: str
    ) -> tuple[Score, Score]:
        """Scores of a network on test and validation split.

        What is not retrained is the network that was pruned, and mostly it was evaluated just before.

        Args:
            spec: The run.
            model: Its network.
            dataset: Its data.
            measure: Its metric.
            digest: SHA-256 of the network's weights.
        """
        named = ("workload", "model", "model_args", "model_source", "data", "data_digest", "metric", "metric_digest")
        known = [digest, dataset.split_digest, *(getattr(spec, name) for name in (*named, "precision", "arithmetic"))]
        if self._known is None or self._known[0] != known:
            test = measure.evaluate(model, dataset, dataset.test, spec.precision, closely=True)
            validation = measure.evaluate(model, dataset, dataset.validation, spec.precision)
            self._known = known, test, validation
        return self._known[1:]

    def _chosen(self, spec: RunSpec) -> dict[str, str]:
        """Why its backend was chosen, where nobody said which."""
        choice = self.ledger.choice_of(spec)
        return {} if choice is None else {CHOSEN: f"{choice.backend}: {choice.why}"}


def _not_zero(model: nn.Module) -> dict[str, torch.Tensor]:
    """Which weights are not zero, of each layer that has some that are: bool, in the shape of its weights."""
    weights = {name: module.weight.detach() for name, module in model.named_modules() if isinstance(module, LAYERS)}
    return {name: weight != 0 for name, weight in weights.items() if not bool((weight != 0).all())}


def _declared(method: Method, ratio: float | None) -> tuple[int, int] | None:
    """How many of how many neighbours a method says that it lets stay."""
    neighbours = method.pattern()
    return (neighbours - removed_of(ratio or 0.0, neighbours), neighbours) if neighbours else None


def _pattern_of(run: RunRecord) -> tuple[int, int] | None:
    """The pattern that is to hold of a run that another one goes on from."""
    return None if run.pattern is None else (run.pattern.stay, run.pattern.neighbours)


def _left(model: nn.Module, outcome: Outcome) -> Pattern | None:
    """What is there of the pattern that a method says it leaves."""
    if outcome.pattern is None:
        return None
    stay, neighbours = outcome.pattern
    weights = (model.get_parameter(f"{name}.weight") for name in outcome.masks)
    return Pattern(stay=stay, neighbours=neighbours, crowded=crowded(weights, stay, neighbours))


def _some_go(spec: RunSpec, conduct: Conduct, masks: Mapping[str, torch.Tensor]) -> None:
    """See that a base with zeros has more weights than are to stay.

    Raises:
        ConfigError: It has no more, all layers together.
    """
    left, asked = (sum(int(masks[name].sum()) for name in conduct.target.stay), sum(conduct.target.stay.values()))
    if left < asked:
        raise ConfigError(
            f"{spec.workload}: the base holds {left} weights that are not zero where ratio {spec.ratio:g} lets {asked} "
            "stay; choose higher ratios"
        )


def _on_batch_statistics(model: nn.Module, dataset: Dataset, in_eval_mode: Jacobian | None) -> Jacobian | None:
    """Trainability in training mode; a network that is destroyed may have none, which is no failure of its run."""
    if in_eval_mode is None or not takes_batch_statistics(model):
        return in_eval_mode
    try:
        return jacobian(model, dataset, batch_statistics=True)
    except AuditError:
        return None


def _uneven(starts: list[int], per_epoch: int) -> list[int]:
    """Steps at which epochs begin, where that is not told by their length: several trainings, each with a last part."""
    return starts if starts != list(range(0, len(starts) * per_epoch, per_epoch)) else []


def _scores(measure: Measure, test: Score, validation: Score, history: History) -> Scores:
    """What a metric that is not accuracy says of a run."""
    outcomes = measure.outcomes(test)
    return Scores(
        test=measure.value(test),
        validation=measure.value(validation),
        test_curve=history.test_metric,
        validation_curve=history.validation_metric,
        outcomes="" if outcomes is None else pack(outcomes),
    )


def _initialise(model: nn.Module, seed: int, *stream: str) -> None:
    if isinstance(model, Decoder):
        with_fresh_weights(model)
    from pruneaudit.workloads.models.initialise import initialise

    initialise(model, generator(seed, *stream, "initialise"))


def _hyper_parameters(spec: RunSpec, dataset: Dataset, outcome: Outcome) -> dict[str, Any]:
    """What the steps showed, with what only the loop knows (loss, data pipeline, masks, what a method adds)."""
    consumption = outcome.consumption
    if not consumption.optimiser_steps:
        return {}
    extra = {"masks": "held at zero"} if outcome.masks else {}
    if outcome.in_retraining:
        extra["method"] = "; ".join([f"{spec.method}: {outcome.in_retraining}", *own_training(consumption.added)])
    if spec.data.mean is None and dataset.config.mean:
        extra["normalisation"] = f"found: mean {list(dataset.config.mean)}, deviation {list(dataset.config.std or ())}"
    extra |= {"steps": outcome.backend} if outcome.backend != "torch" else {}
    return {
        **extra,
        **consumption.settings,
        "batch": consumption.batch,
        "augmentation": dataset.config.augmentation,
        "precision": spec.precision,
        "label_smoothing": spec.recipe.label_smoothing,
    }
