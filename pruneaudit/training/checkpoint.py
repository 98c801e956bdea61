"""State of a stage between two epochs, so that a killed run goes on and ends bit-identical."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


@dataclass(frozen=True)
class Snapshot:
    """Tensors by name and JSON facts by name."""

    tensors: dict[str, torch.Tensor]
    facts: dict[str, Any]


class Checkpoint:
    """One file that is always whole: written beside, then renamed over.

    Args:
        path: The file; its folder must exist.
        device: Kind of device; a snapshot of another kind is not continued, it would not be bit-identical.
    """

    def __init__(self, path: Path, device: str) -> None:
        self.path = path
        self.device = device

    def save(self, snapshot: Snapshot) -> None:
        """Replace the snapshot."""
        part = self.path.with_suffix(".part")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in snapshot.tensors.items()}
        save_file(tensors, part, metadata={"facts": json.dumps({**snapshot.facts, "device": self.device})})
        os.replace(part, self.path)

    def discard(self) -> None:
        """Forget the snapshot: the stage starts anew after a kill."""
        self.path.unlink(missing_ok=True)

    def load(self) -> Snapshot | None:
        """The last snapshot, or None where there is none that can be continued."""
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                facts = json.loads(file.metadata()["facts"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
        except (SafetensorError, KeyError, TypeError, ValueError, OSError):
            return None
        if facts.get("device") != self.device:
            return None
        return Snapshot(tensors, facts)
