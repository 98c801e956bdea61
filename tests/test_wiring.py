"""Pruned networks put together: correctly, as the released oracle code did, and with channels named anew."""

import copy
import itertools

import pytest
import torch
from plays import brought

from pruneaudit.errors import MethodError
from pruneaudit.pruning import joint, shapes
from pruneaudit.pruning.equivalence import trained_like
from pruneaudit.pruning.layers import prunable_layers, units_of
from pruneaudit.pruning.removal import masked, units_named
from pruneaudit.pruning.subsets import losses_after_removal
from pruneaudit.streams import generator
from pruneaudit.studies.wiring import mismatches, relabel, wired
from pruneaudit.workloads.models import build
from pruneaudit.workloads.models.initialise import initialise

torch.set_num_threads(1)

EXAMPLE = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
L1 = {"conv1": (0, 2, 5), "conv2": (1, 3, 4, 8)}
KEPT = {"conv1": (1, 2, 9), "conv2": (0, 3, 5, 6)}


def mini(seed=0, model="lenet5-mini"):
    network = build(model, 1, 10).double()
    draw = generator(seed, "test")
    initialise(network, draw)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.uniform_(-0.3, 0.3, generator=draw)
    return network.eval()


def images(count=6, side=32):
    return torch.randn(count, 1, side, side, generator=generator(1, "images"), dtype=torch.float64)


def put_together(network, kept, wiring, l1=L1):
    return wired(network, kept, l1, units_named(network, EXAMPLE, list(kept)), wiring)


def test_correct_networks_compute_what_silenced_filters_leave():
    network = mini()
    for kept in (KEPT, {"conv3": (0, 7)}):
        pruned = put_together(network, kept, "correct", {"conv3": (1, 2)})
        assert len(pruned.get_submodule(next(iter(kept))).weight) == len(next(iter(kept.values())))
        silenced = masked(network, {name: list(subset) for name, subset in kept.items()}, EXAMPLE)
        torch.testing.assert_close(pruned(images()), silenced(images()), rtol=0, atol=1e-12)


def test_legacy_networks_have_their_own_filters_and_the_inputs_of_the_l1_set():
    network = mini()
    legacy = put_together(network, KEPT, "legacy-l1")
    one, two, three = network.conv1, network.conv2, network.conv3
    for ours, wanted in (
        (legacy.conv1.weight, one.weight[list(KEPT["conv1"])]),
        (legacy.conv1.bias, one.bias[list(KEPT["conv1"])]),
        (legacy.conv2.weight, two.weight[list(KEPT["conv2"])][:, list(L1["conv1"])]),
        (legacy.conv3.weight, three.weight[:, list(L1["conv2"])]),
    ):
        assert torch.equal(ours, wanted)
    assert not torch.allclose(legacy(images()), put_together(network, KEPT, "correct")(images()))


def test_of_legacy_networks_the_l1_set_alone_is_a_pruned_network():
    network = mini()
    torch.testing.assert_close(
        put_together(network, L1, "legacy-l1")(images()), put_together(network, L1, "correct")(images())
    )
    assert mismatches(tuple(L1.values()), tuple(L1.values())) == 0
    # Places, not filters: 1≠0, 2=2, 9≠5, and 0≠1, 3=3, 5≠4, 6≠8.
    assert mismatches(tuple(KEPT.values()), tuple(L1.values())) == 5


def test_names_of_channels_mean_nothing_and_legacy_networks_depend_on_them():
    """The test that would have caught the wrong wiring."""
    network = mini()
    renamed, place = copy.deepcopy(network), {}
    for layer in prunable_layers(renamed, EXAMPLE, ("conv1", "conv2")):
        order = torch.randperm(10, generator=generator(2, layer.name)).tolist()
        relabel(renamed, layer.unit, order)
        place[layer.name] = [order.index(channel) for channel in range(10)]
    assert not torch.equal(renamed.conv2.weight, network.conv2.weight)
    torch.testing.assert_close(renamed(images()), network(images()), rtol=0, atol=1e-12)

    def named_anew(kept):
        return {name: tuple(sorted(place[name][channel] for channel in subset)) for name, subset in kept.items()}

    outputs = {
        wiring: (
            put_together(network, KEPT, wiring)(images()),
            put_together(renamed, named_anew(KEPT), wiring, named_anew(L1))(images()),
        )
        for wiring in ("correct", "legacy-l1")
    }
    torch.testing.assert_close(*outputs["correct"], rtol=0, atol=1e-12)
    assert not torch.allclose(*outputs["legacy-l1"], atol=1e-3)


