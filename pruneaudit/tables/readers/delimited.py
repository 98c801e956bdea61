"""CSV and TSV: spreadsheets, pandas, Weights & Biases."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from pruneaudit.errors import ConfigError
from pruneaudit.tables.grid import Cell, Grid, build, marked


def read(path: Path, text: str) -> list[Grid]:
    """The one table of the file; its first row is the header.

    Raises:
        ConfigError: A quoted cell does not end, or is longer than any number or name.
    """
    delimiter = _delimiter(text)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    rows: list[tuple[int, list[Cell]]] = []
    begin = 1
    try:
        for row in reader:
            if row:
                rows.append((begin, [marked(cell) for cell in row]))
            begin = reader.line_num + 1
    except csv.Error as error:
        raise ConfigError(f"{path}:{reader.line_num}: {error}; quote cells as spreadsheets do") from None
    if not rows:
        return []
    number, header = rows[0]
    return [build(path, 1, "", [header], list(rows[1:]), number)]


def _delimiter(text: str) -> str:
    """The character that cuts the most of the first rows into equally many cells, more than one."""
    head = text[:20000].split("\n")[:20]
    first = next((line for line in head if line.strip()), "")
    counts = {mark: first.count(mark) for mark in "\t;,|"}
    best = max(counts.values())
    # 'Method;Acc, %': a semicolon or a tab that stands there at all was meant.
    return next((mark for mark in "\t;" if counts[mark]), max(counts, key=lambda mark: counts[mark]) if best else ",")
