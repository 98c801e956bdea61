"""Ctrl-C and SIGTERM: a process of a session stops within seconds, wherever it is, and leaves none behind."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

#: Seconds from a signal to the end of the process that the user started, at most, and of a worker.
PATIENCE, WORKER_PATIENCE = 4.0, 1.5
#: What stops a session, and what a shell says of a process that it ended.
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Interrupts:
    """What a process does when it is told to stop; for its main thread, other threads get nothing of it.

    A signal raises ``KeyboardInterrupt`` where the main thread is, most of all between two steps of a training. An
    exception may be lost (in a finaliser) or held up (in a method, in a library's loop): after a while the process ends
    as it stands. Nothing is lost by that, since the ledger is whole at any moment.

    Args:
        patience: Seconds from the first signal to the end of the process, at most.
        at_once: Called when the first signal comes, from another thread.
        at_last: Called before the process is ended as it stands, from any thread.

    Attributes:
        signal: The first signal that came; None: none did.
        raises: Whether another signal raises again; where nobody would catch that, it ends the process.
    """

    def __init__(
        self,
        patience: float,
        at_once: Callable[[], None] = lambda: None,
        at_last: Callable[[], None] = lambda: None,
    ) -> None:
        self.signal: signal.Signals | None = None
        self.raises = True
        self._patience, self._at_once, self._at_last = patience, at_once, at_last
        self._before: dict[signal.Signals, Any] = {}
        self._wakeup = -1
        self._sockets: tuple[socket.socket, socket.socket] | None = None
        self._process = os.getpid()

    @property
    def status(self) -> int:
        """Exit status of a process that the signal ended."""
        return STATUS[self.signal or signal.SIGINT]

    def install(self) -> None:
        """Listen to signals from now on."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in STATUS:
            # A command in the background of a shell is to ignore Ctrl-C.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        # The main thread may be in compiled code for long; a thread hears of a signal at once.
        self._sockets = socket.socketpair()
        self._sockets[1].setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._sockets[1].fileno(), warn_on_full_buffer=False)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.restore)
        threading.Thread(target=self._listen, args=(self._sockets[0],), daemon=True).start()

    def restore(self) -> None:
        """Leave signals to who had them before; so do forks, which are ended by others."""
        if self._sockets is None:
            return
        signal.set_wakeup_fd(self._wakeup)
        for number, before in self._before.items():
            signal.signal(number, before)
            if self.signal is not None and os.getpid() == self._process:
                # Who is impatient finds the interpreter tidying up: nothing there expects an exception.
                atexit.register(signal.signal, number, signal.SIG_IGN)
        self._before = {}
        self._sockets[1].close()
        self._sockets = None

    def end(self) -> None:
        """End the process as it stands."""
        self._at_last()
        os._exit(self.status)

    def _handle(self, number: int, frame: object) -> None:
        if os.getpid() != self._process:
            # A fork that has not come to restoring them yet.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.signal = self.signal or signal.Signals(number)
        if not self.raises:
            self.end()
        raise KeyboardInterrupt

    def _listen(self, heard: socket.socket) -> None:
        with heard:
            while number := heard.recv(1):
                if number[0] in self._before:
                    self.signal = self.signal or signal.Signals(number[0])
                    break
            else:
                return
            self._at_once()
            time.sleep(self._patience)
            # Restored: the session is over, and the process may live on.
            if self._sockets is not None:
                self.end()


class Leash:
    """Tells workers on this machine that their controller stops or is gone.

    A pipe that the system closes, whatever happened to who held it.

    Attributes:
        path: The pipe that workers follow; empty where the system has none that have names.
    """

    def __init__(self) -> None:
        self.path = ""
        self._held: int | None = None
        if hasattr(os, "mkfifo"):
            self._folder = tempfile.TemporaryDirectory(prefix="pruneaudit-", ignore_cleanup_errors=True)
            self.path = os.path.join(self._folder.name, "leash")
            os.mkfifo(self.path, 0o600)
            # For reading, too: to open it for writing only would wait for a reader.
            self._held = os.open(self.path, os.O_RDWR)
            os.register_at_fork(after_in_child=self._close)

    def let_go(self) -> None:
        """Have the workers stop."""
        if self._held is not None:
            self._close()
            self._folder.cleanup()

    def _close(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            os.close(held)


def follow(path: str) -> None:
    """Have this worker stop as if by SIGTERM when its controller lets go of a leash, or is gone.

    Args:
        path: The leash; of a controller on another machine it is not here, and nothing happens.
    """
    try:
        held = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return
    os.set_blocking(held, True)

    def wait() -> None:
        os.read(held, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
