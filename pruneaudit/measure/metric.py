"""Computes metrics: what :mod:`pruneaudit.workloads.metrics` defines, from one pass over a split."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pruneaudit.errors import AuditError, ConfigError, one_line
from pruneaudit.measure.accuracy import Score, evaluate
from pruneaudit.measure.questions import answered
from pruneaudit.sources import Source
from pruneaudit.workloads.data import Dataset, Split
from pruneaudit.workloads.metrics import ACCURACY, BUILT_IN, OF_TASKS, Metric


def _top5(score: Score) -> float:
    if score.top5 is None:
        raise AuditError("top5 says nothing of five classes or fewer; choose another metric")
    return _share(score.top5)


def _mean_class_accuracy(score: Score) -> float:
    """Mean over the classes that the split has of the share of their images that are right, in percent."""
    assert score.labels is not None
    _, classes = np.unique(score.labels, return_inverse=True)
    return float(np.mean(100.0 * np.bincount(classes, weights=score.correct) / np.bincount(classes)))


def _perplexity(score: Score) -> float:
    """Exponential of the mean cross-entropy; infinite where that is no float."""
    return math.exp(score.loss) if score.loss < 700 else math.inf


def _bits_per_byte(score: Score) -> float:
    """Mean cross-entropy of a byte of text, in bits: of a token, times tokens, by bytes (Gao et al. 2020, sec. 3.1)."""
    if score.bytes is None:
        raise AuditError("bits-per-byte says nothing where the bytes of texts are not told; choose another metric")
    return score.loss * len(score.correct) / score.bytes / math.log(2)


def _of_task(name: str) -> Callable[[Score], float]:
    """Share of the questions that are answered right by a metric of tasks."""

    def share(score: Score) -> float:
        if score.answered is None:
            raise AuditError(f"{name} is one of a task, and nothing was asked; choose another metric")
        return _share(score.answered[name])

    return share


_VALUES: dict[str, Callable[[Score], float]] = {
    "accuracy": lambda score: score.accuracy,
    "top5": _top5,
    "mean-class-accuracy": _mean_class_accuracy,
    "loss": lambda score: score.loss,
    "perplexity": _perplexity,
    "bits-per-byte": _bits_per_byte,
    **{name: _of_task(name) for name in OF_TASKS},
}
#: Those that follow from what every backend's evaluation knows.
KNOWN = ("accuracy", "loss", "perplexity")


def value_of(name: str, score: Score) -> float:
    """A built-in metric of an evaluation."""
    return _VALUES[name](score)


@dataclass(frozen=True)
class Measure:
    """How a workload's metric is computed.

    Attributes:
        name: The metric.
        source: Where a user's own is defined, or None.
    """

    name: str = ACCURACY.name
    source: Source | None = None

    @classmethod
    def of(cls, metric: Metric, folder: Path | None = None) -> Measure:
        """The measure of a metric.

        Args:
            metric: The metric.
            folder: Where the path of its function starts; None: here.

        Raises:
            ConfigError: Its function is not there.
        """
        if not metric.function:
            return cls(metric.name)
        measure = cls(metric.name, Source.parse(metric.function, folder or Path()))
        if not callable(measure._function):
            raise ConfigError(f"metric '{metric.name}': {metric.function} is no function of logits and labels")
        return measure

    @cached_property
    def _function(self) -> Any:
        assert self.source is not None
        try:
            return self.source.load()
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                f"metric '{self.name}' cannot be imported from {self.source}: {one_line(error)}"
            ) from None

    @property
    def digest(self) -> str | None:
        """SHA-256 of the user's source; None for a built-in metric."""
        return None if self.source is None else self.source.digest

    @property
    def is_accuracy(self) -> bool:
        """Whether records need nothing beside their accuracies."""
        return self.name == ACCURACY.name

    @property
    def closely(self) -> bool:
        """Whether it asks for more of an evaluation than accuracy and loss."""
        return self.name not in KNOWN

    def evaluate(
        self, model: nn.Module, dataset: Dataset, part: Split, precision: str = "fp32", closely: bool = False
    ) -> Score:
        """As :func:`pruneaudit.measure.accuracy.evaluate`, with all that the metric needs.

        Args:
            model: The network.
            dataset: Its data.
            part: The split.
            precision: Arithmetic.
            closely: Look at all that built-in metrics need, whatever this one does.

        Raises:
            AuditError: The user's function raised, or gave no number.
        """
        own = self._own if self.source is not None else None
        score = evaluate(model, dataset, part, precision, closely=closely or self.closely, function=own)
        questions = dataset.questions_of(part) if closely or self.name in OF_TASKS else None
        if questions is None:
            return score
        return replace(score, answered=answered(model, questions, dataset.classes, precision))

    def _own(self, logits: torch.Tensor, labels: torch.Tensor) -> float | np.ndarray:
        """What the user's function says: a number, or an outcome for each example."""
        try:
            found = self._function(logits, labels)
        except Exception as error:
            raise AuditError(f"metric '{self.name}' raised {one_line(error)}") from error
        array = found.detach().cpu().numpy() if isinstance(found, torch.Tensor) else np.asarray(found)
        if array.dtype == bool and array.shape == (len(labels),):
            return array
        if array.size != 1 or array.dtype.kind not in "fiu":
            raise AuditError(
                f"metric '{self.name}' gave {array.dtype} of shape {list(array.shape)}; expected a number, "
                f"or an outcome for each of the {len(labels)} examples, bool"
            )
        return float(array.reshape(()))

    def value(self, score: Score) -> float:
        """The metric of a split.

        Args:
            score: What :meth:`evaluate` gave, or of a metric that is not looked at closely any score of the split.

        Raises:
            AuditError: It is no finite number.
        """
        if self.source is None:
            value = _VALUES[self.name](score)
        else:
            assert score.own is not None
            value = _share(score.own) if isinstance(score.own, np.ndarray) else score.own
        if not math.isfinite(value):
            raise AuditError(f"metric '{self.name}' is {value}: nothing can be compared by it")
        return value

    def outcomes(self, score: Score) -> np.ndarray | None:
        """Outcome of each example ``[N]`` bool; None where the metric is no share of examples."""
        by_name = {"accuracy": score.correct, "top5": score.top5, **(score.answered or {})}
        found = score.own if self.source is not None else by_name.get(self.name)
        return found if isinstance(found, np.ndarray) else None


#: Of every workload that states no other.
BY_ACCURACY = Measure()


def _share(outcomes: np.ndarray) -> float:
    """Percent of examples, exact."""
    return 100.0 * int(outcomes.sum()) / len(outcomes)


def beside(score: Score, metric: str) -> dict[str, float]:
    """The built-in metrics of a split that was looked at closely, but for the one that decides, and for accuracy.

    Accuracy has a place of its own in records; what is not finite, or says nothing here, is left out.
    """
    unknown = {metric, ACCURACY.name}
    unknown |= {"top5"} if score.top5 is None else set()
    unknown |= {"bits-per-byte"} if score.bytes is None else set()
    unknown |= set(OF_TASKS) if score.answered is None else set()
    names = [name for name in BUILT_IN if name not in unknown]
    values = {name: _VALUES[name](score) for name in names}
    return {name: value for name, value in values.items() if math.isfinite(value)}
