"""A live page of a ledger that may be growing, for a browser on this machine: progress, curves, cells, the report."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import mimetypes
import secrets
import socket
import socketserver
import tempfile
import threading
import time
from collections.abc import Callable
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import jinja2

from pruneaudit.errors import AuditError, ConfigError, one_line
from pruneaudit.ledger.progress import Watcher, plain
from pruneaudit.ledger.records import CellRecord
from pruneaudit.ledger.store import Ledger
from pruneaudit.report.watch import POLL, Keeper
from pruneaudit.version import __version__
from pruneaudit.workloads.metrics import ACCURACY, title

#: Rows of each list of cells on the page; points of each of its curves.
MOST_ROWS = 50
MOST_POINTS = 120
#: Seconds for which an answer is given again: many pages cost no more than one.
_FRESH = 1.0
#: Seconds that a client may take to ask.
_PATIENCE = 10.0
_EVERYWHERE = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_CLOSED = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
#: What a browser may run scripts of.
_ACTIVE = ("text/html", "image/svg+xml")
#: The report's own page says more narrowly which scripts are its own.
_REPORT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
    + _CLOSED
)


class Site:
    """What the server answers.

    Args:
        ledger: The ledger; it is not written to.
        folder: Where the report is written.
        workloads: Workloads of the user's own, as for ``--audit-workload``.
    """

    def __init__(self, ledger: Path, folder: Path, workloads: tuple[str, ...] = ()) -> None:
        self.ledger = Ledger(ledger, writable=False)
        # A handle of its own: records that it keeps are not shared between threads.
        self._keeper = Keeper(Ledger(ledger, writable=False), folder, workloads=workloads)
        self._watcher = Watcher(self.ledger)
        self._cells: dict[str, tuple[int, CellRecord | None]] = {}
        self._lock = threading.Lock()
        self._answer: tuple[float, bytes] = (0.0, b"")
        # Files that may be asked for, by their path below the page.
        self.files: dict[str, Path] = {}
        self._report: dict[str, Any] = {"page": None, "written": None, "error": ""}

    def keep_report(self, stop: threading.Event) -> None:
        """Write the report again and again, until told to stop: for a thread of its own."""
        while not stop.is_set():
            if self._keeper.is_due():
                self._update_report()
            stop.wait(POLL)

    def _update_report(self) -> None:
        try:
            _, paths = self._keeper.update()
        except (AuditError, OSError) as error:
            self._report = {**self._report, "error": plain(one_line(error))}
            return
        self.files = {path.relative_to(self._keeper.folder).as_posix(): path for path in paths}
        pages = [name for name in ("report.html", "report.md") if name in self.files]
        self._report = {"page": pages[0] if pages else None, "written": time.time() if pages else None, "error": ""}

    def progress(self) -> bytes:
        """How far the campaign is, as JSON."""
        with self._lock:
            if time.monotonic() - self._answer[0] > _FRESH:
                content = json.dumps(self._progress(), allow_nan=False).encode()
                self._answer = (time.monotonic(), content)
            return self._answer[1]

    def _progress(self) -> dict[str, Any]:
        state = self._watcher.look()
        measured = self._measured()
        of_status = {
            status: [
                {"cell": plain(key), "error": plain(record.error), "time": written / 1e9} | _reached(record)
                for key, written, record in measured
                if record.status == status
            ]
            for status in ("ok", "failed")
        }
        return {
            "ledger": plain(str(self.ledger.root)),
            "time": state.time,
            "counts": state.counts,
            "share": state.share if state.cells or state.runs else None,
            "left": state.left,
            "seconds_left": state.seconds_left,
            "stored": {status: len(rows) for status, rows in of_status.items()},
            "busy": [
                {
                    "run": training.run,
                    "epoch": training.epoch,
                    "epochs": training.epochs,
                    "accuracy": training.accuracy,
                    **({} if training.metric == ACCURACY.name else {"metric": title(training.metric)}),
                    "loss": training.loss,
                    "seconds": max(0.0, state.time - training.started) if training.started else None,
                    "losses": _thinned(training.curve.train_loss),
                    "accuracies": _thinned(training.curve.values),
                }
                for training in state.busy
            ],
            "busy_cells": [plain(key) for key, status in state.cells.items() if status == "busy"][:MOST_ROWS],
            "finished": of_status["ok"][:MOST_ROWS],
            "failed": of_status["failed"][:MOST_ROWS],
            "report": self._report,
        }

    def _measured(self) -> list[tuple[str, int, CellRecord]]:
        """Key, time of writing and record of each cell, newest first; only what has changed is read."""
        found: dict[str, tuple[int, CellRecord | None]] = {}
        for path in (self.ledger.root / "cells").glob("*.json"):
            try:
                written = path.stat().st_mtime_ns
            except OSError:
                continue  # being replaced
            known = self._cells.get(path.stem)
            found[path.stem] = known if known and known[0] == written else (written, self.ledger.cell(path.stem))
        self._cells = found
        rows = [(key, written, record) for key, (written, record) in found.items() if record is not None]
        return sorted(rows, key=lambda row: (-row[1], row[0]))


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD."""

    server: Server
    server_version = f"pruneaudit/{__version__}"
    sys_version = ""
    timeout = _PATIENCE

    def do_GET(self) -> None:
        """Send what is asked for."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Send its headers."""
        self._answer(with_body=False)

    def _refuse(self) -> None:
        self._send(HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", b"GET and HEAD only\n", {"Allow": "GET, HEAD"})

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _refuse

    def _answer(self, with_body: bool) -> None:
        if not self.server.trusts(self.headers.get("Host", "")):
            # A page elsewhere had its name point to this machine, to read what is served here.
            self._send(HTTPStatus.FORBIDDEN, "text/plain", b"this server answers to localhost only\n", {}, with_body)
            return
        name = unquote(urlsplit(self.path).path).removeprefix("/")
        site = self.server.site
        if name == "":
            nonce = secrets.token_urlsafe(16)
            policy = f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            page = _template().render(nonce=nonce, version=__version__).encode()
            self._send(HTTPStatus.OK, "text/html", page, {"Content-Security-Policy": policy + _CLOSED}, with_body)
        elif name == "progress.json":
            self._send(HTTPStatus.OK, "application/json", site.progress(), {}, with_body)
        elif name in site.files:
            # Nothing but the report's own files, each by its very name: no path is followed anywhere.
            try:
                content = site.files[name].read_bytes()
            except OSError:
                self._send(HTTPStatus.NOT_FOUND, "text/plain", b"not there\n", {}, with_body)
                return
            kind = _kind(name)
            headers = {"Content-Security-Policy": _REPORT_POLICY} if kind in _ACTIVE else {}
            self._send(HTTPStatus.OK, kind, content, headers, with_body)
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"not there\n", {}, with_body)

    def _send(
        self, status: HTTPStatus, kind: str, content: bytes, headers: dict[str, str], with_body: bool = True
    ) -> None:
        charset = "; charset=utf-8" if kind.startswith(("text/", "application/json", "image/svg")) else ""
        self.send_response(status)
        for key, value in {
            **_EVERYWHERE,
            **headers,
            "Content-Type": f"{kind}{charset}",
            "Content-Length": str(len(content)),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a page asks every two seconds."""


class Server(ThreadingHTTPServer):
    """Serves a site at one address.

    Args:
        site: What it answers.
        host: Name or address to bind to.
        port: Port; 0: any that is free.

    Raises:
        ConfigError: The address cannot be bound.
    """

    daemon_threads = True

    def __init__(self, site: Site, host: str, port: int) -> None:
        self.site = site
        self.host = host
        try:
            self.address_family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            super().__init__(address[:2], Handler)  # type: ignore[arg-type]
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"cannot serve at {host}, port {port}: {reason}; choose another --port or --host"
            ) from None
        self.is_local = ipaddress.ip_address(str(self.server_address[0]).partition("%")[0]).is_loopback

    def server_bind(self) -> None:
        """Bind, without asking the network for this machine's full name."""
        socketserver.TCPServer.server_bind(self)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.server_address[1]}/"

    def trusts(self, host: str) -> bool:
        """Whether a request may come by this Host header: any name where other machines may ask."""
        if not self.is_local:
            return True
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            return False
        return name in {"localhost", "127.0.0.1", "::1", self.host.lower()}


