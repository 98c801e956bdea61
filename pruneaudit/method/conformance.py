"""Checks that a method keeps its contract: seconds each, no trained network, no ledger.

Each check prunes a freshly initialised network of a workload under the smoke budget. Importing this loads no torch.
"""

from __future__ import annotations

import copy
import inspect
import statistics
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruneaudit.catalog.discovery import Catalog, MethodSource
from pruneaudit.catalog.names import method_id
from pruneaudit.errors import MethodError, one_line, unknown

if TYPE_CHECKING:
    from torch import nn

    from pruneaudit.method.answers import Answer
    from pruneaudit.method.conduct import Job, Pruned
    from pruneaudit.method.contract import Method
    from pruneaudit.training.metering import Consumption
    from pruneaudit.training.runtime import Runtime
    from pruneaudit.workloads.schema import Workload

#: Seeds over which a random control's share of kept filters is averaged.
SEEDS = 3
#: Largest difference of the outputs of masked and shrunk network in float64, relative to the outputs' scale.
EQUIVALENCE_TOLERANCE = 1e-9
#: A network that has not been trained is at most this many times as good as guessing.
CHANCE_FACTOR = 3.0


def check(name: str, catalog: Catalog, method: str, workload: str, runtime: Runtime) -> None:
    """Run one check.

    Raises:
        MethodError: The method breaks its contract; one line says how.
    """
    checks = {**METHOD_CHECKS, **SCRATCH_CHECKS}
    if name not in checks:
        raise unknown("conformance check", name, checks)
    source = catalog.method(method)
    see_that_it_applies(source, catalog.workload(workload))
    checks[name](Bench(source, catalog.workload(workload), runtime))


def see_that_it_applies(source: MethodSource, workload: Workload) -> None:
    """Refuse a method that applies nowhere.

    Raises:
        MethodError: It says so of this workload; whoever asks has seen that it applies nowhere else either.
    """
    reason = source.create().skip(workload)
    if reason:
        raise MethodError(f"method '{source.name}' applies to no workload; of {workload.name} it says: {reason}")


def check_method(method: type[Method] | Method, workload: str = "lenet5-digits") -> None:
    """Run all checks on a method class: one call for the tests of the repository that the method lives in.

    Args:
        method: The class; of an instance its class, made anew with the defaults, as in every run.
        workload: Name of the workload that it prunes.

    Raises:
        MethodError: The method breaks its contract; the message starts with the name of the first check that fails.
        ConfigError: There is no such workload.
    """
    import torch

    from pruneaudit.method.contract import Method

    cls = method if isinstance(method, type) else type(method)
    if not issubclass(cls, Method):
        what = cls.__name__ if cls is method else f"an object of type {cls.__name__}"
        raise MethodError(f"{what} is no Method; derive it from pruneaudit.FilterScore or pruneaudit.TrainedMethod")
    threads = torch.get_num_threads()
    try:
        _check_all(cls, Catalog().workload(workload))
    finally:
        # Runs train on one thread; the tests around this one need not.
        torch.set_num_threads(threads)


def _check_all(cls: type[Method], workload: Workload) -> None:
    from pruneaudit.method.contract import ScratchArm
    from pruneaudit.training.runtime import Runtime

    source = _GivenClass(method_id(cls.__name__), given=cls)
    reason = source.create().skip(workload)
    if reason:
        raise MethodError(f"method '{source.name}' does not apply to {workload.name} ({reason}); name another workload")
    bench = Bench(source, workload, Runtime())
    for name, run in (SCRATCH_CHECKS if issubclass(cls, ScratchArm) else METHOD_CHECKS).items():
        try:
            run(bench)
        except Exception as error:
            raise MethodError(f"{name}: {one_line(error)}") from error


