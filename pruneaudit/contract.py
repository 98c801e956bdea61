"""The contract of a pruning method: what it may do, and what it gets to do it with.

A method is one small class in one file. Most only score filters (:class:`FilterScore`); some train during pruning
(:class:`TrainedMethod`); a control that never prunes trained weights is a :class:`ScratchArm`. The harness owns
loaders, optimiser, learning-rate schedule, evaluation, removal of channels and cost counting, and meters what the
method does.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar

import torch
from torch import nn

from pruneaudit.config import Recipe, Workload
from pruneaudit.errors import AuditError, MethodError, one_line
from pruneaudit.pruning.layers import PrunableLayer
from pruneaudit.ratios import removed_filters
from pruneaudit.streams import generator
from pruneaudit.training.checkpoint import Checkpoint
from pruneaudit.training.loop import History, Hooks, Progress, Trainer
from pruneaudit.training.metering import Meter
from pruneaudit.training.watch import Watch
from pruneaudit.workloads.datasets import Dataset

Kept = Mapping[str, Sequence[int] | torch.Tensor]


@dataclass(frozen=True)
class Budget:
    """What a method declares that its pruning stage trains; the audit compares it with what is measured.

    Attributes:
        steps: Optimiser steps.
        lr: Learning-rate schedule in steps; None: the workload's learning rate of the pruning stage.
        samples: Images that pass the network with gradients besides the steps (for gradient-based scores).
    """

    steps: int = 0
    lr: str | None = None
    samples: int = 0


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
    """

    workload: str
    epochs: int
    lr: str
    source: str
    batch: int | None = None
    weight_decay: float | None = None


class RepetitionOverError(Exception):
    """A method that repeats its first steps has done them."""


class Method(ABC):
    """What happens in the prune stage, and nothing else.

    The constructor takes hyper-parameters with defaults and only stores them. The class docstring's first line says
    what the method does and where it is published.

    Attributes:
        name: Id, given by the catalogue from the file name (or the class name for ``package.module:Class``).
        published: The paper's retraining recipe, or None where it has none.
        prunes: False for the unpruned control.
        rewrites: True where the method changes weights without optimiser steps (a least-squares reconstruction, say).
    """

    name: str = ""
    published: ClassVar[PublishedRecipe | None] = None
    prunes: ClassVar[bool] = True
    rewrites: ClassVar[bool] = False

    def budget(self, workload: Workload) -> Budget:
        """Training of the pruning stage on a workload. One-shot methods declare none."""
        return Budget()

    def skip(self, workload: Workload) -> str | None:
        """Reason why this method does not apply to a workload, or None."""
        return None

    @abstractmethod
    def prune(self, task: PruningTask) -> Kept:
        """Decide which filters stay.

        Returns:
            For each layer of ``task.layers``, by name, the indices of the filters to keep.
        """

    @classmethod
    def summary(cls) -> str:
        """First line of the docstring."""
        return (cls.__doc__ or "").strip().splitlines()[0] if cls.__doc__ else ""

    def parameters(self) -> dict[str, Any]:
        """Hyper-parameters as stored by the constructor: part of a run's identity."""
        return {key: value for key, value in sorted(vars(self).items()) if key != "name" and not key.startswith("_")}


class FilterScore(Method):
    """A one-shot method: score every filter, remove the lowest in each layer."""

    @abstractmethod
    def score(self, layer: PrunableLayer, task: PruningTask) -> torch.Tensor:
        """Importance of each filter of a layer, ``[out_channels]``; the lowest go first."""

    def prune(self, task: PruningTask) -> Kept:
        """Keep the filters with the highest scores, layer by layer."""
        with torch.no_grad():
            return {layer.name: task.keep_highest(layer, self.score(layer, task)) for layer in task.layers}


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


