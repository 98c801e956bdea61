"""The one training loop of the project: every stage of every arm goes through it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from pruneaudit.errors import AuditError, ConfigError, unknown
from pruneaudit.measure.accuracy import Score, evaluate, widened
from pruneaudit.measure.metric import BY_ACCURACY, Measure
from pruneaudit.streams import derive, isolated
from pruneaudit.training.averaging import Average
from pruneaudit.training.checkpoint import Checkpoint, Snapshot
from pruneaudit.training.distillation import Teacher
from pruneaudit.training.metering import Consumption, Meter
from pruneaudit.training.mixing import Mixing
from pruneaudit.workloads import optimisers
from pruneaudit.workloads.data import WHOLE, Dataset, Share, Split
from pruneaudit.workloads.models.tensors import state_of, take
from pruneaudit.workloads.recipes import Recipe, steps_per_epoch

Progress = Callable[[int, int, float], None]
#: Looks at a network after an epoch, as it would be delivered, and is told how many are over; changes nothing.
Observer = Callable[[nn.Module, int], None]


class DivergedError(AuditError):
    """The loss is no longer a finite number.

    Args:
        message: One line.
        losses: Training loss of each epoch before.
    """

    def __init__(self, message: str, losses: Sequence[float] = ()) -> None:
        super().__init__(message)
        self.losses = list(losses)


@dataclass
class Hooks:
    """What a method may add to plain training; ``step`` is 0-based within the stage.

    Attributes:
        penalty: Extra loss of a step, or None.
        gradients: Called after the backward pass, before the optimiser's step: may change ``.grad``.
        after_step: Called after the optimiser's step: may change weights.
    """

    penalty: Callable[[int], torch.Tensor | None] | None = None
    gradients: Callable[[int], None] | None = None
    after_step: Callable[[int], None] | None = None


@dataclass
class History:
    """Curves of a training, one value per epoch (the last, partial epoch counts as one).

    Attributes:
        nonzero: Weights of masked layers that are not zero; empty without masks.
        validation_metric: The workload's metric; empty where it is accuracy.
        test_metric: The same of the test split.
    """

    train_loss: list[float] = field(default_factory=list)
    train_accuracy: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    validation_accuracy: list[float] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    nonzero: list[int] = field(default_factory=list)
    validation_metric: list[float] = field(default_factory=list)
    test_metric: list[float] = field(default_factory=list)

    def note(self, measure: Measure, validation: Score, test: Score) -> None:
        """Add what the held-out splits say after an epoch."""
        self.validation_loss.append(validation.loss)
        self.validation_accuracy.append(validation.accuracy)
        self.test_loss.append(test.loss)
        self.test_accuracy.append(test.accuracy)
        if not measure.is_accuracy:
            self.validation_metric.append(measure.value(validation))
            self.test_metric.append(measure.value(test))


class Steps(Protocol):
    """What makes a trainer's steps and evaluations."""

    def run_epoch(self, epoch: int, step: int, total: int) -> tuple[float, int, int]:
        """Train for one epoch, or for what is left of the training.

        Args:
            epoch: 0-based epoch.
            step: Its first step, counted from the beginning of the training.
            total: Steps of the whole training.

        Returns:
            Sum of the images' losses, how many were classified correctly, and how many there were.
        """

    def score(self, part: Split) -> Score:
        """Classify a split, see :func:`evaluate`."""


def clip_gradients(model: nn.Module, recipe: Recipe) -> None:
    """Clip the gradients of a network as a recipe says, if it does."""
    if recipe.clip:
        clip = nn.utils.clip_grad_norm_ if recipe.clip_by == "norm" else nn.utils.clip_grad_value_
        clip(model.parameters(), recipe.clip)