@dataclass(frozen=True)
class _GivenClass(MethodSource):
    """A class at hand, where the catalogue would know the file to import.

    Attributes:
        given: The class.
    """

    given: type[Method] | None = None

    @cached_property
    def cls(self) -> type[Method]:
        """The class."""
        assert self.given is not None
        return self.given

    def anew(self) -> MethodSource:
        """The class from its file, imported once more; the same again where that cannot be done."""
        if self.cls.__module__.endswith("_again"):
            # The file that is being imported once more calls check_method itself.
            return self
        try:
            again = MethodSource(self.name, path=Path(inspect.getfile(self.cls))).anew()
        except (Exception, SystemExit):
            # Typed into a notebook, one of several in its file, a part of a package, …: none of that is a fault.
            return self
        return again if again.cls.__qualname__ == self.cls.__qualname__ else self


class Bench:
    """A method on a small job of a workload.

    Args:
        source: Where instances come from.
        workload: What is pruned; scaled down here.
        runtime: Device and data.
    """

    def __init__(self, source: MethodSource, workload: Workload, runtime: Runtime) -> None:
        from pruneaudit.pruning import shapes
        from pruneaudit.workloads.data import load

        self.source = source
        self.workload = workload.scaled("smoke")
        shapes.check(self.workload)
        self.runtime = runtime
        runtime.prepare()
        self.dataset = load(self.workload.data, runtime.data_root, runtime.download)

    def anew(self) -> Bench:
        """The same job for the method as its file defines it, imported once more."""
        bench = copy.copy(self)
        bench.source = self.source.anew()
        return bench

    def method(self) -> Method:
        """A fresh instance."""
        return self.source.create()

    def dense(self, precision: str = "fp32", seed: int = 0) -> nn.Module:
        """The workload's network with the initialisation of a seed."""
        from pruneaudit.pruning import shapes
        from pruneaudit.streams import generator
        from pruneaudit.training.precision import place
        from pruneaudit.workloads.models.initialise import initialise

        model = shapes.dense_network(self.workload)
        initialise(model, generator(seed, "conformance"))
        return place(model, self.runtime.device, precision)

    def prune(self, model: nn.Module, ratio: float, seed: int = 0) -> tuple[Answer, Consumption]:
        """Let the method prune a network; its checked answer, and what the meter read."""
        from pruneaudit.method.conduct import prune

        return prune(self.source, self._job(ratio, seed), model)

    def observe(self, ratio: float, seed: int = 0) -> Pruned:
        """Let the method prune a fresh network while it is watched, and once more."""
        from pruneaudit.method.conduct import observe
        from pruneaudit.workloads.data import stored_at

        places = {"data": stored_at(self.runtime.data_root, self.workload.data)}
        return observe(self.source, self._job(ratio, seed), lambda: "", places)

    def _job(self, ratio: float, seed: int) -> Job:
        import torch

        from pruneaudit.method.conduct import Job

        workload = self.workload
        budget = self.method().budget(workload)
        return Job(
            inherit=lambda: self.dense(seed=seed),
            workload=workload,
            dataset=self.dataset.to(torch.device(self.runtime.device)),
            prunable=workload.prunable,
            skip=workload.skip,
            ratio=ratio,
            recipe=workload.prune.model_copy(update={"steps": budget.steps, "lr": budget.lr or workload.prune.lr}),
            seed=seed,
            # Whatever an epoch of its training would have changed: this base was never trained.
            initial=lambda _epoch: self.dense(seed=seed).state_dict(),
        )


def _describes_itself(bench: Bench) -> None:
    """Docstring, hyper-parameters that can be recorded, and a budget that can be planned."""
    from pruneaudit.method.contract import Budget, recordable
    from pruneaudit.workloads.recipes import Recipe

    method = bench.method()
    if not method.summary():
        raise MethodError(f"method '{method.name}' has no docstring; say what it does and where it is published")
    recordable(method)
    budget = method.budget(bench.workload)
    if not isinstance(budget, Budget):
        raise MethodError(f"method '{method.name}': budget() must return a Budget, not {type(budget).__name__}")
    try:
        Recipe(steps=budget.steps, lr=budget.lr or bench.workload.prune.lr, batch=1)
    except ValueError as error:
        raise MethodError(f"method '{method.name}': budget() cannot be planned: {one_line(error)}") from None


