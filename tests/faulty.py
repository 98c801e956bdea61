"""A disk that fails: the n-th write below a folder, and all after it, are refused by the system."""

import contextlib
import errno
import os
import sys
from pathlib import Path

_WRITES = ("os.mkdir", "os.rename", "open")
_armed = []


class Disk:
    """What is counted, and from which write on it is refused.

    Args:
        root: Folder that is on the disk.
        after: Writes that still go well; None: all.
        code: What the system says then.
    """

    def __init__(self, root, after=None, code=errno.ENOSPC):
        self.root, self.after, self.code = str(root), after, code
        self.writes = 0

    def hear(self, event, arguments):
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        path = arguments[1 if event == "os.rename" else 0]
        # A lock holds nothing: that it is opened is no write of content.
        if not isinstance(path, str | bytes | Path) or ".lock" in os.fsdecode(path):
            return
        if os.fsdecode(path).startswith(self.root):
            self.writes += 1
            if self.after is not None and self.writes > self.after:
                raise OSError(self.code, os.strerror(self.code), os.fsdecode(path))


def _hear(event, arguments):
    if _armed and event in _WRITES:
        for disk in _armed:
            disk.hear(event, arguments)


@contextlib.contextmanager
def disk(root, after=None, code=errno.ENOSPC):
    """The disk, for a while; audit hooks stay, so there is one for all."""
    if not getattr(sys, "_faulty", False):
        sys.addaudithook(_hear)
        sys._faulty = True
    _armed.append(found := Disk(root, after, code))
    try:
        yield found
    finally:
        _armed.remove(found)
