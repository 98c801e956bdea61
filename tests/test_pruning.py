"""Which filters may go, and their physical removal."""

import re
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruneaudit.errors import ConfigError, MethodError
from pruneaudit.pruning.layers import prunable_layers, prunable_names
from pruneaudit.pruning.ratios import removed_filters
from pruneaudit.pruning.removal import masked, shrink, widths_to_kept
from pruneaudit.streams import generator
from pruneaudit.workloads.models import build
from pruneaudit.workloads.models.initialise import initialise

torch.set_num_threads(1)

# model -> patterns, skip, input [C, H, W]
NETWORKS = {
    "lenet5": (("conv*", "fc1"), (), (1, 32, 32)),
    "resnet20": (("layer*.conv1",), (), (1, 8, 8)),
    "vgg16": (("features.*",), ("features.0",), (3, 32, 32)),
}


def network(name, seed=0):
    """A float64 network with random weights and random normalisation statistics, as after training."""
    _, _, (channels, _, _) = NETWORKS[name]
    model = build(name, channels, 10).double()
    draw = generator(seed, "test")
    initialise(model, draw)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(-1.5, 1.5, generator=draw)
                module.bias.uniform_(-1, 1, generator=draw)
                module.running_mean.uniform_(-1, 1, generator=draw)
                module.running_var.uniform_(0.5, 2, generator=draw)
            elif getattr(module, "bias", None) is not None:
                module.bias.uniform_(-1, 1, generator=draw)
    return model.eval()