def serve(ledger: Path, host: str, port: int, say: Callable[[str], None], workloads: tuple[str, ...] = ()) -> None:
    """Serve a ledger until interrupted.

    Args:
        ledger: The ledger.
        host: Name or address to bind to.
        port: Port.
        say: Gets one line for each thing that the user should know.
        workloads: Workloads of the user's own, as for ``--audit-workload``.

    Raises:
        ConfigError: It is no ledger, or the address cannot be bound.
    """
    with contextlib.suppress(KeyboardInterrupt), tempfile.TemporaryDirectory(prefix="pruneaudit-") as folder:
        site = Site(ledger, Path(folder), workloads)
        with Server(site, host, port) as server:
            stop = threading.Event()
            keeper = threading.Thread(target=site.keep_report, args=(stop,), daemon=True)
            keeper.start()
            try:
                if not server.is_local:
                    say(f"warning: {host} can be reached from other machines; whoever reaches it can read this ledger")
                say(f"serving {ledger} at {server.url} (Ctrl-C ends)")
                server.serve_forever(poll_interval=0.2)
            finally:
                stop.set()
                # A report that is being written is written to its end, so that its folder can go.
                keeper.join()


@cache
def _template() -> jinja2.Template:
    text = (resources.files("pruneaudit.report") / "assets" / "live.html.j2").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(text)


def _kind(name: str) -> str:
    """Media type of a file; what a browser would only offer to save is shown as text."""
    guessed = mimetypes.guess_type(name)[0] or "text/plain"
    shown = (*_ACTIVE, "application/json", "application/pdf", "image/png")
    return guessed if guessed in shown else "text/plain"


def _reached(record: CellRecord) -> dict[str, Any]:
    """What a cell measured; another metric than accuracy says its name."""
    if record.scores is None:
        return {"accuracy": record.accuracy}
    return {"accuracy": record.value, "metric": record.metric.title, "decimals": record.metric.decimals}


def _thinned(values: tuple[float, ...]) -> list[float]:
    """At most so many of the values, evenly spaced, the last one among them."""
    if len(values) <= MOST_POINTS:
        return list(values)
    return [values[round(place * (len(values) - 1) / (MOST_POINTS - 1))] for place in range(MOST_POINTS)]
