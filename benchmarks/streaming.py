"""Streamed data against data in memory: throughput on CIFAR-10, and memory by the number of images.

    python benchmarks/streaming.py [--quick]

Throughput: batches alone, and training steps of ResNet-20 in its own batches, from memory and from the file of decoded
images; medians over rounds in turns, of the process's own time on a CPU, which others on the machine do not lengthen.
Random images of the same size stand in for CIFAR-10 where that is not there.

Memory: JPEG files are generated, found, decoded once and read for an epoch, 10,000 and 100,000 of them (with
``--quick`` 1,000 and 10,000), each time in a process of its own; the largest resident set of that process counts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from resident import largest_set
from torch import nn

from pruneaudit.errors import DataMissingError
from pruneaudit.state import CACHE_VARIABLE
from pruneaudit.streams import generator
from pruneaudit.workloads.data import Dataset, Part, data_root, imitation, load, loading
from pruneaudit.workloads.data.examples import Arrays
from pruneaudit.workloads.data.streamed import Streamed
from pruneaudit.workloads.data.transforms import Pipeline
from pruneaudit.workloads.models import build
from pruneaudit.workloads.models.initialise import initialise
from pruneaudit.workloads.schema import DataConfig

CIFAR10 = DataConfig(
    name="cifar10", mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616), pad=4, flip=True, validation=5000
)
BATCH = 128


def cifar10() -> tuple[Dataset, str]:
    """CIFAR-10 in memory, or random images of its sizes; and which."""
    try:
        return load(CIFAR10, data_root(None)), "CIFAR-10"
    except DataMissingError:
        return imitation(CIFAR10, 45_000, 5000), "random images"


def streamed(dataset: Dataset) -> Dataset:
    """The same dataset, its training split read from the file of decoded images."""
    part = dataset.train
    assert isinstance(part, Part)
    examples = Arrays(part.images, part.labels.numpy())
    shape = tuple(part.images.shape[1:])
    stored = loading.stored_in_file(Streamed(examples, part.labels, Pipeline((), ""), shape, True))
    assert stored.store is not None, "the cache folder has no room"
    return replace(dataset, train=stored)


def batches(dataset: Dataset, count: int, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The first batches of an epoch."""
    return islice(dataset.batches(0, "benchmark", epoch, BATCH), count)


def seconds(work: Callable[[], None]) -> float:
    """What it takes of the process's own time."""
    started = time.process_time()
    work()
    return time.process_time() - started


def throughput(rounds: int, plain: int, steps: int) -> None:
    """Print images per second from memory and from the file."""
    resident, name = cifar10()
    sources = {"memory": resident, "file": streamed(resident)}
    model = build("resnet20", 3, 10)
    initialise(model, generator(0, "benchmark"))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)

    def read(dataset: Dataset, epoch: int) -> None:
        for _ in batches(dataset, plain, epoch):
            pass

    def train(dataset: Dataset, epoch: int) -> None:
        for images, labels in batches(dataset, steps, epoch):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimiser.step()

    for what, work, count in (("batches alone", read, plain), ("training ResNet-20", train, steps)):
        taken: dict[str, list[float]] = {source: [] for source in sources}
        for number in range(rounds + 1):
            for source, dataset in sources.items():
                one = seconds(partial(work, dataset, number))
                # The first round pads, compiles and fills caches.
                taken[source] += [one] if number else []
        speed = {source: count * BATCH / statistics.median(times) for source, times in taken.items()}
        ratio = speed["file"] / speed["memory"]
        print(
            f"{name}, {what}: {speed['memory']:,.0f} images/s from memory, {speed['file']:,.0f} from the file: "
            f"{ratio:.3f} times"
        )


def generate(folder: Path, count: int) -> None:
    """So many JPEG files in ten classes, of which a tenth are for test."""
    noise = np.random.default_rng(0)

    def write(start: int, end: int, seed: int) -> None:
        draw = np.random.default_rng(seed)
        for number in range(start, end):
            split = "test" if number % 100 < 10 else "train"
            pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / f"{number % 10}" / f"{number:06}.jpg", quality=80)

    for split in ("train", "test"):
        for label in range(10):
            (folder / split / str(label)).mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        starts = range(0, count, 1000)
        seeds = noise.integers(0, 2**32, len(starts))
        list(pool.map(write, starts, [min(start + 1000, count) for start in starts], seeds.tolist()))


def read_all(folder: str) -> None:
    """Read an epoch of a folder, and print the largest resident set in MiB."""
    torch.set_num_threads(1)
    loading.RESIDENT_BYTES = 0
    dataset = load(DataConfig(name=f"imagefolder:{folder}", pad=2, flip=True))
    assert isinstance(dataset.train, Streamed) and dataset.train.store is not None
    seen = sum(len(labels) for _, labels in dataset.batches(0, "benchmark", 0, BATCH))
    seen += sum(len(labels) for _, labels in dataset.inputs(dataset.test))
    print(f"{seen} {largest_set():.1f}")


def memory(counts: tuple[int, int]) -> None:
    """Print the largest resident set by the number of images."""
    found = []
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            generate(folder / "images", count)
            command = [sys.executable, __file__, "--read", str(folder / "images")]
            environment = os.environ | {CACHE_VARIABLE: str(folder / "cache")}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            seen, size = done.stdout.split()
            found.append(float(size))
            print(f"{count:,} JPEG files, {int(seen):,} read in an epoch: {float(size):,.1f} MiB at most")
    print(f"{counts[1] // counts[0]} times the images: {found[1] / found[0]:.3f} times the memory")


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and images: under three minutes")
    parser.add_argument("--read", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.read:
        read_all(chosen.read)
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[CACHE_VARIABLE] = folder
        throughput(*((3, 60, 3) if chosen.quick else (15, 350, 12)))
    memory((1000, 10_000) if chosen.quick else (10_000, 100_000))


if __name__ == "__main__":
    main()
