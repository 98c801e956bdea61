"""Courses: lengths and rates by name, by the rules of Wang et al. 2023, appendix A, and what they make of a plan."""

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pruneaudit.campaign.planner import Campaign
from pruneaudit.catalog.cells import Cell
from pruneaudit.catalog.courses import Course
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.names import is_derived
from pruneaudit.catalog.settings import Settings
from pruneaudit.errors import ConfigError
from pruneaudit.workloads.schedule import Schedule

CATALOG = Catalog()
WORKLOAD = CATALOG.workload("lenet5-digits")


def course(name):
    found = Course.parse(name)
    assert found is not None
    return found


def plan(protocol, method="l1", budget="full"):
    campaign = Campaign(CATALOG, None, Settings(budget), None)
    return campaign.plan(Cell("lenet5-digits", protocol, method, 0.9, 0))


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        # Examples of the paper's appendix A.
        ("p30f90-1e-1-cap30", "0:1e-1,30:1e-2,60:1e-3,75:1e-4,83:1e-5"),
        ("p60f60-1e-2-cap30", "0:1e-2,30:1e-3,45:1e-4,53:1e-5"),
        ("p1f120-0.1-cap30", "0:0.1,30:0.01,60:0.001,90:1e-4,105:1e-5"),
        # Without a limit each stage takes half of what is left.
        ("p1f120-1e-3", "0:1e-3,60:1e-4,90:1e-5"),
        # Extra epochs lengthen the first stage, and nothing else.
        ("p60f60+60-1e-2-cap30", "0:1e-2,90:1e-3,105:1e-4,113:1e-5"),
        ("p1f9-cosine-1e-2", "cosine:1e-2:1e-5"),
        ("p1f4-3e-2to3e-4", "0:3e-2,2:3e-3,3:3e-4"),
        # A rate that does not fall by whole tenths still ends where it should.
        ("p1f4-2e-5", "0:2e-5,2:1e-5"),
        ("p1f4-1e-5", "0:1e-5"),
    ],
)
def test_schedules_follow_the_rules_of_the_paper(name, schedule):
    found = course(name)
    assert str(found.schedule(found.last or 1e-5)) == str(Schedule.parse(schedule))


@given(st.integers(1, 200), st.integers(0, 50), st.integers(1, 6), st.integers(0, 40))
def test_every_rate_has_an_epoch_and_stages_do_not_grow(retrain, more, rates, cap):
    assume(rates <= retrain)
    last = 10.0 ** (1 - rates)
    found = Course(pretrain=1, retrain=retrain, more=more, first=1.0, cap=cap).schedule(last)
    starts = [start for start, _ in found.points] + [retrain + more]
    stages = [end - start for start, end in itertools.pairwise(starts)]
    assert len(stages) == rates and min(stages) >= 1 and sum(stages) == retrain + more
    assert found.rate(retrain + more - 1, retrain + more) == pytest.approx(last)
    stages[0] -= more if rates > 1 else 0
    # All but the last stage: it takes what is left, also where a limit cut the others short.
    assert all(one >= other for one, other in itertools.pairwise(stages[:-1]))
    assert not cap or all(stage <= cap for stage in stages[:-1])
    # More epochs change the first stage alone: the rest is the same.
    shorter = Course(pretrain=1, retrain=retrain, first=1.0, cap=cap).schedule(last)
    assert [start - more for start, _ in found.points[1:]] == [start for start, _ in shorter.points[1:]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("p30f90", "it is no such name"),
        ("p30f90-fast", "it is no such name"),
        ("p0f90-1e-2", "greater than or equal to 1"),
        ("p3f9-1e-3to1e-2", "begins at 0.001 and ends above it"),
        ("p3f9+3-cosine-1e-2", "a cosine has no stages"),
        ("p3f9-0", "greater than 0"),
    ],
)
def test_what_begins_like_a_course_and_is_none_is_refused(name, message):
    with pytest.raises(ConfigError, match=r"expected pXfY-RATE") as error:
        CATALOG.protocol(name)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"), [("p3f2-1e-1", "3 rates from 0.1 to 0.001 do not fit into 2"), ("p3f9-1e-4", "cannot end at")]
)
def test_rates_that_do_not_fit_a_workload_are_told_when_it_is_planned(name, message):
    with pytest.raises(ConfigError, match=f"lenet5-digits: .*{message}"):
        plan(name)


def test_other_names_are_no_courses():
    assert Course.parse("s3.2") is None and Course.parse("p") is None
    with pytest.raises(ConfigError, match="unknown protocol 'pf3'"):
        CATALOG.protocol("pf3")


def test_a_course_is_s32_with_other_lengths():
    made, usual = CATALOG.protocol("p20f15-1e-2to1e-4"), CATALOG.protocol("s3.2")
    differing = {name for name in type(made).model_fields if getattr(made, name) != getattr(usual, name)}
    assert differing == {"name", "title", "source", "course"}, "it requires what S3.2 requires"
    assert type(made).model_validate(made.model_dump()) == made
    assert is_derived(made.name) and is_derived("xv-l1") and not is_derived("s3.2")
    assert not any(is_derived(name) for name in CATALOG.select_protocols("all"))


def test_rates_are_compared_from_one_base_and_one_pruned_network():
    names = ("p20f15-1e-2to1e-4", "p20f15-1e-3to1e-4", "p20f15+5-1e-3to1e-4")
    large, small, longer = map(plan, names)
    assert large.base == small.base == longer.base and large.prune == small.prune
    assert (large.base.recipe.epochs, large.base.recipe.lr) == (20, WORKLOAD.pretrain.for_epochs(20).lr)
    (one,), (other,), (more,) = large.trials, small.trials, longer.trials
    assert (one.recipe.epochs, other.recipe.epochs, more.recipe.epochs) == (15, 15, 20)
    assert (one.recipe.lr, other.recipe.lr) == ("0:0.01,8:0.001,12:0.0001", "0:0.001,8:0.0001")
    same = {"lr", "epochs"}
    assert one.recipe.model_dump(exclude=same) == WORKLOAD.retrain.model_dump(exclude=same)


def test_a_course_of_the_workloads_own_lengths_shares_its_runs():
    # lenet5-digits: 30 epochs, then 10 at 1e-2 and 1e-3; only the boundary of its step is its own.
    usual, made = plan("s3.2"), plan("p30f10-1e-2")
    assert made.base.run_id == usual.base.run_id and made.prune.run_id == usual.prune.run_id
    assert made.trials[0].recipe.lr == "0:0.01,5:0.001"


def test_reduced_budgets_shorten_a_course():
    found = plan("p20f20-1e-2to1e-4", budget="smoke")
    assert (found.base.recipe.epochs, found.trials[0].recipe.epochs) == (2, 2)
