"""The web page of a report: one file that needs nothing beside it, and asks nothing of any network.

Verdicts are in the page as text. Everything else is data, compressed, from which the page's own script makes tables and
plots (plotly). A content security policy names the scripts by digest: nothing that a record says can become one.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import resources
from itertools import groupby
from typing import Any

import jinja2
from markupsafe import Markup

from pruneaudit.report.differences import Picture, pictures
from pruneaudit.report.payload import payload
from pruneaudit.report.published import PUBLISHED_NOTE
from pruneaudit.report.results import Results
from pruneaudit.report.sentences import Sentence, sentences
from pruneaudit.report.tables import NOISE_NOTE, besides, metric_facts, title, verdict_counts
from pruneaudit.state import cache_folder
from pruneaudit.version import __version__

_SCRIPTS = ("data.js", "tables.js", "plots.js", "page.js")


def page(results: Results) -> str:
    """The page as HTML."""
    script = "\n".join(_asset(name) for name in _SCRIPTS)
    plotly = _plotly()
    return _template().render(
        version=__version__,
        origin=results.origin,
        moment=results.moment,
        results=results,
        attempted=results.attempted,
        required=sum(row["required"] for row in results.findings),
        broken=sum(row["required"] and row["verdict"] == "fail" and not row["waived"] for row in results.findings),
        study=results.study["name"] if results.study else "",
        waived=results.study["waive"] if results.study else {},
        verdicts=_verdicts(results),
        metrics=metric_facts(results),
        counts=[
            before + verdict_counts(rows)
            for before, rows in (("", results.verdicts), ("Against the baseline: ", results.regressions))
            if rows
        ],
        # Ours, none of a stranger's words is in them.
        published_note=PUBLISHED_NOTE,
        noise_note=NOISE_NOTE,
        style=Markup(_asset("page.css")),
        script=Markup(script),
        digests=[_digest(script), _digest(plotly)],
        plotly=_packed_plotly(),
        data=_packed(json.dumps(payload(results), separators=(",", ":"), allow_nan=False)),
    )


def _asset(name: str) -> str:
    return (resources.files("pruneaudit.report") / "assets" / name).read_text(encoding="utf-8")


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(_asset("page.html.j2"))


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


@cache
def _packed_plotly() -> str:
    """Megabytes, the same in every page: packed once, and believed where they unpack to what they should."""
    kept = cache_folder() / "plotly.gz.b64"
    with suppress(OSError, ValueError, EOFError, zlib.error):
        known = kept.read_text(encoding="ascii")
        if gzip.decompress(base64.b64decode(known)) == _plotly().encode():
            return known
    packed = _packed(_plotly())
    # Who can keep nothing packs again next time; two at once write the same.
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_name(f".{kept.name}.{os.getpid()}.part")
        part.write_text(packed, encoding="ascii")
        part.replace(kept)
    return packed


@cache
def _digest(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _packed(text: str) -> str:
    """Text as gzip in base64: a tenth, and nothing in it can end a script element."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def _verdicts(results: Results) -> list[tuple[str, list[Picture], list[tuple[str, list[Sentence]]], list[str]]]:
    """Headings of workloads, each with pictures, operating points with their sentences, and what arms do besides."""
    return [
        (
            title(workload, tuple(labels)),
            pictures(results, workload, tuple(labels)),
            [(f"{name}, ratio {ratio:g}", sentences(rows, results.metric(workload))) for (name, ratio), rows in points],
            besides(members),
        )
        for (workload, labels), members in _grouped(results.verdicts, ("workload", "labels"))
        for points in [_grouped(members, ("protocol", "ratio"))]
    ]


def _grouped(rows: Sequence[Mapping[str, Any]], names: tuple[str, ...]) -> list[tuple[Any, list[Mapping[str, Any]]]]:
    """Rows by the values of some columns, in the order in which they stand."""
    return [(key, list(members)) for key, members in groupby(rows, lambda row: tuple(row[name] for name in names))]
