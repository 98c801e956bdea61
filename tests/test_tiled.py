"""The compiled trainer of convolutional networks against the plain one."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from trainers import assert_goes_on, assert_same, fit, needs_numba

from pruneaudit.arithmetic import kind
from pruneaudit.streams import generator
from pruneaudit.training import tiled
from pruneaudit.training.loop import DivergedError, Hooks, Trainer
from pruneaudit.training.metering import Meter
from pruneaudit.training.precision import place
from pruneaudit.workloads.data import Dataset, Part
from pruneaudit.workloads.models.initialise import initialise
from pruneaudit.workloads.models.resnet import BasicBlock, CifarResNet
from pruneaudit.workloads.models.vgg import CifarVGG
from pruneaudit.workloads.recipes import Recipe
from pruneaudit.workloads.schema import DataConfig

torch.set_num_threads(1)

# Four steps in an epoch, the last one with a tile that is not full.
RECIPE = Recipe(epochs=5, lr="0:0.05,2:0.01", batch=16, momentum=0.9, weight_decay=5e-4)


def noise(train=57, size=4, channels=2, classes=5):
    """Random images; all tests have them so small, because each length of a row is compiled for itself."""
    draw = generator(channels, "noise")

    def part(count):
        images = torch.randint(0, 256, (count, size, size, channels), generator=draw, dtype=torch.uint8)
        return Part(images, torch.randint(0, classes, (count,), generator=draw))

    config = DataConfig(name="digits", mean=(0.5,) * channels, std=(0.3,) * channels, pad=1)
    return Dataset(config, classes, part(train), part(9), part(9), "")


def resnet(inner=(3, 8, 5), outer=(4, 6, 9), seed=0, precision="fp64"):
    """A ResNet of three blocks with any widths, as pruning leaves them."""
    model = CifarResNet(8, 2, 5)
    model.conv1, model.bn1 = nn.Conv2d(2, outer[0], 3, padding=1, bias=False), nn.BatchNorm2d(outer[0])
    before = outer[0]
    for number, (narrow, wide) in enumerate(zip(inner, outer, strict=True)):
        # Fewer lengths of rows than a whole one has: each is compiled for itself.
        block = BasicBlock(before, wide, 2 if number == 1 else 1)
        block.conv1, block.bn1 = nn.Conv2d(before, narrow, 3, block.stride, 1, bias=False), nn.BatchNorm2d(narrow)
        block.conv2 = nn.Conv2d(narrow, wide, 3, 1, 1, bias=False)
        setattr(model, f"layer{number + 1}", nn.Sequential(block))
        before = wide
    model.linear = nn.Linear(before, 5)
    return prepared(model, seed, precision)


def prepared(model, seed=0, precision="fp64"):
    """A network with weights of a seed, all of whose normalisations do something."""
    model, draw = model.double(), generator(seed, "test")
    initialise(model, draw)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.empty_like(parameter).uniform_(-0.2, 0.2, generator=draw))
    return place(model, "cpu", precision)


def both(model, dataset=None, recipe=RECIPE, **options):
    """Trained by torch and in tiles, and found to be the same."""
    dataset = dataset or noise()
    plain, ours = (fit(backend, model, dataset, recipe, **options) for backend in ("torch", "tiled"))
    assert_same(ours, plain)
    return ours


# Against torch


@needs_numba
@pytest.mark.parametrize(
    "change",
    [{}, {"label_smoothing": 0.1, "nesterov": True}, {"momentum": 0.0, "weight_decay": 0.0}],
    ids=str,
)
def test_twenty_steps_of_a_pruned_resnet_equal_torch_in_float64(change):
    model = resnet()
    ours = both(model, recipe=RECIPE.model_copy(update=change))
    assert ours.meter.consumption.optimiser_steps == 20
    assert not torch.equal(ours.model.layer2[0].conv1.weight, model.layer2[0].conv1.weight)
    assert int(ours.model.bn1.num_batches_tracked) == 20


@needs_numba
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    inner=st.tuples(*[st.integers(1, 11)] * 3),
    # Option A fills up with zeros: a stage is never narrower than the one before.
    outer=st.tuples(*[st.integers(1, 9)] * 3).map(lambda widths: tuple(sorted(widths))),
    batch=st.integers(1, 20),
    train=st.integers(1, 40),
)
def test_any_widths_and_batches_equal_torch(inner, outer, batch, train):
    both(resnet(inner, outer), noise(train), RECIPE.model_copy(update={"epochs": None, "steps": 3, "batch": batch}))


class Mixed(nn.Module):
    """What the residual networks of this project have not: biases, pooling, sums without a normalisation."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.pool, self.act = nn.MaxPool2d(2), nn.ReLU(inplace=True)
        self.norm, self.down = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.hidden, self.scaled, self.linear = nn.Linear(12, 7), nn.BatchNorm1d(7), nn.Linear(7, 5)

    def forward(self, images):
        maps = self.act(self.conv1(images))
        maps = F.relu(maps + self.conv2(maps))
        # Two readers of what is normalised, and a normalisation on both sides of a sum.
        maps = self.pool(torch.relu(self.norm(maps) + self.down(maps)))
        return self.linear(self.scaled(self.hidden(torch.flatten(maps, 1))).relu())


