"""A workload of a user's own text: a decoder of a few thousand weights that is trained within a second."""

from pruneaudit.catalog.discovery import Catalog

PLAY = "Now is the winter of our discontent\nMade glorious summer by this sun of York;\n" * 12
WORKLOAD = """
version = 1
source = "a test"
model = "llama"
model_args = { width = 16, depth = 2, heads = 4, groups = 2, hidden = 12 }
prunable = ["blocks.*.attn.k_proj", "blocks.*.mlp.gate_proj"]
ratios = [0.5]
seeds = [0]
[data]
name = "text.py:small"
[metric]
name = "perplexity"
[optimiser]
name = "adamw"
batch = 16
[pretrain]
epochs = 2
lr = "0:1e-2"
[prune]
steps = 5
lr = "0:1e-2"
optimiser = "sgd"
[retrain]
epochs = 1
lr = "0:1e-3"
[scratch]
epochs = 2
lr = "0:1e-2"
[tune]
schedules = ["0:1e-3", "0:1e-2"]
"""
DATA = """
from pathlib import Path
from pruneaudit import Data
from pruneaudit.workloads.data.texts import windows


def small():
    names = ("train", "validation", "test")
    return Data(**{name: windows([Path(__file__).with_name(f"{name}.txt")], 12) for name in names})
"""


def brought(folder, **more):
    """The catalogue with it; its files are written to a folder."""
    for number, split in enumerate(("train", "validation", "test")):
        # The same words in other places: no window is in two splits.
        (folder / f"{split}.txt").write_text(f"{'#' * (number + 1)}{PLAY}"[: 1500 if number == 0 else 400])
    (folder / "text.py").write_text(DATA)
    (folder / "text.toml").write_text(WORKLOAD)
    return Catalog(extra_workloads=(str(folder / "text.toml"),), **more)
