"""Networks and data that papers name: parameters and MACs of the dense network, number of test images.

``networks.toml`` holds what the builders of torchvision and of this project count, so that nothing needs to be built; a
test builds them and compares.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

#: Test images, by data set.
TEST_IMAGES = {
    "cifar10": 10_000,
    "cifar100": 10_000,
    "imagenet": 50_000,
    "mnist": 10_000,
    "fmnist": 10_000,
    "svhn": 26_032,
    "tinyimagenet": 10_000,
    "imagenet100": 5_000,
    "digits": 359,
}
_DATASETS = [
    ("tinyimagenet", r"tiny[\s_-]*imagenet"),
    ("imagenet100", r"imagenet[\s_-]*100\b"),
    ("imagenet", r"imagenet(?:[\s_-]*1k)?|ilsvrc(?:[\s_-]*(?:20)?12)?"),
    ("cifar100", r"cifar[\s_-]*100|\bc100\b"),
    ("cifar10", r"cifar[\s_-]*10\b|\bc10\b|cifar10"),
    ("fmnist", r"f(?:ashion)?[\s_-]*mnist"),
    ("mnist", r"\bmnist\b"),
    ("svhn", r"\bsvhn\b"),
    ("digits", r"\bdigits\b"),
]
_NETWORK = re.compile(
    r"(?<![a-z])(?P<family>(?:pre[\s_-]?)?resnet|wide[\s_-]?resnet|resnext|densenet(?:[\s_-]?bc)?|vgg|mobilenet|"
    r"efficientnet|regnet|vit|deit|alexnet|caffenet|googlenet|inception|lenet|swin)[\s_-]*"
    r"(?P<size>v?\d+(?:[\s_-]\d+)?|[bslt](?:ase|mall|arge|iny)?(?:[\s_/-]*\d+)?)?",
    re.IGNORECASE,
)


class Named(NamedTuple):
    """What a text names: ids, or nothing."""

    network: str
    dataset: str


@dataclass(frozen=True)
class Network:
    """A dense network.

    Attributes:
        name: Id, such as ``resnet50``.
        dataset: Data that it is counted on.
        params: Parameters.
        macs: Multiply-adds of convolutions and linear layers, for one image.
        other_params: Of other versions that papers call the same.
        other_macs: Likewise.
        builder: What builds it.
        workload: Workload of this project whose layers are pruned.
        speedups: MACs(base) / MACs(pruned) by ratio, where the layers of the workload lose this share of their
            filters; empty where this was not counted.
    """

    name: str
    dataset: str
    params: int
    macs: int
    other_params: tuple[int, ...] = ()
    other_macs: tuple[int, ...] = ()
    builder: str = ""
    workload: str = ""
    speedups: tuple[tuple[float, float], ...] = ()

    @property
    def all_params(self) -> tuple[int, ...]:
        """Parameters of all versions."""
        return (self.params, *self.other_params)

    @property
    def all_macs(self) -> tuple[int, ...]:
        """MACs of all versions."""
        return (self.macs, *self.other_macs)


@cache
def known() -> dict[tuple[str, str], Network]:
    """Shipped networks by name and data."""
    content = tomllib.loads((Path(__file__).parent / "networks.toml").read_text(encoding="utf-8"))
    found = {}
    for entry in content["networks"]:
        values: dict[str, Any] = {
            key: tuple(tuple(one) if isinstance(one, list) else one for one in value)
            if isinstance(value, list)
            else value
            for key, value in entry.items()
        }
        network = Network(**values)
        found[network.name, network.dataset] = network
    return found


def lookup(network: str, dataset: str) -> Network | None:
    """The shipped network called so on this data, or None."""
    named = find(f"{network} / {dataset}")
    return known().get((named.network, named.dataset))


@lru_cache(maxsize=16384)
def find(text: str) -> Named:
    """The network and the data that a text names; empty where it names none, or several networks."""
    if len(text) > 2000:
        return Named("", "")
    lowered = text.lower()
    dataset = ""
    left = lowered
    for name, pattern in _DATASETS:
        if re.search(pattern, left):
            if not dataset:
                dataset = name
            left = re.sub(pattern, " ", left)
    names = dict.fromkeys(_canonical(match["family"], match["size"]) for match in _NETWORK.finditer(left))
    return Named(next(iter(names)) if len(names) == 1 else "", dataset)


def _canonical(family: str, size: str | None) -> str:
    text = re.sub(r"[\s_/-]+", "", family.lower()) + re.sub(r"[\s_/-]+", "", (size or "").lower())
    return text


def test_images(dataset: str) -> int | None:
    """Number of test images of a data set, or None."""
    return TEST_IMAGES.get(find(dataset).dataset)
