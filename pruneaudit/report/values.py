"""What decides in rows of results: the workload's metric, where accuracy has no column of its own for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _of(row: Mapping[str, Any], name: str, accuracy: str) -> float:
    found: float | None = row.get(name)
    plain: float = row[accuracy]
    return plain if found is None else found


def value(row: Mapping[str, Any]) -> float:
    """The metric of a measured cell, or of a run, on the test split."""
    return _of(row, "value", "accuracy")


def base_value(row: Mapping[str, Any]) -> float:
    """The metric of a cell's dense base model on the test split."""
    return _of(row, "base_value", "base_accuracy")


def validation_value(row: Mapping[str, Any]) -> float:
    """The metric of a measured cell, or of a run, on the validation split."""
    return _of(row, "validation_value", "validation_accuracy")
