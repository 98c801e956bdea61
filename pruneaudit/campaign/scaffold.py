"""Writes a first working workload with its network, data and test for ``pruneaudit new-workload``. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path

from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.names import method_id
from pruneaudit.errors import ConfigError
from pruneaudit.method.scaffold import refuse_existing, write_new

#: The catalogue's rule for ids, without what no module's name can have.
_NAME = re.compile(r"[a-z][a-z0-9-]*")

_WORKLOAD = """\
# REPLACE: what is trained and pruned here.
version = 1 # raise it with every edit that changes numbers
source = "REPLACE: where the recipes come from"
model = "{stem}_network.py:Network" # or "torchvision:NAME", "timm:NAME", "package.module:NAME"
prunable = ["conv*"] # names of layers that may lose filters; "auto": all that can
ratios = [0.5]
seeds = [0, 1, 2]

[model_args]
width = 16

[data]
name = "{stem}_data.py:splits" # or "imagefolder:PATH", "torchvision:NAME"
pad = 1 # random crops of images with so many pixels of border; flip = true would mirror them, too

[sgd]
batch = 64
momentum = 0.9
weight_decay = 5e-4

[pretrain]
epochs = 20
lr = "0:0.1,10:0.01"

# What S4.1 and stricter give to the pruning stage of every method.
[prune]
steps = 80
lr = "0:5e-3"

[retrain]
epochs = 10
lr = "0:1e-2,5:1e-3"

[scratch]
epochs = 20
lr = "0:0.1,10:0.01,15:0.001"

# Retraining rates that S3.1 tries for every method; that of [retrain] is one of them.
[tune]
schedules = ["0:1e-2,5:1e-3", "0:1e-1,3:1e-2,7:1e-3"]

[budget]
smoke = 0.1
short = 0.5
"""

_NETWORK = '''"""REPLACE: which network this is, in one line."""

import torch
from torch import nn


class Network(nn.Module):
    """Two convolutions and a classifier. Input ``[N, channels, H, W]``, output: logits ``[N, classes]``.

    ``channels`` and ``classes`` come from the data, everything else from ``[model_args]``.
    """

    def __init__(self, channels, classes, width=16):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * width)
        self.classifier = nn.Linear(2 * width, classes)

    def forward(self, images):
        """Logits of a batch."""
        maps = torch.relu(self.norm1(self.conv1(images)))
        maps = torch.relu(self.norm2(self.conv2(maps)))
        return self.classifier(maps.mean((2, 3)))
'''

_DATA = '''"""REPLACE: which data this is, and where it comes from."""

import numpy as np

from pruneaudit import Data


def splits():
    """Stripes in four directions under noise: images ``[N, H, W, C]`` uint8 and labels ``[N]``. REPLACE: read yours.

    Instead of pairs of arrays, any map-style ``torch.utils.data.Dataset`` will do. Without ``validation`` a part of the
    training examples is set aside for it.
    """
    return Data(train=stripes(800, seed=0), test=stripes(400, seed=1))


def stripes(count, seed, side=12):
    """Some images and their labels, the same ones for the same seed."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(4, size=count)
    angle = labels * np.pi / 4
    rows, columns = np.mgrid[:side, :side]
    along = np.cos(angle)[:, None, None] * columns + np.sin(angle)[:, None, None] * rows
    waves = np.sin(along + draw.uniform(0, 2 * np.pi, count)[:, None, None])
    grey = 128 + 40 * waves + 60 * draw.standard_normal(waves.shape)
    return grey.clip(0, 255).astype(np.uint8)[..., None], labels
'''

_TEST = '''"""Can {id}.toml be audited?"""

from pathlib import Path

from pruneaudit import check_workload


def test_{stem}_can_be_audited():
    """All checks of its network, data and recipes; seconds, nothing is trained."""
    check_workload(Path(__file__).with_name("{id}.toml"))
'''


def new_workload(name: str, folder: Path) -> tuple[str, tuple[Path, ...]]:
    """Write a workload with its network, data and test, all or none.

    Args:
        name: Id, or file stem: ``my-arena`` and ``my_arena`` are the same.
        folder: Where to; made where it is missing.

    Returns:
        Id of the workload, and the paths of its files: TOML, network, data, test.

    Raises:
        ConfigError: The name cannot be used, a file is there already, or nothing can be written.
    """
    identity = method_id(name)
    stem = identity.replace("-", "_")
    texts = {
        folder / f"{identity}.toml": _WORKLOAD,
        folder / f"{stem}_network.py": _NETWORK,
        folder / f"{stem}_data.py": _DATA,
        folder / f"test_{stem}.py": _TEST,
    }
    refuse_existing(folder, texts)
    problem = None
    if not _NAME.fullmatch(identity):
        problem = "use letters, digits, '-' and '_' only, a letter first"
    elif identity in Catalog().workloads:
        problem = f"there is a workload '{identity}' already; choose another"
    if problem:
        raise ConfigError(f"workload name '{name}': {problem}")
    write_new(folder, {path: text.replace("{stem}", stem).replace("{id}", identity) for path, text in texts.items()})
    return identity, tuple(texts)
