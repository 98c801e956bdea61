"""The shipped counts of named networks are what their builders count; names are found as papers write them."""

import pytest
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

from pruneaudit.catalog.discovery import Catalog
from pruneaudit.pruning import shapes
from pruneaudit.tables.networks import TEST_IMAGES, find, known
from pruneaudit.workloads.models import MODELS

CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}


@pytest.mark.parametrize("network", known().values(), ids=lambda one: f"{one.name}-{one.dataset}")
def test_counts_are_those_of_the_builder(network):
    library, _, name = network.builder.partition(":")
    # Shapes are enough: nothing is computed, and no weights are drawn.
    with torch.device("meta"):
        if library == "torchvision":
            extra = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
            model = getattr(torchvision.models, name)(weights=None, **extra)
        else:
            model = MODELS[network.builder](channels=3, classes=CLASSES[network.dataset])
        example = torch.zeros(1, 3, *((224, 224) if network.dataset == "imagenet" else (32, 32)))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(example)
    assert network.params == sum(parameter.numel() for parameter in model.parameters())
    assert network.macs == counter.get_total_flops() // 2


@pytest.mark.parametrize("network", [one for one in known().values() if one.speedups], ids=lambda one: one.workload)
def test_speedups_are_those_of_the_workload(network):
    workload = Catalog().workload(network.workload)
    base = shapes.shape(workload).macs
    for ratio, speedup in network.speedups:
        macs = shapes.target(workload, ratio, "filter", "layerwise").macs
        assert speedup == pytest.approx(base / macs, rel=1e-4)


@pytest.mark.parametrize(
    ("text", "network", "dataset"),
    [
        ("1. ResNet-56 / CIFAR-10 / 2.00x - 2.55x", "resnet56", "cifar10"),
        ("VGG19 on CIFAR100", "vgg19", "cifar100"),
        ("ResNet 50 (ImageNet-1K)", "resnet50", "imagenet"),
        ("resnet56-cifar10", "resnet56", "cifar10"),
        ("MobileNet-V2, ILSVRC-2012", "mobilenetv2", "imagenet"),
        ("DenseNet-40", "densenet40", ""),
        ("PreResNet-164", "preresnet164", ""),
        ("ResNet-34 on ImageNet-100", "resnet34", "imagenet100"),
        ("Tiny-ImageNet", "", "tinyimagenet"),
        ("ResNet-50 and VGG-16", "", ""),
        ("Results", "", ""),
    ],
)
def test_names_are_found_as_papers_write_them(text, network, dataset):
    assert tuple(find(text)) == (network, dataset)


def test_digits_have_as_many_test_images_as_the_data_set():
    from pruneaudit.workloads.data import facts

    assert TEST_IMAGES["digits"] == facts(Catalog().workload("resnet20-digits").data).test
