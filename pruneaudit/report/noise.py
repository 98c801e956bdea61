"""The noise floor: what the arithmetic alone changes, from cells that a ledger holds in native and in portable one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Set
from dataclasses import asdict
from typing import Any

from pruneaudit.arithmetic import PORTABLE
from pruneaudit.ledger.noise import Noise
from pruneaudit.ledger.records import CellRecord, RunSpec
from pruneaudit.ledger.store import Ledger

#: What sets a run apart from its twin in the other arithmetic: names of runs, and what pruning found.
_OF_ITS_OWN: dict[str, Any] = {"arithmetic": "native", "parent": None, "shape_of": None, "widths": {}}


def noise_rows(records: Iterable[CellRecord], ledger: Ledger) -> list[dict[str, Any]]:
    """One row for each protocol and ratio of a workload under its labels, where some cell has a twin.

    Args:
        records: Cells that count.
        ledger: Where they, and cells of other labels, are stored.
    """
    points: dict[tuple[Any, ...], dict[str, dict[int, tuple[float, float]]]] = defaultdict(lambda: defaultdict(dict))
    keys = ledger.cell_keys()
    for record in records:
        twin = _twin(record, ledger, keys)
        if twin is not None and record.value is not None and twin.value is not None:
            arms = points[record.workload, record.labels, record.protocol, record.ratio]
            arms[record.method][record.seed] = record.value, twin.value
    return [
        {"workload": workload, "labels": list(labels), "protocol": protocol, "ratio": ratio}
        | asdict(Noise.of(arms.values()))
        for (workload, labels, protocol, ratio), arms in sorted(points.items())
    ]


def _twin(record: CellRecord, ledger: Ledger, keys: Set[str]) -> CellRecord | None:
    """The same cell computed in the other arithmetic; None where the ledger holds none that was made alike."""
    labels = [label for label in record.labels if label != PORTABLE]
    labels += [] if PORTABLE in record.labels else [PORTABLE]
    key = "-".join([record.cell.id, *labels])
    # Most ledgers have none, and a hundred thousand looks at a disk take their time.
    twin = ledger.cell(key) if record.status == "ok" and key in keys else None
    if twin is None or twin.status != "ok" or ledger.damage(twin) is not None:
        return None
    return twin if _made(record, ledger) == _made(twin, ledger) else None


def _made(record: CellRecord, ledger: Ledger) -> list[RunSpec]:
    return [ledger.get(run).spec.model_copy(update=_OF_ITS_OWN) for run in record.runs]
