"""Does a number that is known before retraining tell which pruned network is best after it?

For a population of pruned networks of one size: a criterion of each (the training loss right after pruning, a score,
the accuracy of a short retraining) against its performance after the whole retraining. Statistics of Feng et al. 2024
(arXiv 2412.00143), with what they leave out: a permutation test, an interval, what two retrainings of one network agree
on, and a regret that the luck of single retrainings does not inflate. Numbers come from scipy, which loads in the first
call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from pydantic import Field, FiniteFloat

from pruneaudit.audit.statistics import ALPHA
from pruneaudit.schema import Frozen

#: Relabellings of the permutation test, and resamples of the bootstrap.
PERMUTATIONS, RESAMPLES = 1999, 999


class Association(Frozen):
    """A criterion against accuracy after retraining, over a population of pruned networks; accuracies in percent.

    A criterion is oriented: the smaller, the better it says the network will be. A good one has a tau near -1.

    Attributes:
        n: Networks.
        tau: Kendall's tau-b of criterion and accuracy (the mean over repeats).
        p: Two-sided p of the permutation test; the label permutation is the null.
        null: The middle 95 % of tau under it.
        low: Lower end of tau's 95 % bootstrap percentile interval, over networks.
        high: Upper end.
        discordance: Share of pairs where the criterion and accuracy disagree on who is better; ties count half.
        anomaly: Share of networks that end above the one that the criterion chooses.
        chosen: Accuracy of the one that it chooses (the first of equals).
        best: Highest accuracy of the population: chosen afterwards, by luck as well.
        mean: Mean accuracy: what a blind choice gives.
        std: Standard deviation over networks.
        regret: ``best - chosen`` in percentage points.
        regret_held_out: The same where the best is chosen by all other repeats: no luck; None for one repeat. It may be
            negative.
        repeat_tau: Mean tau-b between two repeats: what retraining agrees on with itself; None for one repeat.
        ceiling: Magnitude of tau that a criterion would reach which knew the mean over infinitely many repeats; None
            for one repeat.
    """

    n: int = Field(ge=3)
    tau: float = Field(ge=-1, le=1)
    p: float = Field(gt=0, le=1)
    null: tuple[float, float]
    low: float
    high: float
    discordance: float = Field(ge=0, le=1)
    anomaly: float = Field(ge=0, le=1)
    chosen: FiniteFloat
    best: FiniteFloat
    mean: FiniteFloat
    std: FiniteFloat
    regret: FiniteFloat = Field(ge=0)
    regret_held_out: FiniteFloat | None
    repeat_tau: float | None
    ceiling: float | None


def associate(criterion: Sequence[float], accuracies: Sequence[Sequence[float]]) -> Association:
    """Compare a criterion with accuracy after retraining.

    A criterion that is the same for all networks says nothing: tau is 0, p 1, and the first network is its choice.

    Args:
        criterion: One value per network; smaller is better. Infinite values are allowed, NaN is not.
        accuracies: For each repeat of the retraining, one accuracy per network, in percent.

    Raises:
        ValueError: Fewer than three networks, no repeat, unequal lengths, or a value that is no number.
    """
    values, table = np.asarray(criterion, float), np.asarray(accuracies, float)
    if table.ndim != 2 or not len(table) or table.shape[1] != values.size or values.size < 3:
        raise ValueError("expected at least three networks, and an accuracy of each in every repeat")
    if np.isnan(values).any() or not np.isfinite(table).all():
        raise ValueError("criteria and accuracies must be numbers")
    # Only order counts. Means of equal numbers in another order must be equal: float noise makes no order.
    ranks, means = _ranks(values), table.mean(axis=0).round(9)
    observed = tau(ranks, means)
    draws = np.random.default_rng(0)
    permuted = np.array([tau(ranks, draws.permutation(means)) for _ in range(PERMUTATIONS)])
    extreme = np.count_nonzero(np.abs(permuted) >= abs(observed) - 1e-12)
    resampled = []
    for _ in range(RESAMPLES):
        index = draws.integers(0, values.size, values.size)
        resampled.append(tau(ranks[index], means[index]))
    ends = (100 * ALPHA / 2, 100 - 100 * ALPHA / 2)
    choice = int(np.argmin(values))
    low, high = np.percentile(resampled, ends)
    agreement = repeat_tau(table)
    return Association(
        n=values.size,
        tau=observed,
        p=(extreme + 1) / (PERMUTATIONS + 1),
        null=tuple(map(float, np.percentile(permuted, ends))),  # type: ignore[arg-type]
        low=float(low),
        high=float(high),
        discordance=discordance(ranks, means),
        anomaly=float(np.mean(means > means[choice])),
        chosen=float(means[choice]),
        best=float(means.max()),
        mean=float(means.mean()),
        std=float(means.std(ddof=1)),
        regret=float(means.max() - means[choice]),
        regret_held_out=_held_out_regret(table, choice),
        repeat_tau=agreement,
        ceiling=None if agreement is None else ceiling(agreement, len(table)),
    )


def tau(left: np.ndarray, right: np.ndarray) -> float:
    """Kendall's tau-b of ``[n]`` and ``[n]``; 0 where one of them is constant."""
    from scipy.stats import kendalltau

    # Its own p is not used: the asymptotic one costs least.
    found = float(kendalltau(left, right, method="asymptotic").statistic)
    return 0.0 if math.isnan(found) else found


def discordance(criterion: np.ndarray, accuracy: np.ndarray) -> float:
    """Share of pairs where a smaller criterion goes with a smaller accuracy; a tie in either counts half."""
    upper = np.triu_indices(len(criterion), 1)
    signs = [np.sign(values[upper[0]] - values[upper[1]]) for values in (_ranks(criterion), accuracy)]
    return float((1 + (signs[0] * signs[1]).mean()) / 2)


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


def _held_out_regret(accuracies: np.ndarray, choice: int) -> float | None:
    """Accuracy that one repeat gives to what the others think best, less what it gives to the choice; mean."""
    if len(accuracies) < 2:
        return None
    found = []
    for repeat, own in enumerate(accuracies):
        others = np.delete(accuracies, repeat, axis=0).mean(axis=0)
        found.append(own[int(np.argmax(others))] - own[choice])
    return float(np.mean(found))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks ``[n]``, equal where values are: differences of infinite values are no numbers."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(values, method="dense"), float)
