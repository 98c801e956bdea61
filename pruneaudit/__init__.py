"""pruneaudit: the referee for neural-network pruning.

A method file starts with ``from pruneaudit import FilterScore, TrainedMethod``. Importing this package loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pruneaudit.conformance import check_method
    from pruneaudit.contract import (
        Budget,
        Card,
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
    from pruneaudit.report.frames import load

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "Card",
    "FilterScore",
    "Hooks",
    "Kept",
    "Method",
    "PruningTask",
    "PublishedRecipe",
    "RetrainingTask",
    "ScratchArm",
    "TrainedMethod",
    "WeightScore",
    "__version__",
    "check_method",
    "load",
]


def __getattr__(name: str) -> Any:
    if name == "check_method":
        from pruneaudit.conformance import check_method

        return check_method
    if name == "load":
        from pruneaudit.report.frames import load

        return load
    if name in __all__:
        from pruneaudit import contract

        return getattr(contract, name)
    raise AttributeError(f"module 'pruneaudit' has no attribute '{name}'")
