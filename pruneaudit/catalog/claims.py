"""Accuracies that papers have published, as ``protocols/published/*.toml`` state them: one file for each table.

A table keeps the paper's layout: a :class:`Point` for each operating point, a :class:`Row` for each method and way of
retraining. :meth:`PublishedTable.claims` unfolds it. A claim says which setup of ours is nearest and which schedule it
was retrained by, or why no run of ours is the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pruneaudit.errors import ConfigError
from pruneaudit.schema import Frozen, load_as, read_toml, validate
from pruneaudit.workloads.schedule import Schedule


class Point(Frozen):
    """One operating point of a table.

    Attributes:
        workload: Workload of ours that is nearest to the paper's.
        ratio: Its pruning ratio.
        speedup: MACs(base) / MACs(pruned) as published; None where the paper does not state it.
        base: Accuracy of the dense model as published, in percent; None where it is not stated.
    """

    workload: str
    ratio: float = Field(gt=0, lt=1)
    speedup: float | None = Field(default=None, gt=0)
    base: float | None = Field(default=None, ge=0, le=100)


class Row(Frozen):
    """One row of a table: an entry for each point.

    Attributes:
        label: As the paper calls it, retraining included.
        method: Its id here; empty where there is none.
        protocol: The comparison setup of ours that is nearest; empty where none is.
        unlike: Why no run of ours is the same, where there is no such setup.
        epochs: Length of the training that ends in these accuracies (retraining, or training from scratch): one number,
            or one for each point.
        lr: Its learning-rate schedule in text form, or one for each point; None where it is not known. Such a claim is
            never matched to a run.
        mean: Test accuracies in percent, over the repetitions; ``nan`` where the paper has none.
        std: Their standard deviations in percentage points; empty where the paper has none.
        notes: What must be known of this row.
    """

    label: str = Field(min_length=1)
    method: str = ""
    protocol: str = ""
    unlike: str = ""
    epochs: int | tuple[int, ...] | None = None
    lr: str | tuple[str, ...] | None = None
    mean: tuple[float, ...] = Field(min_length=1)
    std: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()

    @field_validator("lr")
    @classmethod
    def _schedules(cls, texts: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        for text in (texts,) if isinstance(texts, str) else texts or ():
            Schedule.parse(text)
        return texts

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if bool(self.method and self.protocol) == bool(self.unlike):
            raise ValueError(
                f"row '{self.label}': give method and protocol, or say in 'unlike' why no run of ours is the same"
            )
        if (self.epochs is None) != (self.lr is None):
            raise ValueError(f"row '{self.label}': epochs and lr go together")
        for value in self.mean:
            if not (math.isnan(value) or 0 <= value <= 100):
                raise ValueError(f"row '{self.label}': {value:g} is no accuracy in percent (nan: not published)")
        for value in self.std:
            if not 0 <= value <= 100:
                raise ValueError(f"row '{self.label}': {value:g} is no standard deviation in percentage points")
        return self


@dataclass(frozen=True)
class Claim:
    """One published accuracy.

    Attributes:
        table: The table that it stands in.
        row: Its row.
        point: Its operating point.
        mean: Test accuracy in percent.
        std: Standard deviation as published, in percentage points; None where there is none.
        epochs: Epochs of the training that ended in it; None where its schedule is not known.
        schedule: Learning rates of that training.
    """

    table: PublishedTable
    row: Row
    point: Point
    mean: float
    std: float | None
    epochs: int | None
    schedule: Schedule | None

    @property
    def sample_std(self) -> float | None:
        """Sample standard deviation (n - 1); what is not said to be one is taken as of the population, as the wider."""
        if self.std is None or self.table.std == "sample":
            return self.std
        return self.std * math.sqrt(self.table.n / (self.table.n - 1))

    def scaled(self, factor: float) -> tuple[int, Schedule] | None:
        """Epochs and schedule where every length is scaled, as budgets scale a workload's; None: not known."""
        if self.epochs is None or self.schedule is None:
            return None
        if factor == 1:
            return self.epochs, self.schedule
        epochs = max(1, round(self.epochs * factor))
        return epochs, self.schedule.stretched(epochs / self.epochs)


