"""What a method's process may take of the machine, so that one method ends alone and not the campaign with it.

The kernel holds it to its memory and to the size of a file (``man 2 setrlimit``); what it has written in all, and
printed, is looked at from outside. What it says and how long it is silent is the referee's to bound.
"""

from __future__ import annotations

import os
import resource
import signal
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

#: Of a machine's free memory, what a method's process may take, and what is so little that it is no limit.
SHARE_OF_MEMORY, LEAST_MEMORY = 0.9, 1 << 31


@dataclass(frozen=True)
class Limits:
    """What one process may take.

    Attributes:
        memory: Bytes of memory of its own; 0: whatever there is.
        written: Bytes of all files in the folder that it may write.
        printed: Bytes that it may print where that goes into a file.
        look: Seconds between two looks at what it has written.
    """

    memory: int = 0
    written: int = 4 << 30
    printed: int = 64 << 20
    look: float = 0.5

    @classmethod
    def of(cls, device: str, processes: int) -> Limits:
        """Usual ones: on a CPU an even share of the memory that is free now.

        Args:
            device: Where it computes; what a driver of a GPU maps is no memory in use.
            processes: Processes that share the machine.
        """
        free = free_memory() if device == "cpu" else None
        if free is None:
            return cls()
        return cls(max(LEAST_MEMORY, int(SHARE_OF_MEMORY * free / max(processes, 1))))

    def impose(self) -> None:
        """Hold this process, and what it starts from now on, to them for good."""
        # Writing beyond is then an error, and no end of the process.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        _lower(resource.RLIMIT_FSIZE, self.written)
        _lower(resource.RLIMIT_CORE, 0)
        if self.memory:
            # What it was given when it was forked is not its own doing.
            _lower(resource.RLIMIT_DATA, self.memory + _data_in_use())


def _lower(kind: int, most: int) -> None:
    """Set a limit, unless it is lower already."""
    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    with suppress(OSError, ValueError):
        resource.setrlimit(kind, (most, most))


def _data_in_use() -> int:
    """Bytes of data that this process has, by the count that the limit goes by."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmData:"):
                return 1024 * int(line.split()[1])
    return 0


def free_memory() -> int | None:
    """Bytes that new programs may take here, of this machine or of this container; None: not known."""
    found = []
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                found.append(1024 * int(line.split()[1]))
    with suppress(OSError, ValueError):
        folder = Path("/sys/fs/cgroup")
        most = int((folder / "memory.max").read_text(encoding="ascii"))
        found.append(max(0, most - int((folder / "memory.current").read_text(encoding="ascii"))))
    return min(found, default=None)


class Overseer:
    """Looks, while entered, at what a process writes and prints, and ends it where that is too much.

    Args:
        folder: The folder that it may write.
        limits: What it may take.
        end: Ends it.

    Attributes:
        why: What it did too much of; empty: nothing.
    """

    def __init__(self, folder: Path, limits: Limits, end: Callable[[], None]) -> None:
        self.why = ""
        self._folder, self._limits, self._end = folder, limits, end
        self._over = threading.Event()
        self._printed = _size_of_output()
        self._thread = threading.Thread(target=self._watch, name="pruneaudit-limits", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def look(self) -> bool:
        """Look now; say whether it was ended."""
        if not self.why and _size_of(self._folder, self._limits.written) > self._limits.written:
            self.why = f"writes more than {_amount(self._limits.written)} into its folder"
        if not self.why and _size_of_output() - self._printed > self._limits.printed:
            self.why = f"prints more than {_amount(self._limits.printed)}"
        if self.why:
            self._end()
        return bool(self.why)

    def _watch(self) -> None:
        while not self._over.wait(self._limits.look) and not self.look():
            pass


def _amount(size: int) -> str:
    return f"{size / 2**30:g} GiB" if size >= 1 << 30 else f"{size / 2**20:g} MiB"


def _size_of(folder: Path, most: int) -> int:
    """Bytes on disk of all below a folder, or as soon as that is known more than so many."""
    total, left = 0, [str(folder)]
    while left and total <= most:
        # It is written meanwhile.
        with suppress(OSError), os.scandir(left.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        left.append(entry.path)
                    # An empty file costs as well.
                    total += 512 * entry.stat(follow_symlinks=False).st_blocks + 512
                if total > most:
                    break
    return total


def _size_of_output() -> int:
    """Bytes of the file that this process, and what it starts, print into; 0 where that is none, as a terminal."""
    try:
        facts = os.fstat(1)
    except OSError:
        return 0
    return 512 * facts.st_blocks if stat.S_ISREG(facts.st_mode) else 0
