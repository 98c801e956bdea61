"""Statistics of a paired comparison over seeds: no claim that this number of seeds cannot carry.

Both arms of a comparison run with the same seeds, so what counts is the difference per seed. The test on it assumes no
distribution, the interval and the equivalence test assume normal differences. Numbers come from scipy and statsmodels,
which load in the first call: importing this module loads neither them nor torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from decimal import ROUND_HALF_UP, Decimal
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from pydantic import Field, FiniteFloat

from pruneaudit.schema import Frozen
from pruneaudit.workloads.metrics import ACCURACY, Metric

#: Rate of false findings per family of comparisons; 1 - ALPHA is the confidence of the intervals.
ALPHA = 0.05
#: Chance of finding a difference of the size that ``Difference.detectable`` tells.
POWER = 0.8

Word = Literal["better", "worse", "equivalent", "indeterminate"]

# Up to this many seeds all 2**n sign vectors are tried.
_EXACT = 15
# With more seeds than _EXACT, 2**n random sign vectors are drawn, 2**_FINEST at most.
_FINEST = 17
# Differences with all signs that are in memory at once: 32 MB.
_VALUES = 2**22
# Random sign vectors that are looked at together: few enough for a processor's cache, a multiple of 8 for whole words.
_ROWS = 2**8
# Means closer than this are ties (in percentage points): above float noise, below one image in a million over 50 seeds.
_TIE = 1e-8


class Difference(Frozen):
    """Left minus right over paired seeds; all differences in the metric's unit (of percents: percentage points).

    Attributes:
        n: Paired seeds.
        mean: Mean difference.
        std: Standard deviation of the differences (divisor n - 1); None for one seed.
        low: Lower end of the 95 % t interval of the mean, which assumes normal differences; None for one seed.
        high: Upper end.
        p: Two-sided p of the sign-flip test, see :func:`difference`.
        smallest_p: The smallest ``p`` that so many seeds can reach, whatever the difference: 2 / 2**n.
        p_equivalent: p of the equivalence test against ``margin``; small: smaller than the margin; None for one seed.
        margin: Differences smaller than this do not matter.
        detectable: Difference that a two-sided t test at level 0.05 finds with power 0.8 where the differences scatter
            by ``std``: of this comparison alone, without correction for others, and only where ``smallest_p`` lets
            anything be found. None for one seed.
    """

    n: int = Field(ge=1)
    mean: FiniteFloat
    std: FiniteFloat | None
    low: FiniteFloat | None
    high: FiniteFloat | None
    p: float = Field(ge=0, le=1)
    smallest_p: float = Field(gt=0, le=1)
    p_equivalent: float | None = Field(ge=0, le=1)
    margin: FiniteFloat = Field(gt=0)
    detectable: FiniteFloat | None


class McNemar(Frozen):
    """Which images only one arm got right, in one pair of networks.

    Attributes:
        left_only: Images that only the left arm got right.
        right_only: Images that only the right arm got right.
        p: Two-sided p of the exact test; 1.0 where no image tells the arms apart.
    """

    left_only: int = Field(ge=0)
    right_only: int = Field(ge=0)
    p: float = Field(ge=0, le=1)


def difference(left: Sequence[float], right: Sequence[float], margin: float) -> Difference:
    """Compare two arms over paired seeds.

    ``p`` is Fisher's randomisation test (The Design of Experiments, 1935): were the arms exchangeable, each difference
    could as well have had the other sign. It is exact for any symmetric distribution up to 15 seeds, then an estimate
    from random signs drawn with a fixed seed. A zero mean does not suffice: for differences distributed like an
    exponential less its mean, six seeds give p <= 0.05 in 6.6 % of comparisons. ``p_equivalent`` is the larger of two
    one-sided t tests (TOST; Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987).

    Differences are rounded to 9 decimals, so that float noise makes none. Degenerate cases:

    - one seed: ``p`` is 1.0; no ``std``, interval, ``p_equivalent`` or ``detectable``;
    - no difference at any seed: ``p`` 1.0, interval (0, 0), ``p_equivalent`` 0.0, ``detectable`` 0.0;
    - the same difference at every seed: ``p`` is ``smallest_p``, interval (mean, mean), ``p_equivalent`` 0.0 below the
      margin, else 1.0, ``detectable`` 0.0.

    Args:
        left: Values of the metric, one per seed.
        right: Values of the other arm, same seeds in the same order.
        margin: Differences smaller than this do not matter.

    Raises:
        ValueError: Unequal lengths, no seeds, a value that is not finite, or a margin that is not above 0.
    """
    return differences([(left, right, margin)])[0]


def differences(comparisons: Iterable[tuple[Sequence[float], Sequence[float], float]]) -> list[Difference]:
    """Compare many pairs of arms, each as :func:`difference` does: scipy takes as long for one as for hundreds.

    Args:
        comparisons: Values of the left arm, those of the right arm, and the margin.

    Raises:
        ValueError: As :func:`difference`.
    """
    listed = [(_gaps(left, right, margin), float(margin)) for left, right, margin in comparisons]
    found: dict[int, Difference] = {}
    for n in {len(gaps) for gaps, _ in listed}:
        places = [place for place, (gaps, _) in enumerate(listed) if len(gaps) == n]
        found |= zip(places, _compared([listed[place] for place in places]), strict=True)
    return [found[place] for place in range(len(listed))]


def _compared(comparisons: Sequence[tuple[list[float], float]]) -> list[Difference]:
    """The same of differences over equally many seeds, each with its margin."""
    n = len(comparisons[0][0])
    described = iter(_described([entry for entry in comparisons if len(set(entry[0])) > 1]))
    return [
        Difference(
            n=n,
            p=p,
            smallest_p=2.0 / 2 ** min(n, _FINEST),
            margin=margin,
            **(next(described) if len(set(gaps)) > 1 else _constant(gaps, margin)),
        )
        for (gaps, margin), p in zip(comparisons, _sign_flips(np.array([gaps for gaps, _ in comparisons])), strict=True)
    ]


def _constant(gaps: Sequence[float], margin: float) -> dict[str, Any]:
    """What is said of differences that are the same at every seed, or of one seed."""
    mean = gaps[0]
    if len(gaps) == 1:
        return {"mean": mean, **dict.fromkeys(("std", "low", "high", "p_equivalent", "detectable"))}
    p = 0.0 if abs(mean) < margin else 1.0
    return {"mean": mean, "std": 0.0, "low": mean, "high": mean, "p_equivalent": p, "detectable": 0.0}


def _described(comparisons: Sequence[tuple[list[float], float]]) -> list[dict[str, Any]]:
    """Moments, intervals and equivalence tests of differences that vary, over equally many seeds."""
    if not comparisons:
        return []
    from scipy.stats import t
    from statsmodels.stats.weightstats import DescrStatsW

    freedom = len(comparisons[0][0]) - 1
    samples = [DescrStatsW(np.array(gaps)) for gaps, _ in comparisons]
    mean, std, error = np.array([(sample.mean, sample.std_ddof(1), sample.std_mean) for sample in samples]).T
    margin = np.array([margin for _, margin in comparisons])
    # As its tconfint_mean and ttost_mean, which look up the t distribution for one sample at a time.
    half = t.ppf(1 - ALPHA / 2, freedom) * error
    p = np.maximum(t.sf((mean + margin) / error, freedom), t.cdf((mean - margin) / error, freedom))
    columns = {"mean": mean, "std": std, "low": mean - half, "high": mean + half, "p_equivalent": p}
    columns["detectable"] = _detectable_stds(freedom + 1) * std
    return [
        dict(zip(columns, row, strict=True))
        for row in zip(*(column.tolist() for column in columns.values()), strict=True)
    ]


def _gaps(left: Sequence[float], right: Sequence[float], margin: float) -> list[float]:
    """Differences by seed, to 9 decimals."""
    n = len(left)
    if n != len(right):
        raise ValueError(f"paired arms need one value per seed: left has {n}, right has {len(right)}")
    if n == 0:
        raise ValueError("no seeds to compare")
    if not all(math.isfinite(value) for value in (*left, *right)):
        raise ValueError("values must be finite numbers")
    if not 0 < margin < math.inf:
        raise ValueError(f"margin must be above 0, not {margin}")
    return [round(float(a) - float(b), 9) for a, b in zip(left, right, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p values of a family of comparisons, in their order (Holm, Scand. J. Statist. 6, 1979).

    Where every adjusted p at or below ``ALPHA`` is called a finding, the chance of any false one is at most ``ALPHA``,
    however the comparisons depend on each other. As statsmodels' ``multipletests``, which collects all garbage of the
    process at each call.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)), 1.0)
    return [float(value) for value in adjusted]


def seeds_needed(alpha: float = ALPHA, comparisons: int = 1) -> int:
    """The fewest paired seeds whose smallest sign-flip p, 2 / 2**n, is at most ``alpha / comparisons``.

    With fewer, no difference can be significant in a family of so many comparisons with as many seeds each. Above
    3276 comparisons the random signs of :func:`difference` do not resolve so small a p: it stays above.

    Raises:
        ValueError: ``alpha`` is not in (0, 1], or there is no comparison.
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha must be above 0 and at most 1, not {alpha}")
    if comparisons < 1:
        raise ValueError(f"a family has at least 1 comparison, not {comparisons}")
    return next(n for n in itertools.count(1) if 2.0 ** (1 - n) <= alpha / comparisons)


