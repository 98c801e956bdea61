"""Optimal brain surgeon over the columns of a layer: weights that stay make up for those that go."""

from __future__ import annotations

from collections.abc import Callable

import torch

#: Added to the Hessian's diagonal, in shares of its mean: the authors' ``percdamp``.
DAMPING = 0.01


def pruned_by_columns(
    weight: torch.Tensor, gram: torch.Tensor, width: int, choose: Callable[[torch.Tensor, int], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of a layer without some, and which stay (Frantar and Alistarh, ICML 2023, algorithm 1).

    Columns are gone through from left to right. What is lost with the weights of a column that go is made up for, as
    well as the squared error of the outputs allows, by the columns to its right; those to its left are frozen.

    Args:
        weight: The layer as a matrix, ``[out, in]``; not changed.
        gram: Sums of products of its inputs, ``[in, in]``, of any scale.
        width: Columns for which what goes is chosen at once.
        choose: Which weights of some columns go, bool ``[out, columns]``, from the error that each would cause
            (``[out, columns]``) and the number of the column behind them.

    Returns:
        The weights, zero where they go, in the dtype of the weights, and which stay, bool; ``[out, in]`` each.
    """
    left, hessian = weight.detach().double().clone(), gram.double().clone()
    dead = hessian.diagonal() == 0
    # An input that is always zero: whatever reads it is the first to go.
    hessian.diagonal()[dead] = 1
    left[:, dead] = 0
    hessian.diagonal().add_(DAMPING * hessian.diagonal().mean())
    # Row i holds what column i passes on to those to its right, once all to its left are frozen.
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    stays = torch.ones_like(left, dtype=torch.bool)
    for start in range(0, left.shape[1], width):
        end = min(start + width, left.shape[1])
        stays[:, start:end] = ~choose((left[:, start:end] / inverse.diagonal()[start:end]).square(), end)
        for column in range(start, end):
            lost = torch.where(stays[:, column], 0, left[:, column]) / inverse[column, column]
            left[:, column:] -= lost[:, None] * inverse[column, column:]
    return left.masked_fill(~stays, 0).to(weight), stays
