"""The page of a study: its sentences and what became of them, numbers and figures of every panel.

Each part of a study writes what it found beside the others, ``parts/NAME.json``, and then the page of all that is
there: whoever ends last writes the whole page, in whatever order and process parts were measured.
"""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from tabulate import tabulate

from pruneaudit.catalog.protocols import Study
from pruneaudit.ledger.store import write_json
from pruneaudit.studies.judgement import Judgement, altogether
from pruneaudit.studies.panel import Panel
from pruneaudit.studies.slopes import Slopes

#: What criteria are called on the page; a method has its own name.
NAMES = {
    "loss": "training loss right after pruning",
    "early": "validation error after a short retraining",
    "mismatch": "places where the set differs from L1's",
    "chance": "a random number",
}
_HEAD = [
    "criterion",
    "tau",
    "95 %",
    "p",
    "null 95 %",
    "discordance",
    "anomaly",
    "regret",
    "held out",
]

#: Letters of a line of a title, in a figure of the width that figures have here.
_TITLE = 64


def write_panel(
    folder: Path, study: Study, facts: Mapping[str, str], panels: Sequence[Panel], judged: Sequence[Judgement]
) -> None:
    """Write what was found of one panel, and the page of all that is there.

    Args:
        folder: Where the study's page goes.
        study: The study.
        facts: What was measured, in words, by name.
        panels: The panel under each wiring.
        judged: What it says about the study's sentences.
    """
    rows = [row for panel in panels for row in panel.rows()]
    _place(folder / "networks" / f"{panels[0].name}.csv", _csv(rows).encode())
    for panel in panels:
        base = facts[f"base {panel.metric.name}"]
        _place(folder / "figures" / f"{panel.name}-{panel.wiring}.svg", scatter(panel, base))
        if panel.joint is not None:
            _place(folder / "figures" / f"{panel.name}-joint.svg", joint_figure(panel))
    part = {
        "title": f"{panels[0].name}: {len(panels[0].masks)} networks",
        "facts": dict(facts),
        "judgements": [one.model_dump() for one in judged],
        "tables": [
            {
                "caption": _caption(panel),
                "head": [*_HEAD, f"{panel.metric.name} of its choice"],
                "rows": _associations(panel),
            }
            for panel in panels
        ],
        "figures": [
            name
            for panel in panels
            for name in (
                f"{panel.name}-{panel.wiring}.svg",
                *([f"{panel.name}-joint.svg"] if panel.joint is not None else []),
            )
        ],
        "notes": [note for panel in panels for note in _notes(panel)],
        "measured": [
            {
                "wiring": panel.wiring,
                "relabelled_difference": panel.relabelled_difference,
                "associations": {name: panel.association(name).model_dump() for name in panel.criteria},
                "joint": None if panel.joint is None else vars(panel.joint),
            }
            for panel in panels
        ],
    }
    write_part(folder, study, panels[0].name, part)


def write_arms(
    folder: Path,
    study: Study,
    name: str,
    facts: Mapping[str, str],
    claim: str,
    judged: Sequence[Judgement],
    arms: Sequence[Mapping[str, Any]],
    curves: Mapping[str, Mapping[str, Slopes]],
) -> None:
    """Write what was found about two arms, and the page of all that is there.

    Args:
        folder: Where the study's page goes.
        study: The study.
        name: The part.
        facts: What was measured, in words, by name.
        claim: The sentence.
        judged: What becomes of it at each place.
        arms: Tables of what was measured of each arm: ``caption``, ``head`` and ``rows``.
        curves: Jacobians along retraining, by place and arm, where they were asked for.
    """
    figures = {f"{name}-{place.replace(' ', '-')}.svg": slopes_figure(place, arms) for place, arms in curves.items()}
    for file, drawn in figures.items():
        _place(folder / "figures" / file, drawn)
    rows = [[one.place, f"{one.value:+.2f}", _interval(one.low, one.high), one.measured, one.says] for one in judged]
    table = {"caption": claim, "head": ["where", "difference", "95 %", "measured", "the sentence"], "rows": rows}
    write_part(
        folder,
        study,
        name,
        {
            "title": name,
            "facts": dict(facts),
            "judgements": [one.model_dump() for one in judged],
            "tables": [table, *map(dict, arms), *([_slopes_table(curves)] if curves else [])],
            "figures": list(figures),
            "notes": [],
            "measured": [
                {"place": place, "arm": arm, **slopes.model_dump()}
                for place, both in curves.items()
                for arm, slopes in both.items()
            ],
        },
    )


