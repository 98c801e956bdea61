"""ThiNet, channel regression and the oracle, against plain computations with every output of every layer."""

import copy
import functools
import itertools
import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Lasso
from small import BATCH, CATALOG, WORKLOADS, assert_equivariant, network, prune
from torch import nn

from pruneaudit.pruning import shapes, subsets
from pruneaudit.pruning.layers import prunable_layers
from pruneaudit.pruning.reconstruction import Consumer, consumers, contributions, correlations, samples
from pruneaudit.pruning.removal import masked, shrink
from pruneaudit.pruning.subsets import losses_after_removal
from pruneaudit.streams import generator
from pruneaudit.workloads.models import build

NEXT = {
    "lenet5": {"conv1": "conv2", "conv2": "conv3", "conv3": "fc1"},
    "resnet20": {
        f"layer{stage}.{block}.conv1": f"layer{stage}.{block}.conv2" for stage in (1, 2, 3) for block in range(3)
    },
}
EVERYWHERE = 10_000


def method(name, **options):
    instance = CATALOG.method(name).cls(**options)
    instance.name = name
    return instance


def module_of(name):
    return sys.modules[CATALOG.method(name).cls.__module__]


def images_of(found, count):
    """The images that a method was shown: the same stream again."""
    return torch.cat([images for images, _ in found.task.batches(count)])


def input_of(model, name, images):
    """What a layer reads."""
    seen = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model.eval()(images)
    handle.remove()
    return seen[0]


def without_bias(module, maps, weight=None):
    """Outputs of a layer, its bias apart, one row of all outputs after the other: ``[S · outputs]``."""
    weight = module.weight.detach() if weight is None else weight
    if isinstance(module, nn.Linear):
        return (maps @ weight.T).flatten().numpy()
    return F.conv2d(maps, weight, None, module.stride, module.padding).flatten().numpy()


def design(module, maps):
    """What each channel adds to every output, ``[S · outputs, channels]``: a convolution of that channel alone."""
    columns = []
    for channel in range(maps.shape[1]):
        weight = torch.zeros_like(module.weight)
        weight[:, channel] = module.weight.detach()[:, channel]
        columns.append(without_bias(module, maps, weight))
    return np.stack(columns, axis=1)


def switch_off(model, name, kept):
    """The network with only the kept filters of one layer."""
    return masked(model, {name: kept}, torch.zeros(1, 1, 32, 32, dtype=torch.float64))


def assert_equal_networks(found, expected, kept, name, tolerance=1e-7):
    """Two networks that are the same once filters are gone."""
    example = shapes.example(WORKLOADS[name]).double()
    one, other = shrink(found, kept, example), shrink(expected, kept, example)
    for label, tensor in one.state_dict().items():
        torch.testing.assert_close(tensor, other.state_dict()[label], rtol=tolerance, atol=tolerance, msg=label)


# ThiNet


def naive_thinet(model, images, name, ratio=0.5):
    """All outputs, all sets tried one filter at a time, numpy's least squares."""
    model = copy.deepcopy(model)
    kept = {}
    for layer, consumer in NEXT[name].items():
        module = model.get_submodule(consumer)
        table = design(module, input_of(model, consumer, images))
        channels = table.shape[1]
        gone = []
        while len(gone) < math.ceil(ratio * channels):
            rest = [index for index in range(channels) if index not in gone]
            gone.append(min(rest, key=lambda index: (table[:, [*gone, index]].sum(axis=1) ** 2).sum()))
        kept[layer] = [index for index in range(channels) if index not in gone]
        scale, *_ = np.linalg.lstsq(table[:, kept[layer]], table.sum(axis=1), rcond=None)
        with torch.no_grad():
            for index, factor in zip(kept[layer], scale, strict=True):
                module.weight[:, index] *= factor
        model = switch_off(model, layer, kept[layer])
    return model, kept


@pytest.mark.parametrize("name", ["lenet5", "resnet20"])
def test_thinet_by_every_output(name):
    model = network(name)
    found = prune(method("thinet", batches=1, positions=EVERYWHERE), name, model)
    expected, kept = naive_thinet(model, images_of(found, 1), name)
    assert found.answer.kept == kept
    assert_equal_networks(found.model, expected, kept, name)


