"""Sentences that a study judges from what it measured: they hold, they do not hold, or it is open.

A sentence that does not hold is a result. It fails no test, and nothing is tuned until it does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import FiniteFloat

from pruneaudit.audit.association import interval, resampled
from pruneaudit.audit.statistics import Difference, holm, word
from pruneaudit.catalog.studies import ArmClaim, PopulationClaim, Wiring
from pruneaudit.schema import Frozen
from pruneaudit.studies.panel import Panel
from pruneaudit.workloads.metrics import Metric

Says = Literal["holds", "does not hold", "open"]


class Judgement(Frozen):
    """What measurements say about a sentence at one place.

    Attributes:
        text: The sentence.
        source: Who states it.
        place: Where it was looked at: a panel, or a workload and a ratio.
        measured: The number that decides, in words.
        value: The number.
        low: Lower end of its 95 % interval; None where there is none.
        high: Upper end.
        says: What follows.
    """

    text: str
    source: str
    place: str
    measured: str
    value: FiniteFloat
    low: FiniteFloat | None
    high: FiniteFloat | None
    says: Says


def judge_population(claim: PopulationClaim, panels: Mapping[Wiring, Panel]) -> Judgement:
    """Judge a sentence about a criterion on one population.

    It holds where the whole 95 % bootstrap interval is on its side of the bound, and does not where the whole interval
    is on the other one.

    Args:
        claim: The sentence.
        panels: The population under each wiring.
    """
    series = [one for one in (claim.series, claim.than) if one is not None]
    values, draws = [], []
    for one in series:
        panel = panels[one.wiring]
        criterion = panel.criteria[one.criterion]
        values.append(panel.association(one.criterion))
        draws.append(resampled(claim.statistic, criterion, panel.accuracies))
    value = getattr(values[0], claim.statistic)
    low, high = interval(draws[0])
    measured = f"{claim.statistic} of {series[0]}"
    if len(series) == 2:
        value -= getattr(values[1], claim.statistic)
        low, high = interval(draws[0] - draws[1])
        measured += f" less that of {series[1]}"
    bound = claim.below if claim.below is not None else claim.above
    assert bound is not None
    inside = high < bound if claim.below is not None else low > bound
    outside = low >= bound if claim.below is not None else high <= bound
    return Judgement(
        text=claim.text,
        source=claim.source,
        place=next(iter(panels.values())).name,
        measured=f"{measured}; {'below' if claim.below is not None else 'above'} {bound:g}?",
        value=value,
        low=low,
        high=high,
        says="holds" if inside else "does not hold" if outside else "open",
    )


#: For what a sentence expects: the verdicts by which it holds, and those by which it does not.
_EXPECTED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "better": (("better",), ("worse", "equivalent")),
    "worse": (("worse",), ("better", "equivalent")),
    "equivalent": (("equivalent",), ("better", "worse")),
    "not worse": (("better", "equivalent"), ("worse",)),
    "not better": (("worse", "equivalent"), ("better",)),
}


def judge_arms(claim: ArmClaim, found: Sequence[tuple[str, Difference]], metric: Metric) -> list[Judgement]:
    """Judge a sentence about two arms at each of its places; p values are adjusted over them (Holm).

    Args:
        claim: The sentence.
        found: Each place, and the difference of the arms there.
        metric: What was compared.
    """
    adjusted = holm([difference.p for _, difference in found])
    equivalent = [difference.p_equivalent for _, difference in found]
    known = iter(holm([p for p in equivalent if p is not None]))
    what = "" if claim.quantity == "result" else f"{claim.quantity} of "
    # Where one method stands under two setups, these are in the names of the arms.
    under = "" if claim.left == claim.right else f" under {claim.protocol}"
    judged = []
    for (place, difference), p, p_equivalent in zip(found, adjusted, equivalent, strict=True):
        verdict = word(difference, p, None if p_equivalent is None else next(known), metric)
        holds, fails = _EXPECTED[claim.expects]
        judged.append(
            Judgement(
                text=claim.text,
                source=claim.source,
                place=place,
                measured=f"{what}{' less '.join(claim.arms)}{under}, n = {difference.n}: {verdict}; {claim.expects}?",
                value=difference.mean,
                low=difference.low,
                high=difference.high,
                says="holds" if verdict in holds else "does not hold" if verdict in fails else "open",
            )
        )
    return judged


def altogether(says: Sequence[Says]) -> Says:
    """What places say together: a sentence about all of them holds only where it holds at each."""
    if "does not hold" in says:
        return "does not hold"
    return "open" if "open" in says or not says else "holds"
