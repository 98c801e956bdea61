"""What became of the sentences of studies, at the end of a session."""

from __future__ import annotations

from typing import Any

import pytest

from pruneaudit.plugin.session import AuditSession

#: Name under which an item tells what it judged.
SENTENCE = "sentence"


class Sentences:
    """Collects what items of studies tell, from whatever process.

    Args:
        audit: Whose studies they are.
    """

    def __init__(self, audit: AuditSession) -> None:
        self._audit = audit
        self._told: dict[str, list[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take what an item of a study tells."""
        if report.when == "call":
            for name, value in report.user_properties:
                if name == SENTENCE:
                    study, line = str(value).split(": ", 1)
                    self._told.setdefault(study, []).append(line)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say what holds, what does not, and where the pages are."""
        for study, lines in sorted(self._told.items()):
            terminalreporter.write_sep("=", f"study {study}")
            for line in sorted(lines):
                terminalreporter.write_line(line)
            terminalreporter.write_line(f"page: {self._audit.report_path / 'studies' / study / 'report.html'}")
