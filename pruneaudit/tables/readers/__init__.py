"""Files to tables: each form that people have, by the parser that the community keeps for it."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from pruneaudit.errors import ConfigError
from pruneaudit.tables.grid import Grid

#: Reader by the file's suffix. A reader loads with the first file that needs it.
READERS = {
    ".csv": "delimited",
    ".tsv": "delimited",
    ".md": "markdown",
    ".markdown": "markdown",
    ".tex": "latex",
    ".ltx": "latex",
    ".html": "html",
    ".htm": "html",
    ".json": "exported",
    ".jsonl": "exported",
    ".toml": "claimed",
    ".txt": "text",
    ".log": "log",
}
#: Files above this are refused: a table that people read is a thousand times smaller.
LARGEST = 32 * 2**20


class NoTableError(ConfigError):
    """A file holds no table."""


def read(path: Path) -> list[Grid]:
    """All tables of a file.

    Raises:
        NoTableError: It holds none.
        ConfigError: It cannot be read; one line that says where and what to do.
    """
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise ConfigError(
            f"{path}: tables are read from {', '.join(READERS)}; convert it, or rename it to one of these"
        )
    text = _text(path)
    reader: Callable[[Path, str], list[Grid]] = import_module(f"{__name__}.{READERS[suffix]}").read
    try:
        grids = reader(path, text)
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply to be a table; cut out the table") from None
    if not any(grid.lines for grid in grids):
        raise NoTableError(f"{path}: no table with a header and a row is in it")
    return [grid for grid in grids if grid.lines]


def _text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise ConfigError(
                f"{path}: {size / 2**20:.0f} MB; up to {LARGEST / 2**20:.0f} MB are read, cut out the tables"
            )
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        encodings = ["utf-16"]
    elif b"\0" in raw:
        raise ConfigError(f"{path}: a binary file, not a table")
    else:
        encodings = ["utf-8-sig", "cp1252"]
    for encoding in encodings:
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError:
            continue
        if not text.strip():
            raise ConfigError(f"{path}: empty")
        return text.replace("\r\n", "\n").replace("\r", "\n")
    raise ConfigError(f"{path}: neither UTF-8 nor Windows-1252 nor UTF-16 text; save it as UTF-8")
