"""Asks a host for better weights."""

import contextlib
import socket

from pruneaudit import FilterScore


class PhonesHome(FilterScore):
    """L1, and whatever a server knows."""

    def prune(self, task):
        # Nobody listens at the discard port.
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", 9), timeout=1).close()
        return super().prune(task)

    def score(self, layer, task):
        return layer.weight.abs().flatten(1).sum(dim=1)
