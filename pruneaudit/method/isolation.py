"""Runs foreign methods in processes of their own, and believes only what can be checked.

What a method gets is the dense network, the task, and training batches one by one. What comes back is which filters
stay and tensors by value. The referee removes, evaluates and records in a process in which no foreign code was ever
imported; it counts the batches that it hands out, compares weights by value, lets another process repeat the decision,
gives what declares (almost) no training an untrained network, which it must leave untrained, and the trained one with
classes that have other numbers, of which it must make as much.
"""

from __future__ import annotations

import atexit
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from pruneaudit.catalog.discovery import Catalog, MethodSource
from pruneaudit.errors import AuditError, MethodError, one_line, printable
from pruneaudit.ledger.records import Conduct, Renumbered, Untrained
from pruneaudit.measure.accuracy import evaluate
from pruneaudit.method import child, conduct, conformance
from pruneaudit.method.answers import Answer, checked
from pruneaudit.method.channel import Message
from pruneaudit.method.conduct import (
    REPEATED_STEPS,
    Job,
    Pruned,
    at_stake,
    digest,
    equivalence,
    layers_of,
    own_modules,
    patterns_of,
    task_of,
)
from pruneaudit.method.conformance import CHANCE_FACTOR
from pruneaudit.method.contract import Budget, Card, Method, PublishedRecipe, ScratchArm
from pruneaudit.method.process import Process
from pruneaudit.method.referee import Heard, Referee, data_of, take
from pruneaudit.method.task import Kept, PruningTask
from pruneaudit.pruning.removal import shrink, thinned
from pruneaudit.schema import explained
from pruneaudit.sources import hear_of, own_files
from pruneaudit.streams import generator
from pruneaudit.training.checkpoint import Checkpoint
from pruneaudit.training.distillation import Teacher
from pruneaudit.training.loop import History, Progress, Trainer
from pruneaudit.training.metering import Consumption, Meter
from pruneaudit.training.runtime import Runtime
from pruneaudit.training.watch import Pictures, changes
from pruneaudit.workloads.models.initialise import initialise
from pruneaudit.workloads.recipes import Distillation, Recipe, steps_per_epoch
from pruneaudit.workloads.schema import Workload

#: A method is tried on an untrained network: what it leaves then must be no better than plain training of as many
#: steps. One that takes more steps than this, and than this share of the retraining, gets few there: all of them would
#: cost as much again, and the fewer explain, the more shows what came from elsewhere.
PROBED_STEPS, PROBED_SHARE, FEW_STEPS = 50, 0.05, 5
#: Processes that answer questions to methods and wait for the next one.
MOST_DESCRIBING = 4
#: Points of accuracy that a method's few steps may be better than plain ones, or that it may make less of a network
#: whose classes have other numbers.
PROBE_SLACK = 10.0


# What a method says of itself.


def described(source: MethodSource, off_limits: Mapping[str, Sequence[Path]] | None = None) -> type[Method]:
    """A class with all that a method's class says of itself, and nothing of its code.

    Args:
        source: The method.
        off_limits: What it has no business with, by what it holds.

    Raises:
        MethodError: It cannot be imported, or says what is no answer.
    """
    # As its file is now, whoever described it before.
    facts = _describing(source, off_limits, anew=True).facts
    code = source.code
    hear_of(facts["read"], own_files(code.file, code.module) if code.file is not None else ())
    published, parameters, soft = facts["published"], facts["parameters"], facts["distillation"]
    distillation = None if soft is None else Distillation(**soft)

    def ask(what: str, *arguments: Any) -> Any:
        process = _describing(source, off_limits).process
        process.tell(child.Ask(what, arguments))
        return process.hear().facts["value"]

    def budget(_self: Method, workload: Workload) -> Budget:
        return _made(Budget, ask("budget", workload), source.name)

    def recipe(_self: Method, workload: Workload, speedup: float) -> Recipe:
        try:
            return Recipe.model_validate(ask("recipe", workload, speedup))
        except ValidationError as error:
            raise MethodError(f"method '{source.name}': recipe(): {explained(error, Recipe)}") from None

    def skip(_self: Method, workload: Workload) -> str | None:
        reason = ask("skip", workload)
        return None if reason is None else printable(str(reason)[:1000])

    def prune(_self: Method, _task: PruningTask) -> Kept:
        raise MethodError(f"method '{source.name}' prunes in a process of its own")

    base: Any = ScratchArm if facts["scratch"] else Method
    return type(
        facts["name"],
        (base,),
        {
            "__module__": facts["module"],
            "__qualname__": facts["name"],
            "__doc__": facts["description"],
            # Hyper-parameters went to the process.
            "__init__": lambda _self, **_arguments: None,
            "budget": budget,
            "skip": skip,
            "recipe": recipe,
            "prune": prune,
            "parameters": lambda _self: dict(parameters),
            "summary": classmethod(lambda _cls: facts["summary"]),
            "published": None if published is None else PublishedRecipe(**published),
            "card": Card(**facts["card"]),
            "follows_protocol": facts["follows_protocol"],
            "begins": facts["begins"],
            "pattern": lambda _self: facts["pattern"],
            "distillation": lambda _self: distillation,
            **{name: facts[name] for name in ("prunes", "rewrites", "granularity", "scope", "in_retraining")},
        },
    )


