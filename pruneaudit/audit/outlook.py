"""What an open comparison lacks: how many seeds it would take, and at which stage its differences come apart.

numpy only: importing this module loads neither scipy nor torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev

import numpy as np
from pydantic import Field

from pruneaudit.audit.statistics import ALPHA, POWER, seeds_needed
from pruneaudit.schema import Frozen

#: Seeds without which variances are not taken apart: each share has as wide an error as itself.
FEWEST = 6
#: More seeds than anybody trains: nothing is said then but that.
MOST = 1000
# Seeds that looks after every seed cost, against one look at the end (Jennison and Turnbull 2000, ch. 2; Pocock's).
_LOOKS = 1.3


class Spread(Frozen):
    """Shares of the variance of paired differences by the stage in which they arise; together 1.

    A seed names a random stream of its own for every stage, so that the law of total variance takes the variance apart
    stage by stage: what the base model tells of a difference, what the pruned networks tell beyond that, and the rest.
    What a stage tells is read from its accuracies by linear regression, adjusted for the number of regressors (Ezekiel
    1930). A line tells less than the network would: shares of early stages are lower bounds.

    Attributes:
        base: Told by the metric of the base model: its initialisation and the order of its data.
        pruning: Told by the difference right after pruning, beyond that: the method itself and the order of its data.
            None where an arm is trained from scratch, or an older record does not say.
        retraining: The rest: order and augmentation of the data of retraining.
    """

    base: float = Field(ge=0, le=1)
    pruning: float | None = Field(ge=0, le=1)
    retraining: float = Field(ge=0, le=1)

    @property
    def text(self) -> str:
        """In words."""
        parts = [(self.base, "the base model"), (self.pruning, "pruning"), (self.retraining, "retraining")]
        return ", ".join(f"{share:.0%} from {stage}" for share, stage in parts if share is not None)


class Outlook(Frozen):
    """What an open comparison lacks, at the mean and the spread of its differences so far.

    Attributes:
        seeds: Seeds with which it would be decided with the chance ``POWER``, those that it has included; None: more
            than ``MOST``.
        more: How many of them are missing.
        word: As what: ``different`` (better or worse) or ``equivalent``.
        spread: Where the differences come apart; None with fewer than ``FEWEST`` seeds, or where they do not differ.
    """

    seeds: int | None = Field(ge=1)
    more: int | None = Field(ge=0)
    word: str = ""
    spread: Spread | None = None

    @property
    def text(self) -> str:
        """In words."""
        if self.seeds is None:
            lacks = f"at this mean and spread more than {MOST} seeds would not decide it"
        else:
            as_what = "better or worse" if self.word == "different" else self.word
            lacks = f"at this mean and spread about {self.more} more seeds would decide it ({as_what})"
        return lacks + (f"; the spread: {self.spread.text}" if self.spread is not None else "")


def outlook(
    gaps: Sequence[float],
    margin: float,
    undecided: int = 1,
    is_planned: bool = False,
    bases: Sequence[float] | None = None,
    pruned: Sequence[float] | None = None,
) -> Outlook | None:
    """What a comparison lacks that is open after some seeds; None where fewer than two were seen.

    Seeds are those of a t test or two (normal approximation with Guenther's correction, Am. Stat. 35, 1981), at the
    level that Holm's procedure leaves, but never fewer than sign vectors allow.

    Args:
        gaps: Paired differences.
        margin: Differences smaller than this do not matter.
        undecided: Comparisons of the family that are undecided, this one included.
        is_planned: Whether it is looked at after every seed, which costs some.
        bases: Metric of the base model of each seed, or None.
        pruned: Difference right after pruning of each seed, or None.
    """
    n = len(gaps)
    if n < 2:
        return None
    needed, word = _needed(abs(fmean(gaps)), stdev(gaps), margin, undecided, is_planned)
    return Outlook(
        seeds=None if needed is None else max(needed, n + 1),
        more=None if needed is None else max(needed - n, 1),
        word=word,
        spread=spread(gaps, bases, pruned),
    )


def _needed(mean: float, std: float, margin: float, undecided: int, is_planned: bool) -> tuple[int | None, str]:
    """Seeds that decide a comparison, and as what; None: more than ``MOST``."""
    ways = _ways(np.asarray(mean), np.asarray(std), margin, undecided, _LOOKS if is_planned else 1.0)
    least, word = min((float(seeds), word) for word, seeds in ways.items())
    return (None, "") if least > MOST else (math.ceil(least), word)


def seeds_that_decide(means: np.ndarray, stds: np.ndarray, margin: float, undecided: int) -> np.ndarray:
    """Seeds with which comparisons of a plan would be decided, as :func:`outlook` says; infinite: more than ``MOST``.

    Args:
        means: Means of paired differences, ``[...]``.
        stds: Their standard deviations, ``[...]``.
        margin: Differences smaller than this do not matter.
        undecided: Comparisons of the family that are undecided.
    """
    least = np.minimum(*_ways(np.abs(means), stds, margin, undecided, _LOOKS).values())
    return np.where(least > MOST, np.inf, np.ceil(least))


def _ways(means: np.ndarray, stds: np.ndarray, margin: float, undecided: int, cost: float) -> dict[str, np.ndarray]:
    """Seeds with which comparisons would be decided as different, or as equivalent."""
    level, fewest = ALPHA / max(undecided, 1), seeds_needed(ALPHA, max(undecided, 1))
    different = cost * _seeds(means, stds, level / 2, POWER)
    # Where nothing differs both of its tests must hold. They are one-sided: half as many sign vectors do.
    equivalent = cost * _seeds(margin - means, stds, level, (1 + POWER) / 2)
    return {
        "different": np.maximum(different, fewest),
        "equivalent": np.maximum(equivalent, max(fewest - 1, seeds_needed())),
    }


def spread(
    gaps: Sequence[float], bases: Sequence[float] | None = None, pruned: Sequence[float] | None = None
) -> Spread | None:
    """Where paired differences come apart; None where that cannot be told.

    Args:
        gaps: Paired differences, ``[n]``.
        bases: Metric of the base model, ``[n]``, or None where arms have none in common.
        pruned: Difference right after pruning, ``[n]``, or None.
    """
    if len(gaps) < FEWEST or max(gaps) - min(gaps) < 1e-9 or (bases is None and pruned is None):
        return None
    columns = [] if bases is None else [np.asarray(bases, dtype=float)]
    by_base = _told(gaps, columns)
    by_both = by_base if pruned is None else max(_told(gaps, [*columns, np.asarray(pruned, dtype=float)]), by_base)
    return Spread(base=by_base, pruning=None if pruned is None else by_both - by_base, retraining=1.0 - by_both)


def _told(gaps: Sequence[float], columns: Sequence[np.ndarray]) -> float:
    """Share of the variance that a line tells: adjusted R², at least 0."""
    varying = [column for column in columns if np.ptp(column) > 1e-9]
    if not varying:
        return 0.0
    y = np.asarray(gaps, dtype=float)
    x = np.column_stack([np.ones(len(y)), *varying])
    rest = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    left = float(rest @ rest) / (len(y) - x.shape[1])
    return min(max(1.0 - left / float(np.var(y, ddof=1)), 0.0), 1.0)


def _seeds(effects: np.ndarray, stds: np.ndarray, level: float, power: float) -> np.ndarray:
    """Seeds of a one-sided t test that finds an effect; infinite where there is none to be found."""
    z = NormalDist().inv_cdf(1 - level)
    # No effect divides by one: what comes out is not looked at.
    found = ((z + NormalDist().inv_cdf(power)) * stds / np.where(effects > 0, effects, 1.0)) ** 2 + z**2 / 2
    return np.where(effects > 0, found, np.inf)
