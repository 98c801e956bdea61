"""Augmented batches of several streams at once, made on the device without asking the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pruneaudit.workloads.data import Dataset, crops


@dataclass(frozen=True)
class Stream:
    """Where order and augmentation of one pass come from, see :meth:`Dataset.batches`."""

    seed: int
    name: str
    epoch: int


class Feed:
    """The batches of :meth:`Dataset.batches`, value by value, for K models with one position in the epoch.

    All that changes lies on the device in tensors that stay, so that a CUDA graph can replay :meth:`next`.

    Args:
        dataset: Data on the device.
        streams: The stream of each model; models with the same one see the same batches.
        batch: Images per batch.
        dtype: Type of the images.
    """

    def __init__(self, dataset: Dataset, streams: Sequence[Stream], batch: int, dtype: torch.dtype) -> None:
        part = dataset.resident
        self._dataset = dataset
        self._batch = batch
        self._unique = list(dict.fromkeys(streams))
        device, count, lanes = part.images.device, len(part), len(self._unique)
        self._owners = torch.tensor([self._unique.index(stream) for stream in streams], device=device)
        self._shared = lanes == 1
        config = dataset.config
        self._flips, self._windows = config.flip, dataset.windows
        # Made once: a tensor made of numbers of the host cannot be part of a CUDA graph.
        self._mean, self._scale = dataset.scaling(dtype, device)
        self._within = torch.arange(batch, device=device)
        self._position = torch.zeros((), dtype=torch.int64, device=device)
        self._order = torch.empty(lanes, count, dtype=torch.int64, device=device)
        self._shift = torch.empty(lanes, count, 2, dtype=torch.int64, device=device)
        self._flip = torch.empty(lanes, count, dtype=torch.bool, device=device)

    def begin(self, epochs_later: int, step: int) -> None:
        """Draw the order and the augmentation of an epoch.

        Args:
            epochs_later: Epochs after those of the streams.
            step: Batches of the epoch that are already over.
        """
        for lane, stream in enumerate(self._unique):
            names = stream.seed, stream.name, stream.epoch + epochs_later
            self._order[lane].copy_(self._dataset.order(*names))
            shift, flip = self._dataset.draws(*names)
            self._shift[lane].copy_(shift)
            if flip is not None:
                self._flip[lane].copy_(flip)
        self._position.fill_(step * self._batch)

    def next(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The next batch.

        Args:
            size: Its images: ``batch``, or what is left of the epoch.

        Returns:
            Images ``[size, C, H, W]`` where all models see the same ones, else ``[K, size, C, H, W]``; labels
            ``[K, size]``.
        """
        index = self._order.index_select(1, self._position + self._within[:size])
        self._position.add_(size)
        shift = self._shift.gather(1, index[..., None].expand(-1, -1, 2))
        images = crops(self._windows, index, shift, self._flip.gather(1, index) if self._flips else None)
        images = ((images.to(self._mean.dtype) - self._mean) * self._scale).permute(0, 1, 4, 2, 3)
        labels = self._dataset.train.labels[index].index_select(0, self._owners)
        return (images[0] if self._shared else images.index_select(0, self._owners)), labels
