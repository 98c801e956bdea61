"""JSON: rows as objects (pandas ``orient="records"``, Weights & Biases), columns as objects, or pandas ``split``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pruneaudit.errors import ConfigError
from pruneaudit.tables.grid import Cell, Grid, build


def read(path: Path, text: str) -> list[Grid]:
    """The table of an export.

    Raises:
        ConfigError: It is no JSON, or of no such layout.
    """
    try:
        content = json.loads(text, parse_float=str, parse_int=str, parse_constant=str)
    except (json.JSONDecodeError, ValueError) as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None
    rows = _rows(content)
    if rows is None:
        raise ConfigError(
            f"{path}: expected a list of objects, one for each row, as pandas' to_json(orient='records') writes"
        )
    header = list(dict.fromkeys(name for row in rows for name in row))
    body: list[tuple[int, list[Cell] | None]] = [
        (place + 1, [Cell(_shown(row.get(name))) for name in header]) for place, row in enumerate(rows)
    ]
    return [build(path, 1, "", [[Cell(name) for name in header]], body, 1)]


def _rows(content: Any) -> list[dict[str, Any]] | None:
    if isinstance(content, list) and content and all(isinstance(row, dict) for row in content):
        return content
    if isinstance(content, dict) and isinstance(content.get("columns"), list) and isinstance(content.get("data"), list):
        names = [str(name) for name in content["columns"]]
        if all(isinstance(row, list) for row in content["data"]):
            return [dict(zip(names, row, strict=False)) for row in content["data"]]
    if isinstance(content, dict) and content and all(isinstance(column, dict) for column in content.values()):
        keys = list(dict.fromkeys(key for column in content.values() for key in column))
        return [{name: column.get(key) for name, column in content.items()} for key in keys]
    return None


def _shown(value: Any) -> str:
    return (
        ""
        if value is None
        else " ".join(str(value).split())
        if not isinstance(value, dict | list)
        else json.dumps(value)
    )
