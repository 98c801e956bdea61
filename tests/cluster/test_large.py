"""A network of ImageNet's size on a folder of images, by two ranks: killed in the middle, resumed and judged.

No cluster is needed, but minutes: with the tests of clusters it is run by ``make cluster``.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from computing import ONLY_WHERE_WANTED, PATIENCE, wait_for
from PIL import Image

from pruneaudit.ledger.store import Ledger

pytestmark = ONLY_WHERE_WANTED
ROOT = Path(__file__).resolve().parents[2]
# As resnet50-imagenet, with tiny pictures of two classes, and few of them.
WORKLOAD = """version = 1
source = "a test"
model = "resnet50"
prunable = ["layer*.conv1", "layer*.conv2"]
ratios = [0.5]
seeds = [0]

[data]
name = "imagefolder:leaves"
train = ["RandomResizedCrop(32)", "RandomHorizontalFlip"]
test = ["Resize(36)", "CenterCrop(32)"]
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
validation = 6

[sgd]
batch = 16
momentum = 0.9
weight_decay = 1e-4

[pretrain]
epochs = 3
lr = "0:0.02,2:0.002"

[prune]
steps = 4
lr = "0:1e-3"

[retrain]
epochs = 2
lr = "0:1e-2"

[scratch]
epochs = 2
lr = "0:1e-2"

[tune]
schedules = ["0:1e-2", "0:1e-3"]
"""


@pytest.fixture(scope="module")
def leaves(tmp_path_factory):
    """The workload and its folder; JPEGs, some upright and some not."""
    root = tmp_path_factory.mktemp("large")
    (root / "leaves.toml").write_text(WORKLOAD, encoding="utf-8")
    for split, count in {"train": 27, "val": 6}.items():
        for number in range(2 * count):
            place = root / "leaves" / split / ("green" if number % 2 else "red")
            place.mkdir(parents=True, exist_ok=True)
            # No two images alike, in both splits.
            blue = 30 if split == "train" else 90
            colour = (40, 120 + number, blue) if number % 2 else (150 + number, 40, blue)
            Image.new("RGB", (50, 38) if number % 3 else (38, 50), colour).save(place / f"{number:03}.jpg", quality=90)
    return root


def session(leaves, folder, methods="l1,random"):
    return (
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(ROOT / "suite"), "-n", "0"),
        *("--audit-workload", str(leaves / "leaves.toml"), "-k", "leaves and s3.2 and not conformance"),
        *("--audit-methods", methods, "--audit-protocols", "s3.2", "--audit-ranks", "2", "--audit-recheck", "0"),
        *("--audit-figures", "none", "--audit-ledger", str(folder / "ledger")),
        *("--audit-report", str(folder / "report")),
    )  # fmt: skip


def weights(folder):
    return {run.run_id: run.weights_digest for run in Ledger(folder / "ledger", writable=False).runs()}


def test_resnet50_by_two_ranks_is_killed_resumed_and_judged(leaves, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PRUNEAUDIT_CACHE", str(tmp_path / "cache"))
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = session(leaves, killed)
    with subprocess.Popen(
        command, cwd=leaves, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:

        def is_under_way():
            assert process.poll() is None, process.communicate()[0]
            told = Ledger(killed / "ledger").progress() if (killed / "ledger").exists() else []
            kept = list((killed / "ledger" / "partial").glob("*/state.safetensors"))
            return kept and any(run["epoch"] == 2 for run in told)

        wait_for(is_under_way)
        # Without a word, ranks and all.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE)
    done = subprocess.run(command, cwd=leaves, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    base = next(run for run in Ledger(killed / "ledger", writable=False).runs() if run.stage == "pretrain")
    assert base.resumed > 0
    assert base.recipe.ranks == 2
    results = json.loads((killed / "report" / "results.json").read_text())
    assert {tuple(row["labels"]) for row in results["cells"]} == {("ranks2",)}
    assert [row["arms"] for row in results["verdicts"]] == [["l1", "random"]]
    # What nobody killed has the same weights, bit by bit.
    assert subprocess.run(session(leaves, whole, "l1"), cwd=leaves, capture_output=True).returncode == 0
    assert len(weights(whole)) == 3
    assert weights(killed) == weights(killed) | weights(whole)
