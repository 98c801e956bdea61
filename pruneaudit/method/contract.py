"""The contract of a pruning method: what it may do, and what it gets to do it with.

A method is one small class in one file. Most only score filters (:class:`FilterScore`) or single weights
(:class:`WeightScore`); some train during pruning (:class:`TrainedMethod`); a control that never prunes trained weights
is a :class:`ScratchArm`. The harness owns loaders, optimiser, learning-rate schedule, evaluation, removal of channels,
masks and cost counting, and meters what the method does.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar, get_args

import torch
from pydantic import ValidationError

from pruneaudit.catalog.protocols import Protocol
from pruneaudit.errors import MethodError, one_line
from pruneaudit.ledger.records import Granularity, Scope
from pruneaudit.method.task import Kept, PruningTask, RetrainingTask
from pruneaudit.pruning.layers import PrunableLayer
from pruneaudit.pruning.shapes import not_alone
from pruneaudit.pruning.units import Unit
from pruneaudit.schema import explained
from pruneaudit.training.loop import Hooks
from pruneaudit.workloads.recipes import Distillation, Recipe
from pruneaudit.workloads.schedule import Schedule
from pruneaudit.workloads.schema import Workload

#: More steps or images than anybody can take.
MOST = 1 << 62


@dataclass(frozen=True)
class Budget:
    """What a method declares that its pruning stage trains; the audit compares it with what is measured.

    Attributes:
        steps: Optimiser steps.
        lr: Learning-rate schedule in steps; None: the workload's learning rate of the pruning stage.
        samples: Images that pass the network with gradients besides the steps (for gradient-based scores).

    Raises:
        MethodError: Nobody can plan with it.
    """

    steps: int = 0
    lr: str | None = None
    samples: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "samples"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or not 0 <= int(value) < MOST:
                raise MethodError(f"Budget({name}={value!r}): expected a whole number from 0 on")
            # NumPy's and torch's whole numbers are none of JSON's.
            object.__setattr__(self, name, int(value))
        if self.lr is not None:
            try:
                Schedule.parse(self.lr)
            except (ValueError, TypeError, AttributeError) as error:
                text = one_line(error) if isinstance(self.lr, str) else "expected a schedule's text, such as '0:1e-2'"
                raise MethodError(f"Budget(lr={self.lr!r}): {text}") from None


@dataclass(frozen=True)
class PublishedRecipe:
    """Retraining recipe of a method's own paper, for S1 and S2.

    Stated for one workload; elsewhere its epochs scale by the ratio of the two workloads' retraining epochs, and its
    learning rates stay. What the paper does not state is None and follows the workload.

    Attributes:
        workload: The workload of the paper that it is stated for.
        epochs: Retraining epochs there.
        lr: Learning-rate schedule there.
        source: Where the paper states it.
        batch: Images per step.
        weight_decay: L2 coefficient.
        optimiser: Class of ``torch.optim`` that the learning rates are for, in lower case. On a workload that trains
            with another one it comes with its defaults (of SGD momentum 0.9).
    """

    workload: str
    epochs: int
    lr: str
    source: str
    batch: int | None = None
    weight_decay: float | None = None
    optimiser: str = "sgd"


@dataclass(frozen=True)
class Card:
    """What papers leave out and comparisons need: where a method stands in the field's taxonomy.

    Granularity and scope are attributes of the class, because the harness acts on them.

    Attributes:
        criterion: What decides which filters or weights go.
        schedule: ``one-shot``, or how it iterates.
        base: What it starts from: ``trained``, or other weights.
        training: Training that it needs in the pruning stage, besides the retraining that every arm gets.
        source: Where it is published.
    """

    criterion: str = "not specified"
    schedule: str = "not specified"
    base: str = "not specified"
    training: str = "not specified"
    source: str = "not specified"


class Method(ABC):
    """What happens in the prune stage, and nothing else.

    The constructor takes hyper-parameters with defaults and only stores them. The class docstring's first line says
    what the method does and where it is published.

    Attributes:
        name: Id, given by the catalogue from the file name (or the class name for ``package.module:Class``).
        published: The paper's retraining recipe, or None where it has none.
        prunes: False for the unpruned control.
        rewrites: True where the method changes weights without optimiser steps (a least-squares reconstruction, say).
        coupled: False where it takes only layers that lose filters alone and are read alone: it then does not apply to
            networks with others.
        granularity: What it removes: filters, single weights (the network keeps its shape, with masks that the harness
            holds at zero), or whole residual blocks.
        scope: ``layerwise`` where every layer loses its share, ``global`` where one threshold decides for all layers;
            the network then has as many MACs as uniform pruning would leave (see
            :meth:`PruningTask.keep_highest_overall`).
        in_retraining: What it does while the pruned network retrains, in a few words; empty: nothing. See
            :meth:`retraining`.
        card: Where it stands in the field's taxonomy.
    """

    name: str = ""
    published: ClassVar[PublishedRecipe | None] = None
    prunes: ClassVar[bool] = True
    rewrites: ClassVar[bool] = False
    coupled: ClassVar[bool] = True
    granularity: ClassVar[Granularity] = "filter"
    scope: ClassVar[Scope] = "layerwise"
    in_retraining: ClassVar[str] = ""
    card: ClassVar[Card] = Card()

    def budget(self, workload: Workload) -> Budget:
        """Training of the pruning stage on a workload. One-shot methods declare none."""
        return Budget()

    def skip(self, workload: Workload) -> str | None:
        """Reason why this method does not apply to a workload, or None."""
        return None if self.coupled else not_alone(workload)

    def pattern(self) -> int:
        """Of every so many neighbouring inputs of an output as many weights go as the ratio says (n:m); 0: at will."""
        return 0

    def distillation(self) -> Distillation | None:
        """How the frozen dense base teaches while the pruned network retrains; None: it does not.

        The harness has the teacher, adds its soft labels to the loss, and counts its passes: the method does nothing.
        """
        return None

    @abstractmethod
    def prune(self, task: PruningTask) -> Kept:
        """Decide which filters (or weights) stay.

        Returns:
            For each layer of ``task.layers``, by name, the indices of the filters to keep; where single weights are
            removed, which of them stay: bool, in the shape of the layer's weights.
        """

    def retraining(self, task: RetrainingTask) -> Hooks:
        """What it adds to every step of retraining; called only where ``in_retraining`` says that it does.

        The audit records it, and says that an arm without it is not comparable (F322).
        """
        raise MethodError(f"method '{self.name}' sets in_retraining and has no retraining()")

    @classmethod
    def summary(cls) -> str:
        """First line of the docstring."""
        return (cls.__doc__ or "").strip().splitlines()[0] if cls.__doc__ else ""

    def parameters(self) -> dict[str, Any]:
        """Hyper-parameters as stored by the constructor: part of a run's identity."""
        return {key: value for key, value in sorted(vars(self).items()) if key != "name" and not key.startswith("_")}


