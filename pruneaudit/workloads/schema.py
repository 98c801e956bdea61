"""What a workload is: ``protocols/workloads/*.toml`` hold one each. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pruneaudit.errors import ConfigError, nearest
from pruneaudit.schema import Arguments, Frozen, read_toml, validate
from pruneaudit.workloads.metrics import ACCURACY, OF_TASKS, Metric
from pruneaudit.workloads.networks import Network, version_of
from pruneaudit.workloads.recipes import Optimiser, Recipe, too_warm
from pruneaudit.workloads.schedule import Schedule

Budget = Literal["smoke", "short", "full"]


class Task(Frozen):
    """Questions with choices, which a language model answers without training on them.

    Attributes:
        name: As harnesses call it, such as ``hellaswag``.
        version: Of the task there: prompts and choices differ between versions.
        validation: File of the questions that tuning may look at: lines of JSON, see
            :mod:`pruneaudit.workloads.data.questions`.
        test: File of those that count.
        delimiter: What stands between a context and a choice.
        images: Folder of the images that questions name.
    """

    name: str = Field(min_length=1)
    version: str = Field(min_length=1)
    validation: str
    test: str
    delimiter: str = " "
    images: str = ""

    @field_validator("version", mode="before")
    @classmethod
    def _as_text(cls, version: object) -> object:
        return str(version) if isinstance(version, int | float) and not isinstance(version, bool) else version


class DataConfig(Frozen):
    """A dataset as a workload sees it.

    Attributes:
        name: Key in the dataset registry, or a user's own data: ``file.py:function`` or ``package.module:function``
            that returns ``pruneaudit.Data``, ``imagefolder:PATH``, ``texts:PATH``, or ``torchvision:NAME``.
        size: Height and width in pixels after the one resize at load (None: as stored). Of a user's images the shorter
            side is resized, and the centre is kept.
        mean: Per-channel mean of pixels in [0, 1], subtracted (None: found in the training split; what is no image is
            left as it is).
        std: Per-channel standard deviation, divided by (None: found, too).
        pad: Zero padding of the random crop (0: no crop).
        flip: Random horizontal flips.
        validation: Images that the training set gives up for validation (0: the dataset's own fixed split).
        train: Transforms of training images by their names in ``torchvision.transforms.v2``, in place of ``pad`` and
            ``flip``: ``"RandomResizedCrop(224)"``.
        test: Transforms of images that are not augmented.
        pixels: What transforms act on: images as PIL has them (``pil``: one resizer, the same on every machine), or
            tensors (``tensor``: other pixels wherever something is resized, and the processor's).
        classes: So many classes, drawn once and for all, of a folder that has more (0: all).
        tokenizer: Folder with the ``tokenizer.json`` of texts.
        window: Tokens of each example of texts.
        join: What stands between two documents of a split of texts.
        task: Questions beside the texts, of metrics such as ``acc``.
        folder: Where relative paths start; no part of any identity.
    """

    name: str
    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    pad: int = Field(default=0, ge=0)
    flip: bool = False
    validation: int = Field(default=0, ge=0)
    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    pixels: Literal["pil", "tensor"] = "pil"
    classes: int = Field(default=0, ge=0)
    tokenizer: str = ""
    window: int = Field(default=0, ge=0)
    join: str = "\n\n"
    task: Task | None = None
    folder: Path | None = Field(default=None, exclude=True)

    @property
    def augmentation(self) -> str:
        """Short description for records, such as ``"crop4+flip"``."""
        if self.train:
            return "+".join(self.train)
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


class Reading(Frozen):
    """Where and how a checkpoint names its tensors, where that cannot be found.

    Attributes:
        key: Keys that lead to the weights, joined by dots; empty: the usual ones are looked for.
        rename: Regular expressions and what replaces them in each tensor's name, in order, before the usual prefixes
            are taken off. A tensor whose name becomes empty is left out.
        zeros: What becomes of weights that are zero: ``free`` (they may grow again) or ``hold`` (they stay zero in
            every stage, and count as zeros).
    """

    key: str = ""
    rename: tuple[tuple[str, str], ...] = ()
    zeros: Literal["free", "hold"] = "free"

    @field_validator("rename", mode="before")
    @classmethod
    def _in_order(cls, table: object) -> object:
        return list(table.items()) if isinstance(table, Mapping) else table

    @field_validator("rename")
    @classmethod
    def _patterns(cls, pairs: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        for pattern, replacement in pairs:
            try:
                re.compile(pattern).sub(replacement, "")
            except (re.error, IndexError) as error:
                raise ValueError(
                    f"'{pattern}' = '{replacement}': no regular expression and replacement: {error}"
                ) from None
        return pairs


class Base(Reading):
    """A user's own base model.

    Attributes:
        path: Checkpoint; a relative one starts at the workload's folder. None: ``--audit-base`` gives it.
    """

    path: str | None = None

    @property
    def reading(self) -> Reading:
        """What changes the weights, beside the file."""
        return Reading(key=self.key, rename=self.rename, zeros=self.zeros)


class Workload(Frozen):
    """Architecture, dataset and training recipes: what a comparison runs on.

    Attributes:
        name: File stem of its TOML.
        version: Raised whenever an edit changes numbers; versions are never mixed in a table.
        source: Where the recipe comes from.
        model: Key in the model registry, or a spec of the user's own.
        model_args: What the model takes beside the sizes of the data.
        model_source: Code that builds a user's network (:func:`~.networks.version_of`); read from it, never stated.
        data: The dataset.
        prunable: Patterns (shell style) of the layers that may lose filters, or ``auto`` alone: all that can.
        skip: Patterns taken out again.
        ratios: Pruning ratios: the share of filters to remove in each prunable layer, in (0, 1).
        layer_ratios: For a ratio, shares of single layers by pattern (the last that matches counts; others keep the
            ratio): how papers state "60 % in the first stage, 30 % in the second". The ratio is then a name.
        operating_point: What a method with one threshold for all layers must reach at a ratio: the ``macs`` of the
            network that loses the same share everywhere, or that ``share`` of all filters (weights), as its paper may
            state it.
        seeds: Seeds of the paired repetitions.
        gpu: True where a CPU needs hours: skipped without CUDA unless ``--audit-device cpu`` insists.
        base: A user's own base model, or None to train one; a string is its path.
        pretrain: Recipe of the dense base model.
        prune: Budget of the pruning stage that S4.1, S4.2, SX-A and SX-B give to every arm (in steps).
        retrain: Retraining recipe that S3.2 and stricter give to every arm.
        scratch: Recipe of a network trained from random initialisation.
        tune: Grid of retraining schedules for S3.1.
        budget: Scales of the reduced budgets.
        metric: What decides its comparisons.
        folder: Where relative paths of a user's own workload start; no part of any identity.
    """

    name: str
    version: int = Field(ge=1)
    source: str
    model: str
    model_args: Arguments = ()
    model_source: str = ""
    folder: Path | None = Field(default=None, exclude=True)
    data: DataConfig
    prunable: tuple[str, ...] = Field(min_length=1)
    skip: tuple[str, ...] = ()
    ratios: tuple[float, ...] = Field(min_length=1)
    layer_ratios: tuple[tuple[float, tuple[tuple[str, float], ...]], ...] = ()
    operating_point: Literal["macs", "share"] = "macs"
    seeds: tuple[int, ...] = Field(min_length=1)
    gpu: bool = False
    base: Base | None = None
    pretrain: Recipe
    prune: Recipe
    retrain: Recipe
    scratch: Recipe
    tune: Tuning
    budget: BudgetScales = BudgetScales()
    metric: Metric = ACCURACY

    @field_validator("seeds")
    @classmethod
    def _each_seed_once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if min(seeds) < 0 or len(set(seeds)) < len(seeds):
            raise ValueError("expected whole numbers from 0 on, each once")
        return seeds

    @field_validator("prunable", mode="before")
    @classmethod
    def _one_or_many(cls, patterns: object) -> object:
        return (patterns,) if isinstance(patterns, str) else patterns

    @field_validator("prunable")
    @classmethod
    def _auto_alone(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        if "auto" in patterns and len(patterns) > 1:
            raise ValueError("'auto' means everything that can be pruned; give it alone, and what stays in skip")
        return patterns

    @field_validator("ratios")
    @classmethod
    def _ratios(cls, ratios: tuple[float, ...]) -> tuple[float, ...]:
        for ratio in ratios:
            if not 0 < ratio < 1:
                raise ValueError(f"ratio {ratio:g} is outside (0, 1); it is the share of filters to remove")
        if len(set(ratios)) != len(ratios):
            raise ValueError("each ratio once")
        return ratios

    @field_validator("base", mode="before")
    @classmethod
    def _path_alone(cls, base: object) -> object:
        return {"path": base} if isinstance(base, str) else base

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
    def _asked(self) -> Self:
        if self.metric.name in OF_TASKS and self.data.task is None:
            raise ValueError(f"metric.name: '{self.metric.name}' is one of a task; give a table [data.task]")
        return self

    @model_validator(mode="after")
    def _units(self) -> Self:
        for stage in ("pretrain", "retrain", "scratch"):
            if getattr(self, stage).epochs is None:
                raise ValueError(f"{stage} is measured in epochs")
        if not self.prune.steps:
            raise ValueError("prune is measured in steps, at least 1")
        if any(getattr(self, stage).distillation is not None for stage in ("pretrain", "prune", "retrain", "scratch")):
            raise ValueError(
                "distillation: a method declares its teacher, see distillation() of a method; leave it out"
            )
        if self.prune.ranks > 1:
            raise ValueError("prune.ranks: methods prune in one process; give ranks to the other stages")
        if self.retrain.lr not in self.tune.schedules:
            raise ValueError(
                "tune.schedules must contain retrain.lr, so that no arm tunes on a grid without the default"
            )
        for schedule in self.tune.schedules:
            if reason := too_warm(Schedule.parse(schedule), self.retrain.epochs):
                raise ValueError(f"tune.schedules: '{schedule}': {reason}")
        return self

    @property
    def reading(self) -> Reading:
        """How its base model is read."""
        return Reading() if self.base is None else self.base.reading

    @property
    def network(self) -> Network:
        """What builds its dense network."""
        return Network(model=self.model, args=self.model_args, source=self.model_source, folder=self.folder)

    def ratio_of(self, layer: str, ratio: float) -> float:
        """Share of filters that a layer loses at a ratio."""
        matching = [share for pattern, share in self.shares_at(ratio).items() if fnmatchcase(layer, pattern)]
        return matching[-1] if matching else ratio

    def shares_at(self, ratio: float) -> dict[str, float]:
        """Shares of single layers at a ratio, by pattern; empty where all layers lose the same."""
        return dict(dict(self.layer_ratios).get(ratio, ()))

    def over(self, ranks: int) -> Workload:
        """This workload with every training of the harness by so many ranks; pruning, and its top-up, keep to one.

        Raises:
            ConfigError: A batch cannot be so many equal parts.
        """
        recipes = {}
        for stage in ("pretrain", "retrain", "scratch"):
            recipe: Recipe = getattr(self, stage)
            try:
                recipes[stage] = recipe.over(ranks)
            except ValueError:
                raise ConfigError(
                    f"{self.name}: {stage} has batches of {recipe.batch} images, of which {ranks} ranks cannot have "
                    "equal parts; choose another --audit-ranks"
                ) from None
        return self.model_copy(update=recipes)

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


#: Keys that a workload may state once for all of its recipes.
_SHARED_RECIPE_KEYS = (
    "batch",
    "momentum",
    "weight_decay",
    "nesterov",
    "no_decay",
    "label_smoothing",
    "mixup",
    "cutmix",
    "ema",
    "ema_every",
    "clip",
    "clip_by",
    "accumulate",
)
# Of these the ones that SGD alone understands; other optimisers have options of the same name, and other defaults.
_OF_SGD = ("momentum", "nesterov")

_STAGES = ("pretrain", "prune", "retrain", "scratch")


# What reading fills in.
_READ = ("folder", "model_source")


def load_workload(path: Path) -> Workload:
    """Read one of the workloads that come with the project.

    Raises:
        ConfigError: The file is no TOML or no workload; the message names file, key and what was expected.
    """
    return read_workload(read_toml(path), path.stem, path, None)


def read_workload(content: Mapping[str, Any], name: str, path: Path, folder: Path | None) -> Workload:
    """A workload from the content of its file.

    Args:
        content: Tables and values, as in TOML.
        name: Its id.
        path: What messages name: its file.
        folder: Where relative paths start; None: nowhere.

    Raises:
        ConfigError: It is no workload; the message names file, key and what was expected.
    """
    content = dict(content)
    for key in _READ:
        if key in content:
            raise ConfigError(f"{path}: {key}: unknown key.")
    shared = _shared(content, path)
    for stage in _STAGES:
        if isinstance(content.get(stage), dict):
            own = _recipe_keys(content[stage], f"{path}: {stage}.optimiser")
            content[stage] = {**_without(shared, own), **own}
    workload = validate(Workload, {**content, "name": name}, path)
    for stage in _STAGES:
        _check_optimiser(getattr(workload, stage), f"{path}: {stage}.optimiser")
    return workload if folder is None else placed(workload, folder, path)


def placed(workload: Workload, folder: Path, path: Path) -> Workload:
    """A user's workload, whose relative paths start at a folder, with the version of its network's code.

    Raises:
        ConfigError: What it names is not there; the message names the file and the key.
    """
    data = workload.data.model_copy(update={"folder": folder})
    workload = workload.model_copy(update={"folder": folder, "data": data})
    try:
        return workload.model_copy(update={"model_source": version_of(workload.network)})
    except ConfigError as error:
        raise ConfigError(f"{path}: model: {error}") from None


def _shared(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Takes ``[sgd]`` or ``[optimiser]`` out of a workload's tables: keys of all of its recipes.

    Raises:
        ConfigError: It has both, or one of them is no such table.
    """
    tables = [table for table in ("sgd", "optimiser") if table in content]
    if len(tables) > 1:
        raise ConfigError(f"{path}: optimiser: give either [sgd] or [optimiser], not both")
    if not tables:
        return {}
    shared = content.pop(*tables)
    if not isinstance(shared, Mapping):
        raise ConfigError(f"{path}: {tables[0]}: expected a table")
    if tables == ["sgd"]:
        for key in shared:
            if key not in _SHARED_RECIPE_KEYS:
                raise ConfigError(f"{path}: sgd.{key}: unknown key.{nearest(key, _SHARED_RECIPE_KEYS)}")
        return dict(shared)
    return _recipe_keys({"optimiser": shared}, f"{path}: optimiser")


def _recipe_keys(recipe: dict[str, Any], where: str) -> dict[str, Any]:
    """A recipe whose optimiser, where it is a table, keeps name and options only; what else it states is the recipe's.

    Raises:
        ConfigError: The table names no optimiser.
    """
    optimiser = recipe.get("optimiser")
    if not isinstance(optimiser, Mapping):
        return recipe
    if "name" not in optimiser:
        raise ConfigError(f"{where}.name: missing; a class of torch.optim, such as 'adamw'")
    is_sgd = str(optimiser["name"]).lower() == "sgd"
    keys = [key for key in optimiser if key in _SHARED_RECIPE_KEYS and (is_sgd or key not in _OF_SGD)]
    of_recipe = {key: optimiser[key] for key in keys}
    rest = {key: value for key, value in optimiser.items() if key not in keys}
    return {**of_recipe, **recipe, "optimiser": rest}


def _without(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What all recipes share, for one that may have an optimiser of its own."""
    return {key: value for key, value in shared.items() if "optimiser" not in own or key not in _OF_SGD}


def _check_optimiser(recipe: Recipe, where: str) -> None:
    """Ask torch whether it has the optimiser; plain SGD and AdamW, which need no answer, are read without torch.

    Raises:
        ConfigError: It has none, or not with these options.
    """
    if recipe.optimiser in (Optimiser(), Optimiser(name="adamw")):
        return
    from pruneaudit.workloads.optimisers import check

    try:
        check(recipe)
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}") from None
