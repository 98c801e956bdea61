"""Does a number that is known before retraining tell which pruned network is best after it?

For a population of pruned networks of one size: a criterion of each (the training loss right after pruning, a score,
the accuracy of a short retraining) against its performance after the whole retraining. Statistics of Feng et al. 2024
(arXiv 2412.00143), with what they leave out: a permutation test, an interval, what two retrainings of one network agree
on, and a regret that the luck of single retrainings does not inflate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pydantic import Field, FiniteFloat

from pruneaudit.audit.statistics import ALPHA
from pruneaudit.schema import Frozen

#: Relabellings of the permutation test, and resamples of the bootstrap.
PERMUTATIONS = RESAMPLES = 999

#: Lower and upper end of a 95 % interval.
Interval = tuple[FiniteFloat, FiniteFloat]


class Association(Frozen):
    """A criterion against accuracy after retraining, over a population of pruned networks; accuracies in percent.

    A criterion is oriented: the smaller, the better it says the network will be. A good one has a tau near -1.
    Intervals are bootstrap percentile intervals over networks, which are drawn with their accuracies.

    Attributes:
        n: Networks.
        tau: Kendall's tau-b of criterion and accuracy (the mean over repeats).
        tau_interval: Its 95 % interval.
        p: Two-sided p of the permutation test: were accuracies dealt out by chance.
        null: The middle 95 % of tau under that label permutation.
        discordance: Share of pairs where the criterion and accuracy disagree on who is better; ties count half.
        anomaly: Share of networks that end above the one that the criterion chooses.
        anomaly_interval: Its 95 % interval.
        chosen: Accuracy of the one that it chooses (the first of equals).
        best: Highest accuracy of the population: chosen afterwards, by luck as well.
        mean: Mean accuracy: what a blind choice gives.
        std: Standard deviation over networks.
        regret: ``best - chosen`` in percentage points.
        regret_interval: Its 95 % interval.
        regret_held_out: The same where the best is chosen by all other repeats: no luck; None for one repeat. It may be
            negative.
        repeat_tau: Mean tau-b between two repeats, of all networks or of those that have several: what retraining
            agrees on with itself; None for one repeat.
        ceiling: Magnitude of tau that a criterion would reach which knew the mean over infinitely many repeats; None
            for one repeat.
    """

    n: int = Field(ge=3)
    tau: float = Field(ge=-1, le=1)
    tau_interval: Interval
    p: float = Field(gt=0, le=1)
    null: Interval
    discordance: float = Field(ge=0, le=1)
    anomaly: float = Field(ge=0, le=1)
    anomaly_interval: Interval
    chosen: FiniteFloat
    best: FiniteFloat
    mean: FiniteFloat
    std: FiniteFloat
    regret: FiniteFloat = Field(ge=0)
    regret_interval: Interval
    regret_held_out: FiniteFloat | None
    repeat_tau: float | None
    ceiling: float | None


def associate(
    criterion: Sequence[float], accuracies: Sequence[Sequence[float]], several: Sequence[Sequence[float]] | None = None
) -> Association:
    """Compare a criterion with accuracy after retraining.

    A criterion that is the same for all networks says nothing: tau is 0, p 1, and the first network is its choice.

    Args:
        criterion: One value per network; smaller is better. Infinite values are allowed, NaN is not.
        accuracies: For each repeat of the retraining, one accuracy per network, in percent.
        several: The same of networks that alone have more repeats, ``[repeats][some networks]``; None: all have them.

    Raises:
        ValueError: Fewer than three networks, no repeat, unequal lengths, or a value that is no number.
    """
    table = np.asarray(accuracies, float)
    ranks, means = _ordered(criterion, accuracies)
    observed = tau(ranks, means)
    signs, others = _signs(ranks), _signs(means)
    draws = np.random.default_rng(0)
    orders = (draws.permutation(ranks.size) for _ in range(PERMUTATIONS))
    permuted = np.array([_tau_of(signs, others[order][:, order]) for order in orders])
    choice, agreement = int(np.argmin(ranks)), repeat_tau(table if several is None else np.asarray(several, float))
    return Association(
        n=ranks.size,
        tau=observed,
        tau_interval=interval(resampled("tau", criterion, accuracies)),
        p=(np.count_nonzero(np.abs(permuted) >= abs(observed) - 1e-12) + 1) / (PERMUTATIONS + 1),
        null=interval(permuted),
        discordance=discordance(ranks, means),
        anomaly=float(anomaly(ranks, means)),
        anomaly_interval=interval(resampled("anomaly", criterion, accuracies)),
        chosen=float(means[choice]),
        best=float(means.max()),
        mean=float(means.mean()),
        std=float(means.std(ddof=1)),
        regret=float(regret(ranks, means)),
        regret_interval=interval(resampled("regret", criterion, accuracies)),
        regret_held_out=_held_out_regret(table, choice),
        repeat_tau=agreement,
        ceiling=None if agreement is None else ceiling(agreement, len(table)),
    )


def tau(criterion: np.ndarray, accuracy: np.ndarray) -> float:
    """Kendall's tau-b; 0 where one of both is constant.

    As ``scipy.stats.kendalltau`` gives it, which takes half a millisecond: a hundred times as long as needed for the
    thousands of relabellings and resamples of the small populations here.
    """
    return _tau_of(_signs(criterion), _signs(accuracy))


def discordance(criterion: np.ndarray, accuracy: np.ndarray) -> float:
    """Share of pairs where a smaller criterion goes with a smaller accuracy; a tie in either counts half."""
    pairs = len(criterion) * (len(criterion) - 1)
    return float(1 + np.vdot(_signs(criterion), _signs(accuracy)) / pairs) / 2


def anomaly(criterion: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """Share of networks above the one with the smallest criterion (Feng et al. 2024; the first of equals), ``[...]``.

    Args:
        criterion: Ranks ``[..., n]``.
        accuracy: Accuracies ``[..., n]``.
    """
    return np.asarray((accuracy > _chosen(criterion, accuracy)).mean(axis=-1))


def regret(criterion: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """By how much the best is above the one with the smallest criterion, in percentage points, as :func:`anomaly`."""
    return np.asarray(accuracy.max(axis=-1) - _chosen(criterion, accuracy)[..., 0])


def _chosen(criterion: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    return np.take_along_axis(accuracy, criterion.argmin(axis=-1, keepdims=True), axis=-1)


#: What a claim may be about.
STATISTICS: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "tau": tau,
    "discordance": discordance,
    "anomaly": anomaly,
    "regret": regret,
}


def resampled(statistic: str, criterion: Sequence[float], accuracies: Sequence[Sequence[float]]) -> np.ndarray:
    """A statistic over bootstrap resamples of the networks, ``[RESAMPLES]``: always the same ones of so many networks.

    Two criteria over the same networks are therefore resampled together, and their difference is a paired one.

    Args:
        statistic: One of :data:`STATISTICS`.
        criterion: As :func:`associate` takes it.
        accuracies: The same.

    Raises:
        ValueError: As :func:`associate`.
    """
    ranks, means = _ordered(criterion, accuracies)
    draws = np.random.default_rng(1)
    indices = draws.integers(0, ranks.size, (RESAMPLES, ranks.size))
    compute = STATISTICS[statistic]
    if statistic in ("anomaly", "regret"):
        return np.asarray(compute(ranks[indices], means[indices]))
    return np.array([compute(ranks[index], means[index]) for index in indices])


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of some values."""
    low, high = np.percentile(values, (100 * ALPHA / 2, 100 - 100 * ALPHA / 2))
    return float(low), float(high)


