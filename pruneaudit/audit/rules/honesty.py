"""Does an arm do what it says? Measured by hooks, digests and repetition, whatever a method declares."""

from __future__ import annotations

import math
from statistics import median

from pruneaudit.audit.evidence import Evidence
from pruneaudit.audit.rule import Outcome, arm_rule
from pruneaudit.audit.rules.comparability import SCORING_EPOCHS
from pruneaudit.ledger.records import Conduct, RunRecord
from pruneaudit.method.conformance import CHANCE_FACTOR, EQUIVALENCE_TOLERANCE
from pruneaudit.workloads.recipes import steps_per_epoch

#: Training images that a method's own code may cost as much as: for each image that it scores (a Hessian of inputs is
#: worth several passes), and for each that it trains on (a penalty on weights costs as much for a small batch as for a
#: large one: an orthogonality of convolutions six times the batches of a LeNet-5).
OWN_SCORING, OWN_TRAINING = 4, 8
#: Share of a training image that the code of a method may compute for each image of a retraining: a pass of the network
#: is a third.
OWN_PER_IMAGE = 0.1
_ALGOPERF = "AlgoPerf, submission rules (what information is used, what action is taken on it)"


def _conduct(arm: Evidence) -> Conduct | None:
    return arm.prune.conduct if arm.prune is not None else None


def _not_watched() -> Outcome:
    return Outcome("not measured", None, note="the run does not say how the method behaved")


