"""Text pasted from a PDF or a terminal, as far as its columns survive: fields apart by tabs or two spaces and more."""

from __future__ import annotations

import re
from pathlib import Path

from pruneaudit.errors import ConfigError
from pruneaudit.tables.grid import Cell, Grid, build
from pruneaudit.tables.numbers import is_missing, parse

_GAP = re.compile(r"\t+|\s{2,}|\s*[|│]\s*")
_RULE = re.compile(r"[-=+─━|│\s]+")


def read(path: Path, text: str) -> list[Grid]:
    """Blocks of lines that are cut into equally many fields.

    Raises:
        ConfigError: Blocks are there, but their columns cannot be told apart.
    """
    grids: list[Grid] = []
    lost: list[int] = []
    title = ""
    for number, block in _blocks(text):
        if len(block) == 1:
            title = block[0].strip()
            continue
        rows = _fields(block)
        if rows is None:
            lost.append(number)
            title = block[-1].strip()
            continue
        header, *body = rows
        grid = build(
            path,
            len(grids) + 1,
            title,
            [[Cell(text) for text in header[1]]],
            [(number + place, [Cell(text) for text in fields] if fields else None) for place, fields in body],
            number + header[0],
        )
        grids.append(grid)
    if lost and not grids:
        raise ConfigError(
            f"{path}:{lost[0]}: columns cannot be told apart; put two spaces or a tab between them, or give a CSV"
        )
    return grids


def _blocks(text: str) -> list[tuple[int, list[str]]]:
    """Runs of lines that are not empty, with the number of the first."""
    found: list[tuple[int, list[str]]] = []
    is_open = False
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            is_open = False
        elif is_open:
            found[-1][1].append(line)
        else:
            found.append((number, [line]))
            is_open = True
    return found


def _fields(block: list[str]) -> list[tuple[int, list[str]]] | None:
    """Header and rows as (place in the block, fields); None where there is no such cut."""
    cut = [
        (place, [part for part in _GAP.split(line.strip(" |│")) if part])
        for place, line in enumerate(block)
        if not _RULE.fullmatch(line)
    ]
    width = len(cut[0][1]) if cut else 0
    if width >= 2 and len(cut) >= 2 and all(len(fields) == width for _, fields in cut):
        return cut
    # One space between all columns: names, then as many numbers in every row as the header has further words.
    rows = []
    for place, line in ((place, line) for place, line in enumerate(block) if not _RULE.fullmatch(line)):
        words = line.split()
        first = len(words)
        while first > 0 and (parse(words[first - 1]) is not None or is_missing(words[first - 1])):
            first -= 1
        rows.append((place, words, first))
    if len(rows) < 2 or rows[0][2] < len(rows[0][1]):
        return None
    header = rows[0][1]
    counts = {len(words) - first for _, words, first in rows[1:]}
    if (
        len(counts) != 1
        or counts == {0}
        or len(header) != counts.pop() + 1
        or any(first == 0 for _, _, first in rows[1:])
    ):
        return None
    return [
        (rows[0][0], header),
        *((place, [" ".join(words[:first]), *words[first:]]) for place, words, first in rows[1:]),
    ]
