"""What a method's process may say, word by word: each is read as what it must be, or refused in one line.

Whatever code runs over there can say anything in any word: numbers that are none, of other signs, too many of them.
What is not as it is here reaches nobody.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StringConstraints, ValidationError

from pruneaudit.errors import printable
from pruneaudit.ledger.records import Granularity, Scope
from pruneaudit.schema import Frozen, explained
from pruneaudit.workloads.recipes import Distillation


def _finite(value: Any) -> Any:
    """A value of JSON all of whose numbers are finite, so that JSON can be made of it again."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, float) and not math.isfinite(one):
            raise ValueError("expected finite numbers")
        if isinstance(one, Mapping):
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)
    return value


def _lines(text: str) -> str:
    """A text of several lines, see :func:`printable`."""
    return "\n".join(map(printable, text.expandtabs().split("\n")))


#: What is counted. Numbers of records, and of torch, are no larger.
Count = Annotated[int, Field(ge=0, lt=1 << 62)]
Value = Annotated[Any, AfterValidator(_finite)]
#: A name, a line, a text, and a path.
Name = Annotated[str, StringConstraints(max_length=1_000), AfterValidator(printable)]
Line = Annotated[str, StringConstraints(max_length=10_000), AfterValidator(printable)]
Text = Annotated[str, StringConstraints(max_length=1_000_000), AfterValidator(_lines)]
Path = Annotated[str, StringConstraints(max_length=10_000)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Published(Frozen):
    """A recipe as in ``method/contract.py``."""

    workload: Name
    epochs: Annotated[Count, Field(gt=0)]
    lr: Line
    source: Line
    batch: Annotated[Count, Field(gt=0)] | None
    weight_decay: Annotated[Finite, Field(ge=0)] | None
    optimiser: Name


class _Card(Frozen):
    """A card as in ``method/contract.py``."""

    criterion: Line
    schedule: Line
    base: Line
    training: Line
    source: Line


class _Consumption(Frozen):
    """What a meter counted, see ``training/metering.py``."""

    training_samples: Count
    scoring_samples: Count
    optimiser_steps: Count
    rates: list[tuple[Finite, Count]]
    batch: Count
    settings: dict[Name, Value]
    added: dict[Name, Count]
    own_macs: Count
    frozen: list[Name]
    taught_samples: Count
    steps_macs: dict[Name, tuple[Count, Count]]


class _History(Frozen):
    """Curves of the training split: what is said of others does not count."""

    train_loss: list[float]
    train_accuracy: list[float]
    validation_loss: list[Any]
    validation_accuracy: list[Any]
    test_loss: list[Any]
    test_accuracy: list[Any]
    nonzero: list[Count]
    validation_metric: list[Any]
    test_metric: list[Any]


class _Snapshot(Frozen):
    """Facts of a state between two epochs; what the trainer and the method add to it comes back to them alone."""

    epochs_done: Count
    history: _History
    consumption: _Consumption
    optimiser: Any
    training_seconds: Annotated[Finite, Field(ge=0)]
    state: Any


class Described(Frozen):
    """What a method says of itself."""

    module: Name
    name: Annotated[Name, Field(pattern=r"^\w[\w.<>]*$")]
    description: Text
    summary: Line
    begins: Line
    scratch: bool
    follows_protocol: bool
    published: _Published | None
    card: _Card
    parameters: dict[Name, Value]
    pattern: Count
    read: dict[Path, list[Path]]
    prunes: bool
    rewrites: bool
    granularity: Granularity
    scope: Scope
    in_retraining: Line
    distillation: Distillation | None


class Answer(Frozen):
    """What it says to a question: see the questions in ``method/child.py``."""

    value: Value


class Batch(Frozen):
    """It asks for a batch."""

    stream: Name
    epoch: Count
    size: Annotated[Count, Field(gt=0)]
    number: Count
    double: bool


class Initial(Frozen):
    """It asks for the weights of the base after some epochs: below zero counts from the end."""

    epoch: Annotated[int, Field(gt=-(1 << 31), lt=1 << 31)]


class Save(Frozen):
    """It gives the state that a killed run goes on from."""

    snapshot: _Snapshot


class Began(Frozen):
    """What its weights are after the first steps."""

    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Pruned(Frozen):
    """What it decided, see ``method/answers.py``, and what was measured over there."""

    kept: dict[Name, list[Any]]
    granularity: Granularity
    scope: Scope
    consumption: _Consumption
    history: _History
    epoch_starts: list[Count]
    rewritten: list[Name]
    touched: list[Name]
    foreign: Count
    reached: list[Line]


class Retrained(Frozen):
    """What was measured over there while it retrained."""

    consumption: _Consumption
    history: _History
    training_seconds: Annotated[Finite, Field(ge=0)]
    taught: Line
    reached: list[Line]


class Confined(Frozen):
    """What keeps it apart."""

    by: Name


class Error(Frozen):
    """What went wrong."""

    type: str
    text: str
    traceback: str


class Nothing(Frozen):
    """A word that says all."""


#: All words, by kind.
WORDS: dict[str, type[Frozen]] = {
    "described": Described,
    "answer": Answer,
    "batch": Batch,
    "initial": Initial,
    "epoch": Nothing,
    "foreign": Nothing,
    "save": Save,
    "discard": Nothing,
    "began": Began,
    "pruned": Pruned,
    "retrained": Retrained,
    "kept": Nothing,
    "confined": Confined,
    "error": Error,
}


def read(kind: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of a word, as they must be.

    Raises:
        ValueError: They are not; one line says where.
    """
    if kind not in WORDS:
        raise ValueError("there is no such word")
    try:
        return WORDS[kind].model_validate(dict(facts)).model_dump()
    except ValidationError as error:
        raise ValueError(explained(error, WORDS[kind])) from None