def test_thinet_is_not_decided_by_single_contributions():
    """Two channels that cancel each other go together, though each is large."""
    vectors = torch.tensor([[5.0, 0.0], [-5.0, 0.1], [1.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    gram = vectors @ vectors.T
    greedy = module_of("thinet").greedy
    assert greedy(gram, 1) == [2]
    assert greedy(gram[[0, 1, 3]][:, [0, 1, 3]], 3) == [2, 0, 1]
    tilted = torch.tensor([[2.0, 0.0], [-2.0, 0.1], [0.0, 2.1]], dtype=torch.float64)
    assert greedy(tilted @ tilted.T, 2) == [0, 1]


# Channel regression


def naive_regression(model, images, name, ratio=0.5):
    """LASSO by coordinate descent on all outputs, λ by bisection, numpy's least squares on all windows."""
    original, model = model, copy.deepcopy(model)
    kept = {}
    for layer, consumer in NEXT[name].items():
        module = model.get_submodule(consumer)
        maps = input_of(model, consumer, images)
        wanted = without_bias(original.get_submodule(consumer), input_of(original, consumer, images))
        table = design(module, maps)
        count = table.shape[1] - math.ceil(ratio * table.shape[1])
        # The same sums of squares in as many rows as there are channels.
        turned, square = np.linalg.qr(table)
        goal = turned.T @ wanted
        low, high = 0.0, float(np.abs(table.T @ wanted).max())
        chosen = []
        for _ in range(60):
            middle = (low + high) / 2
            fit = Lasso(alpha=middle, fit_intercept=False, max_iter=100_000, tol=1e-10).fit(square, goal)
            chosen = np.flatnonzero(fit.coef_).tolist()
            if len(chosen) == count:
                break
            low, high = (middle, high) if len(chosen) > count else (low, middle)
        assert len(chosen) == count
        kept[layer] = chosen
        outputs = len(module.weight)
        if isinstance(module, nn.Linear):
            windows, wanted = maps[:, chosen], torch.tensor(wanted).view(-1, outputs)
        else:
            windows = F.unfold(maps[:, chosen], module.kernel_size, padding=module.padding, stride=module.stride)
            wanted = torch.tensor(wanted).view(len(maps), outputs, -1).transpose(1, 2).flatten(0, 1)
            windows = windows.transpose(1, 2).flatten(0, 1)
        assert len(windows) > windows.shape[1], "more samples than weights: one solution"
        fitted, *_ = np.linalg.lstsq(windows.numpy(), wanted.numpy(), rcond=None)
        with torch.no_grad():
            module.weight[:, chosen] = torch.tensor(fitted.T).view(outputs, count, *module.weight.shape[2:])
        model = switch_off(model, layer, chosen)
    return model, kept


def test_channel_regression_by_every_output():
    model = network("resnet20")
    workload = WORKLOADS["resnet20"].model_copy(update={"prunable": ("layer1.[01].conv1", "layer2.0.conv1")})
    shown = prune(method("channel-regression", batches=1, positions=EVERYWHERE), "resnet20", model, workload=workload)
    layers = {name: NEXT["resnet20"][name] for name in shown.answer.kept}
    assert len(layers) == 3
    NEXT["part"] = layers
    expected, kept = naive_regression(model, images_of(shown, 1), "part")
    assert shown.answer.kept == kept
    assert_equal_networks(shown.model, expected, kept, "resnet20", tolerance=1e-6)


def test_channel_regression_behind_a_flattened_map_and_with_biases():
    model = network("lenet5")
    workload = WORKLOADS["lenet5"].model_copy(update={"prunable": ("conv1", "conv3")})
    # 96 images leave more samples than there are weights of 60 channels.
    found = prune(method("channel-regression", batches=6, positions=EVERYWHERE), "lenet5", model, workload=workload)
    NEXT["ends"] = {name: NEXT["lenet5"][name] for name in ("conv1", "conv3")}
    expected, kept = naive_regression(model, images_of(found, 6), "ends")
    assert found.answer.kept == kept
    assert_equal_networks(found.model, expected, kept, "lenet5", tolerance=1e-6)


def choice(table, wanted, count):
    """LASSO's choice for a linear consumer with one output."""
    layer = nn.Module()
    layer.channels = table.shape[1]
    linear = nn.Linear(table.shape[1], 1, bias=False).double()
    nn.init.ones_(linear.weight)
    consumer = Consumer(linear, torch.arange(table.shape[1]))
    return module_of("channel-regression").choose(layer, [(consumer, table[:, :, None], wanted[:, None])], count)


@pytest.mark.parametrize("seed", range(3))
def test_lambda_rises_until_the_wanted_number_is_left(seed):
    """Correlated channels: the next one to leave need not be the smallest."""
    draw = np.random.default_rng(seed)
    table = draw.normal(size=(40, 8)) @ (np.eye(8) + 0.7 * draw.normal(size=(8, 8)))
    wanted = table.sum(axis=1) + draw.normal(size=40)
    supports = []
    for alpha in np.geomspace(1e-6, 1, 1000) * np.abs(table.T @ wanted).max() / 40:
        fit = Lasso(alpha=alpha, fit_intercept=False, max_iter=100_000, tol=1e-7).fit(table, wanted)
        supports.append(np.flatnonzero(fit.coef_).tolist())
    compared = 0
    for count in range(1, 8):
        first = next(support for support in supports if len(support) <= count)
        if len(first) == count:
            assert choice(torch.tensor(table), torch.tensor(wanted), count) == first
            compared += 1
    assert compared >= 4, "the others fall between two values of λ"


def test_channels_of_equal_standing_and_dead_ones():
    """Those that leave at one λ leave one by one; those that never come back go by index."""
    table = torch.eye(4, dtype=torch.float64)
    assert choice(table, torch.tensor([1.0, 3.0, 3.0, 2.0], dtype=torch.float64), 3) == [1, 2, 3]
    assert choice(table, torch.tensor([1.0, 3.0, 3.0, 2.0], dtype=torch.float64), 1) in ([1], [2])
    dead = table.clone()
    dead[:, [0, 2]] = 0
    assert choice(dead, torch.ones(4, dtype=torch.float64), 3) == [0, 1, 3]
    assert choice(0 * table, torch.ones(4, dtype=torch.float64), 2) == [0, 1]


def test_channel_regression_makes_up_for_earlier_layers():
    """Outputs of the original network are the target: what is refitted is nearer to them than after plain removal."""
    model = network("lenet5")
    found = prune(method("channel-regression", batches=10), "lenet5", model)
    images = images_of(found, 10)
    kept = found.answer.kept
    example = shapes.example(WORKLOADS["lenet5"]).double()
    wanted = model.fc1(input_of(model, "fc1", images))
    apart = {}
    for label, network_ in (("refitted", found.model), ("plain", model)):
        small = shrink(network_, kept, example)
        apart[label] = float((small.fc1(input_of(small, "fc1", images)) - wanted).norm().detach())
    assert apart["refitted"] < 0.5 * apart["plain"]


# Both


@pytest.mark.parametrize("name", ["resnet20", "lenet5"])
@pytest.mark.parametrize("label", ["thinet", "channel-regression"])
def test_selection_does_not_depend_on_the_order_of_filters(label, name):
    assert_equivariant(method(label, batches=4, positions=3), name)


@pytest.mark.parametrize("label", ["thinet", "channel-regression"])
def test_only_the_next_layers_and_removed_filters_change(label):
    model = network("resnet20")
    found = prune(method(label, batches=1), "resnet20", model)
    layers, after = NEXT["resnet20"], found.model.state_dict()
    for name, tensor in model.state_dict().items():
        owner = name.rpartition(".")[0]
        opened = owner.replace("bn1", "conv1")
        if opened in layers and after[name].dim():
            stays = found.answer.kept[opened]
            gone = [index for index in range(len(tensor)) if index not in stays]
            assert torch.equal(after[name][stays], tensor[stays]), name
            assert name.endswith("running_var") or not after[name][gone].any(), name
        elif owner in layers.values():
            assert not torch.equal(after[name], tensor), name
        else:
            assert torch.equal(after[name], tensor), name
    networks = 2 if label == "channel-regression" else 1
    assert found.consumption.training_samples == found.consumption.optimiser_steps == 0
    assert found.consumption.scoring_samples == networks * len(layers) * BATCH


@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 1), (1, 0), (2, 0)])
def test_samples_are_windows_of_the_input(stride, padding):
    model = nn.Sequential(nn.Conv2d(2, 3, 3, stride, padding)).double()
    images = torch.randn(5, 2, 9, 8, dtype=torch.float64)
    windows, outputs = samples(model, model[0], [images[:2], images[2:]], 4, generator(0, "test"))
    assert windows.shape == (20, 2, 9) and outputs.shape == (20, 3)
    computed = windows.flatten(1) @ model[0].weight.flatten(1).T + model[0].bias
    torch.testing.assert_close(computed.detach(), outputs)
    everything = model(images).detach().flatten(2).transpose(1, 2)
    for image, found in zip(everything, outputs.view(5, 4, 3), strict=True):
        places = [[place for place, row in enumerate(image) if torch.equal(row, one)] for one in found]
        assert len({place for (place,) in places}) == 4, "four different positions of this image"
    assert len(samples(model, model[0], [images], EVERYWHERE, generator(0, "test"))[1]) == everything[:, :, 0].numel()
    assert not model[0]._forward_hooks