def mcnemar(pairs: Sequence[tuple[int, int]]) -> list[McNemar]:
    """Compare pairs of networks image by image, by the exact binomial form of McNemar's test (Psychometrika 12, 1947).

    Its p tells whether two trained networks differ on such images, not whether the methods differ over seeds.

    Args:
        pairs: Of each pair of networks the images that only the left one classified correctly, and those that only the
            right one did.
    """
    from scipy.stats import binom

    if not pairs:
        return []
    counts = np.array(pairs)
    ps = np.minimum(2 * binom.cdf(counts.min(axis=1), counts.sum(axis=1), 0.5), 1.0).tolist()
    return [McNemar(left_only=left, right_only=right, p=p) for (left, right), p in zip(pairs, ps, strict=True)]


def trend(values: Sequence[float]) -> tuple[float, float]:
    """Slope per step of the line through some values (least squares), and two-sided p of the t test on it.

    As scipy's ``linregress``, which takes 40 times as long: a report asks for every arm and seed.

    Args:
        values: At least three, not all the same.
    """
    from scipy.special import stdtr

    y = np.asarray(values, dtype=float)
    x, y = np.arange(y.size) - (y.size - 1) / 2, y - y.mean()
    r = max(-1.0, min(float(x @ y / np.sqrt((x @ x) * (y @ y))), 1.0))
    # On a line r is 1, and t infinite but for the small number.
    t = r * math.sqrt((y.size - 2) / ((1 - r + 1e-20) * (1 + r + 1e-20)))
    return float(x @ y / (x @ x)), 2 * float(stdtr(y.size - 2, -abs(t)))


