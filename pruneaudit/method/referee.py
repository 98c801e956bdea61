"""Hands out to a method's process what it asks for, counts it, and evaluates what it trains.

Nothing that is measured of validation and test images goes back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruneaudit.catalog.discovery import MethodSource
from pruneaudit.errors import MethodError, one_line
from pruneaudit.method import child
from pruneaudit.method.channel import Message
from pruneaudit.method.conduct import Job, refuse_another_network
from pruneaudit.method.limits import Limits
from pruneaudit.method.process import Process
from pruneaudit.method.task import CALIBRATION
from pruneaudit.training.checkpoint import Checkpoint, Snapshot
from pruneaudit.training.loop import History, Progress
from pruneaudit.training.watch import Pictures
from pruneaudit.workloads.data import Dataset
from pruneaudit.workloads.recipes import steps_per_epoch

#: Passes over the training split that a method may score with, besides the images that it declares.
MOST_PASSES = 100
#: Passes that it may train with beyond twice what it declares, before it is stopped.
SPARE_PASSES = 10
#: Copies of a network that it may say at once, and bytes of what else: a state holds what its optimiser keeps.
COPIES, SPARE_TENSORS = 16, 1 << 24
#: What a method's process may say besides asking for batches: images that it shows, weights that it asks for.
MOST_WORDS = 20_000


@dataclass
class Heard:
    """What came of a method's work in one process.

    Attributes:
        message: Its last word.
        began: Digest of the weights after its first steps; empty: it took no so many.
        history: Curves of its training: those of the held-out splits as the referee measured them.
        trained: Training images that were handed out.
        scored: Images that were handed out for scores.
        resumed: Epochs that an earlier attempt had done.
        isolation: What kept it apart.
    """

    message: Message | None = None
    began: str = ""
    history: History = field(default_factory=History)
    trained: int = 0
    scored: int = 0
    resumed: int = 0
    isolation: str = ""


class Referee:
    """Hands out to one method's process what it asks for, and keeps what it says.

    Args:
        source: The method.
        job: What it works on.
        network: A network in which its weights are evaluated.
        work: The same, as it is told to the process.
        stream: What begins the names of its streams of training batches.
        declared: Images that it declares to score with.
        pictures: What looks at foreign images.
        checkpoint: Where its state is kept, or None.
        progress: Called after every epoch, or None.
        numbers: Number that the process is told for each class, ``[classes]``; None: its own.
    """

    def __init__(
        self,
        source: MethodSource,
        job: Job,
        network: nn.Module,
        work: child.Work,
        stream: str,
        declared: int = 0,
        pictures: Pictures | None = None,
        checkpoint: Checkpoint | None = None,
        progress: Progress | None = None,
        numbers: torch.Tensor | None = None,
    ) -> None:
        self._numbers = numbers
        self._source, self._job, self._network, self._work, self._stream = source, job, network, work, stream
        self._pictures, self._checkpoint, self._progress = pictures, checkpoint, progress
        self._batches: dict[tuple[str, int, int], tuple[int, Iterator[Any]]] = {}
        self._heard = Heard()
        self._declared = declared
        self._words = 0

    def hear_out(self, off_limits: Mapping[str, Sequence[Path]], until_began: bool = False) -> Heard:
        """Let a process do the work.

        Args:
            off_limits: What it has no business with.
            until_began: Only its first steps.

        Raises:
            MethodError: It failed.
        """
        heard = self._heard
        snapshot = self._checkpoint.load() if self._checkpoint is not None else None
        if snapshot is not None:
            facts = snapshot.facts
            heard.history = History(**facts["history"])
            heard.resumed, heard.trained = int(facts["epochs_done"]), int(facts.get("handed_out", 0))
            unknown = [math.nan] * len(heard.history.train_loss)
            hidden = {
                name: unknown if curve else [] for name, curve in vars(heard.history).items() if _is_held_out(name)
            }
            snapshot = Snapshot(snapshot.tensors, {**facts, "history": {**facts["history"], **hidden}})
        runtime = self._work.runtime
        limits = Limits.of(runtime.device, runtime.processes)
        images = 8 * child.SHOWN_IMAGES * math.prod(self._work.data.shape)
        tensors = SPARE_TENSORS + COPIES * _size(self._network) + images
        with Process(self._source, off_limits, runtime.patience, True, limits, tensors, runtime.most) as process:
            process.tell(replace(self._work, snapshot=snapshot))
            while True:
                said = process.hear()
                self._count(said)
                if said.kind in ("pruned", "retrained"):
                    heard.message, heard.isolation = said, process.isolation
                    self._check_curves(said.facts)
                    return heard
                if said.kind == "began":
                    heard.began = said.facts["digest"]
                    if until_began:
                        return heard
                    continue
                answer = self._asked(said)
                if said.kind in ("batch", "initial"):
                    process.tell(answer)

    def _count(self, said: Message) -> None:
        """Who talks without end comes to one: an epoch takes few words, batches are counted by their images.

        Raises:
            MethodError: It says too much.
        """
        self._words += said.kind != "batch"
        steps = self._work.recipe.total_steps(steps_per_epoch(self._work.data.count, self._work.recipe.batch))
        if self._words > MOST_WORDS + 4 * steps:
            raise MethodError(f"method '{self._source.name}' says more than {MOST_WORDS + 4 * steps} things")

    def _asked(self, said: Message) -> Any:
        """Do what a process asks for."""
        found: Callable[[Message], Any] | None = {
            "batch": self._batch,
            "initial": self._initial,
            "epoch": self._epoch,
            "save": self._save,
            "discard": self._discard,
            "foreign": self._foreign,
        }.get(said.kind)
        if found is None or (said.kind == "initial" and self._job.initial is None):
            raise MethodError(f"method '{self._source.name}': its process says what is no answer")
        try:
            return found(said)
        except (KeyError, TypeError, ValueError) as error:
            raise MethodError(
                f"method '{self._source.name}': its process says '{said.kind}' and not what: {one_line(error)}"
            ) from None

    def _batch(self, said: Message) -> Any:
        """The next batch of a pass, on the CPU; None: the pass is over."""
        stream, epoch, size, number = (said.facts[name] for name in ("stream", "epoch", "size", "number"))
        # Where all methods score with the same examples, nobody gets others.
        scores = stream == (CALIBRATION if self._job.calibration else f"scoring/{self._source.name}")
        if not scores and stream != self._stream and not stream.startswith(f"{self._stream}/"):
            raise ValueError(f"there is no stream '{stream}' for it")
        dtype = torch.float64 if said.facts["double"] else torch.float32
        key = stream, epoch, size
        at, batches = self._batches.get(key, (-1, iter(())))
        if at != number:
            batches = self._job.dataset.batches(self._job.seed, stream, epoch, size, dtype, number)
        self._batches = {key: (number + 1, batches)}
        found = next(batches, None)
        if found is None:
            return None
        images, labels = found
        if self._numbers is not None:
            labels = self._numbers.to(labels.device)[labels]
        if scores:
            if self._pictures is not None:
                self._pictures.admit(images, labels)
            self._heard.scored += len(labels)
            most = MOST_PASSES * len(self._job.dataset.train) + self._declared
            if self._heard.scored > most:
                raise MethodError(f"method '{self._source.name}' asks for more than {most} images to score with")
        else:
            self._heard.trained += len(labels)
            # One that trains more than it declares is judged, see F501; one that trains without end has to come to one.
            recipe, count = self._work.recipe, len(self._job.dataset.train)
            most = SPARE_PASSES * count + 2 * recipe.images(count)
            if self._heard.trained > most:
                raise MethodError(f"method '{self._source.name}' asks for more than {most} images to train with")
        return images.cpu(), labels.cpu()

    def _initial(self, said: Message) -> Any:
        assert self._job.initial is not None
        try:
            found = self._job.initial(int(said.facts["epoch"]))
        except MethodError as error:
            return str(error)
        return {name: tensor.cpu() for name, tensor in found.items()}

    def _epoch(self, said: Message) -> None:
        """Evaluate the network as it is after an epoch: what it scores stays here."""
        take(self._network, said.tensors, self._source.name)
        job, history = self._job, self._heard.history
        validation, test = (
            job.measure.evaluate(self._network, job.dataset, part, job.precision)
            for part in (job.dataset.validation, job.dataset.test)
        )
        history.note(job.measure, validation, test)
        if self._progress is not None:
            done = len(history.test_accuracy)
            per_epoch = steps_per_epoch(len(job.dataset.train), job.recipe.batch)
            total = max(done, math.ceil(job.recipe.total_steps(per_epoch) / per_epoch))
            self._progress(done, total, job.measure.value(test))

    def _save(self, said: Message) -> None:
        if self._checkpoint is None:
            return
        facts = dict(said.facts["snapshot"])
        curves = {name: curve for name, curve in vars(self._heard.history).items() if _is_held_out(name)}
        facts["history"] = {**facts["history"], **curves}
        facts["handed_out"] = self._heard.trained
        self._checkpoint.save(Snapshot(said.tensors, facts))

    def _discard(self, _said: Message) -> None:
        if self._checkpoint is not None:
            self._checkpoint.discard()
            self._checkpoint = None

    def _foreign(self, said: Message) -> None:
        if self._pictures is not None:
            self._pictures.see(said.tensors["images"])

    def _check_curves(self, facts: Mapping[str, Any]) -> None:
        """Take the curves of the training split from the process."""
        said, history = facts["history"], self._heard.history
        for name in ("train_loss", "train_accuracy", "nonzero"):
            setattr(history, name, said[name])
        points, starts = len(history.test_accuracy), facts.get("epoch_starts", [])
        curves = (history.train_loss, history.train_accuracy, history.nonzero, starts)
        others = any(len(curve) != points for curve in curves if curve or curve is history.train_loss)
        if others or sorted(set(starts)) != starts:
            raise MethodError(f"method '{self._source.name}': its process says too little of its training, or too much")


def _size(model: nn.Module) -> int:
    """Bytes of all tensors of a network."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def _is_held_out(curve: str) -> bool:
    return curve.startswith(("validation", "test"))


def take(model: nn.Module, tensors: Mapping[str, torch.Tensor], name: str) -> None:
    """Give a network the values that a process says.

    Raises:
        MethodError: They are those of another network.
    """
    found = {key.removeprefix("model/"): tensor for key, tensor in tensors.items() if not key.startswith("mask/")}
    refuse_another_network(name, model.state_dict(), found)
    model.load_state_dict(found)


def data_of(dataset: Dataset) -> child.Data:
    """What a method's process is told of a dataset."""
    whole = dataset.example().dtype == torch.int64
    return child.Data(dataset.config, dataset.classes, len(dataset.train), dataset.shape, whole, dataset.split_digest)