def _meets_target(bench: Bench) -> None:
    """Valid indices and the asked number of filters, at every ratio of the workload."""
    for ratio in bench.workload.ratios:
        bench.prune(bench.dense(), ratio)


def _is_deterministic(bench: Bench) -> None:
    """The same seed gives the same filters and the same weights."""
    first, second = (_answer(bench, bench.workload.ratios[0], seed=0) for _ in range(2))
    if first[0] != second[0]:
        raise MethodError(f"method '{bench.source.name}' keeps something else when run again with the same seed")
    if first[1] != second[1]:
        raise MethodError(f"method '{bench.source.name}' leaves other weights when run again with the same seed")


def _masked_equals_shrunk(bench: Bench) -> None:
    """In float64 the network without the filters computes what the network with silenced filters computes."""
    from pruneaudit.method.conduct import equivalence
    from pruneaudit.pruning.equivalence import trained_like
    from pruneaudit.streams import generator

    model = bench.dense("fp64")
    # Fresh normalisations have no shift: a fault behind them would not show.
    trained_like(model, generator(0, "conformance", "trained"))
    try:
        answer, _ = bench.prune(model, bench.workload.ratios[0])
    except MethodError as error:
        if "dtype" in str(error).lower() or "double" in str(error).lower():
            raise MethodError(f"{error} (this check prunes a float64 network: follow layer.weight.dtype)") from error
        raise
    apart = equivalence(model, answer, bench.dataset)
    if not apart <= EQUIVALENCE_TOLERANCE:
        raise MethodError(f"method '{bench.source.name}': masked and shrunk network differ by {apart:.1e} in float64")


def _spends_its_budget(bench: Bench) -> None:
    """The steps and the images with gradients that the meter reads are those that the method declares."""
    budget = bench.method().budget(bench.workload)
    _, consumed = bench.prune(bench.dense(), bench.workload.ratios[0])
    who = f"method '{bench.source.name}'"
    if consumed.optimiser_steps != budget.steps:
        raise MethodError(f"{who} declares {budget.steps} optimiser steps and takes {consumed.optimiser_steps}")
    most = budget.steps * bench.workload.prune.batch + budget.samples
    if consumed.training_samples > most:
        raise MethodError(
            f"{who} passes {consumed.training_samples} images with gradients, declares {most}; give budget() the rest "
            "as samples, or score under torch.no_grad()"
        )


def _leaves_weights(bench: Bench) -> None:
    """A method that declares no training leaves every weight as it was."""
    from pruneaudit.method.conduct import digest

    method = bench.method()
    if method.rewrites or method.budget(bench.workload).steps:
        return
    model = bench.dense()
    before = digest(model)
    bench.prune(model, bench.workload.ratios[0])
    if digest(model) != before:
        raise MethodError(f"method '{bench.source.name}' declares no training but changes weights")


def _behaves(bench: Bench) -> None:
    """What the audit will ask of every run: rules F502, F505, F507, F509 and F511, on an untrained network."""
    conduct = bench.observe(bench.workload.ratios[0]).conduct
    who = f"method '{bench.source.name}'"
    changed = (*conduct.rewritten, *conduct.touched)
    if changed and not conduct.declares_rewriting:
        raise MethodError(
            f"{who} changes '{changed[0]}' outside metered training; train by task.train(), or set rewrites where "
            "changing weights without training is its idea"
        )
    if conduct.held_out_samples:
        raise MethodError(f"{who} passes {conduct.held_out_samples} validation or test images through the network")
    if conduct.reached:
        raise MethodError(f"{who} opens {conduct.reached[0]}; a method has no business there")
    if conduct.replay != "same":
        raise MethodError(f"{who} gives another answer when it decides again: {conduct.replay}")


