"""Comparisons that are looked at after every seed: error rates hold whenever they stop, decisions are pure."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from pruneaudit.audit.outlook import outlook
from pruneaudit.audit.sequential import EXACT, FUTILITY, Plan, Stop, decide, stops

MARGIN = 1.0


def plan(seeds, comparisons=1, alpha=0.05, first=6, futility=None):
    return Plan(seeds=seeds, comparisons=comparisons, margin=MARGIN, alpha=alpha, first=first, futility=futility)


def all_signs(sizes):
    """The same sizes with each vector of signs, ``[2**n, n]``."""
    return np.array(list(itertools.product([1.0, -1.0], repeat=len(sizes)))) * sizes


def stopped_by_hand(gaps, level, spent, one_sided=False):
    """The look at which differences stop, by enumeration in plain Python; 0: none."""
    vectors = list(itertools.product([1, -1], repeat=len(gaps)))
    gone = {}
    for look in range(1, len(gaps) + 1):
        sums = {signs: sum(s * g for s, g in zip(signs[:look], gaps[:look], strict=True)) for signs in vectors}
        values = {signs: value if one_sided else abs(value) for signs, value in sums.items()}
        allowed = math.floor(level * spent(look) * len(vectors) + 1e-9)
        new = []
        for value in sorted({round(values[signs], 7) for signs in vectors if signs not in gone}, reverse=True):
            tied = [signs for signs in vectors if signs not in gone and round(values[signs], 7) == value]
            if len(gone) + len(new) + len(tied) > allowed:
                break
            new += tied
        gone.update(dict.fromkeys(new, look))
    return gone.get((1,) * len(gaps), 0)


class TestExactness:
    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.integers(0, 12), min_size=2, max_size=9), st.booleans(), st.sampled_from([0.05, 0.3, 0.9]))
    def test_of_all_signs_no_more_stop_than_may(self, sizes, one_sided, alpha):
        fixed = plan(len(sizes), comparisons=2, alpha=alpha, first=1)
        found = stops(fixed, all_signs(sizes), one_sided)
        for look in range(1, len(sizes) + 1):
            share = ((found > 0) & (found <= look)).mean(axis=0)
            assert all(share <= np.array(fixed.levels) * fixed.spent(look) + 1e-9)

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.integers(-9, 9), min_size=1, max_size=7), st.booleans(), st.sampled_from([0.05, 0.3]))
    def test_as_enumerated_by_hand(self, gaps, one_sided, alpha):
        fixed = plan(len(gaps), alpha=alpha, first=1)
        expected = stopped_by_hand(gaps, alpha, fixed.spent, one_sided)
        assert stops(fixed, np.array([gaps], dtype=float), one_sided).item() == expected

    def test_a_later_seed_changes_no_earlier_look(self):
        gaps = np.random.default_rng(0).normal(0.8, 1, (40, 18))
        fixed = plan(18, comparisons=3)
        whole = stops(fixed, gaps)
        for looks in (6, 9, EXACT, EXACT + 2):
            assert (stops(fixed, gaps[:, :looks]) == np.where(whole <= looks, whole, 0)).all()

    @pytest.mark.parametrize(
        ("seeds", "comparisons", "look", "difference"),
        [(5, 1, None, None), (6, 1, 6, 6), (12, 1, 6, 7), (12, 3, 7, 8), (20, 48, 11, 12)],
    )
    def test_the_first_look_is_the_first_at_which_anything_can_stop(self, seeds, comparisons, look, difference):
        fixed = plan(seeds, comparisons)
        assert (fixed.first_look, fixed.first_difference) == (look, difference)
        # All alike: nothing stops sooner than what is the same at every seed.
        level = -1
        first = [stops(fixed, np.ones((1, seeds)), one_sided)[0, level] or None for one_sided in (True, False)]
        assert first == [look, difference]


# Differences under the null hypothesis. Those of the first four have either sign with equal chance.
SHAPES = {
    "normal": lambda random, shape: random.normal(size=shape),
    "skewed arms": lambda random, shape: random.exponential(size=shape) - random.exponential(size=shape),
    "unequal spread": lambda random, shape: random.normal(size=shape) * 4.0 ** random.normal(size=shape),
    "ties": lambda random, shape: random.integers(-2, 3, shape).astype(float),
}
SKEWED = "exponential less its mean"
SHAPES[SKEWED] = lambda random, shape: random.exponential(size=shape) - 1


def false_rate(shape, seeds, family, kind, families):
    """Families in which anything is decided that is not so, and families.

    Nothing differs (``apart``), or all differences are as large as the margin (``near``). The first false decision of a
    family is made at its smallest level: asking for that one alone is what :func:`decide` does, and 48 times as fast.
    """
    random = np.random.default_rng([seeds, family, len(shape)])
    gaps = SHAPES[shape](random, (families * family, seeds))
    alone = plan(seeds, alpha=0.05 / family)
    # At the margin one of the two tests of equivalence is true: at worst the other one always stops.
    found = stops(alone, gaps, one_sided=kind == "near")[:, 0] > 0
    return int(found.reshape(families, family).any(axis=1).sum()), families


# Seeds at most, comparisons of a family, families. More would say little more: all signs are enumerated above.
CASES = [(2, 1, 100), (6, 1, 1000), (8, 3, 600), (12, 1, 800), (12, 6, 130), (12, 48, 16), (20, 1, 150), (20, 4, 40)]


class TestNullHypothesis:
    @pytest.mark.parametrize("kind", ["apart", "near"])
    @pytest.mark.parametrize("shape", sorted(set(SHAPES) - {SKEWED}))
    def test_false_decisions_are_rare_in_whole_families(self, shape, kind, record_property):
        for seeds, family, families in CASES:
            wrong, of = false_rate(shape, seeds, family, kind, families)
            interval = binomtest(wrong, of).proportion_ci(0.95)
            record_property(f"{seeds} seeds, {family}", f"{wrong / of:.4f} [{interval.low:.4f}, {interval.high:.4f}]")
            assert binomtest(wrong, of, 0.05, alternative="greater").pvalue > 0.001, (seeds, family, wrong, of)

    def test_looking_at_p_after_every_seed_would_be_wrong_far_more_often(self):
        # That the simulation would see it: a test of level 0.05 at every look, none of them spending.
        gaps = SHAPES["normal"](np.random.default_rng(3), (1500, 12))
        peeked = np.zeros(len(gaps), dtype=bool)
        for look in range(6, 13):
            # One look alone is the plan whose only look that can stop is the last.
            vectors = all_signs(np.ones(look))[: 2 ** (look - 1)]
            means = np.abs(gaps[:, :look] @ vectors.T)
            peeked |= (means >= means[:, :1] - 1e-8).mean(axis=1) <= 0.05
        assert peeked.mean() > 0.09

    def test_a_zero_mean_is_not_symmetry(self):
        # Measured: 12 % instead of 5 % (twelve seeds at once: 9 %).
        wrong, of = false_rate(SKEWED, 12, 1, "apart", 1000)
        assert 0.08 < wrong / of < 0.15
        # The long tail towards the margin: a difference as large as it looks smaller in most samples.
        wrong, of = false_rate(SKEWED, 12, 1, "near", 500)
        assert wrong / of < 0.05

    @pytest.mark.parametrize("points", [3.0, 20.0])
    def test_no_test_of_a_zero_mean_could_decide_with_so_few_seeds(self, points):
        # The mean is zero, and yet so many seeds in a row show the same difference, more often than in 5 %.
        seeds = 12
        rare = points / (100 + points)
        assert (1 - rare) * points - rare * 100 == pytest.approx(0)
        gaps = np.where(np.random.default_rng(1).random((800, seeds)) < rare, -100.0, points)
        alike = (gaps == points).all(axis=1).mean()
        assert alike == pytest.approx((100 / (100 + points)) ** seeds, abs=0.05) and alike > 0.05
        # Whoever calls them a difference, as signs must, errs as often; e-processes of bounded differences never call.
        assert (stops(plan(seeds), gaps)[:, 0] > 0).mean() >= alike

    def test_families_that_decide_as_a_whole(self):
        """With levels as Holm's procedure leaves them, and comparisons that really differ beside those that do not."""
        random = np.random.default_rng(5)
        families, wrong_apart, wrong_near, right = 120, 0, 0, 0
        for _ in range(families):
            gaps = random.normal(size=(4, 9)) + np.array([[0.0], [0.0], [3.0], [-3.0]])
            words = [stop.word for stop in decide(Plan(seeds=9, comparisons=4, margin=0.01), gaps.tolist())]
            wrong_apart += bool({"better", "worse"} & set(words[:2]))
            right += words[2:] == ["better", "worse"]
            at_margin = random.normal(size=(3, 9), scale=0.3) + np.array([[MARGIN], [-MARGIN], [0.0]])
            words = [stop.word for stop in decide(plan(9, 3), at_margin.tolist())]
            wrong_near += "equivalent" in words[:2]
        assert binomtest(wrong_apart, families, 0.05, alternative="greater").pvalue > 0.001
        assert binomtest(wrong_near, families, 0.05, alternative="greater").pvalue > 0.001
        assert right > 0.8 * families


