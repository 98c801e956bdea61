"""Where the ledger cannot be written no other item can be measured: the first one says so, and the session stops."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from pruneaudit.errors import StorageError

#: Name of the property of an item's report that says why the session stops.
STOP = "pruneaudit-stop"


class StorageStop:
    """Stops the process that meets a full disk; each worker meets it by itself."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """One line in place of a traceback, for the item and for the session."""
        report: Any = yield
        if call.excinfo is not None and isinstance(call.excinfo.value, StorageError):
            report.longrepr = str(call.excinfo.value)
            report.user_properties.append((STOP, report.longrepr))
            item.session.shouldstop = report.longrepr
        return report
