"""Learning-rate schedules, written the way papers write them.

``"0:1e-2,60:1e-3,90:1e-4"`` is a step schedule: learning rate 1e-2 from epoch 0, 1e-3 from epoch 60, ...
``"cosine:1e-2:1e-4"`` falls along half a cosine from 1e-2 to 1e-4 over the whole training, ``"poly:0.1:0, power 2"``
along a power of what is left of it, ``"linear:0.1:0"`` along a line. ``"cosine:5e-4->1e-6"`` is another way to write
the two rates. ``"cosine:5e-4"`` falls towards 0 and is open, as below, so that no epoch trains at 0.

Behind a comma follow, in any order:

- ``warmup 5``: the first 5 epochs climb in equal steps to the rate that the schedule then has; a smooth schedule begins
  after them, a step schedule keeps its epochs. ``warmup 500 steps`` counts steps; ``warmup 5 from 1e-6`` says where the
  climb begins, as ``LinearLR`` of torch and timm's ``warmup_lr`` do.
- ``per step``: the rate changes at every step, not at every epoch only.
- ``open``: the last rate is what a further epoch (step) would have, as with torch's ``CosineAnnealingLR(T_max=epochs)``
  and timm's schedulers; without it the last epoch (step) has it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from functools import lru_cache

from pruneaudit.errors import nearest

_SMOOTH = ("cosine", "poly", "linear")
_OPTIONS = ("warmup", "power", "per step", "open")
_EXPECTED = (
    "expected 'EPOCH:RATE,EPOCH:RATE,…' starting at epoch 0, such as '0:1e-2,60:1e-3', or 'cosine:FIRST:LAST' "
    "(poly, linear); behind a comma 'warmup 5', 'warmup 500 steps', 'warmup 5 from 1e-6', 'per step', 'open', 'power 2'"
)
_WARM_UP = re.compile(r"warmup\s+(?P<length>\S+?)(?P<steps>\s+steps)?(?:\s+from\s+(?P<start>\S+))?")


@dataclass(frozen=True)
class Schedule:
    """A learning rate for every epoch (or step: the unit is the one of the recipe).

    Attributes:
        kind: ``"step"``, ``"cosine"`` or ``"poly"`` (a line is a polynomial of power 1).
        points: Step: ``(start, rate)`` pairs, the first at 0. Others: ``((0, first), (1, last))``.
        power: Exponent of a polynomial; 1 elsewhere.
        warmup: Length of the climb to the schedule's rate, in its unit (or in steps); 0: none.
        warmup_from: Rate where the climb begins; None: the first of equal steps from zero, which is above zero.
        in_steps: Whether ``warmup`` counts steps where the recipe counts epochs.
        per_step: Whether the rate changes within an epoch.
        is_open: Whether the last rate lies one position behind the end.
    """

    kind: str
    points: tuple[tuple[int, float], ...]
    power: float = 1.0
    warmup: float = 0.0
    warmup_from: float | None = None
    in_steps: bool = False
    per_step: bool = False
    is_open: bool = False

    @classmethod
    @lru_cache(maxsize=4096)
    def parse(cls, text: str) -> Schedule:
        """Read a schedule from its text form.

        Raises:
            ValueError: The text is no schedule; the message says what was expected.
        """
        fields = [field.strip() for field in text.split(",")]
        kind = fields[0].split(":")[0].strip()
        count = 1 if kind in _SMOOTH else sum(1 for field in fields if field[:1].isdigit())
        try:
            # Options come last: a pair behind one of them is no option and is refused below.
            course, options = fields[:count], fields[count:]
            if kind in _SMOOTH:
                points, is_open = _ends(course[0])
            else:
                pairs = [field.split(":") for field in course]
                points, is_open = tuple((int(start), float(rate)) for start, rate in pairs), False
        except ValueError:
            raise _no_schedule(text) from None
        starts = [start for start, _ in points]
        if not starts:
            raise _no_schedule(text)
        if starts[0] != 0 or starts != sorted(set(starts)):
            raise _no_schedule(text, "epochs must start at 0 and rise;")
        name = "step" if kind not in _SMOOTH else "cosine" if kind == "cosine" else "poly"
        found = cls(name, points, is_open=is_open)
        for option in options:
            found = found._with(option, text, kind)
        if not found.per_step and found.warmup != int(found.warmup):
            raise _no_schedule(text, "a part of an epoch needs 'per step';")
        rates = [rate for _, rate in points] + [found.warmup_from or 0.0]
        if not all(math.isfinite(rate) and rate >= 0 for rate in rates):
            raise ValueError(f"'{text}' is no learning-rate schedule: rates must be finite and not negative")
        return found

    def _with(self, option: str, text: str, kind: str) -> Schedule:
        """The schedule with one more option of its text."""
        words = " ".join(option.split())
        match = _WARM_UP.fullmatch(words)
        try:
            if match is not None and not self.warmup:
                length, start, in_steps = float(match["length"]), match["start"], match["steps"] is not None
                if not (length > 0 and math.isfinite(length)) or (in_steps and length != int(length)):
                    raise _no_schedule(text, f"'{option}' needs a length above 0, and whole steps;")
                warm = replace(self, warmup=length, warmup_from=None if start is None else float(start))
                return replace(warm, in_steps=in_steps, per_step=self.per_step or in_steps)
            if words == "per step":
                return replace(self, per_step=True)
            if words == "open" and self.kind != "step":
                return replace(self, is_open=True)
            if words.startswith("power ") and kind == "poly":
                power = float(words.removeprefix("power "))
                if not (power > 0 and math.isfinite(power)):
                    raise _no_schedule(text, "the power must be above 0;")
                return replace(self, power=power)
        except ValueError as error:
            raise error if text in str(error) else _no_schedule(text) from None
        raise _no_schedule(text, f"'{option}' is no option of it.{nearest(words, _OPTIONS)}")

    def __str__(self) -> str:
        if self.kind == "step":
            course = ",".join(f"{start}:{_shortest(rate)}" for start, rate in self.points)
        else:
            name = "linear" if (self.kind, self.power) == ("poly", 1.0) else self.kind
            course = ":".join([name, *(_shortest(rate) for _, rate in self.points)])
        options = [f"power {_shortest(self.power)}"] if self.power != 1 else []
        if self.warmup:
            start = "" if self.warmup_from is None else f" from {_shortest(self.warmup_from)}"
            options.append(f"warmup {_shortest(self.warmup)}{' steps' if self.in_steps else ''}{start}")
        options += ["per step"] if self.per_step and not self.in_steps else []
        options += ["open"] if self.is_open else []
        return ", ".join([course, *options])

    def rate(self, position: int, length: int, unit: int = 1) -> float:
        """Learning rate at ``position`` (0-based epoch or step) of a training of ``length``.

        Args:
            position: 0-based epoch, or step.
            length: Epochs, or steps, of the whole training.
            unit: Positions in what the schedule's numbers count: the steps of an epoch where the schedule counts epochs
                and positions are steps; else 1.
        """
        warm = min(self._warm(unit), length)
        if position >= warm:
            return self._course(position, warm, length, unit)
        target = self._course(warm, warm, length, unit)
        if self.warmup_from is None:
            return target * (position + 1) / (warm + 1)
        return self.warmup_from + (target - self.warmup_from) * position / warm

    def _warm(self, unit: int) -> int:
        """Positions of the climb."""
        return math.floor(self.warmup * (1 if self.in_steps else unit) + 1e-9)

    def _course(self, position: int, warm: int, length: int, unit: int) -> float:
        """Learning rate without the climb, which a smooth schedule waits for."""
        if self.kind == "step":
            return [rate for start, rate in self.points if start * unit <= position][-1]
        (_, first), (_, last) = self.points
        done, whole = position - warm, max(length - warm - (not self.is_open), 1)
        if self.kind == "cosine":
            return last + (first - last) * (1 + math.cos(math.pi * done / whole)) / 2
        return last + (first - last) * max(1 - done / whole, 0.0) ** self.power

    def last_rate(self, length: int, unit: int = 1) -> float:
        """Learning rate at the end of a training; of a step schedule its last one, also where it is never reached."""
        return self.points[-1][1] if self.kind == "step" else self.rate(length - 1, length, unit)

    @property
    def is_constant(self) -> bool:
        """Whether every epoch (step) has the same rate."""
        return len(self.points) == 1 and not self.warmup

    def stretched(self, factor: float) -> Schedule:
        """The same rates with every boundary moved to ``floor(boundary · factor)``, the end of a warm-up included.

        Where boundaries fall together the later (lower) rate wins, except that the first rate keeps epoch 0: the first
        and, where there is room, the last learning rate survive any scaling (Wang et al. 2023, appendix A, rule 1).
        Where the rate changes at every step, the warm-up in epochs keeps its share exactly.
        """
        moved: dict[int, float] = {}
        for start, rate in self.points if self.kind == "step" else ():
            # The epsilon undoes binary noise: 0.29 · 100 is 28.999999999999996 in floats but 29 on paper.
            position = math.floor(start * factor + 1e-9)
            if position > 0 or start == 0:
                moved[position] = rate
        points = tuple(sorted(moved.items())) or self.points
        exact = self.warmup * factor
        warmup = round(exact, 6) if self.per_step and not self.in_steps else float(math.floor(exact + 1e-9))
        warm = replace(self, points=points, warmup=warmup)
        # Without a climb nothing is left of where it began; per step is what remains of a climb in steps.
        return warm if warmup else replace(warm, warmup_from=None, in_steps=False)

    def ending_at(self, rate: float, length: int) -> Schedule:
        """The same schedule with ``rate`` as its last learning rate.

        Stages below the rate are left out. Where the schedule ends above it, the second half of its last stage goes on
        at the rate: halving keeps Wang et al. 2023, appendix A, rule 2 (N/2 at the first rate, N/4 at the second, …).
        A last stage that is too short to halve stays as it is. A smooth schedule ends at the rate exactly.
        """
        if self.kind != "step":
            return replace(self, points=(self.points[0], (1, rate)), is_open=False)
        points = tuple(point for number, point in enumerate(self.points) if not number or point[1] >= rate)
        start, last = points[-1]
        middle = start + (length - start + 1) // 2
        if last > rate and start < middle < length:
            points = (*points, (middle, rate))
        return replace(self, points=points)

    @property
    def first_stage(self) -> int | None:
        """Length of the first learning-rate stage, or None where there is only one (or a smooth schedule)."""
        return self.points[1][0] if self.kind == "step" and len(self.points) > 1 else None


def _ends(course: str) -> tuple[tuple[tuple[int, float], ...], bool]:
    """First and last rate of a smooth schedule; and whether the last lies behind its end, as where it is left out."""
    _, *rates = course.replace("->", ":").split(":")
    first, last = [*rates, "0"] if len(rates) == 1 else rates
    return ((0, float(first)), (1, float(last))), len(rates) == 1


def _no_schedule(text: str, reason: str = "") -> ValueError:
    return ValueError(f"'{text}' is no learning-rate schedule: {reason + ' ' if reason else ''}{_EXPECTED}")


def _shortest(rate: float) -> str:
    """Shortest text that reads back as the same number: ``1``, ``0.01``, ``1e-05``."""
    return repr(rate).removesuffix(".0")
