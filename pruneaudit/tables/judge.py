"""Results that people already have: one row for each run of their own, with what they can state of its budget."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pruneaudit.errors import ConfigError
from pruneaudit.tables.readers import read
from pruneaudit.tables.rows import Row, Table, understand

#: Columns that a file must have; the others of :data:`COLUMNS` may be left out or empty.
REQUIRED = ("method", "ratio", "seed", "accuracy")
#: Columns that are used, in the order of the template.
COLUMNS = (
    "workload",
    "protocol",
    *REQUIRED,
    "base",
    "base_accuracy",
    "speedup",
    "params",
    "granularity",
    "pruning_epochs",
    "pruning_schedule",
    "epochs",
    "schedule",
    "epoch_reported",
)
#: Workload and setup of rows that name none.
WORKLOAD, PROTOCOL = "results", "stated"
_TEXTS = ("base", "granularity", "pruning_epochs", "pruning_schedule", "epochs", "schedule", "epoch_reported")
_NUMBERS = ("accuracy", "base_accuracy", "speedup", "params")


def template() -> str:
    """A file to begin with: the columns, and two runs of two methods each."""
    rows = [
        ("l1", 0, 93.51),
        ("l1", 1, 93.44),
        ("mine", 0, 93.62),
        ("mine", 1, 93.57),
    ]
    lines = [",".join(COLUMNS)]
    for method, seed, accuracy in rows:
        lines.append(
            f"resnet56-cifar10,s3.2,{method},0.5,{seed},{accuracy},base-{seed},93.78,1.99,427952,filter,0,,120,"
            '"0:1e-2,60:1e-3,90:1e-4",last'
        )
    return "\n".join(lines) + "\n"


def stated(path: Path, mapping: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Runs of a file, checked: each once, each with method, ratio, seed and accuracy.

    Returns:
        A mapping for each run: ``line``, the columns above; numbers as numbers (accuracies in percent), None where a
        column says nothing.

    Raises:
        ConfigError: A column is missing, a cell holds no number, or two rows are the same run; the message says where.
    """
    tables = [understand(grid, mapping) for grid in read(path)]
    table = next((one for one in tables if {"method", "seed"} <= {column.kind for column in one.columns}), tables[0])
    kinds = {column.kind for column in table.columns}
    absent = [kind for kind in REQUIRED if kind not in kinds and not (kind == "accuracy" and "error" in kinds)]
    if absent:
        has = ", ".join(table.grid.header)
        raise ConfigError(
            f"{path}: no column for {', '.join(absent)} among {has}; 'pruneaudit judge --template' prints a file to "
            "begin with, --map HEADER=KIND names a column"
        )
    if table.grid.notes:
        line, note = table.grid.notes[0]
        raise ConfigError(f"{path}:{line}: {note}")
    runs = [_run(table, row) for row in table.rows]
    seen: dict[tuple[Any, ...], int] = {}
    for run in runs:
        key = tuple(run[kind] for kind in ("workload", "protocol", "method", "ratio", "seed"))
        if key in seen:
            name = ", ".join(map(str, key))
            raise ConfigError(f"{path}:{run['line']}: {name} is stated in line {seen[key]} already; a seed counts once")
        seen[key] = run["line"]
    return runs


def _run(table: Table, row: Row) -> dict[str, Any]:
    where = f"{table.path}:{row.line}"
    ratio, seed = row.number("ratio"), row.number("seed")
    if not row.text("method"):
        raise ConfigError(f"{where}: no method")
    if ratio is None or not 0 <= ratio.value < 1:
        raise ConfigError(f"{where}: ratio '{row.text('ratio')}' is no share that was pruned, 0 to 1 or in percent")
    if seed is None or seed.value < 0 or not float(seed.value).is_integer():
        raise ConfigError(f"{where}: seed '{row.text('seed')}' is no whole number")
    run: dict[str, Any] = {
        "line": row.line,
        "workload": row.text("workload") or "-".join(filter(None, row.task)) or WORKLOAD,
        "protocol": row.text("protocol") or PROTOCOL,
        "method": row.text("method"),
        "ratio": ratio.value,
        "seed": int(seed.value),
    }
    for kind in _NUMBERS:
        number, text = row.number(kind), row.text(kind)
        if number is None and text:
            raise ConfigError(f"{where}: {kind} '{text}' is no number")
        run[kind] = None if number is None else number.value
    error = row.number("error")
    if run["accuracy"] is None and error is not None:
        run["accuracy"] = 100 - error.value
    for kind in ("accuracy", "base_accuracy"):
        if run[kind] is not None and not 0 <= run[kind] <= 100:
            raise ConfigError(f"{where}: {kind} {run[kind]:g} is no accuracy in percent")
    for kind in _TEXTS:
        run[kind] = row.text(kind) or None
    return run
