"""One run, as a node of a cluster is told to compute it: ``pruneaudit run``, or a task of Ray. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from pruneaudit.arithmetic import Arithmetic
from pruneaudit.catalog.discovery import Catalog, Isolation
from pruneaudit.errors import AuditError, ConfigError, DamagedError
from pruneaudit.ledger.records import RunRecord, RunSpec
from pruneaudit.ledger.store import Ledger, read_file
from pruneaudit.method.outside import describing
from pruneaudit.schema import Frozen, validate

if TYPE_CHECKING:
    from pruneaudit.campaign.executors.local import LocalExecutor


class NotReadyError(AuditError):
    """What a run stands on is not there: nothing is wrong with the run."""


class Terms(Frozen):
    """What all runs of a session have in common and no identity holds: where things are found, how long is waited.

    Attributes:
        session: Id of the session: a run that failed in it is not tried again in it.
        ledger: Folder of the ledger, as nodes see it.
        folder: Where the session was started: names of files are meant from there.
        methods: Specs of ``--audit-method``.
        workloads: Specs of ``--audit-workload``.
        isolate: Which methods run in a process of their own.
        device: ``cpu`` or ``cuda``, of the node.
        data_root: Folder of datasets, or None.
        download: Whether torchvision may download.
        base: The user's own base checkpoint, or None.
        reports: Folder of reports, which a method has no business with.
        processes: Tasks that share a device.
        patience: Seconds that a method in a process of its own may say nothing.
        most: Seconds that such a process may be waited for in all, in one stage.
        arithmetic: What its runs are computed with.
    """

    session: str
    ledger: str
    folder: str
    methods: tuple[str, ...] = ()
    workloads: tuple[str, ...] = ()
    isolate: Isolation = "foreign"
    device: str = "cpu"
    data_root: str | None = None
    download: bool = False
    base: str | None = None
    reports: str | None = None
    processes: int = 1
    patience: float = 3600.0
    most: float = 7 * 24 * 3600.0
    arithmetic: Arithmetic = "native"

    def prepare(self) -> None:
        """Load in this process what its tasks need, so that the first of them finds it ready.

        Raises:
            ConfigError: What it takes is not on this machine.
        """
        if self.arithmetic == "portable":
            from pruneaudit.arithmetic import pin

            pin()
        _executor(self)


class Assignment(Frozen):
    """A run, and the terms of its session.

    Attributes:
        terms: The terms.
        spec: Identity of the run.
    """

    terms: Terms
    spec: RunSpec

    @classmethod
    def read(cls, path: Path) -> Assignment:
        """The assignment in a file.

        Raises:
            ConfigError: It cannot be read, or is none.
        """
        try:
            content = from_json(read_file(path))
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        except ValueError as error:
            raise ConfigError(f"{path}: not valid JSON: {error}") from None
        return validate(cls, content, path)

    def perform(self, listener: Callable[[list[dict[str, Any]]], None] | None = None) -> RunRecord:
        """Compute the run in this process, from where another one left it, and commit it to the ledger.

        Where another process is at it, its record is waited for.

        Args:
            listener: Called with what this process tells of the run while it is under way.

        Raises:
            RunFailedError: It failed; the ledger notes it.
            NotReadyError: A run that it stands on is not in the ledger.
            ConfigError: What it takes is not on this machine.
            StorageError: The ledger cannot be written.
        """
        if self.spec.arithmetic == "portable":
            from pruneaudit.arithmetic import pin

            pin()
        executor = _executor(self.terms)
        executor.bulletin.listener = listener
        try:
            for parent in self.spec.needs:
                executor.ledger.get(parent)
        except DamagedError as error:
            raise NotReadyError(str(error)) from None
        return executor.obtain(self.spec)


@lru_cache(maxsize=1)
def _executor(terms: Terms) -> LocalExecutor:
    """What computes runs of a session; a task that comes after another one in a process finds it ready."""
    try:
        os.chdir(terms.folder)
    except OSError as error:
        raise ConfigError(f"{terms.folder}: {error.strerror}; a cluster's nodes must see the same folders") from None
    from pruneaudit.campaign.executors.local import LocalExecutor
    from pruneaudit.campaign.stages import Stages
    from pruneaudit.training.runtime import Runtime

    catalog = Catalog(
        extra_methods=terms.methods,
        extra_workloads=terms.workloads,
        isolate=terms.isolate,
        outside=describing(Path(terms.ledger), _path(terms.reports), terms.data_root),
    )
    runtime = Runtime(
        device=terms.device,
        data_root=_path(terms.data_root),
        download=terms.download,
        base=_path(terms.base),
        reports=_path(terms.reports),
        processes=terms.processes,
        patience=terms.patience,
        most=terms.most,
    )
    runtime.prepare()
    ledger = Ledger(Path(terms.ledger))
    return LocalExecutor(ledger, Stages(ledger, catalog, runtime), terms.session)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