@needs_numba
@pytest.mark.parametrize("make", [Mixed, lambda: tiny_vgg(0), lambda: tiny_vgg(6)], ids=["mixed", "vgg", "vgg, hidden"])
def test_plain_networks_equal_torch(make):
    both(prepared(make()), recipe=RECIPE.model_copy(update={"epochs": None, "steps": 9}))


class Pooled(nn.Module):
    """Pooling of a ReLU that nothing else sees, or that something else sees too: by its own name or by another one."""

    def __init__(self, also):
        super().__init__()
        self.conv, self.act, self.name = nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Identity()
        self.pool, self.linear, self.also = nn.MaxPool2d(2), nn.Linear(12, 5), also

    def forward(self, images):
        maps = self.act(self.conv(images))
        known = self.name(maps) if self.also == "by another name" else maps
        found = self.pool(known)
        if self.also:
            found = found + self.pool(maps + maps)
        return self.linear(torch.flatten(found, 1))


@needs_numba
@pytest.mark.parametrize("also", ["", "by its name", "by another name"])
def test_a_relu_is_taken_of_what_is_pooled_where_nothing_else_sees_it(also):
    model = prepared(Pooled(also))
    layers = [type(layer).__name__ for layer in tiled.layers_of(model, noise(), Hooks(), "fp64", RECIPE)]
    first = ["Convolution", "Rectifier", "Largest"] if also else ["Convolution", "Largest", "Rectifier"]
    assert layers[:3] == first
    both(model, recipe=RECIPE.model_copy(update={"epochs": None, "steps": 9}))


def tiny_vgg(hidden):
    """The head of a VGG, with its classifier."""
    model = CifarVGG(16, 2, 5, hidden)
    model.features = nn.Sequential(
        *(nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 9, 3, padding=1, bias=False), nn.BatchNorm2d(9), nn.ReLU(inplace=True)),
    )
    first = model.classifier[0] if hidden else model.classifier
    layer = nn.Linear(9, first.out_features)
    model.classifier = nn.Sequential(layer, *model.classifier[1:]) if hidden else layer
    return model


@needs_numba
def test_masked_weights_stay_zero():
    model, draw = resnet(), generator(1, "masks")
    names = ("layer1.0.conv1", "layer3.0.conv2", "linear")
    masks = {name: torch.rand(model.get_parameter(f"{name}.weight").shape, generator=draw) < 0.3 for name in names}
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(f"{name}.weight").mul_(mask)
    ours = both(model, masks=masks)
    assert ours.history.nonzero == [sum(int(mask.sum()) for mask in masks.values())] * 5
    for name, mask in masks.items():
        assert not ours.model.get_parameter(f"{name}.weight")[~mask].any()


