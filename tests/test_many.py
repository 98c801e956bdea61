"""Many trainings as one program give what each gives alone."""

import contextlib
import dataclasses
import functools
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pruneaudit.measure.trainability import singular_values
from pruneaudit.pruning.removal import shrink, thinned
from pruneaudit.streams import generator
from pruneaudit.training import fused, many, stacked
from pruneaudit.training.checkpoint import Checkpoint
from pruneaudit.training.feed import Feed, Stream
from pruneaudit.training.grouped import CannotStackError, signature, singular_values_of, stack, unstack
from pruneaudit.training.loop import DivergedError, Hooks
from pruneaudit.training.many import footprint, train_many
from pruneaudit.training.runs import Run, Trained, Training
from pruneaudit.training.stacked import Program, Stack
from pruneaudit.workloads.data import Part, load
from pruneaudit.workloads.models import build, imagenet, vgg
from pruneaudit.workloads.models.initialise import initialise
from pruneaudit.workloads.models.resnet import CifarResNet
from pruneaudit.workloads.recipes import Recipe
from pruneaudit.workloads.schema import DataConfig

torch.set_num_threads(1)

CLOSE = 1e-10
# In batches of 16: four steps in an epoch, the last one with 6 images.
IMAGES, BATCH, PER_EPOCH = 54, 16, 4
RECIPE = Recipe(epochs=5, lr="0:0.02,3:0.005", batch=BATCH, momentum=0.9, weight_decay=5e-4)


def digits(side, pad=1, flip=True):
    full = load(DataConfig(name="digits", size=side, mean=(0.3054,), std=(0.3763,), pad=pad, flip=flip))

    def first(part, count):
        return Part(part.images[:count], part.labels[:count])

    return dataclasses.replace(
        full, train=first(full.train, IMAGES), validation=first(full.validation, 30), test=first(full.test, 30)
    )


SMALL, MIDDLE, LARGE = digits(8), digits(16), digits(32)


def tiny():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 10)
    )


def resnet():
    """Other widths in every stage, and one branch that is gone; the last stage has but its first block."""
    model = CifarResNet(14, channels=1)
    del model.layer3[1]
    kept = {name: range(place + 2) for place, name in enumerate(("layer1.0", "layer1.1", "layer2.0", "layer3.0"))}
    kept = {f"{name}.conv1": stays for name, stays in kept.items()}
    return shrink(model, {**kept, "layer2.1.conv1": ()}, SMALL.example())


def vgg_with_hidden_layer():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vgg._LAYOUT, 2, (6, "M", 8))
        return vgg.CifarVGG(2, channels=1, classes=10, hidden=7)


def resnet18():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(imagenet._LAYOUT, 18, ("BasicBlock", (2, 2, 2, 2)))
        model = imagenet.imagenet_resnet(18, channels=1, classes=10)
    opening = [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3, 4) for block in (0, 1)]
    return shrink(model, {**dict.fromkeys(opening, range(8)), "layer3.1.conv1": ()}, MIDDLE.example())


#: What builds a network, its data, and a learning rate at which rounding does not grow beyond what is compared.
NETWORKS = {
    "tiny": (tiny, SMALL, 0.02),
    "lenet5": (lambda: build("lenet5", 1, 10), LARGE, 0.02),
    "resnet": (resnet, SMALL, 0.02),
    "vgg": (vgg_with_hidden_layer, SMALL, 0.02),
    "resnet18": (resnet18, MIDDLE, 0.001),
}


def network(name="tiny", seed=0):
    model = NETWORKS[name][0]().double()
    initialise(model, generator(seed, "test"))
    return model.to(memory_format=torch.channels_last)


def training(name="tiny", number=0, stream="retrain", **options):
    """The training of a number: its weights, seed, learning rate, weight decay and momentum are its own."""
    model = options.pop("model", None) or network(name, number)
    recipe = options.pop("recipe", RECIPE)
    data, rate = NETWORKS[name][1:]
    changes = {
        "lr": f"0:{rate / (number + 1)},3:{rate / 20}",
        "weight_decay": 5e-4 * number,
        "momentum": 0.9 - number / 10,
        "label_smoothing": 0.1 * (number % 2),
        **options.pop("changes", {}),
    }
    recipe = recipe.model_copy(update=changes)
    return Training(model, data, recipe, seed=number % 2, stream=stream, precision="fp64", **options)


