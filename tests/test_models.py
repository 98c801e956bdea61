"""Architectures and their sizes: the numbers of the literature."""

import copy
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pruneaudit.catalog.discovery import Catalog
from pruneaudit.errors import ConfigError
from pruneaudit.measure.cost import macs, parameters
from pruneaudit.pruning import shapes
from pruneaudit.pruning.layers import prunable_names
from pruneaudit.streams import generator
from pruneaudit.training.precision import place
from pruneaudit.workloads.models import MODELS, build
from pruneaudit.workloads.models.initialise import initialise, undrawn
from pruneaudit.workloads.models.mlp import MLP
from pruneaudit.workloads.models.resnet import BasicBlock, CifarResNet

torch.set_num_threads(1)

CHECKPOINT_VARIABLE = "PRUNEAUDIT_CHECKPOINTS"

# model, channels, classes, parameters, MACs at 32x32
SIZES = [
    ("convnet4", 1, 10, 65_834, 9_732_736),
    ("lenet5", 1, 10, 61_706, 416_520),
    ("lenet5-mini", 1, 10, 5_500, 448_700),
    ("llama", 1, 96, 86_336, 6_160_384),
    ("mlp7", 1, 10, 154_010, 153_400),
    ("vit", 1, 10, 39_514, 642_528),
    ("resnet20", 3, 10, 269_722, 40_551_040),
    ("resnet32", 3, 10, 464_154, 68_862_592),
    ("resnet34", 3, 1000, 21_797_672, 75_272_192),
    ("resnet50", 3, 1000, 25_557_032, 85_458_944),
    ("resnet56", 3, 10, 853_018, 125_485_696),
    ("resnet110", 3, 10, 1_727_962, 252_887_680),
    ("vgg16", 3, 10, 14_724_042, 313_201_664),
    ("vgg16-li", 3, 10, 14_987_722, 313_463_808),
    ("vgg19", 3, 100, 20_081_188, 398_182_400),
]


def example_of(name: str, channels: int) -> torch.Tensor:
    """An input of a network: images of 32x32, but for transformers."""
    if name == "llama":
        return torch.zeros(1, 64, dtype=torch.int64)
    return torch.zeros(1, channels, 8, 8) if name == "vit" else torch.zeros(1, channels, 32, 32)


def test_every_architecture_has_a_golden_size():
    assert {size[0] for size in SIZES} == set(MODELS)


@pytest.mark.parametrize(("name", "channels", "classes", "params", "count"), SIZES, ids=[size[0] for size in SIZES])
def test_size(name, channels, classes, params, count):
    model = build(name, channels, classes)
    image = example_of(name, channels)
    assert parameters(model) == params
    assert macs(model, image) == count
    # A second counter, that of torch itself: two operations for each multiply-accumulate.
    # Of the kernels of attention it knows this one on a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logits = model.eval()(image)
    assert counter.get_total_flops() == 2 * count
    assert logits.shape[:2] == (1, classes)


def test_counting_changes_nothing():
    model = build("lenet5", 1, 10).double().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    macs(model, torch.zeros(1, 1, 32, 32))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_normalisation_and_pooling_do_not_count():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(8), nn.Flatten())
    assert macs(model, torch.zeros(1, 3, 8, 8)) == 3 * 8 * 9 * 64


def test_unknown_model_names_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown model 'resnet65'\. Did you mean 'resnet56'\?"):
        build("resnet65", 3, 10)
    with pytest.raises(ValueError, match="6n \\+ 2"):
        CifarResNet(21)


# Pruned shapes (TPP, Table 1; Wang et al. 2023, Tables 6 and 7)


@pytest.mark.parametrize(
    ("ratio", "widths", "speedup"),
    [
        (0.3, (11, 22, 44), 1.45),
        (0.5, (8, 16, 32), 1.99),
        (0.7, (4, 9, 19), 3.59),
        (0.9, (1, 3, 6), 11.58),
        (0.95, (1, 1, 3), 19.85),
    ],
)
def test_resnet56_pruned_shapes(ratio, widths, speedup):
    workload = Catalog().workload("resnet56-cifar10")
    expected = {
        f"layer{stage}.{block}.conv1": width for stage, width in enumerate(widths, start=1) for block in range(9)
    }
    assert shapes.widths_at(workload, ratio) == expected
    assert round(shapes.speedup(workload, ratio), 2) == speedup


@pytest.mark.parametrize(("ratio", "sparsity"), [(0.3, 31.14), (0.5, 49.82)])
def test_resnet56_sparsities(ratio, sparsity):
    workload = Catalog().workload("resnet56-cifar10")
    left = shapes.shape(workload, ratio).params / shapes.shape(workload).params
    assert 100 * (1 - left) == pytest.approx(sparsity, abs=0.0051)


@pytest.mark.parametrize(
    ("ratio", "sparsity", "speedup"), [(0.1, 19.24, 1.23), (0.3, 51.01, 1.97), (0.5, 74.87, 3.61), (0.7, 90.98, 8.89)]
)
def test_vgg19_sparsities(ratio, sparsity, speedup):
    workload = Catalog().workload("vgg19-cifar100")
    pruned, dense = shapes.shape(workload, ratio), shapes.shape(workload)
    assert round(100 * (1 - pruned.params / dense.params), 2) == pytest.approx(sparsity, abs=0.0051)
    assert round(shapes.speedup(workload, ratio), 2) == speedup


