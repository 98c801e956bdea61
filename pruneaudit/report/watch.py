"""Keeps the report of a ledger up to date while the ledger grows."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path

from rich.console import Console
from rich.text import Text

from pruneaudit.catalog.discovery import Catalog
from pruneaudit.errors import AuditError, ConfigError, one_line
from pruneaudit.ledger.progress import Watcher, plain
from pruneaudit.ledger.store import Ledger
from pruneaudit.report.results import Results, gather_ledger
from pruneaudit.report.writer import write

#: Seconds between looks at a ledger.
POLL = 3.0
#: Seconds between lines of progress where nobody watches a terminal.
PAUSE = 15.0
#: A report may take this share of the time: those of large ledgers are written less often.
_SHARE = 0.2
#: A folder that changed so many seconds ago may change again within one tick of its clock.
_UNSETTLED = 1.0


class Keeper:
    """Writes the report of a ledger again when cells were added or measured anew.

    Args:
        ledger: The ledger; it is not written to.
        folder: Folder of the report.
        study: Name or file of a study whose waivers count, or None.
        workloads: Workloads of the user's own, as for ``--audit-workload``.
    """

    def __init__(self, ledger: Ledger, folder: Path, study: str | None = None, workloads: tuple[str, ...] = ()) -> None:
        self.ledger = ledger
        self.folder = folder
        self.study = study
        self.workloads = workloads
        self._seen: int | None = None
        self._not_before = 0.0

    def is_due(self) -> bool:
        """Whether cells have changed since the last report, and that one was long enough ago."""
        return time.monotonic() >= self._not_before and self._changed() != self._seen

    def update(self) -> tuple[Results, list[Path]]:
        """Judge what the ledger holds and write the report, unless it holds no cell yet.

        Returns:
            What was found, and the files of the report.

        Raises:
            AuditError: The ledger cannot be judged as it is.
            OSError: The report cannot be written.
        """
        started = time.monotonic()
        # Noted before reading: what changes meanwhile is read the next time.
        changed = self._changed()
        self._seen = changed if time.time() - changed / 1e9 > _UNSETTLED else None
        try:
            catalog = Catalog(extra_workloads=self.workloads)
            results = gather_ledger(catalog, self.ledger, catalog.study(self.study) if self.study else None)
            return results, write(results, self.folder) if results.cells else []
        finally:
            ended = time.monotonic()
            self._not_before = ended + (ended - started) / _SHARE

    def _changed(self) -> int:
        """When a cell was last written, in nanoseconds: cells are renamed into their folder."""
        try:
            return (self.ledger.root / "cells").stat().st_mtime_ns
        except OSError:
            return 0


def watch(ledger: Path, folder: Path, study: str | None, console: Console, workloads: tuple[str, ...] = ()) -> None:
    """Write the report of a ledger again and again, and say how far the campaign is, until interrupted.

    Args:
        ledger: The ledger.
        folder: Folder of the report.
        study: Name or file of a study whose waivers count, or None.
        console: Where to say it: one line that changes on a terminal, a line now and then elsewhere.
        workloads: Workloads of the user's own, as for ``--audit-workload``.

    Raises:
        ConfigError: It is no ledger, or the report cannot be written.
    """
    keeper = Keeper(Ledger(ledger, writable=False), folder, study, workloads)
    watcher = Watcher(keeper.ledger)
    said = 0.0

    def say(text: str) -> None:
        # One line each, whatever the width: piped output is for other programs.
        console.print(Text(plain(text)), soft_wrap=True)

    with suppress(KeyboardInterrupt), console.status("") if console.is_terminal else nullcontext() as status:
        while True:
            if keeper.is_due():
                _update(keeper, say)
            state = watcher.look()
            line = state.line() if state.busy else "; ".join([*state.counts, "nobody trains here now"])
            if status is not None:
                status.update(Text(line))
            elif state.busy and time.monotonic() - said >= PAUSE:
                say(line)
                said = time.monotonic()
            time.sleep(POLL)


def _update(keeper: Keeper, say: Callable[[str], None]) -> None:
    try:
        results, paths = keeper.update()
    except AuditError as error:
        # Such as a record that was deleted by hand: the next cell gives another chance.
        say(f"no report: {one_line(error)}")
    except OSError as error:
        raise ConfigError(f"report {keeper.folder}: {error.strerror}; choose another folder with --to") from None
    else:
        done = f"wrote {paths[0].parent} ({results.attempted})" if paths else "the ledger holds no cell yet"
        say(f"{time.strftime('%H:%M:%S')} {done}")
