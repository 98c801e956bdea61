"""Populations of pruned networks: one base model, many sets of filters, each retrained.

What is measured is kept in the ledger part by part, so that a study that was stopped goes on where it was, and another
number of repeats, another panel or another criterion costs only what is new.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.protocols import Study
from pruneaudit.catalog.settings import Settings
from pruneaudit.catalog.studies import OWN_CRITERIA, Wiring, panel_name
from pruneaudit.cores import threads
from pruneaudit.errors import ConfigError, MethodError
from pruneaudit.ledger.records import NUMERICS_VERSION
from pruneaudit.ledger.store import Ledger
from pruneaudit.measure.accuracy import Score
from pruneaudit.measure.metric import KNOWN, value_of
from pruneaudit.method.contract import FilterScore
from pruneaudit.method.task import PruningTask
from pruneaudit.pruning import shapes
from pruneaudit.pruning.joint import Joint, Mask, Subset, search, subsets
from pruneaudit.pruning.layers import PrunableLayer, prunable_layers, units_of
from pruneaudit.pruning.ratios import removed_filters
from pruneaudit.pruning.removal import units_named
from pruneaudit.pruning.units import Unit
from pruneaudit.streams import generator
from pruneaudit.studies.kept import kept
from pruneaudit.studies.panel import Panel
from pruneaudit.studies.wiring import mismatches, relabel, wired
from pruneaudit.training.metering import Meter
from pruneaudit.training.precision import place, weight_type
from pruneaudit.training.runtime import Runtime
from pruneaudit.training.sweep import Sweep
from pruneaudit.workloads.data import Dataset, Part, identity, load
from pruneaudit.workloads.metrics import Metric
from pruneaudit.workloads.models.initialise import initialise
from pruneaudit.workloads.models.lenet import LeNet5
from pruneaudit.workloads.recipes import Recipe
from pruneaudit.workloads.schema import DataConfig

#: What data and recipes can say since there are populations in ledgers: where it is not said, they keep their names.
_SINCE = {"tokenizer", "window", "join", "task", "distillation"}
#: Networks that are trained together and kept as one part: so much is lost by a stop.
TOGETHER = 64
#: Told what is done, in a few words, and for how many of how many networks it is done already.
Telling = Callable[[str, int, int], None]


class Outstanding(NamedTuple):
    """What is to be trained of a panel.

    Attributes:
        networks: Trainings of pruned networks, short ones included.
        stored: Those of them that the ledger has.
        epochs: Epochs of the others, all together.
    """

    networks: int
    stored: int
    epochs: int


class Populations:
    """The populations of a study.

    Args:
        study: The study; it has a population.
        catalog: Where its workload and its criteria are found.
        settings: Budget and precision.
        runtime: Where its data are; populations are measured on the CPU.
        ledger: Where what is measured is kept.
        told: Called whenever something is about to be measured.

    Raises:
        ConfigError: Something that it names does not exist, or cannot be measured so.
    """

    def __init__(
        self,
        study: Study,
        catalog: Catalog,
        settings: Settings,
        runtime: Runtime,
        ledger: Ledger,
        told: Telling = lambda what, done, total: None,
    ) -> None:
        assert study.population is not None
        if settings.precision not in ("fp32", "fp64"):
            raise ConfigError(f"study {study.name}: populations are measured in fp32 or fp64, not {settings.precision}")
        workload = catalog.workload(study.population.workload)
        if study.population.model:
            workload = workload.model_copy(update={"model": study.population.model, "model_args": ()})
        self.population = study.population.scaled(settings.budget, workload)
        self.workload = workload.scaled(settings.budget)
        if self.metric.name not in KNOWN:
            raise ConfigError(
                f"study {study.name}: populations are compared by {', '.join(KNOWN)}, not {self.metric.name}"
            )
        self.precision = settings.precision
        self.arithmetic = settings.arithmetic
        self._catalog = catalog
        self._runtime = runtime
        self._ledger = ledger
        self._told = told
        self._bases: dict[int, nn.Module] = {}
        self._name = study.name
        for name in self.population.criteria:
            if name in OWN_CRITERIA or not catalog.method(name).built_in:
                raise ConfigError(f"study {study.name}: criteria: {name} is no method of this project")

    @property
    def metric(self) -> Metric:
        """What the networks are compared by."""
        return self.workload.metric

    @cached_property
    def recipe(self) -> Recipe:
        """How the pruned networks are retrained."""
        epochs = self.population.epochs
        return self.workload.retrain if epochs is None else self.workload.retrain.for_epochs(epochs)

    @cached_property
    def short_recipe(self) -> Recipe:
        """The same in a small share of its epochs, the schedule with it."""
        return self.recipe.for_epochs(max(1, round(self.population.early * (self.recipe.epochs or 1))))

    @cached_property
    def _all_data(self) -> Dataset:
        full = load(self.workload.data, self._runtime.data_root, self._runtime.download)
        # Texts are in memory, and no images.
        if full.obstacle and full.example().is_floating_point():
            raise ConfigError(f"study {self._name}: {self.workload.data.name}: {full.obstacle}")
        return full

    @cached_property
    def dataset(self) -> Dataset:
        """Its data, as many images of them as pruned networks see."""
        full = self._all_data
        train, test = full.resident, full.test
        assert isinstance(test, Part)
        return replace(
            full,
            train=train.first(self.population.train_images or len(train)),
            test=test.first(self.population.test_images or len(test)),
        )

    @cached_property
    def folder(self) -> str:
        """Name of what the ledger keeps of it: everything that can change a number is in it."""
        workload = self.workload.model_dump(mode="json", include={"model", "model_args"})
        facts = {
            "population": self.population.identity,
            "workload": {**workload, "data": _said(self.workload.data), "pretrain": _said(self.workload.pretrain)},
            "recipe": _said(self.recipe),
            "data": identity(self.workload.data, self._runtime.data_root),
            "precision": self.precision,
            "numerics": NUMERICS_VERSION,
            # What was measured before there was a choice keeps its name.
            **({} if self.arithmetic == "native" else {"arithmetic": self.arithmetic}),
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        return f"{self._name}-{digest}"

    @property
    def facts(self) -> dict[str, str]:
        """What was measured, in words."""
        base, population, data = self.base, self.population, self.dataset
        of = "images" if self._example.is_floating_point() else "windows of text"
        assert base is not None
        return {
            "network": f"{self.workload.model}, {sum(one.numel() for one in base.parameters()):,} parameters",
            "data": f"{self.workload.data.name}: {len(data.train):,} training {of} for each pruned network, "
            f"{len(data.test):,} test {of}",
            f"base {self.metric.name}": f"{self.base_value:.2f}{self.metric.unit_text}",
            "ratio": f"{population.ratio:g}",
            "retraining": f"{self.recipe.epochs} epochs, {self.recipe.lr}, batch {self.recipe.batch}; "
            f"{self.metric.name} after the last epoch",
            "short retraining": f"{self.short_recipe.epochs} epoch(s)" if population.early else "none",
            "steps": f"{' and '.join(self._steps)}, {self.precision}, {self.arithmetic} arithmetic",
            "seeds": f"base 0; retraining 0 to {population.repeats - 1}"
            + (f", of {population.repeated} networks all but 0" if population.repeated else ""),
        }

    @cached_property
    def _example(self) -> torch.Tensor:
        return self.dataset.example(weight_type(self.precision))

    @cached_property
    def _dense(self) -> nn.Module:
        """A dense network, for its shapes."""
        return place(shapes.dense_network(self.workload), "cpu", self.precision)

    @cached_property
    def base(self) -> nn.Module:
        """The dense base model, trained once."""
        model = copy.deepcopy(self._dense)

        def trained() -> dict[str, Any]:
            initialise(model, generator(0, "pretrain", "initialise"))
            epochs = self.population.pretrain_epochs
            recipe = self.workload.pretrain if epochs is None else self.workload.pretrain.for_epochs(epochs)
            sweep = Sweep([model], self._all_data, self.precision, recipe)
            sweep.train(0, "pretrain")
            (score,) = sweep.score(self.dataset.test)
            if not math.isfinite(score.loss):
                raise ConfigError(f"study {self._name}: its base model diverged")
            weights = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
            return {"accuracy": score.accuracy, "loss": score.loss, "steps": sweep.steps, "weights": weights}

        found = self._kept("base", "base model", 0, 1, trained)
        # What was measured before there were other metrics tells accuracy alone.
        self.base_value = self._value(found["accuracy"], found.get("loss", math.nan))
        # What was measured before parts told it was all made as the base was, by LeNet-5's own kernel or by torch.
        self._base_steps: str = found.get("steps") or ("compiled" if found["compiled"] else "torch")
        self._steps = dict.fromkeys([self._base_steps])
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                # JSON keeps every digit of a float.
                tensor.copy_(torch.tensor(found["weights"][name], dtype=torch.float64).to(tensor.dtype))
        return model.eval()

    def _kept(
        self, name: str, what: str, done: int, total: int, measure: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """A part of what is measured: from the ledger, where it is there; else measured now, and kept.

        Args:
            name: What the ledger calls it.
            what: What is done, in a few words.
            done: For how many networks it is done.
            total: Of how many.
            measure: Measures it.

        Raises:
            ConfigError: It is not there, and the ledger is one that is only judged.
        """

        def told() -> dict[str, Any]:
            self._told(what, done, total)
            return measure()

        return kept(self._ledger, self._name, self.folder, name, what, told)

    def _value(self, accuracy: float, loss: float) -> float:
        """The metric of a network, from what is kept of it."""
        return value_of(self.metric.name, Score(accuracy, loss, np.empty(0, bool)))

    def _layers(self, model: nn.Module, panel: Sequence[str]) -> list[PrunableLayer]:
        """The layers of a panel in a network."""
        return prunable_layers(model, self._example, tuple(panel))

    def _units(self, model: nn.Module, panel: Sequence[str]) -> list[Unit]:
        """What loses channels in a panel: each named by its first layer.

        Raises:
            ConfigError: The panel names other layers, or in another order, or what cannot be chosen one by one.
        """
        units = units_of(self._layers(model, panel))
        who = f"study {self._name}: panel {panel_name(tuple(panel))}"
        if [unit.name for unit in units] != list(panel):
            raise ConfigError(f"{who}: name its layers in their order")
        for unit in units:
            if unit.parts > 1:
                raise ConfigError(f"{who}: groups of a convolution lose filters together, which no set here can say")
            if len(unit.producers) > 1 and "legacy-l1" in self.population.wirings:
                raise ConfigError(f"{who}: legacy-l1 is about layers that lose filters alone; leave it out of wirings")
        return units

    def masks(self, panel: Sequence[str]) -> tuple[list[Mask], bool]:
        """Sets of filters that stay, by layer of the panel: all of them, or as many as are drawn; and which it is."""
        widths = [unit.channels // unit.step for unit in self._units(self._dense, panel)]
        stay = [width - removed_filters(width, self.population.ratio) for width in widths]
        total, most = math.prod(map(math.comb, widths, stay)), self.population.masks
        if total <= most:
            return list(itertools.product(*map(subsets, widths, stay))), True
        draw = generator(0, "study", "masks", panel_name(tuple(panel)))
        found: dict[Mask, None] = {}
        while len(found) < most:
            some = [torch.randperm(width, generator=draw)[:count] for width, count in zip(widths, stay, strict=True)]
            found[tuple(tuple(sorted(one.tolist())) for one in some)] = None
        return list(found), False

    def several(self, panel: Sequence[str], masks: Sequence[Mask]) -> list[int] | None:
        """Places of the sets of a panel that alone are retrained more than once; None: all are as often."""
        some = self.population.repeated
        if self.population.repeats == 1 or some is None or some >= len(masks):
            return None
        draw = generator(0, "study", "repeated", panel_name(tuple(panel)))
        return sorted(torch.randperm(len(masks), generator=draw)[:some].tolist())

    def outstanding(self, layers: tuple[str, ...]) -> Outstanding:
        """What of a panel is to be trained, and what the ledger has; trains nothing."""
        masks, _ = self.masks(layers)
        extra: list[Mask] = []
        if self._asks_jointly(layers):
            joint = self._ledger.part(self.folder, self._joint_name(layers, masks))
            best = [] if joint is None else [tuple(tuple(subset) for subset in joint["best"])]
            # Until the joint oracle is known, whether it is one more network is not.
            extra = [mask for mask in best if mask not in masks]
        streams = [("early", 0, self.short_recipe)] if self.population.early else []
        streams += [("retrain", repeat, self.recipe) for repeat in range(self.population.repeats)]
        several = self.several(layers, masks)
        networks = stored = epochs = 0
        for wiring in self.population.wirings:
            for stream, repeat, recipe in streams:
                asked = masks if repeat == 0 or several is None else [masks[place] for place in several]
                for some in _batched([*asked, *(extra if wiring == "correct" else [])], TOGETHER):
                    there = self._ledger.part(self.folder, _part_name(layers, wiring, f"{stream}{repeat}", some))
                    networks += len(some)
                    stored += len(some) if there is not None else 0
                    epochs += len(some) * (recipe.epochs or 0) if there is None else 0
        return Outstanding(networks, stored, epochs)

    def _asks_jointly(self, layers: tuple[str, ...]) -> bool:
        """Whether the loss of every combination of filters of a panel is asked for."""
        return bool(self.population.joint_images) and len(layers) > 1

    def measure(self, layers: tuple[str, ...]) -> list[Panel]:
        """Measure a panel, where the ledger lacks it, under every wiring.

        Raises:
            MethodError: A network diverged.
        """
        found = []
        masks, exhaustive = self.masks(layers)
        scores = self._scores(self.base, layers)
        l1 = _highest(scores["l1"], masks[0])
        extra: list[Mask] = []
        joint = self._joint(layers, masks) if self._asks_jointly(layers) else None
        if joint is not None and joint.best not in masks:
            extra = [joint.best]
        several = self.several(layers, masks)
        for wiring in self.population.wirings:
            # What the joint oracle says is about pruned networks, not about others.
            beside = extra if wiring == "correct" else []
            some = [*masks, *beside]
            seldom = some if several is None else [*(masks[place] for place in several), *beside]
            losses, relabelled = self._losses(layers, wiring, some, l1)
            early: list[float] = []
            if self.population.early:
                early = [
                    100.0 - merit if self.metric.unit == "%" else -merit
                    for merit in self._retrained(layers, wiring, some, l1, "early", 0)["merits"]
                ]
            repeats = [
                self._retrained(layers, wiring, seldom if repeat else some, l1, "retrain", repeat)
                for repeat in range(self.population.repeats)
            ]
            count = len(masks)
            of_all = repeats if several is None else repeats[:1]
            again = range(count) if several is None else several
            own = range(len(again))
            criteria = {
                "loss": losses[:count],
                **({"early": early[:count]} if early else {}),
                "mismatch": [float(mismatches(mask, l1)) for mask in masks],
                "chance": torch.rand(count, generator=generator(0, "study", "chance", *layers)).tolist(),
                **{name: [_removed(of_layers, mask) for mask in masks] for name, of_layers in scores.items()},
            }
            panel = Panel(
                layers=layers,
                wiring=wiring,
                widths=tuple(unit.channels // unit.step for unit in self._units(self.base, layers)),
                masks=masks,
                exhaustive=exhaustive,
                criteria={name: values for name, values in criteria.items() if name in self._reported},
                accuracies=[repeat["merits"][:count] for repeat in of_all],
                test_losses=[repeat["losses"][:count] for repeat in of_all],
                several=several,
                # The first repeat has all networks, the others these alone.
                repeats=[
                    [repeat["merits"][place] for place in (own if number else again)]
                    for number, repeat in enumerate(repeats)
                ],
                l1=l1,
                l1_place=masks.index(l1) if l1 in masks else None,
                relabelling=relabelled[:count],
                metric=self.metric,
            )
            if joint is not None and wiring == "correct":
                joint.accuracies = [
                    repeat["merits"][networks.index(joint.best)]
                    for number, repeat in enumerate(repeats)
                    if joint.best in (networks := seldom if number else some)
                ]
                panel.joint = joint
            found.append(panel)
        return found

    @property
    def _reported(self) -> tuple[str, ...]:
        return (*OWN_CRITERIA, *self.population.criteria)

    def _retrained(
        self, layers: tuple[str, ...], wiring: Wiring, masks: Sequence[Mask], l1: Mask, stream: str, repeat: int
    ) -> dict[str, list[float]]:
        """What became of each network, on the test split, or after a short retraining on the validation split."""
        recipe = self.short_recipe if stream == "early" else self.recipe
        found: dict[str, list[float]] = {"accuracies": [], "losses": []}
        for some in _batched(masks, TOGETHER):
            name = _part_name(layers, wiring, f"{stream}{repeat}", some)

            def retrained(some: Sequence[Mask] = some, name: str = name) -> dict[str, Any]:
                networks = self.networks(self.base, layers, some, l1, wiring)
                sweep = Sweep(networks, self.dataset, self.precision, recipe, threads())
                sweep.train(repeat, stream)
                # A choice is made before the test set is looked at.
                scores = sweep.score(self.dataset.validation if stream == "early" else self.dataset.test)
                if not all(math.isfinite(score.loss) for score in scores):
                    raise MethodError(f"study {self._name}: a network of {name} diverged; lower the learning rate")
                return {
                    "accuracies": [score.accuracy for score in scores],
                    "losses": [score.loss for score in scores],
                    "steps": sweep.steps,
                }

            what = f"{panel_name(layers)} {wiring} {stream} {repeat}"
            part = self._kept(name, what, len(found["losses"]), len(masks), retrained)
            for key, values in found.items():
                values += part[key]
            self._steps[part.get("steps", self._base_steps)] = None
        measured = map(self._value, found["accuracies"], found["losses"])
        return {"merits": list(map(self.metric.merit, measured)), "losses": found["losses"]}

    def _losses(
        self, layers: tuple[str, ...], wiring: Wiring, masks: Sequence[Mask], l1: Mask
    ) -> tuple[list[float], list[float]]:
        """Training loss of each network before it is retrained, and the same with channels named in another order."""
        losses: list[float] = []
        others: list[float] = []
        for some in _batched(masks, TOGETHER):
            name = _part_name(layers, wiring, "pruned", some)

            def scored(some: Sequence[Mask] = some) -> dict[str, Any]:
                return {
                    "losses": self._scored(layers, self.base, some, l1, wiring),
                    "relabelled": self._scored(*self._renamed(layers, some), wiring),
                }

            part = self._kept(name, f"{panel_name(layers)} {wiring} losses", len(losses), len(masks), scored)
            losses += part["losses"]
            others += part["relabelled"]
        return losses, others

    def _scored(
        self, layers: tuple[str, ...], base: nn.Module, masks: Sequence[Mask], l1: Mask, wiring: Wiring
    ) -> list[float]:
        networks = self.networks(base, layers, masks, l1, wiring)
        scores = Sweep(networks, self.dataset, self.precision, threads=threads()).score(self.dataset.train)
        # A loss may overflow where a network was put together wrongly: it is the worst there is.
        return [score.loss if math.isfinite(score.loss) else float(2**100) for score in scores]

    def _renamed(
        self, layers: tuple[str, ...], masks: Sequence[Mask]
    ) -> tuple[tuple[str, ...], nn.Module, list[Mask], Mask]:
        """The same networks when the base's channels have other names: layers, base, masks, and the set of L1."""
        base = copy.deepcopy(self.base)
        names: list[list[int]] = []
        for unit in self._units(base, layers):
            draw = generator(0, "study", "relabel", unit.name)
            order = torch.randperm(unit.channels // unit.step, generator=draw).tolist()
            relabel(base, unit, _channels(unit, order))
            names.append([order.index(place) for place in range(len(order))])
        renamed = [
            tuple(tuple(sorted(name[channel] for channel in one)) for name, one in zip(names, mask, strict=True))
            for mask in masks
        ]
        return layers, base, renamed, _highest(self._scores(base, layers, ("l1",))["l1"], renamed[0])

    def networks(
        self, base: nn.Module, layers: Sequence[str], masks: Sequence[Mask], l1: Mask, wiring: Wiring
    ) -> list[nn.Module]:
        """Pruned networks, one for each set of filters; see :func:`wired`."""
        units = units_named(base, self._example, list(layers))
        named = {unit.name: unit for unit in units}

        def channels(mask: Mask) -> dict[str, Subset]:
            return {name: _channels(named[name], subset) for name, subset in zip(layers, mask, strict=True)}

        return [wired(base, channels(mask), channels(l1), units, wiring) for mask in masks]

    def _scores(
        self, base: nn.Module, panel: Sequence[str], methods: Sequence[str] | None = None
    ) -> dict[str, list[torch.Tensor]]:
        """Scores of the filters (heads, neurons) of each layer of a panel, by method; ``l1`` always."""
        found = {}
        for name in dict.fromkeys(("l1", *(self.population.criteria if methods is None else methods))):
            method = self._catalog.method(name).create()
            if not isinstance(method, FilterScore):
                raise ConfigError(f"study {self._name}: criteria: {name} gives filters no score")
            model = copy.deepcopy(base)
            with Meter(model) as meter:
                task = PruningTask(
                    model,
                    self._layers(model, panel),
                    self.workload,
                    self.population.ratio,
                    self.workload.prune,
                    self.dataset,
                    0,
                    meter,
                    name,
                    self.precision,
                )
                method.prepare(task)
                with torch.no_grad():
                    scores = [(unit, method.score_unit(unit, task).detach()) for unit in task.prunable]
                found[name] = [unit.candidates(of_channels)[0] for unit, of_channels in scores]
        return found

    def _joint(self, layers: tuple[str, ...], masks: Sequence[Mask]) -> Joint:
        """The exact oracle of a panel of several layers."""
        name = self._joint_name(layers, masks)
        what = f"{panel_name(layers)}: losses of all combinations"
        part = self._kept(name, what, 0, 1, lambda: vars(self._searched(layers, masks)))
        best = tuple(tuple(subset) for subset in part["best"])
        return Joint(**{**part, "best": best, "accuracies": []})

    def _joint_name(self, layers: tuple[str, ...], masks: Sequence[Mask]) -> str:
        return f"{panel_name(layers)}-joint-{self.population.joint_images}-{_digest(masks)}"

    def _searched(self, layers: tuple[str, ...], masks: Sequence[Mask]) -> Joint:
        if not isinstance(self.base, LeNet5):
            raise ConfigError(f"study {self._name}: joint_images: only LeNet-5 has an exact joint oracle")
        train = self.dataset.resident.first(self.population.joint_images)
        images, labels = next(self.dataset.inputs(train, weight_type(self.precision), len(train)))
        stay = {layer: len(one) for layer, one in zip(layers, masks[0], strict=True)}
        return search(self.base, layers, stay, masks, images, labels)


def _said(config: DataConfig | Recipe) -> dict[str, Any]:
    """All that it says, and nothing that is new and not said."""
    known = type(config).model_fields
    new = {name for name in _SINCE & known.keys() if getattr(config, name) == known[name].default}
    return config.model_dump(mode="json", exclude=new)


def _highest(scores: Sequence[torch.Tensor], like: Mask) -> Mask:
    """The set of filters with the highest scores, as many as another set has; of equals the first."""
    return tuple(
        tuple(sorted(torch.sort(of_layer, descending=True, stable=True).indices[: len(subset)].tolist()))
        for of_layer, subset in zip(scores, like, strict=True)
    )


def _channels(unit: Unit, places: Sequence[int]) -> Subset:
    """Channels of some filters, or heads, of a unit, in their order."""
    return tuple(place * unit.step + channel for place in places for channel in range(unit.step))


def _removed(scores: Sequence[torch.Tensor], mask: Mask) -> float:
    """Sum of the scores of what goes: the smaller, the less is lost."""
    return sum(
        float(of_layer.double().sum() - of_layer.double()[list(subset)].sum())
        for of_layer, subset in zip(scores, mask, strict=True)
    )


def _batched(masks: Sequence[Mask], size: int) -> Iterator[Sequence[Mask]]:
    return (masks[start : start + size] for start in range(0, len(masks), size))


def _part_name(layers: tuple[str, ...], wiring: Wiring, stream: str, masks: Sequence[Mask]) -> str:
    """What the ledger calls what was measured of some networks of a panel."""
    return f"{panel_name(layers)}@{wiring}-{stream}-{_digest(masks)}"


def _digest(masks: Sequence[Mask]) -> str:
    return hashlib.sha256(json.dumps(masks).encode()).hexdigest()[:12]
