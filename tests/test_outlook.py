"""What an open comparison lacks: seeds that do decide it, and the stage where its differences come apart."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneaudit.audit.outlook import MOST, outlook, spread
from pruneaudit.audit.sequential import Plan, stops
from pruneaudit.audit.statistics import POWER


def with_moments(mean, std, n=6):
    """Differences of exactly this mean and spread."""
    values = np.random.default_rng(n).normal(size=n)
    return list(mean + std * (values - values.mean()) / values.std(ddof=1))


@pytest.mark.parametrize("effect", [0.6, 0.9, 1.5])
@pytest.mark.parametrize(("family", "first"), [(1, 6), (3, 6)])
def test_with_so_many_seeds_a_plan_decides_as_often_as_is_said(effect, family, first):
    lacks = outlook(with_moments(effect, 1.0), margin=0.05, undecided=family, is_planned=True)
    assert (lacks.word, lacks.more) == ("different", lacks.seeds - 6)
    gaps = effect + np.random.default_rng(0).normal(size=(150, lacks.seeds))
    plan = Plan(seeds=lacks.seeds, comparisons=1, margin=1.0, alpha=0.05 / family, first=first)
    decided = (stops(plan, gaps) > 0).mean()
    assert POWER - 0.12 < decided < 0.97


def test_a_difference_far_below_the_margin_lacks_seeds_to_be_equivalent():
    lacks = outlook(with_moments(0.0, 0.5), margin=0.5, is_planned=True)
    assert lacks.word == "equivalent"
    gaps = 0.5 * np.random.default_rng(0).normal(size=(150, lacks.seeds))
    plan = Plan(seeds=lacks.seeds, comparisons=1, margin=0.5)
    near = [stops(plan, plan.margin + side * gaps, one_sided=True) > 0 for side in (-1, 1)]
    assert POWER - 0.12 < (near[0] & near[1]).mean() < 0.99


def test_what_no_number_of_seeds_decides_is_said():
    lacks = outlook(with_moments(0.5, 40.0), margin=0.5)
    assert (lacks.seeds, lacks.more, lacks.word) == (None, None, "")
    assert f"more than {MOST} seeds would not decide it" in lacks.text
    assert outlook([1.0], margin=0.5) is None


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-90, 90), min_size=2, max_size=20), st.integers(1, 48))
def test_it_is_never_too_late_and_never_less_than_signs_allow(gaps, family):
    lacks = outlook(gaps, 0.5, family)
    assert lacks == outlook([-gap for gap in gaps], 0.5, family)
    if lacks.seeds is not None:
        assert lacks.more == lacks.seeds - len(gaps) >= 1
        assert 2.0 ** (1 - lacks.seeds) <= 2 * 0.05 / family
        # A family in which others are open needs no fewer seeds.
        alone = outlook(gaps, 0.5)
        assert alone.seeds <= lacks.seeds


def parts(n, base, pruning, retraining, seed):
    """Differences that are the sum of what three stages do to them, and what is seen of the first two."""
    random = np.random.default_rng(seed)
    of_base, of_pruning, rest = random.normal(size=(3, n))
    gaps = base * of_base + pruning * of_pruning + retraining * rest
    return gaps, 70 - of_base, 10 * (base * of_base + pruning * of_pruning)


def test_a_variance_is_taken_apart_by_the_stage_where_it_arises():
    gaps, bases, pruned = parts(4000, 1.0, 2.0, 1.0, seed=0)
    found = spread(gaps, bases, pruned)
    assert [found.base, found.pruning, found.retraining] == pytest.approx([1 / 6, 4 / 6, 1 / 6], abs=0.03)
    # Who cannot see the base model sees it in pruning.
    found = spread(gaps, None, pruned)
    assert [found.base, found.pruning, found.retraining] == pytest.approx([0, 5 / 6, 1 / 6], abs=0.03)
    assert spread(gaps, bases).pruning is None


def test_few_seeds_tell_no_stage_that_is_not_there():
    # Unadjusted, two regressors that say nothing would be given a quarter of the variance of nine seeds.
    found = [spread(*parts(9, 0.0, 0.0, 1.0, seed)) for seed in range(200)]
    assert np.mean([one.retraining for one in found]) > 0.85


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(6, 12), st.floats(0, 3), st.floats(0, 3), st.floats(0, 3))
def test_shares_add_up(seed, n, base, pruning, retraining):
    found = spread(*parts(n, base, pruning, retraining, seed))
    if found is None:
        assert base == pruning == retraining == 0 or max(base, pruning, retraining) < 1e-8
    else:
        assert math.isclose(found.base + found.pruning + found.retraining, 1.0, abs_tol=1e-9)


def test_what_does_not_vary_is_not_taken_apart():
    assert spread([1.0] * 6, [70.0] * 6, [1.0] * 6) is None
    assert spread([1.0, 2.0, 3.0], [1.0, 2.0, 4.0]) is None
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0, 7.0]) is None
    # One base model for all seeds tells nothing.
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0, 7.0], [70.0] * 6).base == 0
