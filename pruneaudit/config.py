"""What TOML files and runs are made of: frozen, typed, unknown keys refused.

``protocols/*.toml`` hold a :class:`Protocol` each, ``protocols/workloads/*.toml`` a :class:`Workload` each. A
:class:`Recipe` says how one stage trains. Nothing here imports torch.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pruneaudit.errors import ConfigError, nearest
from pruneaudit.schedule import Schedule

Budget = Literal["smoke", "short", "full"]
Precision = Literal["fp32", "bf16", "fp64"]
Backend = Literal["torch", "compiled", "grouped", "fused", "graphed"]
#: Backends that train runs together.
TOGETHER: tuple[Backend, ...] = ("grouped", "fused", "graphed")


class Frozen(BaseModel):
    """Base of all data in this project: immutable, and a key nobody knows is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Recipe(Frozen):
    """How one stage trains: SGD with momentum, by epochs or by steps.

    Attributes:
        epochs: Length in passes over the training split; the schedule then counts epochs.
        steps: Length in optimiser steps (the pruning stage's unit); the schedule then counts steps.
        lr: Learning-rate schedule in its text form, see :mod:`pruneaudit.schedule`.
        start: Steps of the schedule that an earlier stage has used up (a topped-up pruning stage under S4.2).
        span: Steps of the whole schedule where this stage is a part of it; 0: the stage's own length.
        batch: Images per step.
        momentum: SGD momentum.
        weight_decay: L2 coefficient on all parameters.
        nesterov: Nesterov momentum.
        label_smoothing: Mass moved from the true class to all classes.
    """

    epochs: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=0)
    lr: str
    start: int = Field(default=0, ge=0)
    span: int = Field(default=0, ge=0)
    batch: int = Field(ge=1)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    nesterov: bool = False
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)

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

    @property
    def schedule(self) -> Schedule:
        """The learning-rate schedule, parsed."""
        return Schedule.parse(self.lr)

    def rate(self, epoch: int, step: int) -> float:
        """Learning rate of an optimiser step, given its epoch and its number (both 0-based)."""
        if self.epochs is not None:
            return self.schedule.rate(epoch, self.epochs)
        return self.schedule.rate(self.start + step, self.span or self.start + (self.steps or 0))

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


class DataConfig(Frozen):
    """A dataset as a workload sees it.

    Attributes:
        name: Key in the dataset registry.
        size: Height and width in pixels after the one resize at load (None: as stored).
        mean: Per-channel mean of pixels in [0, 1], subtracted.
        std: Per-channel standard deviation, divided by.
        pad: Zero padding of the random crop (0: no crop).
        flip: Random horizontal flips.
        validation: Images that the training set gives up for validation (0: the dataset's own fixed split).
    """

    name: str
    size: int | None = None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int = Field(default=0, ge=0)
    flip: bool = False
    validation: int = Field(default=0, ge=0)

    @property
    def augmentation(self) -> str:
        """Short description for records, such as ``"crop4+flip"``."""
        parts = [f"crop{self.pad}"] * (self.pad > 0) + ["flip"] * self.flip
        return "+".join(parts) or "none"


class Tuning(Frozen):
    """The grid of the retraining learning rate under S3.1: every arm tries every schedule, one run each."""

    schedules: tuple[str, ...] = Field(min_length=2)

    @field_validator("schedules")
    @classmethod
    def _canonical(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(Schedule.parse(text)) for text in texts)


class BudgetScales(Frozen):
    """By how much the reduced budgets shrink every length of a workload."""

    smoke: float = Field(default=0.01, gt=0, le=1)
    short: float = Field(default=0.1, gt=0, le=1)


