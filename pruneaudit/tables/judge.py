"""Results that people already have: one row for each run of their own, with what they can state of its budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pruneaudit.catalog.names import NO_SETUP
from pruneaudit.errors import ConfigError
from pruneaudit.schema import validate
from pruneaudit.tables.columns import check_headers, plain, recognise
from pruneaudit.tables.grid import Grid
from pruneaudit.tables.numbers import is_missing, parse, uses_decimal_comma
from pruneaudit.tables.readers import read
from pruneaudit.tables.rows import Row, Table, understand
from pruneaudit.workloads.metrics import ACCURACY, BUILT_IN, Metric, title

#: Columns that a file must have; the others of :data:`COLUMNS` may be left out or empty. Where another metric than
#: accuracy decides, its column is called ``value``, or by the metric's name.
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
#: What is said of a metric in a file of runs, and nowhere else: its number, that of the base model, and what it is.
OF_METRIC = ("value", "base_value", "metric", "unit", "direction", "margin")
#: Workload of rows that name none.
WORKLOAD = "results"
#: Where a metric's code would stand: nobody computes a stated one here.
STATED_FUNCTION = "stated"
_TEXTS = ("base", "granularity", "pruning_epochs", "pruning_schedule", "epochs", "schedule", "epoch_reported")
_BUDGETS = ("pruning_epochs", "pruning_schedule", "epochs", "schedule")
_NUMBERS = ("accuracy", "base_accuracy", "speedup", "params")
_FACTS = ("unit", "direction", "margin")


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


def stated(
    path: Path,
    mapping: Mapping[str, str] | None = None,
    metric: Mapping[str, Any] | None = None,
    known: Callable[[str], Metric | None] = lambda workload: None,
) -> list[dict[str, Any]]:
    """Runs of a file, checked: each once, each with method, ratio, seed and what decides.

    Args:
        path: The file.
        mapping: Kind of column by header, where the guess is wrong; those of :data:`OF_METRIC` included.
        metric: What decides, as far as the caller says it for all rows: ``name``, ``unit``, ``direction``, ``margin``.
        known: The metric of a workload that is described here; None for others.

    Returns:
        A mapping for each run: ``line``, the columns above; numbers as numbers, None where a column says nothing;
        ``metric`` as a :class:`Metric`, ``value`` and ``base_value`` in its unit (of accuracy in percent).

    Raises:
        ConfigError: A column is missing, a cell holds no number, two rows are the same run, or nobody says whether more
            of a metric is better; the message says where.
    """
    given = dict(metric or {})
    tables: list[Table] = []
    for grid in read(path):
        wanted = _of_metric(grid, mapping or {}, given.get("name", ""))
        # One row for each run, each complete: nothing is to be read between its lines.
        tables.append(understand(grid, wanted, as_printed=False))
    table = next((one for one in tables if {"method", "seed"} <= {column.kind for column in one.columns}), tables[0])
    check_headers(mapping or {}, [column.header for one in tables for column in one.columns])
    kinds = {column.kind for column in table.columns}
    decides = kinds & {"accuracy", "error", "value"}
    absent = [kind for kind in REQUIRED if kind not in kinds and not (kind == "accuracy" and decides)]
    if absent:
        has = ", ".join(table.grid.header)
        raise ConfigError(
            f"{path}: no column for {', '.join(absent)} among {has}; 'pruneaudit judge --template' prints a file to "
            "begin with, --map HEADER=KIND names a column"
        )
    if table.grid.notes:
        line, note = table.grid.notes[0]
        raise ConfigError(f"{path}:{line}: {note}")
    header = next((column.header for column in table.columns if column.kind == "value"), "")
    implied = next((name for name in BUILT_IN if plain(header) == plain(name)), "")
    commas = {
        column.place: uses_decimal_comma([line.cells[column.place].text for line in table.grid.lines])
        for column in table.columns
        if column.kind in ("value", "base_value")
    }
    runs = [_run(table, row, commas) for row in table.rows]
    # Budgets that are the same, such as 120 and 120.0, read as they are first written: texts are compared.
    written: dict[tuple[str, str], str] = {}
    for row, run in zip(table.rows, runs, strict=True):
        run |= {kind: written.setdefault((kind, row.budget(kind)), run[kind]) for kind in _BUDGETS if run[kind]}
    _decide(path, runs, given, implied, known)
    seen: dict[tuple[Any, ...], int] = {}
    for run in runs:
        key = tuple(run[kind] for kind in ("workload", "protocol", "method", "ratio", "seed"))
        if key in seen:
            name = ", ".join(map(str, key))
            raise ConfigError(f"{path}:{run['line']}: {name} is stated in line {seen[key]} already; a seed counts once")
        seen[key] = run["line"]
    return runs


def _of_metric(grid: Grid, mapping: Mapping[str, str], name: str) -> dict[str, str]:
    """The mapping with the columns of a metric: by their own names, or by the metric's."""
    headers = {plain(header): header for header in grid.header}
    found = {headers[plain(kind)]: kind for kind in OF_METRIC if plain(kind) in headers} | dict(mapping)
    if "value" in found.values():
        return found
    # Nobody has to rename the column 'perplexity'; an accuracy beside it decides unless another metric is asked for.
    names = [name] if name else [one for one in BUILT_IN if not _has_accuracy(grid, mapping)]
    for one in (one for one in names if one != ACCURACY.name):
        for called in (plain(one), plain(title(one))):
            if called in headers:
                base = headers.get(f"base {called}")
                return found | {headers[called]: "value"} | ({base: "base_value"} if base else {})
    return found


