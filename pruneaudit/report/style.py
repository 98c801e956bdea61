"""How methods look: one colour, marker and dash each, the same in figures, on the page, on paper and on screens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pruneaudit.catalog.names import UNPRUNED, is_scratch

#: Okabe and Ito 2008, "Color Universal Design", without yellow and black, which one of the two grounds would swallow.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
#: The same hues, lighter where they would be dim on a dark ground.
_ON_DARK = ("#4DA3E0", "#FF8A4C", "#2FC79A", "#E39AC4", "#F2B84B", "#8CCBF2")
#: What is no pruning method is dull and dashed: grey, brown, violet, olive, on a light and on a dark ground.
_CONTROLS = (("#6B7280", "#A3ADBA"), ("#8B5E3C", "#C79B78"), ("#6A51A3", "#B3A2E0"), ("#6E6E12", "#C4C46A"))
#: Dashes of plotly that tell them apart where colours do not.
_DASHES = ("dash", "dot", "dashdot", "longdash")
#: Shape of a dot: (name of plotly, of matplotlib).
_MARKERS = (
    ("circle", "o"),
    ("square", "s"),
    ("triangle-up", "^"),
    ("diamond", "D"),
    ("triangle-down", "v"),
    ("pentagon", "p"),
    ("cross", "P"),
    ("star", "*"),
    ("hexagon", "h"),
)


@dataclass(frozen=True)
class Style:
    """How a method is drawn.

    Attributes:
        colour: On a light ground, and in figures.
        on_dark: On a dark ground.
        marker: Name of its dot for plotly.
        figure_marker: The same for matplotlib.
        dashed: Whether its lines are: scratch arms and the dense model.
        dash: How its lines are dashed on the page, in plotly's words.
    """

    colour: str
    on_dark: str
    marker: str
    figure_marker: str
    dashed: bool
    dash: str = "solid"


#: How verdicts are drawn: colour, and matplotlib's marker, so that they are told apart in grey, too.
VERDICTS = {
    "better": ("#009E73", "^"),
    "worse": ("#D55E00", "v"),
    "equivalent": ("#0072B2", "s"),
    "indeterminate": ("#6B7280", "o"),
    "not comparable": ("#9CA3AF", "x"),
}


def styles(methods: Iterable[str]) -> dict[str, Style]:
    """The look of each method, told apart without colour too: no two of up to 54 share colour and marker.

    The order decides and nothing else, so that all plots of a report agree: pruning methods by name, then the rest.
    """
    names = sorted(set(methods), key=lambda name: (_is_control(name), name))
    pruners = [name for name in names if not _is_control(name)]
    found = {}
    for place, name in enumerate(names):
        control = _is_control(name)
        number = place - len(pruners) if control else place
        # The first ones differ in both; later rounds shift the pairing of colour and marker.
        marker, figure_marker = _MARKERS[(number + number // len(_COLOURS)) % len(_MARKERS)]
        hue = number % len(_COLOURS)
        colour, on_dark = _CONTROLS[number % len(_CONTROLS)] if control else (_COLOURS[hue], _ON_DARK[hue])
        dash = _DASHES[number % len(_DASHES)] if control else "solid"
        found[name] = Style(colour, on_dark, marker, figure_marker, control, dash)
    return found


def _is_control(name: str) -> bool:
    return is_scratch(name) or name == UNPRUNED
