"""How busy this machine is: what computing for a second takes here, now, beside whatever else runs."""

from __future__ import annotations

import subprocess
import sys

# What a worker does: it computes for some seconds, and tells which share of them it had a core.
_WORKER = """
import sys, time
wall, had = time.perf_counter(), time.process_time()
while time.perf_counter() - wall < float(sys.argv[1]):
    sum(range(1000))
print((time.process_time() - had) / (time.perf_counter() - wall))
"""


def busy(workers: int, seconds: float = 0.5) -> float:
    """Seconds that pass while a worker computes for one, with so many of them at work.

    Args:
        workers: Processes that compute side by side.
        seconds: How long that is tried.

    Returns:
        Wall time over processor time, at least 1: an idle machine with a core for each has 1.
    """
    command = [sys.executable, "-I", "-S", "-c", _WORKER, str(seconds)]
    trying = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(workers)]
    shares = [float(process.communicate()[0]) for process in trying]
    return max(1.0, workers / sum(shares))
