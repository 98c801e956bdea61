"""The report of audited tables: each table as it stands, marks on its cells, and what should stand there."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from jinja2 import Environment

from pruneaudit.errors import ConfigError
from pruneaudit.tables.columns import OTHERS
from pruneaudit.tables.command import Audited, unread
from pruneaudit.tables.rows import Table
from pruneaudit.tables.rule import Finding, Place
from pruneaudit.tables.setups import is_cut

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Audit of tables</title>
<style>
:root { color-scheme: light dark; --red: #b00d28; --amber: #8f5500; --blue: #1f5c9e; --line: #8886; }
@media (prefers-color-scheme: dark) { :root { --red: #ff8091; --amber: #f0ac4e; --blue: #7fb6f5; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem;
  overflow-wrap: break-word; }
.scroll { overflow-x: auto; padding: 2px; }
table { border-collapse: collapse; margin: .5rem 0 1rem; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem; text-align: left; vertical-align: top; }
th small { display: block; font-weight: normal; opacity: .75; }
tr.begins td { border-top: 2px solid var(--line); }
td.contradiction { outline: 2px solid var(--red); outline-offset: -2px; }
td.unequal { outline: 2px dashed var(--amber); outline-offset: -2px; }
td.missing { outline: 2px dotted var(--blue); outline-offset: -2px; }
td ins { color: var(--red); display: block; font-size: 85%; text-decoration: none; }
code { background: #8882; padding: 0 .3em; }
.contradiction > code { color: var(--red); }
.unequal > code { color: var(--amber); }
.missing > code { color: var(--blue); }
summary { cursor: pointer; }
@media print { .scroll { overflow: visible; } tr, li { break-inside: avoid; } body { font-size: 11px; } }
</style>
</head>
<body>
<h1>Audit of tables</h1>
<p>{{ count }} finding{{ '' if count == 1 else 's' }} in
{{ tables|length }} table{{ '' if tables|length == 1 else 's' }}.
<span class="contradiction"><code>Red</code></span>, a solid frame: numbers that cannot all be right, with what they
should be where it can be computed. <span class="unequal"><code>Amber</code></span>, dashed: what is compared is not
alike. <span class="missing"><code>Blue</code></span>, dotted: a reader needs it, and it is not there.</p>
{% if tables|length > 1 %}<ul>{% for table in tables %}
<li><a href="#table-{{ loop.index }}">{{ table.name }}</a>: {{ table.findings|length or 'no' }}
finding{{ '' if table.findings|length == 1 else 's' }}</li>{% endfor %}
</ul>{% endif %}
{% for table in tables %}
<h2 id="table-{{ loop.index }}">{{ table.name }}</h2>
<p>{{ table.file }}, line {{ table.line }}</p>
<div class="scroll" tabindex="0" role="region" aria-label="{{ table.name }}"><table>
<thead><tr>
{% for column in table.columns %}<th>{{ column.header }}<small>{{ column.kind }}</small></th>{% endfor %}
</tr></thead>
<tbody>{% for row in table.rows %}
{% if row.heading %}<tr><th colspan="{{ table.columns|length }}">{{ row.heading }}</th></tr>{% endif %}
<tr{% if row.begins %} class="begins"{% endif %}>
{%- for cell in row.cells %}<td{% if cell.kind %} class="{{ cell.kind }}" title="{{ cell.why }}"{% endif %}>
{%- if cell.bold %}<b>{{ cell.text }}</b>{% else %}{{ cell.text }}{% endif %}
{%- for right in cell.expected %}<ins>{{ right }}</ins>{% endfor %}</td>{% endfor %}</tr>{% endfor %}
</tbody></table></div>
{% if table.findings %}<ul>{% for finding in table.findings %}
<li class="{{ finding.rule.kind }}"><code title="{{ finding.rule.claim }} ({{ finding.rule.source }})">
{{- finding.rule.id }}</code> line {{ finding.mark.line }}:
{% if finding.mark.subject %}{{ finding.mark.subject }}: {% endif %}{{ finding.mark.message }}</li>{% endfor %}
</ul>{% else %}<p>Nothing found.</p>{% endif %}
{% if table.notes %}<p>How it was read:</p><ul>{% for note in table.notes %}
<li>{{ note }}</li>{% endfor %}</ul>{% endif %}
{% if table.setups %}<details><summary>Strictest setup that is shown between rows: {{ table.shown }}</summary>
<div class="scroll"><table><thead><tr><th>rows</th><th>setup</th><th>why no higher</th></tr></thead><tbody>
{% for setup in table.setups %}<tr><td>{{ setup.arms[0].method }}, {{ setup.arms[1].method }}</td>
<td>{{ setup.name or 'none' }}</td><td>{{ setup.why }}</td></tr>{% endfor %}
</tbody></table></div>
{% if table.more %}<p>and {{ table.more }}{% if table.is_cut %} or more{% endif %} pairs in tables.json</p>{% endif %}
</details>{% endif %}
{% endfor %}
</body>
</html>
"""
#: Pairs of rows that a page lists; tables.json has all.
_MOST_PAIRS = 200


