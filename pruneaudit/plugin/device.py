"""Threads and GPU of this process, chosen before torch is imported.

Under xdist every worker gets one CPU thread, and one leased GPU where there are any. The lease is a file lock that the
system frees when the worker dies: worker numbers are not reused after a crash, so counting by them would put two
workers on one device.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

from filelock import FileLock, Timeout

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_held: list[FileLock] = []


def visible_gpus(environ: MutableMapping[str, str] | None = None) -> list[str]:
    """Ids of the GPUs that this process may use, as the caller names them (numbers, UUIDs or MIG names).

    Found without torch: from ``CUDA_VISIBLE_DEVICES``, else from ``nvidia-smi``.
    """
    environ = os.environ if environ is None else environ
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() and name.strip() != "-1"]
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(number) for number in range(sum(line.startswith("GPU ") for line in listed.splitlines()))]


def claim(environ: MutableMapping[str, str] | None = None) -> None:
    """Set thread and GPU variables of an xdist worker; without xdist the environment stays as it is.

    Called before torch is imported; calling it again changes nothing.
    """
    environ = os.environ if environ is None else environ
    if "PYTEST_XDIST_WORKER" not in environ or environ.get("PRUNEAUDIT_CLAIMED") == str(os.getpid()):
        return
    environ["PRUNEAUDIT_CLAIMED"] = str(os.getpid())
    for variable in _THREAD_VARIABLES:
        environ[variable] = "1"
    gpus = visible_gpus(environ)
    if gpus:
        workers = int(environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        folder = Path(tempfile.gettempdir()) / f"pruneaudit-gpu-{environ.get('PYTEST_XDIST_TESTRUNUID', 'run')}"
        environ["CUDA_VISIBLE_DEVICES"] = lease(gpus, workers, folder)


def lease(gpus: list[str], workers: int, folder: Path) -> str:
    """Take a free slot of a GPU for the life of this process; the name of the GPU.

    Args:
        gpus: GPUs that the caller may use.
        workers: Workers that share them: each GPU has ``ceil(workers / GPUs)`` slots.
        folder: Where the locks are, one folder for each session.
    """
    folder.mkdir(parents=True, exist_ok=True)
    slots = math.ceil(workers / len(gpus))
    for slot in range(slots):
        for number, gpu in enumerate(gpus):
            lock = FileLock(folder / f"{number}-{slot}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            _held.append(lock)
            return gpu
    # More workers than announced: share the first GPU rather than stop.
    return gpus[0]
