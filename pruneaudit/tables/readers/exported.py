"""JSON: rows as objects (pandas ``records`` and ``table``, lines of them), columns as objects, or pandas ``split``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pruneaudit.errors import ConfigError
from pruneaudit.schema import stated_twice
from pruneaudit.tables.grid import Cell, Grid, build, marked


def read(path: Path, text: str) -> list[Grid]:
    """The table of an export.

    Raises:
        ConfigError: It is no JSON, or of no such layout.
    """
    content = _lines(path, text) if path.suffix.lower() == ".jsonl" else _parsed(path, text)
    rows = _rows(path, content)
    if rows is None:
        raise ConfigError(
            f"{path}: expected a list of objects, one for each row, as pandas' to_json(orient='records') writes"
        )
    header = list(dict.fromkeys(name for row in rows for name in row))
    body: list[tuple[int, list[Cell] | None]] = [
        (place + 1, [marked(_shown(row.get(name))) for name in header]) for place, row in enumerate(rows)
    ]
    return [build(path, 1, "", [[Cell(name) for name in header]], body, 1)]


def _parsed(path: Path, text: str) -> Any:
    # As written: the digits of a number say how exact it is.
    try:
        return json.loads(text, parse_float=str, parse_int=str, parse_constant=str, object_pairs_hook=_once)
    except (json.JSONDecodeError, ValueError) as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: lists or objects within each other too deeply to be read") from None


def _lines(path: Path, text: str) -> list[Any]:
    """One JSON value on each line."""
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                found.append(_parsed(path, line))
            except ConfigError as error:
                raise ConfigError(f"{path}:{number}: {str(error).partition(': ')[2]}") from None
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = stated_twice(pairs)
    if twice is not None:
        raise ValueError(f"'{twice}' is stated twice in one object")
    return dict(pairs)


def _rows(path: Path, content: Any) -> list[dict[str, Any]] | None:
    if isinstance(content, dict) and isinstance(content.get("data"), list) and "columns" not in content:
        # Pandas' 'table' has a schema beside its rows.
        content = content["data"]
    if isinstance(content, list) and content and all(isinstance(row, dict) for row in content):
        return content
    if isinstance(content, dict) and isinstance(content.get("columns"), list) and isinstance(content.get("data"), list):
        names = [str(name) for name in content["columns"]]
        if all(isinstance(row, list) for row in content["data"]):
            for place, row in enumerate(content["data"], 1):
                if len(row) != len(names):
                    raise ConfigError(f"{path}: row {place} of 'data' has {len(row)} cells for {len(names)} columns")
            if len(set(names)) < len(names):
                raise ConfigError(f"{path}: two of 'columns' have one name; give each its own")
            return [dict(zip(names, row, strict=True)) for row in content["data"]]
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
