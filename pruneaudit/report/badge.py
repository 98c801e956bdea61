"""A badge for a README: how many required fairness checks hold."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from importlib import resources

import jinja2

from pruneaudit.report.results import Results

LABEL = "pruneaudit"
#: Advance of the badge font, DejaVu Sans at 11 px, as a mean over letters and digits.
_ADVANCE = 6.6
_PADDING = 10


@dataclass(frozen=True)
class Badge:
    """What a badge says.

    Attributes:
        message: Its right half.
        colour: Of the right half, dark enough for white letters.
    """

    message: str
    colour: str

    @property
    def svg(self) -> str:
        """The picture; asks nothing of a network."""
        left, right = (round(len(text) * _ADVANCE) + _PADDING for text in (LABEL, self.message))
        text = (resources.files("pruneaudit.report") / "assets" / "badge.svg.j2").read_text(encoding="utf-8")
        template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(text)
        facts = {"label": LABEL, "left": left, "width": left + right, "padding": _PADDING}
        return template.render(message=self.message, colour=self.colour, **facts) + "\n"

    @property
    def endpoint(self) -> str:
        """The same for shields.io's endpoint badge, as JSON."""
        facts = {"schemaVersion": 1, "label": LABEL, "message": self.message, "color": self.colour}
        return json.dumps(facts, indent=1, sort_keys=True) + "\n"


def badge(results: Results) -> Badge:
    """The badge of a report: fair only where everything was measured and every required check holds or is waived."""
    required = [row for row in results.findings if row["required"]]
    counts = Counter("waived" if row["waived"] else row["verdict"] for row in required)
    lost = sum(row["status"] not in ("ok", "skipped") for row in results.cells)
    if counts["fail"]:
        return Badge(f"{counts['fail']} of {len(required)} checks fail", "#b3400a")
    if lost or counts["incomplete"]:
        return Badge(f"incomplete, {lost} of {len(results.cells)} cells missing" if lost else "incomplete", "#7a5a00")
    if not counts["pass"]:
        return Badge("nothing measured", "#59626f")
    waived = f", {counts['waived']} waived" if counts["waived"] else ""
    return Badge(f"fair, {counts['pass']} of {len(required)} checks hold{waived}", "#00664b")