def word(difference: Difference, p_holm: float, p_equivalent_holm: float | None, metric: Metric = ACCURACY) -> Word:
    """What a comparison shows, of the left arm.

    Fewer seeds than :func:`seeds_needed` are always ``indeterminate``. ``equivalent`` comes first: a difference proven
    smaller than the margin does not matter even where it is significant.

    Args:
        difference: The comparison.
        p_holm: Its ``p``, adjusted by :func:`holm` over the family it is reported in.
        p_equivalent_holm: Its ``p_equivalent``, adjusted over the same family; None where there is none.
        metric: What was compared: its direction says which sign is better.
    """
    if difference.n < seeds_needed():
        return "indeterminate"
    if p_equivalent_holm is not None and p_equivalent_holm <= ALPHA:
        return "equivalent"
    if p_holm <= ALPHA:
        return "better" if metric.merit(difference.mean) > 0 else "worse"
    return "indeterminate"


def describe(difference: Difference, comparisons: int, metric: Metric = ACCURACY) -> str:
    """A comparison in one line; p as measured, before any correction.

    Args:
        difference: The comparison.
        comparisons: Size of the family it is reported in.
        metric: What was compared.
    """
    unit, form = metric.brief, f".{metric.decimals}f"
    interval = "no interval"
    if difference.low is not None and difference.high is not None:
        interval = f"95 % interval [{difference.low:z{form}}, {difference.high:z{form}}]"
    line = (
        f"{difference.mean:+z{form}}{unit}{metric.aside}, {interval}, p = {_p_text(difference.p)} "
        f"(smallest possible {_p_text(difference.smallest_p)}), n = {difference.n}; "
        f"differences below {difference.margin:g}{unit} do not matter"
    )
    needed = seeds_needed(comparisons=comparisons)
    family = "" if comparisons == 1 else f" among {comparisons} comparisons"
    if difference.n < seeds_needed():
        return f"{line}; descriptive: better or worse{family} needs {needed} seeds"
    if difference.n < needed:
        return f"{line}; better or worse{family} needs {needed} seeds"
    alone = "" if comparisons == 1 else " in a comparison alone"
    return f"{line}; detectable{alone}: {difference.detectable:{form}}{unit}"


