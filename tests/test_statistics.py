"""Statistics of paired comparisons: every number against another way to it, and the rate of false findings."""

import gc
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats import contingency_tables
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from pruneaudit.audit import statistics
from pruneaudit.audit.statistics import (
    ALPHA,
    POWER,
    Difference,
    describe,
    difference,
    differences,
    holm,
    mcnemar,
    seeds_needed,
    trend,
    word,
)

FLIPPED = {"better": "worse", "worse": "better", "equivalent": "equivalent", "indeterminate": "indeterminate"}
#: Splits whose accuracies are short decimals, endless decimals and short binary fractions.
SPLITS = (10_000, 360, 333, 1536)
LEFT = [94.1, 93.9, 94.3, 94.6, 93.8, 94.9]
RIGHT = [93.5, 93.8, 93.7, 94.2, 93.6, 94.1]


def enumerated(images: list[int]) -> float:
    """Sign-flip p in whole numbers: images that one arm has more right than the other, by seed."""
    observed = abs(sum(images))
    sums = [abs(sum(s * k for s, k in zip(signs, images, strict=True))) for signs in _signs(len(images))]
    return sum(value >= observed for value in sums) / len(sums)


def _signs(n: int) -> itertools.product:
    return itertools.product((-1, 1), repeat=n)


def percent(correct: list[int], images: int) -> list[float]:
    return [100.0 * count / images for count in correct]


def compared(images: list[int], margin: float = 0.5) -> Difference:
    """A comparison whose differences are so many hundredths of a percentage point."""
    return difference(percent([5000 + k for k in images], 10_000), percent([5000] * len(images), 10_000), margin)


def called(found: Difference, comparisons: int = 1) -> str:
    """The word of a comparison in a family of as many with p = 1."""
    p = holm([found.p] + [1.0] * (comparisons - 1))[0]
    if found.p_equivalent is None:
        return word(found, p, None)
    return word(found, p, holm([found.p_equivalent] + [1.0] * (comparisons - 1))[0])


