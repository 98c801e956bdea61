"""Where rules turn: on the last value that passes, and on what a record lacks. What ``make mutants`` found untested."""

from dataclasses import replace

import pytest
from builders import RECIPE, evidence, kind, measured_by, series
from rogues.records import (
    PIPELINE,
    asked,
    at,
    calibrated,
    computed,
    everywhere,
    measured_in_windows,
    overall,
    patterned,
    retrained,
    taught,
    thinned,
    untrained,
    unwatched,
    with_cell,
    with_conduct,
    with_result,
    with_run,
)

from pruneaudit.audit.catalogue import get_rule
from pruneaudit.audit.evidence import Table
from pruneaudit.audit.sequential import Plan
from pruneaudit.ledger.records import Renumbered, Untrained
from pruneaudit.workloads.metrics import Metric


def outcome(rule_id, *arms):
    return get_rule(rule_id).check(*arms)


def pruned(epochs, steps=None):
    """An arm whose top-up took other epochs, or steps."""
    arm = evidence("l1", "s4.1")
    steps = arm.topup.optimiser_steps if steps is None else steps
    return with_run(arm, "topup", epochs=arm.topup.epochs + epochs, optimiser_steps=steps)


@pytest.mark.parametrize(
    ("apart", "steps", "word", "note"),
    [
        (0, None, "pass", ""),
        (0.25, None, "pass", "0.25 epochs of gradients for scores"),
        (0.5, None, "pass", "0.50 epochs of gradients for scores"),
        (0.51, None, "fail", ""),
        (0.25, 7, "fail", ""),
    ],
)
def test_half_an_epoch_of_images_may_be_scored_with_gradients(apart, steps, word, note):
    plain, scores = pruned(0), pruned(apart, steps)
    for arms in ((plain, scores), (scores, plain)):
        found = outcome("F411", *arms)
        assert (found.verdict, found.note) == (word, note)


@pytest.mark.parametrize("side", [0, 1])
def test_pruning_epochs_of_one_arm_may_be_unknown(side):
    arms = [pruned(0), pruned(0)]
    arms[side] = with_run(arms[side], "topup", epochs=None)
    assert outcome("F411", *arms).verdict == "not measured"


@pytest.mark.parametrize(("rates", "whole"), [(200, True), (201, False)])
def test_two_hundred_rates_are_shown_and_of_more_both_ends(rates, whole):
    arm = with_result(evidence("l1"), learning_rates=[[0.1 / (step + 1), 1] for step in range(rates)])
    shown = outcome("F321", arm, arm).left
    assert (shown.count("×") == rates) == whole
    assert ("…" in shown and f"({rates} rates, " in shown) != whole


@pytest.mark.parametrize(
    ("ours", "theirs", "word"),
    [
        (None, None, "pass"),
        (PIPELINE, PIPELINE, "pass"),
        (PIPELINE, None, "pass"),
        (PIPELINE, f"tensor {PIPELINE[4:]}", "fail"),
        (PIPELINE, f"{PIPELINE[:4]}00{PIPELINE[6:]}", "fail"),
    ],
)
def test_pixels_are_told_apart_by_name_and_by_value(ours, theirs, word):
    left, right = (with_result(evidence(name), pipeline=told) for name, told in (("l1", ours), ("tpp", theirs)))
    found = outcome("F107", left, right)
    assert found.verdict == outcome("F107", right, left).verdict == word
    assert found.left == ("none told" if ours is None else "pil 5b5b5b5b5b5b")


def test_one_arm_may_not_change_its_pipeline_between_its_stages():
    arm = with_run(with_result(evidence("l1"), pipeline=PIPELINE), "base", pipeline=f"tensor {PIPELINE[4:]}")
    assert outcome("F107", arm, evidence("tpp")).verdict == "fail"


def test_removed_weights_are_told_from_smaller_networks():
    mine, theirs = evidence("l1"), thinned(evidence("tpp"), [100])
    found = outcome("F105", mine, theirs)
    assert found[:3] == ("fail", "smaller network", "zeros among the weights; 1000 MACs are executed")


@pytest.mark.parametrize(("params", "word"), [(1000, "pass"), (980, "pass"), (979, "fail")])
def test_parameters_match_within_two_percent_of_the_larger(params, word):
    left, right = (with_result(evidence("l1"), params=number) for number in (1000, params))
    assert outcome("F106", left, right).verdict == outcome("F106", right, left).verdict == word


