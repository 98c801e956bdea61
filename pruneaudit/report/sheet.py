"""Figures as papers want them: panels in a grid, a legend above and a caption below, as wide as one column or two.

Everything is placed in inches, because layout engines draw each figure several times. Importing this module imports
matplotlib (its objects, never pyplot: no display, no global state); nothing that starts fast may import it at once.
"""

from __future__ import annotations

import io
import logging
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from pruneaudit.errors import printable


@contextmanager
def _quiet() -> Iterator[None]:
    """Without matplotlib's remarks on its font cache and folders, which are nobody's concern in a report."""
    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


with _quiet():
    import matplotlib
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.collections import LineCollection, PolyCollection
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties, fontManager, get_font
    from matplotlib.lines import Line2D
    from matplotlib.patches import PathPatch, Rectangle
    from matplotlib.path import Path
    from matplotlib.textpath import text_to_path
    from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

#: Inches: a column of a two-column paper, and both with the gap between them.
WIDTHS = {1: 3.3, 2: 6.9}
#: Panels side by side in one column and in two.
ABREAST = {1: 2, 2: 5}
#: Inches that a page has for a figure; panels that do not fit go on in a further file.
PAGE = 8.8
#: Inches of a name beside a mark; longer ones end in an ellipsis.
LONGEST = 1.25
#: Points. Journals ask for 7 to 8 after scaling, and these figures are not to be scaled.
SIZE, TITLE_SIZE = 7, 8
INK, PALE = "#222222", "#9CA3AF"

#: Travels with matplotlib, so that a figure looks the same everywhere.
_FONT = "DejaVu Sans"
_SETTINGS: dict[Any, Any] = {
    "font.family": [_FONT],
    "font.size": SIZE,
    # Names come from strangers: a dollar sign is a dollar sign.
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    # Anything but None, else matplotlib measures all labels to place a title that there is not.
    "axes.titley": 1.0,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": SIZE,
    "ytick.labelsize": SIZE,
    "xtick.major.size": 2,
    "ytick.major.size": 2,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.pad": 2,
    "ytick.major.pad": 2,
    "hatch.linewidth": 0.5,
    "hatch.color": INK,
    # TrueType inside the PDF, outlines inside the SVG: neither needs a font where it is opened.
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    # Ids in an SVG are hashes; without a salt of our own every file would be another one.
    "svg.hashsalt": "pruneaudit",
}
_LINE = 0.135  # inches from one line of text to the next
_ABOVE = 0.21  # inches for the title of a panel
_BELOW = 0.15  # inches for the labels of its ticks
_AIR = 0.06  # inches above the caption
_GAP = 0.14  # inches between panels
_EDGE = 0.04  # inches that stay free at the edges
_RIGHT = 0.09  # inches that stay free right of the panels, for half a number
_HANDLE = 0.3  # inches of the line in a legend
_BETWEEN = 0.12  # inches between columns of a legend


@dataclass(frozen=True)
class Mark:
    """One entry of a legend.

    Attributes:
        label: What it means.
        colour: Of its line, marker or area.
        marker: Matplotlib's name of the dot; empty: none.
        dashes: Matplotlib's name of the line; None: a filled area.
        hatch: Matplotlib's name of an area's pattern.
    """

    label: str
    colour: str
    marker: str = ""
    dashes: str | None = "-"
    hatch: str = ""

    def sample(self, ends: tuple[float, float], y: float, half: float) -> Artist:
        """What stands beside the label: from one end to the other, at this height, in parts of the figure."""
        if self.dashes is None:
            place, width = (ends[0], y - half), ends[1] - ends[0]
            return Rectangle(place, width, 2 * half, fc=self.colour, ec=INK, lw=0.4, hatch=self.hatch * 2)
        look: dict[str, Any] = {"marker": self.marker, "markersize": 3.6, "markeredgewidth": 0.3, "linewidth": 0.9}
        x = (ends[0], sum(ends) / 2, ends[1])
        return Line2D(x, [y] * 3, color=self.colour, ls=self.dashes, mec="white", markevery=[1], **look)


@dataclass(frozen=True)
class Panel:
    """One plot of a figure.

    Attributes:
        title: Stands above it.
        draw: Puts the marks in, and sets limits and ticks.
    """

    title: str
    draw: Callable[[Axes], None]


