"""Real schedulers on this machine: run by ``make cluster``, which installs them where it may."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

#: Set by ``make cluster``: these tests start daemons, and are slow.
WANTED = "PRUNEAUDIT_CLUSTER"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cluster: needs a real scheduler, and starts one")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            if not os.environ.get(WANTED):
                item.add_marker(pytest.mark.skip(reason="starts daemons: make cluster"))
