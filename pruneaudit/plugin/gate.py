"""A gate is open only to methods that keep the contract: their conformance is part of it, whatever ``-k`` says."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pruneaudit.catalog.cells import Cell
from pruneaudit.plugin.session import AuditSession, Check, ConformanceCase, Gate, item_target


def with_conformance(
    config: pytest.Config, audit: AuditSession, every: Sequence[pytest.Item], selected: Sequence[pytest.Item]
) -> list[pytest.Item]:
    """Selected items, and those of conformance that a gate needs and ``-k`` took out.

    Ids of conformance have no ratio, so that an expression with one never selects them. Methods of this project are
    left out: its own tests check them.

    Args:
        config: The session's configuration.
        audit: What is selected, and whether it is gated.
        every: All that was collected.
        selected: What ``-k`` and ``-m`` left of it.

    Returns:
        The items, selected ones first.
    """
    if not audit.fail_on or "conformance" in config.option.keyword:
        return list(selected)
    needed: set[tuple[str, str]] = set()
    for item in selected:
        target = item_target(item)
        if isinstance(target, Cell):
            needed.add((target.workload, target.method))
        elif isinstance(target, Check | Gate):
            needed.update((target.subject.workload, name) for name in target.subject.methods)
    foreign = {(job, name) for job, name in needed if not audit.catalog.method(name).built_in}
    there = set(selected)
    added = [
        item
        for item in every
        if item not in there
        and isinstance(case := item_target(item), ConformanceCase)
        and (case.workload, case.method) in foreign
    ]
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and added:
        back = set(added)
        reporter.stats["deselected"] = [item for item in reporter.stats.get("deselected", []) if item not in back]
    return [*selected, *added]
