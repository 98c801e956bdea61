"""How long a base model trains, and how its pruned network retrains: ``p30f90-1e-2``, as papers write it.

Wang et al. 2023 (arXiv 2301.05219) compare learning rates of retraining under equal epochs as P*x*F*y*: *x* epochs of
pretraining, *y* of retraining. Such a name is a comparison setup of its own, S3.2 with these lengths and this rate for
every arm, so that it can be asked for wherever a protocol can. Imports no torch.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Literal, Self

from pydantic import Field, model_validator

from pruneaudit.catalog.names import is_course
from pruneaudit.errors import ConfigError
from pruneaudit.schema import Frozen
from pruneaudit.workloads.recipes import steps_per_epoch
from pruneaudit.workloads.schedule import Schedule
from pruneaudit.workloads.schema import Workload

_RATE = r"\d+(?:\.\d+)?(?:e-?\d+)?"
_COURSE = re.compile(
    r"p(?P<pretrain>\d+)f(?P<retrain>\d+)(?:\+(?P<more>\d+))?-(?P<kind>cosine-)?"
    rf"(?P<first>{_RATE})(?:to(?P<last>{_RATE}))?(?:-cap(?P<cap>\d+))?"
)


class Course(Frozen):
    """Epochs of the base model and of retraining, and the rates of the latter.

    Attributes:
        pretrain: Epochs of the base model: the workload's recipe, stretched to them.
        retrain: Epochs of retraining.
        more: Epochs by which the first stage of the learning rate is longer than the rules make it, beside ``retrain``
            (Wang et al. 2023, Table 5: "extra epochs").
        kind: ``step``: a tenth of the rate at each stage; ``cosine``: along half a cosine.
        first: Rate that retraining begins at.
        last: Rate that it ends at; None: the one of the workload's retraining.
        cap: Most epochs of a stage that another one follows; 0: no such limit.
    """

    pretrain: int = Field(ge=1)
    retrain: int = Field(ge=1)
    more: int = Field(default=0, ge=0)
    kind: Literal["step", "cosine"] = "step"
    first: float = Field(gt=0)
    last: float | None = Field(default=None, gt=0)
    cap: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.last is not None and self.last > self.first:
            raise ValueError(f"it begins at {self.first:g} and ends above it, at {self.last:g}")
        if self.kind == "cosine" and (self.more or self.cap):
            raise ValueError("a cosine has no stages that could be longer, or capped")
        return self

    def __str__(self) -> str:
        more = f" and {self.more} more at the first rate" if self.more else ""
        last = "the workload's last rate" if self.last is None else f"{self.last:g}"
        cap = f", stages of {self.cap} epochs at most" if self.cap else ""
        return (
            f"{self.pretrain} epochs of pretraining, {self.retrain}{more} of retraining, {self.kind} "
            f"from {self.first:g} to {last}{cap}"
        )

    @classmethod
    @lru_cache(maxsize=256)
    def parse(cls, name: str) -> Course | None:
        """Read a course from its name, such as ``p30f90-1e-2`` or ``p60f60+60-1e-3to1e-5-cap30``.

        Returns:
            None where it is no name of a course, and was hardly meant to be one.

        Raises:
            ConfigError: It begins like one and is none.
        """
        if not is_course(name):
            return None
        found = _COURSE.fullmatch(name)
        try:
            if found is None:
                raise ValueError("it is no such name")
            given = {key: value for key, value in found.groupdict().items() if value is not None and key != "kind"}
            return cls.model_validate({**given, "kind": "cosine" if found["kind"] else "step"})
        except ValueError as error:
            why = str(error).splitlines()[-2].strip().partition(" [")[0] if "\n" in str(error) else str(error)
            raise ConfigError(
                f"protocol '{name}': {why}; expected pXfY-RATE (epochs of pretraining and retraining, first rate), as "
                "in p30f90-1e-2; then 'p30f90+30-…' for a longer first stage, '…-cosine-1e-2', '…-1e-2to1e-4' for the "
                "last rate, '…-cap30' for the longest stage"
            ) from None

    def schedule(self, last: float) -> Schedule:
        """Rates of retraining by the rules of Wang et al. 2023, appendix A.

        1. It ends at ``last``, whatever it begins at. 2. Of what is left, each stage takes half, and the last one all:
        N/2 epochs at the first rate, N/4 at the second, …. 3. No stage that another follows is longer than ``cap``.
        Rates fall to a tenth from stage to stage.

        Args:
            last: Rate at the end.

        Raises:
            ConfigError: There are more rates than epochs, or the first one is below the last.
        """
        if self.first < last * (1 - 1e-9):
            raise ConfigError(
                f"retraining that begins at {self.first:g} cannot end at {last:g}, where the workload's ends: name the "
                f"last rate as well, as in {self.first:g}to{self.first / 10:g}"
            )
        if self.kind == "cosine":
            return Schedule("cosine", ((0, self.first), (1, last)))
        rates = [self.first]
        while rates[-1] > last * (1 + 1e-9):
            # Rounded, for a tenth of 3e-2 is 3e-3 on paper.
            rates.append(max(float(f"{rates[-1] / 10:.12g}"), last))
        if len(rates) > self.retrain:
            raise ConfigError(
                f"{len(rates)} rates from {self.first:g} to {last:g} do not fit into {self.retrain} epochs; name "
                "more epochs, or a higher last rate"
            )
        points, start, left = [(0, self.first)], 0, self.retrain
        for later, rate in enumerate(rates[1:], 1):
            # An epoch is left for each of the rates that follow.
            stage = min(math.ceil(left / 2), left - (len(rates) - later))
            stage = min(stage, self.cap or stage)
            start, left = start + stage, left - stage
            points.append((start + self.more, rate))
        return Schedule("step", tuple(points))

    def of(self, workload: Workload, images: int) -> Workload:
        """A workload with these lengths and rates.

        Args:
            workload: At full length.
            images: Its training images.

        Raises:
            ConfigError: The rates do not fit into the epochs.
        """
        usual = workload.retrain
        last = usual.last_rate(steps_per_epoch(images, usual.batch)) if self.last is None else self.last
        try:
            schedule = self.schedule(last)
        except ConfigError as error:
            raise ConfigError(f"{workload.name}: {error}") from None
        retrain = usual.model_copy(update={"epochs": self.retrain + self.more, "lr": str(schedule)})
        return workload.model_copy(update={"pretrain": workload.pretrain.for_epochs(self.pretrain), "retrain": retrain})