def test_relabelling_takes_a_normalisation_along():
    network = build("resnet20", 1, 10).double()
    initialise(network, generator(0, "test"))
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    tensor.uniform_(0.5, 2, generator=generator(0, "norm"))
    network.eval()
    before, small = network(images(2, 8)), torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    (layer,) = prunable_layers(network, small, ("layer2.0.conv1",))
    with torch.no_grad():
        layer.norm.running_var.copy_(torch.arange(1.0, layer.channels + 1))
    before = network(images(2, 8))
    relabel(network, layer.unit, torch.randperm(layer.channels, generator=generator(0, "order")).tolist())
    torch.testing.assert_close(network(images(2, 8)), before, rtol=0, atol=1e-10)


# The exact joint oracle


def test_joint_losses_are_those_of_every_pruned_network():
    network, labels = mini(), torch.tensor([1, 2, 3, 4])
    parts = list(joint.joint_losses(network, {"conv1": 9, "conv3": 1}, images(4), labels))
    assert [part.first for part in parts] == joint.subsets(10, 9)
    assert parts[0].losses.shape == (1, 10)
    removals = [
        {"conv1": list(one), "conv3": list(three)}
        for one, three in itertools.product(joint.subsets(10, 9), joint.subsets(10, 1))
    ]
    layers = prunable_layers(network, EXAMPLE, ("conv1", "conv3"))
    wanted = losses_after_removal(network, layers, removals, [(images(4), labels)])
    found = [loss for part in parts for loss in part.losses[0]]
    assert found == pytest.approx(wanted, rel=1e-10)


def test_the_search_finds_the_best_of_all_and_how_a_sample_does():
    network, labels = mini(), torch.tensor([1, 2, 3, 4])
    stay = {"conv2": 2, "conv3": 9}
    sample = [((0, 1), tuple(range(9))), ((4, 7), tuple(range(1, 10))), ((2, 3), (0, 1, 2, 3, 4, 5, 6, 8, 9))]
    found = joint.search(network, ["conv2", "conv3"], stay, sample, images(4), labels)
    (part,) = joint.joint_losses(network, stay, images(4), labels)
    assert found.combinations == part.losses.size == 45 * 10 == sum(found.histogram)
    assert found.lowest == pytest.approx(part.losses.min(), rel=1e-6)
    layers = prunable_layers(network, EXAMPLE, ("conv2", "conv3"))
    every = [{"conv2": list(two), "conv3": list(three)} for two, three in [*sample, found.best]]
    *sampled, best = losses_after_removal(network, layers, every, [(images(4), labels)])
    assert best == pytest.approx(found.lowest, rel=1e-6)
    assert found.sampled == pytest.approx(min(sampled), rel=1e-10)
    assert found.below == (part.losses < min(sampled) - 1e-6).sum()


@pytest.mark.parametrize(
    ("stay", "message"),
    [({"fc1": 3}, "'fc1' is no convolution of LeNet-5"), ({"conv1": 11}, "conv1 has 10 filters; 11 cannot stay")],
)
def test_what_has_no_joint_oracle_is_refused(stay, message):
    with pytest.raises(MethodError, match=message):
        next(joint.joint_losses(mini(), stay, images(1), torch.tensor([0])))


@pytest.mark.parametrize("name", ["vit-digits", "text"])
def test_heads_and_neurons_have_other_names_and_the_network_computes_what_it_did(tmp_path, name):
    workload = brought(tmp_path).workload(name)
    network = shapes.dense_network(workload).double().eval()
    trained_like(network, generator(0, "weights"))
    draw = generator(1, "examples")
    if name == "text":
        given = torch.randint(0, 30, (3, 12), generator=draw)
    else:
        given = torch.randn(3, 1, 8, 8, generator=draw, dtype=torch.float64)
    before = network(given)
    for unit in units_of(prunable_layers(network, given[:1], workload.prunable)):
        weights = network.get_submodule(unit.name).weight.clone()
        heads = torch.arange(unit.channels // unit.step).roll(1)
        relabel(network, unit, (heads[:, None] * unit.step + torch.arange(unit.step)).flatten().tolist())
        assert not torch.equal(network.get_submodule(unit.name).weight, weights)
    torch.testing.assert_close(network(given), before, rtol=0, atol=1e-10)