@dataclass(frozen=True)
class Series:
    """Panels with the same axes.

    Attributes:
        panels: In the order of reading.
        x: Label of the x axis, with its unit; empty where its ticks say it all.
        y: Label of the y axis, with its unit.
        names: Text of the ticks on the y axis where they are names, top to bottom.
    """

    panels: Sequence[Panel]
    x: str
    y: str = ""
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Sheet:
    """A figure before it has a size.

    Attributes:
        name: File name without its ending.
        series: Each gets rows of panels of its own; several alternate, so that panel n of one stands above panel n of
            the next.
        legend: Marks and what they mean.
        caption: What is shown, how many seeds, and what the ± is.
        height: Inches of a panel; None: follows from its width.
    """

    name: str
    series: Sequence[Series]
    legend: Sequence[Mark]
    caption: str
    height: float | None = None


def written(sheets: Iterable[Sheet], columns: int) -> dict[str, bytes]:
    """SVG and PDF of every sheet, by file name. Equal sheets give equal bytes, whatever the user's matplotlibrc says.

    Args:
        sheets: What to draw; one that is higher than a page goes on in files called NAME-2, NAME-3, …
        columns: 1 or 2, the width in columns of a paper.
    """
    files = {}
    with _quiet(), matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        for sheet in sheets:
            for name, figure in _figures(sheet, columns):
                # Drawn once for each format; without the date, or the same results would give different files.
                about = {"Title": _printable(sheet.name), "Creator": "pruneaudit"}
                for form, date in (("svg", "Date"), ("pdf", "CreationDate")):
                    sink = io.BytesIO()
                    figure.savefig(sink, format=form, metadata={**about, date: None})
                    files[f"{name}.{form}"] = sink.getvalue()
    return files


def shortened(text: str, inches: float, size: float = SIZE) -> str:
    """Text on one line that is at most so wide: no control characters, only glyphs that the font has."""
    plain = _printable(text)[:400]
    if _inches(plain, size) <= inches:
        return plain
    while plain and _inches(f"{plain}…", size) > inches:
        # Most names are far too long or hardly.
        plain = plain[: min(len(plain) - 1, int(len(plain) * inches / _inches(plain, size)) + 1)]
    return f"{plain}…"


def linear_axis(axes: Axes, which: str, low: float, high: float, most: int = 5) -> None:
    """Round numbers as ticks on the ``"x"`` or ``"y"`` axis, between these limits."""
    if high <= low:
        low, high = low - 1, high + 1
    _set(axes, which, low, high, _round(low, high, most))