class Trainer:
    """Trains one network by one recipe; resumable between epochs.

    Args:
        model: The network, on its device and in its precision; trained in place.
        dataset: Data on the same device.
        recipe: What to do.
        seed: The run's seed.
        stream: Name of the stream of data order and augmentation.
        meter: Counts what is consumed.
        precision: ``fp32``, ``bf16`` (autocast), ``pure-bf16`` or ``fp64``.
        checkpoint: Where to keep the state between epochs, or None.
        progress: Called after every epoch with (epochs done, epochs in all, the metric on the test split), or None.
        state: Facts and tensors of the method, kept in the checkpoint with ours.
        masks: Which weights may differ from zero, by layer, bool: the others are zero and stay so.
        backend: One of :data:`BACKENDS`.
        measure: The workload's metric.
        share: What of every batch this process trains on, where several train together (:mod:`.ranks`).
        observer: Looks at the network after every epoch, or None.
        teacher: Who adds to the loss where the recipe has distillation; else None.

    Attributes:
        backend: What makes the steps; once fitted, what made them: ``torch`` where the other one could not.
        fallback: Why another backend makes the steps than was asked for, or None.
        per_epoch: Steps of an epoch.
        optimiser: What the recipe asks for, over all parameters.
        average: Moving average of the network, which is evaluated and delivered in its place; None: there is none.

    Raises:
        ConfigError: No such backend, or an optimiser that does not take the network.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        recipe: Recipe,
        seed: int,
        stream: str,
        meter: Meter,
        precision: str = "fp32",
        checkpoint: Checkpoint | None = None,
        progress: Progress | None = None,
        state: dict[str, Any] | None = None,
        masks: Mapping[str, torch.Tensor] | None = None,
        backend: str = "torch",
        measure: Measure | None = None,
        share: Share = WHOLE,
        observer: Observer | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        if backend not in BACKENDS:
            raise unknown("backend", backend, BACKENDS)
        if (recipe.distillation is None) != (teacher is None):
            raise ValueError("a recipe with distillation and a teacher go together")
        self.model = model
        self.dataset = dataset
        self.recipe = recipe
        self.seed = seed
        self.stream = stream
        self.meter = meter
        self.precision = precision
        self.checkpoint = checkpoint
        self.progress = progress
        self.state = {} if state is None else state
        self.masks = masks or {}
        self.backend = backend
        self.measure = measure or BY_ACCURACY
        self.share = share
        self.observer = observer
        self.teacher = teacher
        self.fallback: str | None = None
        self.history = History()
        self.resumed_from = 0
        self.training_seconds = 0.0
        self._masked = [model.get_parameter(f"{name}.weight") for name in self.masks]
        self.per_epoch = steps_per_epoch(len(dataset.train), recipe.batch)
        self.optimiser = optimisers.make(recipe, model, recipe.rate(0, 0, self.per_epoch))
        self.average = Average(model, recipe.ema, recipe.ema_every) if recipe.ema else None

    def fit(self, hooks: Hooks | None = None, until: int | None = None) -> History:
        """Train to the end of the recipe, or for its first epochs only.

        Args:
            hooks: What a method adds.
            until: Epoch after which to stop; None: the recipe's last.

        Raises:
            DivergedError: The loss became NaN or infinite.
        """
        steps = self._steps(hooks or Hooks())
        per_epoch = self.per_epoch
        total = self.recipe.total_steps(per_epoch)
        epochs = math.ceil(total / per_epoch)
        first = self.resume()
        device = next(self.model.parameters()).device
        for epoch in range(first, epochs if until is None else until):
            started = time.perf_counter()
            self.model.train()
            # What a network draws itself, such as dropout, is a function of the same names as the order of its images.
            # Of several ranks each draws its own.
            own = (self.share.number,) if self.share.number else ()
            with isolated(derive(self.seed, self.stream, "network", epoch, *own), device):
                trained = steps.run_epoch(epoch, epoch * per_epoch, total)
            self.training_seconds += time.perf_counter() - started
            self.close_epoch(steps.score, epoch, epochs, *trained)
        return self.history

    def _steps(self, hooks: Hooks) -> Steps:
        """The chosen backend, or torch's where it cannot."""
        steps = BACKENDS[self.backend](self, hooks)
        if isinstance(steps, str):
            self.backend, self.fallback = "torch", steps
            return TorchSteps(self, hooks)
        return steps

    def close_epoch(
        self, score: Callable[[Split], Score], epoch: int, epochs: int, loss: float, hits: int, seen: int
    ) -> None:
        """Evaluate, note the curves and save the state.

        Args:
            score: How the network does on a split; not asked after the last epoch.
            epoch: 0-based epoch that is over.
            epochs: Epochs of the whole training.
            loss: Sum of the images' losses in the epoch.
            hits: How many images were classified correctly.
            seen: How many there were.

        Raises:
            DivergedError: The loss became NaN or infinite.
        """
        history = self.history
        history.train_loss.append(loss / seen)
        history.train_accuracy.append(100.0 * hits / seen)
        if not math.isfinite(history.train_loss[-1]):
            raise DivergedError(
                f"training loss is {history.train_loss[-1]} in epoch {epoch + 1} of {epochs}: it diverged",
                history.train_loss[:-1],
            )
        if self.share.number:
            # The first rank evaluates, keeps and tells.
            return
        is_last = epoch + 1 == epochs
        with self.meter.paused(), self._as_delivered(is_last):
            validation, test = (
                # The last one as records have it: another backend's rounding may push an image over the border.
                self.measure.evaluate(self.model, self.dataset, part, self.precision)
                if is_last or self.measure.closely
                else score(part)
                for part in (self.dataset.validation, self.dataset.test)
            )
            if self.observer is not None:
                self.observer(self.model, epoch + 1)
        history.note(self.measure, validation, test)
        if self._masked:
            history.nonzero.append(sum(int(weight.count_nonzero()) for weight in self._masked))
        if self.checkpoint is not None and not is_last and self.checkpoint.is_due:
            self.checkpoint.save(self._snapshot(epoch + 1))
        if self.progress is not None:
            self.progress(epoch + 1, epochs, self.measure.value(test))

    def _as_delivered(self, for_good: bool) -> AbstractContextManager[None]:
        """The network with the weights that count: its own, or their average."""
        return self.average.delivered(for_good) if self.average is not None else nullcontext()

    def _snapshot(self, epochs_done: int) -> Snapshot:
        tensors = {f"model/{name}": tensor for name, tensor in state_of(self.model).items()}
        numbers: dict[str, dict[str, Any]] = {}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    tensors[f"optimiser/{key}/{name}"] = value
                elif value is not None:
                    numbers.setdefault(key, {})[name] = value
        if self.average is not None:
            tensors |= {f"average/{name}": tensor for name, tensor in self.average.tensors.items()}
        facts: dict[str, Any] = {}
        for key, value in self.state.items():
            if isinstance(value, torch.Tensor):
                tensors[f"state/{key}"] = value
            else:
                facts[key] = value
        return Snapshot(
            tensors,
            {
                "epochs_done": epochs_done,
                # As they are: they are written at once, and a rate for each step makes them long to copy.
                "history": vars(self.history),
                "consumption": vars(self.meter.consumption),
                "optimiser": numbers,
                "training_seconds": self.training_seconds,
                "state": facts,
                **({"ranks": self.share.of} if self.share.of > 1 else {}),
            },
        )

    def resume(self) -> int:
        """Load the last snapshot; return the number of epochs it holds.

        Raises:
            ConfigError: Another number of ranks took it.
        """
        snapshot = self.checkpoint.load() if self.checkpoint is not None else None
        # A snapshot of an earlier version, which kept momentum only, is not gone on from: the stage starts anew.
        if snapshot is None or "optimiser" not in snapshot.facts:
            return 0
        if (before := snapshot.facts.get("ranks", 1)) != self.share.of:
            raise ConfigError(
                f"this training was begun by {before} rank(s) and goes on with as many only, not with {self.share.of}: "
                f"another number trains other weights; give ranks = {before}, or begin it anew without its checkpoint"
            )

        def below(prefix: str) -> dict[str, torch.Tensor]:
            found = snapshot.tensors.items()
            return {name.removeprefix(prefix): tensor for name, tensor in found if name.startswith(prefix)}

        take(self.model, below("model/"))
        self._restore_optimiser(below("optimiser/"), snapshot.facts["optimiser"])
        if self.average is not None:
            self.average.restore(below("average/"))
        facts = snapshot.facts
        self.history = History(**facts["history"])
        self.training_seconds = facts["training_seconds"]
        # Scoring before the training was repeated by the resumed method; the snapshot already counts it.
        self.meter.restore(Consumption(**facts["consumption"]))
        device = next(self.model.parameters()).device
        self.state.update(facts["state"], **{name: tensor.to(device) for name, tensor in below("state/").items()})
        self.resumed_from = int(facts["epochs_done"])
        return self.resumed_from

    def _restore_optimiser(self, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Mapping[str, Any]]) -> None:
        """Give the optimiser the state that a snapshot holds: tensors by ``KEY/PARAMETER``, numbers by both."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        ordered = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
        places = {names[parameter]: place for place, parameter in enumerate(ordered)}
        state: dict[int, dict[str, Any]] = {}
        for path, tensor in tensors.items():
            key, _, name = path.partition("/")
            state.setdefault(places[name], {})[key] = tensor
        for key, values in numbers.items():
            for name, value in values.items():
                state.setdefault(places[name], {})[key] = value
        groups = self.optimiser.state_dict()["param_groups"]
        # Torch knows on which device the optimiser wants each tensor; type and layout are to be those that it had.
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})
        for place, kept in state.items():
            parameter = ordered[place]
            values = self.optimiser.state[parameter]
            for key, value in kept.items():
                if isinstance(value, torch.Tensor):
                    layout = _layout(parameter) if value.shape == parameter.shape else torch.contiguous_format
                    values[key] = value.to(values[key].device).contiguous(memory_format=layout)


class TorchSteps:
    """Steps by torch, on any device, for any network and method.

    Args:
        trainer: Whose network, data, recipe, optimiser and meter it works on.
        hooks: What a method adds.
    """

    def __init__(self, trainer: Trainer, hooks: Hooks) -> None:
        recipe = trainer.recipe
        self._trainer = trainer
        self._hooks = hooks
        self._masked = [trainer.model.get_parameter(f"{name}.weight") for name in trainer.masks]
        self._masks = [
            mask.to(weight).contiguous(memory_format=_layout(weight))
            for mask, weight in zip(trainer.masks.values(), self._masked, strict=True)
        ]
        self._mixing = Mixing(recipe, trainer.dataset.classes) if recipe.mixup or recipe.cutmix else None
        self._sums: list[tuple[torch.Tensor, torch.Tensor]] = []
        #: What images pass: the network, or what steps in for it.
        self._network: nn.Module = trainer.model

    def run_epoch(self, epoch: int, step: int, total: int) -> tuple[float, int, int]:
        """Train for one epoch, see :class:`Steps`."""
        trainer, recipe = self._trainer, self._trainer.recipe
        dtype, seen = next(trainer.model.parameters()).dtype, 0
        self._sums = []
        with trainer.meter.noting(self._besides(), trainer.optimiser):
            share = replace(trainer.share, before=1) if self._mixing and trainer.share.of > 1 else trainer.share
            batches = trainer.dataset.batches(trainer.seed, trainer.stream, epoch, recipe.batch, dtype, share=share)
            for images, labels in islice(batches, total - step):
                if self._mixing is not None:
                    images, labels = self._mixing(images, labels, trainer.seed, trainer.stream, epoch, step)
                    images, labels = images[share.before :], labels[share.before :]
                with trainer.meter.stepping(len(labels)):
                    self._step(images, labels, epoch, step)
                seen += len(labels)
                step += 1
        losses, hits = zip(*self._sums, strict=True)
        return self._totals(torch.stack(losses).sum(), torch.stack(hits).sum(), seen)

    def _step(self, images: torch.Tensor, labels: torch.Tensor, epoch: int, step: int) -> None:
        """One optimiser step on a batch; labels are classes ``[B]`` or shares of classes ``[B, classes]``."""
        trainer, hooks, recipe = self._trainer, self._hooks, self._trainer.recipe
        optimiser = trainer.optimiser
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate(epoch, step, trainer.per_epoch)
        self._descend(images, labels, step)
        if hooks.gradients:
            hooks.gradients(step)
        if self._masks:
            # A weight that is zero and never moved stays zero: neither momentum nor weight decay move it.
            torch._foreach_mul_([weight.grad for weight in self._masked if weight.grad is not None], self._masks)
        clip_gradients(trainer.model, recipe)
        optimiser.step()
        if self._masks and recipe.optimiser.name != "sgd":
            # There are optimisers that move a weight by the gradients of others.
            with torch.no_grad():
                for weight, mask in zip(self._masked, self._masks, strict=True):
                    weight.mul_(mask)
        if hooks.after_step:
            hooks.after_step(step)
        if trainer.average is not None:
            trainer.average.step(step)

    def _descend(self, images: torch.Tensor, labels: torch.Tensor, step: int) -> None:
        """Gradients of the mean loss of a batch, which passes in one part or in several."""
        trainer, hooks, recipe = self._trainer, self._hooks, self._trainer.recipe
        is_bf16, size = trainer.precision == "bf16", recipe.micro_batch
        parts = [(images, labels)]
        if recipe.accumulate > 1:
            parts = list(zip(images.split(size), labels.split(size), strict=True))
        for number, (some, of_some) in enumerate(parts):
            trainer.meter.admit(some)
            with self._gathering(number == len(parts) - 1):
                with torch.autocast(some.device.type, torch.bfloat16, enabled=is_bf16):
                    logits = self._network(some)
                logits = widened(logits)
                loss = F.cross_entropy(logits, of_some, label_smoothing=recipe.label_smoothing)
                objective = loss if trainer.teacher is None else trainer.teacher(loss, logits, some, trainer.meter)
                objective = objective if len(parts) == 1 else objective * (len(some) / len(images))
                if (weight := self._weight(step)) != 1:
                    objective = objective * weight
                if not number:
                    penalty = hooks.penalty(step) if hooks.penalty else None
                    objective = objective if penalty is None else objective + penalty
                    trainer.optimiser.zero_grad(set_to_none=True)
                objective.backward()
            # Summed on the device: reading a value every step would stall it.
            classes = of_some.argmax(dim=1) if of_some.is_floating_point() else of_some
            hits = (logits.detach().argmax(dim=1) == classes).sum()
            if classes.dim() > 1:
                # Of texts an example is as right as its tokens are.
                hits = hits / classes[0].numel()
            self._sums.append((loss.detach() * len(of_some), hits))

    def _totals(self, loss: torch.Tensor, hits: torch.Tensor, seen: int) -> tuple[float, int, int]:
        """What an epoch's steps come to: sum of losses, right answers, images."""
        return float(loss), int(hits), seen

    def _besides(self) -> dict[str, Any]:
        """What is done beside the optimiser and a plain loss, for the record."""
        return _besides(self._trainer.recipe)

    def _weight(self, step: int) -> float:
        """What the loss of a step counts, where several processes make it."""
        return 1.0

    def _gathering(self, is_last: bool) -> AbstractContextManager[None]:
        """Around a pass, where several processes make a step: gradients are gathered after its last one."""
        return nullcontext()

    def score(self, part: Split) -> Score:
        """Classify a split, see :class:`Steps`."""
        return evaluate(self._trainer.model, self._trainer.dataset, part, self._trainer.precision)


def _besides(recipe: Recipe) -> dict[str, Any]:
    """What the loop does beside the optimiser and a plain loss, for the record; nothing where nothing was asked for."""
    every = f", every {recipe.ema_every} steps" if recipe.ema_every > 1 else ""
    found = {
        "no_decay": list(recipe.no_decay),
        "mixup": recipe.mixup,
        "cutmix": recipe.cutmix,
        "ema": f"{recipe.ema:g}{every}" if recipe.ema else "",
        "clip": f"{recipe.clip_by} {recipe.clip:g}" if recipe.clip else "",
        "accumulation": recipe.accumulate if recipe.accumulate > 1 else 0,
        "distillation": f"the dense base teaches: {recipe.distillation}" if recipe.distillation else "",
    }
    return {key: value for key, value in found.items() if value}


def _layout(tensor: torch.Tensor) -> torch.memory_format:
    """Memory layout of a parameter: a restored momentum buffer must have the same."""
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


#: What can make the steps, by name, or says why it cannot. Another way to make them adds itself here.
BACKENDS: dict[str, Callable[[Trainer, Hooks], Steps | str]] = {"torch": TorchSteps}