def test_sizes_of_single_weights_are_parameters_where_both_arms_removed_them():
    filters, weights = evidence("l1"), thinned(evidence("tpp"), [100])
    more = {"macs": weights.result.macs * 2, "macs_recounted": weights.result.macs * 2}
    assert outcome("F103", weights, with_result(weights, **more)).verdict == "pass"
    for other in (filters, with_result(filters, params=filters.result.params * 2)):
        assert outcome("F103", with_result(weights, **more), other).verdict == "fail"
        assert outcome("F103", other, with_result(weights, **more)).verdict == "fail"


def test_the_chosen_trial_is_known_by_its_run():
    """The cell's result, read a second time, is the same run and another object."""
    arm = evidence("l1", "s3.1", trials=3)
    again = replace(arm, result=arm.result.model_copy())
    assert outcome("F314", again, again).verdict == "pass"


def test_of_two_rates_both_are_at_an_edge():
    assert outcome("F313", evidence("l1", "s3.1", trials=2)).verdict == "fail"
    assert outcome("F313", evidence("l1", "s3.1", trials=1)).verdict == "not measured"


def test_total_macs_may_be_half_an_epoch_of_the_dearer_network_apart():
    left, right = evidence("l1", "sx-b"), evidence("scratch", "sx-b")
    epoch = right.result.training_macs / right.result.epochs
    # Twice the MACs for each epoch, and as many in all.
    left = with_result(left, epochs=left.result.epochs / 2)
    for more, word in ((0.9 * epoch, "pass"), (1.1 * epoch, "fail")):
        dearer = with_run(left, "base", training_macs=left.base.training_macs + round(more))
        assert outcome("F802", dearer, right).verdict == outcome("F802", right, dearer).verdict == word


@pytest.mark.parametrize(
    ("probe", "word", "value"),
    [
        (None, "pass", "unchanged"),
        (Untrained(at_most=30.0, accuracy=30.0), "pass", "unchanged"),
        (Untrained(at_most=30.0, accuracy=30.5), "fail", "of an untrained network it makes 30.50 %, at most 30.00 %"),
        (Untrained(at_most=30.0, error="it broke"), "fail", "it broke"),
    ],
    ids=["not tried", "at chance", "better", "raised"],
)
def test_an_untrained_network_stays_untrained(probe, word, value):
    found = outcome("F502", with_conduct(evidence("l1"), untrained=probe))
    assert (found.verdict, found.left) == (word, value)


@pytest.mark.parametrize(
    ("probe", "word", "value"),
    [
        (Renumbered(at_least=80.0, accuracy=80.0), "pass", "unchanged"),
        (
            Renumbered(at_least=80.0, accuracy=79.5),
            "fail",
            "where classes have other numbers it makes 79.50 %, at least 80.00 %",
        ),
        (Renumbered(at_least=80.0, error="it broke"), "fail", "it broke"),
    ],
    ids=["as good", "worse", "raised"],
)
def test_classes_with_other_numbers_are_known_as_well(probe, word, value):
    found = outcome("F502", with_conduct(evidence("l1"), renumbered=probe))
    assert (found.verdict, found.left) == (word, value)


def test_rewritten_layers_are_named():
    found = outcome("F502", with_conduct(evidence("l1"), rewritten=("conv1.weight",)))
    assert (found.verdict, found.left) == ("fail", "conv1.weight")


@pytest.mark.parametrize(("off", "word"), [(-61, "fail"), (-60, "pass"), (0, "pass"), (60, "pass"), (61, "fail")])
def test_a_threshold_over_all_layers_may_miss_by_one_filter(off, word):
    arm = overall(evidence("l1"))
    arm = with_run(arm, "prune", macs=arm.prune.conduct.target.macs + off)
    assert outcome("F503", arm).verdict == word


@pytest.mark.parametrize(("share", "word"), [(10, "fail"), (11, "pass"), (12, "fail")])
def test_a_share_of_all_filters_is_met_exactly(share, word):
    assert outcome("F503", overall(evidence("l1"), share=share)).verdict == word


