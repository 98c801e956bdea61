"""One-shot scores of filters: each against plain numbers from its paper's formula."""

import copy
import functools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import BATCH, CATALOG, WORKLOADS, assert_equivariant, network, permuted, prune
from torch import nn

from pruneaudit.pruning import shapes

#: Enough that fewer filters are silent on all of them than go: silent ones tie, and ties go by index.
IMAGES = 20
#: Hyper-parameters that keep the tests short.
FEW = {
    "taylor": {"batches": 2},
    "taylor-global": {"batches": 2},
    "group-taylor": {"batches": 2},
    "hessian": {"images": IMAGES},
    "hessian-global": {"images": IMAGES},
    "group-hessian": {"images": IMAGES},
    "hrank": {"batches": 2},
}
PLAIN = [
    *("l2", "l2-global", "fpgm", "fpgm-global", "bn-scale", "bn-scale-global", "lamp", "lamp-layer"),
    *("group-l2", "group-l2-global"),
]
METHODS = [*PLAIN, *FEW]
GLOBAL = [name for name in METHODS if name.endswith("-global") or name == "lamp"]
CASES = [
    (method, name)
    for method in METHODS
    for name in WORKLOADS
    if not (method.startswith("bn-scale") and name == "lenet5")
]


def created(method):
    """A method with its id, on few images."""
    source = CATALOG.method(method)
    instance = source.cls(**FEW.get(method, {}))
    instance.name = source.name
    return instance


def scores_of(method, found):
    """What a method gave each filter, by layer, as it pruned."""
    with torch.no_grad():
        return {layer.name: created(method).score(layer, found.task).numpy() for layer in found.task.layers}


# The formulas, in plain numbers.


def parts_of(name, layer):
    """Names of the parameters that lose values with a layer's filters; those with filters as inputs are marked."""
    if name == "lenet5":
        reader = {"conv1": "conv2", "conv2": "conv3", "conv3": "fc1"}[layer]
        return [(f"{layer}.weight", False), (f"{reader}.weight", True)]
    block = layer.removesuffix(".conv1")
    return [(f"{layer}.weight", False), (f"{block}.bn1.weight", False), (f"{block}.conv2.weight", True)]


def filters_of(tensor, as_inputs):
    """The values of each filter, ``[filters, values]``."""
    array = tensor.detach().numpy()
    array = array.swapaxes(0, 1) if as_inputs else array
    return array.reshape(len(array), -1)


def gradients(model, images, labels):
    """Gradient of the mean cross-entropy in every parameter, by name."""
    model = copy.deepcopy(model).eval()
    names, parameters = zip(*model.named_parameters(), strict=True)
    loss = -torch.log_softmax(model(images), dim=1)[range(len(labels)), labels].mean()
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@functools.lru_cache(maxsize=1)
def gradients_of_batches(model, task, count, batch=None):
    """Gradients of a method's scoring batches; every layer's scores are made of the same ones."""
    return [gradients(model, images, labels) for images, labels in task.batches(count, batch)]


def squared_norms(model, name, layer, task):
    weight = filters_of(model.get_parameter(f"{layer}.weight"), False)
    return [sum(value * value for value in row) for row in weight.tolist()]


def distances(model, name, layer, task):
    weight = filters_of(model.get_parameter(f"{layer}.weight"), False)
    return [sum(math.sqrt(((one - other) ** 2).sum()) for other in weight) for one in weight]


def scales(model, name, layer, task):
    return [abs(value) for value in model.get_parameter(f"{layer.removesuffix('conv1')}bn1.weight").tolist()]


def lamp(model, name, layer, task):
    norms = squared_norms(model, name, layer, task)
    return [norm / sum(other for other in norms if other >= norm) for norm in norms]


def group_norms(model, name, layer, task):
    parts = [filters_of(model.get_parameter(key), inputs) for key, inputs in parts_of(name, layer)]
    return [sum((part[index] ** 2).sum() for part in parts) / len(parts) for index in range(len(parts[0]))]


def first_order(model, parts, task):
    """Σ g·w of each part, ``[batches, parts, filters]``."""
    found = []
    for gradient in gradients_of_batches(model, task, 2):
        found.append(
            [
                (filters_of(gradient[key], inputs) * filters_of(model.get_parameter(key), inputs)).sum(1)
                for key, inputs in parts
            ]
        )
    return np.array(found)


def taylor(model, name, layer, task):
    return (first_order(model, [(f"{layer}.weight", False)], task) ** 2).mean(0)[0]


def group_taylor(model, name, layer, task):
    return np.abs(first_order(model, parts_of(name, layer), task)).sum(1).mean(0)


def second_order(model, parts, task):
    """Mean over images of Σ g²w² over the parts."""
    total = 0
    for gradient in gradients_of_batches(model, task, IMAGES, 1):
        for key, inputs in parts:
            change = filters_of(gradient[key], inputs) * filters_of(model.get_parameter(key), inputs)
            total = total + (change**2).sum(1) / IMAGES
    return total


