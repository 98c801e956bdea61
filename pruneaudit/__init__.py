"""pruneaudit: the referee for neural-network pruning.

A method file starts with ``from pruneaudit import FilterScore, TrainedMethod``. Importing this package loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pruneaudit.version import __version__

if TYPE_CHECKING:
    from pruneaudit.campaign.conformance import check_workload
    from pruneaudit.campaign.export import load_pruned
    from pruneaudit.method.conformance import check_method
    from pruneaudit.method.contract import (
        Budget,
        Card,
        Distillation,
        FilterScore,
        Hooks,
        Kept,
        Method,
        PruningTask,
        PublishedRecipe,
        RetrainingTask,
        ScratchArm,
        TrainedMethod,
        WeightScore,
    )
    from pruneaudit.method.iterative import IterativeScore
    from pruneaudit.method.torch_pruning import TorchPruner
    from pruneaudit.pruning import shapes
    from pruneaudit.report.frames import load
    from pruneaudit.workloads.data import Data

__all__ = [
    "Budget",
    "Card",
    "Data",
    "Distillation",
    "FilterScore",
    "Hooks",
    "IterativeScore",
    "Kept",
    "Method",
    "PruningTask",
    "PublishedRecipe",
    "RetrainingTask",
    "ScratchArm",
    "TorchPruner",
    "TrainedMethod",
    "WeightScore",
    "__version__",
    "check_method",
    "check_workload",
    "load",
    "load_pruned",
    "shapes",
]

# Where a public name is defined, if not in the contract: looked up when it is first asked for.
_ELSEWHERE = {
    "Data": "pruneaudit.workloads.data",
    "IterativeScore": "pruneaudit.method.iterative",
    "TorchPruner": "pruneaudit.method.torch_pruning",
    "check_method": "pruneaudit.method.conformance",
    "check_workload": "pruneaudit.campaign.conformance",
    "load": "pruneaudit.report.frames",
    "load_pruned": "pruneaudit.campaign.export",
    "shapes": "pruneaudit.pruning",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'pruneaudit' has no attribute '{name}'")
    home = import_module(_ELSEWHERE.get(name, "pruneaudit.method.contract"))
    return import_module(f"{home.__name__}.{name}") if name == "shapes" else getattr(home, name)
