"""Choices of a session that change numbers: part of every run's identity. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pruneaudit.arithmetic import PORTABLE, Arithmetic
from pruneaudit.catalog.cells import Cell
from pruneaudit.workloads.checkpoints import base_path, digest
from pruneaudit.workloads.schema import Budget, Reading, Workload

Precision = Literal["fp32", "bf16", "fp64", "pure-bf16"]
Backend = Literal["torch", "compiled", "tiled", "grouped", "fused", "graphed"]
#: Those of earlier versions, which train no more: what they made is read, judged and compared. ``compiled`` was for
#: LeNet-5 alone, which ``tiled`` trains as fast.
RETIRED: tuple[Backend, ...] = ("compiled",)
#: Backends whose steps are compiled for a CPU.
COMPILED: tuple[Backend, ...] = ("tiled",)
#: What is asked for where the backend is chosen for each workload (``campaign/choosing.py``).
AUTO = "auto"
#: Backends that train runs together.
TOGETHER: tuple[Backend, ...] = ("grouped", "fused", "graphed")


@dataclass(frozen=True)
class Settings:
    """Budget, precision, backend, base model, arithmetic and ranks.

    Attributes:
        budget: Label of scaled lengths.
        precision: Arithmetic of training.
        base: The user's own base checkpoint for every workload, or None.
        backend: What makes the steps of plain training, where it can: rounding differs, and grows while training. Or
            what says it of each workload, the same whenever it is asked: arms of one table are trained by one backend.
        arithmetic: ``portable``: the same bits on every x86-64 machine; ``native``: what this one does best.
        ranks: Processes that each training of the harness is shared by; 0: as many as its recipe says.
    """

    budget: Budget = "full"
    precision: Precision = "fp32"
    base: Path | None = None
    backend: Backend | Callable[[Workload], Backend] = "torch"
    arithmetic: Arithmetic = "native"
    ranks: int = 0

    def backend_of(self, workload: Workload) -> Backend:
        """What makes the steps of a workload's runs."""
        return self.backend if isinstance(self.backend, str) else self.backend(workload)

    def base_digest(self, workload: Workload) -> str | None:
        """SHA-256 of the checkpoint that replaces the base model, or None where one is trained.

        Raises:
            ConfigError: It cannot be read, or is no checkpoint.
        """
        path = base_path(self.base, workload)
        return None if path is None else _digest(path)

    def labels(self, workload: Workload) -> tuple[str, ...]:
        """Every setting that is not the default, for names and tables: results never mix across labels."""
        chosen = (self.budget, self.precision, self.backend_of(workload))
        labels: list[str] = [label for label in chosen if label not in ("full", "fp32", "torch")]
        base = self.base_digest(workload)
        if base is not None and workload.reading != Reading():
            # The same file read otherwise is another base.
            base = hashlib.sha256(f"{base} {workload.reading.model_dump_json()}".encode()).hexdigest()
        labels += [f"base{base[:8]}"] if base is not None else []
        labels += [f"ranks{self.ranks}"] if self.ranks else []
        # Last, so that what was computed in both arithmetics is found from either.
        return tuple([*labels, PORTABLE] if self.arithmetic == PORTABLE else labels)

    def key(self, cell: Cell, workload: Workload) -> str:
        """Name of a cell's record: its id and the labels."""
        return "-".join([cell.id, *self.labels(workload)])


@lru_cache(maxsize=16)
def _digest(path: Path) -> str:
    return digest(path)
