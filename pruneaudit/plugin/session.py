"""State of one pytest session: what was selected, and who measures and judges it."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pruneaudit.audit.catalogue import rules
from pruneaudit.audit.currency import stored_cell
from pruneaudit.audit.judge import Finding, judge
from pruneaudit.catalog import Catalog
from pruneaudit.cells import Cell, Comparison, Selection, is_scratch
from pruneaudit.errors import AuditError, ConfigError, DataMissingError, unknown
from pruneaudit.ledger import Ledger
from pruneaudit.plugin.device import visible_gpus
from pruneaudit.records import CellRecord
from pruneaudit.settings import Settings

if TYPE_CHECKING:
    from pruneaudit.campaign import Campaign
    from pruneaudit.stages import Runtime


@dataclass(frozen=True)
class Check:
    """A fairness item: one comparison × one rule."""

    comparison: Comparison
    rule: str

    @property
    def id(self) -> str:
        """Readable id, such as ``resnet56-digits-l1-vs-tpp-s3.2-r0.5-F321``."""
        return f"{self.comparison.id}-{self.rule}"


@dataclass(frozen=True)
class ConformanceCase:
    """A conformance item: one method × one check on a workload."""

    workload: str
    method: str
    check: str

    @property
    def id(self) -> str:
        """Readable id, such as ``lenet5-digits-l1-deterministic``."""
        return f"{self.workload}-{self.method}-{self.check}"


class AuditSession:
    """What the options select, and the campaign that measures it. Torch is loaded when the first item needs it.

    Args:
        config: The pytest configuration.

    Raises:
        pytest.UsageError: An option or a TOML file is wrong.
    """

    def __init__(self, config: pytest.Config) -> None:
        option = config.option
        try:
            self.catalog = Catalog(extra_methods=tuple(option.audit_method))
            methods = self.catalog.select_methods(option.audit_methods)
            protocols = self.catalog.select_protocols(option.audit_protocols)
            if option.audit_seeds is not None and option.audit_seeds < 1:
                raise ConfigError("--audit-seeds: expected a number of at least 1")
            self.selection = Selection(self.catalog, methods, protocols, option.audit_seeds)
            base = Path(option.audit_base) if option.audit_base else None
            self.settings = Settings(option.audit_budget, option.audit_precision, base)
            # Reads every TOML file and every base's digest now: a wrong one is told before anything runs.
            self.labels = {name: self.settings.labels(job) for name, job in self.catalog.workloads.items()}
            for protocol in self.catalog.protocols.values():
                for rule in protocol.requires:
                    if rule not in rules():
                        path = self.catalog.root / "protocols" / f"{protocol.name}.toml"
                        raise ConfigError(f"{path}: requires: {unknown('rule', rule, rules())}")
            self.root = config.rootpath
            self.ledger_path = self.root / option.audit_ledger
            self.report_path = self.root / option.audit_report
            _check_folder(self.report_path, "--audit-report")
            if option.audit_device == "cuda" and not visible_gpus():
                raise ConfigError("--audit-device cuda: no CUDA device is visible here; leave it out or give cpu")
            self.ledger = Ledger(self.ledger_path)
        except AuditError as error:
            raise pytest.UsageError(str(error)) from None
        self.data_root_option: str | None = option.audit_data_root
        self.download: bool = option.audit_download
        self.device_option: str = option.audit_device
        # Workers of one session share its id, so that a run that failed for one of them is not tried by the next.
        self.id = os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid.uuid4().hex
        self.selected: list[Cell] = []
        self._measured: dict[Cell, CellRecord] = {}
        self._obstacles: dict[str, str | None] = {}

    @cached_property
    def device(self) -> str:
        """``cuda`` or ``cpu``, found without torch."""
        if self.device_option != "auto":
            return self.device_option
        return "cuda" if visible_gpus() else "cpu"

    @cached_property
    def runtime(self) -> Runtime:
        """Where runs execute."""
        from pruneaudit.stages import Runtime
        from pruneaudit.workloads.datasets import data_root

        root = data_root(self.data_root_option)
        if root is None and self.download:
            root = self.root / ".pruneaudit" / "data"
        return Runtime(self.device, root, self.download, self.settings.base)

    @cached_property
    def campaign(self) -> Campaign:
        """Plans and obtains cells; its backlog are the runs of all selected cells."""
        from pruneaudit.campaign import Campaign
        from pruneaudit.executors.local import LocalExecutor
        from pruneaudit.stages import Stages

        self.runtime.prepare()
        executor = LocalExecutor(self.ledger, Stages(self.ledger, self.catalog, self.runtime), self.id)
        campaign = Campaign(self.catalog, self.ledger, self.settings, executor)
        executor.share(campaign.runs(cell for cell in self.selected if self.obstacle(cell.workload) is None))
        return campaign

    def cells(self) -> list[Cell]:
        """All cells of the selection."""
        return self.selection.cells()

    def checks(self) -> list[Check]:
        """All comparisons × the rules that their protocol requires."""
        return [
            Check(comparison, rule)
            for comparison in self.selection.comparisons()
            for rule in self.catalog.protocol(comparison.protocol).requires
        ]

    def conformance(self) -> list[ConformanceCase]:
        """All conformance cases."""
        from pruneaudit.conformance import METHOD_CHECKS, SCRATCH_CHECKS

        return [
            ConformanceCase(workload, method, check)
            for workload in self.catalog.workloads
            for method in self.selection.methods
            for check in (SCRATCH_CHECKS if is_scratch(method) else METHOD_CHECKS)
        ]

    def obstacle(self, workload: str) -> str | None:
        """Why a workload cannot run here, in one line that says what to do; None where it can."""
        if workload not in self._obstacles:
            self._obstacles[workload] = self._look_for_obstacle(workload)
        return self._obstacles[workload]

    def _look_for_obstacle(self, name: str) -> str | None:
        workload = self.catalog.workload(name)
        if workload.gpu and self.device == "cpu" and self.device_option != "cpu":
            return f"{name} is GPU-sized and there is no CUDA device; add --audit-device cpu to insist"
        import torch

        from pruneaudit.workloads.datasets import load

        if self.device == "cuda" and not torch.cuda.is_available():
            return f"{name}: this torch cannot use the CUDA device; install a CUDA build, or add --audit-device cpu"
        try:
            load(workload.data, self.runtime.data_root, self.download)
        except DataMissingError as error:
            return f"{name}: {error}"
        return None

    def measure(self, cell: Cell) -> CellRecord:
        """The record of a cell, measured now where the ledger lacks it."""
        if cell not in self._measured:
            self._measured[cell] = self.campaign.obtain(cell)
        return self._measured[cell]

    def judge(self, check: Check) -> Finding:
        """The finding of a fairness item, measuring what is missing."""
        return judge(check.comparison, check.rule, self.measure, self.ledger, self.labels[check.comparison.workload])

    def stored_finding(self, check: Check) -> Finding:
        """The finding of a fairness item from what the ledger holds."""
        return judge(check.comparison, check.rule, self.stored, self.ledger, self.labels[check.comparison.workload])

    def stored(self, cell: Cell) -> CellRecord | None:
        """The record of a cell as the ledger holds it; None where it holds none that still counts."""
        return stored_cell(cell, self.catalog, self.settings, self.ledger)

    def require(self, workload: str, *methods: str) -> None:
        """Skip the running test where the workload cannot run here, or a method says that it does not apply."""
        obstacle = self.obstacle(workload)
        for name in methods if obstacle is None else ():
            reason = self._declined(name, workload)
            obstacle = obstacle or (f"{name} does not apply to {workload}: {reason}" if reason else None)
        if obstacle is not None:
            pytest.skip(obstacle)

    def _declined(self, name: str, workload: str) -> str | None:
        """Why a method does not apply, by its own word; a broken method is told where it is used."""
        try:
            return self.catalog.method(name).create().skip(self.catalog.workload(workload))
        except Exception:
            return None

    def header(self) -> str:
        """One line that says what this session compares, and how."""
        protocols = " ".join(f"{name}@{self.catalog.protocol(name).version}" for name in self.selection.protocols)
        seeds = f"seeds 0-{self.selection.seeds - 1}" if self.selection.seeds else "seeds of each workload"
        parts = [
            f"protocols {protocols}",
            f"methods {' '.join(self.selection.methods)}",
            seeds,
            f"{self.device} {self.settings.precision}",
            f"budget {self.settings.budget}",
            f"ledger {self.ledger_path}",
        ]
        return "pruneaudit: " + " · ".join(parts)


def _check_folder(path: Path, option: str) -> None:
    """Refuse a folder that cannot be written when the session ends, before it starts."""
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigError(f"{option} {path}: {existing} is no folder that can be written; choose another")


def item_target(item: Any) -> Cell | Check | ConformanceCase | None:
    """What an item of the suite measures or judges; None for other tests."""
    callspec = getattr(item, "callspec", None)
    for name in ("audit_conformance", "audit_cell", "audit_check"):
        if callspec is not None and name in callspec.params:
            target: Cell | Check | ConformanceCase = callspec.params[name]
            return target
    return None