def assert_same_run(one, left, other, right, close=CLOSE):
    """The same weights, curves and consumption."""
    assert type(left.error) is type(right.error)
    assert str(left.error) == str(right.error)
    first, second = one.model.state_dict(), other.model.state_dict()
    assert list(first) == list(second)
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=close, equal_nan=True, msg=name)
    for curve, values in vars(left.history).items():
        assert getattr(right.history, curve) == pytest.approx(values, rel=0, abs=close, nan_ok=True), curve
    assert right.consumption == left.consumption


def assert_same_as_alone(make, backend="grouped", **options):
    """Train what `make` makes alone and together; return what came of it together."""
    alone, together = make(), make()
    expected, found = train_many(alone), train_many(together, backend, **options)
    for one, left, other, right in zip(alone, expected, together, found, strict=True):
        assert (left.backend, right.backend) == ("torch", backend)
        assert not right.reason
        assert_same_run(one, left, other, right)
        assert one.model.training == other.model.training
    return found


# Together as alone


@pytest.mark.parametrize("name", NETWORKS)
def test_grouped_runs_end_as_each_does_alone(name):
    count = 2 if name == "resnet18" else 3
    found = assert_same_as_alone(lambda: [training(name, number) for number in range(count)])
    assert [len(result.history.test_loss) for result in found] == [5] * count
    assert found[0].consumption.optimiser_steps == 5 * PER_EPOCH
    # The runs are not one and the same.
    assert len({result.history.train_loss[-1] for result in found}) == count


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_memory_layout_changes_nothing(channels_last):
    assert_same_as_alone(lambda: [training("resnet", number) for number in range(2)], channels_last=channels_last)


def test_runs_that_see_the_same_batches_share_them():
    assert_same_as_alone(lambda: [training(number=number) for number in (0, 2, 4)])


@pytest.mark.no_cover
def test_graphed_runs_end_as_each_does_alone_whatever_their_shapes():
    def make():
        return [training("tiny", 0), training("lenet5", 1), training("tiny", 2, recipe=long), training("vgg", 3)]

    long = RECIPE.model_copy(update={"epochs": 7})
    for width in (1, 3):
        assert_same_as_alone(make, "graphed", width=width)


def test_runs_of_many_shapes_and_batch_sizes_keep_their_order():
    def make():
        kinds = [("tiny", 16), ("vgg", 16), ("tiny", 16), ("vgg", 20), ("tiny", 20)]
        return [training(name, number, changes={"batch": batch}) for number, (name, batch) in enumerate(kinds)]

    assert_same_as_alone(make)


def test_nesterov_and_no_momentum():
    for changes in ({"nesterov": True}, {"momentum": 0.0}):
        assert_same_as_alone(lambda changes=changes: [training(number=k, changes=changes) for k in range(3)])


def test_a_rate_for_every_step():
    recipe = Recipe(steps=10, lr="cosine:0.05:0.001", start=3, span=20, batch=BATCH)
    assert_same_as_alone(
        lambda: [training(number=k, recipe=recipe, changes={"lr": f"cosine:0.0{k + 1}:0"}) for k in range(3)]
    )


@pytest.mark.no_cover
def test_who_is_at_the_end_leaves_and_the_others_go_on():
    def make():
        lengths = [{"epochs": 2}, {"epochs": 5}, {"steps": 6}, {"steps": 0}, {"steps": 7}, {"epochs": 1}, {"steps": 8}]
        recipes = [Recipe(lr="0:0.01", batch=BATCH, **length) for length in lengths]
        return [
            training(number=number, recipe=recipe, changes={"lr": "0:0.01,1:0.003"})
            for number, recipe in enumerate(recipes)
        ]

    for width in (1, 2, 3, 7):
        found = assert_same_as_alone(make, width=width)
        assert [len(result.history.test_accuracy) for result in found] == [2, 5, 2, 0, 2, 1, 2]


@functools.cache
def alone():
    runs = [training(number=number, changes={"epochs": 1 + number % 3}) for number in range(5)]
    return runs, train_many(runs)