class Flattened(nn.Module):
    """A filter has four inputs of the linear layer behind it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.linear = nn.Linear(12, 5)

    def forward(self, images):
        return self.linear(F.relu(self.conv(images)).flatten(1))


def test_inputs_behind_a_flattened_map_belong_to_their_filter():
    model = Flattened().double()
    images = torch.randn(50, 1, 4, 4, dtype=torch.float64)
    (layer,) = prunable_layers(model, images[:1], ("conv",))
    (consumer,) = consumers(layer)
    assert consumer.module is model.linear
    assert consumer.filters.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert consumer.inputs_of([0, 2]).tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    windows, outputs = samples(model, model.linear, [images], 10, generator(0, "test"))
    table = design(model.linear, input_of(model, "linear", images)).reshape(-1, 3, 4).sum(axis=2)
    np.testing.assert_allclose(contributions(consumer, windows, 3).numpy(), table.T @ table, rtol=1e-8)
    found = correlations(consumer, windows, outputs, 3)
    np.testing.assert_allclose(found.numpy(), table.T @ outputs.flatten().numpy(), rtol=1e-8)


# Oracle


def loss_after(model, kept, batches, example):
    """Mean cross-entropy of the network that is really smaller."""
    small = shrink(model, kept, example).eval()
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        return float(F.cross_entropy(small(images), labels))


TINY = {"lenet5": ("conv1", 0.5, 20), "resnet20": ("layer2.0.conv1", 0.03, 32)}


def tiny(name):
    """A workload with one prunable layer: the pattern, the ratio and the number of combinations."""
    pattern, ratio, combinations = TINY[name]
    return WORKLOADS[name].model_copy(update={"prunable": (pattern,)}), pattern, ratio, combinations


@pytest.mark.parametrize(("name", "seed"), [("lenet5", 0), ("lenet5", 1), ("resnet20", 0)])
def test_the_oracle_is_the_best_of_all_smaller_networks(name, seed):
    workload, layer, ratio, count = tiny(name)
    model = network(name, seed)
    found = prune(method("oracle", limit=count, batches=3), name, model, ratio=ratio, workload=workload)
    batches = list(found.task.batches(3))
    assert len({len(labels) for _, labels in batches}) == 2, "the last one is smaller"
    example = shapes.example(workload).double()
    channels = model.get_submodule(layer).weight.shape[0]
    stay = channels - math.ceil(ratio * channels)
    losses = {
        kept: loss_after(model, {layer: list(kept)}, batches, example)
        for kept in itertools.combinations(range(channels), stay)
    }
    assert len(losses) == count
    assert tuple(found.answer.kept[layer]) == min(losses, key=losses.get)
    assert found.consumption.scoring_samples == count * sum(len(labels) for _, labels in batches)
    assert found.consumption.training_samples == 0


class Bottleneck(nn.Module):
    """Three convolutions beside a shortcut, and a hidden linear layer with a normalisation."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv1 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 5, 1)
        self.conv2, self.bn2 = nn.Conv2d(5, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv3 = nn.Conv2d(6, 4, 1)
        self.hidden, self.bn, self.linear = nn.Linear(144, 7), nn.BatchNorm1d(7), nn.Linear(7, 5)

    def forward(self, images):
        maps = self.stem(images)
        branch = F.relu(self.bn2(self.conv2(F.relu(self.conv1(maps)))), inplace=True)
        maps = F.relu(self.conv3(branch) + maps, inplace=True)
        return self.linear(F.relu(self.bn(self.hidden(maps.flatten(1)))))


PRUNED = {
    "one layer": ("lenet5", ("conv1",), 32),
    "one before a linear layer": ("lenet5", ("conv3",), 32),
    "all, each reading the one before": ("lenet5", ("conv*",), 32),
    "two apart": ("lenet5", ("conv1", "fc1"), 32),
    "several beside shortcuts": ("resnet20", ("layer*.0.conv1",), 8),
    "two in a branch": (None, ("conv1", "conv2"), 8),
    "the second in a branch, and one with its normalisation": (None, ("conv2", "hidden"), 8),
}


@settings(deadline=None, max_examples=12)
@given(data=st.data(), case=st.sampled_from(sorted(PRUNED)))
def test_losses_after_removal_are_those_of_networks_that_are_really_smaller(data, case):
    """Any layers, whatever removals have in common, batches of any size."""
    name, patterns, side = PRUNED[case]
    torch.manual_seed(0)
    model = (build(name, channels=1, classes=5) if name else Bottleneck()).double().eval()
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean), nn.init.normal_(norm.bias)
    layers = prunable_layers(model, torch.zeros(1, 1, side, side), patterns)
    first = {layer.name: range(layer.channels // 2) for layer in layers}
    removals = [first]
    for number in range(data.draw(st.integers(0, 3))):
        changed = data.draw(st.sampled_from(layers))
        kept = [(index + number) % changed.channels for index in range(data.draw(st.integers(1, changed.channels - 1)))]
        removals.append({**data.draw(st.sampled_from(removals)), changed.name: sorted(kept)})
    removals = [{layer: list(kept) for layer, kept in removal.items()} for removal in removals]
    batches = [
        (torch.randn(size, 1, side, side, dtype=torch.float64), torch.randint(0, 5, (size,)))
        for size in data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    ]
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subsets, "_IMAGES", data.draw(st.sampled_from([1, 20, 512])))
        found = losses_after_removal(model, layers, removals, batches)
    expected = [loss_after(model, kept, batches, torch.zeros(1, 1, side, side).double()) for kept in removals]
    assert found == pytest.approx(expected, rel=1e-10)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_sets_of_one_layers_filters_share_what_comes_before():
    """Each image passes the first layer once; its readers see it once for a filter, later ones once for a set."""
    model = network("lenet5")
    (layer,) = prunable_layers(model, torch.zeros(1, 1, 32, 32), ("conv1",))
    sets = [{"conv1": list(kept)} for kept in itertools.combinations(range(6), 3)]
    images = torch.randn(4, 1, 32, 32, dtype=torch.float64)
    seen = dict.fromkeys(("conv1", "conv2", "conv3", "fc2"), 0)

    def count(name, _module, inputs):
        seen[name] += len(inputs[0])

    for name in seen:
        model.get_submodule(name).register_forward_pre_hook(functools.partial(count, name))
    losses_after_removal(model.eval(), [layer], sets, [(images, torch.zeros(4, dtype=torch.int64))])
    assert seen == {"conv1": 4, "conv2": 6 * 4, "conv3": 20 * 4, "fc2": 20 * 4}


def test_the_oracle_leaves_every_bit_as_it_was():
    for name in ("lenet5", "resnet20"):
        model = network(name)
        found = prune(method("oracle", limit=5, batches=1), name, model)
        assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in found.model.state_dict().items())


