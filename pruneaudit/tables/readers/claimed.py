"""TOML: files of claims, and the published tables that this project ships."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pruneaudit.catalog.claims import load_table
from pruneaudit.errors import ConfigError
from pruneaudit.schema import parse_toml, validate
from pruneaudit.tables.claims import ClaimsFile
from pruneaudit.tables.grid import Cell, Grid, build

_NOT = "not specified"


def read(path: Path, text: str) -> list[Grid]:
    """The table of a file.

    Raises:
        ConfigError: It is no TOML, or neither a file of claims nor a published table.
    """
    # As written: the digits of a number say how exact it is.
    content = parse_toml(path, text, str)
    if "claims" in content:
        return [_claims(path, text, content)]
    if "points" in content and "rows" in content:
        return [_published(path, text, content)]
    raise ConfigError(f"{path}: expected [[claims]], as 'pruneaudit tables --schema' describes them")


def _lines(text: str, header: str) -> list[int]:
    """Lines of the file that an array's tables begin at."""
    return [number for number, line in enumerate(text.split("\n"), 1) if line.split("#")[0].strip() == header]


def _claims(path: Path, text: str, content: dict[str, Any]) -> Grid:
    stated = validate(ClaimsFile, {**content, "name": path.stem}, path)
    shared = stated.shared.model_dump(exclude_unset=True)
    rows = [{**shared, **claim.model_dump(exclude_unset=True)} for claim in stated.claims]
    header = list(dict.fromkeys(kind for row in rows for kind in row))
    places = _lines(text, "[[claims]]")
    body: list[tuple[int, list[Cell] | None]] = [
        (places[place] if place < len(places) else 1, [Cell(str(row.get(kind, _NOT))) for kind in header])
        for place, row in enumerate(rows)
    ]
    title = ", ".join(part for part in (stated.paper, stated.table) if part)
    return build(path, 1, title, [[Cell(kind) for kind in header]], body, 1)


def _called(label: str, method: str) -> str:
    """A row's label with the id of its method, where it does not say it already."""
    return label if not method or method.lower() in label.lower() else f"{label} ({method})"


def _published(path: Path, text: str, content: dict[str, Any]) -> Grid:
    """A table of :mod:`pruneaudit.catalog.claims`, unfolded: a row for each accuracy."""
    table = load_table(path)
    header = ["method", "workload", "ratio", "speedup", "base_accuracy", "accuracy", "spread", "runs", "epochs"]
    header += ["schedule", "epoch_reported", "spread_kind"]
    places = _lines(text, "[[rows]]")
    known = {"not said": _NOT}
    body: list[tuple[int, list[Cell] | None]] = []
    for place, (row, written) in enumerate(zip(table.rows, content["rows"], strict=True)):
        for index, point in enumerate(table.points):
            mean = written["mean"][index]
            if str(mean) == "nan":
                continue
            printed = content["points"][index]
            cells = [
                _called(row.label, row.method),
                point.workload,
                printed["ratio"],
                printed.get("speedup", _NOT),
                # Training from random weights starts from no base.
                _NOT if row.method.startswith("scratch") else printed.get("base", _NOT),
                mean,
                written["std"][index] if row.std else _NOT,
                table.n,
                row.epochs[index] if isinstance(row.epochs, tuple) else row.epochs or _NOT,
                row.lr[index] if isinstance(row.lr, tuple) else row.lr or _NOT,
                known.get(table.epoch, table.epoch),
                known.get(table.std, table.std),
            ]
            body.append((places[place] if place < len(places) else 1, [Cell(str(cell)) for cell in cells]))
    return build(path, 1, f"{table.paper}, {table.table}", [[Cell(kind) for kind in header]], body, 1)
