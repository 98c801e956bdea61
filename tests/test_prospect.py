"""How long comparisons will probably stay open: what is played through in milliseconds is what plans then do."""

from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneaudit.audit.prospect import UNKNOWN, chances_open
from pruneaudit.audit.sequential import FUTILITY, Plan, decide

PLAN = Plan(seeds=12, comparisons=3, margin=0.5, futility=FUTILITY)


def looks(series):
    """Looks that each comparison takes, beside two that stay open."""
    open_for_ever = [(-1.0) ** seed * 1e3 for seed in range(PLAN.seeds)]
    return [decide(PLAN, [one, open_for_ever, open_for_ever])[0].looks for one in series.tolist()]


def test_of_nothing_known_as_many_seeds_are_expected_as_plans_then_take():
    random = np.random.default_rng(3)
    taken = looks(random.normal(scale=UNKNOWN, size=(40, 1)) + random.normal(size=(40, PLAN.seeds)))
    assert chances_open(PLAN, [], 3).sum() == pytest.approx(fmean(taken), abs=0.7)


@pytest.mark.parametrize("mean", [0.5, 1.0])
def test_of_what_is_open_after_some_looks_as_well(mean):
    series = mean + np.random.default_rng(5).normal(size=(40, PLAN.seeds))
    known = [(one, taken) for one, taken in zip(series, looks(series), strict=True) if taken > 8]
    assert len(known) > 5
    expected = [chances_open(PLAN, one[:8], 3).sum() for one, _ in known]
    assert fmean(expected) == pytest.approx(fmean(taken for _, taken in known), abs=1.0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-5, 5), max_size=13), st.sampled_from([None, 1.0, FUTILITY]), st.integers(1, 6))
def test_chances_are_chances_and_what_is_taken_is_certain(gaps, futility, undecided):
    plan = Plan(seeds=14, comparisons=6, margin=0.5, futility=futility)
    found = chances_open(plan, gaps, undecided)
    assert found.shape == (plan.seeds,) and found.min() >= 0
    assert (found[: max(len(gaps) + 1, plan.before_any_stop)] == 1).all() or undecided < plan.comparisons
    assert (found[: len(gaps) + 1] == 1).all() and (np.diff(found) <= 0).all()


def test_what_is_plain_stops_sooner_and_what_is_given_up_takes_fewer_seeds():
    plain, doubtful = [3.0, 3.5, 2.5, 3.2, 2.8, 3.1], [3.0, -3.5, 2.5, -3.2, 2.8, -3.1]
    never = PLAN.model_copy(update={"futility": None})
    assert chances_open(PLAN, plain, 3).sum() < 8.5 < chances_open(never, doubtful, 3).sum()
    assert chances_open(PLAN, doubtful, 3).sum() < chances_open(never, doubtful, 3).sum() - 3