@given(
    order=st.permutations(range(5)),
    chosen=st.integers(1, 5),
    width=st.integers(1, 5),
    backend=st.sampled_from(["grouped", "graphed"]),
)
@settings(max_examples=15, deadline=None)
def test_neither_order_nor_company_changes_a_run(order, chosen, width, backend):
    numbers = order[:chosen]
    together = [training(number=number, changes={"epochs": 1 + number % 3}) for number in numbers]
    for number, other, right in zip(numbers, together, train_many(together, backend, width=width), strict=True):
        assert_same_run(alone()[0][number], alone()[1][number], other, right)


def test_a_run_that_diverges_leaves_alone():
    def make():
        return [
            training("lenet5", number, changes={"lr": f"0:{rate}"}) for number, rate in enumerate((0.01, 1e30, 0.02))
        ]

    found = assert_same_as_alone(make)
    assert [type(result.error) for result in found] == [type(None), DivergedError, type(None)]
    assert found[1].history.test_loss == []


def test_masked_weights_stay_zero():
    def make():
        runs = []
        for number in range(3):
            model = network(seed=number)
            # Weights that may move and begin at zero.
            model[5].weight.data[0] = 0
            draw = generator(number, "mask")
            names = [["0", "5"], [], ["5"]][number]
            masks = {
                name: torch.rand(model.get_parameter(f"{name}.weight").shape, generator=draw) < 0.5 for name in names
            }
            runs.append(training(number=number, model=thinned(model, masks), masks=masks))
        return runs

    found = assert_same_as_alone(make)
    assert len(found[0].history.nonzero) == 5
    assert found[1].history.nonzero == []
    assert found[0].history.nonzero[0] > found[2].history.nonzero[0]


@pytest.mark.parametrize("backend", ["grouped", "fused"])
def test_bf16_is_the_same_arithmetic(compiler, backend):
    def make():
        runs = [training("resnet", number, changes={"epochs": 1}) for number in range(2)]
        return [dataclasses.replace(run, model=run.model.float(), precision="bf16") for run in runs]

    alone, together = train_many(make()), train_many(make(), backend)
    for one, other in zip(alone, together, strict=True):
        assert (other.backend, other.reason) == (backend, "")
        assert other.history.train_loss == pytest.approx(one.history.train_loss, rel=0.02)
        assert other.history.train_loss != one.history.train_loss


# Compiled


@pytest.fixture
def compiler(monkeypatch):
    """Chooses what torch compiles with: aot_eager takes a program apart as Inductor does, but compiles nothing."""

    def choose(name):
        monkeypatch.setattr(fused, "COMPILER", name)
        fused.obstacle.cache_clear()

    choose("aot_eager")
    yield choose
    fused.obstacle.cache_clear()


@pytest.mark.parametrize(
    ("name", "channels_last"),
    [("tiny", True), ("resnet", True), ("resnet", False), ("vgg", True), ("resnet18", True)],
)
def test_fused_runs_end_as_each_does_alone(name, channels_last, compiler):
    assert_same_as_alone(lambda: [training(name, number) for number in range(3)], "fused", channels_last=channels_last)


@pytest.mark.no_cover
def test_compiled_kernels_compute_what_others_do(compiler):
    compiler("inductor")
    if obstacle := fused.obstacle(torch.device("cpu")):
        pytest.skip(obstacle)

    def make():
        # Each shape is a kernel, and each takes a second: one normalisation in front of a block, and two in it.
        models = [CifarResNet(8, channels=1) for _ in range(2)]
        for number, model in enumerate(models):
            model.layer2, model.layer3, model.linear = nn.Identity(), nn.Identity(), nn.Linear(16, 10)
            initialise(model.double().to(memory_format=torch.channels_last), generator(number, "test"))
        return [training("resnet", number, model=model) for number, model in enumerate(models)]

    assert_same_as_alone(make, "fused")


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("tiny", 1),
        ("lenet5", 0),
        ("resnet", 1 + 2 * (5 - 1)),
        ("vgg", 2 + 1),
        ("resnet18", 1 + 2 * (8 - 1)),
    ],
)
def test_every_normalisation_that_relu_follows_is_fused(name, count):
    """Once in front, twice in each residual block but the one whose branch is gone; shortcuts' own are not."""
    assert stack([network(name)]).fused == 0
    assert stack([network(name)], fused=True).fused == count