def write_part(folder: Path, study: Study, name: str, part: Mapping[str, Any]) -> None:
    """Write a part, then the page."""
    parts = folder / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    write_json(parts / f"{name}.json", part)
    names = part_names(study)
    found = {
        name: json.loads((parts / f"{name}.json").read_text()) for name in names if (parts / f"{name}.json").exists()
    }
    missing = [name for name in names if name not in found]
    summary = summed_up([one for part in found.values() for one in part["judgements"]])
    write_json(
        folder / "results.json", {"study": study.name, "title": study.title, "sentences": summary, "parts": found}
    )
    figures = {
        name: (folder / "figures" / name).read_text(encoding="utf-8").partition("<svg")[2]
        for part in found.values()
        for name in part["figures"]
    }
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(_PAGE)
    text = template.render(study=study, parts=found, missing=missing, sentences=summary, figures=figures)
    _place(folder / "report.html", text.encode())
    _place(folder / "report.md", _markdown(study, found, missing, summary).encode())


def part_names(study: Study) -> list[str]:
    """Names of the parts that a study has: its panels, and its sentences about arms."""
    panels = [] if study.population is None else ["+".join(layers) for layers in study.population.panels]
    return [*panels, *(f"claim{number}" for number, _ in enumerate(study.claims, 1))]


