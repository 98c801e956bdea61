"""Whether a stored cell still counts, or was measured by another version of what it names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from pruneaudit.catalog.cells import Cell
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.names import finder
from pruneaudit.catalog.protocols import Protocol
from pruneaudit.catalog.settings import Settings
from pruneaudit.errors import ConfigError
from pruneaudit.ledger.records import NUMERICS_VERSION, CellRecord, RunRecord
from pruneaudit.ledger.store import Ledger
from pruneaudit.sources import Source
from pruneaudit.workloads.schema import Workload


def stored_cell(cell: Cell, catalog: Catalog, settings: Settings, ledger: Ledger) -> CellRecord | None:
    """The record of a cell as the ledger holds it; None where it holds none that still counts."""
    record = ledger.cell(settings.key(cell, catalog.workload(cell.workload)))
    # A scratch arm of a found architecture depends on the method that found it.
    pruner = finder(cell.method) or cell.method
    source = catalog.methods.get(pruner)
    digests = {pruner: source.digest} if source is not None and source.path is not None else {}
    return None if record is None or why_outdated(record, catalog, ledger, digests) else record


def method_digests(catalog: Catalog, ledger: Ledger, records: Iterable[CellRecord]) -> dict[str, str]:
    """Source digest that counts for each method: its file's today, else the one that ran last."""
    # Under every protocol stand cells on the same ones.
    pruned = {run: None for record in records if (run := _pruning(record, ledger)) is not None}
    runs = map(ledger.get, pruned)
    latest = {str(run.method): str(run.method_digest) for run in sorted(runs, key=lambda run: run.finished)}
    files = {name: source for name, source in catalog.methods.items() if name in latest and source.path is not None}
    return latest | {name: source.digest for name, source in files.items()}


def outdated(
    records: Iterable[CellRecord], catalog: Catalog, ledger: Ledger, digests: Mapping[str, str]
) -> dict[int, str]:
    """Why each of some cells no longer counts, or nothing, by its ``id``."""
    # Under many protocols stand cells on the same runs.
    known: dict[tuple[str | None, ...], str] = {}
    found: dict[int, str] = {}
    for record in records:
        why = _why_itself(record, catalog)
        if not why:
            chain = (record.workload, record.method, record.base, record.topup, record.prune, record.result)
            key = (*chain, *record.trials)
            if key not in known:
                known[key] = _why_its_runs(record, catalog, ledger, digests)
            why = known[key]
        found[id(record)] = why
    return found


def why_outdated(record: CellRecord, catalog: Catalog, ledger: Ledger, digests: Mapping[str, str]) -> str:
    """Why a cell no longer counts, or nothing."""
    return _why_itself(record, catalog) or _why_its_runs(record, catalog, ledger, digests)


def _why_itself(record: CellRecord, catalog: Catalog) -> str:
    """What it names has another version by now."""
    find: tuple[tuple[str, str, int, Callable[[str], Workload | Protocol]], ...] = (
        ("workload", record.workload, record.workload_version, catalog.workload),
        ("protocol", record.protocol, record.protocol_version, catalog.protocol),
    )
    for kind, name, version, known in find:
        try:
            current = known(name).version
        except ConfigError:
            how = "; give its file with --audit-workload" if kind == "workload" else ""
            return f"{kind} {name} is not here{how}"
        if current != version:
            return f"measured under {kind} version {version}, now {current}; run it again"
    metric = catalog.workload(record.workload).metric
    if not metric.decides_as(record.metric):
        return f"measured by {record.metric.title}, now {metric.title} decides; run it again"
    return ""


def _why_its_runs(record: CellRecord, catalog: Catalog, ledger: Ledger, digests: Mapping[str, str]) -> str:
    """What its runs trained is another by now."""
    workload = catalog.workload(record.workload)
    metric = workload.metric
    if metric.function and record.result is not None:
        source = Source.parse(metric.function, workload.folder or Path())
        if ledger.get(record.result).metric_digest != source.digest:
            return f"measured with another version of {metric.function}; run it again"
    runs = [ledger.get(run) for run in record.runs]
    if any(run.numerics != NUMERICS_VERSION for run in runs):
        return "measured by another version of the training code; run it again"
    if any(_builds_another(workload, run) for run in runs):
        return "measured with another version of the workload's network; run it again"
    pruning = _pruning(record, ledger)
    if pruning is not None:
        run = ledger.get(pruning)
        if run.method_digest != digests.get(str(run.method), run.method_digest):
            return "measured with another version of the method's file; run it again"
    return ""


def _builds_another(workload: Workload, run: RunRecord) -> bool:
    """Whether a run trained another network than the workload has today; of built-in ones, versions tell."""
    if not (run.model_source or workload.model_source):
        return False
    stored = (run.model, run.model_args, run.model_source)
    return stored != (workload.model, workload.model_args, workload.model_source)


def _pruning(record: CellRecord, ledger: Ledger) -> str | None:
    """The prune run that a cell's network comes from; None where it has none."""
    if record.prune is not None or record.result is None or finder(record.method) is None:
        return record.prune
    return ledger.get(record.result).shape_of