def test_what_was_met_is_told():
    assert outcome("F503", evidence("l1")).left == "2 layers as asked"
    assert outcome("F503", with_run(evidence("l1"), "prune", kept={"conv1": [0]})).left == (
        "conv1 keeps 1 of 6, target 3, conv2 keeps 0 of 16, target 8"
    )
    assert outcome("F510", evidence("random")).left == "about 50% of every layer"


def test_nobody_can_tell_what_a_method_reached_in_the_referees_process():
    assert outcome("F511", with_conduct(evidence("l1"), isolation="none")).verdict == "fail"


def test_weights_that_nobody_counted_are_not_measured():
    assert outcome("F512", thinned(evidence("l1"), [])).verdict == "not measured"
    assert outcome("F512", thinned(evidence("l1"), [100])).verdict == "pass"
    assert outcome("F512", thinned(evidence("l1"), [100, 101, 100])).verdict == "fail"


def test_a_pattern_that_nobody_looked_at_again_is_not_measured():
    assert outcome("F513", evidence("l1"))[:2] == ("pass", "no pattern")
    arm = patterned(evidence("l1"))
    assert outcome("F513", arm)[:2] == ("pass", "2:4, 0 fuller groups when pruned, 0 when tested")
    assert outcome("F513", with_result(arm, pattern=None)).verdict == "not measured"


PERPLEXITY = Metric(name="perplexity")


def test_a_metric_without_right_images_has_no_recount():
    arm = measured_by(evidence("l1"), PERPLEXITY, 60.0)
    found = outcome("F601", with_result(arm, outcomes=False, correct=""))
    assert found.verdict == "pass" and "recounted" not in found.left


@pytest.mark.parametrize(
    ("curve", "best"), [([70.0, 62.0, 60.0], "60 in epoch 3"), ([61.0, 59.0, 60.0], "59 in epoch 2")]
)
def test_the_best_epoch_is_the_metrics_own(curve, best):
    arm = measured_by(evidence("l1"), PERPLEXITY, 60.0)
    scores = arm.result.scores.model_copy(update={"test_curve": curve})
    assert outcome("F601", with_result(arm, scores=scores)).note == f"best on test: {best}"


def test_the_best_epoch_of_a_run_without_a_curve_is_its_only_one():
    arm = measured_by(evidence("l1"), PERPLEXITY, 60.0)
    scores = arm.result.scores.model_copy(update={"test_curve": []})
    assert outcome("F601", with_result(arm, scores=scores)).note == "best on test: 60 in epoch 1"


def over(lr, curve, epochs=None):
    """An arm retrained by a schedule, with this validation curve."""
    recipe = RECIPE.model_copy(update={"epochs": epochs or len(curve), "lr": lr})
    return with_result(
        evidence("l1"),
        recipe=recipe,
        epochs=float(len(curve)),
        validation_accuracy=curve[-1],
        validation_accuracy_curve=curve,
    )


FLAT = [60.0] * 7
RISING = [50.0, 52, 54, 56, 58.0, 60.1, 62.0]
FALLING = RISING[::-1]


@pytest.mark.parametrize(
    ("curve", "word"),
    [(FLAT, "pass"), (RISING, "fail"), (FALLING, "pass"), (FLAT[:6], "not measured"), (RISING[:6], "not measured")],
    ids=["flat", "rising", "falling", "flat and short", "rising and short"],
)
@pytest.mark.parametrize("rule_id", ["F605", "F606"])
def test_a_slope_needs_three_epochs_in_the_last_third(rule_id, curve, word):
    found = outcome(rule_id, over("0:0.01", curve))
    assert found.verdict == word
    if word == "not measured":
        assert found.note.endswith("has 6 epochs; 7 show a slope")


def test_a_rise_that_may_be_noise_is_none():
    assert outcome("F606", over("0:0.01", [50.0, 52, 54, 56, 60.0, 60.1, 60.05])).verdict == "pass"


def test_a_drop_at_the_very_end_begins_no_stage():
    assert outcome("F606", over("0:0.01,7:0.001", RISING)).verdict == "fail"


def test_a_length_in_steps_has_no_last_stage():
    arm = over("0:0.01", RISING)
    steps = RECIPE.model_copy(update={"epochs": None, "steps": 14, "lr": "0:0.01"})
    found = outcome("F606", with_result(arm, recipe=steps))
    assert (found.verdict, found.note) == ("not measured", "no epochs")


