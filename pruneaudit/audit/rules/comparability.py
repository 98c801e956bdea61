"""Which quantities two arms must share before their results may be compared (Wang et al. 2023, Table 2)."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

from pruneaudit.audit.evidence import Evidence, measured
from pruneaudit.audit.rule import Outcome, Verdict, arm_rule, equal, rule, same_rule
from pruneaudit.ledger.records import RunRecord, total

_TABLE_2 = "Wang et al. 2023 (arXiv 2301.05219), Table 2"
#: Largest relative difference in MACs (or parameters) of two arms at one operating point.
SIZE_TOLERANCE = 0.02
#: Images with gradients for scores, in passes over the training split, that are no training yet.
SCORING_EPOCHS = 0.5
# Different rates in a row that are all shown.
_MOST_RATES = 200


def _short(digest: str) -> str:
    return digest[:12]


def _rates(runs: Iterable[RunRecord]) -> str:
    """Learning rate of every step of some runs in order, run-length coded: ``0.01×85, 0.001×51``."""
    coded: list[tuple[float, int]] = []
    for run in runs:
        for rate, steps in run.learning_rates:
            if coded and coded[-1][0] == rate:
                coded[-1] = (rate, coded[-1][1] + steps)
            else:
                coded.append((rate, steps))
    text = ", ".join(f"{rate:.6g}×{steps}" for rate, steps in coded) or "none"
    if len(coded) <= _MOST_RATES:
        return text
    # A rate for every step: both ends are shown, and the digest tells the rest apart.
    ends = f"{coded[0][0]:.6g}×{coded[0][1]}, …, {coded[-1][0]:.6g}×{coded[-1][1]}"
    return f"{ends} ({len(coded)} rates, {_short(sha256(text.encode()).hexdigest())})"


def _epochs(runs: Iterable[RunRecord]) -> float | None:
    """Measured epochs of some runs, rounded to a millionth; None where one was not measured."""
    epochs = total(run.epochs for run in runs)
    return None if epochs is None else round(epochs, 6)


@same_rule("F101", "Same data and split", f"{_TABLE_2}, S1")
def same_split(arm: Evidence) -> str:
    """Digest over all pixels and labels of the train, validation and test split that the runs loaded.

    Example: both arms loaded the split 0a1b2c: passes. One retrained on another validation split: caught.
    """
    return "+".join(sorted({_short(run.split_digest) for run in arm.stages}))


@same_rule("F102", "Same architecture", f"{_TABLE_2}, S1")
def same_architecture(arm: Evidence) -> str:
    """Architecture, and parameters and MACs of the dense network that both prune.

    Example: ResNet-56 with 853,018 parameters in both arms passes; ResNet-56 with projection shortcuts is another.
    """
    run = arm.result
    return f"{run.model}, {run.classes} classes, {run.base_params} params, {run.base_macs} MACs"


@same_rule("F104", "Same preprocessing", f"{_TABLE_2}, S1; RobustBench, issue 59 (one resize line swapped two ranks)")
def same_preprocessing(arm: Evidence) -> str:
    """Size and normalisation of the images at training and test.

    Example: ImageNet's mean and deviation in both arms pass; CIFAR's own in one of them do not.
    """
    data = arm.result.data
    mean, deviation = ("found" if values is None else list(values) for values in (data.mean, data.std))
    tested = f", test images {' + '.join(data.test)}" if data.test else ""
    return f"{data.name}, size {data.size or 'as stored'}, mean {mean}, deviation {deviation}{tested}"


@same_rule(
    "F109",
    "Same text measure, and same questions",
    "Ma et al. 2023 (LLM-Pruner) and Sun et al. 2024 (Wanda): dense LLaMA-7B has 12.6 or 5.68 by the window alone, and "
    "57.2 or 76.0 of HellaSwag by acc or acc_norm",
    always=True,
)
def same_text_measure(arm: Evidence) -> str:
    """Tokens that were scored, by digest and number, the window that each was predicted from, and the metric.

    Another joining of texts, stride, first token or tail scores other tokens. Of images: how many, and the metric. Of a
    task of questions its version, and the requests as the network reads them: how many, their digest, and how many
    tokens an image has there, since an arm that drops visual tokens is faster by another thing than its weights.

    Example: 173,888 tokens in windows of 64 in both arms pass; the same tokens in windows of 128 do not, and neither
    does acc of a task beside its acc_norm, which differ by 19 points for one model.
    """
    run, text, task = arm.result, arm.result.text, arm.result.task
    metric: str = run.metric
    if task is not None:
        cut = f", {task.cut} of them cut" if task.cut else ""
        visual = f", {task.visual} tokens an image" if task.visual else ""
        metric += f"; task {task.name} {task.version}, {task.requests} requests {_short(task.digest)}{cut}{visual}"
    if text is None:
        return f"{run.test_images} examples, {metric}"
    return f"{text.tokens} tokens {_short(text.ids)} in windows of {text.window}, {metric}"


@rule(
    "F110",
    "Texts scored in windows no longer than those of training",
    "Press et al. 2022 (ALiBi, arXiv 2108.12409), fig. 1: perplexity explodes beyond the length of training",
    always=True,
)
def windows_as_in_training(left: Evidence, right: Evidence) -> Outcome:
    """Tokens of the windows that each arm is scored in, beside those of its training examples.

    Beyond them the places of tokens are new to the network, and the metric says how it takes that. Longer windows only
    help as far as training went: an epoch of llama-shakespeare, in windows of 64 bytes, gave perplexities of 9.64, 9.30
    and 9.63 in windows of 16, 64 and 128. Of images there is nothing to see; older runs do not tell it, and contradict
    nothing.

    Example: windows of 64 tokens, trained in 64, pass; windows of 256 do not.
    """
    (ours, our_text), (theirs, their_text) = _windows(left), _windows(right)
    return Outcome("pass" if ours and theirs else "fail", our_text, their_text)


@measured
def _windows(arm: Evidence) -> tuple[bool, str]:
    """Whether an arm is scored in windows that its network knows, and the windows in words."""
    text = arm.result.text
    if text is None:
        return True, "no text"
    if text.trained is None:
        return True, f"windows of {text.window}, training not told"
    return text.window <= text.trained, f"windows of {text.window}, trained in {text.trained}"


@same_rule(
    "F108",
    "Same layers may be pruned",
    "LLM-Pruner, issue 34 (2023): 25 % of the layers from 4 to 30 leaves 80.5 % of all parameters",
)
def same_layers(arm: Evidence) -> str | None:
    """Layers that the method was asked to prune, and how wide each is: all others are protected.

    Example: queries, keys and gates of all blocks in both arms pass; an arm that spares the last block does not.
    """
    if arm.prune is None or arm.prune.conduct is None:
        return None
    channels = arm.prune.conduct.channels
    listed = ", ".join(f"{name} {count}" for name, count in sorted(channels.items()))
    return f"{len(channels)} layers, {sum(channels.values())} channels {_short(sha256(listed.encode()).hexdigest())}"


@rule("F103", "Matched MACs (within 2 %), parameters reported", f"{_TABLE_2}, S1; Blalock et al. 2020, sec. 6")
def matched_macs(left: Evidence, right: Evidence) -> Outcome:
    """MACs of the two pruned networks, counted by one counter on the networks that were tested.

    Where both arms removed single weights, that is measured in parameters that are not zero, as papers do: zeros save
    MACs on paper only.

    Example: 35.0 and 35.5 million MACs are 1.4 % apart and pass; 35.0 and 37.0 million are 5.4 % apart.
    """
    ours, theirs = left.result, right.result
    apart = _apart(ours.params, theirs.params) if _masked(left, right) else _apart(ours.macs, theirs.macs)

    def size(run: RunRecord) -> str:
        return f"{run.macs} MACs, {run.params} params"

    return Outcome("pass" if apart <= SIZE_TOLERANCE else "fail", size(ours), size(theirs), _told(apart))


@rule("F105", "Same sparsity granularity", "Liu et al. 2019 (structured and unstructured pruning are judged apart)")
def same_granularity(left: Evidence, right: Evidence) -> Outcome:
    """Whether filters or whole blocks were removed, so that the network is smaller, or single weights are held at zero.

    Zeros save MACs on paper only: hardware executes the dense network.

    Example: two filter pruners, or a filter and a block pruner, pass; a filter pruner beside 90 % of zeros does not.
    """

    def kind(arm: Evidence) -> str:
        run = arm.result
        if run.granularity != "weight":
            return "smaller network"
        return f"zeros among the weights; {run.executed_macs} MACs are executed"

    same = (left.result.granularity == "weight") == (right.result.granularity == "weight")
    return Outcome("pass" if same else "fail", kind(left), kind(right))


@rule("F106", "Matched parameters, too (within 2 %)", "Blalock et al. 2020, sec. 6, R3 (report both)")
def matched_parameters(left: Evidence, right: Evidence) -> Outcome:
    """Parameters of the two pruned networks; where both arms removed single weights, MACs with those that are not zero.

    A global threshold that reaches the MACs of uniform pruning mostly has other parameters (and one over weights other
    MACs): then one of both was compared.

    Example: 70,000 and 70,900 parameters are 1.3 % apart and pass; 70,000 and 52,000 do not.
    """
    masked = _masked(left, right)
    ours, theirs = (arm.result.macs if masked else arm.result.params for arm in (left, right))
    apart, unit = _apart(ours, theirs), "MACs" if masked else "params"
    verdict: Verdict = "pass" if apart <= SIZE_TOLERANCE else "fail"
    return Outcome(verdict, f"{ours} {unit}", f"{theirs} {unit}", _told(apart))


@rule(
    "F107",
    "Same pixels from the input pipeline",
    "RobustBench (Croce et al. 2021), issue 59; MLPerf inference, issue 201 (three resizers, 78.4 to 77.9 %)",
    always=True,
)
def same_pipeline(left: Evidence, right: Evidence) -> Outcome:
    """Digest of what became of sixteen probe images, through decoder, resizer and all transforms, in every run.

    Not what a pipeline is called, but the pixels that it gives: another version of a library, a resizer that does not
    smooth, or other vector code of the processor changes them. Images that are in memory as they were stored have none,
    and older runs do not tell it: neither contradicts.

    Example: PIL's pixels in all runs pass; one arm whose images were resized as tensors does not.
    """
    ours, theirs = _pipelines(left), _pipelines(right)
    told = ours | theirs
    texts = [" and ".join(sorted(side)) or "none told" for side in (ours, theirs)]
    return Outcome("pass" if len(told) < 2 else "fail", texts[0], texts[1])


@measured
def _pipelines(arm: Evidence) -> set[str]:
    """Pipelines of all runs of an arm, such as ``pil 5b3a0f1c2d3e``."""
    told = (run.pipeline.partition(" ") for run in arm.stages if run.pipeline is not None)
    return {f"{pixels} {_short(digest)}" for pixels, _, digest in told}


def _masked(left: Evidence, right: Evidence) -> bool:
    """Whether both arms removed single weights."""
    return left.result.granularity == right.result.granularity == "weight"


def _told(apart: float) -> str:
    """A difference in words: with more digits where two would print it as what is allowed."""
    text = f"{100 * apart:.2f}"
    is_beyond = apart > SIZE_TOLERANCE and float(text) <= 100 * SIZE_TOLERANCE
    return f"{100 * apart:.4g} % apart" if is_beyond else f"{text} % apart"


def _apart(ours: int, theirs: int) -> float:
    """Relative difference, of the larger."""
    return abs(ours - theirs) / max(ours, theirs)


@same_rule("F201", "Same base weights", f"{_TABLE_2}, S2")
def same_base(arm: Evidence) -> str | None:
    """Digest of the weights that the pruning stage (or its top-up) started from.

    Example: both start from the base model of seed 0: passes. One arm that trained its own, better base is caught.
    """
    first = next(iter(arm.pruning_stage), None)
    return _short(first.parent_digest) if first is not None and first.parent_digest else None


def _tokens(arm: Evidence, runs: Iterable[RunRecord]) -> str:
    """Tokens with a loss in some runs of an arm, in words; nothing where it is not scored on texts."""
    tokens = total(run.tokens for run in runs)
    return "" if arm.result.tokens is None or tokens is None else f"{tokens} tokens"


def _with_a_loss(*told: str) -> str:
    """Tokens of both arms, in words."""
    known = dict.fromkeys(text for text in told if text)
    return f"{' and '.join(known)} with a loss" if known else ""


@measured
def _retraining_length(arm: Evidence) -> tuple[float | None, str]:
    """Epochs, and of texts the tokens with a loss in words."""
    return _epochs([arm.result]), _tokens(arm, [arm.result])


@rule("F311", "Same retraining epochs", f"{_TABLE_2}, S3.1")
def same_retraining_epochs(left: Evidence, right: Evidence) -> Outcome:
    """Images that passed the network with gradients during retraining, in passes over the training split.

    Of texts the tokens with a loss stand beside them: the split is the same (F101), and so is their number.

    Example: 120 and 120 epochs pass; 40 epochs of L1's paper against 120 of TPP's do not.
    """
    (ours, our_tokens), (theirs, their_tokens) = _retraining_length(left), _retraining_length(right)
    return equal(ours, theirs, _with_a_loss(our_tokens, their_tokens))


@same_rule(
    "F312", "Equal tuning budget: same grid, same number of trials", f"{_TABLE_2}, S3.1; DomainBed, model selection"
)
def same_tuning_budget(arm: Evidence) -> str:
    """Learning rates that the trials of each arm really used, and how many trials there were.

    Example: three trials at 0.1, 0.01 and 0.001 in both arms pass; five trials for one's own method do not.
    """
    return f"{len(arm.trials)} trials: " + " | ".join(sorted(_rates([run]) for run in arm.trials))


@measured
def _choice(arm: Evidence) -> tuple[bool, str]:
    """Whether validation chose the reported trial, and what it saw."""
    metric = arm.metric
    best = max(arm.trials, key=lambda run: metric.merit(run.validation_value))
    values = metric.value(arm.result.validation_value), metric.value(best.validation_value)
    text = f"reported {values[0]} validation, best {values[1]}"
    return best is arm.result or best.run_id == arm.result.run_id, text


@rule("F314", "Tuned on validation only", f"{_TABLE_2}, S3.1; DomainBed, oracle selection")
def tuned_on_validation(left: Evidence, right: Evidence) -> Outcome:
    """The reported trial is the one that is best on validation by the metric (first of the grid on ties), in each arm.

    Example: the trial with 92.1 % validation is reported though another has the better test accuracy: passes.
    """
    (left_fine, left_text), (right_fine, right_text) = _choice(left), _choice(right)
    return Outcome("pass" if left_fine and right_fine else "fail", left_text, right_text)


def _peak(run: RunRecord) -> float:
    """Highest learning rate of a run: the first one, unless it was warmed up."""
    return max(rate for rate, _ in run.learning_rates)


@arm_rule("F313", "Tuned learning rate not at the edge of its grid", f"{_TABLE_2}, S3.1; AlgoPerf, tuning rules")
def inside_the_grid(arm: Evidence) -> Outcome:
    """Highest learning rate of the reported trial, beside those of all trials: at an edge the best may lie outside.

    Example: 0.01 chosen out of 0.001, 0.01 and 0.1 passes; 0.1 chosen does not.
    """
    grid = sorted({_peak(run) for run in arm.trials if run.learning_rates})
    if len(grid) < 2 or not arm.result.learning_rates:
        return Outcome("not measured", _rates([arm.result]), note="the learning rate was not tuned")
    chosen = _peak(arm.result)
    value = f"{chosen:g} of {', '.join(f'{rate:g}' for rate in grid)}"
    return Outcome("fail" if chosen in (grid[0], grid[-1]) else "pass", value)


@arm_rule(
    "F315", "Base model has not seen the validation images", "DomainBed, model selection (held-out data)", on="pruning"
)
def validation_is_new(arm: Evidence) -> Outcome:
    """Where the base model comes from: one from elsewhere was mostly trained on all training images.

    Example: a base model trained here on the training split passes; of a public checkpoint nobody knows.
    """
    known = arm.base is not None and arm.base.provenance == "trained here"
    value = arm.base.provenance if arm.base is not None else None
    return Outcome("pass" if known else "not measured", value)


@same_rule("F321", "Same retraining learning rate at every step", f"{_TABLE_2}, S3.2")
def same_retraining_rates(arm: Evidence) -> str:
    """Learning rate read from the optimiser at every step of retraining.

    Example: 0.01 for 60 epochs, then 0.001 in both arms passes; the same rates with a later drop do not.
    """
    return _rates([arm.result])


@same_rule(
    "F322", "Same other retraining hyper-parameters", f"{_TABLE_2}, S3.2; sec. 6 (report every retraining detail)"
)
def same_hyper_parameters(arm: Evidence) -> str:
    """Optimiser and all of its settings, batch, augmentation, precision and label smoothing, as seen while retraining.

    Settings are read from the optimiser as it steps: class, momentum, betas, weight decay; of several parameter groups
    all different values. What the loop did stands beside them: mixup, CutMix, clipping, averaging, parts of a batch.
    So do masks that hold weights at zero, and what a method adds to the loss: an advantage that is earned there is
    none of the pruning.

    Example: batch 128 and weight decay 5e-4 in both arms pass; batch 64, or an orthogonality term, in one arm does not.
    """
    return ", ".join(f"{key}={value}" for key, value in sorted(arm.result.hyper_parameters.items()))


@same_rule(
    "F323",
    "Same part of the network retrained",
    "Ma et al. 2023 (LLM-Pruner), sec. 3.3: low-rank adapters recover where others train all weights",
    always=True,
)
def same_part_trained(arm: Evidence) -> str:
    """Parameters of the result that had no gradient at any optimiser step, by name: nothing moved them.

    Example: none in either arm passes; an arm that retrains its normalisations alone, beside one that retrains all,
    does not.
    """
    frozen = arm.result.frozen
    if not frozen:
        return "all is trained"
    return f"{len(frozen)} tensors frozen {_short(sha256(' '.join(frozen).encode()).hexdigest())}: {frozen[0]} first"


@measured
def _teacher(arm: Evidence) -> str:
    """Who taught the result while it was retrained, in words."""
    if arm.result.teacher is None:
        return "no teacher"
    base = arm.base is not None and arm.result.teacher == arm.base.run_id
    return f"{'the base' if base else f'run {arm.result.teacher}'}, {arm.result.recipe.distillation}"


@rule(
    "F324",
    "Same teacher in retraining",
    "Isomorphic Pruning (Fang et al. 2024), code: retrained for 300 epochs with a RegNetY-160 as teacher",
    always=True,
)
def same_teacher(left: Evidence, right: Evidence) -> Outcome:
    """Who taught the result while it was retrained, and what the soft labels count in the loss.

    Soft labels say more of each image than its class: what an arm gains by them is no advantage of its pruning. A
    network from scratch has no base that could teach it; beside one, the teacher's passes are training MACs (F802).

    Example: no teacher in either arm passes, and so does the base in both; the base beside none, or another
    temperature, does not.
    """
    ours, theirs = _teacher(left), _teacher(right)
    if ours != theirs and (left.base is None or right.base is None):
        return Outcome("pass", ours, theirs, "a teacher's passes are training MACs, see F802")
    return equal(ours, theirs)


@measured
def _pruning_length(arm: Evidence) -> tuple[float | None, int, str]:
    """Epochs, optimiser steps, and of texts the tokens with a loss in words."""
    steps = sum(run.optimiser_steps for run in arm.pruning_stage)
    return _epochs(arm.pruning_stage), steps, _tokens(arm, arm.pruning_stage)


@rule("F411", "Same pruning epochs", f"{_TABLE_2}, S4.1")
def same_pruning_epochs(left: Evidence, right: Evidence) -> Outcome:
    """Images that passed the network with gradients between base model and retraining, in epochs; top-ups count.

    With equal optimiser steps, up to half an epoch of images that are only scored with gradients is no difference. Of
    texts the tokens with a loss stand beside the epochs. Where S4.1 compares texts, an arm that only calibrates is not
    topped up, but capped: the tokens that it saw, with gradients or without, are no more than the budget of the arms
    that train, and these have no more than it either.

    Example: TPP's 281 epochs against L1 topped up with 281 epochs of plain training pass; against 0 they do not. Of
    texts, 8,192 tokens of calibration under a budget of 204,800 pass; 409,600 do not.
    """
    caps = [arm.cell.cap for arm in (left, right) if arm.cell.cap is not None]
    if caps:
        return _within(min(caps), left, right)
    (ours, our_steps, our_tokens), (theirs, their_steps, their_tokens) = _pruning_length(left), _pruning_length(right)
    tokens = _with_a_loss(our_tokens, their_tokens)
    if (
        ours is not None
        and theirs is not None
        and our_steps == their_steps
        and 0 < abs(ours - theirs) <= SCORING_EPOCHS
    ):
        scored = f"{abs(ours - theirs):.2f} epochs of gradients for scores"
        return Outcome("pass", ours, theirs, "; ".join(text for text in (scored, tokens) if text))
    return equal(ours, theirs, tokens)


@measured
def _seen(arm: Evidence) -> int | None:
    """Tokens that passed the network between base model and retraining, with gradients or without."""
    texts = [run.text for run in arm.pruning_stage]
    trained = [None if text is None else text.trained for text in texts]
    pairs = zip(arm.pruning_stage, trained, strict=True)
    return total(None if length is None else (run.samples + run.scoring_samples) * length for run, length in pairs)


def _within(cap: int, left: Evidence, right: Evidence) -> Outcome:
    """Whether arms of which one only calibrates keep within a budget of tokens, calibration and training together."""
    ours, theirs = _seen(left), _seen(right)
    note = f"calibration and training together, of at most {cap} tokens"
    if ours is None or theirs is None:
        return Outcome("not measured", ours, theirs, note)
    texts = f"{ours} tokens", f"{theirs} tokens"
    # Who trains is held to its declaration by F501, half an epoch of scores beside it.
    spare = [0 if arm.cell.cap is not None else int(SCORING_EPOCHS * _one_epoch(arm)) for arm in (left, right)]
    fine = all(seen <= cap + more for seen, more in zip((ours, theirs), spare, strict=True))
    return Outcome("pass" if fine else "fail", *texts, note)


def _one_epoch(arm: Evidence) -> int:
    """Tokens of a pass over the training split."""
    run = arm.result
    return run.train_images * ((run.text.trained if run.text is not None else None) or 1)


@same_rule("F421", "Same pruning learning-rate schedule", f"{_TABLE_2}, S4.2")
def same_pruning_rates(arm: Evidence) -> str:
    """Learning rate read from the optimiser at every step between base model and retraining.

    Example: 0.001 at all 110,000 steps in both arms passes; a top-up at 0.01 does not.
    """
    return _rates(arm.pruning_stage)


@measured
def _calibration(arm: Evidence) -> tuple[str | None, int, str]:
    """What a method scored with: digest of what was handed out, number of what it found for itself, both in words.

    The digest is empty where it was nothing, and None where nobody noted it.
    """
    run = arm.prune
    if run is None or run.shown is None or run.conduct is None:
        return None, 0, "unknown"
    shown, own = run.shown, run.conduct.own_samples
    kind = ", with gradients" if run.samples else ""
    text = f"{shown.examples} examples, {shown.tokens} labels {_short(shown.digest)}{kind}" if shown.digest else "none"
    return shown.digest, own, f"{text}, and {own} of its own" if own else text


@rule(
    "F431",
    "Same calibration data",
    "FLAP (An et al. 2024), code: 1,024 samples of the test domain for itself, 128 of another for its baseline",
)
def same_calibration(left: Evidence, right: Evidence) -> Outcome:
    """Training examples that the harness handed out for scores, and those that a method found for itself.

    A method that scores without data has none that the other lacks. Whether gradients were taken of the examples stands
    beside them: F501 counts those.

    Example: the same 128 examples in both arms pass, and so do 128 beside none; 128 others, or 1,024, do not.
    """
    (ours, our_own, our_text), (theirs, their_own, their_text) = _calibration(left), _calibration(right)
    if ours is None or theirs is None:
        return Outcome("not measured", our_text, their_text, "older runs do not say what a method scored with")
    same = ours == theirs or not ours or not theirs
    return Outcome("pass" if same and not our_own and not their_own else "fail", our_text, their_text)


@measured
def _total_epochs(arm: Evidence) -> tuple[float | None, str]:
    """Epochs of all stages, and of texts the tokens with a loss in words."""
    return _epochs(arm.stages), _tokens(arm, arm.stages)


@rule("F801", "Same total epochs of pretraining, pruning and retraining", f"{_TABLE_2}, SX-A")
def same_total_epochs(left: Evidence, right: Evidence) -> Outcome:
    """Measured epochs over all stages; half an epoch apart is rounding. Of texts the tokens with a loss stand beside.

    Images that pass a declared teacher are no epochs, and stand beside them.

    Example: 200 + 281 + 120 epochs against 601 from scratch pass; against the usual 200 they do not.
    """
    (ours, our_tokens), (theirs, their_tokens) = _total_epochs(left), _total_epochs(right)
    if ours is None or theirs is None:
        return Outcome("not measured", ours, theirs, "an external base model: its pretraining cost was not measured")
    same = abs(ours - theirs) <= 0.5
    beside = [_with_a_loss(our_tokens, their_tokens)]
    for arm in (left, right):
        if (taught := arm.result.taught) is not None:
            beside.append(f"{arm.cell.method}: {taught.samples} images passed its teacher")
    return Outcome("pass" if same else "fail", ours, theirs, "; ".join(text for text in beside if text))


@measured
def _total_macs(arm: Evidence) -> tuple[int | None, str]:
    """Training MACs of all stages, and in words what a method computed beside them."""
    beside = []
    own = (arm.prune.own_images if arm.prune is not None else None) or 0.0
    if own >= 1:
        beside.append(f"its code cost as much as the training of {own:.0f} images, passes for scores included")
    if acts := arm.result.hyper_parameters.get("method"):
        added = arm.result.own_images
        counted = "nobody counted what it does" if added is None else f"what it does costs {added:.0f} training images"
        beside.append(f"{counted} in retraining ({acts})")
    if arm.result.taught is not None:
        beside.append(f"{arm.result.taught.macs} are passes of its teacher")
    return total(run.training_macs for run in arm.stages), f"{arm.cell.method}: {'; '.join(beside)}" if beside else ""


@rule("F802", "Same total training MACs of pretraining, pruning and retraining", f"{_TABLE_2}, SX-B")
def same_total_macs(left: Evidence, right: Evidence) -> Outcome:
    """Measured training MACs over all stages; half an epoch of the pruned network apart is rounding.

    They are those of the network, and of a declared teacher: one dense pass for each image. What a method computes in
    code of its own stands beside them; F501 bounds it in the pruning stage, and F514 what images pass in retraining.

    Example: K1 = 481 dense and K2 = 120 pruned epochs at a speedup of 2 equal 481 · 2 + 120 = 1082 epochs from
    scratch; Liu et al.'s budget leaves out K2 and does not pass.
    """
    (ours, own), (theirs, others) = _total_macs(left), _total_macs(right)
    beside = "; ".join(text for text in (own, others) if text)
    if ours is None or theirs is None:
        return Outcome("not measured", ours, theirs, "an external base model: its pretraining cost was not measured")
    epoch = max((arm.result.training_macs or 0) / (arm.result.epochs or 1) for arm in (left, right))
    near = abs(ours - theirs) <= epoch / 2 * (1 + 1e-9)
    return Outcome("pass" if near else "fail", ours, theirs, beside)
