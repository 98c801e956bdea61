"""How long runs take on this machine, told before they start: from the ledger, or from a probe of ten seconds.

A run takes its training images, its held-out images and its epochs times what each of them takes, and a fixed part. The
probe times these four on random images, through the loop, backend and checkpoint of a real run. It does so for as many
networks as ten seconds allow; the others of a family lie on a straight line over MACs.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from pruneaudit.campaign.cost import cost, widths, workload_of
from pruneaudit.catalog.discovery import Catalog, MethodSource
from pruneaudit.catalog.settings import COMPILED
from pruneaudit.ledger.records import RunRecord, RunSpec
from pruneaudit.measure.trainability import SAMPLES, jacobian
from pruneaudit.method import isolation
from pruneaudit.method.conduct import REPEATED_STEPS, Job
from pruneaudit.method.conformance import SEEDS
from pruneaudit.pruning import shapes
from pruneaudit.training.checkpoint import Checkpoint
from pruneaudit.training.loop import Trainer
from pruneaudit.training.metering import Meter
from pruneaudit.training.precision import place
from pruneaudit.training.runtime import Runtime
from pruneaudit.workloads.data import Dataset, facts, imitation
from pruneaudit.workloads.recipes import Recipe
from pruneaudit.workloads.schema import DataConfig, Workload

#: Seconds that the whole probe may take.
PROBE = 10.0
# Networks get this share of them, the pruning methods the rest.
_NETWORKS = 0.7
# Steps that a method that trains is timed over: what a step takes is the difference, what else it does the rest.
_FEW, _MORE = 4, 12
# Random images are as many as the training split has, as methods may score with all of them, up to so many bytes.
_BYTES = 2**24
_HELD_OUT = 8

Basis = Literal["ledger", "timed", "scaled"]


@dataclass(frozen=True)
class Family:
    """Networks of a workload, which differ in their widths alone, trained in one way."""

    workload: str
    batch: int
    precision: str
    steps: str


@dataclass(frozen=True)
class Network:
    """A network of a family; ``macs`` of one image."""

    family: Family
    widths: tuple[tuple[str, int], ...]
    macs: int


@dataclass(frozen=True)
class Speed:
    """What a network takes, in seconds.

    Attributes:
        train: Per training image.
        evaluate: Per held-out image.
        epoch: Per epoch, besides: its order, its curves, its checkpoint.
        run: Per run, besides: building it, and the singular values of its Jacobian.
    """

    train: float
    evaluate: float
    epoch: float
    run: float


@dataclass(frozen=True)
class Decision:
    """What a method takes to decide once, in seconds: ``fixed``, and ``step`` for each training step."""

    fixed: float
    step: float

    def seconds(self, steps: int) -> float:
        """One decision with so many training steps."""
        return self.fixed + self.step * steps


@dataclass(frozen=True)
class Estimate:
    """Duration of a run in seconds, and whether the ledger told it, the probe timed it, or it was scaled from that."""

    seconds: float
    basis: Basis


def clock(device: str) -> float:
    """Seconds: of this process on a CPU, where runs have one thread and others may have the rest; else of the wall."""
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def kind(run: RunSpec, macs: int) -> tuple[object, ...]:
    """What runs have in common that take as long for each MAC."""
    method = run.method if run.stage == "prune" else None
    recipe = run.recipe
    steps = recipe.micro_batch, recipe.only_torch
    return run.workload, run.stage, method, macs, *steps, run.budget, run.precision, run.backend


def known(records: Iterable[RunRecord], catalog: Catalog, device: str, name: str) -> dict[tuple[object, ...], float]:
    """Seconds per MAC of each kind of run, as a ledger has them: the median over its runs.

    Args:
        records: What was measured.
        catalog: Methods and workloads.
        device: Kind of device; runs of others do not count.
        name: The device, as records name it.
    """
    found: dict[tuple[object, ...], list[float]] = defaultdict(list)
    for record in records:
        # Of a resumed run only the last attempt was timed.
        if record.resumed or (record.device, record.environment.get("device")) != (device, name):
            continue
        try:
            needed = cost(record, catalog)
        except Exception:
            continue  # of a method that is no longer there, say
        found[kind(record, needed.macs)].append(record.seconds / needed.total)
    return {key: statistics.median(values) for key, values in found.items()}


def decisions(check: str, method: str, steps: int, ratios: int) -> tuple[int, int]:
    """How often a conformance check lets a method decide, and how often it lets it begin only.

    Args:
        check: Name of the check.
        method: Name of the method.
        steps: Training steps that the method declares.
        ratios: Ratios of the workload.
    """
    is_random = method == "random" or method.startswith("random-")
    return {
        "meets-target": (ratios, 0),
        "deterministic": (2, 0),
        "masked-equals-shrunk": (1, 0),
        "spends-its-budget": (1, 0),
        "leaves-weights": (0 if steps else 1, 0),
        "behaves": (1, 2) if steps else (2, 0),
        "remembers-nothing": (5, 0),
        "uniform-over-width": (SEEDS * ratios if is_random else 0, 0),
    }.get(check, (0, 0))


class Calibration:
    """What each run of a selection takes.

    Args:
        catalog: Methods and workloads.
        device: ``cpu`` or ``cuda``.
        known: Seconds per MAC of kinds of runs, from the ledger.

    Attributes:
        first: Seconds that the first use of torch took, and counting each network: once for each process.
    """

    def __init__(self, catalog: Catalog, device: str, known: Mapping[tuple[object, ...], float] | None = None) -> None:
        self.first = 0.0
        self._catalog = catalog
        self._device = device
        self._known = known or {}
        self._speeds: dict[Network, Speed] = {}
        self._decisions: dict[tuple[str, Family], Decision] = {}
        self._data: dict[DataConfig, Dataset] = {}

    def probe(self, runs: Sequence[RunSpec], checks: Iterable[tuple[str, str]] = (), seconds: float = PROBE) -> None:
        """Time what the ledger does not know, what computes most first.

        Args:
            runs: What is to be trained.
            checks: Method and workload of each conformance check.
            seconds: How long it may take.
        """
        share: dict[Network, float] = defaultdict(float)
        deciding: dict[tuple[str, Network], float] = defaultdict(float)
        for run in runs:
            needed = cost(run, self._catalog)
            if kind(run, needed.macs) in self._known:
                continue
            share[self._network(run)] += needed.total
            if run.stage == "prune" and run.method:
                deciding[run.method, self._network(run)] += needed.total
        for method, name in checks:
            network = self._dense(self._catalog.workload(name))
            share[network] += network.macs
            deciding[method, network] += network.macs
        order = _first_the_ends(share)
        if not order:
            return
        started = clock(self._device)
        self._warm_up(order[0])
        self.first += clock(self._device) - started
        began = clock(self._device)
        for number, network in enumerate(order):
            left = seconds * _NETWORKS - (clock(self._device) - began)
            if left <= 0:
                break
            self._speeds[network] = self._time(network, left / (len(order) - number))
        for method, network in sorted(deciding, key=lambda pair: -deciding[pair]):
            left = seconds - (clock(self._device) - began)
            if left <= 0:
                break
            found = self._time_method(self._catalog.method(method), network, left)
            if found is not None:
                self._decisions[method, network.family] = found

    def estimate(self, run: RunSpec) -> Estimate:
        """How long a run will take."""
        needed, sizes = cost(run, self._catalog), facts(run.data)
        rate = self._known.get(kind(run, needed.macs))
        if rate is not None:
            return Estimate(rate * needed.total, "ledger")
        network = self._network(run)
        speed, basis = self.speed(network)
        held_out = sizes.validation + sizes.test
        seconds = speed.run + needed.passes * speed.epoch + (needed.passes + 1) * held_out * speed.evaluate
        if run.stage == "prune" and run.method:
            decision = self._decision(run.method, network)
            steps = run.recipe.steps or 0
            # What it does is repeated: all of it, or the first steps twice.
            again = 2 * decision.seconds(REPEATED_STEPS) if steps else decision.seconds(0)
            seconds += decision.seconds(steps) + again
            if (run.method, network.family) not in self._decisions:
                basis = "scaled"
        else:
            seconds += needed.epochs * sizes.train * speed.train / run.recipe.ranks
        return Estimate(seconds, basis)

    def check(self, name: str, method: str, workload: str) -> float:
        """How many seconds a conformance check takes."""
        scaled = self._catalog.workload(workload).scaled("smoke")
        steps = self._catalog.method(method).create().budget(scaled).steps
        network, sizes = self._dense(scaled), facts(scaled.data)
        whole, few = decisions(name, method, steps, len(scaled.ratios))
        decision, (speed, _) = self._decision(method, network), self.speed(network)
        passes = -(-steps * scaled.prune.batch // sizes.train)
        closing = passes * (speed.epoch + (sizes.validation + sizes.test) * speed.evaluate)
        return whole * (decision.seconds(steps) + closing) + few * decision.seconds(REPEATED_STEPS)

    def speed(self, network: Network) -> tuple[Speed, Basis]:
        """What a network takes, timed or on the line through those that were.

        Raises:
            ValueError: Nothing was timed.
        """
        if network in self._speeds:
            return self._speeds[network], "timed"
        family = {other: speed for other, speed in self._speeds.items() if other.family == network.family}
        points = {other.macs: speed for other, speed in (family or self._speeds).items()}
        return scaled(points, network.macs), "scaled"

    def _decision(self, method: str, network: Network) -> Decision:
        """What a method takes; where it was not timed, its steps are plain ones, and the rest is the others' median."""
        if (method, network.family) in self._decisions:
            return self._decisions[method, network.family]
        speed, _ = self.speed(network)
        others = [found.fixed for (_, family), found in self._decisions.items() if family == network.family]
        return Decision(statistics.median(others) if others else 0.0, speed.train * network.family.batch)

    def _network(self, run: RunSpec) -> Network:
        """The network that a run trains."""
        workload = workload_of(run, self._catalog)
        # In a pruning stage torch makes the steps, whatever the backend; others that train several at once are timed
        # as torch as well: runs are planned one at a time.
        is_compiled = run.backend in COMPILED and run.stage != "prune" and not run.recipe.only_torch
        steps = run.backend if is_compiled else "torch"
        return _network(workload, run.recipe.micro_batch, run.precision, steps, widths(run, workload, self._catalog))

    def _dense(self, workload: Workload) -> Network:
        """The network that a conformance check prunes."""
        return _network(workload, workload.prune.batch)

    def _images(self, data: DataConfig) -> Dataset:
        """Random images in the size of a dataset."""
        if data not in self._data:
            sizes = facts(data)
            count = min(sizes.train, max(_BYTES // sizes.values, 64))
            self._data[data] = imitation(data, count, _HELD_OUT).to(torch.device(self._device))
        return self._data[data]

    def _build(self, network: Network) -> nn.Module:
        workload = self._catalog.workload(network.family.workload)
        return place(shapes.network(workload, dict(network.widths)), self._device, network.family.precision)

    def _warm_up(self, network: Network) -> None:
        """Load what torch loads late, and compile what is to be compiled."""
        self._epoch(network, self._build(network), 2)

    def _epoch(self, network: Network, model: nn.Module, images: int, held_out: int = 1) -> float:
        """Seconds of an epoch on so many images, with an evaluation of twice so many held-out ones."""
        family = network.family
        dataset = self._images(self._catalog.workload(family.workload).data)
        part = dataset.train.first(held_out)
        some = replace(dataset, train=dataset.train.first(images), validation=part, test=part)
        # Of two epochs the first, which ends as all but the last one do.
        recipe = Recipe(epochs=2, lr="0:1e-4", batch=min(images, family.batch), momentum=0.9)
        with tempfile.TemporaryDirectory() as folder, Meter(model) as meter:
            checkpoint = Checkpoint(Path(folder) / "state.safetensors", self._device)
            started = clock(self._device)
            trainer = Trainer(
                model, some, recipe, 0, "probe", meter, family.precision, checkpoint, backend=family.steps
            )
            trainer.fit(until=1)
            return clock(self._device) - started

    def _time(self, network: Network, seconds: float) -> Speed:
        """Time a network's epochs of several sizes, its singular values and how long it takes to build."""
        family, workload = network.family, self._catalog.workload(network.family.workload)
        sizes, dataset = facts(workload.data), self._images(workload.data)
        started = clock(self._device)
        shapes.shape_of(workload, dict(network.widths))
        counted = clock(self._device)
        model = self._build(network)
        build = clock(self._device) - counted
        self.first += counted - started
        # As many images as the time allows, a whole batch at best.
        images, taken = 2, self._epoch(network, model, 2)
        while images < family.batch and 4 * taken < seconds / 10:
            images = min(4 * images, family.batch)
            taken = self._epoch(network, model, images)
        images = min(images, len(dataset.train) // 3)
        each = taken / images
        held_out = max(2, min(512, sizes.test, len(dataset.train), int(seconds / 4 / each)))
        kinds = ((images, 1), (3 * images, 1), (images, held_out))
        plain, longer, judged = _medians(
            [partial(self._epoch, network, model, *kind) for kind in kinds],
            partial(clock, self._device),
            seconds / 2,
        )
        samples = min(SAMPLES, sizes.train)
        slopes = samples * self._time_slopes(model, dataset, min(samples, int(seconds / 2 / (each * sizes.classes))))
        train = max((longer - plain) / (2 * images), 0.0)
        evaluate = max((judged - plain) / (2 * (held_out - 1)), 0.0)
        return Speed(train, evaluate, max(plain - images * train - 2 * evaluate, 0.0), build + slopes)

    def _time_slopes(self, model: nn.Module, dataset: Dataset, most: int) -> float:
        """Seconds that the singular values of an image take, timed on so many at most; tokens have none."""
        if not dataset.example().is_floating_point():
            return 0.0
        samples = max(1, min(len(dataset.train), most))
        jacobian(model, dataset, 1)
        started = clock(self._device)
        jacobian(model, dataset, samples)
        return (clock(self._device) - started) / samples

    def _time_method(self, source: MethodSource, network: Network, seconds: float) -> Decision | None:
        """Time what a method takes to decide; None where it takes too long, or cannot."""
        deadline = clock(self._device) + seconds

        def over(*_: object) -> None:
            if clock(self._device) > deadline:
                raise TimeoutError

        workload = self._catalog.workload(network.family.workload)
        dense = self._build(network)
        dense.register_forward_pre_hook(over)
        try:
            needed = source.create().budget(workload)
            plain = self.speed(network)[0].train * network.family.batch
            if needed.steps and 1.5 * plain * (_FEW + _MORE + 4 * REPEATED_STEPS) > seconds:
                return None
            few = self._watched(source, workload, dense, network, _FEW if needed.steps else 0)
            if not needed.steps:
                return None if clock(self._device) > deadline else Decision(few / 2, 0.0)
            more = self._watched(source, workload, dense, network, _MORE)
        except Exception:
            # What a method says to random weights is no matter here.
            return None
        step = max((more - few) / (_MORE - _FEW), plain)
        fixed = max(few - step * (_FEW + 2 * REPEATED_STEPS), 0.0) / 3
        return None if clock(self._device) > deadline else Decision(fixed, step)

    def _watched(
        self, source: MethodSource, workload: Workload, dense: nn.Module, network: Network, steps: int
    ) -> float:
        """Seconds of a pruning stage of so many steps, repetitions included."""
        budget = source.create().budget(workload)
        job = Job(
            inherit=lambda: copy.deepcopy(dense),
            workload=workload,
            dataset=self._images(workload.data),
            prunable=workload.prunable,
            skip=workload.skip,
            ratio=workload.ratios[0],
            recipe=workload.prune.model_copy(update={"steps": steps, "lr": budget.lr or workload.prune.lr}),
            seed=0,
            precision=network.family.precision,
            initial=lambda _epoch: dense.state_dict(),
        )
        started = clock(self._device)
        isolation.observe(source, job, lambda: "", runtime=Runtime(self._device))
        return clock(self._device) - started


def scaled(points: Mapping[int, Speed], macs: int) -> Speed:
    """What a network of so many MACs takes, by the line of least squares through others.

    Args:
        points: What networks take, by their MACs.
        macs: MACs of the network; of only one other it takes as much as their ratio says.

    Raises:
        ValueError: There is no other.
    """
    if not points:
        raise ValueError("nothing was timed")
    sizes = np.array(list(points), dtype=float)
    values = np.array([astuple(speed) for speed in points.values()])
    if len(sizes) == 1:
        return Speed(*(values[0] * macs / sizes[0]).tolist())
    slope, start = np.polyfit(sizes, values, 1)
    return Speed(*np.maximum(start + slope * macs, 0.0).tolist())


def _network(
    workload: Workload,
    batch: int,
    precision: str = "fp32",
    steps: str = "torch",
    widths: Mapping[str, int] | None = None,
) -> Network:
    family = Family(workload.name, batch, precision, steps)
    return Network(family, tuple((widths or {}).items()), shapes.costs(workload).of_widths(widths or {}))


def _first_the_ends(share: Mapping[Network, float]) -> list[Network]:
    """Networks in the order of their share: first the largest and the smallest of each family, then those between."""
    families: dict[Family, list[Network]] = defaultdict(list)
    for network in sorted(share, key=lambda network: network.macs):
        families[network.family].append(network)
    ordered = sorted(families.values(), key=lambda members: -sum(share[member] for member in members))
    ends = [member for members in ordered for member in dict.fromkeys((members[-1], members[0]))]
    return list(dict.fromkeys([*ends, *sorted(share, key=lambda network: -share[network])]))


def _medians(
    actions: Sequence[Callable[[], float]], now: Callable[[], float], seconds: float, most: int = 9
) -> list[float]:
    """Medians of what some actions say, taken in turns while there is time, at least once."""
    found: list[list[float]] = [[] for _ in actions]
    began = now()
    for number in range(most):
        if number and now() - began > seconds * number / (number + 1):
            break
        for values, action in zip(found, actions, strict=True):
            values.append(action())
    return [statistics.median(values) for values in found]
