"""Methods that train in the pruning stage, each against a plain loop written from its paper."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_pruning
from small import BATCH, CATALOG, WORKLOADS, assert_equivariant, few_digits, network, prune
from torch import nn
from trainers import Killed

from pruneaudit.method import conduct
from pruneaudit.method.contract import Budget
from pruneaudit.method.task import PruningTask
from pruneaudit.pruning import shapes
from pruneaudit.pruning.layers import prunable_layers
from pruneaudit.pruning.ratios import removed_filters
from pruneaudit.training.checkpoint import Checkpoint
from pruneaudit.training.loop import Hooks
from pruneaudit.training.metering import Meter
from pruneaudit.workloads.recipes import Recipe

METHODS = ["greg-2", "groupnorm", "network-slimming", "sfp", "sss"]
CASES = [
    (method, name)
    for method in METHODS
    for name in ("resnet20", "lenet5")
    if not CATALOG.method(method).create().skip(WORKLOADS[name])
]
#: 40 images in batches of 16.
STEPS_PER_EPOCH = 3


def tuned(name, **parameters):
    """A method with other hyper-parameters than the defaults."""
    method = CATALOG.method(name).cls(**parameters)
    method.name = name
    return method


def naive(model, name, steps, gradients=None, after_step=None, lr=1e-3):
    """A pruning stage with torch's own SGD, one parameter after the other; callbacks see the number of the step."""
    recipe = WORKLOADS[name].prune
    optimiser = torch.optim.SGD(
        model.parameters(), lr=lr, momentum=0.9, weight_decay=recipe.weight_decay, foreach=False, fused=False
    )
    step = epoch = 0
    model.train()
    while step < steps:
        for images, labels in few_digits(name).batches(0, "prune", epoch, BATCH, torch.float64):
            if step == steps:
                break
            loss = F.cross_entropy(model(images), labels)
            optimiser.zero_grad()
            loss.backward()
            with torch.no_grad():
                if gradients is not None:
                    gradients(step)
                optimiser.step()
                if after_step is not None:
                    after_step(step)
            step += 1
        epoch += 1
    return model.eval()


def assert_close(model, expected, tolerance=1e-10):
    for (label, tensor), other in zip(model.state_dict().items(), expected.state_dict().values(), strict=True):
        assert float((tensor - other).abs().max()) <= tolerance, label


def layers_of(model, name, granularity="filter"):
    workload = WORKLOADS[name]
    return prunable_layers(model, shapes.example(workload), workload.prunable, workload.skip, granularity)


def lowest(scores, count):
    """The ``count`` lowest of some numbers, ties by index, by a sorted list."""
    return sorted(sorted(range(len(scores)), key=lambda index: (scores[index], index))[:count])


def rest(channels, gone):
    return [index for index in range(channels) if index not in gone]


class Recorder(PruningTask):
    """Calls the hook on gradients at some steps, on gradients that are zero, instead of training."""

    at = (0,)

    def train(self, steps=None, hooks=None):
        self.seen = {}
        for step in self.at:
            for parameter in self.model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            hooks.gradients(step)
            self.seen[step] = {label: tensor.grad.clone() for label, tensor in self.model.named_parameters()}


def recorder(model, layers, steps=12, workload=WORKLOADS["resnet20"], dataset=None, at=(0,), **options):
    recipe = Recipe(steps=steps, lr="0:1e-3", batch=BATCH)
    dataset = dataset or few_digits("resnet20")
    task = Recorder(model, layers, workload, 0.5, recipe, dataset, 0, Meter(model), "sample", "fp64", **options)
    task.at = at
    return task


# What all share


@pytest.mark.parametrize(("method", "name"), CASES)
def test_it_spends_what_it_declares(method, name):
    workload = WORKLOADS[name]
    assert CATALOG.method(method).create().budget(workload) == Budget(workload.prune.steps, workload.prune.lr)
    found = prune(method, name, steps=4)
    assert found.consumption.optimiser_steps == 4
    # Three batches of an epoch, the last one with 8 images, and one more.
    assert found.consumption.training_samples == 40 + 16
    assert found.consumption.scoring_samples == 0


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("method", "name"), [*CASES, ("greg-1", "lenet5"), ("tpp", "lenet5"), ("tpp", "resnet20")])
def test_what_stays_does_not_depend_on_the_order_of_filters(method, name, seed):
    assert_equivariant(method, name, seed, steps=5, lr="0:1e-2")


