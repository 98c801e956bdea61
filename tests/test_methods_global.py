"""One threshold for all layers: the operating point, and masks of single weights."""

import pytest
import torch
from small import WORKLOADS, assert_equivariant, network, prune

from pruneaudit import shapes


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