def write(audited: Audited, folder: Path) -> list[Path]:
    """Write ``tables.html`` and ``tables.json``.

    Raises:
        ConfigError: The folder cannot be written.
    """
    import json

    files = {
        folder / "tables.html": page(audited),
        folder / "tables.json": json.dumps(audited.as_json(), indent=1) + "\n",
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"report {folder}: {error.strerror}; choose another folder with --report") from None
    return list(files)


def page(audited: Audited) -> str:
    """All tables with their marks as one HTML page."""
    found: dict[int, list[Finding]] = defaultdict(list)
    for finding in audited.findings:
        found[id(finding.mark.table)].append(finding)
    pairs: dict[int, list[Any]] = defaultdict(list)
    for setup in audited.setups():
        pairs[id(setup.table)].append(setup)
    tables = [_table(table, found[id(table)], pairs[id(table)]) for table in audited.tables]
    template = Environment(autoescape=True).from_string(_PAGE)
    return template.render(tables=tables, count=len(audited.findings))


def _table(table: Table, findings: list[Finding], pairs: list[Any]) -> dict[str, Any]:
    marks: dict[Place, list[Finding]] = defaultdict(list)
    for finding in findings:
        for place in finding.mark.cells:
            marks[place].append(finding)
    rows: list[dict[str, Any]] = []
    group, section = 0, ""
    for index, line in enumerate(table.grid.lines):
        row = []
        for column, cell in enumerate(line.cells):
            place = Place(index, column)
            here = marks.get(place, [])
            # What should stand there stands in the first cell that a mark names.
            expected = [one.mark.expected for one in here if one.mark.expected and one.mark.cells[0] == place]
            kind = min((one.rule.kind for one in here), default="")
            why = "; ".join(f"{one.rule.id} {one.mark.message}" for one in here)
            row.append({"text": cell.text, "bold": cell.bold, "kind": kind, "why": why, "expected": expected})
        heading = line.section if line.section != section else ""
        # A rule of the table, unless it is the one below its header.
        rows.append({"cells": row, "heading": heading, "begins": index and line.group != group and not heading})
        group, section = line.group, line.section
    counted = Counter(pair.name or "none" for pair in pairs)
    return {
        "name": table.name,
        "file": str(table.path),
        "line": table.grid.number,
        "columns": [
            {"header": _shown(column.header), "kind": column.kind if column.kind != OTHERS else ""}
            for column in table.columns
        ],
        "rows": rows,
        "findings": findings,
        "notes": [*table.remarks, *(f"line {line}: {note}" for line, note in table.grid.notes), *unread(table)],
        "shown": ", ".join(f"{name} {count:,}" for name, count in sorted(counted.items())),
        "setups": pairs[:_MOST_PAIRS],
        "more": max(0, len(pairs) - _MOST_PAIRS),
        "is_cut": is_cut(table),
    }


def _shown(header: str) -> str:
    """A header with the few signs of LaTeX that people put into Markdown."""
    for sign, shown in (("\\Delta", "Δ"), ("\\downarrow", "↓"), ("\\uparrow", "↑"), ("\\%", "%"), ("$", "")):
        header = header.replace(sign, shown)
    return header
