"""LaTeX: ``tabular`` and its relatives with booktabs, multirow, multicolumn and siunitx, by pylatexenc."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pylatexenc.latex2text import LatexNodes2Text
from pylatexenc.latexwalker import (
    LatexCharsNode,
    LatexEnvironmentNode,
    LatexGroupNode,
    LatexMacroNode,
    LatexMathNode,
    LatexSpecialsNode,
    LatexWalker,
    LatexWalkerError,
    get_default_latex_context_db,
)
from pylatexenc.macrospec import EnvironmentSpec, MacroSpec

from pruneaudit.errors import ConfigError
from pruneaudit.tables.grid import Cell, Grid, build, is_bold_number

_TABLES = {"tabular": "[{", "tabular*": "{[{", "tabularx": "{[{", "tabulary": "{[{", "longtable": "[{", "tblr": "[{"}
_RULES = {"toprule", "midrule", "bottomrule", "hline", "specialrule", "Xhline"}
#: ``(lr)`` of booktabs: no kind of argument that pylatexenc knows.
_TRIM = re.compile(r"(\\cmidrule)[ \t]*\([^()\n]*\)")
_BOLD = {"textbf", "mathbf", "bm", "boldsymbol"}
#: Macros whose last argument is what they show, or which show nothing.
_SHOW_LAST = {
    "underline",
    "emph",
    "textit",
    "textrm",
    "mathrm",
    "text",
    "mbox",
    "textcolor",
    "colorbox",
    "num",
    "makecell",
    "tabincell",
    "thead",
    "shortstack",
    "rotatebox",
    "hl",
    "uline",
    "textsc",
    "texttt",
}
_HIDE = {
    "cite",
    "citep",
    "citet",
    "citealp",
    "footnote",
    "footnotemark",
    "label",
    "ref",
    "cmidrule",
    "cline",
    "rowcolor",
    "cellcolor",
    "addlinespace",
    "arrayrulecolor",
    "vspace",
    "hspace",
    "tnote",
    "color",
    "caption",
}
#: Ends of what longtable repeats on each page; the first head is the table's header.
_ENDS = {"endfirsthead", "endhead", "endfoot", "endlastfoot"}


def _context() -> Any:
    database = get_default_latex_context_db()
    database.add_context_category(
        "tables",
        prepend=True,
        macros=[
            MacroSpec("multirow", "[{[{[{"),
            MacroSpec("multicolumn", "{{{"),
            MacroSpec("cmidrule", "{"),
            MacroSpec("cline", "{"),
            MacroSpec("num", "[{"),
            MacroSpec("SI", "[{{"),
            MacroSpec("qty", "[{{"),
            MacroSpec("makecell", "[{"),
            MacroSpec("shortstack", "[{"),
            MacroSpec("thead", "[{"),
            MacroSpec("tabincell", "{{"),
            MacroSpec("rotatebox", "[{{"),
            MacroSpec("textcolor", "[{{"),
            MacroSpec("cellcolor", "[{"),
            MacroSpec("rowcolor", "[{"),
            MacroSpec("tnote", "{"),
            MacroSpec("caption", "*[{"),
            MacroSpec("Xhline", "{"),
            MacroSpec("specialrule", "{{{"),
            MacroSpec("textsuperscript", "{"),
            MacroSpec("addlinespace", "["),
            MacroSpec("bm", "{"),
            MacroSpec("boldsymbol", "{"),
            MacroSpec("mathbf", "{"),
            MacroSpec("mathrm", "{"),
            MacroSpec("uline", "{"),
            MacroSpec("citealp", "*[[{"),
        ],
        environments=[EnvironmentSpec(name, spec) for name, spec in _TABLES.items()],
    )
    return database


class _Converter:
    """Nodes to shown text."""

    def __init__(self) -> None:
        self._plain = LatexNodes2Text(math_mode="text", keep_comments=False)

    def cell(self, nodes: Sequence[Any]) -> Cell:
        """A cell as it is shown; bold where all digits and letters of it are, or those of its number."""
        pieces = list(self._pieces(nodes, False))
        text = "".join(text for text, _ in pieces)
        bold = "".join(text for text, is_bold in pieces if is_bold)
        letters = [letter for letter in text if letter.isalnum()]
        is_whole = bool(letters) and [letter for letter in bold if letter.isalnum()] == letters
        return Cell(" ".join(text.split()), is_whole or is_bold_number(text, bold))

    def _pieces(self, nodes: Sequence[Any], bold: bool) -> Iterator[tuple[str, bool]]:
        for node in nodes:
            if node is None:
                continue
            if isinstance(node, LatexGroupNode | LatexMathNode):
                yield from self._pieces(node.nodelist, bold)
            elif isinstance(node, LatexMacroNode):
                arguments = [one for one in (node.nodeargd.argnlist if node.nodeargd else []) if one is not None]
                name = node.macroname
                if name in ("bfseries", "bf"):
                    bold = True
                elif name in _BOLD:
                    yield from self._pieces(arguments[-1:], True)
                elif name in _SHOW_LAST:
                    yield from self._pieces(arguments[-1:], bold)
                elif name == "textsuperscript":
                    # A footnote, which is no digit of the number before it; or a power.
                    yield "^{", bold
                    yield from self._pieces(arguments[-1:], bold)
                    yield "}", bold
                elif name in ("SI", "qty"):
                    yield from self._pieces(arguments[-2:-1], bold)
                    yield " ", bold
                    yield from self._pieces(arguments[-1:], bold)
                elif name in ("multirow", "multicolumn"):
                    yield from self._pieces(arguments[-1:], bold)
                elif name in ("pm", "mp"):
                    yield " ± ", bold
                elif name in ("downarrow", "uparrow"):
                    yield ("↓" if name == "downarrow" else "↑"), bold
                elif name in ("Delta", "triangle", "triangledown"):
                    yield "Δ", bold
                elif name == "percent":
                    yield "%", bold
                elif name == "\\":
                    yield " ", bold
                elif name not in _HIDE:
                    yield self._plain.node_to_text(node), bold
            elif isinstance(node, LatexCharsNode):
                yield node.chars, bold
            elif isinstance(node, LatexSpecialsNode):
                shown = {"~": " ", "--": "–", "---": "—", "``": '"', "''": '"'}.get(node.specials_chars, "")
                yield shown, bold
            elif isinstance(node, LatexEnvironmentNode):
                yield from self._pieces([one for one in node.nodelist if not _is(one, "\\")], bold)


def read(path: Path, text: str) -> list[Grid]:
    """All tables of a document, each with its caption.

    Raises:
        ConfigError: Braces or environments do not match.
    """
    # Blanks in its place, so that lines and columns of the file stay what they are.
    plain = _TRIM.sub(lambda found: found[1] + " " * (len(found[0]) - len(found[1])), text)
    walker = LatexWalker(plain, latex_context=_context(), tolerant_parsing=True)
    try:
        nodes, _, _ = walker.get_latex_nodes()
    except LatexWalkerError as error:
        raise ConfigError(f"{path}: not valid LaTeX: {' '.join(str(error).split())[:200]}") from None
    grids: list[Grid] = []
    for table, caption in _tables(nodes, ""):
        grid = _grid(path, text, table, caption or _caption(table.nodelist), len(grids) + 1)
        if grid is not None:
            grids.append(grid)
    return grids


def _tables(nodes: Sequence[Any], caption: str) -> Iterator[tuple[Any, str]]:
    """All tabulars, depth first, with the caption of the float around them."""
    for node in nodes or ():
        if isinstance(node, LatexEnvironmentNode):
            if node.environmentname in _TABLES:
                yield node, caption
                continue
            own = (
                _caption(node.nodelist)
                if node.environmentname.startswith(("table", "wraptable", "sidewaystable"))
                else ""
            )
            yield from _tables(node.nodelist, own or caption)
        elif isinstance(node, LatexGroupNode):
            yield from _tables(node.nodelist, caption)
        elif isinstance(node, LatexMacroNode) and node.nodeargd is not None:
            yield from _tables([one for one in node.nodeargd.argnlist if one is not None], caption)


def _caption(nodes: Sequence[Any]) -> str:
    for place, node in enumerate(nodes or ()):
        if _is(node, "caption"):
            arguments = [one for one in (node.nodeargd.argnlist if node.nodeargd else []) if one is not None]
            # Where the macro is not known to take arguments, the group behind it is its argument.
            group = arguments[-1:] or nodes[place + 1 : place + 2]
            return _Converter().cell(group).text
        if isinstance(node, LatexGroupNode | LatexEnvironmentNode):
            found = _caption(node.nodelist)
            if found:
                return found
    return ""


def _is(node: Any, name: str) -> bool:
    return isinstance(node, LatexMacroNode) and node.macroname == name


def _grid(path: Path, text: str, table: Any, caption: str, place: int) -> Grid | None:
    converter = _Converter()
    rows: list[tuple[int, list[Cell] | None]] = []
    hanging: dict[int, tuple[Cell, int]] = {}
    cells: list[list[Any]] = [[]]
    begin_of_part = 0

    def end_of_row(position: int) -> None:
        nonlocal cells
        if len(cells) == 1 and not any(_says(node) for node in cells[0]):
            cells = [[]]
            return
        row: list[Cell] = []
        for nodes in cells:
            while len(row) in hanging and not any(_says(node) for node in nodes):
                break
            columns, down, shown = _span(converter, nodes)
            above = hanging.get(len(row))
            if above is not None and not shown.text:
                shown, left = above
                if left > 1:
                    hanging[len(row)] = (shown, left - 1)
                else:
                    del hanging[len(row)]
            elif down > 1:
                hanging[len(row)] = (shown, down - 1)
            row += [shown] * columns
        first = next((node for nodes in cells for node in nodes if _says(node)), None)
        begin = first.pos if first is not None else position
        begin += len(text[begin:]) - len(text[begin:].lstrip()) if begin < len(text) else 0
        rows.append((text.count("\n", 0, begin) + 1, row))
        cells = [[]]

    for node in table.nodelist:
        if isinstance(node, LatexSpecialsNode) and node.specials_chars == "&":
            cells.append([])
        elif _is(node, "\\") or _is(node, "tabularnewline"):
            end_of_row(node.pos)
        elif isinstance(node, LatexMacroNode) and node.macroname in _RULES:
            end_of_row(node.pos)
            rows.append((0, None))
        elif isinstance(node, LatexMacroNode) and node.macroname in _ENDS:
            end_of_row(node.pos)
            if begin_of_part or node.macroname in ("endfoot", "endlastfoot"):
                del rows[begin_of_part:]
            rows.append((0, None))
            begin_of_part = len(rows)
        else:
            cells[-1].append(node)
    end_of_row(table.pos + table.len)
    while rows and rows[0][1] is None:
        rows.pop(0)
    # The header ends at the first rule that stands below it; without rules it is the first row.
    ruled = next((index for index, (_, row) in enumerate(rows) if row is None), None)
    heads = ruled if ruled is not None and any(row for _, row in rows[ruled:]) else min(1, len(rows))
    if not rows:
        return None
    headers = [row for _, row in rows[:heads] if row is not None]
    return build(path, place, caption, headers, rows[heads:], rows[0][0])


def _says(node: Any) -> bool:
    """Whether a node prints anything."""
    if isinstance(node, LatexCharsNode):
        return bool(node.chars.strip())
    if isinstance(node, LatexMacroNode):
        return node.macroname not in _HIDE
    return isinstance(node, LatexGroupNode | LatexMathNode | LatexEnvironmentNode)


def _span(converter: _Converter, nodes: list[Any]) -> tuple[int, int, Cell]:
    """Columns and rows that a cell covers, and what it shows."""
    columns = down = 1
    for node in nodes:
        if isinstance(node, LatexMacroNode) and node.macroname in ("multicolumn", "multirow") and node.nodeargd:
            arguments = [one for one in node.nodeargd.argnlist if one is not None]
            inner = arguments[-1:]
            count = converter.cell(arguments[:1] if node.macroname == "multicolumn" else _required(node)).text
            size = min(abs(int(count)), 100) if count.lstrip("-").isdecimal() else 1
            if node.macroname == "multicolumn":
                columns = max(size, 1)
                nested = getattr(inner[0], "nodelist", []) if inner else []
                if any(_is(one, "multirow") for one in nested):
                    _, down, _ = _span(converter, nested)
            else:
                down = max(size, 1)
    return columns, down, converter.cell(nodes)


def _required(node: Any) -> list[Any]:
    """The number of rows of a multirow: its first argument in braces."""
    return [one for one in node.nodeargd.argnlist if one is not None and getattr(one, "delimiters", ("{",))[0] != "["][
        :1
    ]
