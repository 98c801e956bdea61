"""What a selection selects, found by a collection of pytest: for ``pruneaudit plan``."""

from __future__ import annotations

import contextlib
import io
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pruneaudit.audit.forecast import Forecast, cells_expected, forecast, rounds_expected
from pruneaudit.catalog.discovery import suite_arguments
from pruneaudit.errors import ConfigError
from pruneaudit.ledger.store import Ledger
from pruneaudit.plugin import audit_session
from pruneaudit.plugin.device import visible_gpus
from pruneaudit.plugin.session import AuditSession, ConformanceCase, item_target
from pruneaudit.studies.answer import Question

if TYPE_CHECKING:
    from pruneaudit.campaign.plan import Work


class _Collector:
    """Takes the audit session, conformance checks and questions of studies out of a pytest collection."""

    session: AuditSession | None = None
    checks: list[ConformanceCase]
    questions: list[Question]

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.session = audit_session(session.config)
        targets = map(item_target, session.items)
        self.checks = [target for target in targets if isinstance(target, ConformanceCase)]
        asked = [getattr(item, "callspec", None) for item in session.items]
        self.questions = [call.params["audit_question"] for call in asked if call and "audit_question" in call.params]


def collect(expression: str, options: list[str], pilot: Path | None = None) -> tuple[Work, list[Forecast]]:
    """Collect what pytest would run.

    Args:
        expression: As pytest's ``-k``.
        options: ``--audit-…`` options of the suite.
        pilot: Ledger that means and spreads of planned comparisons come from; None: the session's.

    Returns:
        What would run, with as many seeds as planned comparisons are expected to take; and these expectations.

    Raises:
        ConfigError: The selection is wrong or empty, or the pilot is no ledger.
    """
    collector = _Collector()
    output = io.StringIO()
    arguments = [*suite_arguments(), "--collect-only", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        status = pytest.main([*arguments, "-k", expression, *options], plugins=[collector])
    if status == pytest.ExitCode.NO_TESTS_COLLECTED:
        hint = collector.session.absent_ratios(expression) if collector.session is not None else None
        raise ConfigError(f"nothing is selected by -k '{expression}'{f': {hint}' if hint else ''}")
    session = collector.session
    if status != pytest.ExitCode.OK or session is None:
        lines = [line for line in output.getvalue().splitlines() if line.strip()]
        # argparse puts its usage first and the reason behind "error: "; pytest puts the reason behind "ERROR: ".
        reason = next((line for line in lines if ": error: " in line), "")
        reason = reason or next((line for line in lines if line.startswith("ERROR")), "ERROR: collection failed")
        raise ConfigError(reason.rpartition(": error: ")[2].removeprefix("ERROR: "))
    # Whatever this process did until here, the one that starts the workers does as well: it needs no torch.
    collecting = time.process_time()
    from pruneaudit.campaign.plan import Check, Work

    there = None if pilot is None else Ledger(pilot, writable=False)
    if session.choosing is not None:
        # Its results are looked for under the names that they have there.
        session.choosing.baseline = session.choosing.baseline or there
    for name in dict.fromkeys(cell.workload for cell in session.selected):
        session.settle(name, keeps=False)
    expected = _expected(session, there)
    checks = [Check(case.id, case.check, case.method, case.workload) for case in collector.checks]
    gpus = len(visible_gpus()) if session.device == "cuda" else 0
    work = Work(
        session.catalog,
        session.ledger,
        session.settings,
        session.runtime,
        gpus,
        list(dict.fromkeys([*session.selected, *cells_expected(expected)])),
        checks,
        collecting,
        [session.outstanding(question) for question in collector.questions if question.claim is None],
        rounds_expected(expected),
    )
    return work, expected


def _expected(session: AuditSession, pilot: Ledger | None) -> list[Forecast]:
    """What is to be expected of the comparisons that a session plans."""
    there = None if pilot is None else partial(session.stored, ledger=pilot)
    return [
        one
        for workload in sorted({subject.workload for subject in session.judged})
        for family in session.families(workload)
        for one in forecast(family, session.stored, session.catalog.workload(workload).metric, there)
    ]