def test_what_others_read_is_not_fused():
    class Both(nn.Module):
        def __init__(self, before_the_sum):
            super().__init__()
            self.norm, self.before_the_sum = nn.BatchNorm2d(1), before_the_sum

        def forward(self, images):
            normal = self.norm(images)
            total = normal + images
            return torch.relu(total) + (normal if self.before_the_sum else total)

    assert [stack([Both(before)], fused=True).fused for before in (True, False)] == [0, 0]


def test_runs_are_grouped_where_torch_cannot_compile(compiler):
    def broken(program, example):
        raise RuntimeError("no compiler here\nand nowhere")

    compiler(broken)
    found = train_many([training(number=number) for number in range(2)], "fused")
    assert {(one.backend, one.reason, one.error) for one in found} == {("grouped", found[0].reason, None)}
    assert found[0].reason.startswith("not fused: torch cannot compile here, ")
    assert "no compiler here" in found[0].reason and "\n" not in found[0].reason


def test_runs_are_grouped_where_there_is_nothing_to_fuse(compiler):
    (found,) = train_many([training("lenet5", changes={"epochs": 1})], "fused")
    assert (found.backend, found.reason) == ("grouped", "not fused: no ReLU follows a normalisation")


# Alone, with a reason


def test_what_a_method_adds_is_trained_alone():
    seen = []
    hooked = training(hooks=Hooks(after_step=seen.append))
    plain, alone = train_many([training(number=1), hooked], "grouped")
    assert (plain.backend, plain.reason) == ("grouped", "")
    assert (alone.backend, alone.reason) == ("torch", "not grouped: its method acts in training")
    assert len(seen) == 5 * PER_EPOCH


def test_what_cannot_be_compiled_is_trained_step_by_step():
    (result,) = train_many([training(hooks=Hooks(after_step=lambda step: None))], "tiled")
    assert result.backend == "torch"
    assert result.reason.startswith("not tiled: ")
    assert len(result.history.test_loss) == 5


class Twisted(nn.Module):
    """Mixes channels in a way that nobody knows how to keep apart."""

    def __init__(self, twist):
        super().__init__()
        self.conv, self.twist = nn.Conv2d(1, 4, 8), twist

    def forward(self, images):
        return self.twist(self, self.conv(images)).flatten(1)


def shared():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    model[2].weight = model[1].weight
    return model


def frozen():
    model = tiny()
    model[0].weight.requires_grad_(False)
    return model


def hooked():
    model = tiny()
    model[0].register_forward_hook(lambda *_: None)
    return model


REFUSED = {
    "dropout": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout()), "layer '1', Dropout"),
    "no statistics": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, momentum=None)), "BatchNorm2d"),
    "circular": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular")), "Conv2d"),
    "softmax": (lambda: Twisted(lambda model, maps: maps.softmax(1)), "softmax"),
    "mean of channels": (lambda: Twisted(lambda model, maps: maps.mean(1)), "mean"),
    "mean from behind": (lambda: Twisted(lambda model, maps: maps.mean(-1)), "mean"),
    "pixels in a row": (lambda: Twisted(lambda model, maps: maps.permute(0, 2, 3, 1)), "permute"),
    "another order": (lambda: Twisted(lambda model, maps: maps.permute(0, 3, 1, 2).mean((1, 2))), "permute"),
    "mean of moved channels": (lambda: Twisted(lambda model, maps: maps.permute(0, 2, 3, 1).mean((2, 3))), "mean"),
    "mean of moved rows": (lambda: Twisted(lambda model, maps: maps.permute(0, 2, 3, 1).mean(1)), "mean"),
    "mean that keeps places": (
        lambda: Twisted(lambda model, maps: maps.permute(0, 2, 3, 1).mean((1, 2), keepdim=True)),
        "mean",
    ),
    "some channels": (lambda: Twisted(lambda model, maps: maps[:, :2, :]), "getitem"),
    "images in a row": (lambda: Twisted(lambda model, maps: maps.flatten(0, 1)), "flatten"),
    "parameter": (lambda: Twisted(lambda model, maps: maps * model.conv.weight[:, 0, 0, 0]), "conv.weight|conv_weight"),
    "values": (lambda: Twisted(lambda model, maps: maps if maps.sum() > 0 else -maps), "cannot be traced"),
    "modes": (lambda: Twisted(lambda model, maps: maps.relu() if model.training else maps), "something else in train"),
    "shared": (shared, "share parameters"),
    "frozen": (frozen, "'0.weight' is frozen"),
    "hooked": (hooked, "'0' has hooks"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_grouped_form_is_refused_by_name(name):
    make, message = REFUSED[name]
    with pytest.raises(CannotStackError, match=message):
        signature(make())


def test_networks_of_different_shapes_do_not_stack():
    with pytest.raises(CannotStackError, match="different shapes"):
        stack([network("tiny"), network("vgg")])


# Parts


@pytest.mark.parametrize("name", NETWORKS)
def test_unstacking_gives_back_what_was_stacked(name):
    models = [network(name, seed) for seed in range(3)]
    for number, model in enumerate(models):
        for buffer in model.buffers():
            buffer.add_(number)
    for model, state in zip(models, unstack(stack(models)), strict=True):
        assert list(state) == list(model.state_dict())
        for key, tensor in model.state_dict().items():
            assert torch.equal(state[key], tensor)
            assert state[key].stride() == tensor.stride() or tensor.shape[1] == 1 or tensor.shape[2:] == (1, 1)


class Joined(nn.Module):
    """Joins channels, squeezes maps, and begins with what cannot be one wide layer."""

    def __init__(self):
        super().__init__()
        self.pool, self.one, self.two = nn.AvgPool2d(2), nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 6, 3, groups=3)
        self.last = nn.Linear(9, 10, bias=False)

    def forward(self, images):
        maps = self.one(self.pool(images))
        return self.last(torch.cat([maps[:, :, 1:-1, 1:-1], self.two(maps)], dim=1).mean((2, 3)))


