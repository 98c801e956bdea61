"""Takes a process's access to files, hosts and other processes away for good, where the kernel helps.

Landlock (Linux 5.13; ``man 7 landlock``) lets a process without privileges restrict itself and all that it starts. It
knows allowed places only, so that a forbidden one is left out: everything beside it is allowed instead. It says nothing
of times, modes and owners of files, of other networks than TCP, of what the kernel keeps for processes that are gone,
of limits and turns of other processes, and of what concerns the whole machine: there a filter of system calls (``man 2
seccomp``) refuses what Landlock lets through.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import stat
import struct
import sys
from collections.abc import Iterable, Iterator, Set
from contextlib import suppress
from functools import cache
from pathlib import Path

# The same numbers on all architectures.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH = 1
_SET_NO_NEW_PRIVILEGES, _CHILD_SUBREAPER, _PARENT_DEATH_SIGNAL = 38, 36, 1

# Rights, by bit: see include/uapi/linux/landlock.h.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = (1 << bit for bit in range(4))
_TRUNCATE, _IOCTL = 1 << 14, 1 << 15
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_ALL = (1 << 16) - 1
#: Making, moving and removing files, of any kind; and making devices alone: each is a way to the whole disk.
_CHANGE_FOLDERS, _MAKE_DEVICES = 0x3FF << 4, (1 << 6) | (1 << 11)
#: What programs need of ``/dev``, by how it begins: nothing, chance, what they printed to, and processors of graphics.
_NEEDED_DEVICES = ("null", "zero", "full", "random", "urandom", "shm", "nvidia", "dri", "kfd", "dxg")
#: How many of these rights each version of Landlock knows.
_KNOWN = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_TCP = 0b11

#: What the filter refuses, by the numbers of x86-64 and of aarch64 (include/uapi/asm-generic/unistd.h); -1: not there.
#: What the kernel keeps when a process is gone: memory, semaphores and queues of System V, queues of POSIX, keys.
_KEPT = {"shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180)}
_KEPT |= {"add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219)}
#: What changes times, modes, owners and attributes of files, whatever Landlock says of their content.
_MARKS = {"chmod": (90, -1), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452)}
_MARKS |= {"chown": (92, -1), "fchown": (93, 55), "lchown": (94, -1), "fchownat": (260, 54)}
_MARKS |= {"utime": (132, -1), "utimes": (235, -1), "futimesat": (261, -1), "utimensat": (280, 88)}
_MARKS |= {"setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7)}
#: What does all that behind a filter's back.
_BEHIND = {"io_uring_setup": (425, 425), "open_by_handle_at": (304, 265), "bpf": (321, 280)}
#: What concerns the whole machine, for processes that may do it: its clock, name, modules, swap, end.
_MACHINE = {
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
}
_MACHINE |= {"sethostname": (170, 161), "setdomainname": (171, 162), "reboot": (169, 142), "acct": (163, 89)}
_MACHINE |= {"init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106)}
_MACHINE |= {"kexec_load": (246, 104), "kexec_file_load": (320, 294), "swapon": (167, 224), "swapoff": (168, 225)}
_MACHINE |= {"iopl": (172, -1), "ioperm": (173, -1), "perf_event_open": (298, 241)}
#: What slows processes of the same user down: all of them at once.
_MACHINE |= {"setpriority": (141, 140), "ioprio_set": (251, 30)}
#: What sets limits, processors and turns of any process of the same user: for the caller alone, by the number 0.
_OF_ANYBODY = {"prlimit64": (302, 261), "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119)}
_OF_ANYBODY |= {"sched_setparam": (142, 118), "sched_setattr": (314, 274)}
#: What types for the user: TIOCSTI and TIOCLINUX of the terminal that a process prints to.
_IOCTL_CALL, _TYPES = (16, 29), (0x5412, 0x541C)
_SOCKET = (41, 198)
#: Families of sockets that leave the machine, or speak to others on it: IPv4, IPv6, packets, virtual machines.
_FAMILIES = (2, 10, 17, 40)
#: Of each machine its column above, its name for the filter, and the number of the call that installs one.
_MACHINES = {"x86_64": (0, 0xC000003E, 317), "aarch64": (1, 0xC00000B7, 277)}
#: Calls of x86-64's other convention have this bit.
_X32 = 0x40000000
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11
#: Shared memory of processes: files that stay when who made them is gone.
_MEMORY = Path("/dev/shm")
_NEW_MOUNTS, _NEW_USER = 0x20000, 0x10000000
_PRIVATE_BELOW, _NO_DEVICES_NO_SETUID = (1 << 14) | (1 << 18), (1 << 1) | (1 << 2)


def version() -> int:
    """Version of Landlock that this kernel offers; 0: none."""
    if not sys.platform.startswith("linux"):
        return 0
    try:
        return max(0, _call(_CREATE_RULESET, None, 0, 1))
    except OSError:
        return 0


def own_memory(needed: Iterable[Path]) -> bool:
    """Give this process, and what it starts from now on, shared memory of its own, which ends with them.

    An empty ``/dev/shm`` in a namespace of mounts, where privileges or the kernel (``man 7 user_namespaces``) allow
    one; Landlock keeps the process from taking it away again. Only for a process with one thread.

    Args:
        needed: Files and folders that must stay to be seen.

    Returns:
        Whether it has; False: all is as before, and nobody else's memory was touched.
    """
    if not _MEMORY.is_dir() or any(_MEMORY in (path, *path.parents) for path in map(Path.resolve, needed)):
        return False
    library = _library()
    user, group = os.geteuid(), os.getegid()
    try:
        if library.unshare(_NEW_MOUNTS):
            if library.unshare(_NEW_MOUNTS | _NEW_USER):
                return False
            # Whoever this was, it still is.
            maps = {"setgroups": "deny", "uid_map": f"{user} {user} 1", "gid_map": f"{group} {group} 1"}
            for name, text in maps.items():
                Path("/proc/self", name).write_text(text, encoding="ascii")
        if library.mount(None, b"/", None, _PRIVATE_BELOW, None):
            return False
        options = b"size=50%,mode=1777"
        return not library.mount(b"tmpfs", bytes(_MEMORY), b"tmpfs", _NO_DEVICES_NO_SETUID, options)
    except (OSError, AttributeError):
        return False


def confine(hidden: Iterable[Path], scratch: Path, memory: bool = True) -> str:
    """Confine this process, and what it starts from now on, for good.

    Everything may be read but what is hidden, and devices that programs do not need; nothing may be written but a
    scratch folder and the others. Where the kernel
    can do so, no TCP connection is made, no abstract socket reached and no process outside signalled. Files that are
    open already stay open.

    Args:
        hidden: Files and folders that cannot be read. What comes to lie beside them later cannot be either.
        scratch: Folder that may be written.
        memory: Whether shared memory may be written, too: it is its own, see :func:`own_memory`.

    Returns:
        What confines it, such as ``Landlock 7, seccomp``; empty: this kernel has nothing, and all is as before.
    """
    known = version()
    by = [_restrict(known, hidden, scratch, memory)] if known else []
    return ", ".join([*by, *(["seccomp"] if _filter_calls() else [])])


def _restrict(known: int, hidden: Iterable[Path], scratch: Path, memory: bool) -> str:
    """Confine this process by Landlock."""
    rights = _ALL & ((1 << _KNOWN[min(known, 5)]) - 1)
    attributes = struct.pack(
        "QQQ", rights, _TCP if known >= 4 else 0, _ABSTRACT_SOCKETS_AND_SIGNALS if known >= 6 else 0
    )
    # Kernels refuse attributes that they do not know.
    attributes = attributes[: 24 if known >= 6 else 16 if known >= 4 else 8]
    ruleset = _call(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        _allow(ruleset, Path("/"), _READ_DIR & rights)
        devices = list(_devices())
        for place in _beside([*(path.resolve() for path in hidden), *_other_processes(), *devices], Path("/")):
            _allow(ruleset, place, _READ & rights)
        for place in (scratch, *([_MEMORY] if memory else [])):
            _allow(ruleset, place, rights & ~_MAKE_DEVICES)
        for place in _beside([_MEMORY, *devices], Path("/dev")):
            _allow(ruleset, place, rights & ~_CHANGE_FOLDERS)
        _prctl(_SET_NO_NEW_PRIVILEGES, 1)
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return f"Landlock {known}"


def _other_processes() -> Iterator[Path]:
    """What there is to read of other processes; those that begin later have no place of their own, either.

    Landlock keeps their memory and environment from a confined process by itself, where the kernel asks it; some
    systems that only behave like Linux do not.
    """
    for place in Path("/proc").glob("[0-9]*"):
        if place.name != str(os.getpid()):
            yield place


def _devices() -> Iterator[Path]:
    """Devices that no method needs, and memory as a file.

    Root may read a disk, below whose files all data lie, or the kernel's log and a clock, in which a note would stay; a
    terminal keeps its settings; some act when they are opened.
    """
    with suppress(OSError):
        for entry in os.scandir("/dev"):
            if not entry.is_symlink() and not entry.name.startswith(_NEEDED_DEVICES):
                yield Path(entry.path)
    yield Path("/proc/kcore")


def filters_calls() -> bool:
    """Whether system calls can be filtered here."""
    known = sys.platform.startswith("linux") and platform.machine() in _MACHINES and sys.maxsize > 2**32
    # Of a kernel that knows filters, whether one is there or not.
    return known and "Seccomp:" in Path("/proc/self/status").read_text(encoding="ascii", errors="replace")


def _filter_calls() -> bool:
    """Have system calls refused that Landlock does not look at; False: this kernel or machine cannot."""
    if not filters_calls():
        return False
    column, machine, install = _MACHINES[platform.machine()]
    refused = _KEPT | _MARKS | _BEHIND | _MACHINE
    numbers = [both[column] for both in refused.values() if both[column] >= 0]
    own = [both[column] for both in _OF_ANYBODY.values()]
    program = _program(machine, numbers, _SOCKET[column], own, _IOCTL_CALL[column])
    code = ctypes.create_string_buffer(b"".join(program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    try:
        _prctl(_SET_NO_NEW_PRIVILEGES, 1)
        # Of all its threads.
        return not _call(install, 1, 1, header)
    except OSError:
        return False


def _program(machine: int, numbers: list[int], socket: int, own: list[int], ioctl: int) -> list[bytes]:
    """The filter, in instructions of the Berkeley packet filter: operation, two jumps, and a constant."""

    def step(operation: int, constant: int, then: int = 0, otherwise: int = 0) -> bytes:
        return struct.pack("HBBI", operation, then, otherwise, constant)

    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    allow, refuse = step(answer, 0x7FFF0000), step(answer, 0x00050000 | errno.EPERM)
    # Fields of what is filtered: number of the call 0, machine 4, arguments 16, 24. Jumps count from the next one on.
    families = [step(equal, family, then=len(_FAMILIES) - place) for place, family in enumerate(_FAMILIES)]
    of_sockets = [step(load, 16), *families, allow, refuse]
    body = [step(equal, socket, otherwise=len(of_sockets)), *of_sockets]
    of_oneself = [step(load, 16), step(equal, 0, then=1), refuse, allow]
    for number in own:
        body += [step(equal, number, otherwise=len(of_oneself)), *of_oneself]
    requests = [step(equal, request, then=len(_TYPES) - place) for place, request in enumerate(_TYPES)]
    of_devices = [step(load, 24), *requests, allow, refuse]
    body += [step(equal, ioctl, otherwise=len(of_devices)), *of_devices]
    body += [step(equal, number, then=len(numbers) - place) for place, number in enumerate(numbers)]
    return [
        step(load, 4),
        step(equal, machine, then=1),
        refuse,
        step(load, 0),
        step(at_least, _X32, otherwise=1),
        refuse,
        *body,
        allow,
        refuse,
    ]


def _beside(hidden: Iterable[Path], place: Path) -> Iterator[Path]:
    """The largest places that hold everything below one but what is hidden."""
    closed = frozenset(hidden)
    yield from _open_below(place, closed, closed.union(*(path.parents for path in closed)))


def _open_below(place: Path, closed: Set[Path], parted: Set[Path]) -> Iterator[Path]:
    """The same; `parted` are all places which hold a hidden one, or are one."""
    if place not in parted:
        yield place
    elif place not in closed:
        with suppress(OSError):
            for entry in os.scandir(place):
                # A link is what it leads to: that place has a rule of its own.
                if not entry.is_symlink():
                    yield from _open_below(place / entry.name, closed, parted)


def _allow(ruleset: int, place: Path, rights: int) -> None:
    """Allow something for a place and all that is below."""
    try:
        there = os.open(place, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # it went away, or is not to be seen
    try:
        rights = rights if stat.S_ISDIR(os.fstat(there).st_mode) else rights & _OF_FILES
        _call(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, there), 0)
    finally:
        os.close(there)


@cache
def _library() -> ctypes.CDLL:
    """The C library: a rule for each of hundreds of files is hundreds of calls."""
    return ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: object) -> int:
    """A system call.

    Raises:
        OSError: It failed.
    """
    found = int(_library().syscall(number, *arguments))
    if found < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return found


def adopt_orphans() -> None:
    """Have what this process's descendants leave behind become its children (``man 2 prctl``).

    Raises:
        OSError: The system does not know that.
    """
    _prctl(_CHILD_SUBREAPER, 1)


def end_with_parent() -> None:
    """Have the system kill this process as soon as the thread that started it is gone; without Linux nothing changes.

    Raises:
        OSError: The system does not know that.
    """
    if sys.platform.startswith("linux"):
        _prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if _library().prctl(option, value, 0, 0, 0):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
