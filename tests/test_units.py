"""What goes together goes together: units of networks of every wiring, found, tried, counted and cut."""

import re
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from wirings import NETWORKS, SCRAMBLED, Scrambled, Twice

from pruneaudit.catalog.discovery import Catalog
from pruneaudit.errors import ConfigError, MethodError
from pruneaudit.measure.cost import macs, macs_by_torch
from pruneaudit.pruning import shapes
from pruneaudit.pruning.equivalence import TOLERANCE, difference, trained_like, verified
from pruneaudit.pruning.graph import width_of
from pruneaudit.pruning.layers import AUTO, prunable_layers, prunable_units
from pruneaudit.pruning.ratios import removed_filters
from pruneaudit.pruning.removal import cut, masked, shrink
from pruneaudit.pruning.slicing import channels_of
from pruneaudit.pruning.units import Unit, Wiring
from pruneaudit.streams import generator
from pruneaudit.workloads import models

torch.set_num_threads(1)

EXAMPLE = torch.zeros(1, 1, 32, 32)
DIGITS = Catalog().workload("lenet5-digits")
#: Name of the network: its units (name, channels, other layers that write them, neighbours that go together, parts).
EXPECTED = {
    "twice": [("stem", 12, ("shared",), 1, 1), ("last", 10, (), 1, 1)],
    "mlp": [("1", 24, (), 1, 1), ("4", 16, (), 1, 1)],
    "vgg": [
        ("features.0", 8, (), 1, 1),
        ("features.3", 16, (), 1, 1),
        ("features.5", 12, (), 1, 1),
        ("classifier.0", 20, (), 1, 1),
    ],
    "group-norm": [("features.0", 16, (), 4, 1), ("features.3", 24, (), 3, 1), ("features.6", 10, (), 1, 1)],
    "layer-norm": [("up.0", 20, (), 1, 1), ("up.1", 20, (), 1, 1)],
    "instance-norm": [("features.0", 12, (), 1, 1), ("features.3", 10, (), 1, 1), ("features.6", 8, (), 1, 1)],
    "signals": [("conv1", 16, (), 1, 1), ("conv3", 6, (), 1, 1)],
    "unet": [
        ("down1.0", 8, (), 1, 1),
        ("down2.0", 12, (), 1, 1),
        ("bottom.0", 16, (), 1, 1),
        ("up2", 12, (), 1, 1),
        ("merge2.0", 10, (), 1, 2),
        ("up1", 8, (), 1, 2),
        ("merge1", 6, (), 1, 1),
    ],
    "mobilenet": [
        ("features.0.0", 8, ("features.1.conv.1",), 1, 1),
        ("features.2.conv.0.0", 32, (), 1, 1),
        ("features.2.conv.2", 8, ("features.3.conv.2",), 1, 1),
        ("features.3.conv.0.0", 32, (), 1, 1),
        ("features.4.conv.0.0", 32, (), 1, 1),
        ("features.4.conv.2", 8, ("features.5.conv.2",), 1, 1),
        ("features.5.conv.0.0", 32, (), 1, 1),
        ("features.6.0", 40, (), 1, 1),
    ],
    "basic-blocks": [
        ("conv1", 64, ("layer1.0.conv2",), 1, 1),
        ("layer1.0.conv1", 64, (), 1, 1),
        ("layer2.0.conv1", 128, (), 1, 1),
        ("layer2.0.conv2", 128, ("layer2.0.downsample.0", "layer2.1.conv2"), 1, 1),
        ("layer2.1.conv1", 128, (), 1, 1),
    ],
    "lstm": [("features.0", 6, (), 1, 1), ("hidden", 8, (), 1, 1)],
    "gru": [("features.0", 6, (), 1, 1), ("hidden", 8, (), 1, 1)],
    "gru-cell": [("features.0", 6, (), 1, 1), ("hidden", 8, (), 1, 1)],
    "checkpoints": [
        ("stem", 6, ("blocks.0.3", "blocks.1.3"), 1, 1),
        ("blocks.0.0", 8, (), 1, 1),
        ("blocks.1.0", 8, (), 1, 1),
    ],
}


@pytest.fixture(scope="module", autouse=True)
def known_networks():
    """The networks as architectures of the registry, of which planning does not know that their units are right."""
    models.MODELS.update(NETWORKS)
    yield
    for name in NETWORKS:
        del models.MODELS[name]


def workload(name, **changes):
    return DIGITS.model_copy(update={"model": name, "prunable": AUTO, **changes})


