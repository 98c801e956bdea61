"""State of a stage between two epochs, so that a killed run goes on and ends bit-identical."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from pruneaudit.ledger.store import storage_error


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
        every: Seconds between two snapshots at least: an epoch of a small network takes less time than its snapshot.
    """

    #: When the next snapshot is due, by a clock that only goes on; the first one is at once.
    _due = 0.0

    def __init__(self, path: Path, device: str, every: float = 0.0) -> None:
        self.path = path
        self.device = device
        self.every = every
        # No two processes write one file, on whatever host: a lease may be lost to another while its holder is stopped.
        self._part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")

    @property
    def is_due(self) -> bool:
        """Whether so much time has passed since the last snapshot that another one is worth it."""
        return time.monotonic() >= self._due

    def save(self, snapshot: Snapshot) -> None:
        """Replace the snapshot.

        Raises:
            StorageError: There is no room for it, or the ledger may not be written.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in snapshot.tensors.items()}
        facts = json.dumps({**snapshot.facts, "device": self.device})
        content = save(tensors, metadata={"facts": facts, "digest": _digest(tensors, facts)})
        try:
            self._part.write_bytes(content)
            os.replace(self._part, self.path)
        except OSError as error:
            raise storage_error(error, self.path.parent.parent.parent) from None
        self._due = time.monotonic() + self.every

    def discard(self) -> None:
        """Forget the snapshot: the stage starts anew after a kill."""
        self.path.unlink(missing_ok=True)

    def load(self) -> Snapshot | None:
        """The last snapshot, or None where there is none that can be continued; a damaged one cannot."""
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
            if _digest(tensors, metadata["facts"]) != metadata["digest"]:
                return None
            facts = json.loads(metadata["facts"])
        except (SafetensorError, KeyError, TypeError, ValueError, OSError):
            return None
        if facts.get("device") != self.device:
            return None
        return Snapshot(tensors, facts)


def _digest(tensors: Mapping[str, torch.Tensor], facts: str) -> str:
    """SHA-256 over names, types, shapes and values of tensors, and facts."""
    found = hashlib.sha256(facts.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