@pytest.fixture(autouse=True, scope="module")
def no_collecting():
    """Statsmodels' multipletests collects garbage in each call, 45 ms: too long for thousands of families."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "collect", lambda *_: 0)
        yield


# Each number against another way to it.


@pytest.mark.parametrize("images", SPLITS)
@pytest.mark.parametrize("n", [2, 3, 5, 6, 8, 10])
def test_p_is_the_share_of_sign_vectors_at_least_as_extreme(n, images):
    rng = np.random.default_rng(n)
    for spread in (1, 3, 40):  # Few different counts: many sums tie.
        left, right = (rng.integers(images // 2, images // 2 + spread + 1, n).tolist() for _ in range(2))
        expected = enumerated([a - b for a, b in zip(left, right, strict=True)])
        assert difference(percent(left, images), percent(right, images), 0.5).p == expected


@pytest.mark.parametrize(("images", "differences"), [(333, [1, 2, -3, 5, 1, 2, 3, -4]), (1536, [1, 1, -2, 1, -1, 1])])
def test_ties_of_endless_decimals_count(images, differences):
    right = [7, 100, 211, 300, 3, 250, 301, 149][: len(differences)]
    left = [a + b for a, b in zip(right, differences, strict=True)]
    assert difference(percent(left, images), percent(right, images), 0.5).p == enumerated(differences)


@pytest.mark.parametrize(
    ("n", "smallest"),
    [(1, 1.0), (2, 0.5), (3, 0.25), (4, 0.125), (5, 0.0625), (6, 0.03125), (7, 2 / 128), (8, 2 / 256)],
)
def test_smallest_p_is_reached_and_never_passed(n, smallest):
    found = compared(list(range(100, 100 + n)))
    assert found.smallest_p == found.p == smallest == 2 / 2**n == enumerated(list(range(100, 100 + n)))
    assert compared([500] * n).p == smallest


def test_scipy_agrees_that_one_seed_says_nothing():
    # scipy takes no single observation; a second one that is 0 under both signs changes nothing.
    found = stats.permutation_test((np.array([7.0, 0.0]),), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert found.pvalue == compared([700]).p == 1.0


def test_fifteen_seeds_are_exact_and_sixteen_come_close():
    images = [3, -1, 4, 1, -5, 9, 2, -6, 5, 3, 5, -8, 9, 7, 9, -3]
    assert compared(images[:15]).p == enumerated(images[:15])
    expected, found = enumerated(images), compared(images)
    assert found.p == pytest.approx(expected, abs=4 * math.sqrt(expected / 2**16))
    assert found.p != expected
    assert compared(images).p == found.p, "the random signs have a fixed seed"
    assert found.smallest_p == 2 / 2**16


@pytest.mark.parametrize("n", [15, 16, 17, 40])
def test_smallest_p_holds_for_random_signs(n):
    found = compared([500 + k for k in range(n)])
    assert found.smallest_p == 2 / 2 ** min(n, 17)
    assert found.smallest_p <= found.p <= 4 * found.smallest_p + 1e-4


@pytest.mark.parametrize("n", [16, 17, 23, 100])
def test_random_signs_are_those_of_numpy_one_by_one(n):
    """However many are looked at together, and of whatever length."""
    gaps = np.round(np.random.default_rng(n).normal(0.05, 0.5, (3, n)), 2)
    signs = 2.0 * np.random.default_rng(0).integers(0, 2, (2 ** min(n, 17) - 1, n), dtype=np.int8) - 1
    means, observed = signs @ gaps.T / n, gaps.mean(axis=1)
    below, above = (means <= observed + 1e-8).sum(axis=0), (means >= observed - 1e-8).sum(axis=0)
    expected = np.minimum(2 * (1 + np.minimum(below, above)) / (len(signs) + 1), 1.0)
    assert statistics._random_sign_flips(gaps) == expected.tolist()


@pytest.mark.parametrize("n", [2, 3, 6, 8, 20])
def test_moments_and_interval(n):
    left, right = np.random.default_rng(n).normal(90, 0.3, (2, n))
    found, raw = difference(left, right, 0.5), left - right
    mean = sum(raw) / n
    std = math.sqrt(sum((raw - mean) ** 2) / (n - 1))
    half = stats.t.ppf(0.975, n - 1) * std / math.sqrt(n)
    assert (found.n, found.margin) == (n, 0.5)
    assert (found.mean, found.std) == pytest.approx((mean, std), abs=1e-8)
    assert (found.low, found.high) == pytest.approx((mean - half, mean + half), abs=1e-7)


@pytest.mark.parametrize("margin", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("n", [2, 3, 6, 8, 20])
def test_equivalence_is_two_one_sided_t_tests(n, margin):
    left, right = np.random.default_rng(n).normal(90, 0.3, (2, n))
    above = stats.ttest_1samp(left - right, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(left - right, margin, alternative="less").pvalue
    assert difference(left, right, margin).p_equivalent == pytest.approx(max(above, below), rel=1e-6)


@pytest.mark.parametrize("n", [2, 3, 4, 6, 8, 15, 40])
def test_detectable_difference_is_found_with_the_power_told(n):
    left, right = np.random.default_rng(n).normal(90, 0.3, (2, n))
    found = difference(left, right, 0.5)
    shift = found.detectable / found.std * math.sqrt(n)
    critical = stats.t.ppf(1 - ALPHA / 2, n - 1)
    power = stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift)
    assert POWER == 0.8
    assert power == pytest.approx(0.8, abs=1e-5)


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 = 0.02, 0.03, 0.06, 0.04; a later one is never below an earlier.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []
    assert all(type(p) is float for p in holm(np.array([0.1, 0.2]).tolist()))


@pytest.mark.parametrize(("comparisons", "seeds"), [(1, 6), (2, 7), (3, 7), (6, 8), (12, 9), (13, 10), (819, 15)])
def test_seeds_needed(comparisons, seeds):
    assert seeds_needed(comparisons=comparisons) == seeds
    assert holm([2 / 2**seeds] * comparisons)[0] <= ALPHA < holm([2 / 2 ** (seeds - 1)] * comparisons)[0]


def test_seeds_needed_at_other_levels():
    assert [seeds_needed(alpha) for alpha in (1.0, 0.5, 0.25, 0.1, 0.0625, 0.01)] == [1, 2, 3, 5, 5, 8]


def test_mcnemar():
    pairs = [(0, 0), (3, 0), (4, 9), (30, 12), (12, 30)]
    found = mcnemar(pairs)
    assert [(test.left_only, test.right_only) for test in found] == pairs
    for test, (left_only, right_only) in zip(found, pairs, strict=True):
        discordant = left_only + right_only
        assert test.p == pytest.approx(stats.binomtest(left_only, discordant).pvalue if discordant else 1.0)
        table = [[0, left_only], [right_only, 0]]
        assert test.p == contingency_tables.mcnemar(table, exact=True).pvalue
        assert [type(value) for value in test.model_dump().values()] == [int, int, float]
    assert found[3].p == found[4].p
    assert mcnemar([]) == []


def test_many_comparisons_are_told_as_each_alone():
    rng = np.random.default_rng(3)
    asked = [
        (percent(left, 333), percent(right, 333), margin)
        for n in (1, 2, 6, 6, 7, 15, 16, 16)
        for spread, margin in ((1, 0.5), (4, 0.3), (40, 1.0))
        for left, right in [rng.integers(300, 300 + spread, (2, n)).tolist()]
    ]
    assert differences(asked) == [difference(*one) for one in asked]
    assert differences([]) == []


def test_interval_and_equivalence_are_those_of_statsmodels():
    for left, right in (LEFT, RIGHT), (LEFT[:3], RIGHT[:3]):
        found, known = difference(left, right, 0.4), DescrStatsW(np.round(np.array(left) - right, 9))
        assert (found.low, found.high) == pytest.approx(known.tconfint_mean(ALPHA), rel=1e-12)
        assert found.p_equivalent == pytest.approx(known.ttost_mean(-0.4, 0.4)[0], rel=1e-12)


@given(st.lists(st.sampled_from([0.0, 1e-4, 0.03, 0.05, 0.2, 1.0]), max_size=20))
def test_holm_is_that_of_statsmodels(p_values):
    assert holm(p_values) == (multipletests(p_values, method="holm")[1].tolist() if p_values else [])


@settings(deadline=None)
@given(st.lists(st.integers(8000, 10_000), min_size=3, max_size=50).filter(lambda values: len(set(values)) > 1))
def test_trend_is_the_regression_of_scipy(counts):
    curve = percent(counts, 10_000)
    expected = stats.linregress(range(len(curve)), curve)
    assert trend(curve) == pytest.approx((expected.slope, expected.pvalue), rel=1e-6, abs=1e-9)


# Degenerate and wrong input.


def test_one_seed():
    found = compared([42])
    assert found.model_dump() == {
        "n": 1,
        "mean": pytest.approx(0.42),
        "std": None,
        "low": None,
        "high": None,
        "p": 1.0,
        "smallest_p": 1.0,
        "p_equivalent": None,
        "margin": 0.5,
        "detectable": None,
    }
    assert called(found) == "indeterminate"


@pytest.mark.parametrize("n", [2, 3, 6, 8, 20])
def test_no_difference_at_any_seed(n):
    # Float noise makes no difference: 0.1 + 0.2 is not 0.3.
    found = difference([0.1 + 0.2] * n, [0.3] * n, 0.5)
    assert (found.mean, found.std, found.low, found.high, found.detectable) == (0.0, 0.0, 0.0, 0.0, 0.0)
    assert (found.p, found.p_equivalent) == (1.0, 0.0)
    assert called(found, 50) == ("equivalent" if n >= 6 else "indeterminate")


@pytest.mark.parametrize("n", [2, 3, 6, 8])
@pytest.mark.parametrize(
    ("images", "p_equivalent", "name"),
    [(10, 0.0, "equivalent"), (-49, 0.0, "equivalent"), (50, 1.0, "better"), (-50, 1.0, "worse"), (70, 1.0, "better")],
)
def test_the_same_difference_at_every_seed(n, images, p_equivalent, name):
    found = compared([images] * n)
    mean = images / 100
    assert (found.mean, found.std, found.low, found.high, found.detectable) == (mean, 0.0, mean, mean, 0.0)
    assert (found.p, found.p_equivalent) == (found.smallest_p, p_equivalent)
    assert called(found) == (name if n >= 6 else "indeterminate")


@pytest.mark.parametrize(
    ("left", "right", "margin", "message"),
    [
        ([1.0, 2.0], [1.0], 0.5, "paired arms need one value per seed: left has 2, right has 1"),
        ([], [], 0.5, "no seeds to compare"),
        ([1.0], [1.0], 0.0, "margin must be above 0, not 0.0"),
        ([1.0], [1.0], -1.0, "margin must be above 0, not -1.0"),
        ([1.0], [1.0], math.nan, "margin must be above 0, not nan"),
        ([1.0], [1.0], math.inf, "margin must be above 0, not inf"),
        ([1.0, math.nan], [1.0, 2.0], 0.5, "values must be finite numbers"),
        ([1.0, 2.0], [1.0, math.inf], 0.5, "values must be finite numbers"),
    ],
)
def test_wrong_input_is_told_in_one_line(left, right, margin, message):
    with pytest.raises(ValueError) as caught:
        difference(left, right, margin)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1), "alpha must be above 0 and at most 1, not 0.0"),
        ((1.5, 1), "alpha must be above 0 and at most 1, not 1.5"),
        ((0.05, 0), "a family has at least 1 comparison, not 0"),
    ],
)
def test_seeds_needed_refuses(arguments, message):
    with pytest.raises(ValueError) as caught:
        seeds_needed(*arguments)
    assert str(caught.value) == message


def test_numbers_are_builtins_and_survive_json():
    for found in (difference(np.array(LEFT), np.float64(RIGHT), np.float64(0.5)), compared([5, 5]), compared([5])):
        values = found.model_dump()
        assert {type(getattr(found, name)) for name in values} <= {int, float, type(None)}
        assert Difference.model_validate(json.loads(json.dumps(values, allow_nan=False))) == found


def test_import_loads_neither_torch_nor_scipy():
    code = (
        "import sys, pruneaudit.audit.statistics as s\n"
        "print(sorted({'torch', 'scipy', 'statsmodels', 'pandas'} & set(sys.modules)))\n"
        "s.difference([1.0, 2.0], [2.0, 5.0], 0.5), s.holm([0.5])\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["[]", "False"]


# Words.


def _difference(n: int = 6, mean: float = 1.0, p: float = 0.03125, p_equivalent: float | None = 1.0) -> Difference:
    return Difference(
        n=n,
        mean=mean,
        std=1.0,
        low=-1.0,
        high=1.0,
        p=p,
        smallest_p=2 / 2**n,
        p_equivalent=p_equivalent,
        margin=0.5,
        detectable=1.0,
    )


@pytest.mark.parametrize(
    ("n", "mean", "p", "p_equivalent", "expected"),
    [
        (6, 1.0, 0.05, 1.0, "better"),
        (6, -1.0, 0.05, 1.0, "worse"),
        (6, 1.0, 0.0501, 1.0, "indeterminate"),
        (6, 0.2, 0.9, 0.05, "equivalent"),
        (6, 0.2, 0.9, 0.0501, "indeterminate"),
        (6, 0.2, 0.01, 0.01, "equivalent"),
        (6, -0.2, 0.01, 0.01, "equivalent"),
        (6, 1.0, 0.05, None, "better"),
        (6, 1.0, 0.06, None, "indeterminate"),
        (5, 1.0, 0.0, 1.0, "indeterminate"),
        (5, 0.1, 1.0, 0.0, "indeterminate"),
        (3, 0.1, 0.0, 0.0, "indeterminate"),
    ],
)
def test_word(n, mean, p, p_equivalent, expected):
    assert word(_difference(n, mean), p, p_equivalent) == expected


def test_word_reads_adjusted_p_only():
    assert word(_difference(p=0.0, p_equivalent=0.0), 1.0, 1.0) == "indeterminate"


@pytest.mark.parametrize(
    ("found", "comparisons", "line"),
    [
        (
            difference(LEFT, RIGHT, 0.5),
            1,
            "+0.45 pp, 95 % interval [0.17, 0.73], p = 0.0313 (smallest possible 0.0313), n = 6; "
            "differences below 0.5 pp do not matter; detectable: 0.38 pp",
        ),
        (
            difference(LEFT, RIGHT, 0.25),
            6,
            "+0.45 pp, 95 % interval [0.17, 0.73], p = 0.0313 (smallest possible 0.0313), n = 6; "
            "differences below 0.25 pp do not matter; better or worse among 6 comparisons needs 8 seeds",
        ),
        (
            compared([-50] * 8, margin=1.0),
            6,
            "-0.50 pp, 95 % interval [-0.50, -0.50], p = 0.0078 (smallest possible 0.0078), n = 8; "
            "differences below 1 pp do not matter; detectable in a comparison alone: 0.00 pp",
        ),
        (
            difference(LEFT[:3], RIGHT[:3], 0.5),
            1,
            "+0.43 pp, 95 % interval [-0.28, 1.15], p = 0.2500 (smallest possible 0.2500), n = 3; "
            "differences below 0.5 pp do not matter; descriptive: better or worse needs 6 seeds",
        ),
        (
            compared([0]),
            3,
            "+0.00 pp, no interval, p = 1.0000 (smallest possible 1.0000), n = 1; "
            "differences below 0.5 pp do not matter; descriptive: better or worse among 3 comparisons needs 7 seeds",
        ),
        (
            compared([10] * 15),
            1,
            "+0.10 pp, 95 % interval [0.10, 0.10], p = 6.1e-05 (smallest possible 6.1e-05), n = 15; "
            "differences below 0.5 pp do not matter; detectable: 0.00 pp",
        ),
    ],
)
def test_describe(found, comparisons, line):
    assert describe(found, comparisons) == line


@pytest.mark.parametrize("n", range(1, 10))
def test_few_seeds_are_descriptive(n):
    line = describe(compared(list(range(n))), 1)
    assert ("descriptive" in line) == ("needs 6 seeds" in line) == ("detectable" not in line) == (n < 6)


def test_no_minus_zero():
    assert describe(difference([50.0, 50.0], [50.001, 50.001], 0.5), 1).startswith(
        "+0.00 pp, 95 % interval [0.00, 0.00]"
    )


# Properties.

counts = st.lists(st.integers(-60, 60), min_size=1, max_size=9)
margins = st.sampled_from([0.1, 0.25, 0.5])


@given(counts, margins, st.sampled_from([1, 3]))
@settings(deadline=None, max_examples=60)
def test_swapped_arms_mirror(images, margin, comparisons):
    left, right = percent([5000 + k for k in images], 10_000), percent([5000] * len(images), 10_000)
    found, swapped = difference(left, right, margin), difference(right, left, margin)
    assert swapped.mean == pytest.approx(-found.mean, abs=1e-12)
    assert (swapped.p, swapped.smallest_p) == (found.p, found.smallest_p)
    if len(images) > 1:
        assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low), abs=1e-9)
        assert (swapped.std, swapped.detectable) == pytest.approx((found.std, found.detectable), rel=1e-9)
        assert swapped.p_equivalent == pytest.approx(found.p_equivalent, rel=1e-6)
    assert called(swapped, comparisons) == FLIPPED[called(found, comparisons)]


@given(counts, st.integers(-40, 40))
@settings(deadline=None, max_examples=60)
def test_a_shift_of_both_arms_changes_nothing(images, shift):
    found = compared(images)
    left, right = percent([5000 + shift + k for k in images], 10_000), percent([5000 + shift] * len(images), 10_000)
    assert difference(left, right, 0.5) == found


@given(counts, st.integers(1, 60))
@settings(deadline=None, max_examples=60)
def test_a_shift_of_one_arm_moves_mean_and_interval(images, shift):
    found, moved = compared(images), compared([k + shift for k in images])
    assert moved.mean == pytest.approx(found.mean + shift / 100, abs=1e-9)
    if len(images) > 1:
        assert (moved.low, moved.high) == pytest.approx((found.low + shift / 100, found.high + shift / 100), abs=1e-9)
        assert (moved.std, moved.detectable) == pytest.approx((found.std, found.detectable), rel=1e-6, abs=1e-12)


@given(counts, st.sampled_from([2, 5, 10]))
@settings(deadline=None, max_examples=60)
def test_scaled_differences_and_margin_scale(images, factor):
    found, scaled = compared(images, 0.25), compared([factor * k for k in images], 0.25 * factor)
    assert (scaled.p, scaled.smallest_p) == (found.p, found.smallest_p)
    for name in ("mean", "std", "low", "high", "detectable"):
        value = getattr(found, name)
        assert getattr(scaled, name) == (None if value is None else pytest.approx(factor * value, rel=1e-6, abs=1e-9))
    assert scaled.p_equivalent == (None if found.p_equivalent is None else pytest.approx(found.p_equivalent, rel=1e-6))


@given(counts.flatmap(lambda images: st.tuples(st.just(images), st.permutations(images))), margins)
@settings(deadline=None, max_examples=60)
def test_order_of_seeds_does_not_matter(orders, margin):
    found, other = (compared(images, margin) for images in orders)
    assert other.p == found.p
    numbers = found.model_dump(exclude_none=True)
    assert other.model_dump(exclude_none=True) == pytest.approx(numbers, rel=1e-6, abs=1e-12)
    assert called(other) == called(found)


@given(st.lists(st.tuples(*[st.floats(0, 100)] * 2), min_size=1, max_size=9), margins)
@settings(deadline=None, max_examples=100)
def test_any_percentages_give_a_sound_answer(pairs, margin):
    found = difference(*zip(*pairs, strict=True), margin)
    assert found.smallest_p <= found.p <= 1
    assert found.n < 2 or (found.low <= found.mean + 1e-9 and found.mean - 1e-9 <= found.high and found.std >= 0)
    if found.n < 6:
        assert called(found) == "indeterminate"
    assert describe(found, 1) and "\n" not in describe(found, 1)


@given(st.lists(st.floats(0, 1), max_size=12))
@settings(deadline=None, max_examples=100)
def test_holm_raises_p_and_keeps_their_order(p_values):
    adjusted = holm(p_values)
    assert len(adjusted) == len(p_values)
    assert all(raw <= value <= 1 for raw, value in zip(p_values, adjusted, strict=True))
    ranked = [value for _, value in sorted(zip(p_values, adjusted, strict=True))]
    assert ranked == sorted(ranked)
    assert holm(p_values[::-1]) == adjusted[::-1]
    assert all(value <= len(p_values) * raw + 1e-12 for raw, value in zip(p_values, adjusted, strict=True) if value < 1)


# Rates of false and true findings over simulated campaigns.

SIMULATIONS = 3000


def sampled(source: str, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Differences of two exchangeable arms, in percentage points."""
    match source:
        case "normal":
            return rng.normal(0, 0.3, shape)
        case "laplace":
            return rng.laplace(0, 0.3, shape)
        case "skewed arms":
            return rng.gumbel(90, 0.3, shape) - rng.gumbel(90, 0.3, shape)
        case "scaled by seed":  # Seeds that differ in spread: symmetric, but not identically distributed.
            return rng.normal(0, 0.3, shape) * np.arange(1, shape[-1] + 1)
        case "few images":  # Ties and zeros.
            return 100 * (rng.binomial(360, 0.97, shape) - rng.binomial(360, 0.97, shape)) / 360
    raise KeyError(source)


