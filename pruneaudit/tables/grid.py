"""A table as it stands in a file: cells with their text and place, before anybody says what the columns mean."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell.

    Attributes:
        text: Without markup.
        bold: Whether all of it is printed bold.
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
    width = max((len(row) for row in headers), default=0)
    header = tuple(_joined([row[place].text if place < len(row) else "" for row in headers]) for place in range(width))
    grid = Grid(path, place, " ".join(title.split()), header, [], number)
    group, section = 0, ""
    for line, cells in body:
        if cells is None or not any(cell.text.strip() for cell in cells):
            group += 1
            continue
        filled = {cell.text.strip() for cell in cells if cell.text.strip()}
        # Cells that span a whole row come repeated.
        if width > 2 and len(filled) == 1 and (cells[0].text.strip() or len(cells) > 1):
            only = next(iter(filled))
            if not any(letter.isdigit() for letter in only) or len(cells) == 1 or cells[-1].text == cells[0].text:
                group, section = group + 1, only
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


def _joined(parts: list[str]) -> str:
    """Header of a column from its rows; what is repeated or empty once."""
    found: list[str] = []
    for part in parts:
        text = " ".join(part.split())
        if text and text not in found:
            found.append(text)
    return " | ".join(found)
