"""Methods that remove single weights, lottery tickets and scratch arms, each against a plain computation."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from small import BATCH, CATALOG, WORKLOADS, assert_equivariant, few_digits, network, prune
from torch import nn
from trainers import Killed

from pruneaudit.method.conduct import Job, digest, observe
from pruneaudit.pruning import shapes
from pruneaudit.pruning.layers import PrunableLayer, weight_names
from pruneaudit.pruning.minibatch import input_activations, weight_gradients
from pruneaudit.pruning.ratios import removed_filters
from pruneaudit.training.checkpoint import Checkpoint
from pruneaudit.workloads.models.initialise import initialise

NAMES = ("resnet20", "lenet5")
LAYERWISE = ("magnitude-layer", "gradient-layer", "activation-layer", "random-weight")
SCORES = ("magnitude", "gradient", "activation")
TICKETS = ("lottery-ticket", "lottery-ticket-iterative", "lottery-ticket-rewind", "lottery-random-reinit")
ARMS = ("scratch", "scratch-e", "scratch-b", "scratch-b-capped")


def first_batch(method, name, seed=0):
    """The minibatch that a method scores with."""
    return next(iter(few_digits(name).batches(seed, f"scoring/{method}", 0, BATCH, torch.float64)))


def naive_gradients(model, images, labels):
    """|w · dL/dw| by backpropagation into a copy."""
    model = copy.deepcopy(model).eval()
    F.cross_entropy(model(images), labels).backward()
    return {layer: (weight * weight.grad).abs() for layer, weight in weights_of(model).items()}


def naive_activations(model, images):
    """|w| · mean |mean input|, of LeNet by hand and a loop over weights."""
    model = copy.deepcopy(model).eval()
    first = F.max_pool2d(F.relu(F.conv2d(images, model.conv1.weight, model.conv1.bias)), 2)
    second = F.max_pool2d(F.relu(F.conv2d(first, model.conv2.weight, model.conv2.bias)), 2)
    third = F.relu(F.conv2d(second, model.conv3.weight, model.conv3.bias)).flatten(1)
    inputs = {"conv1": images, "conv2": first, "conv3": second, "fc1": third}
    scores = {}
    for layer, weight in weights_of(model).items():
        scores[layer] = weight.detach().abs().clone()
        for channel in range(weight.shape[1]):
            one = inputs[layer][:, channel].detach().numpy()
            scores[layer][:, channel] *= abs(one.sum(axis=0) / len(one)).mean()
    return scores


def weights_of(model):
    return {name: model.get_submodule(name).weight for name in weight_names(model)}


def naive_scores(kind, model, method):
    images, labels = first_batch(method, "lenet5")
    if kind == "gradient":
        return naive_gradients(model, images, labels)
    if kind == "activation":
        return naive_activations(model, images)
    return {name: weight.detach().abs() for name, weight in weights_of(model).items()}


def ranked(scores):
    """(score, layer, index) of every weight, lowest first; ties by layer, then by index."""
    return sorted(
        (value, place, index)
        for place, score in enumerate(scores.values())
        for index, value in enumerate(score.flatten().tolist())
    )


def without(scores, removed):
    """Masks without some (layer's place, index)."""
    masks = {name: torch.ones(score.numel(), dtype=torch.bool) for name, score in scores.items()}
    names = list(masks)
    for place, index in removed:
        masks[names[place]][index] = False
    return {name: mask.view(scores[name].shape) for name, mask in masks.items()}


def naive_threshold(scores, name, ratio):
    """Masks of one threshold: remove weight by weight until as many are left as layerwise pruning leaves."""
    left = sum(max(score.numel() - math.ceil(round(ratio * score.numel(), 6)), 1) for score in scores.values())
    best = {(place, int(score.argmax())) for place, score in enumerate(scores.values())}
    order = [(place, index) for _, place, index in ranked(scores) if (place, index) not in best]
    return without(scores, order[: sum(score.numel() for score in scores.values()) - left])


def assert_same_masks(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, mask in ours.items():
        assert torch.equal(mask, theirs[name]), name


def assert_same_state(model, state):
    assert model.state_dict().keys() == state.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


# Scores of ShrinkBench


@pytest.mark.parametrize("ratio", [0.5, 0.9])
@pytest.mark.parametrize("kind", SCORES)
def test_every_layer_loses_its_lowest_scores(kind, ratio):
    model = network("lenet5")
    found = prune(f"{kind}-layer", "lenet5", model, ratio=ratio)
    expected = {}
    for name, score in naive_scores(kind, model, f"{kind}-layer").items():
        lowest = ranked({name: score})[: removed_filters(score.numel(), ratio)]
        expected |= without({name: score}, [(place, index) for _, place, index in lowest])
    assert_same_masks(found.answer.masks, expected)
    assert found.answer.stay == shapes.target(WORKLOADS["lenet5"], ratio, "weight").stay


@pytest.mark.parametrize("ratio", [0.5, 0.9])
@pytest.mark.parametrize("kind", SCORES)
def test_all_layers_lose_the_lowest_scores_of_all(kind, ratio):
    model = network("lenet5")
    found = prune(f"{kind}-global", "lenet5", model, ratio=ratio)
    expected = naive_threshold(naive_scores(kind, model, f"{kind}-global"), "lenet5", ratio)
    assert_same_masks(found.answer.masks, expected)
    reached = shapes.shape_of_weights(WORKLOADS["lenet5"], found.answer.stay)
    assert reached.macs == reached.recounted
    assert found.answer.stay.keys() == found.task.target.stay.keys()
    assert sum(found.answer.stay.values()) == sum(found.task.target.stay.values())


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", [f"{kind}-{scope}" for kind in SCORES for scope in ("layer", "global")])
def test_scores_do_not_depend_on_the_order_of_filters(method, name, seed):
    # With few images some units are dead: their gradients are all zero, and ties go by index.
    assert_equivariant(method, name, seed, batch=40)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["gradient-layer", "gradient-global"])
def test_gradients_are_declared_and_leave_nothing_behind(method, name):
    model = network(name)
    workload = WORKLOADS[name]
    workload = workload.model_copy(update={"prune": workload.prune.model_copy(update={"batch": BATCH})})
    found = prune(method, name, model, workload=workload)
    assert found.consumption.training_samples == CATALOG.method(method).create().budget(workload).samples == BATCH
    assert found.consumption.scoring_samples == found.consumption.optimiser_steps == 0
    assert all(parameter.grad is None for parameter in found.model.parameters())
    assert_same_state(found.model, model.state_dict())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["activation-layer", "activation-global"])
