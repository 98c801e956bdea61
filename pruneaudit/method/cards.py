"""Cards of methods: where each stands in the field's taxonomy, as rows and as a page."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from pruneaudit.catalog.discovery import Catalog, MethodSource
from pruneaudit.catalog.names import CORE_METHODS
from pruneaudit.schema import read_toml

if TYPE_CHECKING:
    from pruneaudit.workloads.schema import Workload

#: What a card says of a method, in the order of a table.
COLUMNS = ("name", "removes", "criterion", "scope", "schedule", "base", "training", "source")
_HEAD = """# Methods

The {count} methods that come with pruneaudit. This page is written by `pruneaudit methods --markdown` from the files
under `methods/`; what a paper does not say is *not specified*.

Layerwise methods remove the same share of every layer. Global ones have one threshold for all layers and reach the MACs
that uniform pruning leaves; `scratch-of-METHOD` trains the architecture that METHOD found from random weights.

Layers that lose channels together (on a residual stream, say) go by the mean of their scores. In `greg-1`, `greg-2`,
`sfp` and `tpp` the first of them decides, and each is penalised; `group-*` and `groupnorm` sum over all of them.
`channel-regression`, `oracle` and `thinet` take layers that lose filters alone.
"""
_SIDES = {"filter": "filters", "block": "blocks", "weight": "weights"}


def deviations(catalog: Catalog) -> dict[str, str]:
    """How built-in methods differ from their authors' code, as measured, by method.

    Not in the methods' own files: a sentence would change their digests, and with them the runs that stand.
    """
    path = catalog.root / "methods" / "deviations.toml"
    return {name: str(text) for name, text in read_toml(path).items()} if path.is_file() else {}


def rows(catalog: Catalog, names: Iterable[str] = ()) -> list[dict[str, Any]]:
    """A card for each method (or for some).

    Raises:
        MethodError: A method cannot be imported.
    """
    chosen = list(names) or list(catalog.methods)
    return [_row(catalog.method(name)) for name in chosen]


def _row(source: MethodSource) -> dict[str, Any]:
    from pruneaudit.method.contract import ScratchArm, taught

    method = source.create()
    card, published = method.card, method.published
    prunes = method.prunes and not isinstance(method, ScratchArm)
    return {
        "name": source.name,
        "core": source.name in CORE_METHODS,
        "removes": _SIDES[method.granularity] if prunes else "nothing",
        "criterion": card.criterion,
        "scope": method.scope if prunes else "",
        "schedule": card.schedule,
        "base": card.base,
        "training": card.training,
        "in_retraining": method.in_retraining,
        "teacher": f"the dense base; {soft}" if (soft := taught(method)) else "",
        "source": card.source,
        "summary": method.summary(),
        "description": inspect.getdoc(type(method)) or "",
        "parameters": method.parameters(),
        "published_recipe": published.source if published else "not specified",
        "defined_in": str(source.path or source.target),
    }


def refusals(catalog: Catalog, name: str, workloads: Iterable[Workload]) -> dict[str, list[str]]:
    """Workloads that a method does not apply to, by its reason."""
    found: dict[str, list[str]] = defaultdict(list)
    for workload in workloads:
        reason = catalog.method(name).create().skip(workload)
        if reason:
            found[reason].append(workload.name)
    return dict(found)


def page(catalog: Catalog) -> str:
    """The page of all methods, in Markdown."""
    cards, measured = rows(catalog), deviations(catalog)
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for card in cards:
        groups[
            "Controls that remove nothing" if card["removes"] == "nothing" else f"Methods that remove {card['removes']}"
        ].append(card)
    blocks = [_HEAD.format(count=len(cards)), ""]
    for heading in sorted(groups, key=lambda text: (text.startswith("Controls"), text)):
        shown = [column for column in COLUMNS if column not in ("removes", "source")]
        table = [[_cell(card[column], column) for column in shown] for card in groups[heading]]
        blocks += [f"## {heading}", "", tabulate(table, shown, tablefmt="pipe", disable_numparse=True), ""]
    blocks += ["## One by one", ""]
    for card in cards:
        blocks += [f"### {card['name']}", "", *_paragraphs(card["description"]), ""]
        facts = [f"Source: {card['source']}."]
        facts += [f"Beside the authors' code: {measured[card['name']]}"] if card["name"] in measured else []
        facts += [f"In retraining: {card['in_retraining']}."] if card["in_retraining"] else []
        facts += [f"Teacher in retraining: {card['teacher']}."] if card["teacher"] else []
        facts += [f"Retraining under S1 and S2: {card['published_recipe']}."] if card["removes"] != "nothing" else []
        if card["parameters"]:
            values = ", ".join(f"`{key} = {value!r}`" for key, value in card["parameters"].items())
            facts.append(f"Parameters: {values}.")
        reasons = refusals(catalog, card["name"], catalog.workloads.values())
        facts += [f"Not for {', '.join(names)}: {reason}." for reason, names in reasons.items()]
        blocks += [f"- {fact}".replace("..", ".") for fact in facts]
        blocks += [""]
    return "\n".join(blocks)


def _cell(value: Any, column: str) -> str:
    text = f"[{value}](#{value})" if column == "name" else str(value)
    return text.replace("|", "\\|")


def _paragraphs(description: str) -> list[str]:
    """A docstring as Markdown: double backticks become single ones, indented formulas stay code."""
    lines = description.split("Attributes:")[0].rstrip().splitlines()
    text = [line.replace("::", ":") if line.endswith("::") else line for line in lines]
    return [line.replace("``", "`") for line in text]