class Workload(Frozen):
    """Architecture, dataset and training recipes: what a comparison runs on.

    Attributes:
        name: File stem of its TOML.
        version: Raised whenever an edit changes numbers; versions are never mixed in a table.
        source: Where the recipe comes from.
        model: Key in the model registry.
        data: The dataset.
        prunable: Patterns (shell style) of the layers that may lose filters.
        skip: Patterns taken out again.
        ratios: Pruning ratios: the share of filters to remove in each prunable layer, in (0, 1).
        layer_ratios: For a ratio, shares of single layers by pattern (the last that matches counts; others keep the
            ratio): how papers state "60 % in the first stage, 30 % in the second". The ratio is then a name.
        operating_point: What a method with one threshold for all layers must reach at a ratio: the ``macs`` of the
            network that loses the same share everywhere, or that ``share`` of all filters (weights), as its paper may
            state it.
        seeds: Seeds of the paired repetitions.
        gpu: True where a CPU needs hours: skipped without CUDA unless ``--audit-device cpu`` insists.
        base: Path of a user's own base checkpoint (safetensors), or None to train one.
        pretrain: Recipe of the dense base model.
        prune: Budget of the pruning stage that S4.1, S4.2, SX-A and SX-B give to every arm (in steps).
        retrain: Retraining recipe that S3.2 and stricter give to every arm.
        scratch: Recipe of a network trained from random initialisation.
        tune: Grid of retraining schedules for S3.1.
        budget: Scales of the reduced budgets.
    """

    name: str
    version: int = Field(ge=1)
    source: str
    model: str
    data: DataConfig
    prunable: tuple[str, ...] = Field(min_length=1)
    skip: tuple[str, ...] = ()
    ratios: tuple[float, ...] = Field(min_length=1)
    layer_ratios: tuple[tuple[float, tuple[tuple[str, float], ...]], ...] = ()
    operating_point: Literal["macs", "share"] = "macs"
    seeds: tuple[int, ...] = Field(min_length=1)
    gpu: bool = False
    base: str | None = None
    pretrain: Recipe
    prune: Recipe
    retrain: Recipe
    scratch: Recipe
    tune: Tuning
    budget: BudgetScales = BudgetScales()

    @field_validator("ratios")
    @classmethod
    def _ratios(cls, ratios: tuple[float, ...]) -> tuple[float, ...]:
        for ratio in ratios:
            if not 0 < ratio < 1:
                raise ValueError(f"ratio {ratio:g} is outside (0, 1); it is the share of filters to remove")
        if len(set(ratios)) != len(ratios):
            raise ValueError("each ratio once")
        return ratios

    @field_validator("layer_ratios", mode="before")
    @classmethod
    def _pairs(cls, tables: object) -> object:
        # Tables in TOML, tuples here: a workload is a key of caches.
        if not isinstance(tables, Mapping):
            return tables
        return [
            (ratio, list(shares.items()) if isinstance(shares, Mapping) else shares) for ratio, shares in tables.items()
        ]

    @model_validator(mode="after")
    def _shares(self) -> Self:
        for ratio, shares in self.layer_ratios:
            if ratio not in self.ratios:
                raise ValueError(f"layer_ratios.{ratio:g}: no such ratio in ratios")
            for pattern, share in shares:
                if not 0 <= share < 1:
                    raise ValueError(f"layer_ratios.{ratio:g}.{pattern}: {share:g} is outside [0, 1)")
        return self

    @model_validator(mode="after")
    def _units(self) -> Self:
        for stage in ("pretrain", "retrain", "scratch"):
            if getattr(self, stage).epochs is None:
                raise ValueError(f"{stage} is measured in epochs")
        if not self.prune.steps:
            raise ValueError("prune is measured in steps, at least 1")
        if self.retrain.lr not in self.tune.schedules:
            raise ValueError(
                "tune.schedules must contain retrain.lr, so that no arm tunes on a grid without the default"
            )
        return self

    def ratio_of(self, layer: str, ratio: float) -> float:
        """Share of filters that a layer loses at a ratio."""
        matching = [share for pattern, share in self.shares_at(ratio).items() if fnmatchcase(layer, pattern)]
        return matching[-1] if matching else ratio

    def shares_at(self, ratio: float) -> dict[str, float]:
        """Shares of single layers at a ratio, by pattern; empty where all layers lose the same."""
        return dict(dict(self.layer_ratios).get(ratio, ()))

    def scaled(self, budget: Budget) -> Workload:
        """This workload with every length scaled to a budget label (``full`` changes nothing)."""
        if budget == "full":
            return self
        factor: float = getattr(self.budget, budget)

        def epochs(recipe: Recipe) -> Recipe:
            return recipe.for_epochs(max(1, round((recipe.epochs or 1) * factor)))

        full = self.retrain.epochs or 1
        retrain = epochs(self.retrain)
        stretch = (retrain.epochs or 1) / full
        schedules = tuple(str(Schedule.parse(text).stretched(stretch)) for text in self.tune.schedules)
        return self.model_copy(
            update={
                "pretrain": epochs(self.pretrain),
                "prune": self.prune.for_steps(max(1, round((self.prune.steps or 1) * factor))),
                "retrain": retrain,
                "scratch": epochs(self.scratch),
                "tune": Tuning(schedules=schedules),
            }
        )


