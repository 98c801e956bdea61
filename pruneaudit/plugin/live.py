"""How far a session is, on the terminal: bars that stay below what pytest prints, or a plain line now and then."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Mapping
from typing import Any, TextIO

import pytest
from rich.console import Console, ConsoleDimensions, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from pruneaudit.ledger.progress import State, Watcher
from pruneaudit.ledger.store import Ledger

#: Seconds between plain lines; a session shorter than the first pause prints none.
PAUSE = 15.0
#: Seconds between looks at the ledger, and between two drawings of the bars.
LOOK = 1.0
DRAW = 0.2


def wants_bars(config: pytest.Config, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether somebody watches a terminal that bars can be drawn on, and nothing else draws on it."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    option = config.option
    # With -s and in a debugger whatever a test prints goes to the terminal behind our back.
    debugged = getattr(option, "usepdb", False) or getattr(option, "trace", False)
    quiet = option.verbose < 0 or option.capture in ("no", "tee-sys") or debugged
    continuous = bool(environ.get("CI") or environ.get("BUILD_NUMBER"))
    dumb = environ.get("TERM", "") in ("", "dumb", "unknown")
    return reporter is not None and bool(reporter.isatty()) and not (quiet or continuous or dumb)


def bars(state: State, width: int, most: int) -> Group:
    """Bars of a campaign: one for all of it, and one for each process.

    Args:
        state: How far it is.
        width: Columns of the terminal.
        most: Lines for processes.
    """
    whole = Table.grid(padding=(0, 1))
    whole.add_column()
    whole.add_column(width=max(4, min(30, width // 6)))
    whole.add_column(no_wrap=True, overflow="ellipsis")
    facts = " · ".join([*state.counts, *([state.left] if state.left else [])])
    whole.add_row(Text("pruneaudit", style="bold"), _bar(state.share), Text(facts))
    processes = Table.grid(padding=(0, 1))
    processes.add_column(no_wrap=True, overflow="ellipsis")
    processes.add_column(width=max(4, min(30, width // 6)))
    processes.add_column(no_wrap=True)
    shown = state.busy if len(state.busy) <= most else state.busy[: most - 1]
    for training in shown:
        epoch = "prunes" if training.unit else ""
        if training.epochs:
            epoch = f"{training.unit} {training.epoch}/{training.epochs}"
        reached = f" · {training.reached}" if training.reached else ""
        processes.add_row(Text(training.run), _bar(training.share()), Text(f"{epoch}{reached}"))
    if len(shown) < len(state.busy):
        processes.add_row(Text(f"and {len(state.busy) - len(shown)} more"))
    return Group(whole, *([processes] if state.busy else []))


def _bar(share: float) -> ProgressBar:
    return ProgressBar(total=1.0, completed=share)


class _Raw:
    """Text that goes to the terminal as it is, colours and all."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Segment(self.text)