class FilterScore(Method):
    """A one-shot method: score every filter, remove the lowest in each layer, or of all layers (``scope``)."""

    def prepare(self, task: PruningTask) -> None:
        """Called once before the layers are scored, with gradients on: accumulates gradients, say."""

    @abstractmethod
    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Importance of each filter of a layer, ``[out_channels]``; the lowest go first."""

    def score_unit(self, unit: Unit, task: PruningTask) -> torch.Tensor:
        """Importance of each channel of what goes together, ``[channels]``: the mean over the layers that write it."""
        return task.averaged(unit, {layer.name: self.score(layer, task) for layer in task.layers_of(unit)})

    def prune(self, task: PruningTask) -> Kept:
        """Keep the filters with the highest scores."""
        self.prepare(task)
        with torch.no_grad():
            scores = {unit.name: self.score_unit(unit, task) for unit in task.prunable}
        task.scored()
        return task.keep(scores, self.scope)


class WeightScore(Method):
    """A one-shot method that removes single weights: score each, remove the lowest in each layer, or of all layers."""

    granularity = "weight"

    def prepare(self, task: PruningTask) -> None:
        """Called once before the layers are scored, with gradients on: accumulates gradients, say."""

    @abstractmethod
    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Importance of each weight of a layer, in the shape of its weights; the lowest go first."""

    def prune(self, task: PruningTask) -> Kept:
        """Keep the weights with the highest scores."""
        self.prepare(task)
        with torch.no_grad():
            scores = {layer.name: self.score(layer, task) for layer in task.layers}
        task.scored()
        return task.keep(scores, self.scope)


def recordable(method: Method) -> dict[str, Any]:
    """A method's hyper-parameters, as they are recorded.

    Raises:
        MethodError: One of them cannot be.
    """
    found = method.parameters()
    for name, value in found.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise MethodError(
                f"method '{method.name}': JSON cannot hold its hyper-parameter {name}, of type {type(value).__name__}, "
                f"and it cannot be recorded; keep a number or a text, or call it _{name} where it is none"
            ) from None
    return found


def taught(method: Method) -> Distillation | None:
    """How the base teaches while a method's pruned network retrains, as the method declares it; None: it does not.

    Raises:
        MethodError: It declares what is none.
    """
    try:
        found = method.distillation()
    except ValidationError as error:
        raise MethodError(f"method '{method.name}': distillation(): {explained(error, Distillation)}") from None
    if found is not None and not isinstance(found, Distillation):
        raise MethodError(
            f"method '{method.name}': distillation() must return a Distillation or None, not {type(found).__name__}"
        )
    return found


def refusal(method: Method, workload: Workload, protocol: Protocol) -> str | None:
    """Why a method does not apply to a workload under a protocol, or None."""
    if method.granularity not in get_args(Granularity):
        # Such as tokens of images: the network stays as it is, and inputs become shorter.
        kinds = "', '".join(get_args(Granularity))
        return (
            f"its granularity is '{method.granularity}', and what is compared here is a network with fewer weights "
            f"('{kinds}'); what drops tokens of its inputs is another thing, and never ranked beside it"
        )
    if isinstance(method, ScratchArm) and taught(method):
        return "it trains from random weights: the base that would teach it is what it is compared with"
    reason = method.skip(workload)
    if reason or protocol.retraining != "none":
        return reason
    if isinstance(method, ScratchArm):
        return f"it trains from random weights, and {protocol.name} trains nothing"
    trains = method.budget(workload).steps or method.in_retraining or taught(method)
    return f"it trains, and {protocol.name} compares what is only scored" if trains else None


class TrainedMethod(Method):
    """A method that trains in its pruning stage: it declares a budget and calls ``task.train``."""

    @abstractmethod
    def budget(self, workload: Workload) -> Budget:
        """Training of the pruning stage on a workload."""


class ScratchArm(Method):
    """A control that trains the pruned architecture from random initialisation: no base model, no pruning stage.

    Attributes:
        follows_protocol: True where SX-A and SX-B may set its number of epochs.
    """

    follows_protocol: ClassVar[bool] = False

    @abstractmethod
    def recipe(self, workload: Workload, speedup: float) -> Recipe:
        """How it trains, given MACs(base) / MACs(pruned)."""

    def prune(self, task: PruningTask) -> Kept:
        """Never called: a scratch arm has no pruning stage."""
        raise MethodError(f"scratch arm '{self.name}' has no pruning stage")