def test_a_plateau_of_twenty_one_epochs_is_one():
    for rule_id in ("F605", "F606"):
        assert outcome(rule_id, retrained(evidence("l1"))).verdict == "pass"


def test_arithmetic_is_named_of_both_arms_as_far_as_it_was_told():
    one, other = kind(), kind(vectors="AVX512")
    case = at(series("l1", "tpp", "s3.2", seeds=range(2)), 0, 1, computed(one))
    assert outcome("F608", case).verdict == "pass"
    found = outcome("F608", at(case, 1, 1, computed(other)))
    assert found[:3] == ("fail", "not told", f"{one} and {other}")


def test_ranks_are_told_where_several_trained():
    case = series("l1", "tpp", "s3.2", seeds=range(2))
    assert "rank" not in f"{outcome('F608', case)}"
    shared = everywhere(case, 0, lambda arm: with_result(arm, recipe=arm.result.recipe.over(2)))
    assert "trained by 2 ranks" in outcome("F608", shared).left


@pytest.mark.parametrize(("points", "word"), [(4, "fail"), (5, "pass")])
def test_a_trade_off_has_five_points(points, word):
    case = series("l1", "tpp", "s3.2", seeds=range(2))
    ratios = sorted({cell.ratio for cell in case.table.cells if cell.protocol == "s3.2"})[:points]
    cells = {cell: record for cell, record in case.table.cells.items() if cell.ratio in ratios}
    assert outcome("F609", replace(case, table=replace(case.table, cells=cells))).verdict == word


def looked(seeds, looks=(), plan=None):
    """A comparison over so many seeds that were looked at."""
    return replace(series("l1", "tpp", "s3.2", seeds=range(seeds)), looks=tuple(looks), plan=plan)


PLAN = Plan(seeds=8, comparisons=1, margin=0.5)


@pytest.mark.parametrize(
    ("case", "word"),
    [
        (looked(6, [6]), "pass"),
        (looked(6, [7]), "fail"),
        (looked(8, [6]), "fail"),
        (looked(8, [5]), "pass"),
        (looked(5, [6]), "pass"),
        (looked(8, plan=PLAN), "pass"),
        (looked(7, plan=PLAN), "pass"),
        (looked(9, plan=PLAN), "fail"),
        (looked(8, [8], PLAN), "fail"),
        (looked(8, [5], PLAN), "pass"),
    ],
    ids=["as looked", "fewer", "more", "few only describe", "too few to choose", "planned", "planned and fewer",
         "beyond the plan", "looked without the plan", "described without the plan"],
)  # fmt: skip
def test_seeds_are_those_that_were_planned_or_looked_at(case, word):
    assert outcome("F611", case).verdict == word


def test_what_a_text_measure_is_of_is_told():
    images, text = evidence("l1"), measured_in_windows(evidence("l1"))
    assert outcome("F109", images, images)[:2] == ("pass", f"{images.result.test_images} examples, accuracy")
    assert outcome("F109", text, text)[:2] == ("pass", "40 tokens 1d1d1d1d1d1d in windows of 8, accuracy")
    assert outcome("F109", text, images).verdict == "fail"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"metric": "acc-norm"}, "acc-norm; task hellaswag 1.0"),
        ({"version": "0.0"}, "acc; task hellaswag 0.0, 40 requests"),
        ({"requests": 39}, "acc; task hellaswag 1.0, 39 requests 7a7a7a7a7a7a"),
        ({"digest": "8b" * 32}, "40 requests 8b8b8b8b8b8b"),
        ({"cut": 3}, "40 requests 7a7a7a7a7a7a, 3 of them cut, 576 tokens an image"),
        # Another thing than pruned weights, and never ranked beside them.
        pytest.param({"visual": 64}, "40 requests 7a7a7a7a7a7a, 64 tokens an image", id="fewer-visual-tokens"),
    ],
)
def test_one_harness_is_task_version_metric_and_requests(fields, told):
    one = asked(evidence("l1"))
    assert outcome("F109", one, asked(evidence("l1"))).verdict == "pass"
    found = outcome("F109", one, asked(evidence("l1"), **fields))
    assert found.verdict == "fail" and told in found.right, found