class Plain(nn.Module):
    """One convolution."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Linear(3, 5)

    def forward(self, images):
        return self.linear(F.relu(self.norm(self.conv(images))).mean((2, 3)))


@needs_numba
def test_a_step_equals_torch_in_float32():
    recipe, model = RECIPE.model_copy(update={"epochs": None, "steps": 1}), prepared(Plain(), precision="fp32")
    plain, ours = (fit(backend, model, noise(), recipe, "fp32") for backend in ("torch", "tiled"))
    for one, other in zip(ours.model.parameters(), plain.model.parameters(), strict=True):
        assert one.dtype == torch.float32 and one.stride() == other.stride()
        assert float((one - other).detach().abs().max()) <= 1e-5
    assert ours.history.train_loss == pytest.approx(plain.history.train_loss, rel=1e-5)


@needs_numba
def test_divergence_is_an_error():
    with pytest.raises(DivergedError, match=r"in epoch [23] of 5: it diverged"):
        fit("tiled", resnet(), noise(), RECIPE.model_copy(update={"lr": "0:0.01,1:1e300"}))


@needs_numba
@pytest.mark.parametrize("adds", [False, True], ids=["alone", "added"])
def test_pooling_takes_the_first_of_equals_and_any_nan_as_torch_does(adds):
    from pruneaudit.kernels.vectors import lanes
    from pruneaudit.training import tiled_kernel

    tiles, width, draw = 2, lanes(8), generator(0, "pooling")
    # Three values in windows of four: most have more than one largest pixel.
    images = torch.randint(0, 3, (tiles * width, 3, 4, 6), generator=draw).double()
    images[torch.rand(images.shape, generator=draw) < 0.1] = torch.nan
    images.requires_grad_()
    pooled = F.max_pool2d(images, 2)
    given = torch.rand(pooled.shape, generator=draw, dtype=torch.float64)
    pooled.backward(given)

    def tiled_maps(batch):
        return batch.detach().reshape(tiles, width, -1).permute(0, 2, 1).contiguous().numpy()

    maps, outputs = tiled_maps(images), tiled_maps(torch.zeros_like(pooled))
    winner = np.zeros(outputs.shape, np.int16)
    tiled_kernel.largest(maps, outputs, winner, 3, 4, 6, 2)()
    np.testing.assert_array_equal(outputs, tiled_maps(pooled))
    before = np.full(maps.shape, 5.0)
    of_maps = before.copy()
    tiled_kernel.largest_backward(tiled_maps(given), winner, of_maps, 3, 4, 6, 2, adds)()
    np.testing.assert_array_equal(of_maps, tiled_maps(images.grad) + (before if adds else 0))


def in_lanes(maps):
    """Maps ``[B, C, H, W]`` as ``[T, cells, L]``; ``B`` fills its tiles."""
    from pruneaudit.kernels.vectors import lanes

    return maps.detach().reshape(-1, lanes(8), maps[0].numel()).permute(0, 2, 1).contiguous().numpy()


@needs_numba
@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    channels=st.integers(1, 5),
    out=st.integers(1, 5),
    tall=st.integers(1, 4),
    tiles=st.integers(1, 3),
    adds=st.booleans(),
)
def test_passes_over_long_rows_equal_torch_and_weights_are_summed_in_one_order(channels, out, tall, tiles, adds):
    from pruneaudit.kernels.vectors import lanes
    from pruneaudit.training import tiled_kernel as kernel

    draw = generator(channels, "rows")
    images = torch.randn(tiles * lanes(8), channels, tall, 8, dtype=torch.float64, generator=draw, requires_grad=True)
    weight = torch.randn(out, channels, 3, 3, dtype=torch.float64, generator=draw, requires_grad=True)
    bias = torch.randn(out, dtype=torch.float64, generator=draw)
    outputs = F.conv2d(images, weight, bias, padding=1)
    given = torch.randn(outputs.shape, dtype=torch.float64, generator=draw)
    outputs.backward(given)
    inputs, plain, of_outputs = in_lanes(images), weight.detach().numpy(), in_lanes(given)
    # Two channels are computed at once in rows of eight columns, the last of an odd number by itself.
    rows = (tall, tall, adds)

    def passes(which, *arrays):
        kernel.convolution((3, 1, 1, 8), which, *arrays, *rows)()

    made = np.full_like(of_outputs, 3.0)
    passes(kernel.FORWARD, inputs, made, plain, bias.numpy())
    np.testing.assert_allclose(made, in_lanes(outputs) + (3 if adds else 0), atol=1e-12)
    back = np.full_like(inputs, 3.0)
    passes(kernel.TO_INPUTS, of_outputs, back, plain, np.zeros(channels))
    np.testing.assert_allclose(back, in_lanes(images.grad) + (3 if adds else 0), atol=1e-12)
    found = []
    for scratch in (1, plain.size * lanes(8)):
        gradients = np.full_like(plain, 3.0)
        passes(kernel.TO_WEIGHTS, inputs, of_outputs, gradients, np.full(scratch, 9.0))
        np.testing.assert_allclose(gradients, weight.grad.numpy(), atol=1e-11)
        found.append(gradients)
    # The batch tile by tile, in parts.
    kept, found_last = np.full(plain.size * lanes(8), 9.0), np.full_like(plain, 3.0)
    for tile in range(tiles):
        part = kernel.FIRST * (tile == 0) + kernel.LAST * (tile == tiles - 1)
        some = slice(tile, tile + 1)
        arrays = inputs[some], of_outputs[some], found_last, kept
        kernel.convolution((3, 1, 1, 8), kernel.TO_WEIGHTS, *arrays, *rows, part)()
    for gradients in found[1:]:
        np.testing.assert_array_equal(found[0], gradients)
    np.testing.assert_array_equal(found[0], found_last)


@needs_numba
def test_gradients_that_were_handed_on_leave_their_room_to_later_ones():
    model = CifarResNet(20, 2, 5).double()
    layers = tiled.layers_of(model, noise(), Hooks(), "fp64", RECIPE)
    tiled.Tiles(layers, RECIPE.batch, torch.float64)
    rooms = {id(layer.outputs.gradients): layer.outputs.gradients.nbytes for layer in layers}
    assert 3 * sum(rooms.values()) < sum(layer.outputs.values.nbytes for layer in layers)


# Kill and resume


@needs_numba
@pytest.mark.parametrize(("started", "resumed"), [("torch", "tiled"), ("tiled", "torch"), ("tiled", "tiled")])
def test_a_run_goes_on_with_either_backend(tmp_path, started, resumed):
    assert_goes_on(tmp_path, started, resumed, resnet, noise(), RECIPE)


# Where it cannot


def changed(**parts):
    """The network with other layers."""
    model = resnet()
    for name, layer in parts.items():
        setattr(model, name, layer.double())
    return model


def frozen(model):
    model.conv1.weight.requires_grad_(False)
    return model


def listened(model):
    model.layer1[0].register_forward_hook(lambda *_: None)
    return model


class Drawing(nn.Module):
    """A network whose code looks at what it is given."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 5)

    def forward(self, images):
        return self.linear(images.mean((2, 3)) if images.sum() > 0 else images.amax((2, 3)))