def summed_up(judgements: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each sentence with what all places say together, and where."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for one in judgements:
        found.setdefault(one["text"], []).append(one)
    return [
        {
            "text": text,
            "source": places[0]["source"],
            "says": altogether([one["says"] for one in places]),
            "where": [
                f"{one['place']}: {one['says']} ({one['value']:+.2f}, 95 % {_interval(one['low'], one['high'])})"
                for one in places
            ],
        }
        for text, places in found.items()
    ]


def scatter(panel: Panel, base: str) -> bytes:
    """Training loss right after pruning against accuracy after retraining, as SVG."""
    import numpy as np

    figure, axes = _axes()
    metric = panel.metric
    loss, accuracy = np.array(panel.criteria["loss"]), metric.merit(1.0) * np.mean(panel.accuracies, axis=0)
    axes.scatter(loss, accuracy, s=9, color="#4477AA", linewidths=0, alpha=0.7, label="a set that stays")
    choice = int(loss.argmin())
    axes.scatter(loss[[choice]], accuracy[[choice]], s=60, marker="*", color="#EE6677", label="lowest loss")
    if panel.l1_place is not None:
        place = [panel.l1_place]
        axes.scatter(loss[place], accuracy[place], s=24, marker="s", color="#228833", label="L1 norm")
    found = panel.association("loss")
    axes.axhline(metric.merit(found.chosen), color="#EE6677", linewidth=0.5)
    if loss.max() > 20 * max(loss.min(), 1e-9):
        axes.set_xscale("log")
    axes.set_xlabel("training loss right after pruning (nats)")
    unit = metric.unit or metric.note
    axes.set_ylabel(f"test {metric.title} after retraining{f' ({unit})' if unit else ''}")
    _entitle(axes, f"{panel.name}, {panel.wiring}", f"tau {found.tau:+.2f}, p {found.p:.3g}; dense {base}")
    axes.legend(fontsize=7, frameon=False)
    return _svg(figure)


def slopes_figure(place: str, arms: Mapping[str, Slopes]) -> bytes:
    """Mean Jacobian singular values of arms along retraining, as SVG: solid in eval mode, dashed in train mode."""
    figure, axes = _axes()
    for (name, slopes), colour in zip(arms.items(), ("#4477AA", "#EE6677"), strict=True):
        axes.plot(slopes.running, color=colour, linewidth=1.4, label=f"{name}, eval mode")
        if slopes.batch:
            axes.plot(slopes.batch, color=colour, linewidth=1.0, linestyle="--", label=f"{name}, train mode")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("epochs of retraining")
    axes.set_ylabel("mean Jacobian singular value")
    axes.set_title(place, fontsize=8)
    axes.legend(fontsize=7, frameon=False)
    return _svg(figure)


def _slopes_table(curves: Mapping[str, Mapping[str, Slopes]]) -> dict[str, Any]:
    """The same as a table, a row for each arm and mode."""
    rows = [
        [place, arm, mode, *(f"{value:.2f}" for value in values)]
        for place, arms in curves.items()
        for arm, slopes in arms.items()
        for mode, values in (("eval", slopes.running), ("train", slopes.batch))
        if values
    ]
    longest = max(map(len, rows))
    return {
        "caption": "mean Jacobian singular value before retraining and after each of its epochs, first seed",
        "head": ["where", "arm", "mode", "before", *map(str, range(1, longest - 3))],
        "rows": [[*row, *[""] * (longest - len(row))] for row in rows],
    }


def joint_figure(panel: Panel) -> bytes:
    """Losses of all combinations of filters, as SVG."""
    joint = panel.joint
    assert joint is not None
    figure, axes = _axes()
    axes.stairs(joint.histogram, joint.edges, fill=True, color="#4477AA")
    axes.axvline(joint.lowest, color="#EE6677", linewidth=1, label="lowest of all")
    axes.axvline(joint.sampled, color="#228833", linewidth=1, linestyle="--", label="lowest of those retrained")
    axes.set_yscale("log")
    axes.set_xlabel(f"training loss right after pruning (nats, {joint.images} images)")
    axes.set_ylabel("combinations")
    _entitle(axes, panel.name, f"all {joint.combinations:,} combinations")
    axes.legend(fontsize=7, frameon=False)
    return _svg(figure)


def _axes() -> tuple[Any, Any]:
    # Its objects, never pyplot: no display, no global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.tick_params(labelsize=7)
    axes.xaxis.label.set_fontsize(8)
    axes.yaxis.label.set_fontsize(8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _entitle(axes: Any, name: str, says: str) -> None:
    """A title in as many lines as it needs: names of several layers are longer than a figure is wide."""
    title = textwrap.fill(f"{name.replace('+', ' + ')}: {says}", _TITLE, break_long_words=False, break_on_hyphens=False)
    axes.set_title(title, fontsize=8)


def _svg(figure: Any) -> bytes:
    import matplotlib

    # The same bytes from the same numbers.
    with matplotlib.rc_context({"svg.hashsalt": "pruneaudit"}):
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()


def _associations(panel: Panel) -> list[list[str]]:
    rows = []
    for name in panel.criteria:
        found = panel.association(name)
        held_out = "" if found.regret_held_out is None else f"{found.regret_held_out:+.2f}"
        rows.append(
            [
                NAMES.get(name, name),
                f"{found.tau:+.2f}",
                _interval(*found.tau_interval),
                f"{found.p:.3f}",
                _interval(*found.null),
                f"{100 * found.discordance:.0f} %",
                f"{100 * found.anomaly:.1f} %",
                f"{found.regret:.2f}",
                held_out,
                f"{panel.metric.merit(found.chosen):.2f}",
            ]
        )
    return rows


def _caption(panel: Panel) -> str:
    some = "all sets of filters" if panel.exhaustive else "drawn at random"
    found = panel.association("loss")
    metric, unit = panel.metric, panel.metric.unit_text
    more = f", {len(panel.repeats)} of {len(panel.several)} of them" if panel.several is not None else ""
    return (
        f"{panel.name}, {panel.wiring} wiring: {found.n} networks ({some}), {len(panel.accuracies)} retraining(s) each"
        f"{more}; {metric.name} {metric.merit(found.mean):.2f} ± {found.std:.2f}{unit}, "
        f"best {metric.merit(found.best):.2f}{unit}"
    )


def _notes(panel: Panel) -> list[str]:
    """Facts about a panel that have no column."""
    found = panel.association("loss")
    notes = [
        f"{panel.name}, {panel.wiring}: naming the channels of the base in another order changes the loss by at most "
        f"{panel.relabelled_difference:.1e} of 1 + loss"
        + (" (nothing may depend on names)" if panel.wiring == "correct" else ": these are no pruned networks")
    ]
    if found.repeat_tau is not None and found.ceiling is not None:
        notes.append(
            f"{panel.name}, {panel.wiring}: two retrainings of the same networks agree to tau {found.repeat_tau:+.2f}; "
            f"a criterion that knew everything would reach about {-found.ceiling:+.2f}"
        )
    joint = panel.joint
    if joint is not None:
        reached = sum(joint.accuracies) / len(joint.accuracies)
        notes.append(
            f"{panel.name}: over {joint.images} training images the lowest loss of all {joint.combinations:,} "
            f"combinations is {joint.lowest:.3f}; of those retrained {joint.sampled:.3f}, {joint.below:,} are lower"
            f". The exact oracle ends at {reached:.2f} %, the best of the sample at {found.best:.2f} %, the mean at "
            f"{found.mean:.2f} %"
        )
    return notes


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{low:+.2f}, {high:+.2f}]"


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _markdown(
    study: Study, parts: Mapping[str, Any], missing: Sequence[str], sentences: Sequence[Mapping[str, Any]]
) -> str:
    lines = [f"# {study.title}", "", *([study.source, ""] if study.source else [])]
    lines += [f"Not measured yet: {', '.join(missing)}.", ""] if missing else []
    if sentences:
        lines += ["## Sentences", ""]
        lines += [
            f"- **{one['says']}**: {one['text']} ({one['source']}) {'; '.join(one['where'])}" for one in sentences
        ]
        lines += [""]
    for part in parts.values():
        lines += [f"## {part['title']}", ""]
        lines += [f"- {name}: {value}" for name, value in part["facts"].items()]
        for table in part["tables"]:
            text = tabulate(table["rows"], table["head"], tablefmt="github", disable_numparse=True)
            lines += ["", table["caption"], "", text]
        lines += ["", *(f"- {note}" for note in part["notes"])]
        lines += [f"\n![{name}](figures/{name})" for name in part["figures"]]
        lines += [""]
    return "\n".join(lines)


def _place(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    aside.write_bytes(content)
    os.replace(aside, path)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ study.title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222;
  overflow-wrap: break-word }
table { border-collapse: collapse; font-size: 13px; margin: .5rem 0 1rem; display: block; overflow-x: auto }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left }
caption { text-align: left; font-weight: 600; padding: .3rem 0 } .holds { color: #1b7837 } .does { color: #b2182b }
figure { display: inline-block; margin: 0 1rem 1rem 0 } li { margin: .3rem 0 } .open { color: #666 }
</style></head><body>
<h1>{{ study.title }}</h1><p>{{ study.source }}</p>
{% if missing %}<p>Not measured yet: {{ missing | join(", ") }}.</p>{% endif %}
{% if sentences %}<h2>Sentences</h2><ul>
{% for one in sentences %}<li><strong class="{{ one.says.split()[0] }}">{{ one.says }}</strong>: {{ one.text }}
<em>({{ one.source }})</em><br>{{ one.where | join("; ") }}</li>
{% endfor %}</ul>{% endif %}
{% for part in parts.values() %}<h2>{{ part.title }}</h2>
<ul>{% for name, value in part.facts.items() %}<li>{{ name }}: {{ value }}</li>{% endfor %}</ul>
{% for name in part.figures %}<figure><svg{{ figures[name] | safe }}</figure>{% endfor %}
{% for table in part.tables %}<table><caption>{{ table.caption }}</caption>
<tr>{% for name in table.head %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in table.rows %}<tr>{% for value in row %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}</table>{% endfor %}
<ul>{% for note in part.notes %}<li>{{ note }}</li>{% endfor %}</ul>
{% endfor %}</body></html>
"""
