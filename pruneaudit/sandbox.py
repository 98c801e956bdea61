"""Takes a process's access to files, hosts and other processes away for good: Landlock, where the kernel has it.

Landlock (Linux 5.13; ``man 7 landlock``) lets a process without privileges restrict itself and all that it starts. It
knows allowed places only, so that a forbidden one is left out: everything beside it is allowed instead.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

# The same numbers on all architectures.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH = 1
_SET_NO_NEW_PRIVILEGES = 38

# Rights, by bit: see include/uapi/linux/landlock.h.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = (1 << bit for bit in range(4))
_TRUNCATE, _IOCTL = 1 << 14, 1 << 15
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_ALL = (1 << 16) - 1
#: How many of these rights each version of Landlock knows.
_KNOWN = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_TCP = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11


def version() -> int:
    """Version of Landlock that this kernel offers; 0: none."""
    if not sys.platform.startswith("linux"):
        return 0
    try:
        return max(0, _call(_CREATE_RULESET, None, 0, 1))
    except OSError:
        return 0


def confine(hidden: Iterable[Path], scratch: Path) -> str:
    """Confine this process, and what it starts from now on, for good.

    Everything may be read but what is hidden; nothing may be written but a scratch folder and devices. Where the kernel
    can do so, no TCP connection is made, no abstract socket reached and no process outside signalled. Files that are
    open already stay open.

    Args:
        hidden: Files and folders that cannot be read. What comes to lie beside them later cannot be either.
        scratch: Folder that may be written.

    Returns:
        What confines it, such as ``Landlock 7``; empty: this kernel has nothing, and all is as before.
    """
    known = version()
    if not known:
        return ""
    rights = _ALL & ((1 << _KNOWN[min(known, 5)]) - 1)
    attributes = struct.pack(
        "QQQ", rights, _TCP if known >= 4 else 0, _ABSTRACT_SOCKETS_AND_SIGNALS if known >= 6 else 0
    )
    # Kernels refuse attributes that they do not know.
    attributes = attributes[: 24 if known >= 6 else 16 if known >= 4 else 8]
    ruleset = _call(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        _allow(ruleset, Path("/"), _READ_DIR & rights)
        for place in _beside([path.resolve() for path in hidden], Path("/")):
            _allow(ruleset, place, _READ & rights)
        for place in (scratch, Path("/dev")):
            _allow(ruleset, place, rights)
        _prctl(_SET_NO_NEW_PRIVILEGES, 1)
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return f"Landlock {known}"


def _beside(hidden: list[Path], place: Path) -> Iterator[Path]:
    """The largest places that hold everything below one but what is hidden."""
    if not any(place == path or place in path.parents for path in hidden):
        yield place
    elif place not in hidden:
        with suppress(OSError):
            for entry in os.scandir(place):
                # A link is what it leads to: that place has a rule of its own.
                if not entry.is_symlink():
                    yield from _beside(hidden, place / entry.name)


def _allow(ruleset: int, place: Path, rights: int) -> None:
    """Allow something for a place and all that is below."""
    try:
        there = os.open(place, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # it went away, or is not to be seen
    try:
        rights = rights if place.is_dir() else rights & _OF_FILES
        _call(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, there), 0)
    finally:
        os.close(there)


def _call(number: int, *arguments: object) -> int:
    """A system call.

    Raises:
        OSError: It failed.
    """
    library = ctypes.CDLL(None, use_errno=True)
    found = int(library.syscall(number, *arguments))
    if found < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return found


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