class Twice(nn.Module):
    """A network that uses a layer twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(2, 5)

    def forward(self, images):
        return self.linear(self.conv(F.relu(self.conv(images))).mean((2, 3)))


class Overwritten(Twice):
    """A network that rectifies in place what it uses once more."""

    def forward(self, images):
        maps = self.conv(images)
        return self.linear((F.relu(maps, inplace=True) + maps).mean((2, 3)))


def flat():
    """A network that normalises vectors."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 5), nn.BatchNorm1d(5)).double()


OBSTACLES = {
    "only fp32 and fp64 are compiled, not bf16": {"precision": "bf16"},
    "a method's hooks take part": {"hooks": Hooks(after_step=print)},
    "weights are not those of fp64": {"model": lambda: resnet(precision="fp32")},
    "some parameters are frozen": {"model": lambda: frozen(resnet())},
    "layers do more than their code says": {"model": lambda: listened(resnet())},
    "no tiled form of Dropout": {"model": lambda: changed(linear=nn.Sequential(nn.Dropout(0.5), nn.Linear(9, 5)))},
    "no tiled form of Conv2d": {"model": lambda: changed(conv1=nn.Conv2d(2, 4, 3, padding=1, groups=2, bias=False))},
    "no tiled form of BatchNorm2d": {"model": lambda: changed(bn1=nn.BatchNorm2d(4, momentum=None))},
    "no tiled form of Linear": {"model": lambda: changed(linear=nn.Linear(8, 5))},
    "code cannot be traced": {"model": lambda: Drawing().double()},
    "layer 'conv' is used more than once": {"model": lambda: Twice().double()},
    "no tiled form of '%relu": {"model": lambda: Overwritten().double()},
    "fewer outputs than the data classes": {"model": lambda: changed(linear=nn.Linear(9, 4))},
    "gives a normalisation one value": {"model": flat, "dataset": lambda: noise(33)},
}


@needs_numba
@pytest.mark.parametrize("reason", OBSTACLES)
def test_what_has_no_tiles_says_why(reason):
    case = {"model": resnet, "dataset": noise, "hooks": Hooks(), "precision": "fp64", **OBSTACLES[reason]}
    found = tiled.layers_of(case["model"](), case["dataset"](), case["hooks"], case["precision"], RECIPE)
    assert reason in found and "\n" not in found


@needs_numba
def test_what_has_no_tiles_is_trained_by_torch():
    model, steps = resnet(), []
    trainer = Trainer(model, noise(), RECIPE, 0, "retrain", Meter(model), "fp64", backend="tiled")
    trainer.fit(Hooks(after_step=steps.append))
    assert trainer.backend == "torch" and "hooks" in trainer.fallback
    assert steps == list(range(20))


@needs_numba
def test_a_record_tells_which_compiler_made_the_steps():
    assert "Numba" in kind("cpu", "tiled").compiler and not kind("cpu", "torch").compiler
