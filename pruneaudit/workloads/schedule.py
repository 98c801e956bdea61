"""Learning-rate schedules, written the way papers write them.

``"0:1e-2,60:1e-3,90:1e-4"`` is a step schedule: learning rate 1e-2 from epoch 0, 1e-3 from epoch 60, ...
``"cosine:1e-2:1e-4"`` falls along half a cosine from 1e-2 to 1e-4 over the whole training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Schedule:
    """A learning rate for every epoch (or step: the unit is the one of the recipe).

    Attributes:
        kind: ``"step"`` or ``"cosine"``.
        points: Step: ``(start, rate)`` pairs, the first at 0. Cosine: ``((0, first), (1, last))``.
    """

    kind: str
    points: tuple[tuple[int, float], ...]

    @classmethod
    @lru_cache(maxsize=4096)
    def parse(cls, text: str) -> Schedule:
        """Read a schedule from its text form.

        Raises:
            ValueError: The text is no schedule; the message says what was expected.
        """
        expected = (
            "expected 'EPOCH:RATE,EPOCH:RATE,…' starting at epoch 0, such as '0:1e-2,60:1e-3', or 'cosine:FIRST:LAST'"
        )
        fields = [field.strip() for field in text.split(":" if text.startswith("cosine") else ",")]
        try:
            if fields[0] == "cosine":
                _, first, last = fields
                points: tuple[tuple[int, float], ...] = ((0, float(first)), (1, float(last)))
                kind = "cosine"
            else:
                pairs = [field.split(":") for field in fields]
                points = tuple((int(start), float(rate)) for start, rate in pairs)
                kind = "step"
        except ValueError:
            raise ValueError(f"'{text}' is no learning-rate schedule: {expected}") from None
        starts = [start for start, _ in points]
        if starts[0] != 0 or starts != sorted(set(starts)):
            raise ValueError(f"'{text}' is no learning-rate schedule: epochs must start at 0 and rise; {expected}")
        if not all(math.isfinite(rate) and rate >= 0 for _, rate in points):
            raise ValueError(f"'{text}' is no learning-rate schedule: rates must be finite and not negative")
        return cls(kind, points)

    def __str__(self) -> str:
        if self.kind == "cosine":
            return f"cosine:{_shortest(self.points[0][1])}:{_shortest(self.points[1][1])}"
        return ",".join(f"{start}:{_shortest(rate)}" for start, rate in self.points)

    def rate(self, position: int, length: int) -> float:
        """Learning rate at ``position`` (0-based epoch or step) of a training of ``length``."""
        if self.kind == "cosine":
            (_, first), (_, last) = self.points
            return last + (first - last) * (1 + math.cos(math.pi * position / max(length - 1, 1))) / 2
        return [rate for start, rate in self.points if start <= position][-1]

    def stretched(self, factor: float) -> Schedule:
        """The same rates with every boundary moved to ``floor(boundary · factor)``.

        Where boundaries fall together the later (lower) rate wins, except that the first rate keeps epoch 0: the first
        and, where there is room, the last learning rate survive any scaling (Wang et al. 2023, appendix A, rule 1).
        """
        if self.kind == "cosine":
            return self
        moved: dict[int, float] = {}
        for start, rate in self.points:
            # The epsilon undoes binary noise: 0.29 · 100 is 28.999999999999996 in floats but 29 on paper.
            position = math.floor(start * factor + 1e-9)
            if position > 0 or start == 0:
                moved[position] = rate
        return Schedule("step", tuple(sorted(moved.items())))

    def ending_at(self, rate: float, length: int) -> Schedule:
        """The same schedule with ``rate`` as its last learning rate.

        Stages below the rate are left out. Where the schedule ends above it, the second half of its last stage goes on
        at the rate: halving keeps Wang et al. 2023, appendix A, rule 2 (N/2 at the first rate, N/4 at the second, …).
        A last stage that is too short to halve stays as it is.
        """
        if self.kind == "cosine":
            return Schedule("cosine", (self.points[0], (1, rate)))
        points = tuple(point for number, point in enumerate(self.points) if not number or point[1] >= rate)
        start, last = points[-1]
        middle = start + (length - start + 1) // 2
        if last > rate and start < middle < length:
            points = (*points, (middle, rate))
        return Schedule("step", points)

    @property
    def first_stage(self) -> int | None:
        """Length of the first learning-rate stage, or None where there is only one (or a cosine)."""
        return self.points[1][0] if self.kind == "step" and len(self.points) > 1 else None


def _shortest(rate: float) -> str:
    """Shortest text that reads back as the same number: ``1``, ``0.01``, ``1e-05``."""
    return repr(rate).removesuffix(".0")
