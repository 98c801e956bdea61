"""Comparison setups and studies: ``protocols/*.toml`` hold a :class:`Protocol` each. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from pruneaudit.catalog.courses import Course
from pruneaudit.catalog.studies import ArmClaim, Population
from pruneaudit.schema import Frozen, load_as


class Protocol(Frozen):
    """A comparison setup of Wang et al. 2023, Table 2: what must be equal between arms, and how it is made so.

    Attributes:
        name: File stem of its TOML, such as ``"s3.2"``.
        version: Raised whenever an edit changes what runs or what is required.
        title: One phrase for tables.
        source: Paper and table.
        base: ``shared`` base weights, or each arm's ``own``.
        retraining: ``own`` published recipe, ``tuned`` learning rate on validation, the ``workload``'s recipe, the
            published recipe of one ``method`` for all, or ``none``: what was pruned is what is tested, and methods that
            train do not apply.
        pruning: The method's ``own`` stage, ``equal-epochs`` (topped up), or ``equal-schedule`` (topped up, and the
            workload's learning rate imposed).
        scratch: Scratch arm follows its ``recipe``, or gets ``equal-epochs`` / ``equal-macs`` in total.
        compare: Pairs that are judged: ``pruning`` arms with each other, or pruning arms with ``scratch``.
        requires: Ids of the rules that must hold; ``F5`` stands for all whose id starts so.
        margin: Differences in accuracy below this do not matter, in percentage points: twice the standard error of a
            CIFAR-10 accuracy.
        recipe_of: Method whose published recipe every arm retrains by, where retraining is ``method``.
        course: Lengths and rates in place of the workload's own; None: the workload's.
        calibration: Training examples that all methods score with, drawn anew for each seed; 0: each method draws its
            own.
    """

    name: str
    version: int = Field(ge=1)
    title: str
    source: str
    base: Literal["shared", "own"]
    retraining: Literal["own", "tuned", "workload", "method", "none"]
    pruning: Literal["own", "equal-epochs", "equal-schedule"]
    scratch: Literal["recipe", "equal-epochs", "equal-macs"]
    compare: Literal["pruning", "scratch"]
    requires: tuple[str, ...] = Field(min_length=1)
    margin: float = Field(default=0.5, gt=0)
    recipe_of: str = ""
    course: Course | None = None
    calibration: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _recipe(self) -> Self:
        if (self.retraining == "method") != bool(self.recipe_of):
            raise ValueError("retraining = 'method' and recipe_of go together")
        return self


#: What ``--audit-fail-on`` may name; ``unfair`` is the verdict "not comparable".
FAIL_ON = ("better", "worse", "equivalent", "indeterminate", "unfair")


class Study(Frozen):
    """A comparison that is written down before it runs: what is compared, how, and which rules are waived.

    Options of the command line win over what a study says.

    Attributes:
        name: File stem of its TOML.
        title: What the study asks.
        workloads: Workloads to run; empty: all.
        methods: Methods to run; empty: the option's default.
        protocols: Comparison setups; empty: the option's default.
        seeds: Run seeds 0 to N-1; None: the seeds of each workload.
        decide: Train seeds only until each comparison is decided, N at most, see ``--audit-decide``; in place of seeds.
        against: Rivals of the other methods; empty: all pairs.
        fail_on: Verdicts that fail the gate; empty: no gate; not stated: worse and unfair, where there are rivals.
        waive: Reason by rule: a failure of the rule is recorded and printed, and does not count.
        source: Paper that asks the same.
        large: Whether it takes hours: it then runs only where it is named.
        ratios: Ratios beside those of each workload.
        population: Networks that differ in which filters they keep, where it is about them.
        claims: What is said about its arms.
    """

    name: str
    title: str = ""
    workloads: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ()
    seeds: int | None = Field(default=None, ge=1)
    decide: int | None = Field(default=None, ge=1)
    against: tuple[str, ...] = ()
    fail_on: tuple[Literal["better", "worse", "equivalent", "indeterminate", "unfair"], ...] | None = None
    waive: dict[str, str] = Field(default_factory=dict)
    source: str = ""
    large: bool = False
    ratios: tuple[float, ...] = ()
    population: Population | None = None
    claims: tuple[ArmClaim, ...] = ()

    @model_validator(mode="after")
    def _one_number_of_seeds(self) -> Self:
        if self.seeds is not None and self.decide is not None:
            raise ValueError("decide says which seeds are trained: leave out seeds")
        return self

    @field_validator("waive")
    @classmethod
    def _reasons(cls, waive: dict[str, str]) -> dict[str, str]:
        for rule, reason in waive.items():
            if not reason.strip():
                raise ValueError(f"{rule}: a waiver needs a reason")
        return waive


def load_protocol(path: Path) -> Protocol:
    """Read one protocol.

    Raises:
        ConfigError: The file is no TOML or no protocol; the message names file, key and what was expected.
    """
    return load_as(Protocol, path)


def load_study(path: Path) -> Study:
    """Read one study.

    Raises:
        ConfigError: The file is no TOML or no study; the message names file, key and what was expected.
    """
    return load_as(Study, path)