@pytest.mark.parametrize("make", [Joined, tiny])
@pytest.mark.parametrize("count", [1, 3])
def test_a_stack_computes_what_its_models_compute(make, count):
    models = [make().double().eval() for _ in range(count)]
    grouped = stack(models).eval()
    images = torch.randn(count, 5, 1, 8, 8, dtype=torch.float64)
    separate = torch.stack([model(each) for model, each in zip(models, images, strict=True)])
    torch.testing.assert_close(grouped(images), separate, rtol=0, atol=1e-12)
    same = torch.stack([model(images[0]) for model in models])
    torch.testing.assert_close(grouped(images[0]), same, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["lenet5", "resnet"])
def test_singular_values_of_many_are_those_of_each(name):
    models = [network(name, seed) for seed in range(3)]
    images = torch.randn(5, *NETWORKS[name][1].example().shape[1:], dtype=torch.float64)
    found = singular_values_of(models, images)
    for model, values in zip(models, found, strict=True):
        torch.testing.assert_close(values, singular_values(model, images), rtol=1e-10, atol=CLOSE)


@pytest.mark.parametrize(("pad", "flip"), [(0, False), (0, True), (2, False), (2, True)])
def test_a_feed_gives_the_batches_of_the_dataset(pad, flip):
    data = digits(8, pad, flip)
    streams = [Stream(0, "retrain", 3), Stream(1, "retrain", 0), Stream(0, "retrain", 3)]
    feed = Feed(data, streams, BATCH, torch.float32)
    for later, first in ((0, 0), (2, 1)):
        feed.begin(later, first)
        expected = [list(data.batches(each.seed, each.name, each.epoch + later, BATCH)) for each in streams]
        for step in range(first, PER_EPOCH):
            images, labels = feed.next(len(expected[0][step][1]))
            for number in range(3):
                assert torch.equal(images[number], expected[number][step][0])
                assert torch.equal(labels[number], expected[number][step][1])


def test_the_memory_of_a_model_is_found_without_computing():
    small, large = (footprint(training(changes={"batch": batch})) for batch in (64, 128))
    # Maps of 6x6x4 and 3x3x4 behind the convolution, the normalisation, ReLU and pooling, in float64.
    assert 64 * 8 * 4 * 36 * 2 < large - small < 64 * 8 * 4 * 36 * 8


# When something is in the way


def test_checkpoints_may_be_rare(tmp_path):
    checkpoint = Checkpoint(tmp_path / "state.safetensors", "cpu")
    train_many([training(checkpoint=checkpoint)], "grouped", save_every=1000)
    assert checkpoint.load() is None
    train_many([training(checkpoint=checkpoint)], "grouped")
    assert checkpoint.load().facts["epochs_done"] == 4


