"""Locks of a ledger: who holds one alone may train a run, or write a plan.

Two kinds, of which a ledger has one, noted in it when it is made, so that all hosts agree:

- ``system``: of the operating system (``flock``). It costs nothing and is free the moment its holder dies. On file
  systems that hosts share it may be given to two processes at once (NFS version 3 without a lock manager).
- ``lease``: a file that only one process can make, and that its holder touches every few seconds. Who sees it
  unchanged for ``LEASE`` seconds takes it over, and at once where the holder was a process of this host that is no
  more. Seconds are counted by the clock of who waits, from a change that it sees to the next: clocks that differ do no
  harm.

A holder that was stopped for longer than a lease goes on when it wakes up, beside the one who took over. Both then
train the same numbers, and who commits first is believed (:meth:`~.store.Ledger.commit`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from filelock import BaseFileLock, FileLock, SoftFileLease

from pruneaudit.errors import ConfigError

Kind = Literal["system", "lease"]
KINDS: tuple[Kind, ...] = ("system", "lease")
#: Says of new ledgers which kind they have, in place of what their file system says.
LOCKS_VARIABLE = "PRUNEAUDIT_LOCKS"
#: Seconds without a sign of life after which a lease is anybody's, and between two signs.
LEASE, HEARTBEAT = 20.0, 4.0
#: File systems that hosts share, as Linux names them.
_SHARED = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "beegfs", "ceph", "glusterfs", "gpfs", "lustre", "wekafs")
)


class Locks:
    """The locks in a folder.

    Args:
        folder: The folder.
        kind: Their kind.
    """

    def __init__(self, folder: Path, kind: Kind) -> None:
        self._folder = folder
        self.kind = kind
        # A lease is watched from one look to the next: who forgets what was seen never sees it expire.
        self._leases: dict[str, BaseFileLock] = {}

    def of(self, name: str) -> BaseFileLock:
        """The lock with a name; acquiring it where another holds it raises ``filelock.Timeout``."""
        if self.kind == "system":
            return FileLock(self._folder / f"{name}.lock")
        if name not in self._leases:
            self._leases[name] = SoftFileLease(
                self._folder / f"{name}.lease", lease_duration=LEASE, heartbeat_interval=HEARTBEAT
            )
        return self._leases[name]


def kind_for(folder: Path) -> Kind:
    """Which kind a new ledger gets: what ``$PRUNEAUDIT_LOCKS`` says, else what its file system asks for.

    Raises:
        ConfigError: There is no such kind.
    """
    chosen = os.environ.get(LOCKS_VARIABLE)
    if chosen is None:
        return "lease" if is_shared(folder) else "system"
    for kind in KINDS:
        if chosen == kind:
            return kind
    raise ConfigError(f"{LOCKS_VARIABLE} is '{chosen}'; it is one of: {', '.join(KINDS)}")


def is_shared(folder: Path) -> bool:
    """Whether a folder lies where other hosts may see it, as far as the system tells."""
    kind = _file_system(folder)
    # What programs serve (FUSE) is mostly the disk of another machine: sshfs, s3fs, gcsfuse.
    return kind in _SHARED or kind.startswith("fuse.")


def _file_system(folder: Path) -> str:
    """Name of the file system that a folder is on, or will be; empty where nobody tells."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    place = place.resolve()
    found, longest = "", -1
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    for line in mounts:
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or not kind:
            continue
        # Blanks and the like are written as numbers: a name that has some is compared as it is written.
        point = Path(fields[4].encode().decode("unicode_escape", errors="replace"))
        if place.is_relative_to(point) and len(point.parts) >= longest:
            found, longest = kind[0], len(point.parts)
    return found
