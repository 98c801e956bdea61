"""L1 that leaves notes for its own repetition: whoever finds one keeps other filters."""

import contextlib
import ctypes
import fcntl
import os
import time
from pathlib import Path

import torch

from pruneaudit import FilterScore

_KEY = 0x5052
_NOTE, _WORD = Path("/dev/shm/pruneaudit-note"), b"a note of pruneaudit's tests"


class LeavesNotes(FilterScore):
    """L1 norm, unless somebody has been here."""

    def prepare(self, task):
        """Look for notes, and leave some: in shared memory, with the kernel, on files, in a process that goes on."""
        found = [_NOTE.exists(), self._of_the_kernel(), self._on_the_file(), self._of_a_process()]
        found += [self._of_what_was_printed(), self._of_devices()]
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

    def _of_what_was_printed(self):
        """Words where it prints to, and flags of the files that were open when it began."""
        there = False
        for number in range(3):
            flags = fcntl.fcntl(number, fcntl.F_GETFL)
            there |= bool(flags & os.O_APPEND)
            with contextlib.suppress(OSError):
                fcntl.fcntl(number, fcntl.F_SETFL, flags | os.O_APPEND)
            with contextlib.suppress(OSError):
                there |= number > 0 and _WORD in os.pread(number, 1 << 20, 0)
        print(_WORD.decode(), flush=True)
        return there

    def _of_devices(self):
        """A file among devices, and a line in the kernel's log."""
        there = False
        for folder in (path for path in Path("/dev").iterdir() if path.is_dir() and path.name not in ("shm", "fd")):
            with contextlib.suppress(OSError):
                there |= (folder / "pruneaudit-note").exists()
                (folder / "pruneaudit-note").write_text("I was here")
        with contextlib.suppress(OSError):
            log = os.open("/dev/kmsg", os.O_RDWR | os.O_NONBLOCK)
            with contextlib.suppress(OSError):
                while line := os.read(log, 1 << 13):
                    there |= _WORD in line
            os.write(log, _WORD)
        return there

    def score(self, layer, task):
        """The norm of a filter, or its opposite."""
        return self.sign * torch.as_tensor(layer.weight).flatten(1).abs().sum(1)