def log_axis(axes: Axes, which: str, low: float, high: float, most: int = 5, ticks: Sequence[float] = ()) -> None:
    """Plain numbers as ticks on a logarithmic axis; these ``ticks`` where they are few enough."""
    if high < 1.05 * low:
        low, high = low / 1.2, high * 1.2
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    choices: list[Sequence[float]] = [ticks] if ticks else []
    for digits in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        choices.append([digit * 10.0**power for power in powers for digit in digits])
    within = [[tick for tick in choice if low <= tick <= high] for choice in choices]
    fitting = next((choice for choice in within if len(choice) <= most), within[-1][:: len(within[-1]) // most + 1])
    # What has no logarithm is not drawn; the default is a dot far outside.
    getattr(axes, f"set_{which}scale")("log", nonpositive="mask")
    _set(axes, which, low, high, fitting if len(fitting) > 1 or ticks else _round(low, high, 3))
    getattr(axes, f"{which}axis").set_minor_locator(NullLocator())


def named_ticks(axes: Axes, which: str, low: float, high: float, names: Sequence[str]) -> None:
    """Names at 0, 1, 2, … on an axis with these limits."""
    _set(axes, which, low, high, range(len(names)), [shortened(name, LONGEST) for name in names])


def bars(axes: Axes, ends: Sequence[tuple[float, float, float]], height: float, mark: Mark, gid: str) -> None:
    """Horizontal bars from (y, left, right), as one artist with this id in an SVG."""
    corners = [
        [(left, y - height / 2), (right, y - height / 2), (right, y + height / 2), (left, y + height / 2)]
        for y, left, right in ends
    ]
    area = PolyCollection(corners, facecolors=mark.colour, edgecolors=INK, linewidths=0.25, hatch=mark.hatch, gid=gid)
    axes.add_collection(area, autolim=False)


def segments(
    axes: Axes, lines: Sequence[Sequence[tuple[float, float]]], colours: Sequence[str], width: float, gid: str
) -> None:
    """Lines in colours of their own, as one artist with this id in an SVG."""
    drawn = LineCollection(lines, colors=colours, linewidths=width, zorder=2, gid=gid)
    axes.add_collection(drawn, autolim=False)


def scattered(axes: Axes, points: Sequence[tuple[float, float, str]], size: float, gid: str) -> None:
    """Dots (x, y, colour), ``size`` in points; those of one colour have this id and a number in an SVG."""
    by_colour: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for x, y, colour in points:
        by_colour[colour].append((x, y))
    for number, (colour, places) in enumerate(by_colour.items()):
        # One path of lines without length, whose round ends are the dots: thousands of markers take seconds.
        path = Path(np.repeat(places, 2, axis=0), np.tile([Path.MOVETO, Path.LINETO], len(places)))
        path.should_simplify = False
        dots = PathPatch(
            path,
            fill=False,
            edgecolor=colour,
            linewidth=size,
            capstyle="round",
            alpha=0.8,
            zorder=3,
            gid=f"{gid}-{number}",
        )
        axes.add_artist(dots)


def _round(low: float, high: float, most: int) -> list[float]:
    ticks = MaxNLocator(most, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [float(tick) for tick in ticks if low <= tick <= high]


def _set(
    axes: Axes, which: str, low: float, high: float, places: Sequence[float], names: Sequence[str] | None = None
) -> None:
    axes.set(**{f"{which}lim": (low, high)})
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(FixedLocator(places))
    axis.set_major_formatter(FixedFormatter(names or [f"{tick:.6g}".replace("-", "−") for tick in places]))


def _figures(sheet: Sheet, columns: int) -> Iterator[tuple[str, Figure]]:
    """The figures of a sheet: one, or several where its panels do not fit on a page."""
    width = WIDTHS[columns]
    count = max(len(series.panels) for series in sheet.series)
    left = _EDGE + max(
        (0.16 if series.y else 0)
        + max((_inches(shortened(name, LONGEST)) for name in series.names), default=0.28)
        + 0.05
        for series in sheet.series
    )
    # As few rows as possible, and those equally full.
    abreast = math.ceil(count / math.ceil(count / ABREAST[columns]))
    panel = (width - left - _RIGHT - _GAP * (abreast - 1)) / abreast
    height = sheet.height or min(max(0.7 * panel, 1.05), 1.6)
    caption = _wrapped(sheet.caption, width - 2 * _EDGE)
    legend = _legend_shape(sheet, width)
    outside = 2 * _EDGE + _LINE * (legend[1] + len(caption) + 1) + _AIR
    fitting = max(1, int((PAGE - outside) / (len(sheet.series) * (_ABOVE + height + _BELOW + _LINE)))) * abreast
    for number, start in enumerate(range(0, count, fitting), 1):
        # Rows of panels: of each series one, then of each the next.
        bands = [
            (series, series.panels[first : first + abreast])
            for first in range(start, min(start + fitting, count), abreast)
            for series in sheet.series
        ]
        name = sheet.name if number == 1 else f"{sheet.name}-{number}"
        yield name, _figure(sheet, [band for band in bands if band[1]], (width, height, left, panel), legend, caption)


def _figure(
    sheet: Sheet,
    bands: Sequence[tuple[Series, Sequence[Panel]]],
    sizes: tuple[float, float, float, float],
    legend: tuple[float, int],
    caption: Sequence[str],
) -> Figure:
    """One figure.

    Args:
        sheet: What it is about.
        bands: Rows of panels, from top to bottom.
        sizes: Inches: width of the figure, height of a panel, left edge of the first panel, width of a panel.
        legend: Inches from one of its columns to the next, and its rows.
        caption: Its lines.
    """
    width, height, left, panel = sizes
    # Where all rows have the same axes, one label below the last and ticks at the lowest panels are enough.
    alone = len(sheet.series) == 1
    labelled = [bool(series.x) and (not alone or place == len(bands) - 1) for place, (series, _) in enumerate(bands)]
    total = 2 * _EDGE + _LINE * (legend[1] + len(caption) + sum(labelled)) + _AIR
    total += len(bands) * (_ABOVE + height + _BELOW)
    figure = Figure(figsize=(width, total))

    def text(x: float, y: float, words: str, **more: Any) -> None:
        figure.text(x / width, y / total, words, **more)

    y = total - _EDGE - _LINE * legend[1]
    for place, mark in enumerate(sheet.legend):
        column, row = divmod(place, legend[1])
        x, middle = _EDGE + column * legend[0], total - _EDGE - (row + 0.5) * _LINE
        figure.add_artist(mark.sample((x / width, (x + _HANDLE) / width), middle / total, 0.035 / total))
        text(x + _HANDLE + 0.05, middle, shortened(mark.label, LONGEST), va="center_baseline")
    for place, (series, panels) in enumerate(bands):
        y -= _ABOVE + height
        below = len(bands[place + 1][1]) if alone and place + 1 < len(bands) else 0
        for column, item in enumerate(panels):
            x = left + column * (panel + _GAP)
            axes = figure.add_axes((x / width, y / total, panel / width, height / total))
            item.draw(axes)
            _grid(axes, "x" if series.names else "y")
            axes.xaxis.set_visible(column >= below)
            axes.yaxis.set_visible(column == 0)
            title = shortened(item.title, panel, TITLE_SIZE)
            text(x, y + height + 0.04, title, fontsize=TITLE_SIZE, va="bottom")
        if series.y:
            text(_EDGE, y + height / 2, series.y, rotation=90, va="center", ha="left")
        y -= _BELOW
        if labelled[place]:
            y -= _LINE
            middle = left + (len(bands[0][1]) * (panel + _GAP) - _GAP) / 2
            text(middle, y + 0.02, series.x, ha="center", va="bottom")
    for place, line in enumerate(caption):
        text(_EDGE, y - _AIR - _LINE * place, line, va="top", color="#4B5563")
    return figure


def _grid(axes: Axes, which: str) -> None:
    """Pale lines at the ticks of an axis: one artist, where matplotlib's own grid would be one for each tick."""
    ticks = getattr(axes, f"{which}axis").get_majorticklocs()
    lines = [[(tick, 0), (tick, 1)] if which == "x" else [(0, tick), (1, tick)] for tick in ticks]
    transform = getattr(axes, f"get_{which}axis_transform")()
    pale = LineCollection(lines, colors="#E2E5EA", linewidths=0.4, zorder=0.5, transform=transform)
    axes.add_collection(pale, autolim=False)


def _legend_shape(sheet: Sheet, width: float) -> tuple[float, int]:
    """Inches from one column of the legend to the next, and its rows."""
    if not sheet.legend:
        return width, 0
    each = max(_inches(shortened(mark.label, LONGEST)) for mark in sheet.legend) + _HANDLE + 0.05 + _BETWEEN
    columns = max(1, int((width - 2 * _EDGE + _BETWEEN) / each))
    return each, math.ceil(len(sheet.legend) / columns)


def _wrapped(text: str, inches: float) -> list[str]:
    """Lines at most so wide, of whole words; a word that is wider is shortened."""
    lines = [""]
    # "n = 3" stays on one line.
    for word in re.split("(?<!=) (?!=)", _printable(text)):
        longer = f"{lines[-1]} {word}".strip()
        if _inches(longer) <= inches:
            lines[-1] = longer
        else:
            lines.append(shortened(word, inches))
    return [line for line in lines if line]


def _printable(text: str) -> str:
    """One line of marks that the font has; � for others, so that nothing is lost unseen."""
    # Accents are part of a letter or go: hundreds on one letter would tower over the figure.
    marks = (mark for mark in unicodedata.normalize("NFC", text) if unicodedata.category(mark) not in ("Mn", "Me"))
    line = " ".join(printable("".join(marks), " ").split())
    known = _glyphs()
    return "".join(mark if ord(mark) in known else "�" for mark in line) or "?"


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(fontManager.findfont(FontProperties(family=_FONT))).get_charmap())


@lru_cache(maxsize=4096)
def _inches(text: str, size: float = SIZE) -> float:
    """Width of a line of text."""
    prop = FontProperties(family=_FONT, size=size)
    width, _, _ = text_to_path.get_text_width_height_descent(text, prop, ismath=False)
    return float(width) / 72