def trained(name, seed=0):
    """A float64 network with weights, scales, shifts and statistics as after training."""
    network = NETWORKS[name]().double().eval()
    trained_like(network, generator(seed, "test"))
    return network


def units_by_name(name):
    return {unit.name: unit for unit in shapes.units(workload(name)).units}


def some_of(unit, removed, draw):
    """Channels that stay when so many go, at random."""
    _, channels = unit.candidates(torch.rand(unit.channels, generator=draw))
    order = torch.randperm(len(channels), generator=draw)[removed // unit.step :]
    return channels[order].flatten().sort().values.tolist()


def apart(one, other):
    return float((one - other).abs().max() / other.abs().max())


# Found


@pytest.mark.parametrize("name", EXPECTED)
def test_auto_finds_all_units(name):
    found = units_by_name(name).values()
    assert [(unit.name, unit.channels, unit.producers[1:], unit.bundle, unit.parts) for unit in found] == EXPECTED[name]


def test_units_behind_a_concatenation_have_places_of_their_own():
    """Of 16 channels that the last layer of the decoder reads, the encoder's are the first eight."""
    units = units_by_name("unet")
    for name, start in (("down1.0", 0), ("up1", 8)):
        (member,) = (each for each in units[name].members if each.module == "merge1")
        assert member.side == "inputs" and member.places.flatten().tolist() == list(range(start, start + 8))


def test_behind_a_flattened_map_a_channel_has_a_place_for_each_pixel():
    (member,) = (each for each in units_by_name("vgg")["features.5"].members if each.side == "inputs")
    assert member.module == "classifier.0"
    assert torch.equal(member.places, torch.arange(48).view(12, 4))


@pytest.mark.parametrize(
    ("name", "layer", "why"),
    [
        ("layer-norm", "stem", "LayerNorm 'norms.0' computes over its channels"),
        ("layer-norm", "fc", "it is the classifier"),
        ("basic-blocks", "fc", "it is the classifier"),
        ("signals", "conv2", "not every one of its channels reaches Conv3d 'conv3' alike"),
        ("lstm", "features.2", "LSTM 'rows' cannot lose channels"),
        ("gru", "features.2", "GRU 'rows' cannot lose channels"),
        ("gru-cell", "features.2", "torch-pruning cannot follow its channels to what reads them"),
    ],
)
def test_what_cannot_be_removed_is_left_out_and_told(name, layer, why):
    assert why in shapes.units(workload(name)).refused[layer]
    with pytest.raises(ConfigError, match=re.escape(f"layer '{layer}' cannot lose filters: {why}")) as caught:
        shapes.units(workload(name, prunable=(layer,)))
    assert "\n" not in str(caught.value)


def test_patterns_that_reach_the_classifier_are_one_line_before_anything_trains():
    with pytest.raises(ConfigError) as caught:
        shapes.see_units(DIGITS.model_copy(update={"prunable": ("*",)}))
    assert str(caught.value).startswith("prunable: layer 'fc2' cannot lose filters: it is the classifier")
    assert "\n" not in str(caught.value)
    shapes.see_units(DIGITS)


@pytest.mark.parametrize("how", SCRAMBLED)
def test_what_the_graph_gets_wrong_is_refused_by_name(how):
    """Torch-pruning's group is found, and is wrong; the units beside it stay."""
    network = Scrambled(how)
    units, refused = prunable_units(network, Wiring(network, EXAMPLE), EXAMPLE, AUTO)
    assert "conv1" in {unit.name for unit in units} and "conv2" not in {unit.name for unit in units}
    assert refused["conv2"]


def test_patterns_that_name_what_is_wrong_are_an_error(monkeypatch):
    monkeypatch.setitem(models.MODELS, "rolled", lambda channels, classes: Scrambled("roll", channels, classes))
    assert [unit.name for unit in shapes.units(workload("rolled", prunable=("conv[13]",))).units] == ["conv1", "conv3"]
    with pytest.raises(ConfigError, match="layer 'conv2' cannot lose filters: its channels reach more"):
        shapes.units(workload("rolled", prunable=("conv*",)))


@pytest.mark.parametrize("names", [["layer1.0.conv2"], ["conv1", "layer1.0.conv2"]])
def test_any_layer_that_writes_its_channels_selects_a_unit(names):
    (unit,) = shapes.units(workload("basic-blocks", prunable=tuple(names))).units
    assert unit.name == "conv1" and unit.producers == ("conv1", "layer1.0.conv2")


def test_a_unit_is_skipped_by_any_of_its_layers():
    found = shapes.units(workload("basic-blocks", skip=("layer2.1.conv2", "fc"))).units
    assert "layer2.0.conv2" not in {unit.name for unit in found} and len(found) == 4


def test_a_depthwise_convolution_selects_the_unit_whose_channels_it_passes_on():
    (unit,) = shapes.units(workload("mobilenet", prunable=("features.2.conv.1.0",))).units
    assert unit.name == "features.2.conv.0.0"


@pytest.mark.parametrize("frozen", ["stem", "shared", ""])
def test_frozen_layers_are_seen_and_stay_frozen(frozen):
    network = Twice()
    network.get_submodule(frozen).requires_grad_(False)
    before = [parameter.requires_grad for parameter in network.parameters()]
    (first, _) = prunable_layers(network, EXAMPLE, ("stem", "last"))[0].unit.producers
    assert first == "stem"
    assert [parameter.requires_grad for parameter in network.parameters()] == before


@pytest.mark.parametrize("deaf", [0, 1], ids=["hears", "hears it the second time"])
def test_a_trace_that_does_not_end_is_given_up(monkeypatch, deaf):
    class Endless(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.deaf = deaf

        def forward(self, images):
            while True:
                try:
                    images = self.layer(images).detach()
                except BaseException:
                    # As in a destructor, where nobody hears an exception.
                    self.deaf -= 1
                    if self.deaf < 0:
                        raise

    monkeypatch.setattr("pruneaudit.pruning.graph.PATIENCE", 0.3)
    with pytest.raises(ConfigError, match=r"did not find the network's units within 0\.3 seconds"):
        Wiring(Endless(), torch.zeros(1, 2))


# Tried


def test_a_check_sees_places_that_are_wrong():
    """Cut and silenced alike, at the wrong inputs: only the noise that layers write tells."""
    network = trained("twice")
    (first, last) = units_by_name("twice").values()
    members = [
        type(each)(each.module, each.side, each.places.roll(1, 0) if each.module == "last" else each.places)
        for each in first.members
    ]
    wrong = Unit(first.name, first.channels, first.producers, tuple(members))
    assert difference(network, [first, last], EXAMPLE.double()) == ""
    assert "reach more" in difference(network, [wrong, last], EXAMPLE.double())
    passed, refused = verified(network, [wrong, last], EXAMPLE)
    assert passed == [last] and list(refused) == ["stem"]


def test_a_check_changes_nothing():
    network = NETWORKS["twice"]()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    verified(network, list(units_by_name("twice").values()), EXAMPLE)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert network.training and not any(module._forward_hooks for module in network.modules())


def test_trained_like_leaves_nothing_neutral():
    for name in ("basic-blocks", "group-norm", "instance-norm"):
        for key, tensor in trained(name).state_dict().items():
            if not key.endswith("num_batches_tracked"):
                assert not bool(((tensor == 0) | (tensor == 1)).any()), key


# Cut and counted


@pytest.mark.parametrize("name", NETWORKS)
def test_every_wiring(name):
    """Masked is shrunk, the asked numbers go, and three ways of counting agree."""
    asked, network, draw = workload(name), trained(name), generator(1, name)
    units = units_by_name(name)
    images = torch.randn(2, 1, 32, 32, dtype=torch.float64, generator=draw)
    for ratio in (0.3, 0.9):
        widths = shapes.widths_at(asked, ratio)
        for unit in units.values():
            # The rule on paper, for each part of a grouped convolution and over whole groups of normalisations.
            gone = removed_filters(unit.channels // unit.step, ratio) * unit.step
            assert widths[unit.name] == unit.channels - gone and 0 < gone < unit.channels
        kept = {unit.name: some_of(unit, unit.channels - widths[unit.name], draw) for unit in units.values()}
        small = shrink(network, kept, images[:1])
        with torch.no_grad():
            silent = masked(network, kept, images[:1])(images)
            assert apart(small(images), silent) <= TOLERANCE
            assert apart(network(images), silent) > 1e-6
        for unit in units.values():
            for member in unit.members:
                whole, left = (channels_of(each.get_submodule(member.module), member.side) for each in (network, small))
                assert left < whole
        counted = macs(small, images[:1]), macs_by_torch(small, images[:1])
        assert {shapes.costs(asked).of_widths(widths), *counted} == {counted[0]}
        fresh = shapes.network(asked, widths)
        assert {key: tensor.shape for key, tensor in fresh.state_dict().items()} == {
            key: tensor.shape for key, tensor in small.state_dict().items()
        }


@pytest.mark.parametrize("name", NETWORKS)
@settings(deadline=None, max_examples=4)
@given(data=st.data())
def test_costs_of_any_widths_are_those_of_the_network(name, data):
    asked = workload(name)
    known = shapes.costs(asked)
    widths = {
        unit: step * data.draw(st.integers(1, known.filters[unit] // step), label=unit)
        for unit, step in known.steps.items()
    }
    counted = shapes.shape_of(asked, widths)
    assert known.of_widths(widths) == counted.macs == counted.recounted


def test_the_reference_does_not_know_normalisations():
    """By hand: the layer behind a unit reads zeros, whatever a normalisation adds to a silent channel."""
    network = trained("mlp")
    seen = {}
    silent = masked(network, {"1": [0, 5]}, EXAMPLE.double())
    silent[4].register_forward_pre_hook(lambda _, inputs: seen.update(inputs=inputs[0]))
    silent(torch.randn(3, 1, 32, 32, dtype=torch.float64))
    assert not seen["inputs"][:, [1, 2, 3, 4, *range(6, 24)]].any() and seen["inputs"][:, [0, 5]].all()
    assert torch.equal(silent[2].weight, network[2].weight)


def test_a_layer_of_a_unit_cannot_be_pruned_by_its_own_name():
    with pytest.raises(MethodError, match=r"'layer1.0.conv2' cannot be pruned alone: it shares .* with 'conv1'"):
        shrink(trained("basic-blocks"), {"layer1.0.conv2": [0]}, EXAMPLE.double())


@pytest.mark.parametrize(
    ("name", "kept", "why"),
    [
        ("resnext", {"layer1.0.conv1": [0, 1, 4, 8, 12]}, "4 groups"),
        ("group-norm", {"features.0": [0, 1, 2, 3, 4]}, "normalised in parts"),
    ],
)
def test_groups_that_would_differ_are_refused(name, kept, why):
    with pytest.raises(MethodError, match=why):
        shrink(trained(name), kept, EXAMPLE.double())


@given(
    parts=st.integers(1, 4), bundle=st.integers(1, 3), length=st.integers(2, 5), seed=st.integers(0, 99), data=st.data()
)
@settings(deadline=None, max_examples=60)
def test_candidates_leave_what_may_stay(parts, bundle, length, seed, data):
    unit = Unit("u", parts * bundle * length, ("u",), (), bundle, parts)
    scores = torch.rand(unit.channels, generator=generator(seed, "scores"))
    means, channels = unit.candidates(scores)
    assert sorted(channels.flatten().tolist()) == list(range(unit.channels))
    torch.testing.assert_close(means, scores[channels].mean(dim=1))
    count = data.draw(st.integers(1, length))
    kept = channels[means.argsort(descending=True)[:count]].flatten().tolist()
    assert unit.problem(kept) == "" and len(kept) == count * unit.step
    assert unit.problem(unit.first(count * unit.step)) == "" and len(unit.first(count * unit.step)) == len(kept)
    if unit.step > 1 and count < length:
        assert unit.problem(kept[1:])
    # Each part keeps its best.
    by_part = scores.view(parts, length, bundle).mean(dim=2)
    best = by_part.topk(count, dim=1).values.sort(dim=1).values
    left = scores[torch.tensor(sorted(kept))].view(parts, count, bundle).mean(dim=2).sort(dim=1).values
    torch.testing.assert_close(left, best)


def test_widths_of_a_network_are_those_of_its_layers():
    widths = shapes.widths_at(workload("mobilenet"), 0.5)
    network = shapes.network(workload("mobilenet"), widths)
    depthwise = network.features[2].conv[1][0]
    assert width_of(network.features[2].conv[0][0]) == widths["features.2.conv.0.0"] == 16
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (16, 16, 16)


def test_removal_leaves_the_modules_that_lose_nothing_as_they_are():
    network = trained("unet")
    units = list(units_by_name("unet").values())
    whole = network.up2
    cut(network, {"merge1": [0, 2]}, units)
    assert network.up2 is whole and whole.weight.shape == (16, 12, 2, 2)
    assert network.merge1.out_channels == 2 and network.fc.in_features == 2


def test_importing_the_graph_does_not_import_what_only_a_counter_needs():
    """Torch-pruning imports timm where it is installed, and with it torchvision and torch's compiler."""
    script = "import sys; import pruneaudit.pruning.graph; print(sorted({'timm', 'torchvision'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