@contextlib.contextmanager
def killed(after):
    """A progress callback that ends the process after some epochs."""

    def progress(done, total, accuracy):
        if done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        yield progress


@pytest.mark.parametrize("first", ["torch", "grouped"])
@pytest.mark.parametrize("second", ["torch", "grouped"])
def test_a_killed_run_goes_on_in_any_backend(first, second, tmp_path):
    def checkpoint(number):
        return Checkpoint(tmp_path / f"{number}.safetensors", "cpu")

    with killed(3) as progress:
        train_many([training(number=k, checkpoint=checkpoint(k), progress=progress) for k in range(2)], first)
    # Where the first run is killed in its third epoch, the second one has not begun, or has done as much.
    again = [training(number=k, checkpoint=checkpoint(k)) for k in range(2)]
    found = train_many(again, second)
    assert [result.resumed_from for result in found] == ([3, 0] if first == "torch" else [3, 2])
    whole = [training(number=k) for k in range(2)]
    for one, left, other, right in zip(whole, train_many(whole), again, found, strict=True):
        assert_same_run(one, left, other, right)


def test_progress_is_told_after_every_epoch():
    told = []
    runs = [training(number=k, progress=lambda *facts, k=k: told.append((k, *facts))) for k in range(2)]
    found = train_many(runs, "grouped")
    assert told == [(k, epoch, 5, found[k].history.test_accuracy[epoch - 1]) for epoch in range(1, 6) for k in range(2)]


@pytest.mark.parametrize("backend", ["torch", "grouped", "graphed"])
def test_who_is_at_the_end_is_told_of_at_once(backend):
    def finished(results):
        for number, result in results.items():
            weights = torch.cat([each.flatten() for each in runs[number].model.parameters()]).detach()
            told[number] = (result, weights.clone(), len(epochs))

    epochs, told = [], {}
    runs = [
        training(number=k, changes={"epochs": length}, progress=lambda *facts: epochs.append(facts))
        for k, length in enumerate((3, 1, 2))
    ]
    runs += [training(recipe=Recipe(steps=0, lr="0:1", batch=BATCH)), training(hooks=Hooks(), changes={"epochs": 1})]
    found = train_many(runs, backend, finished=finished)
    assert [told[number][0] for number in range(5)] == found
    for number, run in enumerate(runs):
        assert torch.equal(told[number][1], torch.cat([each.flatten() for each in run.model.parameters()]))
    # Of six epochs, those of the three runs that were over when each of them was told of.
    over = {"torch": [3, 4, 6], "grouped": [6, 3, 5], "graphed": [3, 6, 5]}
    assert [told[number][2] for number in range(3)] == over[backend]


def test_what_a_callback_raises_costs_its_run_alone():
    def progress(*_):
        raise OSError("disk full")

    alone = training(number=1)
    (expected,) = train_many([alone])
    broken, other = training(progress=progress), training(number=1)
    failed, fine = train_many([broken, other], "grouped")
    assert isinstance(failed.error, OSError)
    assert len(failed.history.test_loss) == 1
    assert_same_run(alone, expected, other, fine)


def test_a_checkpoint_of_another_network_costs_its_run_alone(tmp_path):
    checkpoint = Checkpoint(tmp_path / "state.safetensors", "cpu")
    train_many([training("vgg", checkpoint=checkpoint)], "grouped")
    for others in ([], [training(number=1)]):
        failed, *fine = train_many([training(checkpoint=checkpoint), *others], "grouped")
        assert "state_dict" in str(failed.error)
        assert not any(result.error for result in fine)


@pytest.mark.parametrize("step", [0, 1, 6])
def test_too_little_memory_halves_the_number_of_models(monkeypatch, step):
    widths, plain = [], Stack._step

    def scarce(self, size):
        widths.append(len(self.runs))
        if len(self.runs) > 2 and len(widths) > step:
            plain(self, size)
            raise torch.cuda.OutOfMemoryError("not enough memory")
        plain(self, size)

    monkeypatch.setattr(Stack, "_step", scarce)
    assert_same_as_alone(lambda: [training(number=number) for number in range(5)])
    assert widths[step] == 5
    assert set(widths[step + 1 :]) <= {1, 2}