@pytest.mark.parametrize(("method", "steps"), [*((method, 10) for method in METHODS), ("greg-2", 36)])
def test_a_killed_stage_goes_on_exactly(tmp_path, method, steps):
    source, workload = CATALOG.method(method), WORKLOADS["resnet20"]
    checkpoint = Checkpoint(tmp_path / "state.safetensors", "cpu")
    job = conduct.Job(
        inherit=lambda: network("resnet20"),
        workload=workload,
        dataset=few_digits("resnet20"),
        prunable=workload.prunable,
        skip=workload.skip,
        ratio=0.5,
        recipe=workload.prune.model_copy(update={"steps": steps, "lr": "0:1e-2", "batch": BATCH}),
        seed=0,
        precision="fp64",
    )

    def kill(done, total, accuracy):
        # GReg-2 with 36 steps chooses in the second epoch, with 10 in the first.
        if done == (1 if steps == 36 else 2):
            raise Killed

    whole = conduct.observe(source, job, lambda: "digest")
    with pytest.raises(Killed):
        conduct.observe(source, job, lambda: "digest", checkpoint=checkpoint, progress=kill)
    again = conduct.observe(source, job, lambda: "digest", checkpoint=checkpoint)
    assert again.resumed == (1 if steps == 36 else 2)
    assert conduct.digest(again.model) == conduct.digest(whole.model) and again.answer == whole.answer
    assert again.conduct == whole.conduct and whole.conduct.replay == "same"
    assert whole.conduct.rewritten == whole.conduct.touched == ()
    assert whole.conduct.equivalence < 1e-9


@pytest.mark.parametrize("method", [*METHODS, "greg-1", "tpp"])
def test_its_card_is_complete(method):
    card = CATALOG.method(method).cls.card
    assert "not specified" not in vars(card).values()


def test_where_it_does_not_apply():
    lenet, vgg = WORKLOADS["lenet5"], CATALOG.workload("vgg19-cifar100")
    slimming, selection = CATALOG.method("network-slimming").create(), CATALOG.method("sss").create()
    assert slimming.skip(lenet) == "no batch normalisation behind conv1"
    assert slimming.skip(vgg) is None and slimming.skip(WORKLOADS["resnet20"]) is None
    assert selection.skip(lenet) == "lenet5 has no residual blocks"
    assert selection.skip(vgg) == "vgg19 has no residual blocks"
    assert selection.skip(WORKLOADS["resnet20"]) is None


# GReg-2


def means(weight):
    return [float(np.mean(np.abs(filter_))) for filter_ in weight.detach().numpy()]


