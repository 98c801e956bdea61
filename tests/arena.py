"""A workload that trains in tenths of a second, for what sessions do with any."""

NETWORK = """
from torch import nn


class Tiny(nn.Sequential):
    def __init__(self, channels, classes):
        super().__init__(nn.Conv2d(channels, 12, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(108, classes))
"""
DATA = """
from pruneaudit import Data
from sklearn.datasets import load_digits


def few():
    digits = load_digits()
    images, labels = (digits.images[:900] * 15).astype("uint8")[..., None], digits.target[:900]
    return Data(train=(images[:600], labels[:600]), test=(images[600:], labels[600:]))
"""
#: One layer loses filters: then a threshold over all layers and one for each layer leave the same.
WORKLOAD = """
version = 1
source = "a test"
model = "nets.py:Tiny"
prunable = ["0"]
ratios = [0.75]
seeds = [0]

[data]
name = "sets.py:few"

[sgd]
batch = 64
momentum = 0.9

[pretrain]
epochs = 3
lr = "0:0.1"

[prune]
steps = 3
lr = "0:1e-3"

[retrain]
epochs = 2
lr = "0:0.1"

[scratch]
epochs = 2
lr = "0:0.1"

[tune]
schedules = ["0:0.1", "0:0.01"]
"""

#: Files of a project that has it.
FILES = {"nets.py": NETWORK, "sets.py": DATA, "tiny.toml": WORKLOAD}
#: Options of a session about it.
OPTIONS = ("--audit-workload", "tiny.toml")
