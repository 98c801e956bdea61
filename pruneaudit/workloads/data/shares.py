"""Which images of every batch a process trains on, where several train one network."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Share:
    """One of several equal parts of every batch, in its order: as ``DataParallel`` scatters batches over devices.

    All processes draw the order of an epoch, and what becomes of its images, for all images alike. Each then takes its
    share, so that together they see exactly what one process alone would see.

    Attributes:
        number: Which part, from 0 on.
        of: How many there are; of a batch that they do not divide some have an image more.
        before: Images more, that stand before the part in the batch: what mixing pairs its first image with.
    """

    number: int = 0
    of: int = 1
    before: int = 0

    def take(self, batch: torch.Tensor) -> torch.Tensor:
        """This part of a batch's indices ``[B]``; before the first one of the batch stands its last."""
        size = len(batch)
        if self.of == 1:
            return batch
        start, end = self.number * size // self.of, (self.number + 1) * size // self.of
        return batch[torch.arange(start - self.before, end) % size]

    def weight(self, size: int) -> float:
        """Times how much the mean of a part counts in the mean over parts, for that to be the mean of the whole batch.

        Args:
            size: Images of the whole batch.
        """
        mine = (self.number + 1) * size // self.of - self.number * size // self.of
        return mine * self.of / size


#: All of every batch.
WHOLE = Share()
