"""Records: what a run is (its identity), what it measured, and what a cell makes of its runs. JSON builtins only."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import Field

from pruneaudit.arithmetic import Arithmetic, ArithmeticKind
from pruneaudit.catalog.cells import Cell
from pruneaudit.catalog.names import ratio_text
from pruneaudit.catalog.settings import Backend
from pruneaudit.schema import Arguments, Frozen
from pruneaudit.workloads.metrics import ACCURACY, Metric
from pruneaudit.workloads.recipes import Recipe, steps_per_epoch
from pruneaudit.workloads.schema import DataConfig, Reading

#: Version of the layout of records; see ``migration.py`` for what changed.
SCHEMA_VERSION = 3
#: Raised whenever an edit to the training code changes the numbers of a run: part of every run's identity.
NUMERICS_VERSION = 1

Stage = Literal["pretrain", "topup", "prune", "retrain", "scratch"]


Granularity = Literal["filter", "block", "weight"]
Scope = Literal["layerwise", "global"]
Number = TypeVar("Number", int, float)


def total(values: Iterable[Number | None]) -> Number | None:
    """Sum of measured values; None where one was not measured (an external base model's cost, say)."""
    listed = list(values)
    known = [value for value in listed if value is not None]
    return sum(known) if len(known) == len(listed) else None


def own_training(added: Mapping[str, int]) -> list[str]:
    """What a method trains that is not the harness's, in words: see :attr:`Conduct.added`."""
    return [
        f"trains {count:,} parameter(s) of its own with {name}"
        if count
        else f"trains with an optimiser of its own, {name}"
        for name, count in sorted(added.items())
    ]


def pack(correct: np.ndarray) -> str:
    """Per-image correctness ``[N]`` bool as base64 of packed bits, for a record."""
    return base64.b64encode(np.packbits(correct).tobytes()).decode("ascii")


def unpack(text: str, images: int) -> int:
    """Per-image correctness from its packed form, as a whole number: a bit for each image, the first the highest.

    Two networks are compared in one operation, and ``bit_count`` counts their images.
    """
    packed = base64.b64decode(text)
    return int.from_bytes(packed) >> max(8 * len(packed) - images, 0)


class RunSpec(Frozen):
    """Everything that can change the numbers of a run, and nothing else.

    The id is a hash of the fields that differ from their defaults, so that a field added later with a default renames
    no run.

    Attributes:
        workload: Name of the workload.
        workload_version: Its version.
        stage: ``pretrain``, ``topup`` (plain training of the dense model in place of a shorter pruning stage),
            ``prune``, ``retrain`` or ``scratch``.
        model: Architecture.
        model_args: What it takes beside the sizes of the data.
        model_source: Code that builds it, where it is not built in.
        data: Dataset and preprocessing.
        data_digest: SHA-256 of a user's own data, of the code that gives them and of what decodes them; None where the
            dataset is known by name.
        recipe: What the stage trains.
        seed: Seed of all its streams.
        parent: Id of the run whose weights it starts from.
        method: Pruning method (prune and retrain).
        method_digest: SHA-256 of the method's source.
        method_parameters: Its hyper-parameters.
        ratio: Pruning ratio.
        prunable: Patterns of the layers that may lose filters.
        skip: Patterns taken out again.
        layer_ratios: Shares of single layers by pattern, where a workload states them; the last that matches counts.
        operating_point: What a global threshold must reach, where it is not the MACs of uniform pruning.
        widths: Filters left in each layer (scratch).
        shape_of: Id of the prune run whose architecture is trained from random weights (scratch).
        checkpoint: SHA-256 of a user's own base model.
        reading: Where and how that file names its tensors, where the workload says so.
        own_base_of: Method whose independent base this is (S1); empty for the shared one.
        precision: Arithmetic.
        budget: Label of scaled lengths; reduced budgets never mix with full ones.
        backend: What was asked to make the steps; where it cannot, torch does (``hyper_parameters`` tell).
        numerics: Version of the training code.
        metric: Name of the workload's metric: it is measured after every epoch.
        metric_digest: SHA-256 of its source, where it is the user's own.
        arithmetic: Whether its numbers depend on the processor (``native``) or are every machine's (``portable``).
        calibration: Training examples that every method scores with, the same ones for all (prune); 0: each draws its
            own.
        teacher: Id of the run whose dense network teaches, frozen (retrain); None: nobody does.
    """

    workload: str
    workload_version: int
    stage: Stage
    model: str
    model_args: Arguments = ()
    model_source: str = ""
    data: DataConfig
    data_digest: str | None = None
    recipe: Recipe
    seed: int
    parent: str | None = None
    method: str | None = None
    method_digest: str | None = None
    method_parameters: dict[str, Any] = Field(default_factory=dict)
    ratio: float | None = None
    prunable: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    layer_ratios: tuple[tuple[str, float], ...] = ()
    operating_point: str = "macs"
    widths: dict[str, int] = Field(default_factory=dict)
    shape_of: str | None = None
    checkpoint: str | None = None
    reading: Reading = Reading()
    own_base_of: str = ""
    precision: str = "fp32"
    budget: str = "full"
    backend: Backend = "torch"
    numerics: int
    metric: str = ACCURACY.name
    metric_digest: str | None = None
    arithmetic: Arithmetic = "native"
    calibration: int = 0
    teacher: str | None = None

    @property
    def run_id(self) -> str:
        """Hash of the identity, 16 hexadecimal digits."""
        identity = self.model_dump(mode="json", include=set(RunSpec.model_fields), exclude_defaults=True)
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def needs(self) -> tuple[str, ...]:
        """Ids of the runs that must be finished before this one."""
        return tuple(run for run in (self.parent, self.shape_of, self.teacher) if run is not None)

    @property
    def slug(self) -> str:
        """Readable part of the folder name."""
        parts = [self.workload, self.stage]
        parts += [self.own_base_of] if self.own_base_of else []
        parts += [self.method] if self.method else []
        parts += [ratio_text(self.ratio)] if self.ratio is not None else []
        parts += [f"seed{self.seed}"]
        labels = (self.budget, self.precision, self.backend, self.arithmetic)
        parts += [label for label in labels if label not in ("full", "fp32", "torch", "native")]
        parts += [f"ranks{self.recipe.ranks}"] if self.recipe.ranks > 1 else []
        return "-".join(parts)

    @property
    def folder(self) -> str:
        """Name of the run's folder: slug and id."""
        return f"{self.slug}-{self.run_id}"


class Shown(Frozen):
    """Training examples that the harness handed out to a method to score with.

    Attributes:
        examples: How many different ones.
        tokens: Labels that they have: of texts one for each token, of images one each.
        digest: SHA-256 over what they hold, in whatever order and batches they came; empty where there were none.
    """

    examples: int = 0
    tokens: int = 0
    digest: str = ""


class Taught(Frozen):
    """What a declared teacher did in a retraining.

    Attributes:
        digest: SHA-256 of its weights when the retraining was over, as of the record of its run.
        samples: Images that passed it.
        macs: Multiply-adds of all these passes: a part of the run's ``training_macs``.
    """

    digest: str
    samples: int
    macs: int


class Pattern(Frozen):
    """A pattern of single weights that a method says it leaves (n:m), and whether it is there.

    Attributes:
        stay: Weights of each group that stay.
        neighbours: Weights of a group: neighbouring inputs of one output.
        crowded: Groups in which more than these are not zero, of all layers that lost weights.
    """

    stay: int
    neighbours: int
    crowded: int


class TextMeasure(Frozen):
    """What a metric of texts is of. Another joining, stride, first token or tail gives other ids.

    Attributes:
        window: Tokens of an example: so many a network sees before it at most, itself included.
        tokens: Tokens that are scored.
        ids: SHA-256 over the scored tokens in order.
        trained: Tokens of a training example, a label each; None in older records.
        bytes: Bytes of text in UTF-8 that the scored tokens stand for; None where that is not known.
    """

    window: int
    tokens: int
    ids: str
    trained: int | None = None
    bytes: int | None = None


class TaskMeasure(Frozen):
    """What a metric of questions with choices is of. Another harness joins, cuts or asks otherwise.

    Attributes:
        name: The task.
        version: Its version, as the workload says it.
        questions: Test questions.
        requests: Contexts with a choice: what a network is asked.
        digest: SHA-256 over the tokens of all requests in order, with the lengths of choices, answers and images.
        cut: Requests that were longer than a window and lost their beginning.
        visual: Tokens that each image has before the language model; 0 where there are no images.
    """

    name: str
    version: str
    questions: int
    requests: int
    digest: str
    cut: int = 0
    visual: int = 0


class Jacobian(Frozen):
    """Singular values of the Jacobian of the logits with respect to one image (TPP, Wang & Fu 2023, sec. 4).

    Attributes:
        mean: Mean over all singular values of all images: the mean JSV.
        std: Their sample standard deviation.
        condition: Mean over images of largest / smallest singular value; None where a smallest one is zero.
        samples: Number of images.
    """

    mean: float
    std: float
    condition: float | None
    samples: int


class Target(Frozen):
    """What a method is asked to remove at a ratio.

    Attributes:
        granularity: What is removed: ``filter``, ``block`` (a residual branch) or ``weight``.
        scope: ``layerwise`` (a number for each layer) or ``global`` (one threshold for all).
        stay: Filters or weights that stay in each layer where every layer loses its share.
        macs: MACs of the network that they leave; of weights those that are not zero.
        unit: MACs of the most expensive filter, block or weight: nearer no global threshold need come.
        share: Where a global threshold is to remove a share of all filters (weights): how many stay; else None.
    """

    granularity: Granularity = "filter"
    scope: Scope = "layerwise"
    stay: dict[str, int]
    macs: int
    unit: int
    share: int | None = None


class Untrained(Frozen):
    """What a method made of an untrained network: one that declares no training must leave it at chance.

    Attributes:
        accuracy: Percent of test images, of the network before or after its removal, whichever is better; None: failed.
        at_most: What guessing, and as much plain training as is declared, explain.
        error: What it raised.
    """

    accuracy: float | None = None
    at_most: float
    error: str = ""


class Renumbered(Frozen):
    """What a method made of its network, trained as it is, with classes that have other numbers.

    Attributes:
        accuracy: Percent of test images, under the other numbers, of the network before or after its removal, whichever
            is better; None: failed.
        at_least: What it made of the network as it is, less what chance explains.
        error: What it raised.
    """

    accuracy: float | None = None
    at_least: float
    error: str = ""


class Conduct(Frozen):
    """What a method did while it had the network, beyond the training that the meter counts (prune runs).

    Attributes:
        channels: Filters (weights) of each layer that the method was asked to prune, in the dense network.
        target: What it was asked to remove.
        declared_samples: Images that the method said it scores with gradients, besides its steps.
        declares_rewriting: Whether the method says that it changes weights without optimiser steps.
        rewritten: Tensors of prunable layers that changed outside metered training.
        touched: Tensors of other layers that changed outside metered training.
        equivalence: Largest difference of the outputs of masked and shrunk network in float64, relative to their scale.
        foreign_samples: Images that passed the network and were not handed out by the harness.
        held_out_samples: Those of them that are validation or test images.
        own_samples: Those of them that the harness had not handed out for scores in other batches either.
        reached: Files of the ledger or of datasets, hosts and programs that the method's code opened.
        replay: What came out when the method decided again: ``same``, or in which way it differed.
        parent_digest_after: SHA-256 of the parent's weights file when the stage was over.
        isolation: What kept it apart from the referee, such as ``process, Landlock 7``; ``none``: nothing, although it
            is foreign; empty: it is one of this project's own, or an older record.
        untrained: What it made of an untrained network, where weights may change and little training is declared.
        renumbered: What it made of its network with classes that have other numbers, where the untrained one is tried
            with all the training that is declared.
        added: By class of optimiser, values beside the network's that the method trained; 0: it trained the network's
            with an optimiser of its own.
    """

    channels: dict[str, int]
    target: Target
    declared_samples: int = 0
    declares_rewriting: bool = False
    rewritten: tuple[str, ...] = ()
    touched: tuple[str, ...] = ()
    equivalence: float
    foreign_samples: int = 0
    held_out_samples: int = 0
    own_samples: int = 0
    reached: tuple[str, ...] = ()
    replay: str
    parent_digest_after: str
    isolation: str = ""
    untrained: Untrained | None = None
    renumbered: Renumbered | None = None
    added: dict[str, int] = {}


class Scores(Frozen):
    """What a metric that is not accuracy says of a run, in its own unit.

    Attributes:
        test: Of the test split after the last epoch: the result.
        validation: Of the validation split then.
        test_curve: Of the test split after each epoch.
        validation_curve: Of the validation split after each epoch.
        outcomes: Outcome of each test image, packed bits in base64; empty where the metric is no share of images.
    """

    test: float
    validation: float
    test_curve: list[float]
    validation_curve: list[float]
    outcomes: str = ""


class RunRecord(RunSpec):
    """A run with everything it measured. Unit of cost: MACs; of accuracy: percent.

    What decides is the workload's metric: ``value`` and the properties beside it. Accuracy is measured whatever it is.

    Attributes:
        schema_version: Version of this layout.
        epochs: Training passes over the training split (samples / images), or None where not measured (external base).
        samples: Images that passed with gradients.
        scoring_samples: Images that passed without gradients, for a method's scores.
        own_images: Of a pruning stage, training images that cost as many multiply-adds as what the method's own code
            computed, passes included. Of a retraining that a method acts in, the same of all that was computed in its
            steps beside the network's own passes. None elsewhere, and in older records.
        own_per_image: Of such a retraining, how much of that goes with the number of images in a step, for each image:
            0 of a penalty on weights; None where all steps had as many images, elsewhere, and in older records.
        optimiser_steps: Steps of any optimiser.
        training_macs: 3 × MACs × samples + MACs × scoring samples, and a teacher's passes; None where not measured.
        learning_rates: Learning rate of every step, run-length coded as ``[rate, steps]``.
        hyper_parameters: Optimiser settings seen at the steps, batch, augmentation, precision, label smoothing; what
            made the steps, where it was not torch; what the loop did beside a plain step (clipping, averaging, mixing).
        fallback: Why another backend than the one that was asked for made the steps; empty: it did.
        declared_steps: Steps that the method declared (prune).
        train_loss: And the five lists below it: one value per epoch.
        accuracy: Test accuracy after the last epoch: the result, unless the metric is another one.
        validation_accuracy: Validation accuracy after the last epoch.
        best_accuracy: Best test accuracy of any epoch: an oracle, never compared.
        best_epoch: Its 1-based epoch.
        correct: Per-image correctness of the final test pass, packed bits in base64.
        test_images: Number of test images.
        train_images: Number of training images.
        initial_accuracy: Test accuracy before the first step (scratch); None elsewhere.
        macs: MACs of the network when the stage ends.
        macs_recounted: The same by a second, independent counter.
        params: Parameters then.
        base_macs: MACs of the dense network.
        base_params: Parameters of the dense network.
        kept: Filters that stay, by layer (prune).
        granularity: What was removed: ``filter``, ``block`` or ``weight``; MACs and parameters then count what is not
            zero.
        stay: Weights that stay, by layer, where single weights were removed.
        executed_macs: MACs that dense hardware executes, where single weights were removed; None: ``macs``.
        nonzero: Weights of those layers that were not zero after each epoch; once, where nothing was retrained.
        epoch_starts: Step at which each epoch of the curves begins, where it is not a multiple of an epoch's steps: a
            method that trains several times may end each training within an epoch.
        jacobian: Singular values of the Jacobian when the stage ends; None where not measured.
        jacobian_train: The same with batch norm on the statistics of the batch, as the release of TPP measures it; of
            base models and pruning stages, None elsewhere and where it is not finite.
        conduct: What the method did while it had the network (prune); None elsewhere.
        parent_digest: SHA-256 of the weights it started from.
        weights_digest: SHA-256 of the weights it wrote.
        split_digest: SHA-256 over train, validation and test split.
        pipeline: What the workload's pipeline makes of sixteen probe images: of images that are decoded or transformed
            one by one; None elsewhere, and in older records.
        classes: Number of classes.
        provenance: ``trained here``, or where an external base came from.
        device: Kind of device.
        environment: Versions and hardware.
        resumed: How many epochs an earlier, killed attempt had done.
        seconds: Wall time of the stage in this attempt.
        training_seconds: Wall time of its training passes alone.
        finished: UTC time.
        scores: What the workload's metric says; None where that is accuracy.
        beside: Other built-in metrics on the test split after the last epoch, by name; empty where not measured.
        kind: What it was computed with; None in older records.
        shown: What the method was handed out to score with (prune); None elsewhere and in older records.
        text: What its metric is of, where inputs are tokens with a label each; None elsewhere and in older records.
        task: What metrics of questions are of; None where the workload has no task, and in older records.
        frozen: Parameters that had no gradient at any step: no step moved them.
        pattern: The pattern that the method says it leaves, in the network as it is when the stage ends (prune and
            retrain); None where it says none, and in older records.
        taught: What the teacher did, where the run has one.
    """

    schema_version: int = SCHEMA_VERSION
    epochs: float | None
    samples: int
    scoring_samples: int
    own_images: float | None = None
    own_per_image: float | None = None
    optimiser_steps: int
    training_macs: int | None
    learning_rates: list[tuple[float, int]]
    hyper_parameters: dict[str, Any]
    fallback: str = ""
    declared_steps: int = 0
    train_loss: list[float]
    train_accuracy: list[float]
    validation_loss: list[float]
    validation_accuracy_curve: list[float]
    test_loss: list[float]
    test_accuracy: list[float]
    accuracy: float
    validation_accuracy: float
    best_accuracy: float
    best_epoch: int
    correct: str
    test_images: int
    train_images: int
    initial_accuracy: float | None = None
    macs: int
    macs_recounted: int
    params: int
    base_macs: int
    base_params: int
    kept: dict[str, list[int]] = Field(default_factory=dict)
    granularity: Granularity = "filter"
    stay: dict[str, int] = Field(default_factory=dict)
    executed_macs: int | None = None
    nonzero: list[int] = Field(default_factory=list)
    epoch_starts: list[int] = Field(default_factory=list)
    jacobian: Jacobian | None = None
    jacobian_train: Jacobian | None = None
    conduct: Conduct | None = None
    parent_digest: str | None = None
    weights_digest: str
    split_digest: str
    pipeline: str | None = None
    classes: int
    provenance: str = "trained here"
    device: str
    environment: dict[str, str]
    resumed: int = 0
    seconds: float
    training_seconds: float
    finished: str
    scores: Scores | None = None
    beside: dict[str, float] = Field(default_factory=dict)
    kind: ArithmeticKind | None = None
    shown: Shown | None = None
    text: TextMeasure | None = None
    task: TaskMeasure | None = None
    frozen: list[str] = Field(default_factory=list)
    pattern: Pattern | None = None
    taught: Taught | None = None

    @property
    def left(self) -> dict[str, int]:
        """Filters, or weights, that stay in each layer."""
        return self.stay or {name: len(indices) for name, indices in self.kept.items()}

    @property
    def tokens(self) -> int | None:
        """Tokens with a loss whose gradients were taken; None where inputs are no tokens, and in older records."""
        return None if self.text is None or self.text.trained is None else self.samples * self.text.trained

    @property
    def value(self) -> float:
        """The metric on the test split after the last epoch: the result."""
        return self.accuracy if self.scores is None else self.scores.test

    @property
    def validation_value(self) -> float:
        """The metric on the validation split after the last epoch: what tuning looks at."""
        return self.validation_accuracy if self.scores is None else self.scores.validation

    @property
    def curve(self) -> Sequence[float]:
        """The metric on the test split after each epoch."""
        return self.test_accuracy if self.scores is None else self.scores.test_curve

    @property
    def validation_curve(self) -> list[float]:
        """The metric on the validation split after each epoch."""
        return self.validation_accuracy_curve if self.scores is None else self.scores.validation_curve

    @property
    def outcomes(self) -> str:
        """Outcome of each test image by the metric, packed; empty where it has none."""
        return self.correct if self.scores is None else self.scores.outcomes

    @property
    def speedup(self) -> float:
        """MACs(base) / MACs(pruned)."""
        return self.base_macs / self.macs

    @property
    def starts(self) -> list[int] | None:
        """Step at which each epoch of the curves begins; None where a record of an older version does not tell."""
        per_epoch = steps_per_epoch(self.train_images, self.recipe.batch)
        points = len(self.test_accuracy)
        if self.epoch_starts or points == -(-self.optimiser_steps // per_epoch):
            return self.epoch_starts or list(range(0, points * per_epoch, per_epoch))
        return None

    @property
    def spec(self) -> RunSpec:
        """The identity alone."""
        return RunSpec(**{name: getattr(self, name) for name in RunSpec.model_fields})


#: Fields of a run record that may differ between two runs of the same identity.
VOLATILE = frozenset({"seconds", "training_seconds", "finished", "environment", "resumed", "fallback", "kind"})
#: Fields that records of older layouts have nothing in: these agree with any.
MEASURED_LATER = frozenset(
    {
        "beside",
        "jacobian_train",
        "epoch_starts",
        "frozen",
        "own_images",
        "own_per_image",
        "pattern",
        "pipeline",
        "pruned_value",
        "shown",
        "task",
        "text",
    }
)


class FailureRecord(Frozen):
    """A run that did not come to an end: kept, never overwritten.

    Attributes:
        spec: The run.
        error: One line.
        traceback: Where it was raised.
        session: Id of the session.
        finished: UTC time.
        train_loss: Of a training that diverged, its loss in each epoch before.
    """

    schema_version: int = SCHEMA_VERSION
    spec: RunSpec
    error: str
    traceback: str
    session: str
    finished: str
    train_loss: list[float] = Field(default_factory=list)


class CellScores(Frozen):
    """What a metric that is not accuracy says of a cell, in its own unit.

    Attributes:
        test: Of the result run on the test split, last epoch.
        base: Of the dense base model on the test split.
        validation: Of the result run on the validation split.
    """

    test: float
    base: float
    validation: float


class CellRecord(Frozen):
    """What a cell measured, and the runs that it stands on.

    Attributes:
        workload: And the four fields below: the cell.
        budget: Budget label.
        precision: Arithmetic.
        backend: What was asked to make the steps.
        arithmetic: ``native`` or ``portable``.
        labels: Settings that are not the default (budget, precision, backend, arithmetic, external base): results never
            mix across them.
        status: ``ok`` or ``failed``.
        error: One line, where it failed.
        accuracy: Percent, test set, last epoch of the result run.
        base_accuracy: Percent, test set, of the dense base model.
        validation_accuracy: Percent, of the result run.
        speedup: MACs(base) / MACs(pruned).
        pruned_value: The metric on the test split right after pruning; None for scratch arms, and in older records.
        params: Parameters of the result.
        macs: MACs of the result.
        granularity: What was removed: ``filter``, ``block`` or ``weight``; sizes then count what is not zero.
        executed_macs: MACs that dense hardware executes, where single weights were removed; None: ``macs``.
        total_epochs: Epochs over all stages; None where a stage was not measured.
        total_macs: Training MACs over all stages; None where a stage was not measured.
        base: Run id of the base model.
        topup: Run id of the top-up, or None.
        prune: Run id of the prune stage, or None.
        trials: Run ids of all retrainings (or the scratch training), in the order of the grid.
        result: Run id that the accuracy comes from.
        cap: Tokens that its pruning stage may have at most, where it only calibrates and is not topped up; else None.
        metric: What decides, as the workload stated it.
        scores: What the metric says; None where that is accuracy, or where nothing was measured.
    """

    schema_version: int = SCHEMA_VERSION
    workload: str
    workload_version: int
    protocol: str
    protocol_version: int
    method: str
    ratio: float
    seed: int
    budget: str = "full"
    precision: str = "fp32"
    backend: str = "torch"
    arithmetic: Arithmetic = "native"
    labels: tuple[str, ...] = ()
    status: Literal["ok", "failed"]
    error: str = ""
    accuracy: float | None = None
    base_accuracy: float | None = None
    validation_accuracy: float | None = None
    pruned_value: float | None = None
    speedup: float | None = None
    params: int | None = None
    macs: int | None = None
    granularity: Granularity = "filter"
    executed_macs: int | None = None
    total_epochs: float | None = None
    total_macs: int | None = None
    base: str | None = None
    topup: str | None = None
    prune: str | None = None
    trials: tuple[str, ...] = ()
    result: str | None = None
    cap: int | None = None
    metric: Metric = ACCURACY
    scores: CellScores | None = None

    @property
    def value(self) -> float | None:
        """The metric on the test split: what decides."""
        return self.accuracy if self.scores is None else self.scores.test

    @property
    def cell(self) -> Cell:
        """Its name."""
        return Cell(self.workload, self.protocol, self.method, self.ratio, self.seed)

    @property
    def runs(self) -> list[str]:
        """All run ids that it stands on, in order of stages."""
        chain = dict.fromkeys((self.base, self.topup, self.prune, *self.trials))
        return [run for run in chain if run is not None]
