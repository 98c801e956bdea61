"""Metrics: the number that decides a comparison, and how it is spoken of. Imports no torch.

``measure.metric`` computes them. A workload states its own, ``[metric]`` in its TOML; accuracy where it states none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pruneaudit.errors import nearest
from pruneaudit.schema import Frozen

#: Decimals of a number that is shown, at least.
_DECIMALS = 2


class Metric(Frozen):
    """What decides a comparison.

    Attributes:
        name: One of :data:`BUILT_IN`, or the name of a metric of the user's own: small letters, digits and hyphens.
        unit: Of its values: ``%``, ``nats``, or nothing.
        direction: Whether ``higher`` or ``lower`` values are better.
        margin: Differences smaller than this do not matter, in the metric's unit (of percents: percentage points). None
            for accuracy: the protocol's margin counts, which is made for it.
        function: ``file.py:name`` or ``package.module:name`` of the user's own: it takes logits ``[N, classes]`` and
            labels ``[N]`` of a whole split, and gives a number, or the outcome of each example, ``[N]`` bool, of which
            the metric is the percentage.
        beside: Built-in metrics that the report shows, too; they decide nothing.
    """

    name: str = "accuracy"
    unit: str = "%"
    direction: Literal["higher", "lower"] = "higher"
    margin: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    function: str = ""
    beside: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _known(cls, content: Any) -> Any:
        """Fill in what is known of a built-in metric; refuse another unit or direction than it has."""
        if not isinstance(content, Mapping):
            return content
        name = content.get("name", "accuracy")
        facts = _BUILT_IN.get(name) if isinstance(name, str) else None
        if facts is None:
            if not content.get("function"):
                raise ValueError(
                    f"there is no metric '{name}'.{nearest(str(name), _BUILT_IN)} "
                    "One of your own needs function = 'file.py:name'"
                )
            missing = [key for key in ("direction", "margin") if key not in content]
            if missing:
                raise ValueError(f"a metric of your own states its {' and its '.join(missing)}")
            return {"unit": "", **content}
        if content.get("function"):
            raise ValueError(f"'{name}' is built in; give your own metric another name")
        for key in ("unit", "direction"):
            if content.get(key, facts[key]) != facts[key]:
                raise ValueError(f"the {key} of '{name}' is '{facts[key]}'; give another metric another name")
        return {**facts, **content}

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
            raise ValueError("a metric's name is small letters, digits and hyphens, such as 'macro-f1'")
        if name in _TAKEN:
            raise ValueError(f"a report has a file called '{name}' already; give your metric another name")
        return name

    @model_validator(mode="after")
    def _others(self) -> Self:
        for name in self.beside:
            if name not in _BUILT_IN:
                raise ValueError(f"beside: there is no metric '{name}'.{nearest(name, _BUILT_IN)}")
        if self.margin is None and self.name != "accuracy":
            raise ValueError("margin: a number above 0, in the metric's unit")
        return self

    @property
    def also(self) -> tuple[str, ...]:
        """What a report shows beside it: what is asked for, and bits per byte, as perplexity is one of a tokenizer."""
        return tuple(dict.fromkeys((*self.beside, *(("bits-per-byte",) if self.name == "perplexity" else ()))))

    def margin_under(self, protocol: float) -> float:
        """The margin that counts under a protocol with this margin, which is one of accuracies."""
        return protocol if self.margin is None else self.margin

    def merit(self, value: float) -> float:
        """A number that is greater the better the value is."""
        return value if self.direction == "higher" else -value

    def decides_as(self, other: Metric) -> bool:
        """Whether the same runs would be chosen, and the same differences be called better."""
        return (self.name, self.direction, self.function) == (other.name, other.direction, other.function)

    # How it is spoken of

    @property
    def title(self) -> str:
        """Its name in text."""
        return title(self.name)

    @property
    def decimals(self) -> int:
        """Decimals of its values: one digit below the margin is seen."""
        return _DECIMALS if self.margin is None else max(_DECIMALS, 1 - math.floor(math.log10(self.margin)))

    @property
    def note(self) -> str:
        """``lower is better``, where it is so; nothing where more is better, as readers expect."""
        return "lower is better" if self.direction == "lower" else ""

    @property
    def points(self) -> str:
        """What differences are counted in, for a heading."""
        counted = "percentage points" if self.unit == "%" else self.unit or self.title
        return f"{counted} ({self.note})" if self.note else counted

    @property
    def suffix(self) -> str:
        """What follows a difference: its unit after a space, or nothing."""
        return " points" if self.unit == "%" else self.unit_text

    @property
    def brief(self) -> str:
        """The same where there is little room."""
        return " pp" if self.unit == "%" else self.unit_text

    @property
    def unit_text(self) -> str:
        """What follows a value: its unit after a space, or nothing."""
        return f" {self.unit}" if self.unit else ""

    @property
    def aside(self) -> str:
        """The note in brackets after a space, or nothing."""
        return f" ({self.note})" if self.note else ""

    @property
    def counted(self) -> str:
        """Its name with what it is counted in, in a sentence: ``accuracy in percent``."""
        name = f"{self.title} in {'percent' if self.unit == '%' else self.unit}" if self.unit else self.title
        return f"{name}{self.aside}"

    @property
    def improved(self) -> str:
        """What a curve that still got better did."""
        return "rose" if self.direction == "higher" else "fell"

    @property
    def axis(self) -> str:
        """What stands at an axis: ``accuracy (%)``, ``perplexity (lower is better)``."""
        return self.with_unit(self.title)

    def with_unit(self, name: str) -> str:
        """The name of something that is measured as the metric is, with unit and direction in brackets."""
        inside = ", ".join(text for text in (self.unit, self.note) if text)
        return f"{name} ({inside})" if inside else name

    def number(self, value: float) -> str:
        """A value without its unit."""
        return f"{value:.{self.decimals}f}"

    def value(self, value: float) -> str:
        """A value with its unit."""
        return f"{self.number(value)}{self.unit_text}"

    def gap(self, value: float) -> str:
        """A difference with its sign, without its unit."""
        return f"{value:+.{self.decimals}f}"


_BUILT_IN: dict[str, dict[str, Any]] = {
    "accuracy": {"unit": "%", "direction": "higher"},
    "top5": {"unit": "%", "direction": "higher", "margin": 0.5},
    "mean-class-accuracy": {"unit": "%", "direction": "higher", "margin": 0.5},
    "loss": {"unit": "nats", "direction": "lower", "margin": 0.01},
    "perplexity": {"unit": "", "direction": "lower", "margin": 0.1},
    "bits-per-byte": {"unit": "bits", "direction": "lower", "margin": 0.02},
    "acc": {"unit": "%", "direction": "higher", "margin": 0.5},
    "acc-norm": {"unit": "%", "direction": "higher", "margin": 0.5},
    "acc-bytes": {"unit": "%", "direction": "higher", "margin": 0.5},
}
#: Those of a task of questions with choices (``data.task``), under lm-eval's names: share of the questions whose
#: likeliest choice is right, by log-likelihood, by that for each character of the choice, and for each of its bytes.
OF_TASKS = ("acc", "acc-norm", "acc-bytes")
#: Files of a report are named after the metric; these names it has given already.
_TAKEN = frozenset({"cells", "findings", "verdicts", "trainability"})
_TITLES = {"top5": "top-5 accuracy", "acc-norm": "acc_norm", "acc-bytes": "acc_bytes"}
#: Metrics that need no code of a user's: share of the first answers that are right, of the first five, the mean of that
#: share over classes, mean cross-entropy, its exponential, its bits for each byte of text, and those of tasks.
BUILT_IN = tuple(_BUILT_IN)
#: Those of them that have an outcome for each example, as McNemar's test needs.
PER_EXAMPLE = frozenset({"accuracy", "top5", *OF_TASKS})
ACCURACY = Metric()


def title(name: str) -> str:
    """A metric's name in text."""
    return _TITLES.get(name, name.replace("-", " "))


def shown(name: str, value: float) -> str:
    """A value of the metric of this name in a line on a run under way: ``94.2 %``, ``perplexity 12.34``."""
    return f"{value:.1f} %" if name == ACCURACY.name else f"{title(name)} {value:.{_DECIMALS}f}"