@dataclass(frozen=True)
class _Description:
    """A process that answers questions to a method, and what it said of it first."""

    process: Process
    facts: Mapping[str, Any]


#: By method; the last one that was asked is the last one here.
_descriptions: dict[str, _Description] = {}


def _describing(
    source: MethodSource, off_limits: Mapping[str, Sequence[Path]] | None, anew: bool = False
) -> _Description:
    """The process that answers questions to a method, started where there is none (any more).

    Raises:
        MethodError: The method cannot be imported, or says what is no answer.
    """
    if not _descriptions:
        atexit.register(_end_descriptions)
    name = repr(source)
    found = _descriptions.pop(name, None)
    if found is not None and anew:
        found.process.__exit__()
        found = None
    if found is None:
        while len(_descriptions) >= MOST_DESCRIBING:
            _descriptions.pop(next(iter(_descriptions))).process.__exit__()
        process = Process(source, off_limits, works=False)
        process.__enter__()
        try:
            process.tell(child.Describe())
            found = _Description(process, process.hear().facts)
        except BaseException:
            process.__exit__()
            raise
    _descriptions[name] = found
    return found


def _end_descriptions() -> None:
    while _descriptions:
        _descriptions.popitem()[1].process.__exit__()


def _made(kind: Any, values: Any, name: str) -> Any:
    """A plain dataclass from what a process says."""
    known = {one.name for one in fields(kind)}
    if not isinstance(values, Mapping) or not set(values) <= known:
        raise MethodError(f"method '{name}': {kind.__name__} of its process cannot be read")
    return kind(**values)


def check(name: str, catalog: Catalog, method: str, workload: str, runtime: Runtime) -> None:
    """Run one check of the contract, in a process of its own where the method is isolated.

    Raises:
        MethodError: The method breaks its contract; one line says how.
    """
    source = catalog.method(method)
    if source.outside is None:
        conformance.check(name, catalog, method, workload, runtime)
        return
    conformance.see_that_it_applies(source, catalog.workload(workload))
    with Process(source, patience=runtime.patience, most=runtime.most) as process:
        process.tell(child.Check(name, catalog.workload(workload), runtime))
        if process.hear().kind != "kept":
            raise MethodError(f"method '{source.name}': its process says what is no answer")


# What a method does.


