"""Checks that a workload can be audited: seconds in all, nothing trained, no ledger. Importing this loads no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.workloads import brought
from pruneaudit.errors import AuditError, ConfigError, one_line, unknown
from pruneaudit.workloads.schema import Workload

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pruneaudit.pruning.shapes import Units
    from pruneaudit.training.metering import Consumption
    from pruneaudit.workloads.data import Dataset, Split
    from pruneaudit.workloads.recipes import Recipe

#: Largest difference of the outputs of masked and shrunk network in float64, relative to the outputs' scale.
EQUIVALENCE_TOLERANCE = 1e-10
#: Examples of each split that networks see here; all are read.
_EXAMPLES = 64


def check_workload(workload: str | Path | Workload, data_root: str | Path | None = None) -> dict[str, Units]:
    """Run all checks on a workload: one call for the tests of the repository that it lives in.

    Args:
        workload: Its file, a folder of them or ``package.module:attribute``, as for ``--audit-workload``; or the name
            of one that the catalogue has.
        data_root: Folder of datasets; None: ``$PRUNEAUDIT_DATA``.

    Returns:
        By the name of the workload, its ``units``, and as ``refused`` why other layers stay whole, by their names.

    Raises:
        ConfigError: It is none, or cannot be audited; the message then starts with the name of the first check that
            fails.
        DataMissingError: Its data is not on this machine.
    """
    import torch

    from pruneaudit.pruning import shapes
    from pruneaudit.workloads.data import data_root as data_folder

    root = data_folder(str(data_root) if data_root is not None else None)
    threads = torch.get_num_threads()
    try:
        found = {}
        for one in _workloads(workload):
            _check_all(Bench(one, root))
            found[one.name] = shapes.units(one)
        return found
    finally:
        # Runs train on one thread; the tests around this one need not.
        torch.set_num_threads(threads)


def _workloads(given: str | Path | Workload) -> list[Workload]:
    if isinstance(given, Workload):
        return [given]
    known = Catalog().workloads
    if str(given) in known:
        return [known[str(given)]]
    if re.fullmatch(r"[\w-]+", str(given)) and not Path(given).exists():
        raise unknown("workload", str(given), known)
    return [one.workload for one in brought(str(given), f"check_workload {given}")]


def _check_all(bench: Bench) -> None:
    from pruneaudit.training.runtime import Runtime

    Runtime().prepare()
    for name, run in WORKLOAD_CHECKS.items():
        try:
            run(bench)
        except AuditError as error:
            # Where data is missing, that is the message, and tests may skip.
            raise type(error)(f"{bench.workload.name}: {name}: {one_line(error)}") from error
        except Exception as error:
            raise ConfigError(f"{bench.workload.name}: {name}: {one_line(error)}") from error


class Bench:
    """A workload, with its data and its networks.

    Args:
        workload: The workload.
        root: Folder of datasets, or None.
    """

    def __init__(self, workload: Workload, root: Path | None) -> None:
        self.workload = workload
        self.root = root

    @cached_property
    def data(self) -> Dataset:
        """The data, all of it."""
        from pruneaudit.workloads.data import load

        return load(self.workload.data, self.root)

    @cached_property
    def few(self) -> Dataset:
        """The data with a few examples in each split."""
        import numpy as np

        from pruneaudit.workloads.data import Streamed

        def first(part: Split, augmented: bool) -> Split:
            if not (augmented and isinstance(part, Streamed)):
                return part.first(_EXAMPLES)
            # Augmentation takes single examples from where they are.
            labels = part.labels[:_EXAMPLES]
            return replace(part, examples=part.examples.take(np.arange(len(labels))), labels=labels, workers=0)

        data = self.data
        return replace(
            data,
            train=first(data.train, data.augment is not None),
            validation=first(data.validation, False),
            test=first(data.test, False),
        )

    def network(self, seed: int = 0, precision: str = "fp32", widths: Mapping[str, int] | None = None) -> nn.Module:
        """A network of some widths (none: dense) with the initialisation of a seed."""
        from pruneaudit.pruning import shapes
        from pruneaudit.streams import generator
        from pruneaudit.training.precision import place
        from pruneaudit.workloads.models.initialise import initialise

        model = shapes.network(self.workload, dict(widths or {}))
        initialise(model, generator(seed, "conformance"))
        return place(model, "cpu", precision)

    def inputs(self, precision: str = "fp32") -> torch.Tensor:
        """A few inputs as networks take them."""
        from pruneaudit.training.precision import weight_type

        return next(self.few.inputs(self.few.train, weight_type(precision)))[0]

    def batch(self, recipe: Recipe) -> int:
        """Examples of one of its steps here."""
        return min(recipe.batch, len(self.few.train) // 2)

    def train(self, model: nn.Module, recipe: Recipe, seed: int = 0) -> Consumption:
        """Train a network for two steps, on a few examples."""
        from pruneaudit.training.loop import Trainer
        from pruneaudit.training.metering import Meter

        short = recipe.model_copy(update={"batch": self.batch(recipe), "epochs": None, "steps": 2})
        with Meter(model) as meter:
            Trainer(model, self.few, short, seed, "conformance", meter).fit()
        return meter.consumption


def _data(bench: Bench) -> None:
    """Three splits with the classes that they say, the same when they are read again."""
    from pruneaudit.workloads.data import facts, load
    from pruneaudit.workloads.data.brought import find

    data, sizes = bench.data, facts(bench.workload.data)
    for name in ("train", "validation", "test"):
        part = getattr(data, name)
        if len(part) != getattr(sizes, name):
            raise ConfigError(f"{name} split has {len(part)} examples, {getattr(sizes, name)} were planned")
        found = part.labels.unique().tolist()
        if found[0] < 0 or found[-1] >= data.classes:
            wrong = found[0] if found[0] < 0 else found[-1]
            raise ConfigError(f"{name} split has label {wrong}; labels are 0 to {data.classes - 1}")
    absent = sorted(set(range(data.classes)) - set(data.train.labels.unique().tolist()))
    if absent:
        raise ConfigError(f"no training example has label {absent[0]}, and there are {data.classes} classes")
    load.cache_clear()
    find.cache_clear()
    if load(bench.workload.data, bench.root).split_digest != data.split_digest:
        raise ConfigError("examples or splits differ when the data is read again; draw nothing without a fixed seed")


def _network(bench: Bench) -> None:
    """A batch becomes logits, and a network is new whenever it is built."""
    import torch

    from pruneaudit.pruning import shapes

    shapes.check(bench.workload)
    first, again, other = bench.network(seed=0), bench.network(seed=0), bench.network(seed=1)
    shared = {parameter.data_ptr() for parameter in first.parameters()} & {
        parameter.data_ptr() for parameter in again.parameters()
    }
    if shared:
        raise ConfigError(f"{bench.workload.model} returns one network again and again; build a new one in every call")
    for name, tensor in again.state_dict().items():
        before = first.state_dict().get(name)
        if before is None or not torch.equal(before, tensor):
            raise ConfigError(f"'{name}' differs when the network is built again with the same seed")
    if all(torch.equal(tensor, first.state_dict()[name]) for name, tensor in other.state_dict().items()):
        raise ConfigError("no weight depends on the seed; torch's layers draw theirs")
    inputs = bench.inputs()
    with torch.no_grad():
        logits = first.eval()(inputs)
        if logits.shape != (len(inputs), bench.data.classes):
            raise ConfigError(
                f"{len(inputs)} inputs give {list(logits.shape)}, expected {[len(inputs), bench.data.classes]}"
            )
        if not torch.isfinite(logits).all():
            raise ConfigError("logits of a fresh network are not finite; are the inputs normalised?")
        alone = first(inputs[:1])
    if not torch.allclose(alone, logits[:1], rtol=1e-3, atol=1e-4 * float(logits.abs().max())):
        raise ConfigError("in evaluation, the logits of an input depend on the others of its batch")


def _units(bench: Bench) -> None:
    """There is something to remove at every ratio, and what is left runs and costs what it is said to cost."""
    import torch

    from pruneaudit.pruning import shapes

    workload = bench.workload
    for ratio in workload.ratios:
        widths = shapes.widths_at(workload, ratio)
        dense = shapes.costs(workload).filters
        if all(widths[name] == dense[name] for name in widths):
            raise ConfigError(f"at ratio {ratio:g} nothing is removed: the layers have too few filters")
        with torch.no_grad():
            logits = bench.network(widths=widths).eval()(bench.inputs())
        if logits.shape != (len(bench.few.train), bench.data.classes) or not torch.isfinite(logits).all():
            raise ConfigError(f"at ratio {ratio:g} the network gives no finite logits any more")
    for widths in ({}, *(shapes.widths_at(workload, ratio) for ratio in workload.ratios)):
        size, planned = shapes.shape_of(workload, widths), shapes.costs(workload).of_widths(widths)
        if len({size.macs, size.recounted, planned}) > 1:
            where = "dense" if not widths else f"pruned to {widths}"
            raise ConfigError(
                f"MACs of the network, {where}: {size.macs} by fvcore, {size.recounted} by torch, {planned} as planned"
            )


def _masked_equals_shrunk(bench: Bench) -> None:
    """Without some filters of a layer the network computes what it computes with them silenced, in float64."""
    import torch

    from pruneaudit.method.answers import Answer
    from pruneaudit.method.conduct import equivalence
    from pruneaudit.pruning import shapes
    from pruneaudit.streams import generator

    model, draw = bench.network(precision="fp64"), generator(0, "conformance", "kept")
    _as_if_trained(model, draw)
    dense = shapes.costs(bench.workload).filters
    widths = shapes.widths_at(bench.workload, bench.workload.ratios[-1])
    kept = {
        name: sorted(torch.randperm(dense[name], generator=draw)[:width].tolist())
        for name, width in widths.items()
        if width
    }
    everything = Answer(kept, {})
    if equivalence(model, everything, bench.few) <= EQUIVALENCE_TOLERANCE:
        return
    apart = {name: equivalence(model, Answer({name: indices}, {}), bench.few) for name, indices in kept.items()}
    worst = max(apart, key=lambda name: apart[name])
    raise ConfigError(
        f"removing filters of '{worst}' is not what silencing them is: outputs differ by {apart[worst]:.1e}; "
        "name other layers in prunable, or add it to skip"
    )


def _as_if_trained(model: nn.Module, draw: torch.Generator) -> None:
    """Scales, shifts and statistics as training leaves them: ones and zeros would hide what is cut wrong."""
    import torch

    with torch.no_grad():
        statistics = [
            tensor for name, tensor in model.named_buffers() if name.endswith(("running_mean", "running_var"))
        ]
        for tensor in [*statistics, *(parameter for parameter in model.parameters() if parameter.dim() == 1)]:
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=draw, dtype=torch.float64))


def _trains(bench: Bench) -> None:
    """Every recipe makes steps that change the weights, and the meter reads what passes."""
    import torch

    for stage in ("pretrain", "prune", "retrain", "scratch"):
        recipe: Recipe = getattr(bench.workload, stage)
        model = bench.network()
        before = {name: tensor.clone() for name, tensor in model.named_parameters()}
        consumed = bench.train(model, recipe)
        if all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters()):
            raise ConfigError(f"two steps of {stage} change no weight")
        given = 2 * bench.batch(recipe)
        if consumed.training_samples != given:
            raise ConfigError(
                f"of {given} examples the meter reads {consumed.training_samples} at the busiest layer: each layer "
                "must see each example once, as one entry of its first dimension"
            )


def _is_deterministic(bench: Bench) -> None:
    """The same seed gives the same weights."""
    import torch

    first, second = (bench.network() for _ in range(2))
    for model in (first, second):
        bench.train(model, bench.workload.pretrain)
    for name, tensor in second.state_dict().items():
        if not torch.equal(tensor, first.state_dict()[name]):
            raise ConfigError(
                f"'{name}' differs after the same two steps; draw noise from torch's global generator, and keep "
                "nothing outside the network"
            )


def _can_be_stored(bench: Bench) -> None:
    """Weights that are written and read again compute the same: nothing that counts lies beside them."""
    import torch
    from safetensors.torch import load as read
    from safetensors.torch import save

    model, inputs = bench.network(), bench.inputs()
    bench.train(model, bench.workload.pretrain)
    again = bench.network(seed=1)
    again.load_state_dict(read(save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})))
    with torch.no_grad():
        same = torch.equal(model.eval()(inputs), again.eval()(inputs))
    if not same:
        raise ConfigError(
            "a network with the stored weights computes something else; register what it keeps as buffers"
        )


WORKLOAD_CHECKS: dict[str, Callable[[Bench], None]] = {
    "data": _data,
    "network": _network,
    "units": _units,
    "masked-equals-shrunk": _masked_equals_shrunk,
    "trains": _trains,
    "deterministic": _is_deterministic,
    "can-be-stored": _can_be_stored,
}
