"""From a pruning ratio to numbers of filters."""

from __future__ import annotations

import math


def removed_filters(channels: int, ratio: float) -> int:
    """Filters to remove from a layer: ``min(ceil(ratio · N), N − 1)`` (GReg and TPP's rule).

    The epsilon undoes binary noise: 0.07 · 100 is 7.000000000000001 in floats but 7 on paper.
    """
    return min(math.ceil(ratio * channels - 1e-9), channels - 1)