def words(differences: np.ndarray, margin: float) -> np.ndarray:
    """Words ``[simulations, comparisons]`` of differences ``[simulations, comparisons, seeds]``, each row a family.

    The vectorised inputs of ``word`` equal those of ``difference``, of which some are looked at.
    """
    n = differences.shape[-1]
    differences = np.round(differences, 9)
    p = np.concatenate([statistics._all_sign_flips(chunk) for chunk in np.array_split(differences, 10)])
    above = stats.ttest_1samp(differences, -margin, axis=-1, alternative="greater").pvalue
    below = stats.ttest_1samp(differences, margin, axis=-1, alternative="less").pvalue
    p_equivalent = np.maximum(above, below)
    means = differences.mean(axis=-1)
    for row in range(3):
        found = difference(50 + differences[row, 0], np.full(n, 50.0), margin)
        assert (found.p, found.mean, found.p_equivalent) == pytest.approx(
            (p[row, 0], means[row, 0], p_equivalent[row, 0]), abs=1e-7
        )
    result = []
    for row in range(len(differences)):
        adjusted = zip(holm(p[row].tolist()), holm(p_equivalent[row].tolist()), strict=True)
        founds = [_difference(n, mean) for mean in means[row].tolist()]
        result.append([word(found, *pair) for found, pair in zip(founds, adjusted, strict=True)])
    return np.array(result)


