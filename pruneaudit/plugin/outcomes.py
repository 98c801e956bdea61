"""Every outcome is the audit's own word: what pytest reports and the audit did not say makes a session incomplete.

Skips, expected failures and exits are exceptions that any code may raise; marks and hooks of a ``conftest.py`` change
outcomes and take items away. The suite's functions therefore say themselves how they ended (:func:`telling`), that
travels with the report, and the controlling process compares (:class:`Disputes`).
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from pruneaudit.catalog.discovery import content_root

#: How an item ended by the audit's own word, on the item and on its report: ``passed``, ``skipped``, ``waived`` or
#: ``failed``; empty: its function did not come so far.
OUTCOME = pytest.StashKey[str]()
_ATTRIBUTE = "audit_outcome"
#: Under which name a worker tells which items were taken away.
REMOVED = "pruneaudit_removed"
#: Under which name a worker tells that items have other names than the suite gave them.
RENAMED = "pruneaudit_renamed"
#: What pytest took away.
_DESELECTED = pytest.StashKey[set[pytest.Item]]()


class Declined(pytest.skip.Exception):  # type: ignore[name-defined]
    """The audit skips an item. Pytest and its plugins show it by the name that it has for them."""

    __module__, __qualname__ = "builtins", "Skipped"


class Waived(pytest.xfail.Exception):  # type: ignore[name-defined]
    """The audit expects an item to fail: a study waives the rule."""

    __module__, __qualname__ = "builtins", "XFailed"


@contextmanager
def telling(item: pytest.Item) -> Iterator[None]:
    """Say of an item of the suite how it ended."""
    try:
        yield
    except Declined:
        item.stash[OUTCOME] = "skipped"
        raise
    except Waived:
        item.stash[OUTCOME] = "waived"
        raise
    except (Exception, pytest.fail.Exception):
        item.stash[OUTCOME] = "failed"
        raise
    item.stash[OUTCOME] = "passed"


def of_the_suite(item: Any) -> bool:
    """Whether an item is one of this project's suite."""
    return _folder(item.path) == content_root() / "suite"


@lru_cache
def _folder(path: Path) -> Path:
    return path.resolve().parent


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let the word travel with the report, from a worker as well."""
    report = yield
    if of_the_suite(item):
        setattr(report, _ATTRIBUTE, item.stash.get(OUTCOME, ""))
    return report


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Remember what pytest itself takes away, as its options say; a plugin or a ``conftest.py`` calls this as well."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "pluggy":
        frame = frame.f_back
    if items and frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "_pytest":
        items[0].config.stash.setdefault(_DESELECTED, set()).update(items)


def removed(config: pytest.Config, every: Sequence[pytest.Item], left: Collection[pytest.Item]) -> list[str]:
    """Items of the suite that were collected and taken away, and that no option of pytest took away.

    Args:
        config: The session's configuration.
        every: All that was collected.
        left: What is left of it.
    """
    there = {*left, *config.stash.get(_DESELECTED, ())}
    # Who takes away before pytest does takes away what pytest would have taken away, too.
    return [item.nodeid for item in every if item not in there and of_the_suite(item) and _selects(config, item)]


def renamed(items: Iterable[pytest.Item]) -> str | None:
    """What is wrong where items of the suite have other names than the suite gave them; None where all have theirs.

    The report finds what was selected by the names of items: under others it would be of nothing.
    """
    for item in items:
        call: Any = getattr(item, "callspec", None)
        targets = [one for name, one in call.params.items() if name.startswith("audit_")] if call is not None else []
        name = getattr(targets[0], "id", None) if targets else None
        if name is not None and call.id != name and of_the_suite(item):
            return (
                f"{item.nodeid} is {name} to the suite: a plugin or a conftest.py repeats or renames its items, as "
                "--count of pytest-repeat does; leave that out (--audit-seeds repeats what is measured)"
            )
    return None


def _selects(config: pytest.Config, item: pytest.Item) -> bool:
    """Whether ``-k`` selects an item."""
    # Pytest's own parser and evaluation; should it change, the item counts.
    try:
        from _pytest.mark import KeywordMatcher
        from _pytest.mark.expression import Expression

        text = config.option.keyword.lstrip()
        return not text or Expression.compile(text).evaluate(KeywordMatcher.from_item(item))
    except Exception:
        return True


class Disputes:
    """Compares what is reported with what the audit said, in the process that the user started.

    Attributes:
        reported: Of each item whose outcome is not the audit's own, what is wrong with it.
        removed: Items that were taken away.
        renamed: What is wrong with the names of items; empty: nothing.
    """

    def __init__(self) -> None:
        self.reported: dict[str, str] = {}
        self.removed: list[str] = []
        self.renamed = ""
        # Set up and not called yet.
        self._waiting: set[str] = set()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note an outcome that the audit did not say; a failure makes nothing green."""
        said = getattr(report, _ATTRIBUTE, None)
        if said is None:
            return
        outcome = "waived" if hasattr(report, "wasxfail") else report.outcome
        if report.when == "setup" and outcome == "passed":
            self._waiting.add(report.nodeid)
        elif report.when == "call":
            self._waiting.discard(report.nodeid)
        if outcome == "failed":
            return
        if report.when == "call":
            if outcome != said:
                self.reported[report.nodeid] = f"reported as {outcome}, and {said or 'not run to its end'} by the audit"
        elif outcome != "passed":
            self.reported[report.nodeid] = f"reported as {outcome} before the audit looked at it"
        elif report.when == "teardown" and report.nodeid in self._waiting:
            self.reported[report.nodeid] = "set up and never run, as by --setup-only"

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Learn what was taken away or renamed in a worker."""
        told = getattr(node, "workeroutput", {})
        self.removed = sorted({*self.removed, *told.get(REMOVED, ())})
        self.renamed = self.renamed or told.get(RENAMED, "")

    def lines(self) -> list[str]:
        """What makes the session incomplete, one line for each kind."""
        lines = []
        if self.reported:
            name, why = next(iter(sorted(self.reported.items())))
            lines.append(f"{len(self.reported)} outcome(s) are not the audit's own, such as {name}: {why}")
        if self.removed:
            lines.append(
                f"{len(self.removed)} item(s) were taken away by a plugin or a conftest.py, such as {self.removed[0]}; "
                "select with -k, -m or --deselect"
            )
        if self.renamed:
            lines.append(self.renamed)
        return lines
