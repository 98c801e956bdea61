"""A method's own process: it holds the dense network, the task, and what the referee hands out, and nothing else.

It is forked from a process in which no foreign code was ever imported (:func:`main`), so that it starts warm. It
confines itself before the method is imported. What it says is checked by the referee, ``method/isolation.py``.
"""

from __future__ import annotations

import gc
import importlib
import io
import os
import random
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from inspect import getdoc
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pruneaudit import sandbox
from pruneaudit.catalog.discovery import MethodSource
from pruneaudit.errors import AuditError, MethodError, one_line
from pruneaudit.measure.accuracy import Score
from pruneaudit.measure.metric import Measure
from pruneaudit.method.answers import adds, decide
from pruneaudit.method.channel import HungUpError, Line
from pruneaudit.method.conduct import REPEATED_STEPS, digest, own_modules
from pruneaudit.method.contract import Budget, Method, ScratchArm, recordable, taught
from pruneaudit.method.limits import Limits
from pruneaudit.method.task import PruningTask, RetrainingTask
from pruneaudit.pruning import shapes
from pruneaudit.pruning.layers import prunable_layers
from pruneaudit.sources import heard_by, listening
from pruneaudit.training.checkpoint import Checkpoint, Snapshot
from pruneaudit.training.distillation import Teacher
from pruneaudit.training.loop import Hooks, Trainer
from pruneaudit.training.memory import is_out_of_memory
from pruneaudit.training.metering import Consumption, Meter
from pruneaudit.training.operations import Operations
from pruneaudit.training.precision import place
from pruneaudit.training.runtime import Runtime
from pruneaudit.training.watch import Pictures, Reach, Watch
from pruneaudit.workloads.data import WHOLE, Dataset, Part, Share
from pruneaudit.workloads.models.tensors import take
from pruneaudit.workloads.recipes import Recipe, steps_per_epoch
from pruneaudit.workloads.schema import DataConfig, Workload

#: What jobs with networks import sooner or later, so that forks need not, one by one: to ask a network without weights
#: imports torch's compiler, which takes seconds (torch 2.14).
WORKSHOP = ("torch._dynamo", "fvcore.nn", "PIL.Image", "numpy.random", "pruneaudit.method.conformance")
#: What the referee may ask the process for that forks: any process, or one that works with networks.
ANY, WORKS = b"+", b"*"

#: Foreign images that are shown to the referee one by one; all others are counted.
SHOWN_IMAGES = 4096
#: Calls of a training whose steps are fewer than the method declares.
MOST_CALLS = 10_000


@dataclass(frozen=True)
class Start:
    """How a method's process begins.

    Attributes:
        source: The method.
        folder: Current folder.
        path: Where modules are imported from.
        environment: Environment variables.
        scratch: Folder that it may write.
        off_limits: What it has no business with, by what it holds; none of it can be read where the kernel helps.
        limits: What it may take of the machine.
    """

    source: MethodSource
    folder: Path
    path: Sequence[str]
    environment: Mapping[str, str]
    scratch: Path
    off_limits: Mapping[str, Sequence[Path]]
    limits: Limits


@dataclass(frozen=True)
class Data:
    """What a method's process knows of the data: batches are handed out one by one.

    Attributes:
        config: Preprocessing and augmentation.
        classes: Number of classes.
        count: Training images.
        shape: Shape of an input.
        whole: Whether inputs are whole numbers.
        split_digest: Digest of all splits.
    """

    config: DataConfig
    classes: int
    count: int
    shape: tuple[int, ...]
    whole: bool
    split_digest: str


@dataclass(frozen=True)
class Describe:
    """Job: say what the method declares, then answer questions."""


@dataclass(frozen=True)
class Ask:
    """A question to a method that described itself: ``budget``, ``skip`` or ``recipe``, and what it depends on."""

    what: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Check:
    """Job: keep one rule of the contract on a small network.

    Attributes:
        name: The check.
        workload: On which it is made.
        runtime: Device and data.
    """

    name: str
    workload: Workload
    runtime: Runtime