def test_where_there_are_many_the_oracle_is_the_best_of_a_sample():
    model = network("resnet20")
    found = prune(method("oracle", limit=12, batches=1), "resnet20", model)
    choices = list(module_of("oracle").candidates(found.task, 12))
    assert len(choices) == len({str(kept) for kept in choices}) == 12
    example = shapes.example(WORKLOADS["resnet20"]).double()
    losses = [loss_after(model, kept, list(found.task.batches(1)), example) for kept in choices]
    assert found.answer.kept == choices[losses.index(min(losses))]
    assert len(set(losses)) == 12
    other = prune(method("oracle", limit=12, batches=1), "resnet20", model, seed=1)
    assert list(module_of("oracle").candidates(other.task, 12)) != choices


def test_the_sample_is_uniform_and_has_no_duplicates():
    workload, layer, ratio, _ = tiny("lenet5")
    task = prune("random", "lenet5", ratio=ratio, workload=workload).task
    counts = dict.fromkeys(itertools.combinations(range(6), 3), 0)
    draws = 200
    for seed in range(draws):
        task._seed = seed
        choices = [tuple(kept[layer]) for kept in module_of("oracle").candidates(task, 10)]
        assert len(set(choices)) == 10
        for one in choices:
            counts[one] += 1
    # Five standard deviations of a binomial share of one half.
    assert all(abs(count - draws / 2) < 5 * math.sqrt(draws / 4) for count in counts.values())


@pytest.mark.parametrize("name", ["lenet5", "resnet20"])
def test_the_oracle_does_not_depend_on_the_order_of_filters(name):
    workload, _, ratio, count = tiny(name)
    assert_equivariant(method("oracle", limit=count, batches=1), name, ratio=ratio, workload=workload)
