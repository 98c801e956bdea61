"""What a study measures beyond cells, and what it claims: parts of ``protocols/studies/*.toml``. Imports no torch."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pruneaudit.schema import Frozen
from pruneaudit.workloads.schema import Budget, Workload

#: What ``correct`` and ``legacy-l1`` mean: :func:`pruneaudit.studies.population.wired`.
Wiring = Literal["correct", "legacy-l1"]
Statistic = Literal["tau", "anomaly", "regret", "discordance"]
#: What is compared of two arms: the ``result`` by the workload's metric; the ``trainability`` accuracy (Wang et al.
#: 2023, Eq. 1); the mean Jacobian singular value right after pruning, ``jsv`` in eval mode and ``jsv-train`` on batch
#: statistics, as it was published (Wang & Fu 2023), or in eval mode after retraining, ``jsv-end``.
Quantity = Literal["result", "trainability", "jsv", "jsv-train", "jsv-end"]

#: Criteria that are no method's score: the training loss right after pruning, the error after a short retraining,
#: the number of places that another filter takes than in the set of L1, and a number drawn at random.
OWN_CRITERIA = ("loss", "early", "mismatch", "chance")


class Series(Frozen):
    """A criterion under a wiring, in text form ``CRITERION`` or ``CRITERION@WIRING``."""

    criterion: str
    wiring: Wiring = "correct"

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, given: object) -> object:
        if not isinstance(given, str):
            return given
        criterion, at, wiring = given.partition("@")
        return {"criterion": criterion, **({"wiring": wiring} if at else {})}

    def __str__(self) -> str:
        return self.criterion if self.wiring == "correct" else f"{self.criterion}@{self.wiring}"


class PopulationClaim(Frozen):
    """A sentence about a criterion over populations of pruned networks, and the statistic that decides it.

    Attributes:
        text: The sentence, as somebody states it or as it is asked here.
        source: Who states it.
        series: The criterion that it is about.
        statistic: Of :class:`pruneaudit.audit.association.Association`.
        than: Another criterion: the statistic's difference to it is meant, over the same networks.
        below: The sentence holds where the statistic is below this; one of ``below`` and ``above`` is given.
        above: The sentence holds where it is above this.
        panels: Panels that it is about; empty: all.
    """

    text: str = Field(min_length=1)
    source: str = Field(min_length=1)
    series: Series
    statistic: Statistic
    than: Series | None = None
    below: float | None = None
    above: float | None = None
    panels: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_side(self) -> Self:
        if (self.below is None) == (self.above is None):
            raise ValueError("give either below or above")
        return self


class Population(Frozen):
    """Networks that lose the same number of filters, each another set of them, all retrained.

    Attributes:
        workload: Whose data and recipes count.
        model: Another network than the workload's, by its key; empty: the workload's.
        panels: Layers that lose filters, together: one population for each.
        ratio: Share of filters to remove from each of them.
        masks: Most sets of filters of a panel: all of them where there are no more, else so many drawn at random.
        repeats: Retrainings of each set, which differ in the order of the images.
        repeated: Sets that are retrained more than once, drawn at random: what two retrainings agree on is known from
            few; None: all.
        epochs: Epochs of retraining; None: the workload's. Its schedule is stretched to them.
        early: Share of them that a short retraining has, as a criterion; 0: there is none.
        pretrain_epochs: Epochs of the base model, which sees all training images; None: the workload's.
        train_images: Training images that pruned networks see, the first ones; None: all.
        test_images: Test images that count, the first ones; None: all.
        wirings: How the pruned networks are put together.
        criteria: Methods whose scores are criteria, beside those that a study has by itself.
        joint_images: Training images over which the loss of every combination of filters of a panel of several layers
            is known; 0: it is not asked for.
        claims: What is said about them.
    """

    workload: str
    model: str = ""
    panels: tuple[tuple[str, ...], ...] = Field(min_length=1)
    ratio: float = Field(gt=0, lt=1)
    masks: int = Field(ge=3)
    repeats: int = Field(default=1, ge=1)
    repeated: int | None = Field(default=None, ge=3)
    epochs: int | None = Field(default=None, ge=1)
    early: float = Field(default=0.1, ge=0, lt=1)
    pretrain_epochs: int | None = Field(default=None, ge=1)
    train_images: int | None = Field(default=None, ge=1)
    test_images: int | None = Field(default=None, ge=1)
    wirings: tuple[Wiring, ...] = Field(default=("correct",), min_length=1)
    criteria: tuple[str, ...] = ("l1",)
    joint_images: int = Field(default=0, ge=0)
    claims: tuple[PopulationClaim, ...] = ()

    @field_validator("panels")
    @classmethod
    def _named(cls, panels: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
        if any(not layers for layers in panels) or len(set(panels)) != len(panels):
            raise ValueError("each panel names layers, and no two panels the same")
        return panels

    @model_validator(mode="after")
    def _measured(self) -> Self:
        known = {panel_name(layers) for layers in self.panels}
        for claim in self.claims:
            for series in filter(None, (claim.series, claim.than)):
                if series.wiring not in self.wirings:
                    raise ValueError(f"claims: {series}: wiring '{series.wiring}' is not among wirings")
                if series.criterion not in (*OWN_CRITERIA, *self.criteria):
                    raise ValueError(f"claims: {series}: no such criterion; name the method in criteria")
                if series.criterion == "early" and not self.early:
                    raise ValueError("claims: early: there is no early retraining")
            for panel in claim.panels:
                if panel not in known:
                    raise ValueError(f"claims: no panel '{panel}'; known: {', '.join(sorted(known))}")
        return self

    def scaled(self, budget: Budget, workload: Workload) -> Population:
        """The same with a reduced budget: fewer sets of filters, fewer epochs, at most two repeats."""
        if budget == "full":
            return self
        factor = getattr(workload.budget, budget)
        epochs = self.epochs or workload.retrain.epochs or 1
        return self.model_copy(
            update={
                "masks": min(self.masks, max(12, math.ceil(factor * self.masks))),
                "repeats": min(self.repeats, 2),
                "repeated": None if self.repeated is None else max(3, math.ceil(factor * self.repeated)),
                "epochs": max(1, round(factor * epochs)),
                "joint_images": min(self.joint_images, 4),
            }
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What its numbers depend on, but for the workload: claims and the number of repeats are no part of it."""
        left_out = {"claims", "repeats", "repeated", "panels", "criteria", "wirings", "joint_images"}
        return self.model_dump(mode="json", exclude=left_out)


