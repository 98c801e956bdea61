"""Text pasted from a PDF or a terminal, as far as its columns survive: fields apart by tabs or two spaces and more."""

from __future__ import annotations

import re
from pathlib import Path

from pruneaudit.errors import ConfigError
from pruneaudit.tables.grid import Cell, Grid, build, marked
from pruneaudit.tables.numbers import is_missing, parse

_GAP = re.compile(r"\t+|\s{2,}|\s*[|│]\s*")
_RULE = re.compile(r"[-=+─━|│\s]+")


def read(path: Path, text: str) -> list[Grid]:
    """Blocks of lines that are cut into equally many fields.

    Raises:
        ConfigError: Blocks are there, but their columns cannot be told apart.
    """
    grids: list[Grid] = []
    lost: list[tuple[int, list[str]]] = []
    title = ""
    for number, block in _blocks(text):
        if len(block) == 1:
            title = block[0].strip()
            continue
        rows = _fields(block)
        if rows is None:
            lost.append((number, block))
            title = block[-1].strip()
            continue
        header, *body = rows
        above = [line.strip() for line in block[: header[0]] if not _RULE.fullmatch(line)]
        title = " ".join(above) or title
        grid = build(
            path,
            len(grids) + 1,
            title,
            [[Cell(text) for text in header[1]]],
            [(number + place, [marked(text) for text in fields] if fields else None) for place, fields in body],
            number + header[0],
        )
        grids.append(grid)
    if lost and not grids:
        raise ConfigError(
            f"{path}:{lost[0][0]}: columns cannot be told apart; put two spaces or a tab between them, or give a CSV"
        )
    for number, block in lost:
        # Prose around tables holds few lines that end with numbers.
        if grids and sum(_ends_with_numbers(line) for line in block) > 1:
            grids[0].notes.append((number, f"{len(block)} lines are no table: their columns cannot be told apart"))
    return grids


def _ends_with_numbers(line: str) -> bool:
    words = line.split()
    return len(words) > 2 and all(parse(word) is not None or is_missing(word) for word in words[-2:])


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
    margin = min(len(line) - len(line.lstrip()) for line in block)
    cut: list[tuple[int, list[str]]] = []
    for place, line in enumerate(block):
        if not _RULE.fullmatch(line):
            fields = [part for part in _GAP.split(line.strip(" |│")) if part]
            # A name that spans rows stands in the first of them only.
            is_below = len(line) - len(line.lstrip()) > margin + 1 and len(cut) > 1
            cut.append((place, ["", *fields] if is_below and len(fields) == len(cut[0][1]) - 1 else fields))
    while len(cut) > 2 and len(cut[0][1]) == 1:
        # A caption that no empty line parts from its table.
        del cut[0]
    width = len(cut[0][1]) if cut else 0
    # A field alone is a heading inside the table, or a note below it.
    if width >= 2 and len(cut) >= 2 and all(len(fields) in (1, width) for _, fields in cut):
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
