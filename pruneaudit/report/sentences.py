"""Verdicts in sentences: who is better, what nothing tells apart, and why a comparison does not count."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pruneaudit.audit.statistics import seeds_needed
from pruneaudit.report.standings import connected
from pruneaudit.report.tables import MOST_RULES, cause_first
from pruneaudit.workloads.metrics import ACCURACY, Metric

#: Pairs that a sentence names: of more the first ones, and how many more.
MOST_PAIRS = 8


@dataclass(frozen=True)
class Sentence:
    """What one or several comparisons come to.

    Attributes:
        verdict: Which word of the verdicts it speaks of.
        text: The sentence, plain text with names of strangers in it: to be escaped where it is shown.
        rules: Rules that forbid the comparison, as far as the sentence names them.
    """

    verdict: str
    text: str
    rules: tuple[str, ...] = ()


def sentences(rows: Iterable[Mapping[str, Any]], metric: Metric = ACCURACY) -> list[Sentence]:
    """Sentences on the comparisons of one protocol at one ratio: what is decided first, what does not count last.

    Ties are one sentence for all methods that they connect; comparisons that the same rules forbid are one, too.

    Args:
        rows: Rows of verdicts.
        metric: What decided.
    """
    by_word: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        by_word[row["verdict"]].append(row)
    found = [Sentence(word, _decided(row, metric)) for word in ("better", "worse") for row in by_word[word]]
    for word, text in (("equivalent", _equivalent), ("indeterminate", _undecided)):
        for names in connected(row["arms"] for row in by_word[word]):
            members = [row for row in by_word[word] if set(row["arms"]) <= names]
            found.append(Sentence(word, text(sorted(names), members, metric)))
    by_rules: dict[tuple[str, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for row in by_word["not comparable"]:
        by_rules[tuple(row["forbidden_by"])].append(row)
    for rules, members in by_rules.items():
        _, arms = _first([" with ".join(row["arms"]) for row in members], MOST_PAIRS, MOST_PAIRS, "pairs")
        named, why = _first(cause_first(rules), MOST_RULES, 2, "rules")
        told = f"Not comparable: {_listed(arms, ';')}, because of {_listed(why)}."
        found.append(Sentence("not comparable", told, tuple(named)))
    return found


def _decided(row: Mapping[str, Any], metric: Metric) -> str:
    left, right = row["arms"]
    gap, n = row["difference"], len(row["seeds"])
    return (
        f"{left} is {row['verdict']} than {right}: {metric.gap(gap['mean'])}{metric.suffix}{metric.aside}, "
        f"95 % interval {metric.gap(gap['low'])} to {metric.gap(gap['high'])}, p = {row['p_adjusted']:.3g} "
        f"after correction over {row['family']} comparisons, {n} seeds."
    )


def _equivalent(names: Sequence[str], rows: Sequence[Mapping[str, Any]], metric: Metric) -> str:
    margin = rows[0]["difference"]["margin"]
    return f"{_listed(names)} are equivalent: they differ by less than {margin:g}{metric.suffix}."


def _undecided(names: Sequence[str], rows: Sequence[Mapping[str, Any]], metric: Metric) -> str:
    tie = "Nothing tells " + _listed(names) + " apart"
    pairs = len(names) * (len(names) - 1) // 2
    if len(rows) < pairs:
        tie += f" ({len(rows)} of their {pairs} pairs are compared)"
    n = min(len(row["seeds"]) for row in rows)
    needed = max(0 if row.get("plan") else seeds_needed(comparisons=row["family"]) for row in rows)
    if n < needed:
        return f"{tie}: {n} of the {needed} seeds that a decision needs."
    return f"{tie}, with {n} seeds.{_outlook(rows)}"


def _outlook(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the comparison lacks that is nearest to a decision."""
    lacking = [row for row in rows if (row.get("outlook") or {}).get("more") is not None]
    if not lacking:
        return ""
    row = min(lacking, key=lambda row: row["outlook"]["more"])
    whose = "" if len(rows) == 1 else f" {' and '.join(row['arms'])}"
    return f" At its present mean and spread about {row['outlook']['more']} more seeds would decide{whose or ' it'}."


def _first(names: Sequence[str], most: int, kept: int, what: str) -> tuple[Sequence[str], Sequence[str]]:
    """Names that are told, and the same with how many more there are; of at most ``most`` all, of more ``kept``."""
    if len(names) <= most:
        return names, names
    return names[:kept], [*names[:kept], f"{len(names) - kept} more {what}"]


def _listed(names: Sequence[str], comma: str = ",") -> str:
    """Names with "and" before the last one."""
    if len(names) < 2:
        return "".join(names)
    return f"{f'{comma} '.join(names[:-1])} and {names[-1]}"
