"""A split that is read while it is used: decoded and transformed in worker processes, in bounded memory.

A batch is a function of which examples it has and of a seed, of neither workers nor of what was read before.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from pruneaudit.cores import share_of_cores
from pruneaudit.errors import ConfigError
from pruneaudit.streams import derive
from pruneaudit.workloads.data.examples import Examples
from pruneaudit.workloads.data.parts import Part
from pruneaudit.workloads.data.store import Store
from pruneaudit.workloads.data.transforms import Pipeline, own_generators, seed_generators

#: Examples of a batch where nobody asks for another number: as in measure.accuracy.
CHUNK = 512
_MOST_WORKERS = 8


#: Which examples a batch has: numbers, or a tensor of them, which takes a fifth of the memory.
Batch = Sequence[int] | torch.Tensor


def _numbers(batch: Batch) -> Sequence[int]:
    return batch.tolist() if isinstance(batch, torch.Tensor) else batch


@dataclass(frozen=True)
class Reader:
    """Reads batches: what a worker process does.

    Attributes:
        examples: Where examples come from.
        pipeline: Transforms of each.
        stream: Seed and names of the stream that transforms draw from; each example has its own seed.
        shape: Of a transformed example; None: any.
    """

    examples: Examples
    pipeline: Pipeline
    stream: tuple[int | str, ...]
    shape: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: Batch) -> torch.Tensor | ConfigError:
        """A batch ``[B, ...]``, or what is wrong with one of its examples: workers hand on no clean error."""
        seed, *names = self.stream
        found: list[torch.Tensor] = []
        with own_generators():
            for number in _numbers(index):
                seed_generators(derive(int(seed), *names, number))
                try:
                    example = self.pipeline(self.examples[number])
                except ConfigError as error:
                    return ConfigError(f"{error} (example {number})")
                expected = self.shape or (found[0].shape if found else example.shape)
                if example.shape != expected:
                    return ConfigError(
                        f"{self.pipeline.key}: example {number} has shape {list(example.shape)} after it, others "
                        f"{list(expected)}; end it with a transform that gives one size"
                    )
                found.append(example)
        return torch.stack(found)


def stream(reader: Reader, batches: Sequence[Batch], workers: int) -> Iterator[torch.Tensor]:
    """Read batches in order, ahead of whoever takes them where there are workers.

    Args:
        reader: Reads one.
        batches: Indices of the examples of each.
        workers: Processes; 0: none.

    Raises:
        ConfigError: An example cannot be read or transformed.
    """
    if workers and len(batches) > 1:
        # Forked where that is possible: a workload's own classes need not be importable, nor be sent.
        methods = multiprocessing.get_all_start_methods()
        loader: DataLoader[Any] = DataLoader(
            reader,  # type: ignore[arg-type]
            sampler=_Given(batches),
            batch_size=None,
            num_workers=min(workers, len(batches)),
            multiprocessing_context="fork" if "fork" in methods else None,
            # Its own generator: iterating must not move anybody's else.
            generator=torch.Generator(),
        )
        with reading():
            source: Iterator[Any] = iter(loader)
    else:
        source = (reader[batch] for batch in batches)
    while True:
        with reading():
            found = next(source, None)
        if found is None:
            return
        if isinstance(found, ConfigError):
            raise found
        yield found


class _Given:
    """Batches as they are, for a DataLoader."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Sequence[int]]:
        return map(_numbers, self._batches)

    def __len__(self) -> int:
        return len(self._batches)


# Threads in which the harness itself reads data at this moment: whoever watches a method does not mean them.
_reading = threading.local()


@contextmanager
def reading() -> Iterator[None]:
    """Within, the harness reads data, in this thread."""
    before = is_reading()
    _reading.on = True
    try:
        yield
    finally:
        _reading.on = before


def is_reading() -> bool:
    """Whether the harness itself is reading data in this thread."""
    return bool(getattr(_reading, "on", False))


def usual_workers() -> int:
    """Worker processes that this process may have: cores beside its own, those of other sessions' workers apart."""
    return max(0, min(share_of_cores() - 1, _MOST_WORKERS))


@dataclass(frozen=True)
class Streamed:
    """One split that does not lie in memory.

    Attributes:
        examples: Where its examples come from.
        labels: ``[N]`` int64.
        static: Transforms without augmentation.
        stored_shape: Shape of an example after them: ``(H, W, C)`` of images.
        is_image: Whether examples are images, ``[H, W, C]`` uint8.
        store: Decoded examples in a file, or None.
        workers: Processes that read.
        device: Where batches go.
    """

    examples: Examples
    labels: torch.Tensor
    static: Pipeline
    stored_shape: tuple[int, ...]
    is_image: bool
    store: Store | None = None
    workers: int = 0
    device: torch.device = field(default=torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input as a network sees it: ``(C, H, W)`` of images."""
        height, width, channels = self.stored_shape if self.is_image else (0, 0, 0)
        return (channels, height, width) if self.is_image else self.stored_shape

    def read(self, batches: Sequence[Batch]) -> Iterator[torch.Tensor]:
        """Batches of examples without augmentation, ``[B, H, W, C]`` uint8 (or ``[B, ...]``), on the device."""
        if self.store is not None:
            found: Iterator[torch.Tensor] = self._from_store(self.store, batches)
        else:
            found = stream(self.reader(self.static, 0, "static"), batches, self.workers)
        for batch in found:
            yield batch.to(self.device)

    def _from_store(self, store: Store, batches: Sequence[Batch]) -> Iterator[torch.Tensor]:
        for index in batches:
            with reading():
                found = store.read(_numbers(index))
            yield found

    def augmented(
        self, pipeline: Pipeline, batches: Sequence[Batch], seed: int, *names: str | int
    ) -> Iterator[torch.Tensor]:
        """Batches of augmented examples; what an example becomes is a function of seed, names and its index alone."""
        for batch in stream(self.reader(pipeline, seed, *names), batches, self.workers):
            yield batch.to(self.device)

    def reader(self, pipeline: Pipeline, seed: int, *names: str | int) -> Reader:
        """What reads its batches through some transforms."""
        return Reader(self.examples, pipeline, (seed, *names), self.stored_shape if pipeline is self.static else None)

    def first(self, count: int) -> Part:
        """The first examples, in memory."""
        indices = in_order(min(count, len(self)))
        return Part(torch.cat(list(self.read(indices))), self.labels[:count])

    def to(self, device: torch.device) -> Streamed:
        """The same split, whose batches go to a device."""
        return replace(self, labels=self.labels.to(device), device=device)

    @property
    def digest(self) -> str:
        """SHA-256 over examples, transforms and labels, as they are now."""
        content = hashlib.sha256()
        for block in self.examples.digests():
            content.update(np.ascontiguousarray(block).data)
        content.update(str(self.static).encode())
        content.update(np.ascontiguousarray(self.labels.cpu().numpy()).data)
        return content.hexdigest()


def in_order(count: int, batch: int = CHUNK) -> list[range]:
    """Indices of batches that go through a split in order."""
    return [range(start, min(start + batch, count)) for start in range(0, count, batch)]