@pytest.mark.parametrize(
    ("text", "word", "told"),
    [
        ({"window": 8, "trained": 8}, "pass", "windows of 8, trained in 8"),
        ({"window": 7, "trained": 8}, "pass", "windows of 7, trained in 8"),
        ({"window": 9, "trained": 8}, "fail", "windows of 9, trained in 8"),
        ({"window": 9, "trained": None}, "pass", "windows of 9, training not told"),
    ],
)
def test_windows_are_no_longer_than_those_of_training_in_either_arm(text, word, told):
    arm, known = measured_in_windows(evidence("l1"), **text), measured_in_windows(evidence("l1"))
    for arms in ((arm, known), (known, arm), (arm, arm)):
        assert outcome("F110", *arms).verdict == word
    assert outcome("F110", arm, known)[1:3] == (told, "windows of 8, trained in 8")
    images = evidence("l1")
    assert outcome("F110", images, images)[:2] == ("pass", "no text")
    assert outcome("F110", arm, images).verdict == outcome("F110", images, arm).verdict == word


def test_retraining_of_texts_is_told_in_tokens():
    images, text = evidence("l1"), measured_in_windows(evidence("l1"))
    older = measured_in_windows(evidence("l1"), trained=None)
    samples = text.result.samples
    assert text.result.tokens == 8 * samples and images.result.tokens is None and older.result.tokens is None
    wide = measured_in_windows(evidence("l1"), trained=16)
    for left, right, note in (
        (text, text, f"{8 * samples} tokens with a loss"),
        (text, older, f"{8 * samples} tokens with a loss"),
        (wide, text, f"{16 * samples} tokens and {8 * samples} tokens with a loss"),
        (older, older, ""),
        (images, images, ""),
    ):
        found = outcome("F311", left, right)
        assert (found.verdict, found.left, found.note) == ("pass", text.result.epochs, note)


def test_pruning_and_all_of_texts_are_told_in_tokens():
    def in_windows(arm, *names):
        for name in names:
            arm = with_run(arm, name, text=measured_in_windows(arm).result.text)
        return measured_in_windows(arm)

    images = evidence("l1", "s4.1")
    text = in_windows(images, "base", "topup", "prune")
    pruning, everything = (8 * sum(run.samples for run in runs) for runs in (text.pruning_stage, text.stages))
    assert 0 < pruning < everything
    # Of older runs nobody knows; of images there is nothing to tell, whatever the stages before.
    older, mixed = in_windows(images, "topup"), with_result(text, text=None)
    for rule_id, tokens in (("F411", pruning), ("F801", everything)):
        for left, right, note in (
            (text, text, f"{tokens} tokens with a loss"),
            (text, older, f"{tokens} tokens with a loss"),
            (older, text, f"{tokens} tokens with a loss"),
            (older, older, ""),
            (images, images, ""),
            (mixed, mixed, ""),
        ):
            found = outcome(rule_id, left, right)
            assert (found.verdict, found.note) == ("pass", note)
    # Scores with gradients are tokens with a loss, too.
    scores = with_run(text, "topup", epochs=text.topup.epochs + 0.25)
    found = outcome("F411", text, scores)
    assert (found.verdict, found.note) == ("pass", f"0.25 epochs of gradients for scores; {pruning} tokens with a loss")


