"""Learning-rate schedules: their text form, their rates and how they stretch."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneaudit.workloads.schedule import Schedule

RATES = st.floats(min_value=0, max_value=10, allow_nan=False)


@st.composite
def step_schedules(draw):
    later = sorted(draw(st.sets(st.integers(1, 200_000), max_size=5)))
    return Schedule("step", tuple((start, draw(RATES)) for start in [0, *later]))


COSINES = st.builds(lambda first, last: Schedule("cosine", ((0, first), (1, last))), RATES, RATES)


@settings(deadline=None)
@given(st.one_of(step_schedules(), COSINES))
def test_text_form_round_trips(schedule):
    assert Schedule.parse(str(schedule)) == schedule


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("0:1e-2,60:1e-3,90:1e-4", "0:0.01,60:0.001,90:0.0001"),
        (" 0 : 0.10 , 5:1 ", "0:0.1,5:1"),
        ("0:1e-5", "0:1e-05"),
        ("cosine:1e-2:1e-4", "cosine:0.01:0.0001"),
        ("cosine: 0.1 : 0", "cosine:0.1:0"),
    ],
)
def test_text_form_is_canonical(text, canonical):
    assert str(Schedule.parse(text)) == canonical


def test_step_rate_at_every_epoch():
    schedule = Schedule.parse("0:1e-2,60:1e-3,90:1e-4")
    rates = [schedule.rate(epoch, 120) for epoch in range(120)]
    assert rates == [1e-2] * 60 + [1e-3] * 30 + [1e-4] * 30
    assert schedule.first_stage == 60


def test_one_rate_has_no_first_stage():
    assert Schedule.parse("0:1e-3").first_stage is None
    assert Schedule.parse("cosine:1:0").first_stage is None


def test_cosine_end_points_and_middle():
    schedule = Schedule.parse("cosine:1e-1:1e-3")
    assert schedule.rate(0, 101) == pytest.approx(1e-1, rel=1e-15)
    assert schedule.rate(100, 101) == pytest.approx(1e-3, rel=1e-15)
    assert schedule.rate(50, 101) == pytest.approx((1e-1 + 1e-3) / 2, rel=1e-12)
    assert schedule.rate(25, 101) == pytest.approx(1e-3 + (1e-1 - 1e-3) * (1 + math.sqrt(0.5)) / 2, rel=1e-12)
    assert schedule.rate(0, 1) == pytest.approx(1e-1)


@settings(deadline=None)
@given(st.floats(1e-4, 1), st.floats(0, 1), st.integers(2, 300))
def test_cosine_never_rises_when_it_ends_lower(first, share, length):
    schedule = Schedule("cosine", ((0, first), (1, first * share)))
    rates = [schedule.rate(epoch, length) for epoch in range(length)]
    assert all(later <= earlier + 1e-15 for earlier, later in pairwise(rates))


@pytest.mark.parametrize(
    ("text", "factor", "stretched"),
    [
        ("0:1e-2,60:1e-3,90:1e-4", 0.5, "0:1e-2,30:1e-3,45:1e-4"),
        ("0:1e-2,60:1e-3,90:1e-4", 2, "0:1e-2,120:1e-3,180:1e-4"),
        # Floor of the exact product: 80 and 120 of 160 epochs on 243 (Liu et al. 2019, Scratch-B).
        ("0:1e-1,80:1e-2,120:1e-3", 243 / 160, "0:1e-1,121:1e-2,182:1e-3"),
        # 100 * 0.29 is 28.999999999999996 in floats.
        ("0:1e-2,100:1e-3", 58 / 200, "0:1e-2,29:1e-3"),
        # Boundaries that fall together: the later rate wins, the first rate keeps epoch 0.
        ("0:1e-1,10:1e-2,19:1e-3", 0.1, "0:1e-1,1:1e-3"),
        ("0:1e-1,10:1e-2,19:1e-3", 0.01, "0:1e-1"),
        ("cosine:1e-2:1e-4", 0.1, "cosine:1e-2:1e-4"),
    ],
)
def test_stretched(text, factor, stretched):
    assert Schedule.parse(text).stretched(factor) == Schedule.parse(stretched)


@settings(deadline=None)
@given(step_schedules(), st.floats(1e-5, 20))
def test_stretching_keeps_first_rate_and_order(schedule, factor):
    moved = schedule.stretched(factor)
    starts = [start for start, _ in moved.points]
    assert moved.points[0] == (0, schedule.points[0][1])
    assert starts == sorted(set(starts))
    kept = iter(rate for _, rate in schedule.points)
    assert all(rate in kept for _, rate in moved.points), "rates must come in their old order"


@pytest.mark.parametrize(
    ("text", "rate", "length", "ending"),
    [
        # CIFAR: scratch 200 epochs, and retraining that ends at 1e-4. The last stage, 150 to 200, is halved.
        ("0:0.1,100:0.01,150:0.001", 1e-4, 200, "0:0.1,100:0.01,150:0.001,175:0.0001"),
        # ImageNet, as published (appendix A): 120 epochs from scratch end at 1e-5.
        ("0:0.1,30:0.01,60:0.001,90:1e-4", 1e-5, 120, "0:0.1,30:0.01,60:0.001,90:1e-4,105:1e-5"),
        # P30F90 and P60F60, as published: the longer half of an odd rest stays at the old rate.
        ("0:1e-1,30:1e-2,60:1e-3,75:1e-4", 1e-5, 90, "0:1e-1,30:1e-2,60:1e-3,75:1e-4,83:1e-5"),
        ("0:1e-2,30:1e-3,45:1e-4", 1e-5, 60, "0:1e-2,30:1e-3,45:1e-4,53:1e-5"),
        # It ends there already.
        ("0:0.1,100:0.01,150:0.001", 1e-3, 200, "0:0.1,100:0.01,150:0.001"),
        # Lower stages are left out.
        ("0:0.1,100:0.01,150:0.001", 1e-2, 200, "0:0.1,100:0.01"),
        # Nothing but the first is left, and half of all epochs follows it.
        ("0:0.1,150:0.001", 1e-2, 200, "0:0.1,100:0.01"),
        # No room to halve one epoch.
        ("0:0.1", 1e-2, 1, "0:0.1"),
        ("0:0.1,9:0.01", 1e-3, 10, "0:0.1,9:0.01"),
        ("cosine:1e-1:1e-3", 1e-4, 200, "cosine:1e-1:1e-4"),
    ],
)
def test_ending_at(text, rate, length, ending):
    assert Schedule.parse(text).ending_at(rate, length) == Schedule.parse(ending)


@st.composite
def falling_schedules(draw):
    """Schedules as papers write them, and a length that reaches into the last stage."""
    starts = [0, *sorted(draw(st.sets(st.integers(1, 500), max_size=5)))]
    rates = sorted(draw(st.sets(st.floats(1e-6, 1), min_size=len(starts), max_size=len(starts))), reverse=True)
    return Schedule("step", tuple(zip(starts, rates, strict=True))), starts[-1] + draw(st.integers(1, 300))


@settings(deadline=None)
@given(falling_schedules(), st.floats(1e-7, 1))
def test_ending_keeps_the_first_rate_and_reaches_the_last(given_schedule, rate):
    schedule, length = given_schedule
    ended = schedule.ending_at(rate, length)
    rates = [ended.rate(epoch, length) for epoch in range(length)]
    assert rates[0] == schedule.rate(0, length)
    assert all(start < length for start, _ in ended.points)
    assert all(later <= earlier for earlier, later in pairwise(rates)) or rate > rates[0]
    kept = [point for number, point in enumerate(schedule.points) if not number or point[1] >= rate]
    room = length - kept[-1][0] > 1
    if rate <= rates[0] and room:
        assert rates[-1] == rate
    # What is above the rate stays where it was, but for the second half of the last stage.
    assert ended.points[: len(kept)] == tuple(kept)
    if len(ended.points) > len(kept):
        (start, new) = ended.points[-1]
        before, after = start - kept[-1][0], length - start
        assert new == rate and 0 <= before - after <= 1
    assert ended.ending_at(rate, length) == ended, "twice is as good as once"


@settings(deadline=None)
@given(falling_schedules())
def test_a_schedule_that_ends_there_already_is_left_alone(given_schedule):
    schedule, length = given_schedule
    assert schedule.ending_at(schedule.points[-1][1], length) == schedule


@settings(deadline=None)
@given(step_schedules())
def test_stretching_by_one_changes_nothing(schedule):
    assert schedule.stretched(1.0) == schedule


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1e-2",
        "0:",
        "0:1e-2,",
        "0:1e-2;60:1e-3",
        "0:1e-2:3",
        "5:1e-2",
        "0:1e-2,60:1e-3,30:1e-4",
        "0:1e-2,60:1e-3,60:1e-4",
        "-1:1e-2",
        "0.5:1e-2",
        "0:fast",
        "0:nan",
        "0:inf",
        "0:-1e-2",
        "cosine",
        "cosine:1e-2",
        "cosine:1e-2:1e-3:1e-4",
        "cosine:a:b",
        "cosine:nan:0",
        "cosines:1:0",
        "poly:1:0",
    ],
)
def test_bad_text_gives_one_clear_line(text):
    with pytest.raises(ValueError, match="is no learning-rate schedule") as caught:
        Schedule.parse(text)
    message = str(caught.value)
    assert message.startswith(f"'{text}'")
    assert "\n" not in message
    assert any(hint in message for hint in ("expected", "finite"))
