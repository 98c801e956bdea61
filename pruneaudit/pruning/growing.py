"""Growing penalties: the schedule that GReg (Wang et al., ICLR 2021) and TPP (ICLR 2023) share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GrowingPenalty:
    """λ(t): rises in small increments to a ceiling, then holds.

    The papers state 10,000 increments of Δ = 1e-4 up to τ = 1, one every K_u steps, and K_s further steps at the
    ceiling. A budget of any other length keeps the shape: the same ceiling, the same share of steps that hold, and as
    many increments as there are steps for them.

    Attributes:
        steps: Steps of the whole pruning stage.
        hold: Share of them that holds at the ceiling (CIFAR: 10,000 of 110,000).
        ceiling: τ.
        increments: Increments of the paper's schedule, τ/Δ.
    """

    steps: int
    hold: float = 1 / 11
    ceiling: float = 1.0
    increments: int = 10_000

    @property
    def growing(self) -> int:
        """Steps of the growing part."""
        return max(1, round(self.steps * (1 - self.hold)))

    @property
    def every(self) -> int:
        """Steps between increments, K_u."""
        return max(1, self.growing // self.increments)

    def value(self, step: int) -> float:
        """λ at a step: refreshed every K_u steps, reaches τ when the growing part ends."""
        if step >= self.growing:
            return self.ceiling
        return min(self.ceiling, self.ceiling * (step - step % self.every) / self.growing)
