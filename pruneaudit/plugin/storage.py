"""Where nobody can go on (a full disk, a lost cluster) the first item that meets it says so, and the session stops."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from pruneaudit.errors import StoppedError

#: Name of the property of an item's report that says why the session stops.
STOP = "pruneaudit-stop"


class StorageStop:
    """Stops the process that cannot go on; each worker meets it by itself."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """One line in place of a traceback, for the item and for the session."""
        report: Any = yield
        if call.excinfo is not None and isinstance(call.excinfo.value, StoppedError):
            report.longrepr = str(call.excinfo.value)
            report.user_properties.append((STOP, report.longrepr))
            item.session.shouldstop = report.longrepr
        return report
