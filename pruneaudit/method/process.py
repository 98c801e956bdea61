"""Starts processes in which foreign methods run, each fresh, and speaks with them."""

from __future__ import annotations

import atexit
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from pruneaudit.catalog.discovery import MethodSource
from pruneaudit.errors import AuditError, MethodError, one_line, printable
from pruneaudit.ledger.chain import keys_folder
from pruneaudit.method import child, words
from pruneaudit.method.channel import MOST_TENSORS, HungUpError, Line, Message, SilentError
from pruneaudit.method.limits import Limits, Overseer, Printed
from pruneaudit.training.loop import DivergedError
from pruneaudit.training.runtime import Runtime

#: Seconds in which all that a method started is ended.
_GONE = 10.0
#: Letters of what went wrong over there, and of the traceback that goes with it.
MOST_TEXT, MOST_TRACE = 2_000, 50_000


class ElsewhereError(Exception):
    """What was raised in a method's process: its traceback, as text."""


class Origin:
    """The process from which methods' processes are forked: it imported this project, and nothing else."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        code = f"import sys; sys.path[:] = {sys.path!r}; from pruneaudit.method.child import main; main()"
        # Without NVML, to ask whether there is a GPU starts CUDA, which no fork could use.
        environment = _plain_environment() | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        self._process = subprocess.Popen([sys.executable, "-c", code], stdin=theirs.fileno(), env=environment)
        theirs.close()
        self._door, self._ready = ours, False
        self._owner = os.getpid()

    @property
    def lives(self) -> bool:
        """Whether it can still fork for this process."""
        return self._owner == os.getpid() and self._process.poll() is None

    def fork(self, works: bool, most: int, prints: Sequence[int]) -> tuple[Line, int, int]:
        """A new process: the line to it, its id, and the id of the process that sees that nothing is left of it.

        Args:
            works: Whether its job has to do with networks: what that takes is imported before it is forked.
            most: Bytes of tensors that it may say at once.
            prints: Where it prints to, and where it prints errors to.

        Raises:
            MethodError: None can be started.
        """
        ours, theirs = socket.socketpair()
        try:
            if not self._ready and self._door.recv(1) != b"!":
                raise OSError("it ended while it started")
            self._ready = True
            socket.send_fds(self._door, [child.WORKS if works else child.ANY], [theirs.fileno(), *prints])
            ids = self._door.recv(16, socket.MSG_WAITALL)
            if len(ids) < 16:
                raise OSError("it ended")
        except OSError as error:
            ours.close()
            raise MethodError(f"no process can be started for a method: {one_line(error)}") from None
        finally:
            theirs.close()
        return Line(ours, most), int.from_bytes(ids[:8], "big"), int.from_bytes(ids[8:], "big")

    def end(self) -> None:
        """Let it end."""
        self._door.close()
        if self._owner == os.getpid():
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)


_origin: Origin | None = None


def warm() -> Origin:
    """Start the process from which methods' processes are forked, unless it runs: importing torch takes a while."""
    global _origin
    if _origin is None or not _origin.lives:
        if _origin is None:
            atexit.register(lambda: _origin.end() if _origin is not None else None)
        _origin = Origin()
    return _origin


