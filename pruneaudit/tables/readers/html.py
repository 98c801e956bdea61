"""HTML: ``<table>`` with spans, by the standard library's tolerant parser."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from pruneaudit.tables.grid import Cell, Grid, build, is_bold_number

#: Spans above this are mistakes; browsers stop at 1,000 columns, too.
_WIDEST = 1000
#: What raised and lowered text begins and ends with: 93.5 with footnote 1 is not 93.51.
_NOTE = re.compile(r"\^\{[^{}]*\}|[{}^]")
RAISED = {"sup": ("^{", "}"), "sub": (" ", " ")}


@dataclass
class _Raw:
    """A cell while it is read."""

    is_header: bool
    columns: int
    rows: int
    text: str = ""
    bold: str = ""


@dataclass
class _Table:
    """A table while it is read."""

    number: int
    title: str
    caption: str = ""
    rows: list[tuple[int, list[_Raw], bool]] = field(default_factory=list)


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tables: list[_Table] = []
        self._open: list[_Table] = []
        self._cell: list[_Raw] = []
        self._bold = self._in_head = 0
        self._heading, self._in_heading, self._in_caption, self._skip = "", False, False, 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("script", "style"):
            self._skip += 1
        elif tag in ("h1", "h2", "h3", "h4", "h5", "h6"):
            self._heading, self._in_heading = "", True
        elif tag == "table":
            self._open.append(_Table(self.getpos()[0], self._heading))
            self.tables.append(self._open[-1])
        elif tag == "caption":
            self._in_caption = True
        elif tag == "thead":
            self._in_head += 1
        elif tag == "tr" and self._open:
            self._open[-1].rows.append((self.getpos()[0], [], self._in_head > 0))
            self._cell = []
        elif tag in ("td", "th") and self._open:
            if not self._open[-1].rows:
                self._open[-1].rows.append((self.getpos()[0], [], self._in_head > 0))
            raw = _Raw(tag == "th", _span(values.get("colspan")), _span(values.get("rowspan")))
            self._open[-1].rows[-1][1].append(raw)
            self._cell = [raw]
        elif tag in ("b", "strong"):
            self._bold += 1
        elif tag == "br":
            self.handle_data(" ")
        elif tag in RAISED:
            self.handle_data(RAISED[tag][0])

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._skip = max(0, self._skip - 1)
        elif tag in ("h1", "h2", "h3", "h4", "h5", "h6"):
            self._in_heading = False
        elif tag == "caption":
            self._in_caption = False
        elif tag == "thead":
            self._in_head = max(0, self._in_head - 1)
        elif tag in ("td", "th"):
            self._cell = []
        elif tag in RAISED:
            self.handle_data(RAISED[tag][1])
        elif tag in ("b", "strong"):
            self._bold = max(0, self._bold - 1)
        elif tag == "table" and self._open:
            self._open.pop()
            self._cell = []

    def handle_data(self, data: str) -> None:
        if self._skip:
            return
        if self._in_heading:
            self._heading += data
        elif self._in_caption and self._open:
            self._open[-1].caption += data
        elif self._cell:
            self._cell[0].text += data
            if self._bold:
                self._cell[0].bold += data


def _span(text: str | None) -> int:
    return min(max(int(text), 1), _WIDEST) if text and text.strip().isdecimal() and len(text) < 6 else 1


def read(path: Path, text: str) -> list[Grid]:
    """All tables of a page."""
    return tables(path, text, 0, "", 0)


def tables(path: Path, text: str, above: int, title: str, before: int) -> list[Grid]:
    """Tables of HTML that begins below ``above`` lines of the file, under a heading, after ``before`` tables."""
    parser = _Parser()
    parser.feed(text)
    parser.close()
    grids: list[Grid] = []
    for table in parser.tables:
        rows = _spread(table)
        heads = 0
        while heads < len(rows) and (
            table.rows[heads][2] or (rows[heads] and all(raw.is_header for raw in rows[heads]))
        ):
            heads += 1
        heads = heads or min(1, len(rows))
        cells = {id(raw): _shown(raw) for row in rows for raw in row}
        shown = [[cells[id(raw)] for raw in row] for row in rows]
        body = [(above + table.rows[place][0], list(shown[place])) for place in range(heads, len(rows))]
        place = before + len(grids) + 1
        grids.append(
            build(path, place, table.caption or table.title or title, shown[:heads], list(body), above + table.number)
        )
    return grids


def _shown(raw: _Raw) -> Cell:
    return printed(raw.text, raw.bold)


def printed(text: str, bold: str) -> Cell:
    """A cell of its text and of what of it is bold; a footnote that is not changes nothing."""
    letters, heavy = ("".join(_NOTE.sub("", part).split()) for part in (text, bold))
    return Cell(" ".join(text.split()), bool(heavy) and (letters == heavy or is_bold_number(text, bold)))


def _spread(table: _Table) -> list[list[_Raw]]:
    """Rows with cells that span others repeated in each of their places."""
    hanging: dict[int, tuple[_Raw, int]] = {}
    rows = []
    for _, raws, _ in table.rows:
        row: list[_Raw] = []
        waiting = list(raws)
        while waiting or len(row) in hanging:
            column = len(row)
            if column >= _WIDEST:
                break
            if column in hanging:
                raw, left = hanging.pop(column)
                row.append(raw)
                if left > 1:
                    hanging[column] = (raw, left - 1)
                continue
            raw = waiting.pop(0)
            for _ in range(raw.columns):
                if raw.rows > 1:
                    hanging[len(row)] = (raw, raw.rows - 1)
                row.append(raw)
        rows.append(row)
    return rows