def test_memory_that_ends_between_two_epochs_costs_no_epoch(monkeypatch):
    begun, plain = [], Feed.begin

    def scarce(self, epochs_later, step):
        begun.append(epochs_later)
        if begun == [0, 1, 2]:
            raise torch.cuda.OutOfMemoryError("not enough memory")
        plain(self, epochs_later, step)

    monkeypatch.setattr(Feed, "begin", scarce)
    assert_same_as_alone(lambda: [training(number=number) for number in range(3)])


def test_what_breaks_a_step_costs_all_who_made_it_and_nobody_else(monkeypatch):
    plain = Stack._step

    def broken(self, size):
        if self.runs[0].training.seed:
            raise RuntimeError("no such kernel")
        plain(self, size)

    monkeypatch.setattr(Stack, "_step", broken)
    found = train_many([training(number=number) for number in (1, 3, 0, 2)], "grouped", width=2)
    assert [str(result.error) for result in found] == ["no such kernel", "no such kernel", "None", "None"]


def test_a_model_that_does_not_fit_alone_fails_alone(monkeypatch):
    def scarce(self, size):
        raise torch.cuda.OutOfMemoryError("not enough memory")

    monkeypatch.setattr(Stack, "_step", scarce)
    found = train_many([training(number=number) for number in range(3)], "grouped")
    assert ["not enough memory" in str(result.error) for result in found] == [True] * 3


# Capturing, without a GPU


class Tape:
    """Stands in for a CUDA graph: work is recorded while it is captured, and done when it is replayed."""

    def __init__(self, log, broken=False):
        self.log, self.broken = log, broken

    @contextlib.contextmanager
    def record(self, graph, pool, stream):
        if self.broken:
            raise RuntimeError("operation not permitted\nwhen stream is capturing")
        before = list(self.log)
        yield
        assert self.log == [*before, "work"]
        self.log[-1] = "captured"

    def replay(self):
        self.log.append("replayed")


@pytest.mark.parametrize("broken", [False, True])
def test_a_step_is_captured_after_warming_up(monkeypatch, broken):
    log = []
    tape = Tape(log, broken)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: tape)
    monkeypatch.setattr(torch.cuda, "graph", tape.record)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    program = Program(lambda: log.append("work"), torch.device("cuda"), None)
    for _ in range(stacked._WARM_UP + 2):
        program()
    later = ["work", "work"] if broken else ["captured", "replayed", "replayed"]
    assert log == ["work"] * stacked._WARM_UP + later
    assert program.reason == ("steps were not captured: operation not permitted" if broken else "")


class OnTheDevice(TorchDispatchMode):
    """Lets no operation give a tensor of the host."""

    def __torch_dispatch__(self, operation, types, arguments=(), named=None):
        result = operation(*arguments, **(named or {}))
        assert all(found.is_meta for found in tree_leaves(result) if isinstance(found, torch.Tensor)), operation
        return result


@pytest.mark.parametrize("backend", ["grouped", "fused"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_asks_the_host_for_nothing(monkeypatch, compiler, name, masked, backend):
    """What a CUDA graph can hold, tried on tensors that have no values: reading one of them is an error."""
    compiler("eager")
    # There is no autocast for such tensors; in float64 there is none to do.
    monkeypatch.setattr(Stack, "_arithmetic", lambda _: contextlib.nullcontext())
    runs = []
    for number in range(3):
        run = training(name, number)
        model = run.model.to("meta")
        layer = next(name for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
        masks = {layer: torch.ones_like(model.get_parameter(f"{layer}.weight"), dtype=torch.bool)} if masked else None
        run = dataclasses.replace(run, model=model, dataset=run.dataset.to(torch.device("meta")), masks=masks)
        runs.append(Run(number, run, Trained(backend), 0.0))
    stacked_runs = Stack(runs)
    stacked_runs._feed.begin(0, 0)
    with OnTheDevice():
        for size in (BATCH, IMAGES % BATCH):
            stacked_runs._step(size)


def test_as_many_train_at_once_as_fit_into_a_share_of_the_free_memory(monkeypatch):
    weight = SimpleNamespace(device=torch.device("cuda"))
    on_gpu = SimpleNamespace(model=SimpleNamespace(parameters=lambda: iter([weight])))
    monkeypatch.setattr(many, "footprint", lambda training: 100)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5000, 9000))
    assert many.fitting(on_gpu) == 40
    assert many.fitting(on_gpu, 1 / 4) == 10
    assert many.fitting(on_gpu, 1 / 100) == 1
