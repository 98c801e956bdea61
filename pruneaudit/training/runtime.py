"""Where runs execute: device, data, and what is fixed so that numbers depend on neither workers nor kernels."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from pruneaudit import arithmetic
from pruneaudit.training import memory
from pruneaudit.version import __version__
from pruneaudit.workloads.data import look_in


@dataclass(frozen=True)
class Runtime:
    """Where runs execute.

    Attributes:
        device: ``cpu`` or ``cuda``.
        data_root: Folder of torchvision datasets, or None.
        download: Whether torchvision may download.
        base: The user's own base checkpoint, or None.
        reports: Folder of reports, which a method has no business with; None where there is none.
        processes: Processes that share the device: each takes its part of the free memory.
        patience: Seconds that a method in a process of its own may say nothing.
        most: Seconds that such a process may be waited for in all, in one stage.
    """

    device: str = "cpu"
    data_root: Path | None = None
    download: bool = False
    base: Path | None = None
    reports: Path | None = None
    processes: int = 1
    patience: float = 3600.0
    most: float = 7 * 24 * 3600.0

    def prepare(self) -> None:
        """Fix what would make numbers depend on the number of workers or on the kernel chosen, and what steps cost."""
        # One thread per process on CPU: sums then do not depend on -n, and workers do not starve each other.
        torch.set_num_threads(1)
        look_in(self.data_root)
        memory.keep()
        arithmetic.settle()
        if self.device == "cuda":
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.deterministic = True
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False

    def environment(self) -> dict[str, str]:
        """Versions and hardware, for records."""
        cuda = self.device == "cuda"
        return {
            "pruneaudit": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "platform": platform.platform(),
            "device": torch.cuda.get_device_name() if cuda else (platform.processor() or platform.machine()),
            "threads": str(torch.get_num_threads()),
            **({"commit": commit} if (commit := _commit()) else {}),
        }


@cache
def _commit() -> str:
    """Commit of the checkout that this code runs from, "-dirty" where it was edited; nothing where it is installed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
