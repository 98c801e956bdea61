"""Errors whose message is one line that tells the reader what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AuditError(Exception):
    """Bad input or a run that cannot count; the message is one line for the user."""


class ConfigError(AuditError):
    """A TOML file, an option or a name is wrong."""


class MethodError(AuditError):
    """A pruning method broke its contract or raised."""


class RunFailedError(AuditError):
    """A run did not come to an end; the message names it and says why."""


class DataMissingError(AuditError):
    """A dataset is not on this machine; the message says how to get it."""


class DamagedError(AuditError):
    """A file does not hold what its digest promises."""


class StoppedError(AuditError):
    """Nobody can go on, and nothing is wrong with what was to be computed: the session ends."""


class StorageError(StoppedError):
    """The disk is full, or may not be written: nothing is wrong with what was to be kept, and nobody can go on."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """Build the error for a name that nobody registered.

    Args:
        kind: What the name should be, such as ``"method"``.
        name: What the user wrote.
        known: The names that exist.
    """
    names = sorted(known)
    return ConfigError(f"unknown {kind} '{name}'.{nearest(name, names)} Known: {', '.join(names) or 'none'}.")


def one_line(error: BaseException) -> str:
    """Fold an exception into one line: its type and its message."""
    text = printable(" ".join(str(error).split()))
    if isinstance(error, AuditError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def printable(text: str, instead: str = "?") -> str:
    """A line of somebody else's, without what a terminal would obey: its controls become question marks, or spaces."""
    return text if text.isprintable() else "".join(mark if mark.isprintable() else instead for mark in text)
