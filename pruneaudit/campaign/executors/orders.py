"""What a session wants computed elsewhere: written by who needs it, read by who submits it. Imports no torch.

Workers of one session plan the same runs and only wait for them; the session's controller alone knows the cluster. They
meet in a folder of the ledger, which all of them see, so that neither has to be told of the other::

    tasks/SESSION/wanted-DIGEST.json    runs that somebody waits for, parents first
    tasks/SESSION/stopped.json          why nobody need wait any more

Whatever a scheduler keeps of its own (scripts, what tasks print) is beside them.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter
from pydantic_core import from_json

from pruneaudit.ledger.records import RunSpec
from pruneaudit.ledger.store import Ledger, read_file, storage_error, write_json

_RUNS = TypeAdapter(tuple[RunSpec, ...])


class Orders:
    """The folder of one session.

    Args:
        ledger: Where the runs are to be.
        session: Id of the session.
    """

    def __init__(self, ledger: Ledger, session: str) -> None:
        self.folder = ledger.root.absolute() / "tasks" / session
        self._ledger = ledger
        self._read: set[str] = set()

    def want(self, runs: Sequence[RunSpec]) -> None:
        """Ask for runs, parents first. Who asks for what another asked for changes nothing.

        Raises:
            StorageError: The ledger cannot be written.
        """
        ids = " ".join(run.run_id for run in runs)
        path = self.folder / f"wanted-{hashlib.sha256(ids.encode()).hexdigest()[:16]}.json"
        if runs and not path.exists():
            self._write(path, [run.model_dump(mode="json", exclude_defaults=True) for run in runs])

    def wanted(self) -> list[RunSpec]:
        """Runs that were asked for since this was called last, parents first."""
        found: dict[str, RunSpec] = {}
        for path in sorted(self.folder.glob("wanted-*.json")):
            if path.name not in self._read:
                self._read.add(path.name)
                for run in _RUNS.validate_python(from_json(read_file(path))):
                    found.setdefault(run.run_id, run)
        return list(found.values())

    def stop(self, reason: str) -> None:
        """Say in one line that nothing more will come, and why: who waits gives up."""
        self._write(self.folder / "stopped.json", {"reason": reason})

    def stopped(self) -> str | None:
        """Why nothing more will come; None: it may."""
        path = self.folder / "stopped.json"
        return str(from_json(read_file(path))["reason"]) if path.exists() else None

    def remove(self) -> None:
        """Nobody waits for anything any more."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            # Another session may have its own.
            self.folder.parent.rmdir()

    def _write(self, path: Path, content: object) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, content)
        except OSError as error:
            raise storage_error(error, self._ledger.root) from None