def test_activations_take_no_gradients_and_leave_nothing_behind(method, name):
    model = network(name)
    found = prune(method, name, model)
    assert (found.consumption.training_samples, found.consumption.scoring_samples) == (0, BATCH)
    assert CATALOG.method(method).create().budget(WORKLOADS[name]).samples == 0
    assert_same_state(found.model, model.state_dict())
    assert found.model.conv1._forward_pre_hooks.keys() == model.conv1._forward_pre_hooks.keys()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_differences_of_the_loss(name):
    model = network(name).eval()
    layers = [PrunableLayer(layer, model.get_submodule(layer), None) for layer in weight_names(model)]
    images, labels = first_batch("gradient-layer", name)
    gradients = weight_gradients(model, layers, images, labels)
    step = 1e-6
    for layer in layers[:: len(layers) // 3]:
        # The weight that matters most: the others may sit in front of a dead unit.
        index = int(gradients[layer.name].abs().argmax())
        losses = []
        with torch.no_grad():
            for sign in (1, -1):
                layer.weight.view(-1)[index] += sign * step
                losses.append(F.cross_entropy(model(images), labels))
                layer.weight.view(-1)[index] -= sign * step
        slope = (losses[0] - losses[1]) / (2 * step)
        torch.testing.assert_close(gradients[layer.name].flatten()[index], slope, rtol=1e-5, atol=1e-8)


def test_activations_of_groups_and_linear_layers():
    """Filters of a grouped convolution see their own group's channels; features behind a flattened map are inputs."""
    convolution, linear = nn.Conv2d(4, 6, 3, groups=2).double(), nn.Linear(6 * 2 * 2, 5).double()
    model = nn.Sequential(convolution, nn.Flatten(), linear)
    layers = [PrunableLayer("0", convolution, None), PrunableLayer("2", linear, None)]
    images = torch.randn(7, 4, 4, 4, dtype=torch.float64)
    found = input_activations(model, layers, images)
    arrives = images.mean(dim=0).abs().mean(dim=(1, 2))
    for filter_ in range(6):
        group = filter_ // 3
        expected = arrives[2 * group : 2 * group + 2]
        assert torch.allclose((found["0"] * torch.ones_like(convolution.weight))[filter_, :, 0, 0], expected)
    assert torch.allclose(found["2"], convolution(images).flatten(1).mean(dim=0).abs()[None].detach())
    assert not convolution._forward_pre_hooks and not linear._forward_pre_hooks


# Random controls


def test_random_weights_ignore_weights_and_follow_the_seed():
    one, same = (prune("random-weight", "lenet5", network("lenet5", seed)).answer for seed in (0, 1))
    other = prune("random-weight", "lenet5", seed=1).answer
    assert one == same and one.stay == other.stay
    assert all(not torch.equal(one.masks[name], other.masks[name]) for name in one.masks)
    assert one.stay == shapes.target(WORKLOADS["lenet5"], 0.5, "weight").stay


@pytest.mark.parametrize("method", ["random-weight", "matched-random-weight"])
def test_random_weights_are_kept_equally_often(method):
    seeds = 150
    model = network("lenet5")
    masks = [prune(method, "lenet5", model, ratio=0.9, seed=seed).answer.masks["conv1"] for seed in range(seeds)]
    (count,) = {int(mask.sum()) for mask in masks}
    share = count / masks[0].numel()
    times = torch.stack(masks).double().mean(dim=0)
    # Five standard deviations of a binomial share.
    assert bool(((times - share).abs() < 5 * math.sqrt(share * (1 - share) / seeds)).all())


@pytest.mark.parametrize("name", NAMES)
def test_matched_random_weights_keep_as_many_in_each_layer_as_magnitude(name):
    model = network(name)
    magnitude = prune("magnitude-global", name, model).answer
    ones, others = (prune("matched-random-weight", name, model, seed=seed).answer for seed in (0, 1))
    assert ones.stay == others.stay == magnitude.stay
    assert len({round(count / ones.masks[layer].numel(), 2) for layer, count in ones.stay.items()}) > 1
    for layer, mask in ones.masks.items():
        assert not torch.equal(mask, magnitude.masks[layer])
        assert not torch.equal(mask, others.masks[layer])


def test_matched_random_weights_shuffle_each_layer_on_its_own():
    model = network("resnet20")
    model.layer1[0].conv2.load_state_dict(model.layer1[0].conv1.state_dict())
    for method, same in (("magnitude-global", True), ("matched-random-weight", False)):
        masks = prune(method, "resnet20", model).answer.masks
        # The threshold may fall between two equal weights.
        assert (int((masks["layer1.0.conv1"] ^ masks["layer1.0.conv2"]).sum()) <= 1) == same


# Lottery tickets


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", [name for name in TICKETS if name != "lottery-ticket-iterative"])
def test_one_shot_tickets_have_the_masks_of_magnitude(method, name):
    model = network(name)
    assert prune(method, name, model).answer == prune("magnitude-global", name, model).answer
    assert CATALOG.method(method).cls.rewrites
    assert prune(method, name, model).consumption.training_samples == 0


@pytest.mark.parametrize("method", ["lottery-ticket-filter", "lottery-random-reinit-filter"])
def test_tickets_of_filters_have_the_filters_of_l1(method):
    model = network("resnet20")
    found = prune(method, "resnet20", model)
    assert found.answer.kept == prune("l1", "resnet20", model).answer.kept
    assert CATALOG.method(method).cls.rewrites and found.consumption.training_samples == 0


@pytest.mark.parametrize("method", ["lottery-ticket", "lottery-ticket-filter"])
@pytest.mark.parametrize("name", NAMES)
def test_a_ticket_goes_back_to_the_start(name, method):
    asked = []

    def initial(epoch):
        asked.append(epoch)
        return network(name, seed=7).state_dict()

    found = prune(method, name, initial=initial)
    # Statistics of normalisations, too.
    assert_same_state(found.model, network(name, seed=7).state_dict())
    assert asked == [0]


@pytest.mark.parametrize(("epoch", "epochs", "expected"), [(1, 10, 1), (3, 10, 3), (1, 2, 1), (1, 1, 0), (0, 10, 0)])
def test_late_rewinding_goes_back_to_an_epoch_that_the_base_model_has(epoch, epochs, expected):
    workload = WORKLOADS["resnet20"]
    workload = workload.model_copy(update={"pretrain": workload.pretrain.for_epochs(epochs)})
    method = CATALOG.method("lottery-ticket-rewind").cls(epoch)
    found = prune(method, "resnet20", workload=workload)
    assert_same_state(found.model, network("resnet20", seed=100 + expected).state_dict())
    assert method.parameters() == {"epoch": epoch}


@pytest.mark.parametrize("method", ["lottery-random-reinit", "lottery-random-reinit-filter"])
@pytest.mark.parametrize("name", NAMES)
def test_a_reinitialised_ticket_has_fresh_weights(name, method):
    models = [prune(method, name, seed=seed).model for seed in (0, 0, 1)]
    assert_same_state(models[1], models[0].state_dict())
    fresh = copy.deepcopy(models[0])
    initialise(fresh, prune(method, name).task.generator("reinit"))
    assert_same_state(models[0], fresh.state_dict())
    for layer in weight_names(models[0]):
        values = [model.get_submodule(layer).weight for model in (*models[1:], network(name))]
        assert not torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])
    for module in models[0].modules():
        if isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all()) and not module.running_mean.any()