class Protocol(Frozen):
    """A comparison setup of Wang et al. 2023, Table 2: what must be equal between arms, and how it is made so.

    Attributes:
        name: File stem of its TOML, such as ``"s3.2"``.
        version: Raised whenever an edit changes what runs or what is required.
        title: One phrase for tables.
        source: Paper and table.
        base: ``shared`` base weights, or each arm's ``own``.
        retraining: ``own`` published recipe, ``tuned`` learning rate on validation, the ``workload``'s recipe, or the
            published recipe of one ``method`` for all.
        pruning: The method's ``own`` stage, ``equal-epochs`` (topped up), or ``equal-schedule`` (topped up, and the
            workload's learning rate imposed).
        scratch: Scratch arm follows its ``recipe``, or gets ``equal-epochs`` / ``equal-macs`` in total.
        compare: Pairs that are judged: ``pruning`` arms with each other, or pruning arms with ``scratch``.
        requires: Ids of the rules that must hold; ``F5`` stands for all whose id starts so.
        margin: Differences in accuracy below this do not matter, in percentage points: twice the standard error of a
            CIFAR-10 accuracy.
        recipe_of: Method whose published recipe every arm retrains by, where retraining is ``method``.
    """

    name: str
    version: int = Field(ge=1)
    title: str
    source: str
    base: Literal["shared", "own"]
    retraining: Literal["own", "tuned", "workload", "method"]
    pruning: Literal["own", "equal-epochs", "equal-schedule"]
    scratch: Literal["recipe", "equal-epochs", "equal-macs"]
    compare: Literal["pruning", "scratch"]
    requires: tuple[str, ...] = Field(min_length=1)
    margin: float = Field(default=0.5, gt=0)
    recipe_of: str = ""

    @model_validator(mode="after")
    def _recipe(self) -> Self:
        if (self.retraining == "method") != bool(self.recipe_of):
            raise ValueError("retraining = 'method' and recipe_of go together")
        return self


#: What ``--audit-fail-on`` may name; ``unfair`` is the verdict "not comparable".
FAIL_ON = ("better", "worse", "equivalent", "indeterminate", "unfair")