class PublishedTable(Frozen):
    """A table of a paper.

    Attributes:
        name: File stem of its TOML.
        paper: Authors and year.
        source: Title, and where it can be found.
        table: Its name in the paper.
        n: Repetitions of each entry.
        std: How standard deviations were computed: over the ``sample`` (n - 1) or the ``population`` (n).
        epoch: Which epoch's test accuracy is stated: the ``last``, or the ``best`` on the test set.
        notes: Known defects, and how the paper's runs differ from ours.
        points: Operating points, in the paper's order.
        rows: Rows, in the paper's order.
    """

    name: str
    paper: str
    source: str
    table: str
    n: int = Field(ge=1)
    std: Literal["sample", "population", "not said"]
    epoch: Literal["last", "best", "not said"]
    notes: tuple[str, ...] = ()
    points: tuple[Point, ...] = Field(min_length=1)
    rows: tuple[Row, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _shape(self) -> Self:
        for row in self.rows:
            if row.std and self.n < 2:
                raise ValueError(f"row '{row.label}': one run has no standard deviation; n is 1")
            for name in ("epochs", "lr", "mean", "std"):
                values = getattr(row, name)
                if isinstance(values, tuple) and (values or name != "std") and len(values) != len(self.points):
                    raise ValueError(
                        f"row '{row.label}': {name} has {len(values)} entries; the table has {len(self.points)} points"
                    )
        return self

    def claims(self) -> list[Claim]:
        """Every accuracy of the table, row by row."""
        found = []
        for row in self.rows:
            for place, (point, mean) in enumerate(zip(self.points, row.mean, strict=True)):
                if math.isnan(mean):
                    continue
                epochs = row.epochs[place] if isinstance(row.epochs, tuple) else row.epochs
                lr = row.lr[place] if isinstance(row.lr, tuple) else row.lr
                schedule = None if lr is None else Schedule.parse(lr)
                std = row.std[place] if row.std else None
                found.append(Claim(self, row, point, mean, std, epochs, schedule))
        return found


def load_table(path: Path) -> PublishedTable:
    """Read one published table: points and rows as papers lay them out, or ``[[claims]]``, one by one.

    Raises:
        ConfigError: The file is no TOML or no table; the message names file, key and what was expected.
    """
    content = read_toml(path)
    if "claims" not in content:
        return load_as(PublishedTable, path)
    return validate(PublishedTable, {"name": path.stem, **_table(path, content)}, path)


#: What a claim states that runs of ours are found by.
_NEEDED = ("workload", "method", "ratio", "accuracy", "runs")
_UNSTATED = "not specified"


def _table(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Claims as a table: a row for each, which has the others' points left out."""
    listed = [
        {key: value for key, value in {**content.get("shared", {}), **claim}.items() if value != _UNSTATED}
        for claim in content["claims"]
    ]
    for number, claim in enumerate(listed, 1):
        missing = [key for key in _NEEDED if key not in claim]
        if missing:
            raise ConfigError(f"{path}: claim {number}: {missing[0]}: missing; runs of ours are found by it")
    if len({str(claim["runs"]) for claim in listed}) > 1:
        raise ConfigError(f"{path}: claims are of unlike numbers of runs; make a file for each")
    points = [
        {
            "workload": claim["workload"],
            "ratio": claim["ratio"],
            "speedup": claim.get("speedup"),
            "base": _printed(path, claim.get("base_accuracy"))[0],
        }
        for claim in listed
    ]
    distinct = [point for place, point in enumerate(points) if point not in points[:place]]
    rows = []
    for claim, point in zip(listed, points, strict=True):
        mean, std = _printed(path, claim["accuracy"])
        std = std if std is not None else _printed(path, claim.get("spread"))[0]
        rows.append(
            {
                "label": ", ".join(filter(None, (claim["method"], claim.get("tier")))),
                "method": claim["method"],
                "protocol": claim.get("protocol", ""),
                "unlike": "" if "protocol" in claim else "no setup of ours retrains so",
                "epochs": claim.get("epochs"),
                "lr": claim.get("schedule"),
                "mean": [mean if one == point else math.nan for one in distinct],
                "std": [] if std is None else [std] * len(distinct),
            }
        )
    return {
        **{key: content.get(key, "") for key in ("paper", "source", "table")},
        "notes": content.get("notes", ()),
        "n": listed[0]["runs"],
        "std": listed[0].get("spread_kind", "not said"),
        "epoch": listed[0].get("epoch_reported", "not said"),
        "points": distinct,
        "rows": rows,
    }


def _printed(path: Path, number: float | str | None) -> tuple[float | None, float | None]:
    """A number, and what stands behind its ``±``."""
    if number is None:
        return None, None
    mean, _, std = str(number).partition("±")
    try:
        return float(mean), float(std) if std else None
    except ValueError:
        raise ConfigError(f"{path}: '{number}' is no accuracy; write 93.16, or '93.16 ± 0.16'") from None