@dataclass(frozen=True)
class Work:
    """Job: prune a network, or add to its retraining.

    Attributes:
        workload: Its facts.
        data: What is known of its data.
        state: Weights of the network, in the type in which they were stored.
        widths: Widths of its layers.
        ratio: Share of filters to remove.
        recipe: What training in the stage does.
        seed: The run's seed.
        runtime: Where it computes.
        precision: Arithmetic.
        prunable: Patterns of the layers that may lose filters.
        skip: Patterns taken out again.
        held: Weights that may differ from zero, by layer.
        snapshot: State in which an earlier attempt was stopped.
        retrains: Whether the stage is retraining: the network is pruned already.
        is_accuracy: Whether the metric is accuracy.
        knows_initial: Whether the referee can give the base model's earlier weights.
        clipped: Whether the recipe's steps are all that there are, fewer than the method declares.
        calibration: Examples that all methods score with; 0: each draws its own.
        teacher: Where the recipe has distillation, weights of the dense base, and what is kept beside them.
    """

    workload: Workload
    data: Data
    state: Mapping[str, torch.Tensor]
    widths: Mapping[str, int]
    ratio: float
    recipe: Recipe
    seed: int
    runtime: Runtime
    precision: str
    prunable: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    held: Mapping[str, torch.Tensor] = field(default_factory=dict)
    snapshot: Snapshot | None = None
    retrains: bool = False
    is_accuracy: bool = True
    knows_initial: bool = False
    clipped: bool = False
    calibration: int = 0
    teacher: tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]] | None = None


@dataclass(frozen=True)
class _Elsewhere:
    """A training split that the referee holds."""

    count: int
    shape: tuple[int, ...]
    labels: torch.Tensor

    def __len__(self) -> int:
        return self.count


