"""A table as it stands in a file: cells with their text and place, before anybody says what the columns mean."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pruneaudit.tables.numbers import is_missing, parse

#: Bold print in files that have no markup of their own: spreadsheets and pasted text.
_BOLD = re.compile(r"\*\*(?P<stars>[^*]+)\*\*|__(?P<lines>[^_]+)__|\\(?:textbf|mathbf|bm)\s?\{(?P<latex>[^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell. One that spans several columns is the same object in each of them.

    Attributes:
        text: Without markup.
        bold: Whether all of it is printed bold, or its number without what stands beside.
    """

    text: str
    bold: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """A row of cells.

    Attributes:
        number: Line of the file that it begins at, from 1.
        cells: As many as the header has.
        group: Rows between two rules or separators have one number.
        section: Heading inside the table that it stands under, or empty.
    """

    number: int
    cells: tuple[Cell, ...]
    group: int = 0
    section: str = ""


@dataclass
class Grid:
    """A table.

    Attributes:
        path: Its file.
        place: Number of the table in the file, from 1.
        title: Caption, or the heading that it stands under.
        header: Text of the header's cells; of several rows joined by `` | ``.
        lines: Rows below the header.
        number: Line of the header.
        notes: What could not be read, each with its line: no cell is dropped without a word.
        facts: What the file says of all rows, by canonical column (a claims file's paper and source).
    """

    path: Path
    place: int
    title: str
    header: tuple[str, ...]
    lines: list[Line]
    number: int = 1
    notes: list[tuple[int, str]] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)


def build(
    path: Path,
    place: int,
    title: str,
    headers: list[list[Cell]],
    body: list[tuple[int, list[Cell] | None]],
    number: int,
) -> Grid:
    """A grid of rows as a reader found them.

    Args:
        path: The file.
        place: Number of the table in it.
        title: Caption or heading.
        headers: Rows of the header, cells that span columns repeated.
        body: Line number and cells of each row; None for a rule between rows.
        number: Line of the header.
    """
    headers, body = _completed(headers, body)
    width = max((len(row) for row in headers), default=0)
    header = tuple(_joined([row[place].text if place < len(row) else "" for row in headers]) for place in range(width))
    grid = Grid(path, place, " ".join(title.split()), header, [], number)
    group, section = 0, ""
    for line, cells in body:
        if cells is None or not any(cell.text.strip() for cell in cells):
            group += 1
            continue
        if width > 2 and (_spans(cells) or _stands_alone(cells)):
            group, section = group + 1, cells[0].text.strip()
            if not _spans(cells):
                grid.notes.append((line, f"'{section}' stands alone: it counts as a heading of the rows below"))
            continue
        if len(cells) > width:
            rest = [cell.text for cell in cells[width:] if cell.text.strip()]
            if rest:
                grid.notes.append((line, f"has {len(cells)} cells where the header has {width}: left out {rest}"))
        elif len(cells) < width:
            grid.notes.append((line, f"has {len(cells)} cells where the header has {width}: the rest counts as empty"))
        fitted = [*cells[:width], *[Cell("")] * (width - len(cells))]
        grid.lines.append(Line(line, tuple(fitted), group, section))
    return grid


def marked(text: str) -> Cell:
    """A cell of a file without markup of its own; bold where all of it is written as Markdown or LaTeX write it."""
    shown = text.strip()
    match = _BOLD.fullmatch(shown)
    if match is not None:
        return Cell(_inner(match).strip(), True)
    plain, first = _BOLD.sub(_inner, shown), _BOLD.search(shown)
    return Cell(plain, first is not None and is_bold_number(plain, _inner(first)))


def _inner(match: re.Match[str]) -> str:
    """What stands within the marks of bold print."""
    return next(part for part in match.groups() if part is not None)


def is_bold_number(text: str, bold: str) -> bool:
    """Whether what of a cell is bold is its number, whatever stands beside: a deviation, a change, a unit."""
    number, heavy = parse(text), parse(bold)
    return number is not None and heavy is not None and (number.value, number.step) == (heavy.value, heavy.step)


def _spans(cells: list[Cell]) -> bool:
    """Whether one cell covers the whole row."""
    return all(cell is cells[0] for cell in cells) and bool(cells[0].text.strip())


def _stands_alone(cells: list[Cell]) -> bool:
    """Whether only the first cell of a row says something, and no number."""
    first, *others = (cell.text for cell in cells)
    return not any(text.strip() for text in others) and not is_missing(first) and parse(first) is None


def _completed(
    headers: list[list[Cell]], body: list[tuple[int, list[Cell] | None]]
) -> tuple[list[list[Cell]], list[tuple[int, list[Cell] | None]]]:
    """Headers with the rows below that belong to them.

    Markdown and CSV have one row for the header. Who needs two (groups of columns, a table of pandas with several
    levels) leaves cells of the first one empty or repeats them, and writes the second one below.
    """
    if len(headers) != 1:
        return headers, body
    found, rest = list(headers), list(body)
    while rest and len(found) < 4:
        cells = rest[0][1]
        names = _names(found)
        counted = Counter(filter(None, names))
        is_open = "" in names[len(found) == 1 :] or any(count > 1 for count in counted.values()) or not any(names)
        if not cells or not is_open or len(cells) > len(names):
            break
        texts = [cell.text.strip() for cell in cells]
        stated = [place for place, text in enumerate(texts) if text]
        # Names of the index, which pandas writes below all levels, fill what is still empty.
        fills = len(found) > 1 and all(not names[place] for place in stated)
        values = [place for place in stated if is_missing(texts[place]) or parse(texts[place]) is not None]
        # Operating points are names of columns, too: no row has begun yet that a row without a name could go on with.
        begins = rest[1][1] if len(rest) > 1 else None
        points = bool(not texts[0] and begins and begins[0].text.strip() and parse(begins[0].text) is None)
        if values and not points:
            break
        if not stated or (len(stated) < 2 and not fills) or not any(_has_number(row) for _, row in rest[1:]):
            break
        if len(found) == 1:
            found = [_filled(found[0], texts)]
        found.append(list(cells))
        del rest[0]
    return found, rest


def _names(headers: list[list[Cell]]) -> list[str]:
    width = max(len(row) for row in headers)
    return [_joined([row[place].text if place < len(row) else "" for row in headers]) for place in range(width)]


def _has_number(cells: list[Cell] | None) -> bool:
    return cells is not None and any(parse(cell.text) is not None for cell in cells)


def _filled(row: list[Cell], below: list[str]) -> list[Cell]:
    """A row of groups, each repeated over the empty cells that follow it where something stands below them."""
    shown: list[Cell] = []
    for place, cell in enumerate(row):
        is_named = bool(cell.text.strip()) or place >= len(below) or not below[place] or not shown
        shown.append(cell if is_named else shown[-1])
    return shown


def _joined(parts: list[str]) -> str:
    """Header of a column from its rows; what is repeated or empty once."""
    found: list[str] = []
    for part in parts:
        text = " ".join(part.split())
        if text and text not in found:
            found.append(text)
    return " | ".join(found)