def at_most(count: int, total: int, rate: float) -> bool:
    """Whether a count is no evidence that its rate is above the one given; wrong once in 10 000."""
    return count <= stats.binom.ppf(1 - 1e-4, total, rate)


def at_least(count: int, total: int, rate: float) -> bool:
    return count >= stats.binom.ppf(1e-4, total, rate)


@pytest.mark.parametrize("comparisons", [1, 6])
@pytest.mark.parametrize("n", [6, 8])
@pytest.mark.parametrize("source", ["normal", "laplace", "skewed arms", "scaled by seed", "few images"])
def test_equal_arms_are_rarely_told_apart(source, n, comparisons):
    rng = np.random.default_rng([n, comparisons])
    # The margin is far below what so few seeds resolve: no comparison hides as equivalent.
    found = words(sampled(source, rng, (SIMULATIONS, comparisons, n)), margin=1e-4)
    false = int(np.isin(found, ("better", "worse")).any(axis=1).sum())
    # What 2**n sign vectors allow: a multiple of 2 / 2**n, and none where Holm takes it above the level.
    single = math.floor(ALPHA / comparisons * 2 ** (n - 1)) / 2 ** (n - 1)
    exact = 1 - (1 - single) ** comparisons
    assert exact <= ALPHA
    assert at_most(false, SIMULATIONS, exact)
    if source != "few images":  # Without ties the test uses up what it is allowed to.
        assert at_least(false, SIMULATIONS, exact)