class PruningTask:
    """One pruning job, as a method sees it.

    Attributes:
        model: The dense network with the base's weights: train it through :meth:`train`.
        layers: The layers that lose filters, in module order.
        workload: The workload's public facts.
        ratio: Share of filters to remove from each layer.
        recipe: What :meth:`train` does: steps as declared, learning rate as the protocol says.
        state: Whatever hooks remember between steps (numbers and tensors): it is kept in checkpoints, so that a killed
            run goes on exactly.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[PrunableLayer],
        workload: Workload,
        ratio: float,
        recipe: Recipe,
        dataset: Dataset,
        seed: int,
        meter: Meter,
        method: str,
        precision: str = "fp32",
        checkpoint: Checkpoint | None = None,
        progress: Progress | None = None,
        watch: Watch | None = None,
        most: int | None = None,
    ) -> None:
        self.model = model
        self.layers = tuple(layers)
        self.workload = workload
        self.ratio = ratio
        self.recipe = recipe
        self.state: dict[str, Any] = {}
        self.history = History()
        self.resumed_from = 0
        self._dataset = dataset
        self._seed = seed
        self._meter = meter
        self._method = method
        self._precision = precision
        self._checkpoint = checkpoint
        self._progress = progress
        self._watch = watch
        # A repetition of the first steps trains no longer, whatever the method asks for.
        self._most = most
        self._steps_done = 0
        # Scores are not to change the statistics of a normalisation.
        model.eval()

    @property
    def steps(self) -> int:
        """Optimiser steps of the declared budget."""
        return self.recipe.steps or 0

    def removed(self, layer: PrunableLayer) -> int:
        """Number of filters to remove from a layer."""
        return removed_filters(layer.channels, self.ratio)

    def keep_highest(self, layer: PrunableLayer, scores: torch.Tensor) -> list[int]:
        """Sorted indices of the filters that stay when the lowest scores go (ties: the lower index goes first).

        Raises:
            MethodError: The scores do not have the shape ``[out_channels]``, or are not finite.
        """
        if tuple(scores.shape) != (layer.channels,):
            raise MethodError(
                f"method '{self._method}' scored layer '{layer.name}' with shape {list(scores.shape)}; "
                f"expected [{layer.channels}], one score for each filter"
            )
        if not bool(torch.isfinite(scores).all()):
            raise MethodError(f"method '{self._method}' gave layer '{layer.name}' a score that is not finite")
        order = torch.argsort(scores.detach().cpu().double(), stable=True)
        return sorted(order[self.removed(layer) :].tolist())

    def generator(self, *names: str | int) -> torch.Generator:
        """The method's own random stream called ``names`` (CPU): the same for a seed whatever else happens."""
        return generator(self._seed, "method", self._method, *names)

    def batches(self, count: int, batch: int | None = None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The first ``count`` augmented training batches of the method's own stream: ``[B, C, H, W]``, ``[B]``."""
        size = batch or self.recipe.batch
        dtype = next(self.model.parameters()).dtype
        made = 0
        for epoch in range(math.ceil(count * size / len(self._dataset.train))):
            for images, labels in self._dataset.batches(self._seed, f"scoring/{self._method}", epoch, size, dtype):
                if made == count:
                    return
                self._meter.admit(images)
                yield images, labels
                made += 1

    def train(self, steps: int | None = None, hooks: Hooks | None = None) -> None:
        """Train ``model`` for ``steps`` (default: the whole declared budget) with the method's hooks.

        Order of a step: forward, ``hooks.penalty`` added to the loss, backward, ``hooks.gradients``, optimiser step,
        ``hooks.after_step``. Metered. Hooks see the number of the step within this call.
        """
        steps = self.steps if steps is None else steps
        if self._most is not None:
            if self._steps_done >= self._most:
                # Else a method that trains until some loss is small would never end.
                raise RepetitionOverError
            steps = min(steps, self._most - self._steps_done)
        checkpoint = self._checkpoint
        if self._steps_done and checkpoint is not None:
            # Only one call can be continued after a kill; with a second one the whole stage starts again.
            checkpoint.path.unlink(missing_ok=True)
            checkpoint = None
        recipe = self.recipe.model_copy(update={"steps": steps, "start": self.recipe.start + self._steps_done})
        stream = "prune" if not self._steps_done else f"prune/{self._steps_done}"
        trainer = Trainer(
            self.model,
            self._dataset,
            recipe,
            self._seed,
            stream,
            self._meter,
            self._precision,
            checkpoint,
            self._progress,
            self.state,
        )
        with self._watch.training() if self._watch is not None else nullcontext():
            history = trainer.fit(hooks)
        self.model.eval()
        for name, curve in vars(history).items():
            getattr(self.history, name).extend(curve)
        self.resumed_from = max(self.resumed_from, trainer.resumed_from)
        self._steps_done += steps


def decide(method: Method, task: PruningTask) -> dict[str, list[int]]:
    """Let a method prune, and check its answer.

    Returns:
        Sorted indices of the filters that stay, by layer.

    Raises:
        MethodError: It raised, or its answer is none; one line says which.
    """
    try:
        answer = method.prune(task)
    except (AuditError, RepetitionOverError):
        raise
    except Exception as error:
        raise MethodError(f"method '{method.name}' raised {one_line(error)}") from error
    return checked_kept(answer, task.layers, task.ratio, method)


def checked_kept(kept: Any, layers: Sequence[PrunableLayer], ratio: float, method: Method) -> dict[str, list[int]]:
    """A method's answer as plain sorted lists.

    Raises:
        MethodError: It is no answer to the task; one line that names the layer and what was expected.
    """
    who = f"method '{method.name}'"
    if not isinstance(kept, Mapping):
        raise MethodError(f"{who} returned {type(kept).__name__}; expected {{layer name: kept filter indices}}")
    expected = [layer.name for layer in layers]
    strangers = [str(name) for name in kept if name not in expected]
    if strangers:
        raise MethodError(f"{who} returned layer '{strangers[0]}', which is not prunable here")
    answer: dict[str, list[int]] = {}
    for layer in layers:
        if layer.name not in kept:
            raise MethodError(f"{who} returned no indices for layer '{layer.name}'")
        indices = kept[layer.name]
        listed = indices.tolist() if isinstance(indices, torch.Tensor) else indices
        # A bare number or None is no list of indices; it fails the check like any other wrong element.
        values: list[Any] = list(listed) if isinstance(listed, Iterable) else [None]
        if not all(isinstance(value, Integral) and not isinstance(value, bool) for value in values):
            raise MethodError(f"{who}, layer '{layer.name}': filter indices must be integers")
        values = [int(value) for value in values]
        if len(set(values)) != len(values):
            raise MethodError(f"{who}, layer '{layer.name}': a filter index is repeated")
        if any(not 0 <= value < layer.channels for value in values):
            raise MethodError(f"{who}, layer '{layer.name}': a filter index is outside 0…{layer.channels - 1}")
        if not values:
            raise MethodError(f"{who} removes every filter of layer '{layer.name}'; at least one must stay")
        answer[layer.name] = sorted(values)
    removed = sum(layer.channels - len(answer[layer.name]) for layer in layers)
    if not method.prunes:
        if removed:
            raise MethodError(f"{who} is a control that must not prune, but removes {removed} filters")
        return answer
    if not removed:
        raise MethodError(f"{who} removes no filter; ratio {ratio:g} asks for some in every layer")
    for layer in layers:
        target = layer.channels - removed_filters(layer.channels, ratio)
        if len(answer[layer.name]) != target:
            raise MethodError(
                f"{who} misses its target in layer '{layer.name}': keeps {len(answer[layer.name])} of {layer.channels} "
                f"filters; ratio {ratio:g} asks for {target}"
            )
    return answer