def _plain_environment() -> dict[str, str]:
    """Environment variables without those that tell a method which test runs."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}


def _wait_for(pid: int) -> None:
    """Wait until a process that is no child of this one is over, for some seconds at most."""
    with suppress(OSError, AttributeError):
        known = os.pidfd_open(pid)
        try:
            select.select([known], [], [], _GONE)
        finally:
            os.close(known)


class Process:
    """A method's process, while entered: it is told its job, heard, and ended.

    Args:
        source: The method.
        off_limits: What it has no business with.
        patience: Seconds that it may say nothing.
        works: Whether its job has to do with networks.
        limits: What it may take of the machine; None: what is usual.
        tensors: Bytes of tensors that it may say at once.
        most: Seconds that it may be waited for in all: who answers slowly for ever comes to an end.

    Attributes:
        isolation: What keeps it apart, for the record.
    """

    def __init__(
        self,
        source: MethodSource,
        off_limits: Mapping[str, Sequence[Path]] | None = None,
        patience: float = Runtime.patience,
        works: bool = True,
        limits: Limits | None = None,
        tensors: int = MOST_TENSORS,
        most: float = Runtime.most,
    ) -> None:
        self.name = source.name
        self.isolation = "process"
        # Whatever its job is, it signs nothing.
        self._source, self._off_limits = source, {"keys": [keys_folder()], **(off_limits or {})}
        self._patience, self._works, self._limits = patience, works, limits or Limits()
        self._most = self._left = most
        self._tensors = tensors
        self._overseer: Overseer | None = None
        self._line: Line | None = None
        self._pid = self._watcher = 0
        self._folder = ""

    def __enter__(self) -> Self:
        printed = Printed()
        try:
            self._line, self._pid, self._watcher = warm().fork(self._works, self._tensors, printed.theirs)
        except BaseException:
            printed.close()
            raise
        finally:
            printed.hand_over()
        self._folder = tempfile.mkdtemp(prefix="pruneaudit-")
        start = child.Start(
            replace(self._source, outside=None),
            Path.cwd(),
            list(sys.path),
            _plain_environment(),
            Path(self._folder),
            self._off_limits,
            self._limits,
        )
        self._overseer = Overseer(Path(self._folder), self._limits, self._kill, printed)
        self._overseer.__enter__()
        self.tell(start)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._line is not None
        self._line.close()
        self._kill()
        _wait_for(self._watcher)
        # What it printed last is passed on, too.
        if self._overseer is not None:
            self._overseer.__exit__()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _kill(self) -> None:
        """End it: it may be in the middle of something, and what it started with it."""
        with suppress(OSError):
            os.killpg(self._pid, signal.SIGKILL)
        with suppress(OSError):
            os.kill(self._pid, signal.SIGKILL)

    def tell(self, thing: Any) -> None:
        """Say something to it.

        Raises:
            MethodError: It is gone, or does not listen.
        """
        assert self._line is not None
        with self._waiting() as patience:
            self._line.tell(thing, patience)

    @contextmanager
    def _waiting(self) -> Iterator[float]:
        """Count the time for which it is waited for; gives the seconds that this may be now.

        Raises:
            MethodError: It is gone, or lets wait for too long, now or in all.
        """
        began = time.monotonic()
        try:
            yield min(self._patience, max(self._left, 0.0))
        except SilentError as error:
            if self._left <= self._patience:
                hours = f"{self._most / 3600:.3g} hours"
                raise MethodError(
                    f"method '{self.name}': its process was waited for {hours} in all, as long as a stage may take; "
                    "give --audit-stage-limit more hours if it needs them"
                ) from None
            raise self._gone(error) from None
        except HungUpError as error:
            raise self._gone(error) from None
        finally:
            self._left -= time.monotonic() - began

    def _gone(self, error: HungUpError) -> MethodError:
        """Why it says nothing more: it may have been ended."""
        why = self._overseer.why if self._overseer is not None else ""
        return MethodError(f"method '{self.name}': its process {why or error}")

    def hear(self) -> Message:
        """What it says next.

        Raises:
            MethodError: It is gone, silent, or tells that something went wrong.
        """
        assert self._line is not None
        with self._waiting() as patience:
            said = self._line.hear(patience)
        try:
            said = replace(said, facts=words.read(said.kind, said.facts))
        except ValueError as error:
            word = f"its process says '{said.kind[:100]}' and not what: {error}"
            raise MethodError(f"method '{self.name}': {printable(word)}") from None
        if said.kind == "confined":
            by = said.facts["by"]
            self.isolation = f"process, {by}" if by else "process"
            return self.hear()
        if said.kind == "error":
            raise self._error(said.facts)
        return said

    def _error(self, facts: Mapping[str, Any]) -> AuditError:
        text = printable(" ".join(facts["text"][:MOST_TEXT].split()))
        kinds: dict[str, type[AuditError]] = {"DivergedError": DivergedError}
        kind = kinds.get(facts["type"], MethodError)
        who = f"method '{self.name}'"
        # What a method raises may read like one of the referee's own lines, about whomever it likes.
        error = kind(text if who in text else f"{who}{'' if text.startswith('raised ') else ':'} {text}")
        error.__cause__ = ElsewhereError(f"in the method's own process:\n{facts['traceback'][-MOST_TRACE:]}")
        return error