@pytest.mark.parametrize("name", ["resnet20", "lenet5"])
def test_greg_2_equals_a_naive_loop(name):
    model = network(name)
    plain = copy.deepcopy(model)
    layers = layers_of(plain, name)
    first = {layer.name: lowest(means(layer.weight), layer.channels // 2) for layer in layers}
    gone = {}

    def gradients(step):
        # 8 steps of picking, 12 of growing, 4 of holding: fewer than the paper's increments, so refreshed every step.
        if step == 8:
            gone.update({layer.name: lowest(means(layer.weight), layer.channels // 2) for layer in layers})
        for layer in layers:
            for index in range(layer.channels):
                if step < 8:
                    strength = 0.5 * step / 8
                elif index not in gone[layer.name]:
                    strength = -0.02
                else:
                    strength = 0.5 + 0.5 * (step - 8) / 12 if step < 20 else 1.0
                layer.weight.grad[index] += strength * layer.weight[index]

    naive(plain, name, 24, gradients, lr=6e-2)
    method = tuned("greg-2", picking=1 / 3, hold=1 / 6, picking_ceiling=0.5, recover=-0.02)
    found = prune(method, name, model, steps=24, lr="0:6e-2")
    assert found.answer.kept == {layer.name: rest(layer.channels, gone[layer.name]) for layer in layers}
    assert gone != first, "chosen in the middle of the training, not before it"
    assert_close(found.model, plain, 1e-9)


def test_greg_2_has_the_schedule_of_the_paper():
    """The paper's lengths, K_u = 10: read from gradients as coefficients of the weights."""
    model = network("resnet20")
    layers = layers_of(model, "resnet20")
    expected = {
        # Filters that stay, filters that go.
        0: (0, 0),
        9: (0, 0),
        10: (1e-5, 1e-5),
        9_990: (9.99e-3, 9.99e-3),
        10_000: (-1e-4, 0.01),
        10_009: (-1e-4, 0.01),
        10_010: (-1e-4, 0.0101),
        108_999: (-1e-4, 0.9999),
        109_000: (-1e-4, 1.0),
        118_999: (-1e-4, 1.0),
    }
    task = recorder(model, layers, steps=119_000, at=tuple(expected))
    kept = CATALOG.method("greg-2").create().prune(task)
    for step, (stays, goes) in expected.items():
        for layer in layers:
            factors = torch.full((layer.channels, 1, 1, 1), goes, dtype=torch.float64)
            factors[kept[layer.name]] = stays
            found = task.seen[step][f"{layer.name}.weight"]
            torch.testing.assert_close(found, factors * layer.weight.detach(), rtol=1e-9, atol=1e-15)
    touched = {label for label, grad in task.seen[118_999].items() if grad.any()}
    assert touched == {f"{layer.name}.weight" for layer in layers}, "normalisations are not regularised"


@pytest.mark.parametrize("steps", [1, 2, 3, 11])
def test_greg_2_chooses_however_short_the_stage(steps):
    kept = prune("greg-2", "lenet5", steps=steps).answer.kept
    assert {layer: len(stays) for layer, stays in kept.items()} == {"conv1": 3, "conv2": 8, "conv3": 60}


# Network slimming


def test_network_slimming_equals_a_naive_loop():
    model = network("resnet20")
    plain = copy.deepcopy(model)
    norms = [module for module in plain.modules() if isinstance(module, nn.BatchNorm2d)]

    def gradients(step):
        for norm in norms:
            for channel, scale in enumerate(norm.weight.tolist()):
                norm.weight.grad[channel] += 0.1 * ((scale > 0) - (scale < 0))

    with torch.no_grad():
        for net in (model, plain):
            net.layer1[0].bn1.weight[::2] *= -1
    naive(plain, "resnet20", 7, gradients)
    found = prune(tuned("network-slimming", strength=0.1), "resnet20", model, steps=7)
    assert_close(found.model, plain)
    assert CATALOG.method("network-slimming").create().parameters() == {"strength": 1e-4}


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.9])
def test_network_slimming_removes_the_share_of_all_filters_that_a_paper_states(ratio):
    workload = WORKLOADS["resnet20"].model_copy(update={"operating_point": "share", "ratios": (ratio,)})
    model = network("resnet20")
    # One layer would lose everything.
    with torch.no_grad():
        model.layer2[1].bn1.weight.mul_(1e-3)
        # What counts is how far a scale is from zero.
        model.layer3[0].bn1.weight.neg_()
    found = prune("network-slimming", "resnet20", model, ratio=ratio, steps=1, lr="0:1e-9", workload=workload)
    scales = sorted(
        (abs(float(scale)), layer.name, index)
        for layer in layers_of(found.model, "resnet20")
        for index, scale in enumerate(layer.norm.weight.tolist())
    )
    best = max(entry for entry in scales if entry[1] == "layer2.1.conv1")
    scales.remove(best)
    count = removed_filters(len(scales) + 1, ratio)
    expected = {}
    for _, layer, index in [*scales[count:], best]:
        expected.setdefault(layer, []).append(index)
    assert found.answer.kept == {layer: sorted(stays) for layer, stays in expected.items()}
    assert found.answer.kept["layer2.1.conv1"] == [best[2]]


# Sparse structure selection


def scaled_by(factor):
    return lambda module, inputs, output: output * factor


@pytest.mark.parametrize("strength", [0.01, 2.0])
def test_sss_equals_factors_that_autograd_sees(strength):
    """The factors as the paper has them: multiplied to the output of the branch, trained by (10) to (12)."""
    model = network("resnet20")
    plain = copy.deepcopy(model)
    blocks = [block for stage in (plain.layer1, plain.layer2, plain.layer3) for block in stage]
    factors = [torch.ones((), dtype=torch.float64, requires_grad=True) for _ in blocks]
    velocities = [0.0 for _ in blocks]
    hooks = [block.bn2.register_forward_hook(scaled_by(factor)) for block, factor in zip(blocks, factors, strict=True)]

    def gradients(step):
        for number, factor in enumerate(factors):
            moved = float(factor) - 0.02 * float(factor.grad)
            shrunk = np.sign(moved) * max(0.0, abs(moved) - 0.02 * strength)
            velocities[number] = shrunk - float(factor) + 0.9 * velocities[number]
            factor.fill_(max(0.0, shrunk + 0.9 * velocities[number]))
            factor.grad = None

    naive(plain, "resnet20", 9, gradients, lr=0.02)
    found = prune(tuned("sss", strength=strength), "resnet20", model, steps=9, lr="0:0.02")
    expected = [factor.item() for factor in factors]
    np.testing.assert_allclose(found.task.state["factors"].numpy(), expected, rtol=0, atol=1e-10)
    assert min(expected) < 0.99 and (0.0 in expected) == (strength == 2.0)
    images = few_digits("resnet20").normalise(few_digits("resnet20").test.images, torch.float64)
    torch.testing.assert_close(found.model(images), plain(images), rtol=1e-9, atol=1e-9)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        for block, factor in zip(blocks, expected, strict=True):
            block.bn2.weight *= factor
            block.bn2.bias *= factor
    assert_close(found.model, plain)
    # Nothing is left on the network: not even hooks of the meter.
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in found.model.modules())


@pytest.mark.parametrize("ratio", [0.5, 0.9])
def test_sss_removes_the_blocks_with_the_smallest_factors(ratio):
    found = prune("sss", "resnet20", ratio=ratio, steps=9, lr="0:0.02")
    factors = found.task.state["factors"].tolist()
    names = [layer.name for layer in found.task.layers]
    kept = found.answer.kept
    assert all(stays in ([], list(range(16 * 2 ** (number // 3)))) for number, stays in enumerate(kept.values()))
    gone = [number for number, name in enumerate(names) if not kept[name]]
    assert sorted(gone) == lowest(factors, len(gone)) and 0 < len(gone) < 9
    assert names == [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)]


# Soft filter pruning


@pytest.mark.parametrize(("name", "steps"), [("resnet20", 3), ("resnet20", 8), ("lenet5", 7), ("lenet5", 2)])
def test_sfp_equals_a_naive_loop(name, steps):
    model = network(name)
    plain = copy.deepcopy(model)
    layers = layers_of(plain, name)
    gone = {}
    revived = []

    def after_step(step):
        for layer in layers:
            norms = [float(np.sqrt(np.sum(filter_**2))) for filter_ in layer.weight.numpy()]
            revived.append(any(norms[index] > 0 for index in gone.get(layer.name, ())))
            if (step + 1) % STEPS_PER_EPOCH == 0 or step == steps - 1:
                gone[layer.name] = lowest(norms, layer.channels // 2)
                for index in gone[layer.name]:
                    layer.weight[index] = 0

    naive(plain, name, steps, after_step=after_step, lr=0.05)
    found = prune("sfp", name, model, steps=steps, lr="0:0.05")
    assert found.answer.kept == {layer.name: rest(layer.channels, gone[layer.name]) for layer in layers}
    assert_close(found.model, plain)
    assert any(revived) == (steps > STEPS_PER_EPOCH), "zeroed filters train on"
    for layer in layers_of(found.model, name):
        assert not layer.weight[gone[layer.name]].any(), layer.name
        assert layer.bias is None or layer.bias.all(), "biases stay"


def test_sfp_goes_by_l2_norm():
    """One large weight against many small ones."""
    model = network("lenet5")
    with torch.no_grad():
        model.conv1.weight[:] = 0.2
        # L1: 5 against 1 and 2.
        model.conv1.weight[:3] = 0
        model.conv1.weight[:3, 0, 0, 0] = 2
    assert prune("sfp", "lenet5", model, steps=1, lr="0:1e-6").answer.kept["conv1"] == [0, 1, 2]


# GroupNorm


class Flattened(nn.Module):
    """A map of 3×3 pixels that is flattened: each filter has nine inputs of the linear layer."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, stride=2)
        self.norm1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.linear = nn.Linear(54, 10)

    def forward(self, images):
        maps = self.conv2(F.relu(self.norm1(self.conv1(images))))
        return self.linear(F.relu(maps).flatten(1))


def flattened():
    torch.manual_seed(0)
    model = Flattened().double()
    nn.init.uniform_(model.norm1.weight)
    return model, prunable_layers(model, torch.zeros(1, 1, 8, 8), ("conv*",))


def groupnorm_case(name):
    if name == "flattened":
        return (*flattened(), few_digits("resnet20"))
    model = network(name)
    return model, layers_of(model, name), few_digits(name)


def regularise(task):
    """Only the gradients: a threshold for all layers would ask for the MACs of a workload's network."""
    task.keep = lambda scores, scope: None
    CATALOG.method("groupnorm").create().prune(task)


@pytest.mark.parametrize("name", ["flattened", "resnet20", "lenet5"])
def test_groupnorm_has_the_gradients_of_torch_pruning(name):
    model, layers, dataset = groupnorm_case(name)
    task = recorder(model, layers, dataset=dataset)
    pruner = task.torch_pruner(
        torch_pruning.pruner.GroupNormPruner,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        reg=5e-4,
    )
    task.train(hooks=Hooks(gradients=lambda step: pruner.regularize(model, alpha=2**4)))
    theirs = task.seen[0]
    regularise(task)
    assert {label for label, grad in theirs.items() if grad.any()}
    for label, grad in theirs.items():
        # Its importance is float32 whatever the weights are.
        torch.testing.assert_close(task.seen[0][label], grad, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["resnet20", "lenet5"])
def test_groupnorm_equals_a_naive_loop(name):
    model = network(name)
    plain = copy.deepcopy(model)
    modules = dict(plain.named_modules())
    pairs = {
        "resnet20": [
            (f"layer{stage}.{block}.conv1", f"layer{stage}.{block}.bn1", f"layer{stage}.{block}.conv2")
            for stage in (1, 2, 3)
            for block in range(3)
        ],
        "lenet5": [("conv1", None, "conv2"), ("conv2", None, "conv3"), ("conv3", None, "fc1")],
    }[name]

    def squares(layer, norm, reader):
        """Sum of squares of each group."""
        out, read = modules[layer].weight.detach().numpy(), modules[reader].weight.detach().numpy()
        scales = np.zeros(len(out)) if norm is None else modules[norm].weight.detach().numpy()
        return [
            float(np.sum(out[filter_] ** 2) + scales[filter_] ** 2 + np.sum(read[:, filter_] ** 2))
            for filter_ in range(len(out))
        ]

    def gradients(step):
        # All strengths before any gradient changes: a weight of LeNet is in two groups.
        for layer, norm, reader in pairs:
            norms = np.sqrt(squares(layer, norm, reader))
            for filter_, found in enumerate(norms):
                strength = 0.05 * 2.0 ** (4 * (norms.max() - found) / (norms.max() - norms.min()))
                modules[layer].weight.grad[filter_] += strength * modules[layer].weight[filter_]
                modules[reader].weight.grad[:, filter_] += strength * modules[reader].weight[:, filter_]
                if norm is not None:
                    modules[norm].weight.grad[filter_] += strength * modules[norm].weight[filter_]

    naive(plain, name, 7, gradients, lr=5e-3)
    found = prune(tuned("groupnorm", strength=0.05), name, model, steps=7, lr="0:5e-3")
    assert_close(found.model, plain)
    scores = {pair[0]: torch.tensor(squares(*pair)) for pair in pairs}
    scores = {layer: values / values.max() for layer, values in scores.items()}
    assert found.answer.kept == found.task.keep(scores, "global")


def test_groupnorm_of_equal_groups():
    """No group is weaker than another: all have γ = 1."""
    model = network("lenet5")
    with torch.no_grad():
        for layer in (model.conv1, model.conv2, model.conv3, model.fc1):
            layer.weight.fill_(0.5)
    task = recorder(model, layers_of(model, "lenet5"), workload=WORKLOADS["lenet5"], dataset=few_digits("lenet5"))
    regularise(task)
    torch.testing.assert_close(task.seen[0]["conv1.weight"], 5e-4 * model.conv1.weight.detach())
    # As a filter of its own, and as input of another.
    torch.testing.assert_close(task.seen[0]["conv2.weight"], 2 * 5e-4 * model.conv2.weight.detach())


@pytest.mark.parametrize(
    ("method", "epochs", "lr", "batch"),
    [
        ("greg-2", 120, "0:1e-2,60:1e-3,90:1e-4", None),
        ("network-slimming", 40, "0:1e-3", 64),
        ("groupnorm", 100, "0:1e-2,60:1e-3,80:1e-4", 128),
    ],
)
def test_published_recipes(method, epochs, lr, batch):
    recipe = CATALOG.method(method).cls.published
    assert (recipe.epochs, recipe.lr, recipe.batch) == (epochs, lr, batch) and recipe.source
    CATALOG.workload(recipe.workload)
    assert CATALOG.method("sfp").cls.published is CATALOG.method("sss").cls.published is None