def example(name, batch=1):
    shape = NETWORKS[name][2]
    return torch.randn(batch, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def widths(model, name):
    modules = dict(model.named_modules())
    return {layer: modules[layer].weight.shape[0] for layer in prunable_names(model, *NETWORKS[name][:2])}


# The count


@settings(deadline=None)
@given(st.integers(1, 4096), st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_removed_filters_leaves_at_least_one_and_never_fewer_than_asked(channels, ratio):
    removed = removed_filters(channels, ratio)
    assert 0 <= removed <= channels - 1
    assert removed == channels - 1 or removed >= ratio * channels - 1e-8
    assert removed < ratio * channels + 1


@settings(deadline=None)
@given(st.integers(1, 4096), st.integers(1, 999))
def test_removed_filters_is_the_rule_on_paper(channels, thousandths):
    exact = Fraction(thousandths, 1000) * channels
    ceiling = -((-exact.numerator) // exact.denominator)
    assert removed_filters(channels, thousandths / 1000) == min(ceiling, channels - 1)


@settings(deadline=None)
@given(st.integers(1, 512), st.integers(1, 999), st.integers(1, 999))
def test_removed_filters_rises_with_the_ratio(channels, one, other):
    low, high = sorted((one, other))
    assert removed_filters(channels, low / 1000) <= removed_filters(channels, high / 1000)


def test_removed_filters_undoes_binary_noise():
    assert 0.07 * 100 > 7
    assert removed_filters(100, 0.07) == 7
    assert removed_filters(16, 0.3) == 5
    assert removed_filters(16, 0.95) == 15
    assert removed_filters(1, 0.5) == 0


# Patterns


def test_patterns_select_in_module_order():
    model = build("lenet5", 1, 10)
    assert prunable_names(model, ("conv2", "conv*")) == ["conv1", "conv2", "conv3"]
    assert prunable_names(model, ("*",), ("fc*", "conv1")) == ["conv2", "conv3"]


@pytest.mark.parametrize(
    ("patterns", "skip"), [(("convolution*",), ()), (("conv*", "layer*"), ()), (("*",), ("stem",))]
)
def test_pattern_that_matches_nothing_is_refused(patterns, skip):
    wrong = next(pattern for pattern in (*patterns, *skip) if pattern not in ("*", "conv*"))
    with pytest.raises(ConfigError) as caught:
        prunable_names(build("lenet5", 1, 10), patterns, skip)
    message = str(caught.value)
    assert f"'{wrong}' matches no layer" in message and "conv1, conv2, conv3, fc1, fc2" in message


def test_a_module_that_is_no_layer_is_not_matched():
    with pytest.raises(ConfigError, match="matches no layer"):
        prunable_names(build("resnet20", 1, 10), ("bn1",))


def test_prunable_layers_know_their_normalisation():
    model = network("resnet20").train()
    layers = prunable_layers(model, example("resnet20"), *NETWORKS["resnet20"][:2])
    assert len(layers) == 9
    modules = dict(model.named_modules())
    for layer in layers:
        assert layer.module is modules[layer.name]
        assert layer.norm is modules[layer.name.replace("conv1", "bn1")]
        assert layer.channels == layer.weight.shape[0] and layer.bias is None
    assert model.training, "looking at a network must not change its mode"
    plain = prunable_layers(network("lenet5"), example("lenet5"), ("conv*",))
    assert [layer.norm for layer in plain] == [None] * 3 and plain[0].bias is not None


# Removal


def kept_sets(name):
    """Hypothesis strategy: for each prunable layer some filters, at least one."""
    return st.fixed_dictionaries(
        {
            layer: st.sets(st.integers(0, count - 1), min_size=1, max_size=count).map(sorted)
            for layer, count in widths(build(name, NETWORKS[name][2][0], 10), name).items()
        }
    )


def assert_shrink_equals_masked(name, model, kept):
    images = example(name, batch=3)
    small = shrink(model, kept, images[:1])
    assert widths(small, name) == {layer: len(indices) for layer, indices in kept.items()}
    with torch.no_grad():
        expected = masked(model, kept, images[:1])(images)
        actual = small(images)
        dense = model(images)
    scale = float(expected.abs().max())
    assert float((actual - expected).abs().max()) <= 1e-12 * max(scale, 1)
    if any(len(indices) < count for indices, count in zip(kept.values(), widths(model, name).values(), strict=True)):
        assert not torch.equal(expected, dense)


LENET, RESNET, VGG = network("lenet5"), network("resnet20"), network("vgg16")


@settings(deadline=None, max_examples=25)
@given(kept_sets("lenet5"))
def test_shrunk_lenet_equals_masked(kept):
    assert_shrink_equals_masked("lenet5", LENET, kept)


@settings(deadline=None, max_examples=15)
@given(kept_sets("resnet20"))
def test_shrunk_resnet_equals_masked(kept):
    assert_shrink_equals_masked("resnet20", RESNET, kept)


@pytest.mark.parametrize("ratio", [0.3, 0.9])
def test_shrunk_vgg_equals_masked(ratio):
    draw = generator(0, "kept", int(ratio * 10))
    kept = {
        layer: sorted(torch.randperm(count, generator=draw)[removed_filters(count, ratio) :].tolist())
        for layer, count in widths(VGG, "vgg16").items()
    }
    assert_shrink_equals_masked("vgg16", VGG, kept)


def test_masked_is_the_dense_network_without_those_channels():
    """The reference itself, by hand: a removed channel of the inner map is exactly zero for its consumer."""
    model = network("resnet20")
    kept = {"layer2.1.conv1": [0, 5, 9, 31]}
    seen = {}
    silenced = masked(model, kept, example("resnet20"))
    silenced.layer2[1].conv2.register_forward_pre_hook(lambda _, inputs: seen.update(silenced=inputs[0].detach()))
    model.layer2[1].conv2.register_forward_pre_hook(lambda _, inputs: seen.update(dense=inputs[0].detach()))
    images = example("resnet20", batch=2)
    silenced(images)
    model(images)
    removed = sorted(set(range(32)) - set(kept["layer2.1.conv1"]))
    assert not seen["silenced"][:, removed].any()
    assert torch.equal(seen["silenced"][:, kept["layer2.1.conv1"]], seen["dense"][:, kept["layer2.1.conv1"]])


def test_shrink_copies_the_kept_filters():
    model = network("lenet5")
    small = shrink(model, {"conv1": [1, 4], "conv3": [0, 7, 119]}, example("lenet5"))
    assert torch.equal(small.conv1.weight, model.conv1.weight[[1, 4]])
    assert torch.equal(small.conv1.bias, model.conv1.bias[[1, 4]])
    assert torch.equal(small.conv2.weight, model.conv2.weight[:, [1, 4]])
    assert torch.equal(small.fc1.weight, model.fc1.weight[:, [0, 7, 119]])
    assert torch.equal(small.fc2.weight, model.fc2.weight)


def test_shrink_leaves_the_original_untouched():
    model = network("resnet20").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small = shrink(model, {"layer1.0.conv1": [0, 3]}, example("resnet20"))
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert model.training and small.training
    assert model.layer1[0].conv1.out_channels == 16 and small.layer1[0].conv1.out_channels == 2
    with torch.no_grad():
        small.layer1[0].conv2.weight.zero_()
    assert model.layer1[0].conv2.weight.any(), "the copy must share no memory"


def test_keeping_everything_changes_nothing():
    model = network("resnet20")
    kept = widths_to_kept(widths(model, "resnet20"))
    small = shrink(model, kept, example("resnet20"))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in small.state_dict().items())


def test_shrunk_network_trains():
    model = network("lenet5")
    small = shrink(model, {"conv1": [0, 2], "conv2": [1, 3, 5], "conv3": list(range(10))}, example("lenet5"))
    loss = small.train()(example("lenet5", batch=2)).square().sum()
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in small.parameters())


@pytest.mark.parametrize("layer", ["layer1.0.conv2", "layer3.2.conv2"])
def test_layer_of_the_residual_stream_is_refused(layer):
    model = network("resnet20")
    with pytest.raises(MethodError) as caught:
        shrink(model, {"layer1.0.conv1": [0, 1], layer: [0, 1, 2]}, example("resnet20"))
    message = str(caught.value)
    assert "\n" not in message
    told = re.fullmatch(r"layer '(.+)' cannot be pruned alone: it shares its channels with '(.+)'", message)
    assert told is not None and told[1] == layer
    # The stream is written by the stem and by the second convolution of every block.
    assert told[2] != layer and re.fullmatch(r"conv1|layer\d\.\d\.conv2", told[2])
