"""Exponential moving average of a network while it trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn


class Average:
    """Moving average of all weights and statistics of a network, as timm's ``ModelEmaV3`` keeps it.

    It starts from the network as it is, and whole numbers (how many batches a normalisation has seen) are copied.
    A weight that is zero throughout stays zero.

    Args:
        model: The network.
        decay: Share of the average that stays at each update.
        every: Steps between two updates.

    Attributes:
        tensors: The average, by name of the network's state.
    """

    def __init__(self, model: nn.Module, decay: float, every: int = 1) -> None:
        self._model, self._decay, self._every = model, decay, every
        self.tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def step(self, step: int) -> None:
        """Take account of an optimiser step that is over, given its 0-based number in the stage."""
        if (step + 1) % self._every:
            return
        averages, values = [], []
        for name, tensor in self._model.state_dict().items():
            if tensor.is_floating_point():
                averages.append(self.tensors[name])
                values.append(tensor)
            else:
                self.tensors[name].copy_(tensor)
        torch._foreach_lerp_(averages, values, 1 - self._decay)

    @contextmanager
    def delivered(self, for_good: bool) -> Iterator[None]:
        """Put the average into the network; at the end of the context take it out again, unless it is for good."""
        self._exchange()
        try:
            yield
        finally:
            if not for_good:
                self._exchange()

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from an average that was kept."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, tensor in self._model.state_dict().items():
            own = tensor.clone()
            tensor.copy_(self.tensors[name])
            self.tensors[name].copy_(own)
