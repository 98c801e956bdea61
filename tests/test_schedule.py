"""Learning-rate schedules: their text form, their rates and how they stretch."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

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
        "cosine:1e-2:1e-3:1e-4",
        "cosine:1e-2->1e-3->1e-4",
        "cosine:1e-2, warmup",
        "cosine:1e-2, warmup 0",
        "cosine:1e-2, warmup -1",
        "cosine:1e-2, warmup 2.5",
        "cosine:1e-2, warmup 2.5 steps",
        "cosine:1e-2, warmup 5 from -1",
        "cosine:1e-2, warmup 5 from nan",
        "cosine:1e-2, warmup 5, warmup 6",
        "cosine:1e-2, wramup 5",
        "cosine:1e-2, power 2",
        "poly:1e-2, power 0",
        "poly:1e-2, power x",
        "0:1e-2, open",
        "0:1e-2, warmup 5, 60:1e-3",
        "cosine:a:b",
        "cosine:nan:0",
        "cosines:1:0",
    ],
)
def test_bad_text_gives_one_clear_line(text):
    with pytest.raises(ValueError, match="is no learning-rate schedule") as caught:
        Schedule.parse(text)
    message = str(caught.value)
    assert message.startswith(f"'{text}'")
    assert "\n" not in message
    assert any(hint in message for hint in ("expected", "finite"))


def test_no_epoch_trains_at_zero_where_no_last_rate_is_given():
    for text in ("cosine:0.1", "linear:0.1, warmup 2", "poly:0.1, power 2, per step"):
        assert Schedule.parse(text).rate(9, 10) > 0
    assert Schedule.parse("cosine:0.1:0").rate(9, 10) == 0


def test_a_misspelt_option_is_told_what_it_might_be():
    with pytest.raises(ValueError, match=r"'wramup 5' is no option of it\. Did you mean 'warmup'\?"):
        Schedule.parse("cosine:1e-2, wramup 5")


# Warm-up, smooth schedules and rates that change within an epoch


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("cosine:5e-4, warmup 2", "cosine:0.0005:0, warmup 2, open"),
        ("cosine: 5e-4 -> 1e-6", "cosine:0.0005:1e-06"),
        ("poly:0.1, power 2", "poly:0.1:0, power 2, open"),
        ("poly:0.1:0, power 1", "linear:0.1:0"),
        ("linear:0.1->0.01,per step", "linear:0.1:0.01, per step"),
        ("cosine:1, open, per step, warmup 5 from 1e-6", "cosine:1:0, warmup 5 from 1e-06, per step, open"),
        ("linear:1,warmup 500 steps,per step", "linear:1:0, warmup 500 steps, open"),
        ("0:0.1, 30:0.01, warmup  5", "0:0.1,30:0.01, warmup 5"),
    ],
)
def test_text_form_with_options_is_canonical(text, canonical):
    assert str(Schedule.parse(text)) == canonical
    assert Schedule.parse(canonical) == Schedule.parse(text)


POSITIVE = st.floats(min_value=1e-6, max_value=10)


@st.composite
def smooth_schedules(draw, falling=True, **fixed):
    """Any schedule along a curve, with or without a warm-up."""
    first = draw(POSITIVE)
    last = first * draw(st.floats(0, 1)) if falling else draw(POSITIVE)
    kind = draw(st.sampled_from(["cosine", "poly"]))
    in_steps = draw(st.booleans())
    options = {
        "power": draw(st.floats(0.5, 3)) if kind == "poly" else 1.0,
        "warmup": float(draw(st.integers(1, 10))),
        "warmup_from": draw(st.one_of(st.none(), st.floats(0, first))),
        "in_steps": in_steps,
        "per_step": in_steps or draw(st.booleans()),
        "is_open": draw(st.booleans()),
    }
    return Schedule(kind, ((0, first), (1, last)), **{**options, **fixed})


@settings(deadline=None)
@given(smooth_schedules(falling=False))
def test_text_form_of_all_options_round_trips(schedule):
    assert Schedule.parse(str(schedule)) == schedule


@settings(deadline=None)
@given(smooth_schedules(), st.integers(12, 60), st.integers(1, 20))
def test_a_smooth_schedule_climbs_and_falls_without_a_jump(schedule, epochs, per_epoch):
    unit = per_epoch if schedule.per_step else 1
    length = epochs * unit
    rates = [schedule.rate(position, length, unit) for position in range(length)]
    first, last = (rate for _, rate in schedule.points)
    warm = int(schedule.warmup) * (1 if schedule.in_steps else unit)
    assert all(rate > 0 or schedule.warmup_from == 0 or last == 0 for rate in rates)
    assert max(rates) == pytest.approx(first)
    assert rates[warm] == pytest.approx(first), "the curve begins where the climb ends"
    assert all(later >= earlier - 1e-12 for earlier, later in pairwise(rates[: warm + 1]))
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(rates[warm:]))
    climb = [later - earlier for earlier, later in pairwise(rates[: warm + 1])]
    assert climb == pytest.approx([climb[0]] * len(climb)), "equal steps"
    if schedule.warmup_from is None:
        assert rates[0] == pytest.approx(climb[0]), "the first step from zero counts, and is no rate of zero"
    else:
        assert rates[0] == pytest.approx(schedule.warmup_from)
    if not schedule.is_open and length > warm + 1:
        assert rates[-1] == pytest.approx(last, abs=1e-15)


@settings(deadline=None)
@given(smooth_schedules(in_steps=False, per_step=True, is_open=True, warmup=0.0, warmup_from=None), st.integers(1, 9))
def test_a_stretched_training_has_the_same_rates_at_the_same_share_of_it(schedule, factor):
    longer = schedule.stretched(factor)
    ours = [schedule.rate(position, 40, 4) for position in range(40)]
    theirs = [longer.rate(position * factor, 40 * factor, 4) for position in range(40)]
    assert theirs == pytest.approx(ours, rel=1e-9, abs=1e-15)


@settings(deadline=None)
@given(smooth_schedules(in_steps=False, per_step=True), st.integers(1, 9))
def test_a_stretched_warm_up_keeps_its_share(schedule, factor):
    longer = schedule.stretched(factor)
    assert longer.warmup == schedule.warmup * factor
    assert longer.stretched(1 / factor).warmup == pytest.approx(schedule.warmup)
    assert (longer.points, longer.warmup_from) == (schedule.points, schedule.warmup_from)


@pytest.mark.parametrize(
    ("text", "factor", "stretched"),
    [
        ("cosine:0.5, warmup 5 from 1e-3", 0.5, "cosine:0.5, warmup 2 from 1e-3"),
        # Nothing is left of the climb, nor of where it began.
        ("cosine:0.5, warmup 5 from 1e-3", 0.1, "cosine:0.5"),
        ("cosine:0.5, warmup 5, per step", 0.1, "cosine:0.5, warmup 0.5, per step"),
        ("linear:0.5, warmup 500 steps", 0.01, "linear:0.5, warmup 5 steps"),
        ("linear:0.5, warmup 5 steps", 0.01, "linear:0.5, per step"),
        ("0:0.1,30:0.01, warmup 5", 2, "0:0.1,60:0.01, warmup 10"),
    ],
)
def test_a_warm_up_is_stretched_with_the_rest(text, factor, stretched):
    assert Schedule.parse(text).stretched(factor) == Schedule.parse(stretched)


@settings(deadline=None)
@given(smooth_schedules(), POSITIVE, st.integers(12, 60), st.integers(1, 20))
def test_a_smooth_schedule_ends_exactly_where_it_is_told_to(schedule, rate, epochs, per_epoch):
    unit = per_epoch if schedule.per_step else 1
    length = epochs * unit
    told = schedule.ending_at(rate, epochs)
    if length > schedule.warmup * (1 if schedule.in_steps else unit) + 1:
        assert told.rate(length - 1, length, unit) == pytest.approx(rate, rel=1e-12)
        assert told.last_rate(length, unit) == told.rate(length - 1, length, unit)
    assert str(Schedule.parse(str(told))) == str(told)


def test_a_step_schedule_keeps_its_epochs_behind_a_warm_up():
    schedule = Schedule.parse("0:0.1,4:0.01, warmup 3 from 0.01")
    rates = [schedule.rate(epoch, 6) for epoch in range(6)]
    assert rates == pytest.approx([0.01, 0.04, 0.07, 0.1, 0.01, 0.01])
    assert schedule.first_stage == 4
    assert not Schedule.parse("0:0.1, warmup 3").is_constant
    assert Schedule.parse("0:0.1").is_constant


def test_steps_of_an_epoch_share_a_rate_only_where_the_schedule_counts_epochs():
    by_step = Schedule.parse("0:0.1,2:0.01, warmup 3 steps")
    assert [by_step.rate(step, 8, 2) for step in range(8)] == pytest.approx(
        [0.025, 0.05, 0.075, 0.1, 0.01, 0.01, 0.01, 0.01]
    )


# Against the schedulers of torch and timm


def torch_rates(lr, epochs, make):
    """Rates of a torch scheduler, one for each epoch."""
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = make(optimiser)
    rates = []
    for _ in range(epochs):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return rates


def sequential(schedulers, milestone):
    return lambda optimiser: lr_scheduler.SequentialLR(optimiser, [make(optimiser) for make in schedulers], [milestone])


TORCH = {
    "0:0.1,30:0.01,60:0.001": (90, 0.1, lambda o: lr_scheduler.StepLR(o, 30, 0.1)),
    "cosine:0.1->1e-3, open": (50, 0.1, lambda o: lr_scheduler.CosineAnnealingLR(o, 50, 1e-3)),
    "poly:0.1, power 0.9, open": (50, 0.1, lambda o: lr_scheduler.PolynomialLR(o, 50, 0.9)),
    # torchvision's references/classification: LinearLR, then CosineAnnealingLR over the other epochs.
    "cosine:0.5, warmup 5 from 0.005, open": (
        60,
        0.5,
        sequential(
            [lambda o: lr_scheduler.LinearLR(o, 0.01, total_iters=5), lambda o: lr_scheduler.CosineAnnealingLR(o, 55)],
            5,
        ),
    ),
}


@pytest.mark.parametrize("text", TORCH)
def test_rates_are_those_of_torch_schedulers(text):
    epochs, lr, make = TORCH[text]
    schedule = Schedule.parse(text)
    assert [schedule.rate(epoch, epochs) for epoch in range(epochs)] == pytest.approx(
        torch_rates(lr, epochs, make), rel=1e-9, abs=1e-12
    )


@pytest.mark.parametrize("per_step", [False, True])
def test_rates_are_those_of_timm(per_step):
    timm = pytest.importorskip("timm.scheduler")
    unit = 7 if per_step else 1
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=5e-4)
    scheduler = timm.CosineLRScheduler(
        optimiser, 25 * unit, lr_min=1e-5, warmup_t=5 * unit, warmup_lr_init=1e-6, warmup_prefix=True
    )
    schedule = Schedule.parse("cosine:5e-4->1e-5, warmup 5 from 1e-6, open" + ", per step" * per_step)
    for position in range(30 * unit):
        scheduler.step(position)
        assert schedule.rate(position, 30 * unit, unit) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-12)
