"""Checks that a method keeps its contract: seconds each, no trained network, no ledger.

Each check prunes a freshly initialised network of a workload under the smoke budget. Importing this loads no torch.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from pruneaudit.errors import MethodError, unknown

if TYPE_CHECKING:
    from torch import nn

    from pruneaudit.catalog import Catalog
    from pruneaudit.config import Workload
    from pruneaudit.contract import Method
    from pruneaudit.stages import Runtime
    from pruneaudit.training.metering import Consumption

#: Largest difference of the outputs of masked and shrunk network in float64, relative to the outputs' scale.
EQUIVALENCE_TOLERANCE = 1e-9


def check(name: str, catalog: Catalog, method: str, workload: str, runtime: Runtime) -> None:
    """Run one check.

    Raises:
        MethodError: The method breaks its contract; one line says how.
    """
    checks = {**METHOD_CHECKS, **SCRATCH_CHECKS}
    if name not in checks:
        raise unknown("conformance check", name, checks)
    checks[name](Bench(catalog, method, workload, runtime))


class Bench:
    """A method on a small job of a workload."""

    def __init__(self, catalog: Catalog, method: str, workload: str, runtime: Runtime) -> None:
        from pruneaudit.workloads.datasets import load

        self.source = catalog.method(method)
        self.workload: Workload = catalog.workload(workload).scaled("smoke")
        self.runtime = runtime
        runtime.prepare()
        self.dataset = load(self.workload.data, runtime.data_root, runtime.download)

    def method(self) -> Method:
        """A fresh instance."""
        return self.source.create()

    def dense(self, precision: str = "fp32") -> nn.Module:
        """The workload's network with the initialisation of seed 0."""
        from pruneaudit import shapes
        from pruneaudit.streams import generator
        from pruneaudit.training.precision import place
        from pruneaudit.workloads.models.initialise import initialise

        model = shapes.dense_network(self.workload)
        initialise(model, generator(0, "conformance"))
        return place(model, self.runtime.device, precision)

    def prune(self, model: nn.Module, ratio: float, seed: int = 0) -> tuple[dict[str, list[int]], Consumption]:
        """Let the method prune a network; its checked answer, and what the meter read."""
        import torch

        from pruneaudit.contract import PruningTask, decide
        from pruneaudit.pruning.layers import prunable_layers
        from pruneaudit.training.metering import Meter

        method = self.method()
        budget = method.budget(self.workload)
        recipe = self.workload.prune.model_copy(
            update={"steps": budget.steps, "lr": budget.lr or self.workload.prune.lr}
        )
        layers = prunable_layers(model, self.dataset.example(), self.workload.prunable, self.workload.skip)
        dataset = self.dataset.to(torch.device(self.runtime.device))
        with Meter(model) as meter:
            task = PruningTask(model, layers, self.workload, ratio, recipe, dataset, seed, meter, method.name)
            kept = decide(method, task)
        return kept, meter.consumption


def _describes_itself(bench: Bench) -> None:
    """Docstring, hyper-parameters that can be recorded, and a budget that can be planned."""
    from pruneaudit.config import Recipe
    from pruneaudit.contract import Budget

    method = bench.method()
    if not method.summary():
        raise MethodError(f"method '{method.name}' has no docstring; say what it does and where it is published")
    try:
        json.dumps(method.parameters(), allow_nan=False)
    except (TypeError, ValueError):
        raise MethodError(f"method '{method.name}' keeps a hyper-parameter that is no JSON value") from None
    budget = method.budget(bench.workload)
    if not isinstance(budget, Budget):
        raise MethodError(f"method '{method.name}': budget() must return a Budget, not {type(budget).__name__}")
    Recipe(steps=budget.steps, lr=budget.lr or bench.workload.prune.lr, batch=1)


def _meets_target(bench: Bench) -> None:
    """Valid indices and the asked number of filters, at every ratio of the workload."""
    for ratio in bench.workload.ratios:
        bench.prune(bench.dense(), ratio)


def _is_deterministic(bench: Bench) -> None:
    """The same seed gives the same filters and the same weights."""
    answers = []
    for _ in range(2):
        model = bench.dense()
        kept, _consumed = bench.prune(model, bench.workload.ratios[0])
        answers.append((kept, _digest(model)))
    if answers[0][0] != answers[1][0]:
        raise MethodError(f"method '{bench.source.name}' keeps other filters when run again with the same seed")
    if answers[0][1] != answers[1][1]:
        raise MethodError(f"method '{bench.source.name}' leaves other weights when run again with the same seed")


def _masked_equals_shrunk(bench: Bench) -> None:
    """In float64 the network without the filters computes what the network with silenced filters computes."""
    import torch

    from pruneaudit.pruning.removal import masked, shrink

    model = bench.dense("fp64")
    device = bench.runtime.device
    kept, _ = bench.prune(model, bench.workload.ratios[0])
    example = bench.dataset.example(torch.float64).to(device)
    images = torch.randn(8, *example.shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images = images.to(device)
    with torch.no_grad():
        silenced = masked(model, kept, example).eval()(images)
        small = shrink(model, kept, example).eval()(images)
    apart = float((silenced - small).abs().max() / silenced.abs().max().clamp_min(1e-300))
    if not apart <= EQUIVALENCE_TOLERANCE:
        raise MethodError(f"method '{bench.source.name}': masked and shrunk network differ by {apart:.1e} in float64")


def _spends_its_budget(bench: Bench) -> None:
    """The steps that the meter reads are the steps that the method declares."""
    declared = bench.method().budget(bench.workload).steps
    _, consumed = bench.prune(bench.dense(), bench.workload.ratios[0])
    if consumed.optimiser_steps != declared:
        raise MethodError(
            f"method '{bench.source.name}' declares {declared} optimiser steps and takes {consumed.optimiser_steps}"
        )


def _leaves_weights(bench: Bench) -> None:
    """A method that declares no training leaves every weight as it was."""
    if bench.method().budget(bench.workload).steps:
        return
    model = bench.dense()
    before = _digest(model)
    bench.prune(model, bench.workload.ratios[0])
    if _digest(model) != before:
        raise MethodError(f"method '{bench.source.name}' declares no training but changes weights")


def _trains_the_pruned_shape(bench: Bench) -> None:
    """A scratch arm's recipe is in epochs and can be planned at every ratio."""
    from pruneaudit import shapes
    from pruneaudit.contract import ScratchArm

    arm = bench.method()
    if not isinstance(arm, ScratchArm):
        raise MethodError(f"method '{arm.name}' is called scratch but is no ScratchArm; rename it")
    for ratio in bench.workload.ratios:
        recipe = arm.recipe(bench.workload, shapes.speedup(bench.workload, ratio))
        if recipe.epochs is None:
            raise MethodError(f"scratch arm '{arm.name}' must train in epochs")


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


METHOD_CHECKS: dict[str, Any] = {
    "describes-itself": _describes_itself,
    "meets-target": _meets_target,
    "deterministic": _is_deterministic,
    "masked-equals-shrunk": _masked_equals_shrunk,
    "spends-its-budget": _spends_its_budget,
    "leaves-weights": _leaves_weights,
}
SCRATCH_CHECKS: dict[str, Any] = {
    "describes-itself": _describes_itself,
    "trains-the-pruned-shape": _trains_the_pruned_shape,
}