def _sign_flips(differences: np.ndarray) -> list[float]:
    """Two-sided p of the sign-flip test of each row of ``[C, n]``."""
    n = differences.shape[1]
    if n == 1:  # Both signs are as far from 0; scipy refuses one observation.
        return [1.0] * len(differences)
    if n > _EXACT:
        return _random_sign_flips(differences)
    rows = max(1, _VALUES // (n * 2**n))
    return [p for start in range(0, len(differences), rows) for p in _all_sign_flips(differences[start : start + rows])]


def _all_sign_flips(differences: np.ndarray) -> list[float]:
    """The same from all 2**n sign vectors."""
    from scipy.stats import permutation_test

    observed = differences.mean(axis=-1)

    def mean(sample: np.ndarray, axis: int) -> np.ndarray:
        means = sample.mean(axis=axis)
        return np.where(np.abs(means - observed) <= _TIE, observed, means)

    p: list[float] = permutation_test(
        (differences,),
        mean,
        permutation_type="samples",
        vectorized=True,
        axis=-1,
        n_resamples=2 ** differences.shape[-1],
        batch=2**_EXACT,
    ).pvalue.tolist()
    return p


def _random_sign_flips(differences: np.ndarray) -> list[float]:
    """The same from random sign vectors, the same ones for each row, however many there are.

    As scipy's ``permutation_test``, which draws them anew for each row: 0.3 s where a row takes 1 ms here.
    """
    count, n = differences.shape
    draws = 2 ** min(n, _FINEST) - 1
    # The signs are those of the bytes that the generator gives: numpy promises this stream, and of no other.
    stream = np.random.PCG64(0)
    observed, total = differences.mean(axis=1), differences.sum(axis=1)
    below, above = np.ones(count), np.ones(count)  # The signs that were observed count, too.
    for start in range(0, draws, _ROWS):
        rows = min(_ROWS, draws - start)
        plus = stream.random_raw(-(-rows * n // 8)).astype("<u8", copy=False).view(np.int8)[: rows * n] < 0
        means = (2 * (plus.astype(float).reshape(rows, n) @ differences.T) - total) / n
        below += np.count_nonzero(means <= observed + _TIE, axis=0)
        above += np.count_nonzero(means >= observed - _TIE, axis=0)
    p: list[float] = np.minimum(2 * np.minimum(below, above) / (draws + 1), 1.0).tolist()
    return p


@lru_cache
def _detectable_stds(n: int) -> float:
    """Mean difference that a two-sided one-sample t test finds with the chance POWER, in standard deviations."""
    from statsmodels.stats.power import TTestPower

    return float(TTestPower().solve_power(nobs=n, alpha=ALPHA, power=POWER, alternative="two-sided"))


def _p_text(p: float) -> str:
    """A p value with 4 decimals, half up (0.03125 is not below 0.0312), or in scientific form where those are few."""
    if p < 0.001:
        return f"{p:.1e}"
    return str(Decimal(p).quantize(Decimal("0.0001"), ROUND_HALF_UP))