class Screen(io.TextIOBase):
    """The terminal while a session runs: what is written scrolls by, above something that stays.

    Dots make a line that is open for long. It is drawn as the first line of what stays, until it is complete.
    Writing is for one thread, drawing for another.

    Args:
        file: The terminal.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._line = ""
        # What was written since the last drawing; None: nothing is drawn, text goes straight on.
        self._held: list[str] | None = None
        self._live: Live | None = None

    def write(self, text: str) -> int:
        """Print text, now or with the next drawing."""
        with self._lock:
            if self._held is None:
                self._file.write(text)
                self._line = (self._line + text).rpartition("\n")[2]
            else:
                self._held.append(text)
        return len(text)

    def flush(self) -> None:
        """Let the terminal have it; what is held stays so until the next drawing."""
        with self._lock:
            if self._held is None:
                self._file.flush()

    def isatty(self) -> bool:
        """Whether this is a terminal."""
        return self._file.isatty()

    def fileno(self) -> int:
        """Descriptor of the terminal."""
        return self._file.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Encoding of the terminal."""
        return self._file.encoding

    @property
    def is_drawn(self) -> bool:
        """Whether something stays below what is written."""
        return self._live is not None

    @property
    def is_waiting(self) -> bool:
        """Whether something was written that the next drawing prints."""
        return bool(self._held)

    def draw(self, state: State) -> None:
        """Print what was written since the last drawing, and the bars below it."""
        size = os.get_terminal_size(self.fileno())
        if self._live is None:
            self._live = self._begin(size.columns)
        console = self._live.console
        console.size = ConsoleDimensions(size.columns, size.lines)
        whole = self._take()
        if whole:
            console.print(_Raw(whole), soft_wrap=True, end="")
        # A line that was begun anew with a carriage return shows its last version.
        opened = Text.from_ansi(self._line.rpartition("\r")[2], no_wrap=True, overflow="crop")
        drawn = bars(state, size.columns, most=max(1, size.lines // 2))
        self._live.update(Group(*([opened] if self._line else []), drawn), refresh=True)

    def clear(self) -> None:
        """Take the bars away; everything that was written stands there, and goes straight on from now."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        with self._lock:
            if self._held is not None:
                text = self._line + "".join(self._held)
                self._file.write(text)
                self._file.flush()
                self._line, self._held = text.rpartition("\n")[2], None

    def _begin(self, columns: int) -> Live:
        """Take over the line that is open."""
        with self._lock:
            self._held = []
            cells = Text.from_ansi(self._line.rpartition("\r")[2]).cell_len
            above = max(0, (cells - 1) // columns)
            self._file.write("\r" + f"\x1b[{above}A" * bool(above) + "\x1b[J")
        console = Console(file=self._file, force_terminal=True, highlight=False, markup=False, emoji=False)
        live = Live(
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )
        live.start()
        return live

    def _take(self) -> str:
        """Complete lines among what is held; the rest is the line that is open."""
        with self._lock:
            assert self._held is not None
            text = self._line + "".join(self._held)
            self._held.clear()
        whole, newline, self._line = text.rpartition("\n")
        return whole + newline


class Teller:
    """Tells on the terminal how far a session is, as long as it is entered.

    Args:
        config: The session's configuration.
        ledger: Where its processes say what they do.
    """

    def __init__(self, config: pytest.Config, ledger: Ledger) -> None:
        self._config = config
        self._reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
        self._with_bars = wants_bars(config)
        self._ledger = ledger
        self._started = time.time()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._tell, daemon=True)

    def __enter__(self) -> Teller:
        if self._reporter is not None:
            # Nothing public lets anybody else have what pytest prints.
            writer = self._reporter._tw
            self._before: TextIO = writer._file
            self._before.flush()
            self._own = _second(self._before)
            self._screen = Screen(self._own or self._before)
            writer._file = self._screen
            self._config.pluginmanager.register(self, "pruneaudit-teller")
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._reporter is not None:
            self.stop()
            self._config.pluginmanager.unregister(self)
            self._reporter._tw._file = self._before
            if self._own is not None:
                self._own.close()

    def pytest_enter_pdb(self) -> None:
        """Leave the terminal to the debugger."""
        self.stop()

    def stop(self) -> None:
        """Say nothing any more, and leave nothing on the terminal but what pytest printed."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._screen.clear()

    def _tell(self) -> None:
        try:
            if self._with_bars:
                self._draw_bars()
            else:
                self._print_lines()
        finally:
            # Whatever went wrong: pytest's own output is not held back.
            self._screen.clear()

    def _print_lines(self) -> None:
        watcher = Watcher(self._ledger, self._started)
        while not self._stop.wait(PAUSE):
            state = watcher.look()
            if state.busy:
                minutes = (state.time - self._started) / 60
                # The line of dots is not ours to end politely: pytest does not know that it is open.
                self._reporter.write(f"\n[pruneaudit {minutes:.1f} min] {state.line()}\n", flush=True)

    def _draw_bars(self) -> None:
        watcher = Watcher(self._ledger, self._started)
        state, next_look = State(self._started), 0.0
        while not self._stop.wait(DRAW):
            looks = time.monotonic() >= next_look
            if looks:
                before = time.monotonic()
                state = watcher.look()
                now = time.monotonic()
                # Training may be in this process: thousands of runs are looked at less often.
                next_look = now + max(LOOK, 50 * (now - before))
            # Nothing is drawn before something trains.
            begun = self._screen.is_drawn or bool(state.busy)
            if begun and (looks or self._screen.is_waiting):
                self._screen.draw(state)


def _second(file: TextIO) -> TextIO | None:
    """The same terminal, pipe or file by a descriptor of its own: while a test runs, pytest diverts the usual one.

    None where there is no descriptor.
    """
    try:
        descriptor = os.dup(file.fileno())
    except (OSError, ValueError):
        return None
    return open(descriptor, "w", encoding=file.encoding, errors="backslashreplace")
