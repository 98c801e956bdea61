"""Patterns of single weights: as many go of every output, or of every few neighbouring inputs of it (n:m)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F

from pruneaudit.errors import MethodError


def ranks(scores: torch.Tensor) -> torch.Tensor:
    """Rank of each score among its row, the lowest first (ties: the lower index), in the shape of the scores.

    Who lets the lowest ranks of a layer go takes as many from each row, to one.
    """
    return scores.argsort(dim=-1, stable=True).argsort(dim=-1)


def removed_of(ratio: float, neighbours: int) -> int:
    """How many of so many neighbouring inputs go at a ratio.

    Raises:
        MethodError: It is no whole number of them.
    """
    gone = round(ratio * neighbours)
    if not 0 < gone < neighbours or abs(gone - ratio * neighbours) > 1e-9:
        possible = ", ".join(f"{count / neighbours:g}" for count in range(1, neighbours))
        raise MethodError(f"a pattern of {neighbours} neighbours has no ratio {ratio:g}; choose one of {possible}")
    return gone


def crowded(weights: Iterable[torch.Tensor], stay: int, neighbours: int) -> int:
    """In how many groups of neighbouring inputs more weights are not zero than a pattern lets stay.

    Args:
        weights: Of layers, ``[out, in, ...]``; of convolutions neighbours are those of ``[out, in · taps]``.
        stay: Weights of a group that stay.
        neighbours: Weights of a group; what is left at the end of a row is one, too.
    """
    found = 0
    for weight in weights:
        there = (weight.detach().flatten(1) != 0).float()
        groups = F.pad(there, (0, -there.shape[1] % neighbours)).view(-1, neighbours)
        found += int((groups.sum(dim=1) > stay).sum())
    return found