def hessian(model, name, layer, task):
    return second_order(model, [(f"{layer}.weight", False)], task)


def group_hessian(model, name, layer, task):
    parts = parts_of(name, layer)
    return second_order(model, parts, task) / len(parts)


@torch.no_grad()
def feature_maps(model, name, images):
    """What ReLU leaves of every prunable layer's output, by the network's forward pass."""
    if name == "lenet5":
        first = F.relu(model.conv1(images))
        second = F.relu(model.conv2(F.max_pool2d(first, 2)))
        third = F.relu(model.conv3(F.max_pool2d(second, 2)))
        return {"conv1": first, "conv2": second, "conv3": third}
    found = {}
    stream = F.relu(model.bn1(model.conv1(images)))
    for stage in ("layer1", "layer2", "layer3"):
        for place, block in enumerate(getattr(model, stage)):
            found[f"{stage}.{place}.conv1"] = F.relu(block.bn1(block.conv1(stream)))
            stream = block(stream)
    return found


def ranks(model, name, layer, task):
    maps = torch.cat([feature_maps(model, name, images)[layer] for images, _ in task.batches(2)]).numpy()
    return [sum(np.linalg.matrix_rank(image[index]) for image in maps) for index in range(maps.shape[1])]


def per_weight(values, model, layer):
    return np.array(values) / model.get_parameter(f"{layer}.weight")[0].numel()


def per_layer(values, model, layer):
    return np.array(values) / np.mean(values)


def unchanged(values, model, layer):
    return np.array(values)


FORMULAS = {
    "l2": (squared_norms, unchanged),
    "l2-global": (squared_norms, per_weight),
    "fpgm": (distances, unchanged),
    "fpgm-global": (distances, per_layer),
    "bn-scale": (scales, unchanged),
    "bn-scale-global": (scales, unchanged),
    "lamp": (lamp, unchanged),
    "lamp-layer": (lamp, unchanged),
    "taylor": (taylor, unchanged),
    "taylor-global": (taylor, unchanged),
    "hessian": (hessian, unchanged),
    "hessian-global": (hessian, unchanged),
    "hrank": (ranks, unchanged),
    "group-l2": (group_norms, unchanged),
    "group-l2-global": (group_norms, per_layer),
    "group-taylor": (group_taylor, unchanged),
    "group-hessian": (group_hessian, unchanged),
}


@pytest.mark.parametrize(("method", "name"), CASES)
def test_scores_are_those_of_the_formula_and_the_lowest_go(method, name):
    model = network(name).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight[::2] *= -1
    found = prune(created(method), name, model)
    scores = scores_of(method, found)
    formula, relative_to = FORMULAS[method]
    expected = {layer: relative_to(formula(model, name, layer, found.task), model, layer) for layer in scores}
    for layer, values in scores.items():
        # Torch-pruning reduces in single precision.
        np.testing.assert_allclose(values, expected[layer], rtol=1e-5, err_msg=layer)
    kept = found.answer.kept
    if method in GLOBAL:
        # One threshold: but for the last filter of a layer, which stays whatever its score.
        stay = [expected[layer][index] for layer in kept if len(kept[layer]) > 1 for index in kept[layer]]
        gone = [value for layer in kept for index, value in enumerate(expected[layer]) if index not in kept[layer]]
        assert min(stay) > max(gone)
    else:
        for layer, values in expected.items():
            removed = len(values) // 2
            order = sorted(range(len(values)), key=lambda index: (values[index], index))
            assert kept[layer] == sorted(order[removed:]), layer


@pytest.mark.parametrize(("method", "name"), CASES)
def test_nothing_is_left_on_the_network(method, name):
    model = network(name)
    found = prune(created(method), name, model)
    assert not found.model.training
    assert all(parameter.grad is None for parameter in found.model.parameters())
    assert all(torch.equal(tensor, found.model.state_dict()[key]) for key, tensor in model.state_dict().items())
    for module in found.model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


@pytest.mark.parametrize(("method", "name"), CASES)
def test_budget_is_what_is_metered(method, name):
    workload = WORKLOADS[name]
    workload = workload.model_copy(update={"prune": workload.prune.model_copy(update={"batch": BATCH})})
    found = prune(created(method), name, workload=workload)
    budget = created(method).budget(workload)
    assert found.consumption.optimiser_steps == budget.steps == 0
    assert found.consumption.training_samples == budget.samples
    assert found.consumption.scoring_samples == (2 * BATCH if method == "hrank" else 0)
    images = {"taylor": 2 * BATCH, "hessian": IMAGES}
    assert budget.samples == next((count for key, count in images.items() if key in method), 0)


@pytest.mark.parametrize("method", METHODS)
def test_default_budgets_are_half_an_epoch_of_digits_at_most(method):
    workload = CATALOG.workload("resnet20-digits")
    assert CATALOG.method(method).create().budget(workload).samples <= 1079 / 2