def test_all_pairs_of_equal_arms_are_rarely_told_apart():
    arms = np.random.default_rng(0).normal(90, 0.3, (SIMULATIONS, 4, 8))
    pairs = np.stack([arms[:, a] - arms[:, b] for a, b in itertools.combinations(range(4), 2)], axis=1)
    found = np.isin(words(pairs, margin=1e-4), ("better", "worse")).any(axis=1)
    assert at_most(int(found.sum()), SIMULATIONS, ALPHA)
    assert found.any()


@pytest.mark.parametrize("comparisons", [1, 6])
@pytest.mark.parametrize("n", [6, 8])
def test_a_difference_of_the_margin_is_rarely_called_equivalent(n, comparisons):
    rng = np.random.default_rng([n, comparisons, 1])
    side = rng.choice([-1, 1], (SIMULATIONS, comparisons, 1))
    found = words(rng.normal(0, 0.1, (SIMULATIONS, comparisons, n)) + 0.5 * side, margin=0.5)
    false = int((found == "equivalent").any(axis=1).sum())
    assert at_most(false, SIMULATIONS, ALPHA)
    assert at_least(false, SIMULATIONS, ALPHA - 0.01)


@pytest.mark.parametrize("comparisons", [1, 6])
def test_large_differences_are_found(comparisons):
    rng = np.random.default_rng(2)
    found = words(rng.normal(1.2, 0.3, (500, comparisons, 8)), margin=0.5)
    assert (found == "better").mean() > 0.99
    assert not np.isin(found, ("worse", "equivalent")).any()
    found = words(rng.normal(0, 0.05, (500, comparisons, 8)), margin=0.5)
    assert (found == "equivalent").mean() > 0.99


@pytest.mark.parametrize("n", [3, 5])
@pytest.mark.parametrize("mean", [0.0, 0.5, 50.0])
def test_few_seeds_tell_nothing_apart(mean, n):
    assert (words(np.random.default_rng(3).normal(mean, 0.01, (200, 1, n)), margin=0.5) == "indeterminate").all()


def test_skewed_differences_break_the_level_as_documented():
    draws = np.random.default_rng(4).exponential(1.0, (20_000, 6)) - 1.0
    rate = float((np.array(statistics._all_sign_flips(draws)) <= ALPHA).mean())
    assert rate == pytest.approx((1 - math.exp(-1)) ** 6 + math.exp(-6), abs=0.008)
    assert "6.6 %" in difference.__doc__
