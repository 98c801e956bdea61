"""What a worker of xdist does beside its items: it stops when it is told to, and when its controller is gone."""

from __future__ import annotations

from typing import Any

import pytest

from pruneaudit.plugin.interrupts import WORKER_PATIENCE, Interrupts, follow

#: Under which name a worker is told what holds it, see :class:`pruneaudit.plugin.interrupts.Leash`.
LEASH = "pruneaudit_leash"


class Worker:
    """Stops a worker within seconds.

    Args:
        config: The worker's configuration.
    """

    def __init__(self, config: Any) -> None:
        self._interrupts = Interrupts(WORKER_PATIENCE)
        self._interrupts.install()
        follow(config.workerinput.get(LEASH, ""))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Nobody would catch an interrupt any more."""
        self._interrupts.raises = False

    def pytest_unconfigure(self) -> None:
        """The process may be used for other things."""
        self._interrupts.restore()