def panel_name(layers: tuple[str, ...]) -> str:
    """Name of a panel: its layers, joined."""
    return "+".join(layers)


class ArmClaim(Frozen):
    """A sentence about two arms of a study's cells, at some ratios: two methods, or one under two protocols.

    Attributes:
        text: The sentence.
        source: Who states it.
        protocol: Comparison setup.
        left: Method that the sentence is about.
        right: What it is compared with.
        right_protocol: Comparison setup of that, where it is another one; empty: the same.
        quantity: What is compared, see :data:`Quantity`.
        margin: Differences below this do not matter, in the quantity's unit; None: the metric's or the protocol's.
        ratios: Ratios that it speaks of; empty: all of the workload.
        expects: What the left arm must be for the sentence to hold at a ratio.
        workloads: Workloads that it speaks of; empty: all of the study.
        per_epoch: Whether the page also has both arms' mean Jacobian singular value after every epoch of retraining, of
            the first seed.
    """

    text: str = Field(min_length=1)
    source: str = Field(min_length=1)
    protocol: str
    left: str
    right: str
    right_protocol: str = ""
    quantity: Quantity = "result"
    margin: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    ratios: tuple[float, ...] = ()
    expects: Literal["better", "worse", "equivalent", "not worse", "not better"]
    workloads: tuple[str, ...] = ()
    per_epoch: bool = False

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        if (self.left, self.protocol) == (self.right, self.other_protocol):
            raise ValueError(f"'{self.left}' under {self.protocol} is compared with itself")
        if self.quantity.startswith("jsv") and self.margin is None:
            raise ValueError(f"margin: state which differences of {self.quantity} do not matter, such as 0.05")
        return self

    @property
    def other_protocol(self) -> str:
        """Comparison setup of the right arm."""
        return self.right_protocol or self.protocol

    @property
    def arms(self) -> tuple[str, str]:
        """What the two arms are called: by their methods, and where it is one, by protocol."""
        if self.left != self.right:
            return self.left, self.right
        return f"{self.left} {self.protocol}", f"{self.right} {self.other_protocol}"