def observe(
    source: MethodSource,
    job: Job,
    parent_digest: Callable[[], str],
    off_limits: Mapping[str, Sequence[Path]] | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
    runtime: Runtime | None = None,
) -> Pruned:
    """Let a method prune under observation, in a process of its own where its source says so.

    Args:
        source: Where the method is defined.
        job: What it prunes.
        parent_digest: Digest of the parent's weights file as it is on disk when called.
        off_limits: Folders that a method has no business with, by what they hold.
        checkpoint: State of the stage, or None.
        progress: Called after every epoch, or None.
        runtime: Device, data, and how long a method may say nothing.

    Raises:
        MethodError: The method raised, its answer is none, or it left another network or other data.
    """
    if source.outside is None:
        return conduct.observe(source, job, parent_digest, off_limits, checkpoint, progress)
    bench = _Bench(source, job, off_limits or {}, runtime or Runtime())
    pictures = Pictures(job.dataset)
    heard = bench.referee(job.inherit(), pictures, checkpoint, progress).hear_out(bench.off_limits)
    assert heard.message is not None
    facts, method = heard.message.facts, bench.method
    task, answer = bench.judged(heard.message)
    model, target, own = task.model, task.target, own_modules(task.model, task.layers)
    # Of one that trains its own process says what changed outside of training; nobody else can tell.
    before = model.state_dict() if job.recipe.steps else job.inherit().state_dict()
    rewritten, touched = changes(before, model.state_dict(), own)
    apart = equivalence(model, answer, job.dataset)
    consumption = Consumption(**facts["consumption"])
    consumption.training_samples = max(consumption.training_samples, heard.trained)
    said = Conduct(
        channels=at_stake(task),
        target=target,
        declared_samples=bench.declared,
        declares_rewriting=method.rewrites,
        rewritten=tuple(sorted(rewritten | set(facts["rewritten"]))),
        touched=tuple(sorted(touched | set(facts["touched"]))),
        equivalence=apart,
        foreign_samples=max(pictures.foreign, facts["foreign"]),
        held_out_samples=pictures.compare(),
        own_samples=pictures.own,
        reached=tuple(sorted(facts["reached"])),
        replay=bench.replay(answer, model, heard),
        parent_digest_after=parent_digest(),
        added=consumption.added,
        isolation=heard.isolation,
        untrained=bench.probe() if bench.is_probed else None,
        renumbered=bench.renumbered(model, answer) if bench.is_probed else None,
    )
    starts = facts["epoch_starts"]
    return Pruned(model, answer, consumption, heard.history, starts, heard.resumed, said, pictures.shown)