@pytest.mark.parametrize(("method", "name"), [case for case in CASES if case[0] != "hrank"])
def test_selection_does_not_depend_on_the_order_of_filters(method, name):
    for seed in (0, 1):
        assert_equivariant(created(method), name, seed=seed, ratio=0.3)


@pytest.mark.parametrize("name", WORKLOADS)
def test_ranks_follow_the_order_of_filters(name):
    """Ranks are whole numbers: filters tie, and ties go by index. The scores must follow all the same."""
    model = network(name)
    before = scores_of("hrank", prune(created("hrank"), name, model))
    other, orders = permuted(name, model)
    after = scores_of("hrank", prune(created("hrank"), name, other))
    for layer, order in orders.items():
        assert np.array_equal(after[layer], before[layer][order.numpy()])
    assert any(len(set(values)) > 2 for values in before.values())


@pytest.mark.parametrize("name", WORKLOADS)
def test_first_order_score_is_the_slope_of_the_loss(name):
    """(Σ g·w)² against what the loss does when a filter's weights are scaled a little, batch by batch."""
    model = network(name).eval()
    found = prune(created("taylor"), name, model)
    scores = scores_of("taylor", found)
    batches = list(found.task.batches(2))
    for layer, values in scores.items():
        weight = model.get_parameter(f"{layer}.weight")
        for index in (0, len(values) - 1):
            slopes = []
            for images, labels in batches:
                losses = []
                for change in (1e-6, -1e-6):
                    scaled = copy.deepcopy(model)
                    with torch.no_grad():
                        scaled.get_parameter(f"{layer}.weight")[index] = weight[index] * (1 + change)
                        losses.append(float(F.cross_entropy(scaled(images), labels)))
                slopes.append((losses[0] - losses[1]) / 2e-6)
            assert values[index] == pytest.approx(np.mean(np.square(slopes)), rel=1e-3, abs=1e-12), (layer, index)


@pytest.mark.parametrize("name", WORKLOADS)
def test_lamp_scores_the_largest_filter_of_each_layer_one_and_keeps_what_l2_keeps(name):
    model = network(name)
    for values in scores_of("lamp", prune("lamp", name, model)).values():
        assert values.max() == pytest.approx(1, rel=1e-4) and (values > 0.999).sum() == 1
    assert prune("lamp-layer", name, model, ratio=0.3).answer == prune("l2", name, model, ratio=0.3).answer


@pytest.mark.parametrize("method", ["fpgm-global", "group-l2-global", "lamp"])
def test_relative_scores_do_not_see_the_scale_of_a_layer(method):
    """A larger layer before a normalisation computes the same; scores per layer must not prefer it."""
    model = network("resnet20")
    before = prune(method, "resnet20", model).answer
    with torch.no_grad():
        for key, _ in parts_of("resnet20", "layer2.1.conv1"):
            model.get_parameter(key).mul_(8)
    assert prune(method, "resnet20", model).answer == before


def test_scale_of_the_normalisation_needs_one_behind_every_layer():
    for method in ("bn-scale", "bn-scale-global"):
        instance = CATALOG.method(method).create()
        assert "conv1" in instance.skip(WORKLOADS["lenet5"])
        assert instance.skip(WORKLOADS["resnet20"]) is None
        assert instance.skip(CATALOG.workload("vgg19-cifar100")) is None


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("ratio", [0.5, 0.9])
def test_global_random_reaches_the_macs_and_leaves_every_layer_a_filter(name, ratio):
    found = prune("global-random", name, ratio=ratio)
    widths = {layer: len(kept) for layer, kept in found.answer.kept.items()}
    assert min(widths.values()) >= 1
    workload = WORKLOADS[name]
    target = shapes.target(workload, ratio)
    assert abs(shapes.shape_of(workload, widths).macs - target.macs) <= target.unit / 2 + 1
    assert prune("global-random", name, network(name, seed=1), ratio=ratio).answer == found.answer, (
        "weights do not count"
    )
    assert prune("global-random", name, ratio=ratio, seed=1).answer != found.answer


def test_global_random_prefers_no_layer():
    """Over many seeds wide and narrow layers keep the same share, and widths scatter from seed to seed."""
    method = created("global-random")
    found = prune(method, "resnet20")
    shares = {}
    for seed in range(200):
        found.task._seed = seed
        for layer, kept in method.prune(found.task).items():
            shares.setdefault(layer, []).append(len(kept) / found.task.target.stay[layer] / 2)
    for layer, values in shares.items():
        width = 2 * found.task.target.stay[layer]
        assert abs(np.mean(values) - 0.5) < 5 * math.sqrt(0.25 / width / len(values)), layer
        assert np.std(values) == pytest.approx(math.sqrt(0.25 / width), rel=0.25), layer


@pytest.mark.parametrize("method", ["l1", "random", "global-random", *METHODS])
def test_cards_are_filled_in(method):
    cls = CATALOG.method(method).cls
    assert "not specified" not in vars(cls.card).values()
    assert cls.granularity == "filter"
    assert cls.scope == ("global" if method in (*GLOBAL, "global-random") else "layerwise")
