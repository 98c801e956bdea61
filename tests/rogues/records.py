"""Changed records, by the rule that catches them: an arm, a comparison or a table that is not what it seems.

``ROGUES`` holds changes of one arm at one seed (rules on arms and pairs), or of a whole case (rules on series);
``fair`` gives the case that they start from, in which that rule passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

from builders import NOTHING, RECIPE, SEEDS, changed, kind, right_answers, run_record, series

from pruneaudit.arithmetic import ArithmeticKind
from pruneaudit.audit.catalogue import get_rule
from pruneaudit.audit.evidence import Case, Evidence, Table
from pruneaudit.audit.sequential import Plan
from pruneaudit.catalog.cells import Cell
from pruneaudit.ledger.records import CellRecord, Pattern, Shown, TaskMeasure, Taught, TextMeasure
from pruneaudit.workloads.recipes import Distillation, Recipe

#: A plan of a comparison, which may take more seeds than there are.
PLAN = Plan(seeds=12, comparisons=1, margin=0.5)
#: The seed at which an arm goes wrong: neither the first nor the last.
BAD_SEED = SEEDS[2]
ELSEWHERE = "00" * 32
#: What a pipeline makes of the probe images.
PIPELINE = f"pil {'5b' * 32}"


# Changes of an arm


def with_result(arm: Evidence, **fields: Any) -> Evidence:
    """The arm with another result run, which stays among its trials."""
    result = changed(arm.result, **fields)
    trials = tuple(result if run is arm.result else run for run in arm.trials)
    return _linked(replace(arm, result=result, trials=trials))


def with_run(arm: Evidence, name: str, **fields: Any) -> Evidence:
    """The arm with another base, top-up or prune run."""
    return _linked(replace(arm, **{name: changed(getattr(arm, name), **fields)}))


def with_trial(arm: Evidence, number: int, **fields: Any) -> Evidence:
    """The arm with another retraining, which is not its result."""
    trials = list(arm.trials)
    assert trials[number] is not arm.result
    trials[number] = changed(trials[number], **fields)
    return _linked(replace(arm, trials=tuple(trials)))


def with_conduct(arm: Evidence, **fields: Any) -> Evidence:
    """The arm with a method that behaved in another way."""
    return with_run(arm, "prune", conduct=arm.prune.conduct.model_copy(update=fields))


def with_cell(arm: Evidence, **fields: Any) -> Evidence:
    """The arm with another cell record."""
    return replace(arm, cell=arm.cell.model_copy(update=fields))


def unwatched(arm: Evidence) -> Evidence:
    """The arm as an older version recorded it: nothing says how its method behaved."""
    return with_run(arm, "prune", conduct=None)


def _linked(arm: Evidence) -> Evidence:
    """The arm with a cell that names its runs."""
    names = {name: run and run.run_id for name in ("base", "topup", "prune") if (run := getattr(arm, name)) is not None}
    trials = tuple(run.run_id for run in arm.trials)
    return replace(arm, cell=arm.cell.model_copy(update={**names, "trials": trials, "result": arm.result.run_id}))


def reporting(arm: Evidence, number: int) -> Evidence:
    """The arm with another trial as its result, which validation prefers."""
    best = changed(arm.trials[number], validation_accuracy=80.0)
    trials = tuple(best if place == number else run for place, run in enumerate(arm.trials))
    return _linked(replace(arm, result=best, trials=trials))


def retrained(arm: Evidence, curve: list[float] | None = None) -> Evidence:
    """The arm with 21 epochs of retraining, the learning rate of which falls after 12: long enough for slopes."""
    recipe = RECIPE.model_copy(update={"epochs": 21, "lr": "0:0.01,12:0.001"})
    curve = curve or PLATEAU
    result = run_record(
        arm.result.spec.model_copy(update={"recipe": recipe}),
        validation_accuracy=curve[-1],
        validation_accuracy_curve=curve,
    )
    return _linked(replace(arm, result=result, trials=(result,)))


#: Curves of a run.
CURVES = ("test_accuracy", "validation_accuracy_curve", "train_loss")
#: Validation accuracy that stops rising before the first decay, and before the end; the middle of each stage climbs.
PLATEAU = [50.0, 55, 58, 60, 61, 62, 63, 64, 65.1, 65.3, 65.0, 65.2, 68, 69, 70, 70.2, 70.3, 70.4, 71.2, 71.0, 71.1]
UNCONVERGED = [*PLATEAU[:8], 61.0, 62.2, 63.1, 64.2, *PLATEAU[12:]]
STILL_RISING = [*PLATEAU[:18], 71.0, 72.0, 73.1]


def width_dependent(arm: Evidence) -> Evidence:
    """A random control that spares wide layers, as one global threshold does."""
    kept = {"conv1": list(range(20)), "conv2": list(range(320))}
    arm = with_conduct(arm, channels={"conv1": 100, "conv2": 400})
    return with_run(arm, "prune", kept=kept)


def piped(arm: Evidence) -> Evidence:
    """The arm over images that were decoded one by one."""
    runs = [name for name in ("base", "topup", "prune") if getattr(arm, name) is not None]
    for name in runs:
        arm = with_run(arm, name, pipeline=PIPELINE)
    return with_result(arm, pipeline=PIPELINE)


def own_prune_stage(arm: Evidence) -> Evidence:
    """The arm without a top-up: its method spends the whole stage, from other weights."""
    recipe = Recipe(steps=6, lr="0:0.01,4:0.001", batch=64, weight_decay=1e-4)
    spec = arm.prune.spec.model_copy(update={"recipe": recipe})
    return _linked(replace(arm, topup=None, prune=run_record(spec, parent_digest=ELSEWHERE)))


def hyper(arm: Evidence, **fields: Any) -> Evidence:
    """The arm retrained with other hyper-parameters."""
    return with_result(arm, hyper_parameters={**arm.result.hyper_parameters, **fields})


def preprocessed(arm: Evidence, **fields: Any) -> Evidence:
    """The arm on images prepared in another way."""
    return with_result(arm, data=arm.result.data.model_copy(update=fields))


def measured_in_windows(arm: Evidence, **fields: Any) -> Evidence:
    """The arm on a text, scored in windows."""
    return with_result(arm, text=TextMeasure(**{"window": 8, "tokens": 40, "ids": "1d" * 32, "trained": 8, **fields}))


def asked(arm: Evidence, metric: str = "acc", **fields: Any) -> Evidence:
    """The arm on a text, decided by a metric of a task whose images have 576 tokens each."""
    task = {"name": "hellaswag", "version": "1.0", "questions": 10, "requests": 40, "digest": "7a" * 32, "visual": 576}
    return with_result(measured_in_windows(arm), metric=metric, task=TaskMeasure(**{**task, **fields}))


def taught(arm: Evidence, teacher: str | None = None, **fields: Any) -> Evidence:
    """The arm retrained with a teacher: its base, with one pass for each image, where nothing else is said."""
    recipe = arm.result.recipe.model_copy(update={"distillation": Distillation()})
    told = {"digest": arm.base.weights_digest, "samples": arm.result.samples, "macs": 1000 * arm.result.samples}
    return with_result(arm, recipe=recipe, teacher=teacher or arm.base.run_id, taught=Taught(**{**told, **fields}))


def calibrated(arm: Evidence, **fields: Any) -> Evidence:
    """The arm of a method that scored with 64 examples."""
    return with_run(arm, "prune", shown=Shown(**{"examples": 64, "tokens": 64, "digest": "ca" * 32, **fields}))


def untrained(arm: Evidence) -> Evidence:
    """The arm without training behind its base, on whatever seed: always the same network."""
    nothing = {"optimiser_steps": 0, "samples": 0, "recipe": NOTHING, "learning_rates": [], "hyper_parameters": {}}
    arm = with_result(with_run(arm, "topup", **nothing), **nothing, epochs=0.0)
    return with_result(arm, **{name: [] for name in CURVES})


def kept(arm: Evidence, conv1: int) -> Evidence:
    """The arm with another number of filters in its first layer."""
    return with_run(arm, "prune", kept={**arm.prune.kept, "conv1": list(range(conv1))})


# Changes of a case


def at(case: Case, seed: int, side: int, change: Callable[[Evidence], Evidence]) -> Case:
    """The case with one arm changed at one seed."""
    arms = list(case.seeds[seed])
    arms[side] = change(arms[side])
    return replace(case, seeds={**case.seeds, seed: tuple(arms)})


def everywhere(case: Case, side: int, change: Callable[[Evidence], Evidence]) -> Case:
    """The case with one arm changed at every seed."""
    for seed in case.seeds:
        case = at(case, seed, side, change)
    return case


def without_seed(case: Case, seed: int, failed: bool) -> Case:
    """The case without one seed: its cell failed, or was never measured."""
    reason = f"cell of seed {seed}: {'run failed: out of memory' if failed else 'not measured'}"
    return replace(
        case,
        seeds={**case.seeds, seed: ()},
        broken={**case.broken, seed: reason},
        failed=case.failed | {seed} if failed else case.failed,
    )


def only_seeds(case: Case, seeds: tuple[int, ...]) -> Case:
    """The case over some of its seeds."""
    return replace(case, subject=replace(case.subject, seeds=seeds), seeds={seed: case.seeds[seed] for seed in seeds})


def with_table(case: Case, change: Callable[[Cell, CellRecord], CellRecord | None]) -> Case:
    """The case in another table: each record changed, or left out where the change gives None."""
    found = {cell: change(cell, record) for cell, record in case.table.cells.items()}
    kept = {cell: record for cell, record in found.items() if record is not None}
    return replace(case, table=Table(kept, case.table.order))


def without_cells(case: Case, **names: Any) -> Case:
    """The case in a table that lacks the cells which all of these names and values fit."""

    def fits(cell: Cell) -> bool:
        return all(getattr(cell, name) == value for name, value in names.items())

    return with_table(case, lambda cell, record: None if fits(cell) else record)


def ahead(case: Case, protocol: str, points: float) -> Case:
    """The case in a table where the first arm is so many points ahead under a protocol."""

    def change(cell: Cell, record: CellRecord) -> CellRecord:
        if (cell.protocol, cell.method) != (protocol, case.subject.methods[0]):
            return record
        return record.model_copy(update={"accuracy": 75.0 + points})

    return with_table(case, change)


def software(**environment: str) -> Callable[[Evidence], Evidence]:
    """A change: the retraining ran on other software."""
    return lambda arm: with_result(arm, environment={**arm.result.environment, **environment})


def computed(kind: ArithmeticKind) -> Callable[[Evidence], Evidence]:
    """A change: the retraining was computed with this arithmetic."""
    return lambda arm: with_result(arm, kind=kind)


# What is fair


@lru_cache
def fair(rule_id: str) -> Case:
    """A case that passes a rule, and that its rogues are made of; the change concerns the first arm."""
    if rule_id in ("F312", "F313", "F314"):
        return series(protocol="s3.1", trials=3)
    measured = {"F109": measured_in_windows, "F110": measured_in_windows, "F431": calibrated, "F513": patterned}
    if rule_id in measured:
        case = series()
        change = measured[rule_id]
        return everywhere(everywhere(case, 0, change), 1, change)
    if rule_id in ("F605", "F606"):
        case = series()
        return everywhere(everywhere(case, 0, retrained), 1, retrained)
    if rule_id == "F506":
        return series("scratch", "l1", "sx-a")
    if rule_id == "F510":
        return series("random", "l1")
    if rule_id == "F107":
        case = series("l1", "tpp", "s4.2")
        return everywhere(everywhere(case, 0, piped), 1, piped)
    if rule_id == "F610":
        # Both arms are new methods, so that a control can be missing.
        return series("greg-1", "tpp")
    return series(
        "l1",
        *{"F604": ("scratch", "sx-a"), "F801": ("scratch", "sx-a"), "F802": ("scratch", "sx-b")}.get(
            rule_id, ("tpp", "s3.2" if rule_id == "F702" else "s4.2")
        ),
    )


def rogue(rule_id: str, name: str) -> Case:
    """A case that this rule must catch."""
    change = ROGUES[rule_id][name]
    case = fair(rule_id)
    return change(case) if get_rule(rule_id).scope == "series" else at(case, BAD_SEED, 0, change)


def thinned(arm: Evidence, nonzero: list[int]) -> Evidence:
    """The arm with single weights removed: so many are not zero after each epoch, 100 may be."""
    return with_result(arm, granularity="weight", stay={"conv1": 60, "conv2": 40}, executed_macs=1000, nonzero=nonzero)


def patterned(arm: Evidence, pruned: int = 0, tested: int = 0) -> Evidence:
    """The arm of a method that says 2:4: so many groups hold more, as it was pruned and as it was tested."""
    arm = with_run(arm, "prune", pattern=Pattern(stay=2, neighbours=4, crowded=pruned))
    return with_result(arm, pattern=Pattern(stay=2, neighbours=4, crowded=tested))


def overall(arm: Evidence, **target: Any) -> Evidence:
    """The arm of a method with one threshold for all layers."""
    asked = arm.prune.conduct.target
    return with_conduct(arm, target=asked.model_copy(update={"scope": "global", **target}))


ROGUES: dict[str, dict[str, Callable[..., Any]]] = {
    "F101": {
        "retrained-on-another-split": lambda arm: with_result(arm, split_digest=ELSEWHERE),
        "base-of-another-split": lambda arm: with_run(arm, "base", split_digest=ELSEWHERE),
        "pruned-on-another-split": lambda arm: with_run(arm, "prune", split_digest=ELSEWHERE),
    },
    "F102": {
        "architecture": lambda arm: with_result(arm, model="resnet20"),
        "classes": lambda arm: with_result(arm, classes=100),
        "dense-parameters": lambda arm: with_result(arm, base_params=101),
        "dense-macs": lambda arm: with_result(arm, base_macs=1001),
    },
    "F103": {
        "more": lambda arm: with_result(arm, macs=412, macs_recounted=412),
        "fewer": lambda arm: with_result(arm, macs=388, macs_recounted=388),
    },
    "F104": {
        "normalised-by-another-mean": lambda arm: preprocessed(arm, mean=(0.5,)),
        "normalised-by-another-deviation": lambda arm: preprocessed(arm, std=(0.5,)),
        "resized": lambda arm: preprocessed(arm, size=28),
        "not-resized": lambda arm: preprocessed(arm, size=None),
        "dataset": lambda arm: preprocessed(arm, name="mnist"),
    },
    "F105": {
        "zeros-instead-of-a-smaller-network": lambda arm: thinned(arm, [100, 100, 100]),
    },
    "F106": {
        "more": lambda arm: with_result(arm, params=52),
        "fewer": lambda arm: with_result(arm, params=48),
    },
    "F107": {
        "retrained-through-another-pipeline": lambda arm: with_result(arm, pipeline=f"tensor {ELSEWHERE}"),
        "pruned-through-another-pipeline": lambda arm: with_run(arm, "prune", pipeline=f"pil {ELSEWHERE}"),
        "base-of-another-pipeline": lambda arm: with_run(arm, "base", pipeline=f"tensor {PIPELINE[4:]}"),
    },
    "F109": {
        "longer-window": lambda arm: measured_in_windows(arm, window=16),
        "half-the-stride": lambda arm: measured_in_windows(arm, tokens=80, ids="2d" * 32),
        "without-the-tail": lambda arm: measured_in_windows(arm, tokens=39),
        "other-tokens": lambda arm: measured_in_windows(arm, ids="2d" * 32),
        "another-metric": lambda arm: with_result(arm, metric="loss"),
        "images": lambda arm: with_result(arm, text=None),
        "questions-beside-texts": lambda arm: asked(arm),
    },
    "F110": {
        "four-times-as-long": lambda arm: measured_in_windows(arm, window=32),
        "one-token-longer": lambda arm: measured_in_windows(arm, window=9),
        "trained-in-shorter-ones": lambda arm: measured_in_windows(arm, trained=7),
    },
    "F108": {
        "spares-a-layer": lambda arm: with_conduct(
            arm,
            channels={"conv1": 6},
            target=arm.prune.conduct.target.model_copy(update={"stay": {"conv1": 3}}),
        ),
        "wider-layer": lambda arm: with_conduct(arm, channels={"conv1": 6, "conv2": 17}),
        "another-layer": lambda arm: with_conduct(arm, channels={"conv1": 6, "conv3": 16}),
    },
    "F201": {
        "topped-up-from-another-base": lambda arm: with_run(arm, "topup", parent_digest=ELSEWHERE),
        "pruned-from-another-base": own_prune_stage,
    },
    "F311": {
        "one-more": lambda arm: with_result(arm, epochs=4.0),
        "one-batch-less": lambda arm: with_result(arm, epochs=2.36),
    },
    "F312": {
        "another-rate": lambda arm: with_trial(arm, 1, learning_rates=[(0.02, 4), (0.001, 2)]),
        "one-trial-less": lambda arm: replace(arm, trials=arm.trials[:-1]),
        "one-trial-more": lambda arm: replace(
            arm,
            trials=(
                *arm.trials,
                run_record(
                    arm.result.spec.model_copy(update={"recipe": RECIPE.model_copy(update={"lr": "0:0.02,2:0.001"})}),
                    validation_accuracy=60.0,
                ),
            ),
        ),
        "one-trial-twice": lambda arm: replace(arm, trials=(*arm.trials, arm.trials[1])),
    },
    "F313": {
        "largest-of-the-grid": lambda arm: reporting(arm, 1),
        "smallest-of-the-grid": lambda arm: reporting(arm, 2),
    },
    "F314": {
        "another-trial-was-better-on-validation": lambda arm: with_trial(arm, 2, validation_accuracy=99.0),
        "reported-another-trial": lambda arm: _linked(
            replace(
                arm,
                result=changed(arm.trials[2], learning_rates=arm.result.learning_rates),
            )
        ),
    },
    "F315": {
        "from-elsewhere": lambda arm: with_run(arm, "base", provenance="external: pretraining cost not measured"),
    },
    "F321": {
        "another-rate": lambda arm: with_result(arm, learning_rates=[(0.02, 4), (0.001, 2)]),
        "later-drop": lambda arm: with_result(arm, learning_rates=[(0.01, 5), (0.001, 1)]),
        "one-step-more": lambda arm: with_result(arm, learning_rates=[(0.01, 4), (0.001, 3)]),
        "never-trained": lambda arm: with_result(arm, learning_rates=[]),
    },
    "F323": {
        "one-layer-frozen": lambda arm: with_result(arm, frozen=["conv1.weight"]),
        "all-but-one-frozen": lambda arm: with_result(arm, frozen=["conv1.weight", "conv2.weight"]),
    },
    "F324": {
        "taught-by-the-base": taught,
        "taught-by-another-network": lambda arm: taught(arm, teacher="0123456789abcdef"),
    },
    "F322": {
        "batch": lambda arm: hyper(arm, batch=32),
        "weight-decay": lambda arm: hyper(arm, weight_decay=0.0),
        "one-more": lambda arm: hyper(arm, label_smoothing=0.1),
        "none": lambda arm: with_result(arm, hyper_parameters={}),
        "acts-in-retraining": lambda arm: hyper(arm, method="l1-kernorth: orthogonality in the loss"),
        "holds-weights-at-zero": lambda arm: hyper(arm, masks="held at zero"),
        "by-two-ranks": lambda arm: hyper(arm, ranks=2, batch_of_a_rank=32),
    },
    "F411": {
        "longer-pruning": lambda arm: with_run(arm, "prune", epochs=1.0),
        "shorter-top-up": lambda arm: with_run(arm, "topup", epochs=2.0),
    },
    "F421": {
        "another-rate": lambda arm: with_run(arm, "topup", learning_rates=[(0.02, 4), (0.001, 2)]),
        "more-steps": lambda arm: with_run(arm, "prune", learning_rates=[(0.001, 1)]),
    },
    "F431": {
        "more-examples": lambda arm: calibrated(arm, examples=1024, digest="cb" * 32),
        "other-examples": lambda arm: calibrated(arm, digest="cb" * 32),
        "examples-of-its-own": lambda arm: with_conduct(arm, own_samples=8, foreign_samples=8),
        "only-examples-of-its-own": lambda arm: with_conduct(
            calibrated(arm, examples=0, tokens=0, digest=""), own_samples=1024, foreign_samples=1024
        ),
    },
    "F501": {
        "trains-in-a-loop-of-its-own": lambda arm: with_run(arm, "prune", optimiser_steps=4, samples=200),
        "steps-without-images": lambda arm: with_run(arm, "prune", optimiser_steps=1),
        "gradients-that-it-does-not-declare": lambda arm: with_run(arm, "prune", samples=64),
        "more-gradients-than-it-declares": lambda arm: with_run(
            arm, "prune", samples=65, conduct=arm.prune.conduct.model_copy(update={"declared_samples": 64})
        ),
        "base-trains-on": lambda arm: with_run(arm, "base", optimiser_steps=7),
        "top-up-with-more-images": lambda arm: with_run(arm, "topup", samples=301),
        "retrains-more-steps": lambda arm: with_result(arm, optimiser_steps=8),
        "retrains-fewer-images": lambda arm: with_result(arm, samples=299),
    },
    "F502": {
        "swaps-in-better-weights": lambda arm: with_conduct(arm, rewritten=("conv1.weight", "conv2.weight")),
        "one-bias": lambda arm: with_conduct(arm, rewritten=("conv2.bias",)),
    },
    "F503": {
        "one-too-many": lambda arm: kept(arm, 4),
        "one-too-few": lambda arm: kept(arm, 2),
        "layer-left-out": lambda arm: with_run(arm, "prune", kept={"conv2": arm.prune.kept["conv2"]}),
        "threshold-that-leaves-too-much": lambda arm: overall(with_run(arm, "prune", macs=461, macs_recounted=461)),
        "threshold-that-leaves-too-little": lambda arm: overall(with_run(arm, "prune", macs=339, macs_recounted=339)),
        "share-of-all-filters-missed": lambda arm: overall(arm, share=12),
    },
    "F504": {
        "another-network": lambda arm: with_conduct(arm, equivalence=0.03),
        "just-above-rounding": lambda arm: with_conduct(arm, equivalence=1.01e-9),
    },
    "F505": {
        "trains-on-the-test-set": lambda arm: with_conduct(arm, held_out_samples=64, foreign_samples=64),
        "opens-the-dataset": lambda arm: with_conduct(arm, reached=("data: /data/cifar10/test_batch",)),
    },
    "F506": {
        "trained-already": lambda arm: with_result(arm, initial_accuracy=61.0),
        "a-little-trained": lambda arm: with_result(arm, initial_accuracy=30.1),
        "inherits": lambda arm: with_result(arm, parent="0123456789abcdef"),
        "from-a-checkpoint": lambda arm: with_result(arm, checkpoint="ab" * 32),
        "as-large-as-the-dense-one": lambda arm: with_result(arm, macs=1000, macs_recounted=1000),
    },
    "F507": {
        "sharper-stem": lambda arm: with_conduct(arm, touched=("stem.weight",)),
        "another-classifier": lambda arm: with_conduct(arm, touched=("fc.bias", "fc.weight")),
    },
    "F508": {
        "retrained-in-place": lambda arm: with_conduct(arm, parent_digest_after=ELSEWHERE),
        "deleted": lambda arm: with_conduct(arm, parent_digest_after=""),
    },
    "F509": {
        "other-filters": lambda arm: with_conduct(arm, replay="other filters"),
        "other-weights": lambda arm: with_conduct(arm, replay="other weights"),
        "raises": lambda arm: with_conduct(arm, replay="raised: RuntimeError: once is enough"),
    },
    "F510": {"spares-wide-layers": width_dependent},
    "F511": {
        "reads-the-ledger": lambda arm: with_conduct(arm, reached=("ledger: /ledger/cells/x.json",)),
        "downloads": lambda arm: with_conduct(arm, reached=("host: ('10.0.0.1', 443)",)),
        "starts-a-program": lambda arm: with_conduct(arm, reached=("program: curl",)),
    },
    "F512": {
        "weights-come-back": lambda arm: thinned(arm, [100, 100, 101]),
        "weights-come-back-for-an-epoch": lambda arm: thinned(arm, [100, 140, 100]),
    },
    "F513": {
        "mask-of-no-pattern": lambda arm: patterned(arm, pruned=12, tested=12),
        "recovery-fills-zeros-in": lambda arm: patterned(arm, tested=1),
    },
    "F514": {
        "another-network-taught": lambda arm: taught(arm, teacher="0123456789abcdef"),
        "a-base-that-trained-on": lambda arm: taught(arm, digest="7e" * 32),
        "passes-that-nobody-counted": lambda arm: taught(arm, samples=0),
        "nobody-says-what-it-did": lambda arm: with_result(taught(arm), taught=None),
        "images-pass-something-in-a-hook": lambda arm: with_result(arm, own_images=100.0, own_per_image=0.34),
    },
    "F601": {
        "best-epoch-in-the-cell": lambda arm: with_cell(
            with_result(arm, best_accuracy=77.5, best_epoch=2, test_accuracy=[70.0, 77.5, 75.0]), accuracy=77.5
        ),
        "best-epoch-in-cell-and-run": lambda arm: with_cell(
            with_result(arm, accuracy=77.5, test_accuracy=[70.0, 77.5, 75.0], correct=right_answers(77.5)),
            accuracy=77.5,
        ),
        "another-number-in-the-run": lambda arm: with_result(arm, accuracy=77.5),
        "answers-that-recount-otherwise": lambda arm: with_result(arm, correct=right_answers(72.5)),
        "nothing-reported": lambda arm: with_cell(arm, accuracy=None),
    },
    "F602": {
        "multiply-and-add": lambda arm: with_result(arm, macs_recounted=2 * arm.result.macs),
        "one-layer-left-out": lambda arm: with_result(arm, macs_recounted=arm.result.macs - 1),
    },
    "F603": {
        "three-seeds": lambda case: only_seeds(case, (0, 1, 2)),
        "five-seeds": lambda case: only_seeds(case, (0, 1, 2, 3, 4)),
        "unpaired": lambda case: at(case, 6, 1, lambda arm: with_result(arm, seed=99)),
        "another-order": lambda case: at(
            at(case, 0, 1, lambda arm: case.seeds[1][1]), 1, 1, lambda arm: case.seeds[0][1]
        ),
        "one-seed-twice": lambda case: replace(case, seeds={**case.seeds, 6: case.seeds[5]}),
        "one-arm-repeats-a-seed": lambda case: at(case, 6, 0, lambda arm: case.seeds[5][0]),
        "none": lambda case: only_seeds(case, ()),
    },
    "F604": {
        "scratch-annealed-less": lambda arm: with_result(arm, learning_rates=[(0.01, 6)]),
        "annealed-further": lambda arm: with_result(arm, learning_rates=[(0.01, 4), (0.001, 1), (0.0001, 1)]),
    },
    "F605": {"rate-falls-while-it-rises": lambda arm: retrained(arm, UNCONVERGED)},
    "F606": {"still-rising-at-the-end": lambda arm: retrained(arm, STILL_RISING)},
    "F607": {
        "failed": lambda case: without_seed(case, BAD_SEED, failed=True),
        "never-measured": lambda case: without_seed(case, BAD_SEED, failed=False),
    },
    "F608": {
        "torch-in-one-arm": lambda case: everywhere(case, 1, software(torch="2.8.0")),
        "torch-at-one-seed-of-both": lambda case: at(
            at(case, 1, 0, software(torch="2.8.0")), 1, 1, software(torch="2.8.0")
        ),
        "python": lambda case: at(case, 1, 0, software(python="3.11.9")),
        "pruneaudit": lambda case: at(case, 1, 0, software(pruneaudit="0.0.1")),
        "base-trained-by-other-software": lambda case: at(
            case,
            1,
            0,
            lambda arm: with_run(arm, "base", environment={**arm.base.environment, "torch": "2.8.0"}),
        ),
        "longer-vectors-in-one-arm": lambda case: everywhere(
            everywhere(case, 0, computed(kind())), 1, computed(kind(vectors="AVX512"))
        ),
        "another-arithmetic-at-one-seed": lambda case: at(
            at(case, 0, 0, computed(kind())), 1, 0, computed(kind(digests={"MKL": "01"}))
        ),
        "unknown-software": lambda case: at(case, 1, 0, lambda arm: with_result(arm, environment={})),
        "device": lambda case: everywhere(case, 0, lambda arm: with_result(arm, device="cuda")),
        "training-code": lambda case: at(case, 1, 1, lambda arm: with_result(arm, numerics=2)),
        "by-two-ranks": lambda case: everywhere(
            case, 1, lambda arm: with_result(arm, recipe=arm.result.recipe.over(2))
        ),
        "precision": lambda case: at(case, 1, 1, lambda arm: with_result(arm, precision="bf16")),
        "protocol-version": lambda case: at(case, 1, 1, lambda arm: with_cell(arm, protocol_version=1)),
        "workload-version": lambda case: at(case, 1, 1, lambda arm: with_result(arm, workload_version=2)),
        "nothing-measured": lambda case: replace(
            case, seeds=dict.fromkeys(case.seeds, ()), broken=dict.fromkeys(case.seeds, "not measured")
        ),
    },
    "F609": {
        "one-point": lambda case: with_table(case, lambda cell, record: record if cell.ratio == 0.5 else None),
        "one-arm-has-four": lambda case: without_cells(
            without_cells(case, method="tpp", ratio=0.1), method="tpp", ratio=0.3
        ),
        "four-in-common": lambda case: without_cells(
            without_cells(case, method="tpp", ratio=0.1), method="l1", ratio=0.3
        ),
        "failed-ones": lambda case: with_table(
            case, lambda cell, record: record if cell.ratio == 0.5 else record.model_copy(update={"accuracy": None})
        ),
    },
    "F610": {
        "no-random": lambda case: without_cells(case, method="random"),
        "no-magnitude": lambda case: without_cells(case, method="l1"),
        "at-another-ratio-only": lambda case: without_cells(case, method="random", ratio=0.5),
        "under-another-protocol-only": lambda case: without_cells(case, method="l1", protocol="s4.2"),
        "blocks-beside-chance-among-filters": lambda case: everywhere(
            case, 1, lambda arm: with_result(arm, granularity="block")
        ),
        "weights-beside-controls-of-filters": lambda case: everywhere(
            everywhere(case, 0, lambda arm: thinned(arm, [100])), 1, lambda arm: thinned(arm, [100])
        ),
    },
    "F611": {
        "looked-at-and-extended": lambda case: replace(case, looks=(6,)),
        "seeds-left-out": lambda case: replace(case, looks=(7, 9)),
        "looked-at-and-then-planned": lambda case: replace(case, plan=PLAN, looks=(6, 7)),
        "more-than-planned": lambda case: replace(case, plan=PLAN.model_copy(update={"seeds": 6})),
    },
    "F612": {
        "one-measurement-seven-times": lambda case: everywhere(everywhere(case, 0, untrained), 1, untrained),
    },
    "F701": {
        "loses-under-the-rivals-recipe": lambda case: ahead(case, "xv-tpp", -0.3),
        "loses-under-its-own-recipe": lambda case: ahead(case, "xv-l1", -0.3),
    },
    "F702": {"advantage-vanishes-at-the-strictest": lambda case: ahead(case, "s4.2", -0.1)},
    "F703": {
        "dense-jacobian-missing": lambda arm: with_run(arm, "base", jacobian=None),
        "pruned-jacobian-missing": lambda arm: with_run(arm, "prune", jacobian=None),
        "final-jacobian-missing": lambda arm: with_result(arm, jacobian=None),
        "curve-too-short": lambda arm: with_result(arm, test_accuracy=[75.0]),
        "another-schedule": lambda arm: with_result(
            arm, recipe=arm.result.recipe.model_copy(update={"lr": "0:0.02,2:0.001"})
        ),
        "no-stages": lambda arm: with_result(
            arm, recipe=arm.result.recipe.model_copy(update={"lr": "cosine:0.01:0.001"})
        ),
    },
    "F801": {
        "longer-base": lambda arm: with_run(arm, "base", epochs=4.0),
        "longer-pruning": lambda arm: with_run(arm, "prune", epochs=1.0),
        "longer-retraining": lambda arm: with_result(arm, epochs=4.0),
    },
    "F802": {
        "dearer-base": lambda arm: with_run(arm, "base", training_macs=2 * arm.base.training_macs),
        "dearer-scoring": lambda arm: with_run(arm, "prune", training_macs=10**6),
        "cheaper-top-up": lambda arm: with_run(arm, "topup", training_macs=0),
    },
}

#: What a rule says of its rogues where it does not say ``fail``, by rule or by rogue.
VERDICT = {
    # Nothing proves that a strange base model has seen the validation images.
    "F315": "not measured",
    "F703": "not measured",
    "F607/never-measured": "incomplete",
    "F608/nothing-measured": "incomplete",
}
#: Other rules that must notice a rogue as well, by rule or by rogue.
RELATED = {
    # Only who has a teacher can have another one.
    "F324/taught-by-another-network": {"F514"},
    "F514/another-network-taught": {"F324"},
    "F514/a-base-that-trained-on": {"F324"},
    "F514/passes-that-nobody-counted": {"F324"},
    "F514/nobody-says-what-it-did": {"F324"},
    # A longer stage is a larger total.
    "F311": {"F801"},
    "F411": {"F801"},
    # Two trials are left, and the chosen one is now the smaller.
    "F312/one-trial-less": {"F313"},
    # At the edge means another rate than the rival's, who chose the middle; trainability is then not comparable.
    "F313": {"F321", "F703"},
    # The other trial was trained with another schedule.
    "F314/reported-another-trial": {"F703"},
    # The learning rates of the reported run are a trial's, too: the tuning budget differs where they do.
    "F321": {"F312"},
    # A run without steps has no last learning rate either.
    "F321/never-trained": {"F312", "F604"},
    # The dense network has more MACs than the rival.
    "F506/as-large-as-the-dense-one": {"F103"},
    # Another window is another measure, too.
    "F110/four-times-as-long": {"F109"},
    "F110/one-token-longer": {"F109"},
    "F109/longer-window": {"F110"},
    # Masks say that single weights were removed; the rival is a smaller network, and the controls are of such.
    "F512": {"F105", "F610"},
    "F105": {"F610"},
    # A control that spares wide layers misses the target in all of them, and has wider layers than the rival.
    "F510": {"F503", "F108"},
    # Nothing is there: neither seeds nor cells.
    "F603/none": {"F608", "F611", "F612"},
    "F608/nothing-measured": {"F603", "F607", "F611", "F612"},
    # Networks that were not trained have neither a last rate, nor curves.
    "F612": {"F604", "F703"},
}


def verdict(rule_id: str, name: str) -> str:
    """What the rule must say of its rogue."""
    return VERDICT.get(f"{rule_id}/{name}", VERDICT.get(rule_id, "fail"))


def related(rule_id: str, name: str) -> set[str]:
    """Other rules that must notice the rogue."""
    return RELATED.get(f"{rule_id}/{name}", RELATED.get(rule_id, set()))
