"""Which workloads a ``-k`` expression can select, so that no item is made only to be deselected again.

All methods under all protocols on all workloads are millions of items; pytest takes a sixth of a millisecond for each.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Mapping

import pytest

#: Keywords whose part in an expression is tried out; of more nobody knows, and everything is kept.
MOST_KEYWORDS = 12


def static_names(definition: pytest.Item) -> set[str]:
    """What ``-k`` may match besides the id of an item: files, folders, the function, its marks."""
    names = {node.name for node in definition.listchain()} | {mark.name for mark in definition.iter_markers()}
    return names | set(vars(getattr(definition, "function", None) or object).keys()) | {"parametrize"}


def selectable(
    expression: str, function: str, workloads: Iterable[str], static: Collection[str], tail: Collection[str]
) -> list[str]:
    """The workloads of which some item may match; never fewer.

    Args:
        expression: What follows ``-k``; empty: everything matches.
        function: Name of the test function.
        workloads: Their names, with which the ids of items begin.
        static: What else of an item ``-k`` matches.
        tail: Words that the rest of an id is made of: methods, protocols, rules, checks.
    """
    # Pytest's own parser and evaluation; should it change, all is kept and pytest deselects.
    try:
        from _pytest.mark.expression import Expression

        compiled = Expression.compile(expression)
        keywords = sorted(compiled.idents())
    except Exception:
        return list(workloads)
    if not expression.strip() or len(keywords) > MOST_KEYWORDS:
        return list(workloads)
    other = [word.lower() for word in (*static, *tail)]

    def may(workload: str) -> bool:
        start = f"{function}[{workload}-".lower()
        sure = {keyword for keyword in keywords if keyword.lower() in start}
        open_ = [keyword for keyword in keywords if keyword not in sure and _possible(keyword.lower(), [start, *other])]
        for values in itertools.product((True, False), repeat=len(open_)):
            if compiled.evaluate(_Among(sure.union(itertools.compress(open_, values)))):
                return True
        return False

    return [workload for workload in workloads if may(workload)]


class _Among:
    """Says of a keyword whether it is among some."""

    def __init__(self, true: Collection[str]) -> None:
        self.true = true

    def __call__(self, name: str, /, **_: object) -> bool:
        return name in self.true


def _possible(keyword: str, words: Iterable[str]) -> bool:
    """Whether a keyword may be found in texts made of these words, ratios (``r0.5``) and seeds, joined by hyphens."""
    parts = [part for part in re.split(r"[-\[\]:/]", keyword) if part]
    known = list(words)
    return all(re.fullmatch(r"[rsed0-9.]*", part) or any(part in word for word in known) for part in parts)


def absent_ratios(expression: str, ratios: Mapping[str, Collection[float]]) -> str | None:
    """One line on ratios in an expression that no workload has; None where there are none.

    Args:
        expression: What follows ``-k``.
        ratios: Those of each workload, by its name.
    """
    asked = {float(number) for number in re.findall(r"\br(0\.\d+)", expression)}
    # Those that the expression is about, or all.
    named = {name: known for name, known in ratios.items() if name in expression} or dict(ratios)
    absent = sorted(asked.difference(*named.values()))
    if not absent:
        return None
    shown = [f"{name} has {', '.join(f'{ratio:g}' for ratio in sorted(known))}" for name, known in named.items()]
    what = ",".join(f"{ratio:g}" for ratio in absent)
    more = f" and {len(shown) - 3} more workloads have theirs" if len(shown) > 3 else ""
    return f"no ratio {what}: {'; '.join(shown[:3])}{more}; --audit-ratios {what} adds what is missing"