def naive_ticket(model, start, steps, lr, momentum, weight_decay, ratio=0.5, share=0.2):
    """Iterative magnitude pruning of LeNet with plain loops: final masks, and those of every round."""
    dataset = few_digits("lenet5")
    per_epoch = math.ceil(len(dataset.train) / BATCH)
    model = copy.deepcopy(model)

    def scores():
        return {name: weight.detach().abs() for name, weight in weights_of(model).items()}

    def count(masks):
        return sum(int(mask.sum()) for mask in masks.values())

    one_shot = naive_threshold(scores(), "lenet5", ratio)
    total = sum(mask.numel() for mask in one_shot.values())
    rounds = 1
    while total * (1 - share) ** rounds > count(one_shot):
        rounds += 1
    rounds = max(2, rounds)
    remaining, done, history = total, 0, []
    for number in range(1, rounds):
        remaining -= int(share * remaining)
        lowest = ranked(scores())[: total - remaining]
        masks = without(scores(), [(place, index) for _, place, index in lowest])
        # Not beyond the operating point.
        point = naive_threshold(scores(), "lenet5", ratio)
        masks = {name: mask | point[name] for name, mask in masks.items()}
        remaining = count(masks)
        history.append(masks)
        model.load_state_dict(start)
        optimiser = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
        stream = f"prune/{done}" if done else "prune"
        mine = steps * number // (rounds - 1) - done
        model.train()
        for step in range(-1, mine):
            if step >= 0:
                batches = list(dataset.batches(0, stream, step // per_epoch, BATCH, torch.float64))
                images, labels = batches[step % per_epoch]
                optimiser.zero_grad()
                F.cross_entropy(model(images), labels).backward()
                optimiser.step()
            with torch.no_grad():
                for name, weight in weights_of(model).items():
                    weight *= masks[name]
        done += mine
    return naive_threshold(scores(), "lenet5", ratio), history


@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_an_iterative_ticket_equals_a_naive_loop(ratio):
    model, start = network("lenet5"), network("lenet5", seed=100).state_dict()
    options = {"steps": 11, "momentum": 0.9, "weight_decay": 5e-3}
    found = prune("lottery-ticket-iterative", "lenet5", model, ratio=ratio, lr="0:0.01", **options)
    masks, history = naive_ticket(model, start, lr=0.01, ratio=ratio, **options)
    assert_same_masks(found.answer.masks, masks)
    assert_same_state(found.model, start)
    assert found.consumption.optimiser_steps == 11 and found.consumption.rates == [[0.01, 11]]
    # Nothing that was removed comes back, and a round removes a fifth of what is left, but not beyond the last masks.
    left = [sum(mask.numel() for mask in masks.values())]
    for before, after in zip(history, [*history[1:], masks], strict=True):
        assert not any(bool((after[name] & ~before[name]).any()) for name in masks)
        left.append(sum(int(mask.sum()) for mask in before.values()))
    fifths = [before - int(0.2 * before) for before in left[:-1]]
    last = sum(map(int, found.answer.stay.values()))
    assert left[1:] == [max(count, last) for count in fifths] and left[1:-1] == fifths[:-1]
    assert prune("magnitude-global", "lenet5", model, ratio=ratio).answer != found.answer, "training matters"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("ratio", "steps"), [(0.1, 3), (0.9, 25), (0.95, 4)])
def test_an_iterative_ticket_meets_its_budget_and_operating_point(name, ratio, steps):
    """Two rounds at least, and fewer steps than rounds at worst."""
    found = prune("lottery-ticket-iterative", name, ratio=ratio, steps=steps)
    assert found.consumption.optimiser_steps == steps
    assert_same_state(found.model, network(name, seed=100).state_dict())
    assert sum(found.answer.stay.values()) == sum(found.task.target.stay.values())


def test_removed_weights_are_zero_while_an_iterative_ticket_trains():
    method = CATALOG.method("lottery-ticket-iterative").create()
    zeros = []

    def watch(optimiser, *_):
        zeros.append(sum(int((parameter == 0).sum()) for parameter in optimiser.param_groups[0]["params"]))

    from torch.optim.optimizer import register_optimizer_step_post_hook

    handle = register_optimizer_step_post_hook(watch)
    try:
        prune(method, "lenet5", steps=12, lr="0:0.05", weight_decay=5e-3)
    finally:
        handle.remove()
    total = sum(weight.numel() for weight in weights_of(network("lenet5")).values())
    assert zeros == sorted(zeros) and len(zeros) == 12
    assert zeros[0] == int(0.2 * total)
    assert zeros[-1] > 2 * zeros[0]


def test_the_budget_of_an_iterative_ticket_is_the_workloads():
    method = CATALOG.method("lottery-ticket-iterative").create()
    for name, workload in CATALOG.workloads.items():
        budget = method.budget(workload)
        assert (budget.steps, budget.samples) == (workload.prune.steps, 0), name
        assert float(budget.lr.removeprefix("0:")) == workload.pretrain.rate(0, 0), name


@pytest.mark.parametrize("epochs", [1, 3, 5])
def test_a_killed_iterative_ticket_ends_as_one_that_was_not(tmp_path, epochs):
    """In the first round it goes on from its checkpoint, in a later one the stage starts again."""
    source = CATALOG.method("lottery-ticket-iterative")
    workload = WORKLOADS["lenet5"]

    def job():
        return Job(
            inherit=lambda: network("lenet5"),
            workload=workload,
            dataset=few_digits("lenet5"),
            prunable=workload.prunable,
            skip=workload.skip,
            ratio=0.45,
            recipe=workload.prune.model_copy(update={"steps": 18, "lr": "0:0.01", "batch": BATCH}),
            seed=0,
            precision="fp64",
            initial=lambda epoch: network("lenet5", seed=100 + epoch).state_dict(),
        )

    finished = []

    def kill(done, total, accuracy):
        finished.append((done, total))
        if len(finished) == epochs:
            raise Killed

    checkpoint = Checkpoint(tmp_path / "state.safetensors", "cpu")
    whole = observe(source, job(), lambda: "digest")
    with pytest.raises(Killed):
        observe(source, job(), lambda: "digest", checkpoint=checkpoint, progress=kill)
    again = observe(source, job(), lambda: "digest", checkpoint=checkpoint)
    # Two trainings of three epochs each; what the last epoch of a training left is not kept.
    assert finished[0][1] == 3
    assert again.resumed == {1: 1, 3: 2, 5: 0}[epochs]
    assert again.answer == whole.answer and digest(again.model) == digest(whole.model)
    assert again.consumption == whole.consumption and again.conduct == whole.conduct
    assert whole.conduct.replay == "same" and whole.conduct.declares_rewriting


@pytest.mark.parametrize("method", TICKETS)
def test_tickets_state_the_recipe_of_liu_et_al(method):
    published = CATALOG.method(method).cls.published
    assert (published.epochs, published.lr, published.batch) == (160, "0:0.1,80:0.01,120:0.001", 64)
    assert published.workload == "resnet56-cifar10" and "nearest" in published.source


# Scratch arms


@pytest.mark.parametrize(
    ("speedup", "epochs"), [(1.0, 200), (1.1157, 223), (1.5190, 303), (1.999, 399), (2.0, 400), (3.479, 400)]
)
def test_capped_scratch_trains_at_most_twice_as_long(speedup, epochs):
    workload = CATALOG.workload("resnet56-cifar10")
    recipe = CATALOG.method("scratch-b-capped").create().recipe(workload, speedup)
    uncapped = CATALOG.method("scratch-b").create().recipe(workload, speedup)
    assert recipe.epochs == epochs
    assert recipe == uncapped if speedup <= 2 else recipe.epochs < uncapped.epochs
    assert recipe.rate(0, 0) == workload.scratch.rate(0, 0)


# Cards


@pytest.mark.parametrize(
    "method",
    [
        *(f"{kind}-{scope}" for kind in SCORES for scope in ("layer", "global")),
        *("random-weight", "matched-random-weight", "unpruned"),
        *TICKETS,
        *ARMS,
    ],
)
def test_every_method_says_where_it_stands(method):
    cls = CATALOG.method(method).cls
    assert "not specified" not in vars(cls.card).values()
    assert cls.granularity == ("filter" if method in (*ARMS, "unpruned") else "weight")
    layerwise = (*LAYERWISE, *ARMS, "unpruned")
    assert cls.scope == ("layerwise" if method in layerwise else "global")
