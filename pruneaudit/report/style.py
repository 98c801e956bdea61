"""How methods look: one colour, marker and dash each, the same in figures, on the page, on paper and on screens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pruneaudit.catalog.names import UNPRUNED, is_scratch

#: Okabe and Ito 2008, "Color Universal Design", without yellow and black, which one of the two grounds would swallow.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
#: The same hues, lighter where they would be dim on a dark ground.
_ON_DARK = ("#4DA3E0", "#FF8A4C", "#2FC79A", "#E39AC4", "#F2B84B", "#8CCBF2")
#: What is no pruning method is grey and dashed.
_GREY, _GREY_ON_DARK = "#6B7280", "#A3ADBA"
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
    """

    colour: str
    on_dark: str
    marker: str
    figure_marker: str
    dashed: bool


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
        found[name] = Style(
            _GREY if control else _COLOURS[hue],
            _GREY_ON_DARK if control else _ON_DARK[hue],
            marker,
            figure_marker,
            control,
        )
    return found


def _is_control(name: str) -> bool:
    return is_scratch(name) or name == UNPRUNED
