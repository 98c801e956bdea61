"""How single runs went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """How a run went.

    Attributes:
        values: The metric on the test split, after each epoch.
        rates: Learning rates, each with the epoch at which it begins (0: the start; steps within an epoch are parts).
        per_epoch: Steps of an epoch.
    """

    values: Sequence[float]
    rates: Sequence[tuple[float, float]]
    per_epoch: int = 1
