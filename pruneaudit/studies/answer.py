"""What a study asks, part by part, and how each part is answered: one item of the suite each. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pruneaudit.audit.statistics import differences
from pruneaudit.catalog.cells import Cell
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.protocols import Study
from pruneaudit.catalog.studies import ArmClaim, panel_name
from pruneaudit.errors import MethodError
from pruneaudit.ledger.progress import tell
from pruneaudit.ledger.store import Ledger
from pruneaudit.studies.arms import Place, described, metric_of, numbers
from pruneaudit.studies.judgement import Judgement, judge_arms, judge_population
from pruneaudit.studies.page import part_names, write_arms, write_panel
from pruneaudit.studies.slopes import Slopes
from pruneaudit.workloads.schema import Workload

if TYPE_CHECKING:
    from pruneaudit.studies.population import Populations

#: A loss that changes by more than this part of it when channels are named anew is no rounding of fp32.
NO_ROUNDING = 1e-3
#: What of a run's environment the page names.
_NAMED = ("pruneaudit", "torch", "device")


@dataclass(frozen=True)
class Question:
    """A part of a study: one of its panels, or one of its sentences about arms."""

    study: Study
    part: str

    @property
    def id(self) -> str:
        """Readable id, such as ``oracle-digits-conv1``."""
        return f"{self.study.name}-{self.part}"

    def __hash__(self) -> int:
        return hash(self.id)

    def workloads(self, catalog: Catalog) -> list[Workload]:
        """Workloads that it is about."""
        study = self.study
        if self.claim is None:
            assert study.population is not None
            return [catalog.workload(study.population.workload)]
        names = self.claim.workloads or study.workloads
        return [catalog.workload(name) for name in names]

    @property
    def claim(self) -> ArmClaim | None:
        """The sentence about arms; None: it is a panel."""
        claims = {f"claim{number}": claim for number, claim in enumerate(self.study.claims, 1)}
        return claims.get(self.part)

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers of the panel that it is."""
        population = self.study.population
        assert population is not None
        return next(layers for layers in population.panels if panel_name(layers) == self.part)

    def pairs(
        self, catalog: Catalog, seeds: Callable[[Workload], Sequence[int]]
    ) -> list[tuple[str, list[Cell], list[Cell]]]:
        """Each place that a sentence about arms speaks of, with the cells of both arms; none of a panel."""
        claim = self.claim
        found = []
        for workload in self.workloads(catalog) if claim is not None else ():
            assert claim is not None
            for ratio in claim.ratios or sorted({*workload.ratios, *self.study.ratios}):
                left, right = (
                    [Cell(workload.name, protocol, name, ratio, seed) for seed in seeds(workload)]
                    for name, protocol in ((claim.left, claim.protocol), (claim.right, claim.other_protocol))
                )
                found.append((f"{workload.name} r{ratio:g}", left, right))
        return found


def questions(study: Study) -> list[Question]:
    """What a study asks; nothing where it only selects cells."""
    return [Question(study, part) for part in part_names(study)]


def announcing(ledger: Ledger, study: Study) -> Callable[[str, int, int], None]:
    """Tells other processes which networks of a study this one measures, as they are told of a run under way.

    Args:
        ledger: Where it is told.
        study: The study.

    Returns:
        What populations call (:data:`~pruneaudit.studies.population.Telling`).
    """

    def told(what: str, done: int, total: int) -> None:
        tell(ledger, f"{study.name} {what}", epoch=done, epochs=total, unit="network", begun=done)

    return told


def answer_panel(question: Question, populations: Populations, folder: Path) -> list[Judgement]:
    """Measure a panel, judge the study's sentences on it, and write its page.

    Raises:
        MethodError: The null does not hold: naming channels anew changes what a correctly pruned network computes.
    """
    study = question.study
    assert study.population is not None
    panels = populations.measure(question.layers)
    by_wiring = {panel.wiring: panel for panel in panels}
    judged = [
        judge_population(claim, by_wiring)
        for claim in study.population.claims
        if not claim.panels or question.part in claim.panels
    ]
    write_panel(folder, study, populations.facts, panels, judged)
    correct = by_wiring.get("correct")
    if correct is not None and correct.relabelled_difference > NO_ROUNDING:
        raise MethodError(
            f"study {study.name}, {question.part}: naming channels in another order changes the loss by "
            f"{correct.relabelled_difference:.1e} of its size: networks are put together wrongly"
        )
    return judged


def answer_claim(
    question: Question,
    catalog: Catalog,
    places: Sequence[Place],
    facts: dict[str, str],
    folder: Path,
    slopes: Sequence[tuple[Slopes, Slopes]] = (),
) -> list[Judgement]:
    """Judge a sentence about arms from what was measured of them, and write its page.

    Args:
        question: The sentence.
        catalog: Where its protocol and workloads are.
        places: Where it is looked at, with what was measured of both arms.
        facts: What was measured, in words, by name.
        folder: Where the study's page goes.
        slopes: What became of the Jacobians of both arms' first seeds, by place, where that is asked for.

    Raises:
        ConfigError: It compares what was not measured, or cannot be compared.
    """
    claim = question.claim
    assert claim is not None
    metric = metric_of(claim.quantity, question.workloads(catalog)[0].metric)
    margin = claim.margin or metric.margin_under(catalog.protocol(claim.protocol).margin)
    values = [(*numbers(claim.quantity, place), margin) for place in places]
    found = [(place.name, difference) for place, difference in zip(places, differences(values), strict=True)]
    judged = judge_arms(claim, found, metric)
    first = places[0].left[0].result
    told = {
        **facts,
        "environment": ", ".join(f"{name} {first.environment[name]}" for name in _NAMED if name in first.environment),
        "seeds": ", ".join(str(arm.cell.seed) for arm in places[0].left),
        **{
            f"{place.name} {name}": ", ".join(f"{value:.{metric.decimals}f}" for value in of_arm)
            for place, both in zip(places, values, strict=True)
            for name, of_arm in zip(claim.arms, both[:2], strict=True)
        },
    }
    tables = [described(claim, places)]
    curves = {place.name: dict(zip(claim.arms, both, strict=True)) for place, both in zip(places, slopes, strict=False)}
    write_arms(folder, question.study, question.part, told, claim.text, judged, tables, curves)
    return judged