def _has_accuracy(grid: Grid, mapping: Mapping[str, str]) -> bool:
    return bool({"accuracy", "error"} & {column.kind for column in recognise(grid, mapping)})


def _run(table: Table, row: Row, commas: Mapping[int, bool]) -> dict[str, Any]:
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
        "protocol": row.text("protocol") or NO_SETUP,
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
    for kind in ("value", "base_value"):
        text = row.text(kind)
        number = parse(text, commas.get(row.entries[kind].column, False)) if text else None
        if text and number is None:
            raise ConfigError(f"{where}: {kind} '{text}' is no number")
        run[kind] = None if number is None else number.value
    for kind in ("metric", *_FACTS, *_TEXTS):
        run[kind] = row.text(kind) or None
    return run


def _decide(
    path: Path,
    runs: Sequence[dict[str, Any]],
    given: Mapping[str, Any],
    implied: str,
    known: Callable[[str], Metric | None],
) -> None:
    """Put the metric that decides into each run, with its number."""
    for workload in dict.fromkeys(run["workload"] for run in runs):
        members = [run for run in runs if run["workload"] == workload]
        metric = _metric(path, workload, members, given, implied, known(workload))
        for run in members:
            del run["unit"], run["direction"], run["margin"]
            run["metric"] = metric
            if metric.name == ACCURACY.name:
                for kind, accuracy in (("value", "accuracy"), ("base_value", "base_accuracy")):
                    run[kind] = run[accuracy] if run[accuracy] is not None else run[kind]
                    if run[kind] is not None and not 0 <= run[kind] <= 100:
                        raise ConfigError(f"{path}:{run['line']}: {run[kind]:g} is no accuracy in percent")
    if not any(run["value"] is not None for run in runs):
        names = ", ".join(dict.fromkeys(run["metric"].name for run in runs))
        raise ConfigError(
            f"{path}: no row has a value of {names}; its column is called 'value', or by the metric's name"
        )


def _metric(
    path: Path,
    workload: str,
    runs: Sequence[dict[str, Any]],
    given: Mapping[str, Any],
    implied: str,
    described: Metric | None,
) -> Metric:
    """What decides on one workload: as its rows say, or the caller, or its column's name, or its description."""
    name = _said(path, workload, runs, "metric") or given.get("name") or implied
    if not name and any(run["value"] is not None for run in runs):
        name = described.name if described is not None else ""
        if not name:
            raise ConfigError(
                f"{path}: column 'value', but no metric is named; add a column 'metric', or --metric NAME"
            )
    facts: dict[str, Any] = {"name": name or ACCURACY.name}
    if described is not None and described.name == facts["name"]:
        facts |= described.model_dump(include=set(_FACTS))
    if facts["name"] == ACCURACY.name and given.get("direction") == "lower":
        raise ConfigError("--direction lower: more accuracy is better; give errors in a column 'error'")
    if facts["name"] != ACCURACY.name:
        # Of accuracies the margin is the setup's, and the caller's is put in its place.
        facts |= {fact: given[fact] for fact in _FACTS if given.get(fact) is not None}
    for fact in _FACTS:
        text = _said(path, workload, runs, fact)
        if text and fact == "margin":
            number = parse(text)
            if number is None:
                raise ConfigError(f"{path}: margin '{text}' of {name} is no number")
            facts[fact] = number.value
        elif text:
            facts[fact] = text
    if facts["name"] not in BUILT_IN:
        facts["function"] = STATED_FUNCTION
        for fact in ("direction", "margin"):
            if fact not in facts:
                raise ConfigError(
                    f"{path}: nobody says the {fact} of '{name}'; add a column '{fact}', or --{fact} "
                    + ("higher or lower" if fact == "direction" else "with what does not matter, in its unit")
                )
    return validate(Metric, facts, path)


def _said(path: Path, workload: str, runs: Sequence[dict[str, Any]], kind: str) -> str:
    """What all rows of a workload say that say anything."""
    found = {run[kind]: run["line"] for run in reversed(runs) if run[kind] is not None and not is_missing(run[kind])}
    if len(found) > 1:
        first, second = list(found)[:2]
        raise ConfigError(
            f"{path}:{found[first]}: {kind} '{first}' of {workload}, but '{second}' in line {found[second]}; "
            "a workload is judged by one metric"
        )
    return next(iter(found), "")
