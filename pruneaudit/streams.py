"""Independent random streams, derived by name.

Base model, data order, augmentation and method noise each have a stream of their own, so that two arms with the same
seed start from the same weights and see the same batches whatever either of them draws.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream called ``names`` under ``seed``."""
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator for the stream called ``names``; the same on every machine and device."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *names))
