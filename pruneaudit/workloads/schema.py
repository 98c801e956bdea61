"""What a workload is: ``protocols/workloads/*.toml`` hold one each. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pruneaudit.errors import ConfigError, nearest
from pruneaudit.schema import Frozen, read_toml, validate
from pruneaudit.workloads.recipes import Recipe
from pruneaudit.workloads.schedule import Schedule

Budget = Literal["smoke", "short", "full"]


class Network(Frozen):
    """What builds a dense network.

    Attributes:
        model: Key in the model registry, or a spec of the user's own.
        args: Keyword arguments beside the sizes of the data.
        folder: Where relative paths start; no part of any identity.
    """

    model: str
    args: tuple[tuple[str, Any], ...] = ()
    folder: Path | None = Field(default=None, exclude=True)


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
        folder: Where relative paths start; no part of any identity.
    """

    name: str
    size: int | None = None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int = Field(default=0, ge=0)
    flip: bool = False
    validation: int = Field(default=0, ge=0)
    folder: Path | None = Field(default=None, exclude=True)

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
        model: Key in the model registry, or a spec of the user's own.
        model_args: What the model takes beside the sizes of the data.
        data: The dataset.
        prunable: Patterns (shell style) of the layers that may lose filters, or ``"auto"``: all that can.
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
        folder: Where relative paths of a user's own workload start; no part of any identity.
    """

    name: str
    version: int = Field(ge=1)
    source: str
    model: str
    model_args: tuple[tuple[str, Any], ...] = ()
    folder: Path | None = Field(default=None, exclude=True)
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

    @field_validator("prunable", mode="before")
    @classmethod
    def _auto(cls, patterns: object) -> object:
        if isinstance(patterns, str) and patterns != "auto":
            raise ValueError(f'expected a list of patterns, or "auto"; write ["{patterns}"]')
        return (patterns,) if patterns == "auto" else patterns

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

    @property
    def network(self) -> Network:
        """What builds its dense network."""
        return Network(model=self.model, args=self.model_args, folder=self.folder)

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


# Keys that a workload may state once for all of its recipes.
_SHARED_RECIPE_KEYS = ("batch", "momentum", "weight_decay", "nesterov", "label_smoothing")


_STAGES = ("pretrain", "prune", "retrain", "scratch")


def load_workload(path: Path) -> Workload:
    """Read one workload.

    Raises:
        ConfigError: The file is no TOML or no workload; the message names file, key and what was expected.
    """
    content = read_toml(path)
    shared = content.pop("sgd", {})
    if not isinstance(shared, Mapping):
        raise ConfigError(f"{path}: sgd: expected a table")
    for key in shared:
        if key not in _SHARED_RECIPE_KEYS:
            raise ConfigError(f"{path}: sgd.{key}: unknown key.{nearest(key, _SHARED_RECIPE_KEYS)}")
    for stage in _STAGES:
        if isinstance(content.get(stage), dict):
            content[stage] = {**shared, **content[stage]}
    return validate(Workload, {**content, "name": path.stem}, path)