@dataclass(frozen=True)
class HandedOut(Dataset):
    """Data of which the referee hands out batches of the training split; the others are not here.

    Attributes:
        line: To the referee.
        whole: Whether inputs are whole numbers.
    """

    line: Line | None = None
    whole: bool = False

    @classmethod
    def of(cls, data: Data, line: Line, device: torch.device) -> HandedOut:
        """What a job's data look like from here."""
        nothing = Part(torch.empty(0, *data.shape), torch.empty(0, dtype=torch.int64))
        # Two objects: the trainer tells splits apart by identity.
        validation, test = replace(nothing), replace(nothing)
        train: Any = _Elsewhere(data.count, data.shape, torch.empty(0, dtype=torch.int64, device=device))
        splits = train, validation, test
        return cls(data.config, data.classes, *splits, data.split_digest, line=line, whole=data.whole)

    def example(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """A zero input of batch 1."""
        return torch.zeros(1, *self.shape, dtype=torch.int64 if self.whole else dtype)

    def batches(
        self,
        seed: int,
        stream: str,
        epoch: int,
        batch: int,
        dtype: torch.dtype = torch.float32,
        start: int = 0,
        share: Share = WHOLE,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches as the referee makes them, see :meth:`Dataset.batches`: whole ones; the seed is always the run's."""
        assert self.line is not None and share == WHOLE
        device, number = self.train.labels.device, start
        while True:
            self.line.say("batch", stream=stream, epoch=epoch, size=batch, number=number, double=dtype == torch.float64)
            found = self.line.listen()
            if found is None:
                return
            images, labels = found
            yield images.to(device), labels.to(device)
            number += 1


@dataclass(frozen=True)
class _ByTheReferee(Measure):
    """The metric, which the referee measures: nothing of the held-out splits comes back."""

    line: Line | None = None

    @property
    def closely(self) -> bool:
        """Always: the trainer then asks here after every epoch."""
        return True

    def evaluate(self, model: nn.Module, dataset: Dataset, part: Any, *_: Any, **__: Any) -> Score:
        """Show the network to the referee, once for both splits."""
        assert self.line is not None
        if part is dataset.validation:
            self.line.say("epoch", model.state_dict())
        return Score(float("nan"), float("nan"), np.zeros(0, dtype=bool))

    def value(self, score: Score) -> float:
        """It is not known here."""
        return float("nan")


class _KeptThere(Checkpoint):
    """A checkpoint that the referee keeps."""

    def __init__(self, line: Line, snapshot: Snapshot | None) -> None:
        self._line, self._snapshot = line, snapshot

    def save(self, snapshot: Snapshot) -> None:
        """Give the state to the referee."""
        self._line.say("save", snapshot.tensors, snapshot=snapshot.facts)

    def discard(self) -> None:
        """Have it forgotten."""
        self._line.say("discard")

    def load(self) -> Snapshot | None:
        """What the referee kept of an earlier attempt."""
        return self._snapshot


class _Shown(Pictures):
    """Images that the referee did not hand out are shown to it: only it can tell whether they are held-out ones."""

    def __init__(self, line: Line, shape: tuple[int, ...]) -> None:
        self.foreign = 0
        self.held_out = 0
        self._line, self._shape, self._shown = line, shape, 0

    def admit(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """The referee knows what it hands out."""

    def see(self, images: torch.Tensor) -> None:
        """Count a batch, and show it."""
        if images.is_meta or tuple(images.shape[1:]) != self._shape:
            return
        self.foreign += len(images)
        shown = images.detach()[: max(0, SHOWN_IMAGES - self._shown)]
        self._shown += len(shown)
        if len(shown):
            self._line.say("foreign", {"images": shown.float() if shown.is_floating_point() else shown})

    def compare(self) -> int:
        """The referee does."""
        return 0


class _Task(PruningTask):
    """A task that tells the referee what the weights are after the first steps: a repetition is compared by that."""

    def __init__(self, line: Line, clipped: bool, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.__line, self.__steps, self.__calls = line, 0, 0
        self.__clipped = clipped

    def train(self, steps: int | None = None, hooks: Hooks | None = None) -> None:
        """Train, see :meth:`PruningTask.train`."""
        if self.__clipped:
            self.__calls += 1
            if self.__calls > MOST_CALLS:
                raise MethodError("it trains until something holds that never does with fewer steps")
            steps = min(self.steps if steps is None else steps, self.steps - self.__steps)
            if steps <= 0:
                return
        hooks = hooks or Hooks()
        after = hooks.after_step

        def after_step(step: int) -> None:
            if after is not None:
                after(step)
            self.__steps += 1
            if self.__steps == REPEATED_STEPS:
                self.__line.say("began", digest=digest(self.model))

        super().train(steps, replace(hooks, after_step=after_step))


def describe(line: Line, source: MethodSource) -> None:
    """Say what a method declares, then answer questions until the referee hangs up."""
    method = source.create()
    cls = type(method)
    scratch = isinstance(method, ScratchArm)
    parameters = recordable(method)
    line.say(
        "described",
        module=cls.__module__,
        name=cls.__qualname__,
        description=getdoc(cls) or "",
        summary=method.summary(),
        begins=source.begins(),
        scratch=scratch,
        follows_protocol=bool(getattr(method, "follows_protocol", False)),
        published=None if method.published is None else asdict(method.published),
        card=asdict(method.card),
        parameters=parameters,
        pattern=int(method.pattern()),
        distillation=None if (soft := taught(method)) is None else soft.model_dump(),
        read={str(reader): sorted(map(str, found)) for reader, found in heard_by().items()},
        **{name: getattr(method, name) for name in ("prunes", "rewrites", "granularity", "scope", "in_retraining")},
    )
    while True:
        question: Ask = line.listen()
        try:
            line.say("answer", value=_asked(source.create(), question))
        except HungUpError:
            raise
        except Exception as error:
            _explain(line, error)


def _asked(method: Method, question: Ask) -> Any:
    """What a method says to a question, as JSON."""
    if question.what == "skip":
        reason = method.skip(*question.arguments)
        return None if reason is None else str(reason)
    if question.what == "recipe":
        assert isinstance(method, ScratchArm)
        return method.recipe(*question.arguments).model_dump(mode="json", exclude_unset=True)
    budget = method.budget(*question.arguments)
    if not isinstance(budget, Budget):
        raise MethodError(f"method '{method.name}': budget() must return a Budget, not {type(budget).__name__}")
    return {one.name: getattr(budget, one.name) for one in fields(budget)}


def prune(line: Line, source: MethodSource, work: Work, reach: Reach) -> None:
    """Let a method prune, and tell what came of it."""
    consumption = Consumption()
    with Operations(consumption.compute):
        method = source.create()
    dataset = HandedOut.of(work.data, line, torch.device(work.runtime.device))
    model = _network(work)
    layers = prunable_layers(model, dataset.example(), work.prunable, work.skip, method.granularity)
    watch = Watch(model, own_modules(model, layers), _Shown(line, dataset.shape))

    def initial(epoch: int) -> Mapping[str, torch.Tensor]:
        line.say("initial", epoch=int(epoch))
        found = line.listen()
        if isinstance(found, str):
            raise MethodError(found)
        return {name: tensor.to(work.runtime.device) for name, tensor in found.items()}

    with Meter(model, consumption, watch.pictures.see, dataset.example(), by_operation=True) as meter:
        task = _Task(
            line,
            work.clipped,
            model,
            layers,
            work.workload,
            work.ratio,
            work.recipe,
            dataset,
            work.seed,
            meter,
            method.name,
            work.precision,
            _KeptThere(line, work.snapshot),
            None,
            watch,
            None,
            shapes.target(work.workload, work.ratio, method.granularity, method.scope),
            initial if work.knows_initial else None,
            _measure(work, line),
            work.held,
            work.calibration,
        )
        with watch:
            answer = decide(method, task)
    line.say(
        "pruned",
        {**_under("model", model.state_dict()), **_under("mask", answer.masks)},
        kept=answer.kept,
        granularity=method.granularity,
        scope=method.scope,
        consumption=asdict(meter.consumption),
        history=asdict(task.history),
        epoch_starts=task.epoch_starts,
        rewritten=sorted(watch.rewritten),
        touched=sorted(watch.touched),
        foreign=watch.pictures.foreign,
        reached=sorted(reach.found),
    )


def retrain(line: Line, source: MethodSource, work: Work, reach: Reach) -> None:
    """Retrain a pruned network with what its method adds, and tell what came of it."""
    method = source.create()
    dataset = HandedOut.of(work.data, line, torch.device(work.runtime.device))
    model = _network(work)
    state: dict[str, Any] = {}
    steps = work.recipe.total_steps(steps_per_epoch(work.data.count, work.recipe.batch))
    hooks = adds(method, RetrainingTask(model, work.workload, work.ratio, steps, state))
    teacher = None
    if work.teacher is not None and work.recipe.distillation is not None:
        state_of_base, beside = work.teacher
        base = _network(replace(work, state=state_of_base, widths={}))
        teacher = Teacher(base, work.recipe.distillation, work.precision, beside)
    with Meter(model, example=dataset.example(), by_step=True) as meter:
        trainer = Trainer(
            model,
            dataset,
            work.recipe,
            work.seed,
            "retrain",
            meter,
            work.precision,
            _KeptThere(line, work.snapshot),
            None,
            state,
            work.held,
            measure=_measure(work, line),
            teacher=teacher,
        )
        trainer.fit(hooks)
    line.say(
        "retrained",
        _under("model", model.state_dict()),
        consumption=asdict(meter.consumption),
        history=asdict(trainer.history),
        training_seconds=trainer.training_seconds,
        taught="" if teacher is None else teacher.digest,
        reached=sorted(reach.found),
    )


def _network(work: Work) -> nn.Module:
    """The network of a job, placed as the referee would place it."""
    model = shapes.network(work.workload, dict(work.widths))
    take(model, dict(work.state))
    return place(model, work.runtime.device, work.precision)


def _measure(work: Work, line: Line) -> Measure:
    # The trainer keeps two more curves where the metric is not accuracy.
    return _ByTheReferee("accuracy" if work.is_accuracy else "elsewhere", None, line)


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def _explain(line: Line, error: BaseException) -> None:
    """Tell what went wrong: one line, and where."""
    line.say(
        "error",
        type=type(error).__name__,
        text=str(error) if isinstance(error, AuditError) else f"raised {one_line(error)}",
        traceback="".join(traceback.format_exception(error)),
    )


def serve(line: Line) -> None:
    """Be one method's process: begin as told, do the one job, and end."""
    start: Start = line.listen()
    # Workers of data loaders need shared memory; in one that others share, a repetition would find a note.
    defined_in = [start.source.path] if start.source.path is not None else []
    memory = sandbox.own_memory([start.folder, start.scratch, *map(Path, start.path), *defined_in])
    with suppress(OSError, AttributeError):
        # Whoever gets a namespace of its own loses this.
        sandbox.end_with_parent()
    job = line.listen()
    os.chdir(start.folder)
    os.environ.clear()
    os.environ.update(start.environment, TMPDIR=str(start.scratch), XDG_CACHE_HOME=str(start.scratch))
    tempfile.tempdir = str(start.scratch)
    sys.path[:] = start.path
    bench = None
    # Whatever is read of the data, their sizes among it, is read before they are out of reach.
    if isinstance(job, Check):
        from pruneaudit.method.conformance import Bench

        bench = Bench(start.source, job.workload, job.runtime)
    elif isinstance(job, Work):
        job.runtime.prepare()
        shapes.costs(job.workload)
    # Whoever draws from the global generators draws something else in every process: a repetition shows it.
    random.seed()
    np.random.seed()
    torch.seed()
    hidden = [path for paths in start.off_limits.values() for path in paths]
    start.limits.impose()
    line.say("confined", by=sandbox.confine(hidden, start.scratch, memory))
    with Reach(start.off_limits, everywhere=True, own=start.scratch) as reach, listening():
        try:
            if bench is not None:
                from pruneaudit.method.conformance import METHOD_CHECKS, SCRATCH_CHECKS

                {**METHOD_CHECKS, **SCRATCH_CHECKS}[job.name](bench)
                line.say("kept")
            elif isinstance(job, Describe):
                describe(line, start.source)
            else:
                (retrain if job.retrains else prune)(line, start.source, job, reach)
        except Exception as error:
            if start.limits.memory and is_out_of_memory(error):
                most = start.limits.memory / 2**30
                raise MethodError(
                    f"method '{start.source.name}' wants more memory than the {most:.1f} GiB that its process may "
                    "have; run fewer workers (-n), or have it keep less"
                ) from error
            if reach.found and "PermissionError" in f"{type(error).__name__}: {error}":
                place = min(reach.found)
                raise MethodError(
                    f"method '{start.source.name}' opens {place}; a method has no business there, and cannot"
                ) from error
            raise


def _be_a_child(end: socket.socket) -> None:
    """What a fork does: never returns."""
    line, status = Line(end, most=None), 1
    try:
        try:
            serve(line)
            status = 0
        except HungUpError:
            pass  # the referee has heard enough
        except BaseException as error:
            _explain(line, error)
    except BaseException:
        pass
    finally:
        # Threads, exit handlers and destructors of a method have no say any more.
        os._exit(status)


def _print_into(*ends: int) -> None:
    """Print into pipes of one's own, and share no open file with who comes later: its place and flags are notes."""
    for number, end in enumerate((os.open(os.devnull, os.O_RDONLY), *ends)):
        os.dup2(end, number)
        os.close(end)
    for stream in (sys.stdout, sys.stderr):
        # A method's process ends without asking what is still to be printed.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)


def _watch_over(door: socket.socket, end: socket.socket, prints: Sequence[int]) -> None:
    """Fork a method's process, and see that nothing of it is left behind its end; never returns.

    What it started may have left its group: whoever is orphaned becomes a child of this process.
    """
    status = 1
    try:
        # Only Linux knows it (``man 2 prctl``, PR_SET_CHILD_SUBREAPER); elsewhere the group is ended alone.
        with suppress(OSError, AttributeError):
            sandbox.adopt_orphans()
        # Nor do they go on for nobody, where whoever asked for them was killed.
        with suppress(OSError, AttributeError):
            sandbox.end_with_parent()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        pid = os.fork()
        if not pid:
            door.close()
            # No terminal is its own: what is set there stays.
            os.setsid()
            with suppress(OSError, AttributeError):
                sandbox.end_with_parent()
            _print_into(*prints)
            _be_a_child(end)
        end.close()
        for one in prints:
            os.close(one)
        door.sendall(pid.to_bytes(8, "big") + os.getpid().to_bytes(8, "big"))
        door.close()
        os.waitpid(pid, 0)
        _end_descendants()
        status = 0
    finally:
        os._exit(status)


def _end_descendants() -> None:
    """End the children of this process, and whoever becomes one thereby."""
    while True:
        for entry in Path("/proc").glob("[0-9]*/stat"):
            # The name of a program may hold anything, brackets as well.
            with suppress(OSError, ValueError, IndexError):
                if int(entry.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                    os.kill(int(entry.parent.name), signal.SIGKILL)
        try:
            os.waitpid(-1, 0 if Path("/proc/self/stat").exists() else os.WNOHANG)
        except ChildProcessError:
            return


def main() -> None:
    """Fork a process for each connection that comes in at the standard input, until the referee is gone."""
    # Interrupts of the terminal are the referee's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Children are not waited for: what they end with is heard on their line.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(fileno=os.dup(0)) as door:
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        door.sendall(b"!")
        while True:
            said, ends, _, _ = socket.recv_fds(door, 1, 3)
            if not said:
                return
            if said == WORKS:
                for name in WORKSHOP:
                    importlib.import_module(name)
            # No fork looks for garbage in what is here already, and so none copies it.
            gc.freeze()
            if not os.fork():
                _watch_over(door, socket.socket(fileno=ends[0]), ends[1:])
            for one in ends:
                os.close(one)
