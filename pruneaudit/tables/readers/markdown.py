"""Markdown as GitHub shows it: pipe tables and embedded HTML, by markdown-it-py."""

from __future__ import annotations

from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from pruneaudit.tables.grid import Cell, Grid, build, marked
from pruneaudit.tables.readers import html


def read(path: Path, text: str) -> list[Grid]:
    """All tables of a document, each with the heading that it stands under."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    source = text.split("\n")
    grids: list[Grid] = []
    title = ""
    headers: list[list[Cell]] = []
    body: list[tuple[int, list[Cell] | None]] = []
    row: list[Cell] = []
    number = line = 0
    in_head = False
    for place, token in enumerate(tokens):
        if token.type == "heading_open":
            title = _shown(tokens[place + 1]).text
        elif token.type == "html_block" and "<table" in token.content.lower():
            grids += html.tables(path, token.content, token.map[0] if token.map else 0, title, len(grids))
        elif token.type == "table_open":
            headers, body = [], []
            number = (token.map[0] if token.map else 0) + 1
        elif token.type == "thead_open":
            in_head = True
        elif token.type == "thead_close":
            in_head = False
        elif token.type == "tr_open":
            row, line = [], (token.map[0] if token.map else 0) + 1
        elif token.type in ("th_open", "td_open"):
            row.append(_shown(tokens[place + 1]))
        elif token.type == "tr_close":
            if in_head:
                headers.append(row)
            else:
                body.append((line, row))
        elif token.type == "table_close":
            grid = build(path, len(grids) + 1, title, headers, body, number)
            grid.notes += _extra(source, grid, body)
            grids.append(grid)
    return grids


def _shown(inline: Token) -> Cell:
    """A cell as it is shown; bold where all of it is."""
    text, bold, depth, linked = "", "", 0, False
    for child in inline.children or ():
        if child.type == "strong_open":
            depth += 1
        elif child.type == "strong_close":
            depth -= 1
        elif child.type in ("link_open", "link_close"):
            linked = child.type == "link_open"
        elif child.type in ("text", "code_inline", "softbreak", "hardbreak"):
            content = child.content or " "
            if linked and content.startswith("^"):
                # A footnote, where the file says below what it is.
                content = f"^{{{content[1:]}}}"
            text += content
            bold += content if depth else ""
        elif child.type == "html_inline":
            tag = child.content.lower()
            depth += tag in ("<b>", "<strong>")
            depth -= tag in ("</b>", "</strong>")
            text += " " if tag.startswith("<br") else ""
            name = tag.strip("</> ")
            if name in html.RAISED:
                text += html.RAISED[name][tag.startswith("</")]
    cell = html.printed(text, bold)
    # What stands between dollars is LaTeX, bold print as well.
    return marked(cell.text) if "$" in text and not cell.bold else cell


def _extra(source: list[str], grid: Grid, body: list[tuple[int, list[Cell] | None]]) -> list[tuple[int, str]]:
    """Rows with more cells than the header: GitHub drops the rest in silence."""
    width = len(grid.header)
    found = []
    for line, _ in body:
        written = source[line - 1].replace("\\|", "").strip().strip("|").count("|") + 1
        if written > width and source[line - 1].count("`") == 0:
            found.append((line, f"has {written} cells where the header has {width}: what is beyond is not shown"))
    return found
