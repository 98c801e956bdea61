"""How many cores this process may use."""

from __future__ import annotations

import os


def cores() -> int:
    """Cores of this machine that the system lets this process use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def share_of_cores() -> int:
    """Cores that are this process's alone, where a session's workers have them in equal shares."""
    return max(1, cores() // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


def threads() -> int:
    """Threads that may compute side by side in this process: its share, and no more than ``$OMP_NUM_THREADS``."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(share_of_cores(), max(1, int(asked))) if asked.isdecimal() else share_of_cores()