def _remembers_nothing(bench: Bench) -> None:
    """Another ratio or seed before does not change an answer: it is the same as from a module that saw nothing yet."""
    ratios = bench.workload.ratios
    jobs = [(ratios[0], 0), (ratios[-1], 0), (ratios[-1], 1)]
    answers = [_answer(bench, *job) for job in jobs]
    for (ratio, seed), before, answer in zip(jobs[1:], jobs, answers[1:], strict=False):
        if answer != _answer(bench.anew(), ratio, seed):
            raise MethodError(
                f"method '{bench.source.name}' answers otherwise at ratio {ratio:g}, seed {seed}, after it pruned at "
                f"ratio {before[0]:g}, seed {before[1]}; keep nothing in the module or the class"
            )


def _answer(bench: Bench, ratio: float, seed: int) -> tuple[Answer, str]:
    """What stays, and a digest of the weights that the method leaves."""
    from pruneaudit.method.conduct import digest

    model = bench.dense(seed=seed)
    answer, _consumed = bench.prune(model, ratio, seed)
    return answer, digest(model)


def _keeps_uniformly(bench: Bench) -> None:
    """A random control keeps the same share of wide and of narrow layers.

    Ranks that are compared across layers, say, empty the narrow ones (Torch-Pruning issue 498). Other methods may
    prefer layers, and pass.
    """
    if bench.source.name != "random" and not bench.source.name.startswith("random-"):
        return
    from pruneaudit.pruning import shapes

    method = bench.method()
    for ratio in bench.workload.ratios:
        target = shapes.target(bench.workload, ratio, method.granularity, method.scope)
        found: dict[str, list[float]] = {}
        units: dict[str, int] = {}
        for seed in range(SEEDS):
            model = bench.dense(seed=seed)
            answer, _consumed = bench.prune(model, ratio, seed)
            stay = answer.stay or {name: len(indices) for name, indices in answer.kept.items()}
            for name, count in stay.items():
                weight = model.get_parameter(f"{name}.weight")
                units[name] = weight.numel() if answer.stay else len(weight)
                found.setdefault(name, []).append(count)
        for name, counts in found.items():
            kept, asked, kind = statistics.fmean(counts), target.stay[name], f"{method.granularity}s"
            if abs(kept - asked) > 1 + 1e-9:
                share, usual = kept / units[name], asked / units[name]
                raise MethodError(
                    f"method '{bench.source.name}' keeps {share:.0%} of the {units[name]} {kind} of layer '{name}'; "
                    f"a random control keeps {usual:.0%} of every layer, however wide"
                )


def _trains_the_pruned_shape(bench: Bench) -> None:
    """A scratch arm's recipe is in epochs and can be planned at every ratio."""
    from pruneaudit.method.contract import ScratchArm
    from pruneaudit.pruning import shapes

    arm = bench.method()
    if not isinstance(arm, ScratchArm):
        raise MethodError(f"method '{arm.name}' is called scratch but is no ScratchArm; rename it")
    for ratio in bench.workload.ratios:
        recipe = arm.recipe(bench.workload, shapes.speedup(bench.workload, ratio))
        if recipe.epochs is None:
            raise MethodError(f"scratch arm '{arm.name}' must train in epochs")


METHOD_CHECKS: dict[str, Any] = {
    "describes-itself": _describes_itself,
    "meets-target": _meets_target,
    "deterministic": _is_deterministic,
    "masked-equals-shrunk": _masked_equals_shrunk,
    "spends-its-budget": _spends_its_budget,
    "leaves-weights": _leaves_weights,
    "behaves": _behaves,
    "remembers-nothing": _remembers_nothing,
    "uniform-over-width": _keeps_uniformly,
}
SCRATCH_CHECKS: dict[str, Any] = {
    "describes-itself": _describes_itself,
    "trains-the-pruned-shape": _trains_the_pruned_shape,
}
