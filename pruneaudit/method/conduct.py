"""Lets a method prune while it is metered and watched, and writes down how it behaved."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from pruneaudit.catalog.discovery import MethodSource
from pruneaudit.errors import MethodError, one_line
from pruneaudit.ledger.records import Conduct, Shown
from pruneaudit.measure.metric import BY_ACCURACY, Measure
from pruneaudit.method.answers import Answer, decide
from pruneaudit.method.contract import Method
from pruneaudit.method.task import PruningTask, RepetitionOverError
from pruneaudit.pruning import shapes
from pruneaudit.pruning.layers import AUTO, PrunableLayer, prunable_layers
from pruneaudit.pruning.removal import masked, shrink, thinned
from pruneaudit.training.checkpoint import Checkpoint
from pruneaudit.training.loop import History, Progress
from pruneaudit.training.metering import Consumption, Meter
from pruneaudit.training.watch import Pictures, Watch
from pruneaudit.workloads.data import Dataset, load
from pruneaudit.workloads.recipes import Recipe
from pruneaudit.workloads.schema import Workload

if TYPE_CHECKING:
    from pruneaudit.ledger.records import RunSpec

#: Steps that a training method repeats to show that it is deterministic.
REPEATED_STEPS = 2
#: Images on which masked and shrunk network are compared.
COMPARED_IMAGES = 8


@dataclass(frozen=True)
class Job:
    """One pruning job: everything but the method.

    Attributes:
        inherit: Gives a fresh copy of the parent's network, placed.
        workload: Its facts.
        dataset: Its data.
        prunable: Patterns of the layers that may lose filters.
        skip: Patterns taken out again.
        ratio: Share of filters to remove.
        recipe: What training in the stage does.
        seed: The run's seed.
        precision: Arithmetic.
        initial: Gives the base model's state after some epochs of its training; None where it is not known.
        measure: The workload's metric.
        held: Weights of the base that are not zero, by layer, where the others are to stay zero.
        calibration: Examples that all methods score with; 0: each draws its own.
    """

    inherit: Callable[[], nn.Module]
    workload: Workload
    dataset: Dataset
    prunable: tuple[str, ...]
    skip: tuple[str, ...]
    ratio: float
    recipe: Recipe
    seed: int
    precision: str = "fp32"
    initial: Callable[[int], Mapping[str, torch.Tensor]] | None = None
    measure: Measure = BY_ACCURACY
    held: Mapping[str, torch.Tensor] = field(default_factory=dict)
    calibration: int = 0

    def declared(self, method: Method) -> int:
        """Images that a method declares to score with gradients: all that are handed out, where all get the same."""
        samples = method.budget(self.workload).samples
        return max(samples, self.calibration) if samples else 0

    @classmethod
    def of(
        cls,
        spec: RunSpec,
        inherit: Callable[[], nn.Module],
        workload: Workload,
        dataset: Dataset,
        initial: Callable[[int], Mapping[str, torch.Tensor]] | None = None,
        measure: Measure | None = None,
        held: Mapping[str, torch.Tensor] | None = None,
    ) -> Job:
        """The job of a prune run."""
        assert spec.ratio is not None
        return cls(
            inherit,
            workload,
            dataset,
            spec.prunable,
            spec.skip,
            spec.ratio,
            spec.recipe,
            spec.seed,
            spec.precision,
            initial,
            measure or BY_ACCURACY,
            held or {},
            spec.calibration,
        )


@dataclass(frozen=True)
class Pruned:
    """What came out of a pruning job.

    Attributes:
        model: The dense network as the method left it.
        answer: What stays.
        consumption: What the meter counted.
        history: Curves of its training.
        epoch_starts: Step at which each epoch of them begins.
        resumed: Epochs that an earlier, killed attempt had done.
        conduct: How the method behaved.
        shown: What it was handed out to score with.
    """

    model: nn.Module
    answer: Answer
    consumption: Consumption
    history: History
    epoch_starts: list[int]
    resumed: int
    conduct: Conduct
    shown: Shown


def observe(
    source: MethodSource,
    job: Job,
    parent_digest: Callable[[], str],
    off_limits: Mapping[str, Sequence[Path]] | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> Pruned:
    """Let a method prune under observation.

    Args:
        source: Where the method is defined.
        job: What it prunes.
        parent_digest: Digest of the parent's weights file as it is on disk when called.
        off_limits: Folders that a method has no business with, by what they hold.
        checkpoint: State of the stage, or None.
        progress: Called after every epoch, or None.

    Raises:
        MethodError: The method raised, its answer is none, or it left another network or other data.
    """
    method = source.create()
    model = job.inherit()
    layers = layers_of(model, job, method)
    given = dict(model.state_dict())
    watch = Watch(model, own_modules(model, layers), Pictures(job.dataset), off_limits)
    with _same_data(job.dataset, method):
        example = job.dataset.example()
        with Meter(model, witness=watch.pictures.see, example=example, by_operation=True) as meter:
            task = task_of(method, model, layers, job, meter, checkpoint=checkpoint, progress=progress, watch=watch)
            with watch:
                answer = decide(method, task)
        if task._dataset is not job.dataset:
            raise MethodError(f"method '{method.name}' replaced the data that it was given")
        refuse_another_network(method.name, given, model.state_dict())
        conduct = Conduct(
            channels=at_stake(task),
            target=task.target,
            declared_samples=job.declared(method),
            declares_rewriting=method.rewrites,
            rewritten=tuple(sorted(watch.rewritten)),
            touched=tuple(sorted(watch.touched)),
            equivalence=equivalence(model, answer, job.dataset),
            foreign_samples=watch.pictures.foreign,
            held_out_samples=watch.pictures.compare(),
            own_samples=watch.pictures.own,
            reached=tuple(sorted(watch.reached)),
            replay=_replay(source, job, model, answer),
            parent_digest_after=parent_digest(),
            added=meter.consumption.added,
        )
    return Pruned(
        model,
        answer,
        meter.consumption,
        task.history,
        task.epoch_starts,
        task.resumed_from,
        conduct,
        watch.pictures.shown,
    )


def at_stake(task: PruningTask) -> dict[str, int]:
    """What a method was asked to prune, by name: channels of each unit, or weights of each layer.

    Whole blocks take all of their units with them.
    """
    if task.target.granularity == "block":
        known = shapes.costs(task.workload)
        inside = {name for branch in known.blocks.values() for name in branch}
        return {name: count for name, count in known.filters.items() if name in inside}
    return {layer.name: task.units(layer) for layer in task.layers if layer.name in task.target.stay}


def prune(source: MethodSource, job: Job, model: nn.Module) -> tuple[Answer, Consumption]:
    """Let a method prune a network, metered but not watched: its checked answer, and what the meter read.

    Raises:
        MethodError: The method raised, or its answer is none.
    """
    method = source.create()
    # Before the meter: tracing the network passes an image through it.
    layers = layers_of(model, job, method)
    with Meter(model, example=job.dataset.example()) as meter:
        return decide(method, task_of(method, model, layers, job, meter)), meter.consumption


@contextmanager
def _same_data(dataset: Dataset, method: Method) -> Iterator[None]:
    """See to it that nobody else in this process gets images or labels that a method has changed.

    Raises:
        MethodError: It has.
    """
    parts = (dataset.train, dataset.validation, dataset.test)
    before = [part.digest for part in parts]
    try:
        yield
    finally:
        if [part.digest for part in parts] != before:
            load.cache_clear()
            raise MethodError(f"method '{method.name}' changed the data that it was given")


def equivalence(model: nn.Module, answer: Answer, dataset: Dataset) -> float:
    """Largest difference of masked and shrunk network in float64, relative to the scale of their outputs.

    Removing filters must compute what silencing them computes: what the method decided is then what is retrained. Of
    single weights: a network whose removed weights are zero, and one that multiplies its weights with the masks.
    """
    device = next(model.parameters()).device
    images = dataset.normalise(dataset.train.first(COMPARED_IMAGES).images, torch.float64).to(device)
    # Normalisation in eval mode: a batch must not matter.
    double = _plain_copy(model).double().eval()
    example = dataset.example(torch.float64).to(device)
    with torch.no_grad():
        if answer.masks:
            products = {
                f"{name}.weight": double.get_parameter(f"{name}.weight") * mask.to(example)
                for name, mask in answer.masks.items()
            }
            silenced = torch.func.functional_call(double, products, (images,))
            small = thinned(double, answer.masks)(images)
        else:
            silenced = masked(double, answer.kept, example)(images)
            small = shrink(double, answer.kept, example)(images)
    return float((silenced - small).abs().max() / silenced.abs().max().clamp_min(1e-300))


def _plain_copy(model: nn.Module) -> nn.Module:
    """A copy without the hooks that a method may have left on the network."""
    duplicate = copy.deepcopy(model)
    for module in duplicate.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks):
            hooks.clear()
    return duplicate


def _replay(source: MethodSource, job: Job, model: nn.Module, answer: Answer) -> str:
    """Decide again, with the method's file imported anew: ``same``, or how it differs.

    A one-shot method repeats everything. A training method does its first steps twice, the first time in the module
    that has just pruned: repeating all of them would double its cost.
    """
    steps = job.recipe.steps or 0
    try:
        first = _again(source, job) if steps else (answer, digest(model))
        with _no_test_name():
            second = _again(source.anew(), job)
    except Exception as error:
        return f"raised: {one_line(error)}"
    if first[0] != second[0]:
        return "other weights kept" if answer.masks else "other filters"
    return "same" if first[1] == second[1] else "other weights"


def _again(source: MethodSource, job: Job) -> tuple[Answer, str]:
    """Decide in a fresh instance on a fresh network: the answer, and a digest of the weights."""
    method = source.create()
    model = job.inherit()
    few = job.dataset.train.first(COMPARED_IMAGES)
    # The loop evaluates after every epoch; nothing is read from it here.
    asked = {name: questions.first(1) for name, questions in job.dataset.questions.items()}
    dataset = replace(job.dataset, validation=few, test=few, questions=asked)
    layers = layers_of(model, job, method)
    with Meter(model, example=job.dataset.example()) as meter:
        # A method that declares no step and takes some all the same takes them again. One that trains still sees its
        # whole budget, from which it may derive a schedule.
        most = REPEATED_STEPS if job.recipe.steps else None
        task = task_of(method, model, layers, replace(job, dataset=dataset), meter, most=most)
        try:
            return decide(method, task), digest(model)
        except RepetitionOverError:
            # In the middle of its training: the weights must tell.
            return Answer({}, {}), digest(model)


@contextmanager
def _no_test_name() -> Iterator[None]:
    """Hide the name of the running test: a method that reads it would act by the cell that it is in."""
    name = os.environ.pop("PYTEST_CURRENT_TEST", None)
    try:
        yield
    finally:
        if name is not None:
            os.environ["PYTEST_CURRENT_TEST"] = name


def refuse_another_network(method: str, given: Mapping[str, torch.Tensor], left: Mapping[str, torch.Tensor]) -> None:
    """See that a method left tensors of the names and shapes that it was given.

    Raises:
        MethodError: It did not; the message names the first that differs.
    """
    before, after = ({(name, tuple(tensor.shape)) for name, tensor in state.items()} for state in (given, left))
    strange = sorted(before ^ after)
    if strange:
        raise MethodError(f"method '{method}' left another network than it was given: see '{strange[0][0]}'")


def digest(model: nn.Module) -> str:
    """SHA-256 over names and values of all tensors of a network."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        # As bytes: numpy has no bfloat16.
        found.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def task_of(
    method: Method,
    model: nn.Module,
    layers: list[PrunableLayer],
    job: Job,
    meter: Meter,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
    most: int | None = None,
) -> PruningTask:
    """A job as a method sees it."""
    return PruningTask(
        model,
        layers,
        job.workload,
        job.ratio,
        job.recipe,
        job.dataset,
        job.seed,
        meter,
        method.name,
        job.precision,
        checkpoint,
        progress,
        watch,
        most,
        shapes.target(job.workload, job.ratio, method.granularity, method.scope),
        job.initial,
        job.measure,
        job.held,
        job.calibration,
    )


def layers_of(model: nn.Module, job: Job, method: Method) -> list[PrunableLayer]:
    """The layers of a job that a method may prune."""
    return prunable_layers(model, job.dataset.example(), *patterns_of(job), method.granularity)


def patterns_of(job: Job) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Patterns of the layers of a job that may lose filters, and of those taken out again; units found by name."""
    if job.prunable != AUTO:
        return job.prunable, job.skip
    # Found and tried when the workload was planned.
    found = shapes.units(job.workload.model_copy(update={"prunable": job.prunable, "skip": job.skip})).units
    return tuple(unit.name for unit in found), ()


def own_modules(model: nn.Module, layers: Sequence[PrunableLayer]) -> list[str]:
    """Names of the prunable layers and of the normalisations behind them."""
    own = {id(module) for layer in layers for module in (layer.module, layer.norm) if module is not None}
    return [name for name, module in model.named_modules() if id(module) in own]
