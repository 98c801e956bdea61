"""One threshold for all layers: the operating point, and masks of single weights."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import CATALOG, WORKLOADS, assert_equivariant, network, prune

from pruneaudit import Budget
from pruneaudit.errors import MethodError
from pruneaudit.pruning import shapes
from pruneaudit.pruning.removal import masked, shrink


@pytest.mark.parametrize("name", ["resnet20", "lenet5"])
@pytest.mark.parametrize("method", ["l1-global", "magnitude-global"])
def test_selection_does_not_depend_on_the_order_of_filters(method, name):
    assert_equivariant(method, name, ratio=0.5)


@pytest.mark.parametrize("name", ["resnet20", "lenet5"])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.9])
def test_a_global_threshold_reaches_the_macs_of_uniform_pruning(name, ratio):
    found = prune("l1-global", name, ratio=ratio)
    workload = WORKLOADS[name]
    macs = shapes.shape_of(workload, {layer: len(kept) for layer, kept in found.answer.kept.items()}).macs
    uniform = shapes.shape(workload, ratio).macs
    # Half of the most expensive filter at most.
    assert abs(macs - uniform) <= shapes.target(workload, ratio).unit / 2 + 1


@pytest.mark.parametrize("ratio", [0.5, 0.9])
def test_a_global_threshold_is_one_threshold(ratio):
    model = network("resnet20")
    found = prune("l1-global", "resnet20", model, ratio=ratio)
    scores = {layer.name: layer.weight.detach().abs().flatten(1).mean(1) for layer in found.task.layers}
    kept = found.answer.kept
    stay = torch.cat([scores[name][kept[name]] for name in scores if len(kept[name]) > 1])
    gone = torch.cat(
        [scores[name][[index for index in range(len(scores[name])) if index not in kept[name]]] for name in scores]
    )
    assert stay.min() > gone.max()


def test_weights_by_a_sorted_list():
    model = network("lenet5")
    found = prune("magnitude-global", "lenet5", model, ratio=0.9)
    masks = found.answer.masks
    assert set(masks) == {"conv1", "conv2", "conv3", "fc1"}
    values = sorted(
        (abs(float(value)), name, index)
        for name in masks
        for index, value in enumerate(model.get_parameter(f"{name}.weight").flatten().tolist())
    )
    gone = sum(int((~mask).sum()) for mask in masks.values())
    expected = {name: torch.ones(mask.numel(), dtype=torch.bool) for name, mask in masks.items()}
    for _, name, index in values[:gone]:
        expected[name][index] = False
    for name, mask in masks.items():
        assert torch.equal(mask.flatten(), expected[name])
    # As many as layerwise arms keep: a tenth of 400 × 6 + 16 × 150 and so on, rounded up layer by layer.
    assert sum(found.answer.stay.values()) == sum(prune("magnitude-layer", "lenet5", ratio=0.9).answer.stay.values())
    reached = shapes.shape_of_weights(WORKLOADS["lenet5"], found.answer.stay)
    assert reached.macs == reached.recounted


# Costs and blocks


@settings(deadline=None, max_examples=25)
@given(data=st.data(), name=st.sampled_from(["resnet20", "lenet5"]))
def test_costs_of_any_widths_are_those_of_the_network(data, name):
    workload = WORKLOADS[name]
    known = shapes.costs(workload)
    # A layer that opens a residual branch may lose all filters.
    widths = {
        layer: data.draw(st.integers(0 if layer in known.blocks else 1, count), label=layer)
        for layer, count in known.filters.items()
    }
    counted = shapes.shape_of(workload, widths)
    assert known.of_widths(widths) == counted.macs == counted.recounted


@settings(deadline=None, max_examples=15)
@given(gone=st.sets(st.integers(0, 8)))
def test_removed_branches_compute_what_silenced_ones_compute(gone):
    model = network("resnet20")
    layers = list(shapes.costs(WORKLOADS["resnet20"]).blocks)
    kept = {
        layer: [] if place in gone else list(range(model.get_submodule(layer).out_channels))
        for place, layer in enumerate(layers)
    }
    images = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    example = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        small, silent = shrink(model, kept, example).eval(), masked(model, kept, example).eval()
        torch.testing.assert_close(small(images), silent(images), rtol=1e-12, atol=1e-12)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters()) or not gone


def test_a_block_stays_whole_or_goes():
    class Half(CATALOG.method("sss").cls):
        """Removes half of a branch."""

        def budget(self, workload):
            return Budget()

        def prune(self, task):
            return {layer.name: [0] for layer in task.layers}

    with pytest.raises(MethodError, match=r"layer 'layer1.0.conv1': a block stays whole or goes; it keeps 1 filters"):
        prune(Half(), "resnet20")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda layer: [0], "expected a bool mask of shape [6, 1, 5, 5], True where a weight stays"),
        (lambda layer: layer.weight > 0, None),
        (lambda layer: torch.zeros_like(layer.weight, dtype=torch.bool), "removes every weight of layer 'conv1'"),
        (
            lambda layer: torch.ones_like(layer.weight, dtype=torch.bool),
            "keeps 150 of 150 weights; ratio 0.5 asks for 75",
        ),
    ],
    ids=["no-mask", "another-number", "nothing", "everything"],
)
def test_wrong_masks_get_their_own_line(answer, message):
    class Masks(CATALOG.method("magnitude-layer").cls):
        """Answers whatever it is told to."""

        def prune(self, task):
            return {layer.name: answer(layer) for layer in task.layers}

    with pytest.raises(MethodError) as caught:
        prune(Masks(), "lenet5")
    assert (message or "misses its target in layer 'conv1'") in str(caught.value)


def test_a_share_of_all_filters_is_exact_where_the_workload_asks_for_it():
    workload = WORKLOADS["resnet20"].model_copy(update={"operating_point": "share"})
    found = prune("l1-global", "resnet20", workload=workload, ratio=0.3)
    total = sum(shapes.costs(workload).filters.values())
    assert sum(map(len, found.answer.kept.values())) == total - math.ceil(0.3 * total - 1e-9)


def test_shares_of_single_layers_win_over_the_ratio():
    workload = WORKLOADS["resnet20"].model_copy(
        update={"layer_ratios": ((0.5, (("layer1.*", 0.25), ("layer1.2.*", 0.75), ("layer3.*", 0.0))),)}
    )
    found = prune("l1", "resnet20", workload=workload, ratio=0.5)
    assert [len(kept) for kept in found.answer.kept.values()] == [12, 12, 4, 16, 16, 16, 64, 64, 64]
    # At another ratio nothing is stated; weights know no shares of layers.
    assert len(prune("l1", "resnet20", workload=workload, ratio=0.9).answer.kept["layer1.0.conv1"]) == 1
    masks = prune("magnitude-layer", "resnet20", workload=workload, ratio=0.5).answer
    assert {2 * stay for stay in masks.stay.values()} == {mask.numel() for mask in masks.masks.values()}