@pytest.mark.parametrize(
    ("samples", "scores", "verdict"),
    [
        (0, 0, "pass"),
        (40, 10, "pass"),
        (50, 0, "pass"),
        # Rogues: by one example, with gradients or without.
        (51, 0, "fail"),
        (0, 51, "fail"),
    ],
)
def test_who_only_calibrates_is_capped_not_topped_up(samples, scores, verdict):
    """Of texts under S4.1: windows of 8 tokens, 400 of them in the budget of an arm that trains."""
    trained = measured_in_windows(evidence("tpp", "s4.1"))
    for stage in ("topup", "prune"):
        count = 50 if stage == "prune" else 0
        trained = with_run(trained, stage, text=trained.result.text, samples=count, scoring_samples=0)
    arm = measured_in_windows(replace(evidence("l1", "s4.1"), topup=None))
    arm = with_run(arm, "prune", text=arm.result.text, samples=samples, scoring_samples=scores, optimiser_steps=0)
    arm = with_cell(arm, cap=400)
    for left, right in ((arm, trained), (trained, arm)):
        found = outcome("F411", left, right)
        assert (found.verdict, found.note) == (verdict, "calibration and training together, of at most 400 tokens")
    assert outcome("F411", arm, trained)[1:3] == (f"{8 * (samples + scores)} tokens", "400 tokens")
    # Who trains has the budget and what it scores with, and no more.
    longer = with_run(trained, "prune", samples=51 + trained.result.train_images // 2)
    assert outcome("F411", longer, arm).verdict == "fail"
    scoring = with_run(trained, "prune", samples=50 + trained.result.train_images // 2)
    assert outcome("F411", scoring, arm).verdict == verdict
    # Of two that only calibrate the smaller budget holds.
    assert outcome("F411", arm, with_cell(arm, cap=8)).note.endswith("of at most 8 tokens")
    # Nobody knows of runs that do not tell.
    assert outcome("F411", with_run(arm, "prune", text=None), trained).verdict == "not measured"
    # Images are topped up, and compared by epochs.
    assert outcome("F411", with_cell(arm, cap=None), trained).verdict == "fail"


def test_controls_are_those_of_what_was_removed():
    def with_methods(case, *names):
        cells = dict(case.table.cells)
        for name in names:
            record = next(iter(cells.values())).model_copy(update={"method": name, "protocol": "s4.2", "ratio": 0.5})
            cells[record.cell] = record
        return replace(case, table=Table(cells, case.table.order))

    filters = series("greg-1", "tpp")
    blocks = everywhere(filters, 1, lambda arm: with_result(arm, granularity="block"))
    weights = everywhere(everywhere(filters, 0, lambda arm: thinned(arm, [100])), 1, lambda arm: thinned(arm, [100]))
    assert outcome("F610", filters).left == "l1, random present"
    assert outcome("F610", blocks).left == "global-random-block missing"
    known = with_methods(blocks, "global-random-block")
    assert outcome("F610", known)[:2] == ("pass", "l1, random, global-random-block present")
    assert outcome("F610", weights).left == "magnitude-layer, random-weight missing"
    assert outcome("F610", with_methods(weights, "magnitude-layer", "random-weight")).verdict == "pass"
    assert outcome("F610", with_methods(weights, "magnitude-layer")).left == "random-weight missing"


def test_what_is_retrained_is_compared_tensor_by_tensor():
    whole, part = evidence("l1"), with_result(evidence("l1"), frozen=["conv1.weight", "fc.bias"])
    other = with_result(evidence("l1"), frozen=["conv1.weight", "fc.weight"])
    assert outcome("F323", whole, whole)[:2] == ("pass", "all is trained")
    assert outcome("F323", part, part).verdict == "pass"
    assert outcome("F323", part, part).left.startswith("2 tensors frozen ")
    for arms in ((whole, part), (part, whole), (part, other)):
        assert outcome("F323", *arms).verdict == "fail"


def test_layers_are_those_of_a_pruning_stage_that_was_watched():
    arm = evidence("l1")
    assert outcome("F108", arm, arm).left.startswith("2 layers, 22 channels ")
    for other in (evidence("scratch", "sx-a"), unwatched(arm)):
        assert outcome("F108", arm, other).verdict == outcome("F108", other, other).verdict == "not measured"


@pytest.mark.parametrize("change", [{"shown": None}, {"conduct": None}])
def test_calibration_that_nobody_noted_is_not_measured(change):
    arm, older = calibrated(evidence("l1")), with_run(calibrated(evidence("l1")), "prune", **change)
    for arms in ((arm, older), (older, arm), (older, older)):
        assert outcome("F431", *arms).verdict == "not measured"
    assert outcome("F431", arm, evidence("scratch", "sx-a")).verdict == "not measured"


def test_data_beside_no_data_is_no_other_calibration():
    some, none = calibrated(evidence("l1")), evidence("tpp")
    for arms in ((some, none), (none, some), (none, none), (some, some)):
        assert outcome("F431", *arms).verdict == "pass"
    assert outcome("F431", none, some)[1:3] == ("none", "64 examples, 64 labels cacacacacaca")
    taught = with_run(some, "prune", samples=64)
    assert outcome("F431", taught, some).left == "64 examples, 64 labels cacacacacaca, with gradients"


@pytest.mark.parametrize("number", [1, 8])
def test_examples_of_ones_own_are_another_calibration_whoever_has_them(number):
    some, none = calibrated(evidence("l1")), evidence("tpp")
    for arm in (some, none):
        own = with_conduct(arm, own_samples=number)
        for other in (some, none, own):
            assert outcome("F431", own, other).verdict == outcome("F431", other, own).verdict == "fail"
        assert outcome("F431", own, some).left.endswith(f", and {number} of its own")


def copies(seeds, *sides):
    """A comparison of which some arms are the same network whatever the seed."""
    case = series("l1", "tpp", "s4.2", seeds=range(seeds))
    for side in sides:
        case = everywhere(case, side, untrained)
    return case


@pytest.mark.parametrize(
    ("case", "word"),
    [
        (copies(1, 0, 1), "pass"),
        (copies(2, 0, 1), "fail"),
        (copies(2, 0), "pass"),
        (copies(2, 1), "pass"),
        (copies(2), "pass"),
    ],
    ids=["one seed", "neither changes", "the second changes", "the first changes", "both change"],
)
def test_seeds_that_change_nothing_are_one_measurement(case, word):
    found = outcome("F612", case)
    assert found.verdict == word and bool(found.note) == (word == "fail")


def test_training_anywhere_behind_the_base_makes_another_network_of_each_seed():
    for name in ("topup", "result"):
        steps = {"optimiser_steps": 1}
        case = everywhere(
            copies(2, 0, 1),
            0,
            lambda arm, name=name, steps=steps: (
                with_result(arm, **steps) if name == "result" else with_run(arm, name, **steps)
            ),
        )
        assert outcome("F612", case).verdict == "pass"


def test_how_many_networks_there_are_is_told():
    assert outcome("F612", copies(3, 0))[1:3] == ("1 networks of 3 seeds", "3 networks of 3 seeds")


# Teachers


@pytest.mark.parametrize(
    ("own", "word"),
    [
        ({}, "pass"),
        ({"own_images": 40.0, "own_per_image": 0.0}, "pass"),
        ({"own_images": 40.0, "own_per_image": 0.1}, "pass"),
        ({"own_images": 40.0, "own_per_image": 0.101}, "fail"),
        # Steps of one size only: a penalty and a pass of images look alike.
        ({"own_images": 40.0}, "not measured"),
        ({"own_images": 0.0}, "pass"),
    ],
)
def test_what_is_computed_for_each_image_is_bounded(own, word):
    assert outcome("F514", with_result(evidence("l1"), **own)).verdict == word


def test_beside_a_scratch_arm_a_teacher_is_a_matter_of_cost():
    ours, scratch = taught(evidence("l1", "sx-b")), evidence("scratch", "sx-b")
    found = outcome("F324", ours, scratch)
    assert (found.verdict, found.note) == ("pass", "a teacher's passes are training MACs, see F802")
    assert outcome("F324", ours, evidence("tpp", "sx-b")).verdict == "fail"
    assert "images passed its teacher" in outcome("F801", ours, scratch).note


def test_what_a_method_did_in_retraining_is_counted_beside_total_macs():
    left, right = evidence("l1", "sx-b"), evidence("scratch", "sx-b")
    left = with_result(left, hyper_parameters={"method": "mine: a penalty"}, own_images=12.4, own_per_image=0.0)
    note = outcome("F802", left, right).note
    assert note == "l1: what it does costs 12 training images in retraining (mine: a penalty)"


def test_who_taught_is_told_and_compared():
    alone, ours, theirs = evidence("l1"), taught(evidence("l1")), taught(evidence("tpp"))
    assert outcome("F324", alone, evidence("tpp"))[:3] == ("pass", "no teacher", "no teacher")
    assert outcome("F324", ours, theirs)[:3] == ("pass", *["the base, temperature 4, weight 0.9"] * 2)
    other = taught(evidence("tpp"), "0123456789abcdef")
    found = outcome("F324", ours, other)
    assert (found.verdict, found.right) == ("fail", "run 0123456789abcdef, temperature 4, weight 0.9")
    # A network from scratch beside another one: neither has a teacher.
    scratch = evidence("scratch", "sx-b")
    assert outcome("F324", scratch, scratch)[:2] == ("pass", "no teacher")
    assert outcome("F324", scratch, evidence("l1", "sx-b")).note == ""
    assert outcome("F514", ours).verdict == "pass"
    assert outcome("F514", with_result(ours, own_images=40.0)).verdict == "pass"