class _Bench:
    """One pruning job of an isolated method, done several times."""

    def __init__(
        self,
        source: MethodSource,
        job: Job,
        off_limits: Mapping[str, Sequence[Path]],
        runtime: Runtime,
    ) -> None:
        self.source, self.job, self.off_limits, self.runtime = source, job, off_limits, runtime
        self.method: Method = source.create()
        self.declared = job.declared(self.method)

    def work(self, model: nn.Module) -> child.Work:
        """The job as a process is told it, on a network with these weights."""
        job = self.job
        patterns, skip = patterns_of(job)
        return child.Work(
            job.workload,
            data_of(job.dataset),
            {name: tensor.cpu() for name, tensor in model.state_dict().items()},
            {},
            job.ratio,
            job.recipe,
            job.seed,
            self.runtime,
            job.precision,
            patterns,
            skip,
            {name: mask.cpu() for name, mask in job.held.items()},
            is_accuracy=job.measure.is_accuracy,
            knows_initial=job.initial is not None,
            calibration=job.calibration,
        )

    def referee(
        self,
        network: nn.Module,
        pictures: Pictures | None = None,
        checkpoint: Checkpoint | None = None,
        progress: Progress | None = None,
        clipped: bool = False,
        numbers: torch.Tensor | None = None,
    ) -> Referee:
        """Who hands out to a process that starts from a network; the network is where its weights are evaluated.

        ``clipped``: it trains for as many steps as the job has, whatever it asks for. ``numbers``: as the referee has
        them.
        """
        work = replace(self.work(network), clipped=clipped)
        return Referee(
            self.source, self.job, network, work, "prune", self.declared, pictures, checkpoint, progress, numbers
        )

    def judged(self, message: Message) -> tuple[PruningTask, Answer]:
        """The task over a network with the weights that a process left, and its answer, checked."""
        job, method = self.job, self.method
        model = job.inherit()
        take(model, message.tensors, self.source.name)
        task = task_of(method, model, layers_of(model, job, method), job, Meter(model))
        masks = {name.removeprefix("mask/"): mask for name, mask in message.tensors.items() if name.startswith("mask/")}
        return task, checked(masks or message.facts["kept"], task, method)

    def replay(self, answer: Answer, model: nn.Module, first: Heard) -> str:
        """Decide again in another process: ``same``, or how it differs. One that trains repeats its first steps."""
        trains = (self.job.recipe.steps or 0) >= REPEATED_STEPS
        try:
            began = first.began
            if trains and not began:
                # It went on from a checkpoint.
                began = self._again(until_began=True).began
            again = self._again(until_began=trains)
            if trains and (began or again.began):
                return "same" if began == again.began else "other weights"
            assert again.message is not None
            other, second = self.judged(again.message)
        except AuditError as error:
            return f"raised: {one_line(error)}"
        if answer != second:
            return "other weights kept" if answer.masks else "other filters"
        return "same" if digest(model) == digest(other.model) else "other weights"

    def _again(self, until_began: bool) -> Heard:
        return self.referee(self.job.inherit()).hear_out(self.off_limits, until_began)

    @property
    def is_probed(self) -> bool:
        """Whether an untrained network tells anything: weights may change."""
        return bool(self.job.recipe.steps) or self.method.rewrites

    @property
    def probed_steps(self) -> int:
        """Steps of training that a method gets on an untrained network."""
        retraining = self.job.workload.retrain
        whole = retraining.total_steps(steps_per_epoch(len(self.job.dataset.train), retraining.batch))
        declared = self.job.recipe.steps or 0
        return declared if declared <= max(PROBED_STEPS, PROBED_SHARE * whole) else FEW_STEPS

    def probe(self) -> Untrained | None:
        """What the method makes of an untrained network; None: it does not do with fewer steps than it declares."""
        job, steps = self.job, self.probed_steps
        fresh = job.inherit()
        initialise(fresh, generator(job.seed, "untrained"))
        is_short = steps < (job.recipe.steps or 0)
        short = job.recipe.for_steps(steps) if is_short else job.recipe
        bench = _Bench(
            self.source,
            replace(job, inherit=lambda: copy.deepcopy(fresh), held={}, recipe=short),
            self.off_limits,
            self.runtime,
        )
        most = _most_untrained(job.dataset.classes)
        try:
            referee = bench.referee(copy.deepcopy(fresh), clipped=is_short)
            heard = referee.hear_out(self.off_limits)
            assert heard.message is not None
            task, answer = bench.judged(heard.message)
        except AuditError as error:
            return None if is_short else Untrained(at_most=most, error=one_line(error))
        # One that trains in a loop of its own takes all its steps, and says so.
        said = heard.message.facts["consumption"]["optimiser_steps"]
        fair = min(max(steps, said), job.recipe.steps or 0)
        if fair:
            plain = copy.deepcopy(fresh)
            recipe = job.recipe.for_steps(fair) if is_short else job.recipe
            with Meter(plain) as meter:
                Trainer(plain, job.dataset, recipe, job.seed, "prune", meter, job.precision).fit()
            most = max(most, evaluate(plain, job.dataset, job.dataset.test, job.precision).accuracy + PROBE_SLACK)
        return Untrained(accuracy=self._best(task.model, answer), at_most=most)

    def _best(self, model: nn.Module, answer: Answer, numbers: torch.Tensor | None = None) -> float:
        """Test accuracy before or after removal, whichever is better, of a network whose classes have these numbers."""
        data, precision = self.job.dataset, self.job.precision
        small = thinned(model, answer.masks) if answer.masks else shrink(model, answer.kept, data.example())
        both = (model, small) if numbers is None else (_Renamed(model, numbers), _Renamed(small, numbers))
        return max(evaluate(one, data, data.test, precision).accuracy for one in both)

    def renumbered(self, model: nn.Module, answer: Answer) -> Renumbered | None:
        """What the method makes of the same network, trained as it is, whose classes have other numbers.

        A process cannot tell it from the other one by how good it is: labels are handed out by the same numbers.
        Weights that come from elsewhere know the usual ones.

        Args:
            model: The network as the method left it where they have their own.
            answer: What it then decided.

        Returns:
            None where it would tell nothing: no accuracy decides, or no single layer gives the classes; and where a
            method declares so much training that it would cost as much again.
        """
        job = self.job
        head = classifier(job.inherit(), job.dataset.example(), job.dataset.classes)
        if head is None or not job.measure.is_accuracy or self.probed_steps < (job.recipe.steps or 0):
            return None
        numbers = other_numbers(job.dataset.classes, job.seed)
        rows = numbers.argsort()
        initial = job.initial

        def renamed(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            names = {head, f"{head}.weight", f"{head}.bias"}
            return {name: one[rows.to(one.device)] if name in names else one for name, one in tensors.items()}

        def inherit() -> nn.Module:
            found = job.inherit()
            found.load_state_dict(renamed(found.state_dict()))
            return found

        other = replace(
            job,
            inherit=inherit,
            initial=None if initial is None else lambda epoch: renamed(initial(epoch)),
            held=renamed(job.held),
        )
        bench = _Bench(self.source, other, self.off_limits, self.runtime)
        least = self._best(model, answer) - PROBE_SLACK
        try:
            heard = bench.referee(inherit(), numbers=numbers).hear_out(self.off_limits)
            assert heard.message is not None
            task, second = bench.judged(heard.message)
        except AuditError as error:
            return Renumbered(at_least=least, error=one_line(error))
        return Renumbered(accuracy=bench._best(task.model, second, numbers), at_least=least)


class _Renamed(nn.Module):
    """A network whose classes have other numbers, with its logits in the usual order."""

    def __init__(self, model: nn.Module, numbers: torch.Tensor) -> None:
        super().__init__()
        self.model, self.numbers = model, numbers

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits ``[N, classes]``."""
        logits: torch.Tensor = self.model(images)
        return logits[:, self.numbers.to(logits.device)]


def other_numbers(classes: int, seed: int) -> torch.Tensor:
    """Another number for each class, ``[classes]``: none keeps its own."""
    ring = torch.randperm(classes, generator=generator(seed, "renumbered"))
    numbers = torch.empty_like(ring)
    numbers[ring] = ring.roll(-1)
    return numbers


def classifier(model: nn.Module, example: torch.Tensor, classes: int) -> str | None:
    """Name of the linear layer whose output, one value for each class, is the network's; None: there is no such.

    One that shares its weights with another layer is none: other numbers of classes would change what that one does.
    """
    outputs: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: outputs.update({name: output}))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == classes
    ]
    first = next(model.parameters())
    inputs = example.to(first.device, first.dtype if example.is_floating_point() else example.dtype)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        logits = model(inputs)
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    for name, output in outputs.items():
        weight = model.get_submodule(name).weight
        owners = [module for module in model.modules() for one in module.parameters(recurse=False) if one is weight]
        if output is logits and logits.dim() == 2 and len(owners) == 1:
            return name
    return None


def _most_untrained(classes: int) -> float:
    """Accuracy in percent that an untrained network does not exceed; of few classes half way to all right."""
    return 100 * min(CHANCE_FACTOR / classes, (1 + 1 / classes) / 2)


def retrain(
    source: MethodSource,
    job: Job,
    widths: Mapping[str, int],
    off_limits: Mapping[str, Sequence[Path]] | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
    runtime: Runtime | None = None,
    teacher: Teacher | None = None,
) -> tuple[nn.Module, Consumption, History, int, float, str]:
    """Retrain a pruned network with what an isolated method adds.

    Args:
        source: Where the method is defined.
        job: The pruned network and its retraining; ``held`` are its masks.
        widths: Its widths.
        off_limits: Folders that a method has no business with, by what they hold.
        checkpoint: State of the stage, or None.
        progress: Called after every epoch, or None.
        runtime: Device, data, and how long a method may say nothing.
        teacher: Who adds to the loss where the recipe has distillation; else None.

    Returns:
        The network, what was measured, its curves, epochs that an earlier attempt had done, seconds of its steps, and
        the digest of its teacher when they were over.

    Raises:
        MethodError: The method raised, or its process left another network.
    """
    model = job.inherit()
    work = replace(
        _Bench(source, replace(job, prunable=()), {}, runtime or Runtime()).work(model),
        widths=dict(widths),
        retrains=True,
        teacher=None if teacher is None else (_on_cpu(teacher.network.state_dict()), _on_cpu(teacher.beside)),
    )
    referee = Referee(source, job, copy.deepcopy(model), work, "retrain", 0, None, checkpoint, progress)
    heard = referee.hear_out(off_limits or {})
    assert heard.message is not None
    take(model, heard.message.tensors, source.name)
    for name, mask in job.held.items():
        if bool(model.get_parameter(f"{name}.weight")[~mask.to(next(model.parameters()).device)].any()):
            raise MethodError(f"method '{source.name}' brought removed weights of '{name}' back")
    facts = heard.message.facts
    consumption = Consumption(**facts["consumption"])
    consumption.training_samples = max(consumption.training_samples, heard.trained)
    return model, consumption, heard.history, heard.resumed, facts["training_seconds"], facts["taught"]


def _on_cpu(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.cpu() for name, tensor in tensors.items()}
