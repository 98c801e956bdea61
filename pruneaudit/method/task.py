"""What a method gets to do its work with: one pruning job, metered, and the retraining that follows."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pruneaudit.errors import MethodError
from pruneaudit.ledger.records import Scope, Target
from pruneaudit.measure.metric import Measure
from pruneaudit.pruning import shapes
from pruneaudit.pruning.layers import PrunableLayer, inputs_left, units_of
from pruneaudit.pruning.removal import others
from pruneaudit.pruning.units import Unit, alone, places_left
from pruneaudit.streams import generator
from pruneaudit.training.checkpoint import Checkpoint
from pruneaudit.training.loop import History, Hooks, Progress, Trainer
from pruneaudit.training.metering import Meter
from pruneaudit.training.precision import channels_last
from pruneaudit.training.watch import Watch
from pruneaudit.workloads.data import Dataset
from pruneaudit.workloads.recipes import Recipe, steps_per_epoch
from pruneaudit.workloads.schema import Workload

#: Stream of the training examples that a protocol gives all methods to score with.
CALIBRATION = "calibration"
#: How far from a target's MACs a threshold over all layers may end for a head's sake: two such arms are matched (F103).
NEAR = 0.01

#: For each layer by name: indices of the filters that stay or, where single weights are removed, which weights stay
#: (bool, in the shape of the layer's weights).
Kept = Mapping[str, Sequence[int] | torch.Tensor]


class RepetitionOverError(Exception):
    """A method that repeats its first steps has done them."""


class PruningTask:
    """One pruning job, as a method sees it.

    Attributes:
        model: The dense network with the base's weights: train it through :meth:`train`.
        layers: The layers that lose filters (or weights), in module order.
        prunable: What is removed as one: a layer by itself, or several that write the same channels (``unit.producers``
            names them). Answers are by name of the unit, which is that of its first layer.
        workload: The workload's public facts.
        ratio: Share of filters to remove from each layer, where the workload states no other for it.
        target: What is to be removed, in numbers.
        recipe: What :meth:`train` does: steps as declared, learning rate as the protocol says.
        state: Whatever hooks remember between steps (numbers and tensors): it is kept in checkpoints, so that a killed
            run goes on exactly.
        history: Curves of all its training, one point for each epoch of each call of :meth:`train`.
        epoch_starts: Step at which each of these epochs begins: the last one of a call may be a part.
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
        target: Target | None = None,
        initial: Callable[[int], Mapping[str, torch.Tensor]] | None = None,
        measure: Measure | None = None,
        held: Mapping[str, torch.Tensor] | None = None,
        calibration: int = 0,
    ) -> None:
        self.model = model
        self.layers = tuple(layers)
        self.prunable = tuple(units_of(self.layers))
        self.workload = workload
        self.ratio = ratio
        self.target = target or _uniform(self.layers, workload, ratio)
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
        self._initial = initial
        self._measure = measure
        # Weights of the base that are zero and stay so: no score of theirs counts.
        self._held = held or {}
        # Examples that all methods score with; 0: each draws its own.
        self._calibration = calibration
        self._steps_done = 0
        self.epoch_starts: list[int] = []
        self._decided: dict[str, list[int]] = {}
        # Scores are not to change the statistics of a normalisation.
        model.eval()
        _hand_out(model)

    @property
    def steps(self) -> int:
        """Optimiser steps of the declared budget."""
        return self.recipe.steps or 0

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one pass over the training split."""
        return steps_per_epoch(len(self._dataset.train), self.recipe.batch)

    def removed(self, layer: PrunableLayer) -> int:
        """Number of filters (weights) to remove from a layer where every layer loses its share."""
        name = layer.name if layer.unit is None else layer.unit.name
        return self.units(layer) - self.target.stay[name]

    def keep(self, scores: Mapping[str, torch.Tensor], scope: Scope = "layerwise") -> dict[str, Any]:
        """What stays when the lowest scores go: in each layer its share, or of all layers (``global``).

        Layers that lose channels together compete with the mean of their scores.

        Args:
            scores: A score for each filter ``[out_channels]`` (or each weight) of each layer, by name.
            scope: Whether layers compete.

        Raises:
            MethodError: Scores do not have the right shape, or are not finite.
        """
        if scope == "global":
            return self.keep_highest_overall(scores)
        if self.target.granularity == "weight":
            return {layer.name: self.keep_highest(layer, scores[layer.name]) for layer in self.layers}
        return self._by_layer(
            {unit.name: self._lowest_gone(unit, self._joined(unit, scores)) for unit in self.prunable}
        )

    def keep_highest(self, layer: PrunableLayer, scores: torch.Tensor) -> Any:
        """What stays of a layer when the lowest scores go (ties: the lower index goes first).

        Of layers that lose channels together the first one decides, which must be asked first; :meth:`keep` takes the
        mean of their scores.

        Returns:
            Sorted indices of filters; of weights which stay, bool in their shape.

        Raises:
            MethodError: The scores do not have the right shape, or are not finite.
        """
        values = self._checked(layer, scores)
        if self.target.granularity == "weight":
            order = torch.argsort(values, stable=True)[self.removed(layer) :]
            mask = torch.zeros(values.numel(), dtype=torch.bool)
            mask[order] = True
            return mask.view(layer.weight.shape)
        unit = layer.unit or alone(layer.name, layer.channels)
        if unit.name == layer.name:
            self._decided[unit.name] = self._lowest_gone(unit, values)
        return self._by_layer(self._decided)[layer.name]

    def _lowest_gone(self, unit: Unit, values: torch.Tensor) -> list[int]:
        """What stays of a unit when the lowest scores go."""
        scores, channels = unit.candidates(values)
        gone = (unit.channels - self.target.stay[unit.name]) // unit.step
        found: list[int] = channels[torch.argsort(scores, stable=True)[gone:]].flatten().sort().values.tolist()
        return found

    def _joined(self, unit: Unit, scores: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Scores of a unit's channels: the mean over the layers that write them, of those that were scored."""
        layers = {layer.name: layer for layer in self.layers}
        found = [self._checked(layers[unit.name], scores[unit.name])]
        for member in unit.members:
            if member.side == "outputs" and member.module in layers.keys() & scores.keys() - {unit.name}:
                values = self._checked(layers[member.module], scores[member.module])
                found.append(values[member.places].mean(dim=1))
        return found[0] if len(found) == 1 else torch.stack(found).mean(dim=0)

    def _by_layer(self, decided: Mapping[str, list[int]]) -> dict[str, Any]:
        """What stays of each layer when units keep some channels."""
        return {
            layer.name: decided[layer.name] if layer.name in decided else self.stays_in(layer, decided)
            for layer in self.layers
        }

    def stays_in(self, layer: PrunableLayer, decided: Mapping[str, Sequence[int]]) -> list[int]:
        """Filters that stay of a layer, sorted, when units keep some channels.

        Args:
            layer: One of :attr:`layers`.
            decided: Channels that stay, by name of the unit; all stay of those that are not named.
        """
        gone = places_left(self.prunable, decided).get((layer.name, "outputs"))
        return list(range(layer.channels)) if gone is None else others(gone, layer.channels).tolist()

    def keep_highest_overall(self, scores: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """What stays when the lowest scores of all layers go, at least one filter (weight) staying in each layer.

        As many filters go as bring the MACs nearest to those of a network whose layers all lose their share: global and
        layerwise arms then stand at one speedup (F103). Where a head that goes as a whole has so many MACs that none of
        both sides of it is near, it stays, and finer units behind it go. A workload may ask for a share of all filters
        instead, as some papers do (``operating_point``). Of single weights as many stay as layerwise arms keep, as
        papers state it. Ties: layers in order, then the lower index first.

        Args:
            scores: A score for each filter ``[out_channels]`` (or each weight) of each layer, by name.

        Returns:
            As :meth:`keep_highest`, by layer.

        Raises:
            MethodError: Scores do not have the right shape, or are not finite.
        """
        channels: dict[str, torch.Tensor] = {}
        values: dict[str, torch.Tensor] = {}
        if self.target.granularity == "filter":
            for unit in self.prunable:
                values[unit.name], channels[unit.name] = unit.candidates(self._joined(unit, scores))
        else:
            values = {layer.name: self._checked(layer, scores[layer.name]) for layer in self.layers}
        blocks = self.target.granularity == "block"
        joined = torch.cat(list(values.values()))
        owner = torch.cat([torch.full((len(found),), place) for place, found in enumerate(values.values())])
        order = torch.argsort(joined, stable=True)
        if not blocks:
            # The best of each layer stays, whatever its score: a layer without filters ends the network.
            last = torch.zeros(len(joined), dtype=torch.bool)
            start = 0
            for found in values.values():
                last[start + int(found.argmax())] = True
                start += len(found)
            order = order[~last[order]]
        stays = torch.ones(len(joined), dtype=torch.bool)
        stays[self._gone(order, owner, list(values))] = False
        parts = dict(zip(values, stays.split([len(found) for found in values.values()]), strict=True))
        if channels:
            return self._by_layer(
                {name: channels[name][part].flatten().sort().values.tolist() for name, part in parts.items()}
            )
        answer: dict[str, Any] = {}
        for layer in self.layers:
            part = parts[layer.name]
            if blocks:
                answer[layer.name] = list(range(layer.channels)) if bool(part) else []
            else:
                answer[layer.name] = part.view(layer.weight.shape)
        return answer

    def _gone(self, order: torch.Tensor, owner: torch.Tensor, names: list[str]) -> torch.Tensor:
        """Which candidates go to reach the target.

        Args:
            order: Candidates, those that go first first.
            owner: The place in ``names`` of each candidate's layer.
            names: Layers.
        """
        if self.target.share is not None:
            if self.target.granularity == "weight":
                missing = sum(self.units(layer) for layer in self.layers) - self.target.share
                return order[:missing]
            gone = torch.tensor([unit.step for unit in self.prunable])[owner[order]].cumsum(dim=0)
            missing = sum(unit.channels for unit in self.prunable) - self.target.share
            return order[: int((gone < missing).sum()) + 1] if missing else order[:0]
        step = {unit.name: unit.step for unit in self.prunable}
        found: tuple[int, torch.Tensor] | None = None
        while True:
            removals = owner[order]
            first, count, miss = self._nearest(removals, names)
            if found is None or miss < found[0]:
                found = miss, order[:count]
            # Where the threshold falls into a head, neurons with higher scores may end nearer.
            within = first - 1
            coarse = self.target.granularity == "filter" and 0 <= within < len(order)
            if miss <= NEAR * self.target.macs or not coarse or step[names[int(removals[within])]] == 1:
                return found[1]
            order = torch.cat((order[:within], order[within + 1 :]))

    def _nearest(self, removals: torch.Tensor, names: list[str]) -> tuple[int, int, int]:
        """How many of some removals, given by the place of their layer, reach the target's MACs.

        Returns:
            After how many the network is no larger than the target; after how many it is nearest; by how many MACs it
            then misses.
        """
        costs = shapes.costs(self.workload)
        step = {unit.name: unit.step for unit in self.prunable}

        def macs_after(count: int) -> int:
            removed = torch.bincount(removals[:count], minlength=len(names)).tolist()
            if self.target.granularity == "block":
                return costs.of_widths({name: 0 for name, gone in zip(names, removed, strict=True) if gone})
            return costs.of_widths(
                {name: costs.filters[name] - gone * step[name] for name, gone in zip(names, removed, strict=True)}
            )

        def miss(count: int) -> int:
            return abs(macs_after(count) - self.target.macs)

        # The first count at which the network is no larger than the target; the one before may be nearer.
        first = bisect_left(range(len(removals)), True, key=lambda count: macs_after(count) <= self.target.macs)
        # Of few large blocks one always goes, as of filters.
        least = 1 if self.target.granularity == "block" else 0
        count = min((max(first - 1, least), max(first, least)), key=miss)
        return first, count, miss(count)

    def units(self, layer: PrunableLayer) -> int:
        """Filters, or weights, of a layer."""
        return layer.weight.numel() if self.target.granularity == "weight" else layer.channels

    def _checked(self, layer: PrunableLayer, scores: Any) -> torch.Tensor:
        """Scores of a layer, a tensor or what becomes one (a list, an array of numpy), as one row of doubles.

        Raises:
            MethodError: They are no numbers, do not have the right shape, or are not finite.
        """
        shapes_of = {"filter": (layer.channels,), "block": (1,), "weight": tuple(layer.weight.shape)}
        expected = shapes_of[self.target.granularity]
        try:
            scores = scores if isinstance(scores, torch.Tensor) else torch.as_tensor(scores, dtype=torch.float64)
            # Of eight bits and less torch computes nothing but conversions; of what is no plain tensor not even those.
            scores = scores if scores.dtype.itemsize > 1 or not scores.is_floating_point() else scores.double()
            plain = scores.layout == torch.strided and not (scores.is_nested or scores.is_quantized or scores.is_meta)
            real = plain and not scores.is_complex()
        except (TypeError, ValueError, RuntimeError):
            real = False
        if not real:
            kind = "None; did it forget to return?" if scores is None else f"{type(scores).__name__};"
            raise MethodError(
                f"method '{self._method}' scored layer '{layer.name}' with {kind} expected a tensor of shape "
                f"{list(expected)}, one real number for each {self.target.granularity}"
            )
        if tuple(scores.shape) != expected:
            raise MethodError(
                f"method '{self._method}' scored layer '{layer.name}' with shape {list(scores.shape)}; "
                f"expected {list(expected)}, one score for each {self.target.granularity}"
            )
        if not bool(torch.isfinite(scores).all()):
            raise MethodError(f"method '{self._method}' gave layer '{layer.name}' a score that is not finite")
        values = scores.detach().cpu().double().flatten()
        if self.target.granularity == "weight" and layer.name in self._held:
            values = values.masked_fill(~self._held[layer.name].flatten(), -math.inf)
        return values

    def scored(self) -> None:
        """Scores are taken: the network lies in memory as it is trained, channels last.

        Draws fill a tensor in the order of its memory: what is drawn anew from here on has the values of a network that
        was never laid out for reading.
        """
        channels_last(self.model)

    def inputs_left(self, kept: Mapping[str, Sequence[int]]) -> dict[nn.Module, torch.Tensor]:
        """Input channels that stay of each layer that loses some when only ``kept`` filters stay, by module."""
        return inputs_left(self.layers, kept)

    def layers_of(self, unit: Unit) -> list[PrunableLayer]:
        """The layers that write a unit's channels, in module order."""
        return [layer for layer in self.layers if layer.name in unit.producers]

    def averaged(self, unit: Unit, scores: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean over a unit's layers of their scores, ``[channels]``.

        Args:
            unit: One of :attr:`prunable`.
            scores: A score for each filter ``[out_channels]`` of some of its layers, by name; the first one is scored.

        Raises:
            MethodError: Scores do not have the right shape, or are not finite.
        """
        return scores[unit.name] if len(unit.producers) == 1 else self._joined(unit, scores)

    def torch_pruner(self, kind: Any, **options: Any) -> Any:
        """A pruner of torch-pruning over the network, for its regulariser; only the layers to prune are free.

        Its tracing passes one empty image through the network, which is no training and does not count.

        Args:
            kind: The class, such as ``torch_pruning.pruner.GroupNormPruner``.
            options: What it takes besides network, example and ignored layers.

        Raises:
            MethodError: It is no pruner of torch-pruning.
        """
        if not getattr(kind, "__module__", "").startswith("torch_pruning."):
            raise MethodError(f"method '{self._method}': torch_pruner() takes classes of torch-pruning only")
        free = {layer.module for layer in self.layers}
        ignored = [
            module
            for module in self.model.modules()
            if isinstance(module, nn.Conv2d | nn.Linear) and module not in free
        ]
        example = self._dataset.example().to(next(self.model.parameters()))
        with self._meter.paused(), self._meter.harness(), torch.enable_grad():
            return kind(self.model, example, ignored_layers=ignored, **options)

    def initial(self, epoch: int = 0) -> Mapping[str, torch.Tensor]:
        """State of the base model after some epochs of its training; 0: before the first step.

        Raises:
            MethodError: The base model was not trained here.
        """
        if self._initial is None:
            raise MethodError(f"method '{self._method}' asks for the base model's initial weights, which are not known")
        with self._meter.paused(), self._meter.harness():
            return self._initial(epoch)

    def generator(self, *names: str | int) -> torch.Generator:
        """The method's own random stream called ``names`` (CPU): the same for a seed whatever else happens."""
        return generator(self._seed, "method", self._method, *names)

    def batches(self, count: int, batch: int | None = None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The first ``count`` augmented training batches of the method's own stream: ``[B, C, H, W]``, ``[B]``.

        Where a protocol gives all methods the same examples to score with, these are handed out, all of them: in
        ``count`` batches, or in batches of the size that is asked for.
        """
        # What passes the network at once in training, too.
        size, most = batch or self.recipe.micro_batch, count
        stream = f"scoring/{self._method}"
        if self._calibration:
            size, stream = batch or math.ceil(self._calibration / count), CALIBRATION
            most = math.ceil(min(self._calibration, len(self._dataset.train)) / size)
        left = self._calibration or count * size
        dtype = next(self.model.parameters()).dtype
        made = 0
        for epoch in range(math.ceil(most * size / len(self._dataset.train))):
            for images, labels in self._dataset.batches(self._seed, stream, epoch, size, dtype):
                if made == most:
                    return
                if len(images) > left:
                    images, labels = images[:left], labels[:left]
                self._meter.admit(images)
                if self._watch is not None:
                    self._watch.pictures.admit(images, labels)
                yield images, labels
                made, left = made + 1, left - len(images)

    def train(self, steps: int | None = None, hooks: Hooks | None = None) -> None:
        """Train ``model`` for ``steps`` (default: the whole declared budget) with the method's hooks.

        Within hooks weights lie channels last in memory: ``reshape`` and ``flatten`` work there, ``view`` does not.

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
            checkpoint.discard()
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
            self._held,
            measure=self._measure,
        )
        with self._watch.training() if self._watch is not None else nullcontext():
            try:
                channels_last(self.model)
                with self._meter.harness():
                    history = trainer.fit(_heard(hooks, self._meter))
            finally:
                _hand_out(self.model)
        self.model.eval()
        for name, curve in vars(history).items():
            getattr(self.history, name).extend(curve)
        self.resumed_from = max(self.resumed_from, trainer.resumed_from)
        self.epoch_starts += range(self._steps_done, self._steps_done + steps, self.steps_per_epoch)
        self._steps_done += steps


def _heard(hooks: Hooks | None, meter: Meter) -> Hooks | None:
    """A method's hooks, each of which is its own code in the midst of the harness's."""

    def within(hook: Callable[[int], Any] | None) -> Callable[[int], Any] | None:
        if hook is None:
            return None

        def call(step: int) -> Any:
            with meter.own_code():
                return hook(step)

        return call

    if hooks is None:
        return None
    return Hooks(within(hooks.penalty), within(hooks.gradients), within(hooks.after_step))


def _hand_out(model: nn.Module) -> None:
    """Lay a network's weights out as their shapes say: ``view`` works on them, for reading and writing.

    Training wants them channels last. Forward and backward passes of channels-last images compute the same bits either
    way.
    """
    model.to(memory_format=torch.contiguous_format)


def _uniform(layers: Sequence[PrunableLayer], workload: Workload, ratio: float) -> Target:
    """Every layer loses its share: a target for layers of any network."""
    units = units_of(layers)
    stay = {unit.name: unit.channels - unit.removed(workload.ratio_of(unit.name, ratio)) for unit in units}
    return Target(stay=stay, macs=0, unit=0)


@dataclass(frozen=True)
class RetrainingTask:
    """The retraining of a pruned network, as the method that pruned it sees it.

    Attributes:
        model: The pruned network; hooks may read its weights and change their gradients.
        workload: The workload's public facts.
        ratio: The pruning ratio.
        steps: Optimiser steps of the whole retraining.
        state: Whatever hooks remember between steps; kept in checkpoints.
    """

    model: nn.Module
    workload: Workload
    ratio: float
    steps: int
    state: dict[str, Any]