def test_prunable_layers_of_the_papers():
    catalog = Catalog()
    for name, count, absent in (("resnet56-cifar10", 27, "conv1"), ("vgg19-cifar100", 15, "features.0")):
        workload = catalog.workload(name)
        names = prunable_names(shapes.dense_network(workload), workload.prunable, workload.skip)
        assert len(names) == count and absent not in names


@pytest.mark.parametrize("name", ["lenet5-digits", "resnet20-digits"])
def test_every_ratio_builds_a_network_that_runs(name):
    workload = Catalog().workload(name)
    for ratio in workload.ratios:
        widths = shapes.widths_at(workload, ratio)
        small = shapes.network(workload, widths).eval()
        modules = dict(small.named_modules())
        assert {layer: modules[layer].weight.shape[0] for layer in widths} == widths
        assert small(shapes.example(workload)).shape == (1, 10)
        assert shapes.shape(workload, ratio) == shapes.shape_of(workload, widths)
    assert shapes.shape(workload).widths == ()


# Arithmetic of the option-A shortcut


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(4, 4, 1), (4, 8, 2)])
def test_shortcut_subsamples_and_pads_both_sides(inputs, outputs, stride):
    block = BasicBlock(inputs, outputs, stride).double().eval()
    nn.init.zeros_(block.conv2.weight)
    images = torch.randn(2, inputs, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    missing = (outputs - inputs) // 2
    expected = torch.zeros(2, outputs, 6 // stride, 6 // stride, dtype=torch.float64)
    expected[:, missing : missing + inputs] = images[:, :, ::stride, ::stride]
    assert torch.equal(block(images), F.relu(expected))


# Initialisation


def test_initialisation_is_a_function_of_the_stream():
    drawn = []
    for seed in (0, 0, 1):
        model = CifarResNet(8, 1, 10)
        nn.init.constant_(model.bn1.weight, 7)
        model.bn1.running_mean.fill_(3)
        initialise(model, generator(seed, "initialise"))
        drawn.append(model.state_dict())
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    assert not torch.equal(drawn[0]["layer3.0.conv1.weight"], drawn[2]["layer3.0.conv1.weight"])
    assert torch.equal(drawn[0]["bn1.weight"], torch.ones(16)) and not drawn[0]["bn1.running_mean"].any()
    assert not drawn[0]["linear.bias"].any()


def test_initialisation_is_kaiming_fan_in():
    model = nn.Sequential(nn.Conv2d(64, 32, 3), nn.Linear(2000, 30))
    initialise(model, generator(0, "initialise"))
    for layer, fan_in in ((model[0], 64 * 9), (model[1], 2000)):
        assert float(layer.weight.detach().std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.03)


# Public checkpoints


@pytest.mark.parametrize("name", ["resnet20", "resnet56"])
def test_public_checkpoint_names_load(name):
    folder = os.environ.get(CHECKPOINT_VARIABLE)
    if not folder:
        pytest.skip(f"{CHECKPOINT_VARIABLE} names no folder with public checkpoints")
    path = Path(folder) / f"{name}-cifar10.safetensors"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in {CHECKPOINT_VARIABLE}")
    weights = load_file(path)
    model = build(name, 3, 10)
    result = model.load_state_dict(weights, strict=False)
    assert not result.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in result.missing_keys)
    assert sum(weights[key].numel() for key, _ in model.named_parameters()) == parameters(model)


def test_three_dimensional_convolutions_are_placed_beside_others():
    """torch has a channels-last layout for two-dimensional ones only, and refuses the others."""
    model = place(nn.Sequential(nn.Conv3d(2, 4, 3), nn.Conv2d(2, 4, 3)), "cpu", "fp64")
    assert model[1].weight.is_contiguous(memory_format=torch.channels_last)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float64}


def test_weights_of_one_channel_are_laid_out_as_torch_lays_them():
    """Their strides choose the kernel: pruned networks would else train to other bits."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 1, 3), nn.Conv2d(1, 1, 3), nn.Conv2d(3, 5, 1))
    expected = copy.deepcopy(model).to(memory_format=torch.channels_last)
    placed = place(model, "cpu", "fp32")
    assert [one.weight.stride() for one in placed] == [one.weight.stride() for one in expected]


def test_the_jacobian_of_a_deep_linear_network_is_the_product_of_its_weights():
    torch.manual_seed(0)
    network = MLP(size=4, layers=3, width=6, classes=3, linear=True).double()
    image = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    product = network.fc3.weight @ network.fc2.weight @ network.fc1.weight
    found = torch.autograd.functional.jacobian(network, image).reshape(3, 16)
    assert torch.allclose(found, product, rtol=0, atol=1e-12)
    network.between = MLP(size=4).between
    assert not torch.allclose(torch.autograd.functional.jacobian(network, image).reshape(3, 16), product, atol=1e-6)


@pytest.mark.parametrize("name", ["lenet5", "resnet20", "resnet34", "vgg16"])
def test_a_network_of_which_nothing_is_drawn_is_built_alike(name):
    usual = build(name, 3, 10)
    state = torch.get_rng_state()
    with undrawn():
        bare = build(name, 3, 10)
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn"
    assert str(bare) == str(usual)
    for (key, one), (other, right) in zip(bare.named_parameters(), usual.named_parameters(), strict=True):
        assert (key, one.shape, one.requires_grad) == (other, right.shape, right.requires_grad)
        assert one.dim() < 2 or not one.any()