class Study(Frozen):
    """A comparison that is written down before it runs: what is compared, how, and which rules are waived.

    Options of the command line win over what a study says.

    Attributes:
        name: File stem of its TOML.
        title: What the study asks.
        workloads: Workloads to run; empty: all.
        methods: Methods to run; empty: the option's default.
        protocols: Comparison setups; empty: the option's default.
        seeds: Run seeds 0 to N-1; None: the seeds of each workload.
        against: Rivals of the other methods; empty: all pairs.
        fail_on: Verdicts that fail the gate; empty: no gate; not stated: worse and unfair, where there are rivals.
        waive: Reason by rule: a failure of the rule is recorded and printed, and does not count.
    """

    name: str
    title: str = ""
    workloads: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ()
    seeds: int | None = Field(default=None, ge=1)
    against: tuple[str, ...] = ()
    fail_on: tuple[Literal["better", "worse", "equivalent", "indeterminate", "unfair"], ...] | None = None
    waive: dict[str, str] = Field(default_factory=dict)

    @field_validator("waive")
    @classmethod
    def _reasons(cls, waive: dict[str, str]) -> dict[str, str]:
        for rule, reason in waive.items():
            if not reason.strip():
                raise ValueError(f"{rule}: a waiver needs a reason")
        return waive


Model = TypeVar("Model", bound=BaseModel)

# Keys that a workload may state once for all of its recipes.
_SHARED_RECIPE_KEYS = ("batch", "momentum", "weight_decay", "nesterov", "label_smoothing")
_STAGES = ("pretrain", "prune", "retrain", "scratch")


def load_workload(path: Path) -> Workload:
    """Read one workload.

    Raises:
        ConfigError: The file is no TOML or no workload; the message names file, key and what was expected.
    """
    content = _read(path)
    shared = content.pop("sgd", {})
    if not isinstance(shared, Mapping):
        raise ConfigError(f"{path}: sgd: expected a table")
    for key in shared:
        if key not in _SHARED_RECIPE_KEYS:
            raise ConfigError(f"{path}: sgd.{key}: unknown key.{nearest(key, _SHARED_RECIPE_KEYS)}")
    for stage in _STAGES:
        if isinstance(content.get(stage), dict):
            content[stage] = {**shared, **content[stage]}
    return _validate(Workload, {**content, "name": path.stem}, path)


def load_protocol(path: Path) -> Protocol:
    """Read one protocol.

    Raises:
        ConfigError: The file is no TOML or no protocol; the message names file, key and what was expected.
    """
    return load_as(Protocol, path)


def load_study(path: Path) -> Study:
    """Read one study.

    Raises:
        ConfigError: The file is no TOML or no study; the message names file, key and what was expected.
    """
    return load_as(Study, path)


def load_as(kind: type[Model], path: Path) -> Model:
    """Read a file as a model whose name is the file's.

    Raises:
        ConfigError: The file is no TOML or no such model; the message names file, key and what was expected.
    """
    return _validate(kind, {**_read(path), "name": path.stem}, path)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    if "name" in content:
        raise ConfigError(f"{path}: name: the file name is the name; delete this key")
    return content


def _validate(kind: type[Model], content: dict[str, Any], path: Path) -> Model:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_explain(error, kind)}") from None


def _explain(error: ValidationError, kind: type[BaseModel]) -> str:
    """First problem of a validation error as ``key: what was expected``."""
    problems = error.errors()
    # A misspelt key is the cause, the missing one only its consequence.
    problem = next((found for found in problems if found["type"] == "extra_forbidden"), problems[0])
    where = [str(part) for part in problem["loc"]]
    key = ".".join(where)
    if problem["type"] == "extra_forbidden":
        model = kind
        for part in where[:-1]:
            # A part that is no field is the place in a list of models.
            if part in model.model_fields:
                annotation = model.model_fields[part].annotation
                inner = (annotation, *get_args(annotation))
                model = next((one for one in inner if isinstance(one, type) and issubclass(one, BaseModel)), model)
        return f"{key}: unknown key.{nearest(where[-1], model.model_fields)}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"{key}: missing; this key is required"
    value = problem.get("input")
    shown = f" (got {value!r})" if isinstance(value, str | int | float | bool) else ""
    return f"{key + ': ' if key else ''}{message}{shown}"


def steps_per_epoch(images: int, batch: int) -> int:
    """Optimiser steps of one pass; the last, smaller batch counts."""
    return math.ceil(images / batch)
