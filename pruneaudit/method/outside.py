"""What a method has no business with, and what asks one what it says of itself: nobody who does not ask loads torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pruneaudit.catalog.discovery import MethodSource
from pruneaudit.state import data_root


def closed(ledger: Path | None, reports: Path | None, data: Sequence[Path]) -> dict[str, list[Path]]:
    """Places that a method has no business with, by what they hold: datasets on disk, other runs, reports.

    Args:
        ledger: Folder of the ledger.
        reports: Folder of reports.
        data: Where datasets are.
    """
    runs = [] if ledger is None else [ledger / name for name in ("runs", "cells", "failures")]
    return {"data": list(data), "ledger": runs, "reports": [] if reports is None else [reports]}


def describing(
    ledger: Path | None = None, reports: Path | None = None, data: str | Path | None = None
) -> Callable[[MethodSource], Any]:
    """What asks isolated methods what they say of themselves: by nothing that was measured, and no data.

    Args:
        ledger: Folder of the ledger.
        reports: Folder of reports.
        data: Folder of datasets, as for ``--audit-data-root``.
    """
    return partial(_described, ledger, reports, data_root(None if data is None else str(data)))


def _described(ledger: Path | None, reports: Path | None, data: Path | None, source: MethodSource) -> Any:
    from pruneaudit.method.isolation import described
    from pruneaudit.workloads.data import stored_at

    return described(source, closed(ledger, reports, stored_at(data)))
