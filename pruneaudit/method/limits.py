"""What a method's process may take of the machine, so that one method ends alone and not the campaign with it.

The kernel holds it to its memory and to the size of a file (``man 2 setrlimit``); what it has written in all, and
printed, is looked at from outside. What it says and how long it is silent is the referee's to bound.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import threading
import time
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
        printed: Bytes that it may print.
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


class Printed:
    """What a process prints: pipes of its own, so that nobody who comes after it finds what it printed, or where.

    Attributes:
        theirs: Ends that the process writes into: what it prints, and errors.
    """

    def __init__(self) -> None:
        (printed, one), (errors, other) = os.pipe(), os.pipe()
        self.theirs = [one, other]
        # Where each end that is read goes to.
        self._ours = {printed: 1, errors: 2}
        self._bell, self._rope = os.pipe()

    def hand_over(self) -> None:
        """Close the ends that are the process's now."""
        while self.theirs:
            os.close(self.theirs.pop())

    def pass_on(self, wait: float) -> int:
        """Wait for something that is printed, pass on what there is, and say how many bytes.

        Args:
            wait: Seconds, at most; nobody waits any more once it was rung for.
        """
        count = 0
        for end in select.select([*self._ours, self._bell], [], [], wait)[0]:
            if end == self._bell:
                continue
            found = os.read(end, 1 << 16)
            count += len(found)
            # Nobody may read it.
            with suppress(OSError):
                left = memoryview(found)
                while left:
                    left = left[os.write(self._ours[end], left) :]
            if not found:
                os.close(end)
                del self._ours[end]
        return count

    def ring(self) -> None:
        """Let nobody wait."""
        os.write(self._rope, b"!")

    def close(self) -> None:
        """Read no more."""
        for end in (*self._ours, self._bell, self._rope):
            os.close(end)
        self._ours = {}


class Overseer:
    """Looks, while entered, at what a process writes and prints, and ends it where that is too much.

    Args:
        folder: The folder that it may write.
        limits: What it may take.
        end: Ends it.
        printed: What it prints.

    Attributes:
        why: What it did too much of; empty: nothing.
    """

    def __init__(self, folder: Path, limits: Limits, end: Callable[[], None], printed: Printed) -> None:
        self.why = ""
        self._folder, self._limits, self._end = folder, limits, end
        self._over = threading.Event()
        self._printed, self._count = printed, 0
        self._thread = threading.Thread(target=self._watch, name="pruneaudit-limits", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._printed.ring()
        self._thread.join()
        # What it printed last.
        while not self._is_too_much and (found := self._printed.pass_on(0)):
            self._count += found
        self._printed.close()

    @property
    def _is_too_much(self) -> bool:
        return self._count > self._limits.printed

    def look(self) -> bool:
        """Look now; say whether it was ended."""
        if not self.why and _size_of(self._folder, self._limits.written) > self._limits.written:
            self.why = f"writes more than {_amount(self._limits.written)} into its folder"
        if not self.why and self._is_too_much:
            self.why = f"prints more than {_amount(self._limits.printed)}"
        if self.why:
            self._end()
        return bool(self.why)

    def _watch(self) -> None:
        while not self._over.is_set() and not self.look():
            next_look = time.monotonic() + self._limits.look
            while not self._over.is_set() and not self._is_too_much and (left := next_look - time.monotonic()) > 0:
                self._count += self._printed.pass_on(left)


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