def repeat_tau(accuracies: np.ndarray) -> float | None:
    """Mean tau-b between two repeats of ``[repeats, n]``; None for one repeat."""
    count = len(accuracies)
    pairs = [tau(accuracies[one], accuracies[other]) for one in range(count) for other in range(one)]
    return float(np.mean(pairs)) if pairs else None


def ceiling(agreement: float, repeats: int) -> float:
    """The tau that a perfect criterion reaches against the mean of some repeats.

    A perfect criterion knows what retraining gives on average; the mean of few repeats does not. By the relation of tau
    and the correlation of normal variables (Greiner; Kruskal, JASA 53, 1958) and Spearman and Brown's of the
    reliability of a mean, so that it is an approximation.

    Args:
        agreement: Tau between two repeats; below 0 counts as 0.
        repeats: Repeats that the mean is of.
    """
    single = math.sin(math.pi / 2 * max(agreement, 0.0))
    reliability = repeats * single / (1 + (repeats - 1) * single)
    return 2 / math.pi * math.asin(min(1.0, math.sqrt(reliability)))


def _ordered(criterion: Sequence[float], accuracies: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of the criterion ``[n]`` (differences of infinite values are no numbers) and mean accuracies ``[n]``."""
    values, table = np.asarray(criterion, float), np.asarray(accuracies, float)
    if table.ndim != 2 or not len(table) or table.shape[1] != values.size or values.size < 3:
        raise ValueError("expected at least three networks, and an accuracy of each in every repeat")
    if np.isnan(values).any() or not np.isfinite(table).all():
        raise ValueError("criteria and accuracies must be numbers")
    # Means of equal numbers in another order must be equal: float noise makes no order.
    return np.unique(values, return_inverse=True)[1].astype(float), table.mean(axis=0).round(9)


def _signs(values: np.ndarray) -> np.ndarray:
    """Which of each pair is larger, ``[n, n]``; sums of them are exact in float32 up to 4,000 networks."""
    return np.sign(values[:, None] - values).astype(np.float32)


def _tau_of(left: np.ndarray, right: np.ndarray) -> float:
    """Tau-b of two matrices of signs."""
    pairs = math.sqrt(np.count_nonzero(left) * np.count_nonzero(right))
    return float(np.vdot(left, right)) / pairs if pairs else 0.0


def _held_out_regret(accuracies: np.ndarray, choice: int) -> float | None:
    """Accuracy that one repeat gives to what the others think best, less what it gives to the choice; mean."""
    if len(accuracies) < 2:
        return None
    found = []
    for repeat, own in enumerate(accuracies):
        others = np.delete(accuracies, repeat, axis=0).mean(axis=0)
        found.append(own[int(np.argmax(others))] - own[choice])
    return float(np.mean(found))
