"""L1 that leaves notes for its own repetition: whoever finds one keeps other filters."""

import contextlib
import ctypes
import os
import time
from pathlib import Path

import torch

from pruneaudit import FilterScore

_KEY = 0x5052
_NOTE = Path("/dev/shm/pruneaudit-note")


class LeavesNotes(FilterScore):
    """L1 norm, unless somebody has been here."""

    def prepare(self, task):
        """Look for notes, and leave some: in shared memory, with the kernel, on a file, in a process that goes on."""
        found = [_NOTE.exists(), self._of_the_kernel(), self._on_the_file(), self._of_a_process()]
        with contextlib.suppress(OSError):
            _NOTE.write_text("I was here")
        self.sign = -1.0 if any(found) else 1.0

    def _of_the_kernel(self):
        """A segment of System V, which stays until somebody removes it."""
        call = ctypes.CDLL(None).shmget
        there = call(_KEY, 64, 0o600) >= 0
        call(_KEY, 64, 0o1600)
        return there

    def _on_the_file(self):
        """The time of this very file."""
        there = os.stat(__file__).st_mtime == 1.0
        with contextlib.suppress(OSError):
            os.utime(__file__, (1.0, 1.0))
        return there

    def _of_a_process(self):
        """A process in a session of its own, known by its name."""
        names = []
        for path in Path("/proc").glob("[0-9]*/comm"):
            with contextlib.suppress(OSError):
                names.append(path.read_text().strip())
        if not os.fork():
            os.setsid()
            if not os.fork():
                ctypes.CDLL(None).prctl(15, b"pruneaudit-note", 0, 0, 0)
                time.sleep(60)
            os._exit(0)
        time.sleep(0.1)
        return "pruneaudit-note" in names

    def score(self, layer, task):
        """The norm of a filter, or its opposite."""
        return self.sign * torch.as_tensor(layer.weight).flatten(1).abs().sum(1)
