"""How one stage trains. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pruneaudit.schema import Frozen
from pruneaudit.workloads.schedule import Schedule


class Optimiser(Frozen):
    """A class of ``torch.optim`` and its options.

    Attributes:
        name: Name of the class in lower case.
        options: What it takes besides parameters, rate and weight decay (and of SGD besides momentum and nesterov),
            sorted by name; what is not stated is torch's default.
    """

    name: str = "sgd"
    options: tuple[tuple[str, Any], ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _from_table(cls, given: object) -> object:
        # As TOML has it: a name, or a table of the name and the options.
        if isinstance(given, str):
            given = {"name": given}
        if not isinstance(given, Mapping):
            return given
        table = dict(given)
        options = table.pop("options", ())
        pairs = dict(options.items() if isinstance(options, Mapping) else options)
        if not isinstance(name := table.pop("name", "sgd"), str):
            raise ValueError("name: expected the name of a class of torch.optim, such as 'adamw'")
        return {"name": name.lower(), "options": sorted({**pairs, **table}.items())}

    @field_validator("options")
    @classmethod
    def _hashable(cls, options: tuple[tuple[str, Any], ...]) -> tuple[tuple[str, Any], ...]:
        # A workload is a key of caches, and JSON has lists where torch wants tuples.
        return tuple((name, _tuples(value)) for name, value in options)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


class Distillation(Frozen):
    """What a recipe with a teacher minimises, after Hinton et al. 2015 (arXiv 1503.02531), sec. 2.

    (1 - weight) · cross entropy + weight · T² · KL(teacher ‖ network), both distributions softened by the
    temperature T: softmax(logits / T). T² keeps the share of the soft targets' gradients as it is when T changes. Of
    texts the mean is over tokens.

    Attributes:
        temperature: T.
        weight: Share of the soft targets.
    """

    temperature: float = Field(default=4.0, gt=0)
    weight: float = Field(default=0.9, gt=0, le=1)

    def __str__(self) -> str:
        return f"temperature {self.temperature:g}, weight {self.weight:g}"


class Recipe(Frozen):
    """How one stage trains, by epochs or by steps: SGD with momentum where nothing else is said.

    Attributes:
        epochs: Length in passes over the training split; the schedule then counts epochs.
        steps: Length in optimiser steps (the pruning stage's unit); the schedule then counts steps.
        lr: Learning-rate schedule in its text form, see :mod:`pruneaudit.workloads.schedule`.
        start: Steps of the schedule that an earlier stage has used up (a topped-up pruning stage under S4.2).
        span: Steps of the whole schedule where this stage is a part of it; 0: the stage's own length.
        batch: Images per optimiser step.
        optimiser: What makes the steps.
        momentum: SGD momentum.
        weight_decay: Weight decay, as the optimiser understands it: L2 coefficient of SGD, decoupled in AdamW.
        nesterov: Nesterov momentum of SGD.
        no_decay: Parameters without weight decay: ``bias``, ``norm``, or shell patterns of their names.
        label_smoothing: Mass moved from the true class to all classes.
        mixup: Alpha of mixup's Beta distribution (Zhang et al. 2018); 0: none. With ``cutmix``, each batch gets one.
        cutmix: Alpha of CutMix's (Yun et al. 2019); 0: none.
        ema: Decay of the exponential moving average of weights and statistics, which is then what is evaluated and
            delivered; 0: none.
        ema_every: Optimiser steps between two updates of the average.
        clip: Largest norm of all gradients together, or largest value; 0: not clipped.
        clip_by: What ``clip`` bounds.
        accumulate: Parts of a batch that pass the network one after the other before each step.
        ranks: Processes that train together, each on a device of its own and on its part of every batch.
        sync_batch_norm: Whether batch normalisation takes its statistics over all ranks (``SyncBatchNorm``); else each
            rank normalises by its own part, and the running statistics are those of rank 0.
        distillation: What a teacher adds to the loss: the dense base, frozen (retraining); None: labels alone.
    """

    epochs: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=0)
    lr: str
    start: int = Field(default=0, ge=0)
    span: int = Field(default=0, ge=0)
    batch: int = Field(ge=1)
    optimiser: Optimiser = Optimiser()
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    nesterov: bool = False
    no_decay: tuple[str, ...] = ()
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    mixup: float = Field(default=0.0, ge=0)
    cutmix: float = Field(default=0.0, ge=0)
    ema: float = Field(default=0.0, ge=0, lt=1)
    ema_every: int = Field(default=1, ge=1)
    clip: float = Field(default=0.0, ge=0)
    clip_by: Literal["norm", "value"] = "norm"
    accumulate: int = Field(default=1, ge=1)
    ranks: int = Field(default=1, ge=1)
    sync_batch_norm: bool = False
    distillation: Distillation | None = None

    @field_validator("lr")
    @classmethod
    def _canonical(cls, text: str) -> str:
        return str(Schedule.parse(text))

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum above 0")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.optimiser.name != "sgd":
            for key in ("momentum", "nesterov"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"{key}: belongs to sgd; state options of {self.optimiser.name} under optimiser")
        if self.batch % self.accumulate:
            raise ValueError(f"accumulate: a batch of {self.batch} cannot be {self.accumulate} equal parts")
        if self.batch % (self.ranks * self.accumulate):
            each = f" of {self.accumulate} equal parts each" if self.accumulate > 1 else ""
            raise ValueError(f"ranks: a batch of {self.batch} cannot be {self.ranks} equal parts{each}")
        if self.no_decay and not self.weight_decay:
            raise ValueError("no_decay: there is no weight_decay to leave parameters out of")
        for key, needed in (("ema_every", "ema"), ("clip_by", "clip")):
            if getattr(self, key) != type(self).model_fields[key].default and not getattr(self, needed):
                raise ValueError(f"{key}: does nothing without {needed}")
        if self.sync_batch_norm and self.ranks == 1:
            raise ValueError("sync_batch_norm: does nothing without ranks")
        if self.distillation is not None and self.ranks > 1:
            raise ValueError("distillation: one process trains with a teacher; leave out ranks")
        if reason := too_warm(self.schedule, self.epochs):
            raise ValueError(f"lr: {reason}")
        return self

    @property
    def schedule(self) -> Schedule:
        """The learning-rate schedule, parsed."""
        return Schedule.parse(self.lr)

    @property
    def micro_batch(self) -> int:
        """Images that pass the network at once, on each rank."""
        return self.batch // self.ranks // self.accumulate

    def rate(self, epoch: int, step: int, per_epoch: int | None = None) -> float:
        """Learning rate of an optimiser step, given its epoch and its number (both 0-based).

        Args:
            epoch: The epoch.
            step: The step, counted from the beginning of the stage.
            per_epoch: Steps of an epoch; only a schedule in epochs whose rate changes at every step asks for it.

        Raises:
            ValueError: It asks, and was not told.
        """
        schedule = self.schedule
        if self.epochs is None:
            return schedule.rate(self.start + step, self.span or self.start + (self.steps or 0))
        if schedule.per_step:
            if per_epoch is None:
                raise ValueError("a rate that changes at every step needs the steps of an epoch")
            return schedule.rate(step, self.epochs * per_epoch, per_epoch)
        return schedule.rate(epoch, self.epochs)

    def last_rate(self, per_epoch: int) -> float:
        """Learning rate that the stage ends at, given the steps of an epoch."""
        if self.epochs is None:
            return self.schedule.last_rate(self.span or self.start + (self.steps or 0))
        unit = per_epoch if self.schedule.per_step else 1
        return self.schedule.last_rate(self.epochs * unit, unit)

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimiser steps of the whole stage."""
        return self.epochs * steps_per_epoch if self.epochs is not None else (self.steps or 0)

    def images(self, train: int) -> int:
        """Images of the whole stage over a split of ``train`` images: the last batch of a pass is smaller."""
        per_epoch = steps_per_epoch(train, self.batch)
        passes, rest = divmod(self.total_steps(per_epoch), per_epoch)
        return passes * train + min(rest * self.batch, train)

    def for_epochs(self, epochs: int) -> Recipe:
        """The same recipe stretched or shrunk to ``epochs``, its boundaries in proportion.

        Raises:
            ValueError: The recipe counts steps.
        """
        if self.epochs is None:
            raise ValueError("a recipe in steps has no length in epochs")
        lr = str(self.schedule.stretched(epochs / self.epochs))
        return self.model_copy(update={"epochs": epochs, "lr": lr})

    def for_steps(self, steps: int) -> Recipe:
        """The same recipe stretched or shrunk to ``steps``.

        Raises:
            ValueError: The recipe counts epochs.
        """
        if not self.steps:
            raise ValueError("only a recipe in steps can be stretched to steps")
        return self.model_copy(update={"steps": steps, "lr": str(self.schedule.stretched(steps / self.steps))})

    def over(self, ranks: int) -> Recipe:
        """The same recipe by so many processes together, each with its part of every batch.

        Raises:
            ValueError: A batch cannot be so many equal parts.
        """
        changed = {"ranks": ranks, "sync_batch_norm": self.sync_batch_norm and ranks > 1}
        return type(self).model_validate({**dict(self), **changed})

    def indivisible(self, images: int) -> str:
        """Why its ranks cannot share the batches of so many training images; empty: they can."""
        parts = self.ranks * self.accumulate
        if self.batch % parts:
            return f"a batch of {self.batch} cannot be {parts} equal parts"
        if 0 < (rest := images % self.batch) < self.ranks:
            return f"the last batch of an epoch has {rest} image(s) for {self.ranks} ranks; choose another batch"
        return ""

    @property
    def around_steps(self) -> list[str]:
        """What it asks for beyond one step after the other of one network: names, none where it is nothing."""
        asked = {
            "mixup": bool(self.mixup),
            "cutmix": bool(self.cutmix),
            "ema": bool(self.ema),
            "accumulate": self.accumulate > 1,
            "distillation": self.distillation is not None,
            f"{self.ranks} ranks": self.ranks > 1,
        }
        return [name for name, is_asked in asked.items() if is_asked]

    @property
    def only_torch(self) -> str:
        """Why only torch's own loop makes its steps, which others do for plain SGD; empty: nothing is against them."""
        asked = {
            f"optimiser {self.optimiser.name}": self.optimiser.name != "sgd",
            "options of the optimiser": self.optimiser.name == "sgd" and bool(self.optimiser.options),
            "no_decay": bool(self.no_decay),
            "clip": bool(self.clip),
        }
        reasons = [*(name for name, is_asked in asked.items() if is_asked), *self.around_steps]
        return f"its recipe has {', '.join(reasons)}, which torch's loop alone does" if reasons else ""


def too_warm(schedule: Schedule, epochs: int | None) -> str:
    """Why a schedule's warm-up is too long for a training of so many epochs; empty: it is not."""
    if epochs is None or schedule.in_steps or schedule.warmup < epochs:
        return ""
    return f"a warm-up of {schedule.warmup:g} epochs leaves nothing of {epochs}"


def steps_per_epoch(images: int, batch: int) -> int:
    """Optimiser steps of one pass; the last, smaller batch counts."""
    return math.ceil(images / batch)
