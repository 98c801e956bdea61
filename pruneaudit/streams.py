"""Independent random streams, derived by name.

Base model, data order, augmentation and method noise each have a stream of their own, so that two arms with the same
seed start from the same weights and see the same batches whatever either of them draws.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def isolated(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed the global generators (torch's, numpy's, Python's) for a while; afterwards they are as before.

    For code that draws from them: networks that users bring.

    Args:
        seed: Their seed.
        device: Device whose generator counts besides the CPU's.
    """
    import numpy as np
    import torch

    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    there = torch.cuda.get_rng_state(device) if device is not None and device.type == "cuda" else None
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    if device is not None and there is not None:
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        if device is not None and there is not None:
            torch.cuda.set_rng_state(there, device)