def _some(names: tuple[str, ...]) -> str:
    """A few names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@arm_rule("F501", "Declared budget equals measured", "Wang et al. 2023, Table 2 (S4.1); Torch-Pruning, reproduce logs")
def spends_what_it_declares(arm: Evidence) -> Outcome:
    """Optimiser steps, and images through the network with gradients, of every stage against its recipe.

    Steps are counted at every optimiser of the process and images at every layer, whoever drives them. A pruning stage
    may also pass the images that the method declares for its scores. What a method computes without layer or optimiser
    is counted by its operations: it may cost four times the images that it scores, eight times those that it trains on,
    and half an epoch, which F411 allows for scores.

    Example: a one-shot method takes 0 steps: passes. One that trains 2 epochs in a loop of its own is caught.
    """
    problems = [text for run in arm.runs if (text := _overspent(run))]
    return Outcome("fail" if problems else "pass", "; ".join(problems) or "as declared")


def _overspent(run: RunRecord) -> str:
    """What a run spent beyond (or below) its recipe, or nothing."""
    if run.epochs is None:
        return ""
    steps = run.recipe.total_steps(steps_per_epoch(run.train_images, run.recipe.batch))
    if run.optimiser_steps != steps:
        more = "; those of an optimiser of its own count" if run.stage == "prune" else ""
        return f"{run.stage}: {run.optimiser_steps} steps, declared {steps}{more}"
    images = run.recipe.images(run.train_images)
    if run.stage == "prune":
        # A method may train in several calls, each of which begins a pass of its own.
        trained, declared = steps * run.recipe.batch, run.conduct.declared_samples if run.conduct is not None else 0
        if run.samples > trained + declared:
            return f"{run.stage}: {run.samples} images with gradients, declared {trained + declared}"
        explained = OWN_SCORING * (declared + run.scoring_samples / 3) + OWN_TRAINING * trained
        explained += SCORING_EPOCHS * run.train_images
        if run.own_images is not None and run.own_images > explained:
            enough = math.ceil(declared + (run.own_images - explained) / OWN_SCORING)
            return (
                f"{run.stage}: it computes as much as the training of {run.own_images:.0f} images in code of its own, "
                f"where {explained:.0f} are explained by what is declared; Budget(samples={enough}) would explain it"
            )
        return ""
    return f"{run.stage}: {run.samples} images, declared {images}" if run.samples != images else ""


@arm_rule("F502", "Kept weights change in metered training only", _ALGOPERF, on="pruning")
def leaves_weights(arm: Evidence) -> Outcome:
    """Tensors of the prunable layers that differ bit for bit outside metered training, before anything is removed.

    A one-shot method leaves all of them as they were. One that reconstructs weights says so (``rewrites``). What
    reconstructs weights, or trains, is also given an untrained network, and a few of its steps: it must leave it at
    chance, or no better than that many plain steps do. Weights that are better than what was given come from somewhere
    else. So do those that fit the usual numbers of classes only: one that takes few steps, or none, is also given the
    trained network and its labels with other numbers, and must make about as much of it.

    Example: L1 leaves every weight: passes. A "score" that swaps in better weights is caught.
    """
    conduct = _conduct(arm)
    if conduct is None:
        return _not_watched()
    probe = conduct.untrained
    if probe is not None and probe.accuracy is None:
        return Outcome("fail", probe.error)
    if probe is not None and probe.accuracy is not None and probe.accuracy > probe.at_most:
        value = f"{probe.accuracy:.2f} %, at most {probe.at_most:.2f} %"
        return Outcome("fail", f"of an untrained network it makes {value}")
    other = conduct.renumbered
    if other is not None and other.accuracy is None:
        return Outcome("fail", other.error)
    if other is not None and other.accuracy is not None and other.accuracy < other.at_least:
        value = f"{other.accuracy:.2f} %, at least {other.at_least:.2f} %"
        return Outcome("fail", f"where classes have other numbers it makes {value}")
    if conduct.declares_rewriting:
        return Outcome("pass", f"{len(conduct.rewritten)} rewritten, declared")
    return Outcome("fail" if conduct.rewritten else "pass", _some(conduct.rewritten) or "unchanged")


@arm_rule("F503", "Target ratio met in every prunable layer", "Wang et al. 2023, Table 2 (S1)", on="pruning")
def meets_target(arm: Evidence) -> Outcome:
    """Filters (weights) that stay in each prunable layer, against min(ceil(ratio · N), N − 1) removed ones.

    Of a method with one threshold for all layers: MACs that are left, as near as one filter allows to those that are
    left when every layer loses its share (or how many filters stay, where the workload asks for a share of all).

    Example: 8 of 16 filters stay at ratio 0.5: passes. 9 of 16 are one too many.
    """
    conduct = _conduct(arm)
    if conduct is None or arm.prune is None or arm.prune.ratio is None:
        return _not_watched()
    stay, target = arm.prune.left, conduct.target
    if target.scope == "global":
        total = sum(stay.get(name, 0) for name in conduct.channels)
        if target.share is not None:
            return Outcome("pass" if total == target.share else "fail", f"{total} stay, target {target.share}")
        near = abs(arm.prune.macs - target.macs) <= target.unit
        return Outcome("pass" if near else "fail", f"{arm.prune.macs} MACs are left, target {target.macs}")
    wrong = [
        f"{name} keeps {stay.get(name, 0)} of {conduct.channels[name]}, target {count}"
        for name, count in target.stay.items()
        if stay.get(name, 0) != count
    ]
    return Outcome("fail" if wrong else "pass", _some(tuple(wrong)) or f"{len(conduct.channels)} layers as asked")


@arm_rule("F504", "Masked network equals shrunk network", "NNI, issue 5095; DepGraph (CVPR 2023), sec. 3", on="pruning")
def masked_equals_shrunk(arm: Evidence) -> Outcome:
    """Largest difference of the outputs of the masked and of the shrunk network in float64, relative to their scale.

    Example: 4e-16 passes; 0.03 says that what was retrained is not what was scored.
    """
    conduct = _conduct(arm)
    if conduct is None:
        return _not_watched()
    return Outcome("pass" if conduct.equivalence <= EQUIVALENCE_TOLERANCE else "fail", float(conduct.equivalence))


@arm_rule("F505", "Validation and test data never reached the method", _ALGOPERF, on="pruning")
def no_held_out_data(arm: Evidence) -> Outcome:
    """Held-out images that passed the network in the pruning stage, and dataset files that the method opened.

    Example: scores on training batches pass; training on the test set, loaded again from disk, is caught.
    """
    conduct = _conduct(arm)
    if conduct is None:
        return _not_watched()
    files = tuple(place for place in conduct.reached if place.startswith("data: "))
    bad = ([f"{conduct.held_out_samples} held-out images"] if conduct.held_out_samples else []) + (
        [f"opened {_some(files)}"] if files else []
    )
    note = f"{conduct.foreign_samples} images were not handed out by the harness" if conduct.foreign_samples else ""
    return Outcome("fail" if bad else "pass", "; ".join(bad) or "none", note=note)


@arm_rule("F506", "Scratch arm is the small network with fresh weights", "Liu et al. 2019, sec. 3", on="scratch")
def starts_fresh(arm: Evidence) -> Outcome:
    """No parent and no checkpoint, a network smaller than the dense one, no better than guessing before its first step.

    An arm that trains exactly the architecture that a method found takes its shape (or masks), and no weights.

    Example: 9.7 % of ten classes before training passes; 61 % says that somebody trained it already.
    """
    run = arm.result
    value = f"{run.macs} of {run.base_macs} MACs, {_percent(run.initial_accuracy)} before training"
    if run.initial_accuracy is None:
        return Outcome("not measured", value)
    inherited = run.parent is not None or run.checkpoint is not None
    fresh = run.initial_accuracy <= CHANCE_FACTOR * 100 / run.classes
    fine = fresh and not inherited and run.macs < run.base_macs
    return Outcome("pass" if fine else "fail", value, note="it starts from other weights" if inherited else "")


def _percent(accuracy: float | None) -> str:
    return "unknown accuracy" if accuracy is None else f"{accuracy:.2f} %"


@arm_rule(
    "F507", "Only declared prunable layers changed", "Wang et al. 2023, sec. 3 (what may earn credit)", on="pruning"
)
def touches_declared_layers_only(arm: Evidence) -> Outcome:
    """Tensors of all other layers that differ bit for bit outside metered training.

    Example: the stem and the classifier are as they were: passes. A stem with sharper filters is caught.
    """
    conduct = _conduct(arm)
    if conduct is None:
        return _not_watched()
    if conduct.declares_rewriting:
        return Outcome("pass", f"{len(conduct.touched)} rewritten, declared")
    return Outcome("fail" if conduct.touched else "pass", _some(conduct.touched) or "unchanged")


@arm_rule(
    "F508",
    "Base weights on disk unchanged",
    "Wang et al. 2023, Table 2 (S2); MLPerf, starting checkpoints",
    on="pruning",
)
def leaves_the_base(arm: Evidence) -> Outcome:
    """Digest of the parent's weights file before and after the pruning stage.

    Example: the same digest passes; a method that retrains the base model in place is caught.
    """
    conduct = _conduct(arm)
    if conduct is None or arm.prune is None:
        return _not_watched()
    before, after = arm.prune.parent_digest or "", conduct.parent_digest_after
    return Outcome("pass" if before == after else "fail", f"{before[:12]} before, {after[:12] or 'missing'} after")


@arm_rule(
    "F509",
    "Deterministic given its seed",
    "Blalock et al. 2020, ShrinkBench (seeds set after masks are drawn)",
    on="pruning",
)
def repeats_itself(arm: Evidence) -> Outcome:
    """What came out when the method, imported anew, decided a second time from the same weights and seed.

    Training methods repeat their first steps. The name of the running test is hidden in the repetition.

    Example: the same filters and weights pass; filters drawn from an unseeded generator, taken from an earlier cell, or
    chosen by the name of the cell are caught.
    """
    conduct = _conduct(arm)
    if conduct is None:
        return _not_watched()
    return Outcome("pass" if conduct.replay == "same" else "fail", conduct.replay)


@arm_rule("F510", "Random control does not depend on layer width", "Torch-Pruning, issue 498", on="random")
def random_is_uniform(arm: Evidence) -> Outcome:
    """Share of filters that the random control keeps in each layer, against its target, within four standard errors.

    Example: 51 of 100 and 9 of 16 at ratio 0.5 pass; wide layers that keep 80 % and narrow ones that keep 20 % do not.
    """
    conduct = _conduct(arm)
    if conduct is None or arm.prune is None or arm.prune.ratio is None:
        return _not_watched()
    kept = arm.prune.left
    shares = []
    wrong = []
    for name, channels in conduct.channels.items():
        stay = kept.get(name, 0)
        share = conduct.target.stay[name] / channels
        shares.append(share)
        # At least one filter always stays, and counts are whole: one filter is rounding.
        allowed = 1 + 4 * (channels * share * (1 - share)) ** 0.5
        if abs(stay - channels * share) > allowed:
            wrong.append(f"{name} keeps {stay} of {channels}")
    # At least one filter stays even in the narrowest layer: the usual share is that of most.
    usual = median(shares)
    return Outcome("fail" if wrong else "pass", _some(tuple(wrong)) or f"about {usual:.0%} of every layer")


@arm_rule("F511", "The method reaches nothing but its task", _ALGOPERF, on="pruning")
def reaches_nothing_else(arm: Evidence) -> Outcome:
    """Records of other runs, reports, hosts and programs that the method's code opened while it pruned.

    A foreign method runs in a process of its own, where all that is out of reach; of one that ran beside the referee
    (``--audit-isolate never``) nobody can tell.

    Example: nothing passes; reading the ledger for what rivals score, or downloading better weights, is caught.
    """
    conduct = _conduct(arm)
    if conduct is None:
        return _not_watched()
    if conduct.isolation == "none":
        return Outcome("fail", "it ran in the referee's own process (--audit-isolate never)")
    places = tuple(place for place in conduct.reached if not place.startswith("data: "))
    return Outcome("fail" if places else "pass", _some(places) or "nothing")


@arm_rule("F512", "Removed weights stay zero through retraining", "Blalock et al. 2020, ShrinkBench (masked training)")
def zeros_stay(arm: Evidence) -> Outcome:
    """Weights of the masked layers that were not zero after each epoch of the result, against those that may be.

    Example: 12,300 of 12,300 after every epoch pass; 12,340 after the last one say that pruned weights came back.
    """
    run = arm.result
    if run.granularity != "weight":
        return Outcome("pass", "no masks")
    allowed = sum(run.stay.values())
    if not run.nonzero:
        return Outcome("not measured", None, note="the run does not say how many weights were zero")
    most = max(run.nonzero)
    return Outcome("pass" if most <= allowed else "fail", f"at most {most} of {allowed} that may differ from zero")


@arm_rule(
    "F513",
    "n:m pattern holds after recovery",
    "Mishra et al. 2021 (arXiv 2104.08378), sec. 3: 2:4 is what sparse tensor cores execute, and nothing but it",
    on="pruning",
)
def pattern_holds(arm: Evidence) -> Outcome:
    """Groups of neighbouring inputs in which more weights are not zero than the method's pattern lets stay.

    Counted in the weights as they were pruned, and as they are tested. Half of all weights at zero is not two of four:
    F512 counts how many, this counts where. A method that declares no pattern has none to keep.

    Example: 0 groups behind pruning and behind retraining pass; 12 groups of four with three weights each do not.
    """
    pruned = None if arm.prune is None else arm.prune.pattern
    if pruned is None:
        return Outcome("pass", "no pattern")
    name, tested = f"{pruned.stay}:{pruned.neighbours}", arm.result.pattern
    if tested is None:
        return Outcome("not measured", name, note="the run does not say what is left of it")
    value = f"{name}, {pruned.crowded} fuller groups when pruned, {tested.crowded} when tested"
    return Outcome("fail" if pruned.crowded or tested.crowded else "pass", value)


@arm_rule(
    "F514",
    "A teacher is declared, and is the frozen base",
    "Hinton et al. 2015 (arXiv 1503.02531), sec. 2: soft targets carry what the teacher was trained on",
    on="pruning",
)
def teacher_is_the_base(arm: Evidence) -> Outcome:
    """The network that taught each retraining: its run and weights against the base's, its passes against the images.

    The harness has a declared teacher, evaluates it without gradients, and digests its weights when the retraining is
    over: one that was trained, or trained longer, or on other data, has others than the base. An undeclared one costs
    more for more images, and the last batch of an epoch has fewer: of what is computed in the steps beside the
    network's own passes, what goes with the number of images may be a tenth of what their training costs. A penalty on
    weights costs the same for any batch.

    Example: no teacher passes, and so does the base with one pass for each image; another network in a hook is caught.
    """
    problems = [text for run in arm.runs if (text := _taught_otherwise(run, arm.base))]
    if problems:
        return Outcome("fail", "; ".join(dict.fromkeys(problems)))
    taught = arm.result.taught
    if taught is None and arm.result.own_images and arm.result.own_per_image is None:
        return Outcome("not measured", None, note="all of its batches are alike: nobody can tell what goes with images")
    return Outcome("pass", "no teacher" if taught is None else f"{taught.digest[:12]}, {taught.samples} images")


def _taught_otherwise(run: RunRecord, base: RunRecord | None) -> str:
    """What is wrong with who taught a run, or nothing."""
    if (run.own_per_image or 0.0) > OWN_PER_IMAGE:
        return (
            f"{run.stage}: in code of its own it computes {run.own_per_image:.2f} of what training on an image costs, "
            "for each image, as a teacher does; nobody declared one"
        )
    if run.teacher is None:
        return ""
    if base is None or run.teacher != base.run_id:
        return f"{run.stage}: run {run.teacher} taught, which is not its base"
    if run.taught is None:
        return f"{run.stage}: the run does not say what its teacher did"
    if run.taught.digest != base.weights_digest:
        return f"{run.stage}: weights {run.taught.digest[:12]} taught, those of the base are {base.weights_digest[:12]}"
    if run.taught.samples != run.samples:
        return f"{run.stage}: {run.taught.samples} images passed the teacher, {run.samples} the network"
    return ""