class TestDecide:
    def test_what_differs_stops_and_what_does_not_is_open_until_the_last_seed(self):
        far, even, near = [5.0] * 12, [3.0, -3.0] * 6, [0.1, -0.1] * 6
        stop = decide(plan(12, 3), [far, even, near])
        assert [one.word for one in stop] == ["better", "indeterminate", "equivalent"]
        assert [one.looks for one in stop] == [8, 12, 7]
        assert decide(plan(12, 1), [[-5.0] * 12])[0] == Stop("worse", 7, 0.05)

    def test_equivalent_comes_before_better(self):
        assert decide(plan(6), [[0.5] * 6])[0].word == "equivalent"

    def test_comparisons_that_are_decided_leave_their_level_to_the_others(self):
        # Alone among three nothing is decided after seven seeds; two that are make room.
        mixed = [3.0, 3.1, 2.9, 3.0, 3.2, 3.0, 3.1, -0.5, 3.0, 3.0, 3.0, 3.0]
        alone = decide(plan(12, 3), [mixed, [3.0, -3.0] * 6, [-3.0, 3.0] * 6])[0]
        helped = decide(plan(12, 3), [mixed, [9.0] * 12, [-9.0] * 12])[0]
        assert helped.looks < alone.looks
        assert helped.level > alone.level

    def test_a_family_waits_for_the_seed_that_an_open_comparison_lacks(self):
        open_one = [3.0, -3.0] * 6
        assert [one.word for one in decide(plan(12, 2), [open_one[:5], [5.0] * 12])] == [None, None]
        found = decide(plan(12, 2), [open_one[:9], [5.0] * 9])
        assert found[0] == Stop(None, 9)
        # Decided, it needs no more.
        assert decide(plan(12, 2), [open_one, [5.0] * found[1].looks])[1] == found[1]

    def test_a_seed_that_failed_closes_its_comparison(self):
        found = decide(plan(12, 2), [[5.0, 5.0, None], [5.0] * 12])
        assert found[0] == Stop("indeterminate", 3)
        assert found[1].word == "better"

    @settings(max_examples=25, deadline=None)
    @given(
        st.lists(st.lists(st.integers(-3, 6), min_size=8, max_size=8), min_size=1, max_size=4),
        st.randoms(),
        st.sampled_from([None, FUTILITY, 0.5]),
    )
    def test_decisions_depend_on_nothing_but_differences_by_seed(self, series, random, futility):
        fixed = plan(8, len(series), futility=futility)
        found = decide(fixed, series)
        order = list(range(len(series)))
        random.shuffle(order)
        assert decide(fixed, [series[place] for place in order]) == [found[place] for place in order]
        # Resumed at any place: no decision is taken back, none is taken early.
        for looks in range(9):
            for before, after in zip(decide(fixed, [one[:looks] for one in series]), found, strict=True):
                assert before == after if before.word else before.looks <= after.looks
        # What lies behind a stop is not looked at.
        tails = [[*one[: stop.looks], *[-9] * (8 - stop.looks)] for one, stop in zip(series, found, strict=True)]
        assert decide(fixed, tails) == found
        # The other arm's view is the opposite.
        swap = {"better": "worse", "worse": "better"}
        mirrored = decide(fixed, [[-gap for gap in one] for one in series])
        assert [one.word for one in mirrored] == [swap.get(one.word, one.word) for one in found]

    def test_what_would_take_far_more_seeds_than_there_are_is_given_up(self):
        even, far = [9.0, -9.0] * 10, [5.0, 6.0] * 10
        found = decide(plan(20, 2, futility=2.0), [even, far])
        assert found[0] == Stop("indeterminate", plan(20, 2).first_difference, is_given_up=True)
        assert found[1].word == "better"
        # What the plan's seeds would just not decide goes on: means and spreads of a few seeds are uncertain.
        slight = [4.0, -1.0, 4.0, 1.0, -2.0, 3.0, 1.0] * 3
        lacks = outlook(slight[:7], MARGIN, 1, is_planned=True).seeds
        assert 20 < lacks < 40
        assert decide(plan(20, futility=2.0), [slight])[0].looks > 7
        assert decide(plan(20, futility=1.0), [slight])[0] == Stop("indeterminate", 7, is_given_up=True)

    def test_plans_of_before_give_nothing_up(self):
        kept = {"seeds": 20, "comparisons": 1, "margin": 0.5, "alpha": 0.05, "first": 6, "spending": "pocock"}
        assert decide(Plan.model_validate(kept), [[9.0, -9.0] * 10]) == [Stop("indeterminate", 20)]

    def test_who_gives_up_decides_nothing_otherwise_and_rarely_what_would_be_decided(self):
        gaps = np.random.default_rng(7).normal(size=(60, 3, 12)) + np.array([[0.0], [0.9], [2.0]])
        both = [
            (decide(plan(12, 3, futility=futility), series.tolist()) for futility in (None, FUTILITY))
            for series in gaps
        ]
        lost, saved, of = 0, 0, 0
        for patient, hasty in both:
            for one, other in zip(patient, hasty, strict=True):
                # The chance of a false finding can only fall: nothing is found that would not be found otherwise.
                assert other.word in (one.word, "indeterminate")
                lost += other.word != one.word
                saved += one.looks - other.looks
                of += one.word != "indeterminate"
        assert lost < 0.1 * of and saved > 60

    def test_more_comparisons_than_planned_are_refused(self):
        with pytest.raises(ValueError, match="2 comparisons, but 1 were planned"):
            decide(plan(6), [[1.0], [1.0]])
        with pytest.raises(ValueError, match="finite"):
            decide(plan(6), [[math.nan]])
