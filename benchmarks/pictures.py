"""Images of a training epoch per second of one core, and what a process holds of an index of a million files.

Against PIL, torchvision's v1 transforms and a DataLoader, as training scripts have them: JPEGs of 500x375 pixels and
quality 90, RandomResizedCrop(224), flip, normalised. CPU time, in turn, best of six: other work on the machine does
not count.

    python benchmarks/pictures.py [--images 256]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from resident import largest_set

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH, REPEATS = 64, 6
TRAIN, TEST = ("RandomResizedCrop(224)", "RandomHorizontalFlip"), ("Resize(256)", "CenterCrop(224)")


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256, help="Training images.")
    parser.add_argument("--hold", type=int, help="Only: hold an index of so many files, and say what that takes.")
    parser.add_argument("--folder", type=Path, help="Where the index is.")
    given = parser.parse_args()
    if given.hold:
        hold(given.hold, given.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        os.environ["PRUNEAUDIT_CACHE"] = str(place / "cache")
        rates = speeds(pictures(place / "leaves", given.images))
        print("| decode, crop and normalise, one core | images/s | against v1 |\n|---|---|---|")
        for what, rate in rates.items():
            print(f"| {what} | {rate:.0f} | {rate / rates['v1']:.2f} |")
        small, large = (held(count, place) for count in (10_000, 1_000_000))
        print(f"\nmemory of a rank: {small} MiB over 10,000 files, {large} MiB over 1,000,000: {large / small:.3f}")


def pictures(root: Path, count: int) -> Path:
    """A folder of JPEGs as cameras make them, of two classes."""
    from PIL import Image

    for number in range(count + 8):
        draw = np.random.default_rng(number)
        small = Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        pixels = np.asarray(small.resize((500, 375), Image.Resampling.BICUBIC)).astype(float)
        noisy = (pixels + draw.normal(0, 9, pixels.shape)).clip(0, 255).astype(np.uint8)
        path = root / ("train" if number < count else "val") / f"c{number % 2}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy).save(path, quality=90)
    return root


def speeds(root: Path) -> dict[str, float]:
    """Images per second of CPU time, by pipeline."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision import transforms as v1
    from torchvision.datasets import ImageFolder

    from pruneaudit.training import memory
    from pruneaudit.workloads.data import load, loading
    from pruneaudit.workloads.schema import DataConfig

    torch.set_num_threads(1)
    # As every run of the harness does, and now the script that is compared with it, too.
    memory.keep()
    loading.usual_workers = lambda: 0
    steps = [v1.RandomResizedCrop(224), v1.RandomHorizontalFlip(), v1.ToTensor(), v1.Normalize(MEAN, STD)]
    folder = ImageFolder(str(root / "train"), v1.Compose(steps))
    passes: dict[str, Callable[[], object]] = {"v1": lambda: list(map(len, DataLoader(folder, BATCH, shuffle=True)))}
    for pixels in ("pil", "tensor"):
        config = DataConfig(
            name=f"imagefolder:{root}", train=TRAIN, test=TEST, pixels=pixels, mean=MEAN, std=STD, validation=4
        )
        dataset = load(config)
        passes[pixels] = lambda dataset=dataset: [len(images) for images, _ in dataset.batches(0, "retrain", 0, BATCH)]
    best = dict.fromkeys(passes, 0.0)
    for _ in range(REPEATS):
        for what, run in passes.items():
            began = time.process_time()
            run()
            best[what] = max(best[what], len(folder) / (time.process_time() - began))
    return best


def held(count: int, place: Path) -> int:
    """MiB that a process of its own holds with an index of so many files."""
    command = [sys.executable, __file__, "--hold", str(count), "--folder", str(place)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def hold(count: int, place: Path) -> None:
    """Split an index of so many files as training does, draw an epoch, and print the most that was ever held."""
    import torch

    from pruneaudit.streams import generator
    from pruneaudit.workloads.data.folders import Files
    from pruneaudit.workloads.data.index import BLOCK, Draft, kind_of
    from pruneaudit.workloads.data.splits import single, stratified

    classes = 1000
    kind = kind_of(len("n00000000/n00000000_00000000.JPEG"))
    draft = Draft(place / f"index-{count}.bin", kind, 0)
    for start in range(0, count, BLOCK):
        records = np.zeros(min(BLOCK, count - start), dtype=kind)
        records["sha"] = np.random.default_rng(start).integers(0, 256, (len(records), 32), dtype=np.uint8)
        records["name"] = [
            b"n%08d/n%08d_%08d.JPEG" % (row % 7, row % 7, row) for row in range(start, start + len(records))
        ]
        draft.add(records)
    starts = np.linspace(0, count, classes + 1).astype(np.int64)
    whole = Files(place, draft.finish(), starts, "RGB")
    digests = np.concatenate([block["sha"][:, :8].copy() for block in whole.index.blocks()])
    stays, held_out = stratified(whole.labels, count // 25, "validation", single(digests))
    del digests
    train, validation = whole.take(stays), whole.take(held_out)
    labels = torch.from_numpy(train.labels)
    order = torch.randperm(len(train), generator=generator(0, "retrain", "order", 0))
    parts = order.split(256)
    assert len(parts[0]) == 256 and len(labels) + len(validation) == count and train.path(int(order[0])).name
    print(round(largest_set()))


if __name__ == "__main__":
    main()
