"""What a cell of a table says: a number with as many digits as were printed, and all that papers print around it.

A printed number is an interval: 93.5 is anything from 93.45 to 93.55. Rules compare intervals, so that rounding is
never taken for a contradiction.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import lru_cache

#: Ways of saying that there is no number.
MISSING = frozenset(
    {
        "",
        "-",
        "--",
        "---",
        "/",
        "?",
        "??",
        "???",
        "n/a",
        "na",
        "n.a.",
        "nan",
        "none",
        "null",
        "not specified",
        "unknown",
    }
    | {"not reported", "n.r.", "nr", "tbd", "_", "...", "…"}
)
#: Factors of the units that sizes are counted in.
SCALES = {"k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}

_MINUS = dict.fromkeys(map(ord, "−‒–—﹣－"), "-")
_SPACES = dict.fromkeys(map(ord, "\u00a0\u2007\u2009\u200a\u202f\u3000~"), " ")
_OTHERS = {
    ord("∼"): "≈",
    ord("≃"): "≈",
    ord("×"): "x",
    ord("✕"): "x",
    ord("％"): "%",
    ord("＋"): "+",
    ord("·"): "*",
    ord("⋅"): "*",
}
_DIGITS = {ord(full): str(place) for place, full in enumerate("０１２３４５６７８９")}
#: Footnote marks and stars say nothing about the value.
_MARKS = dict.fromkeys(map(ord, "†‡§¶‖♯♮♭★☆✓✔✗✘⭐🏆¹²³⁴⁵⁶⁷⁸⁹⁰\u200b\u200c\u200d\ufeff\u2060$"), None)
_DIRECTIONS = dict.fromkeys(map(ord, "⬆▲↗"), "↑") | dict.fromkeys(map(ord, "⬇▼↘"), "↓")
_PLAIN = _MINUS | _SPACES | _OTHERS | _DIGITS | _MARKS | _DIRECTIONS
#: Arrows are signs of changes; of all else they say which direction is better.
_ARROWS = dict.fromkeys(map(ord, "↑↓⬆⬇▲▼△▽↗↘"), " ")
_TRANSLATION = _PLAIN | _ARROWS

_VALUE = r"[-+]?\s?(?:\d+(?:[.,]\d+)*|[.,]\d+)(?:e[-+]?\d+)?"
_COUNTED = r"(?:flops|flop|macs|mac|params?|parameters|ops)"
_UNIT = rf"%|x|pp|pts?|points?|[kmgbt]?{_COUNTED}|[kmgbt]|ms|s"
_CELL = re.compile(
    rf"[≈~]?\s?(?P<value>{_VALUE})(?P<power>\s?[x*]\s?10\^?(?P<exponent>[-+]?\d+))?\s?(?P<unit>{_UNIT})?(?:\s(?P<counted>{_COUNTED}))?"
    rf"(?:\s?(?:±|\+/-|\+-)\s?(?P<spread>{_VALUE})\s?(?:%|pp|pts?)?"
    rf"|(?P<siunitx>\(\d+\))"
    rf"|\s?\(\s?(?P<sign>±|\+/-|\+-)?\s?(?P<aside>{_VALUE})\s?(?P<aside_unit>{_UNIT})?\s?\))?"
    rf"\s?(?P<after>{_UNIT})?\s?(?:[*^{{}}a-d ]|\[\^?[\w, ]{{1,40}}\])*"
)
#: ``75.60 ↓0.55`` and ``75.60_{↓0.55}``, which others print in parentheses.
_LOWERED = re.compile(r"(?<=[\w%])\s?_?\{?\s?([↓↑]\s?[\d.][^{}()↓↑]*)\}?$")
_SEPARATED = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Number:
    """A printed number.

    Attributes:
        value: In the unit as printed.
        step: Value of its last printed digit: 0.01 for 93.50.
        unit: ``%``, ``x``, a scale such as ``m`` or ``g``, or empty.
        spread: What follows ``±``, or stands in parentheses without sign or unit.
        aside: Another number in parentheses, with a sign, an arrow or a unit: ``62.7M (50.0%)``.
        counts: Whether the unit says multiply-adds or operations (``macs``, ``flops``), else empty.
        arrow: +1 or -1 where an arrow stands for the sign that is not printed, else 0; the value does not have it.
    """

    value: float
    step: float
    unit: str = ""
    spread: Number | None = None
    aside: Number | None = None
    counts: str = ""
    arrow: int = 0

    @property
    def half(self) -> float:
        """By how much the true value may differ from the printed one."""
        return self.step / 2 * (1 + 1e-9)

    @property
    def low(self) -> float:
        """Lower end of what was rounded to this."""
        return self.value - self.half

    @property
    def high(self) -> float:
        """Upper end of what was rounded to this."""
        return self.value + self.half

    def scaled(self, factor: float) -> Number:
        """The same in another unit, as the digits say it: 70 % are 0.7, which is also written 0.7."""
        spread = None if self.spread is None else self.spread.scaled(factor)
        value = float(Decimal(repr(self.value)) * Decimal(repr(factor)))
        return Number(value, self.step * abs(factor), "", spread, self.aside, self.counts, self.arrow)

    def directed(self) -> Number:
        """As a change: with the sign that its arrow stands for."""
        return replace(self, value=self.value * self.arrow) if self.arrow else self

    def __str__(self) -> str:
        decimals = max(0, -math.floor(math.log10(self.step) + 1e-9))
        return f"{self.value:.{decimals}f}"


def cleaned(text: str) -> str:
    """Text of a cell in plain characters: one kind of minus, of multiplication and of space, no footnote marks."""
    return " ".join(text.translate(_TRANSLATION).split())


@lru_cache(maxsize=65536)
def is_missing(text: str) -> bool:
    """Whether a cell says that there is no value."""
    return cleaned(text).lower() in MISSING


def parse(text: str, decimal_comma: bool = False) -> Number | None:
    """The number that a cell prints, or None where it prints none.

    Args:
        text: Content of the cell, without markup.
        decimal_comma: Whether its column writes 93,5 for 93.5; else a comma stands between thousands where it can.
    """
    if len(text) > 200:
        return None
    return _parse(text, decimal_comma)


@lru_cache(maxsize=65536)
def _parse(text: str, decimal_comma: bool) -> Number | None:
    plain = " ".join(text.translate(_PLAIN).split()).lower()
    for macro, sign in (("\\pm", "±"), ("\\times", "x"), ("\\%", "%"), ("\\downarrow", "↓"), ("\\uparrow", "↑")):
        plain = plain.replace(macro, sign)
    plain = _LOWERED.sub(r" (\1)", plain)
    # An arrow in parentheses is of what stands there.
    within = "".join(re.findall(r"\([^()]*\)", plain))
    outside = re.sub(r"\([^()]*\)", "", plain)
    plain = cleaned(plain)
    # A raised footnote says nothing; 93.16_{±0.16} is how some papers print a deviation.
    plain = re.sub(r"(?<!10)\^\{[^{}]{0,20}\}$", "", plain)
    plain = re.sub(r"_\{?\s*([±(][^{}]*)\}?$", r" \1", plain.replace("^{", "^"))
    match = _CELL.fullmatch(plain)
    if match is None:
        return None
    main = _digits(match["value"], decimal_comma)
    if main is None:
        return None
    value, step = main
    if match["power"]:
        factor = _power(int(match["exponent"]))
        if factor is None:
            return None
        value, step = value * factor, step * factor
    # "125M MACs" has a scale and a word.
    units = [match[name] for name in ("unit", "counted", "after") if match[name]]
    unit, counts = _unit(units[0] if units else ""), _counts(" ".join(units))
    spread = aside = None
    if match["spread"]:
        spread = _plain(match["spread"], decimal_comma)
    elif match["siunitx"] and step < 1:
        digits = match["siunitx"].strip("()")
        spread = Number(int(digits) * step, step)
    elif match["siunitx"]:
        spread = Number(float(match["siunitx"].strip("()")), 1.0)
    elif match["aside"]:
        other = _plain(match["aside"], decimal_comma)
        if other is not None:
            of, count = (read(match["aside_unit"] or "") for read in (_unit, _counts))
            signed = match["aside"].lstrip()[0] in "+-" and not match["sign"]
            if of or signed or set(within) & set("↓↑△▽"):
                aside = Number(other.value, other.step, of, counts=count, arrow=_arrow(within, match["aside"]))
            else:
                spread = other
    return Number(value, step, unit, spread, aside, counts, _arrow(outside, match["value"]))


def _arrow(text: str, value: str) -> int:
    """Sign that an arrow beside a value stands for; 0 where it has none, or one of its own."""
    return 0 if value[0] in "+-" else ("↑" in text) - ("↓" in text)


def _plain(text: str, decimal_comma: bool) -> Number | None:
    found = _digits(text, decimal_comma)
    return None if found is None else Number(*found)


def _digits(text: str, decimal_comma: bool) -> tuple[float, float] | None:
    """Value and value of the last digit."""
    text = text.replace(" ", "")
    number, _, exponent = text.partition("e")
    bare = number.lstrip("+-")
    if "," in bare:
        if _SEPARATED.fullmatch(bare) and not decimal_comma:
            number = number.replace(",", "")
        elif bare.count(",") == 1 and bare.count(".") != 1:
            # 1.234.567,8 and 93,5.
            number = number.replace(".", "").replace(",", ".")
        elif bare.count(",") == 1 and bare.index(".") < bare.index(","):
            number = number.replace(".", "").replace(",", ".")
        else:
            return None
    if number.count(".") > 1:
        return None
    factor = 1.0
    if exponent:
        power = _power(int(exponent))
        if power is None:
            return None
        factor = power
    decimals = len(number.partition(".")[2])
    value = float(number) * factor
    return (value, 10.0**-decimals * factor) if math.isfinite(value) and decimals < 30 else None


def _power(exponent: int) -> float | None:
    """Ten to an exponent of a size that numbers of tables have."""
    return 10.0**exponent if abs(exponent) <= 30 else None


def _unit(text: str) -> str:
    """A unit as ``%``, ``x``, a scale or nothing."""
    if text in ("%", "x"):
        return text
    if text in ("pp", "pt", "pts", "point", "points", "ms", "s") or not text:
        return ""
    return text[0] if text[0] in SCALES and not text.startswith(("mac", "par")) else ""


def _counts(text: str) -> str:
    """Whether units count MACs or FLOPs."""
    return "macs" if "mac" in text else "flops" if "flop" in text or text.endswith("ops") else ""


def most_spread(mean: Number, runs: int = 2) -> float:
    """Largest sample deviation of values from 0 to 100 with a mean (Bhatia and Davis 2000); of two runs it is largest.

    Args:
        mean: As printed: of what rounds to it, the value nearest to 50 counts.
        runs: How many values.
    """
    if not 0 <= mean.value <= 100:
        return math.inf
    middle = min(max(50.0, mean.low), mean.high)
    return math.sqrt(max(0.0, middle * (100 - middle)) * runs / (runs - 1))


def uses_decimal_comma(texts: list[str]) -> bool:
    """Whether a column has decimal commas: some comma cannot stand between thousands, and there is no point."""
    found = False
    for text in texts:
        for piece in re.findall(r"\d[\d.,]*\d", cleaned(text)):
            if "." in piece and "," not in piece:
                return False
            if piece.count(",") == 1 and not _SEPARATED.fullmatch(piece):
                found = True
    return found
