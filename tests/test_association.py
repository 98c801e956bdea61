"""Criteria against accuracy after retraining: counted by hand, and beside scipy."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from pruneaudit.audit import association
from pruneaudit.audit.association import associate

values = st.integers(-4, 4).map(float)


def test_counted_by_hand():
    # Five networks, two repeats: means 90, 92, 91, 95, 93. The criterion chooses the first one.
    criterion = [0.1, 0.2, 0.3, 0.4, 0.5]
    found = associate(criterion, [[89, 92, 90, 96, 93], [91, 92, 92, 94, 93]])
    # Of ten pairs (1,2) (1,3) (1,4) (1,5) (2,4) (2,5) (3,4) (3,5) agree in sign, (2,3) and (4,5) do not.
    assert found.tau == pytest.approx((8 - 2) / 10)
    # A smaller criterion promises more: where it goes with less, the pair is discordant.
    assert found.discordance == pytest.approx(8 / 10)
    assert (found.n, found.chosen, found.best, found.regret) == (5, 90, 95, 5)
    assert found.anomaly == 4 / 5
    assert found.mean == pytest.approx(92.2)
    # The second repeat thinks the fourth best, and so does the first: 96 - 89 and 94 - 91.
    assert found.regret_held_out == pytest.approx((7 + 3) / 2)
    assert found.repeat_tau == pytest.approx(kendalltau([89, 92, 90, 96, 93], [91, 92, 92, 94, 93]).statistic)


@given(st.lists(st.tuples(values, values), min_size=3, max_size=12))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_tau_is_scipys(pairs):
    left, right = map(np.array, zip(*pairs, strict=True))
    wanted = kendalltau(left, right).statistic
    assert association.tau(left, right) == pytest.approx(0.0 if np.isnan(wanted) else wanted, abs=1e-12)


@given(st.permutations(range(6)))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_without_ties_discordance_and_tau_say_the_same(order):
    ranks, accuracy = np.arange(6.0), np.array(order, float)
    # A pair is discordant where criterion and accuracy rise together: a good criterion falls where accuracy rises.
    assert association.discordance(ranks, accuracy) == pytest.approx((1 + association.tau(ranks, accuracy)) / 2)


def test_the_permutation_test_is_the_exact_one_up_to_its_draws():
    criterion, accuracy = np.arange(6.0), np.array([3, 1, 2, 6, 5, 4], float)
    observed = abs(association.tau(criterion, accuracy))
    all_ = [abs(association.tau(criterion, np.array(order))) for order in itertools.permutations(accuracy)]
    exact = np.mean(np.array(all_) >= observed - 1e-12)
    assert associate(criterion, [accuracy]).p == pytest.approx(exact, abs=0.04)


def test_under_the_label_permutation_nothing_is_found_more_often_than_it_says(monkeypatch):
    monkeypatch.setattr(association, "PERMUTATIONS", 199)
    monkeypatch.setattr(association, "RESAMPLES", 199)
    draws = np.random.default_rng(3)
    found = [associate(draws.random(25), draws.random((1, 25)) * 100) for _ in range(60)]
    assert sum(one.p <= 0.05 for one in found) <= 8  # binomial: P(more) = 1 %
    assert np.mean([one.tau_interval[0] <= 0 <= one.tau_interval[1] for one in found]) > 0.85
    assert all(one.null[0] < 0 < one.null[1] for one in found)


def test_what_knows_the_truth_reaches_the_ceiling():
    draws = np.random.default_rng(0)
    truth = draws.normal(95, 1, 4000)
    repeats = truth + draws.normal(0, 2, (3, 4000))
    agreement = kendalltau(repeats[0], repeats[1]).statistic
    reached = kendalltau(truth, repeats.mean(axis=0)).statistic
    assert association.ceiling(agreement, 3) == pytest.approx(reached, abs=0.03)
    assert agreement < reached


def test_luck_makes_no_held_out_regret(monkeypatch):
    monkeypatch.setattr(association, "PERMUTATIONS", 1)
    monkeypatch.setattr(association, "RESAMPLES", 2)
    draws = np.random.default_rng(0)
    # All networks are alike: the best is so by luck.
    found = [associate(np.arange(40.0), 95 + draws.normal(0, 1, (6, 40))) for _ in range(20)]
    assert np.mean([one.regret for one in found]) > 0.7
    assert abs(np.mean([one.regret_held_out for one in found])) < 0.4


def test_a_constant_criterion_says_nothing():
    found = associate([1.0, 1.0, 1.0, 1.0], [[90, 91, 92, 93]])
    assert (found.tau, found.p, found.chosen, found.discordance) == (0, 1, 90, 0.5)
    assert found.repeat_tau is None and found.ceiling is None and found.regret_held_out is None


def test_an_infinite_loss_is_the_worst():
    assert associate([np.inf, 2.0, 1.0], [[1, 2, 3]]).tau == pytest.approx(-1)


def test_two_criteria_are_resampled_together():
    draws = np.random.default_rng(0)
    criterion, accuracies = draws.random(30), draws.random((2, 30))
    gap = association.resampled("tau", criterion, accuracies) - association.resampled("tau", 5 * criterion, accuracies)
    assert not gap.any()


@pytest.mark.parametrize(
    ("criterion", "accuracies"),
    [([1, 2], [[1, 2]]), ([1, 2, 3], []), ([1, 2, 3], [[1, 2]]), ([1, 2, np.nan], [[1, 2, 3]])],
)
def test_what_cannot_be_compared_is_refused(criterion, accuracies):
    with pytest.raises(ValueError, match=r"networks|numbers"):
        associate(criterion, accuracies)
