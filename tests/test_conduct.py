"""What is seen of a method while it holds the network: weights, pictures, passes, files, repetition."""

import contextlib
import copy
import dataclasses
import functools
import os
import socket
import subprocess
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap
from trainers import Killed

from pruneaudit.catalog.discovery import Catalog, MethodSource
from pruneaudit.errors import MethodError
from pruneaudit.ledger.records import Conduct
from pruneaudit.measure.cost import macs, macs_by_torch
from pruneaudit.method.answers import Answer
from pruneaudit.method.conduct import Job, digest, equivalence, observe
from pruneaudit.pruning import shapes
from pruneaudit.pruning.layers import prunable_layers
from pruneaudit.streams import generator
from pruneaudit.training.checkpoint import Checkpoint
from pruneaudit.training.metering import Consumption, Meter
from pruneaudit.training.precision import place
from pruneaudit.training.watch import COMPARED_PICTURES, Pictures, Watch
from pruneaudit.workloads.data import Dataset, Part, load, stored_at
from pruneaudit.workloads.models import MODELS, build
from pruneaudit.workloads.models.initialise import initialise
from pruneaudit.workloads.models.resnet import CifarResNet
from pruneaudit.workloads.recipes import Recipe
from pruneaudit.workloads.schema import DataConfig

torch.set_num_threads(1)

CATALOG = Catalog()
LENET = CATALOG.workload("lenet5-digits")
RESNET = CATALOG.workload("resnet20-digits")


def first(dataset, train, held_out=20):
    """A dataset with fewer images."""
    parts = {"train": dataset.train.first(train)}
    parts |= {name: getattr(dataset, name).first(held_out) for name in ("validation", "test")}
    return dataclasses.replace(dataset, **parts)


@functools.cache
def digits(workload=LENET, train=64):
    return first(load(workload.data), train)


def initialised(model):
    initialise(model, generator(0, "test"))
    return model


def lenet():
    return initialised(build("lenet5", 1, 10)).eval()


def resnet():
    return initialised(CifarResNet(8, 1, 10)).eval()


# Which weights changed, and when


def watch_resnet():
    model = resnet()
    return model, Watch(model, ("layer1.0.conv1", "layer1.0.bn1"), Pictures(digits(RESNET)))


def add_one(tensor):
    with torch.no_grad():
        tensor.add_(1)


def test_nothing_changed():
    model, watch = watch_resnet()
    with watch:
        model(torch.zeros(2, 1, 8, 8))
        model.train().eval()
    assert watch.rewritten == watch.touched == set()


def test_own_tensors_are_those_of_pruned_layers_and_their_norms():
    model, watch = watch_resnet()
    block = model.layer1[0]
    with watch:
        for tensor in (block.conv1.weight, block.bn1.bias, block.bn1.running_var, block.conv2.weight, model.bn1.weight):
            add_one(tensor)
        add_one(model.linear.bias)
    assert watch.rewritten == {"layer1.0.conv1.weight", "layer1.0.bn1.bias", "layer1.0.bn1.running_var"}
    assert watch.touched == {"layer1.0.conv2.weight", "bn1.weight", "linear.bias"}


def test_a_change_of_one_bit_is_one():
    model, watch = watch_resnet()
    with watch:
        model.linear.bias.data[3] = torch.nextafter(model.linear.bias.data[3], torch.tensor(1.0))
    assert watch.touched == {"linear.bias"}


def test_changes_within_training_are_none_and_before_between_and_after_it_are_some():
    model, watch = watch_resnet()
    with watch:
        add_one(model.conv1.weight)
        with watch.training():
            add_one(model.bn1.weight)
            add_one(model.layer1[0].conv1.weight)
        with watch.training():
            add_one(model.bn1.weight)
        assert (watch.rewritten, watch.touched) == (set(), {"conv1.weight"})
        add_one(model.layer1[0].conv1.weight)
        with watch.training():
            pass
        assert watch.rewritten == {"layer1.0.conv1.weight"}
        add_one(model.linear.weight)
    assert watch.touched == {"conv1.weight", "linear.weight"}


def test_a_change_that_is_taken_back_before_training_is_none():
    """Scores may try things out."""
    model, watch = watch_resnet()
    with watch:
        before = model.conv1.weight.detach().clone()
        add_one(model.conv1.weight)
        model.conv1.weight.data.copy_(before)
    assert watch.touched == set()


def test_an_error_in_training_closes_the_window():
    model, watch = watch_resnet()
    with watch:
        with contextlib.suppress(ZeroDivisionError), watch.training():
            add_one(model.conv1.weight)
            _ = 1 / 0
        add_one(model.linear.weight)
    assert watch.touched == {"linear.weight"}


def test_an_error_is_no_way_out():
    model, watch = watch_resnet()
    with contextlib.suppress(ZeroDivisionError), watch:
        add_one(model.conv1.weight)
        _ = 1 / 0
    assert watch.touched == {"conv1.weight"}


def test_tensors_that_come_go_or_change_their_shape():
    model, watch = watch_resnet()
    with watch:
        model.layer1[0].conv1.bias = nn.Parameter(torch.zeros(16))
        model.linear.bias = None
        model.linear.weight = nn.Parameter(torch.zeros(10, 3))
        model.more = nn.Linear(1, 1, bias=False)
    assert watch.rewritten == {"layer1.0.conv1.bias"}
    assert watch.touched == {"linear.bias", "linear.weight", "more.weight"}


# Which pictures passed


def rgb(train=40, pad=4, flip=True):
    """Noise, where no two images resemble each other."""
    noise = torch.Generator().manual_seed(0)

    def part(count):
        images = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=noise)
        return Part(images, torch.zeros(count, dtype=torch.int64))

    config = DataConfig(name="cifar10", mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616), pad=pad, flip=flip)
    return Dataset(config, 10, part(train), part(20), part(20), "made up")


DATA = {
    "lenet5-digits": lambda: load(LENET.data),
    "resnet20-digits": lambda: load(RESNET.data),
    "rgb": rgb,
    "rgb without augmentation": lambda: rgb(pad=0, flip=False),
}
AUGMENTED = ("lenet5-digits", "resnet20-digits", "rgb")


def seen(data, *batches):
    """Held-out images among some batches, and how many were foreign."""
    pictures = Pictures(data)
    for batch in batches:
        pictures.see(batch)
    return pictures.compare(), pictures.foreign


def moved(images, rows, columns, fill=0.0):
    """Images shifted by some pixels, what comes in filled up."""
    side = images.shape[-1]
    border = max(abs(rows), abs(columns))
    padded = F.pad(images, (border,) * 4, value=fill)
    return padded[:, :, border - rows : border - rows + side, border - columns : border - columns + side]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("part", ["validation", "test"])
@pytest.mark.parametrize("name", DATA)
def test_held_out_images_are_known_all_of_them(name, part, dtype):
    data = DATA[name]()
    images = data.normalise(getattr(data, part).images[:20], dtype)
    assert seen(data, images[:7], images[7:].contiguous()) == (20, 20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("name", DATA)
def test_training_images_are_foreign_and_no_secret(name, dtype):
    data = DATA[name]()
    assert seen(data, data.normalise(data.train.images[:40], dtype)) == (0, 40)


def disguises(data):
    """What may be done to images to hide them, by name; each one is recognised in a sample."""
    pad = data.config.pad
    black = float(data.normalise(torch.zeros(1, 1, 1, data.channels, dtype=torch.uint8)).mean())
    yield "brighter", lambda images: images + 0.3
    yield "darker, less contrast", lambda images: 0.5 * images - 0.2
    yield "other colours", lambda images: images * torch.linspace(0.5, 2, data.channels).view(-1, 1, 1)
    yield "as stored", lambda images: images * 0.25 + 0.5
    yield "nearly the same", lambda images: images + 1e-2 * torch.sin(torch.arange(images.numel()).view_as(images))
    if pad:
        yield "down", lambda images: moved(images, 1, 0)
        yield "left on black", lambda images: moved(images, 0, -1, black)
        yield "as far as it goes", lambda images: moved(images, -pad, pad)
        yield "around", lambda images: images.roll((pad, 1), (2, 3))
    if data.config.flip:
        yield "mirrored", lambda images: images.flip(-1)
        yield "mirrored and moved", lambda images: 0.8 * moved(images.flip(-1), pad, -pad, black)


@pytest.mark.parametrize("name", DATA)
def test_held_out_images_are_known_in_disguise(name):
    data = DATA[name]()
    images = data.normalise(data.test.images[:COMPARED_PICTURES]).contiguous()
    for how, change in disguises(data):
        assert seen(data, change(images)) == (COMPARED_PICTURES, COMPARED_PICTURES), how


@pytest.mark.parametrize("name", DATA)
def test_training_images_are_not_accused_in_disguise(name):
    data = DATA[name]()
    for start in range(0, 40, COMPARED_PICTURES):
        images = data.normalise(data.train.images[start : start + COMPARED_PICTURES]).contiguous()
        for how, change in disguises(data):
            assert seen(data, change(images)) == (0, COMPARED_PICTURES), how


@pytest.mark.parametrize("name", AUGMENTED)
def test_augmented_training_batches_are_not_accused(name):
    data = DATA[name]()
    for epoch in range(10):
        batches = [images for images, _ in data.batches(epoch, "own loop", epoch, 128)]
        assert seen(data, *batches) == (0, len(data.train))


def test_mirrored_images_are_others_where_nobody_mirrors():
    """Mirrored digits are no digits: such a training would not help."""
    data = rgb(flip=False)
    assert seen(data, data.normalise(data.test.images[:8]).flip(-1)) == (0, 8)


def test_a_picture_in_both_splits_is_no_secret():
    """CIFAR-10 has pictures in its training set that are in its test set, too."""
    data = rgb()
    # At other places of a larger split: sums of floats then differ in their last digits.
    images, labels = torch.cat([data.train.images, data.test.images.flip(0)]), torch.cat([data.train.labels] * 2)[:60]
    both = dataclasses.replace(data, train=Part(images, labels))
    images = data.normalise(data.test.images[:8]).contiguous()
    assert seen(both, images)[0] == 0
    assert seen(both, moved(images, 1, -2), 0.5 * images, images.flip(-1))[0] == 0
    assert seen(data, images)[0] == 8


def test_what_merely_resembles_a_held_out_image_is_not_accused():
    """Correlation 0.98: where the threshold lies is between this and what rounding and compression leave."""
    data = rgb()
    images = data.normalise(data.test.images[:8])
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    assert seen(data, images + 0.25 * noise) == (0, 8)
    assert seen(data, images + 0.05 * noise) == (8, 8)


@pytest.mark.parametrize("flat", [0.0, -0.8, 3.0])
@pytest.mark.parametrize("name", DATA)
def test_flat_images_resemble_nothing(name, flat):
    data = DATA[name]()
    side = data.height
    assert seen(data, torch.full((4, data.channels, side, side), flat)) == (0, 4)


def test_a_flat_held_out_image_does_not_make_all_suspect():
    data = rgb()
    data.test.images[0] = 7
    assert seen(data, data.normalise(data.train.images[:8]), torch.randn(8, 3, 32, 32)) == (0, 16)


def test_what_is_no_image_is_ignored():
    data = DATA["rgb"]()
    features = [torch.zeros(4, 16, 32, 32), torch.zeros(4, 3, 16, 16), torch.zeros(4, 10), torch.zeros(4)]
    assert seen(data, *features, torch.zeros(4, 3, 32, 32, device="meta")) == (0, 0)


def test_a_few_hidden_among_many_are_in_the_sample_wherever_they_stand():
    """The sample does not consist of what comes first."""
    data = DATA["lenet5-digits"]()
    hidden = moved(data.normalise(data.test.images[:200]), 1, 1)
    own = [images for images, _ in data.batches(0, "own loop", 0, 64)][:3]
    assert 0 < seen(data, *own, hidden)[0] < COMPARED_PICTURES
    assert seen(data, *own, hidden) == seen(data, hidden, *reversed(own))


# What passed the layers

IMAGES = torch.zeros(5, 1, 32, 32)


def counted(act, model=None):
    """Images with and without gradients, as the meter of a network counts what happens in a function of it."""
    model = model or lenet()
    with Meter(model) as meter:
        act(model)
    return meter.consumption.training_samples, meter.consumption.scoring_samples


def without_gradients(act):
    def acting(model):
        with torch.no_grad():
            act(model)

    return acting


WAYS = {
    "the network": lambda model: model(IMAGES),
    "by keyword": lambda model: model(images=IMAGES),
    "model.forward": lambda model: model.forward(IMAGES),
    "the class's forward": lambda model: type(model).forward(model, IMAGES),
    "a copy": lambda model: copy.deepcopy(model)(IMAGES),
    "a copy of a copy": lambda model: copy.deepcopy(copy.deepcopy(model)).forward(IMAGES),
    "its first layer": lambda model: model.conv1(IMAGES),
    "its first layer by keyword": lambda model: model.conv1(input=IMAGES),
    "its last layer": lambda model: model.fc2(torch.zeros(5, 84)),
    "another network around its layer": lambda model: nn.Sequential(model.conv1, nn.ReLU())(IMAGES),
    "other weights": lambda model: functional_call(model, dict(lenet().named_parameters()), (IMAGES,)),
    "image by image": lambda model: [model(image[None]) for image in IMAGES],
    "vmap": lambda model: vmap(lambda image: model(image[None]))(IMAGES),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_through_the_network_counts(way):
    assert counted(WAYS[way]) == (5, 0)
    assert counted(without_gradients(WAYS[way])) == (0, 5)


def test_gradients_of_single_images_count_each():
    def loss(weights, image, model):
        return functional_call(model, weights, (image[None],)).sum()

    def single(model):
        vmap(grad(functools.partial(loss, model=model)), (None, 0))(dict(model.named_parameters()), IMAGES)

    # torch.func gives gradients whatever no_grad says, and they count as such.
    assert counted(single) == counted(without_gradients(single)) == (5, 0)


def test_images_count_once_and_not_for_each_layer():
    def act(model):
        model(IMAGES)
        maps = F.max_pool2d(model.conv1(IMAGES[:2]), 2)
        model.conv2(maps)
        model.conv2(maps)

    # conv1 saw 7 images, conv2 9, the others 5.
    assert counted(act) == (9, 0)


def test_largest_batch_is_that_with_gradients():
    model = lenet()
    with Meter(model) as meter:
        model(IMAGES[:3])
        with torch.no_grad():
            model(IMAGES)
    assert meter.consumption.batch == 3


def test_what_no_layer_sees_does_not_count():
    """Functions of one's own on the network's tensors are out of reach of any hook."""
    assert counted(lambda model: F.conv2d(IMAGES, model.conv1.weight)) == (0, 0)
    assert counted(lambda model: lenet()(IMAGES)) == (0, 0)


def test_restored_counting_goes_on_exactly():
    def act(model):
        model(IMAGES)
        model.conv2(torch.zeros(4, 6, 14, 14))
        with torch.no_grad():
            model(IMAGES[:2])

    model = lenet()
    with Meter(model) as whole:
        act(model)
        middle = copy.deepcopy(whole.consumption)
        model(IMAGES)
    with Meter(model) as meter:
        # A resumed method repeats its scores before what was counted is restored.
        act(model)
        meter.restore(middle)
        assert meter.consumption == middle == Consumption(9, 2, batch=5)
        model.conv3(torch.zeros(1, 16, 5, 5))
        assert meter.consumption.training_samples == 10
        meter.restore(middle)
        model.conv2(torch.zeros(5, 6, 14, 14))
    assert meter.consumption == whole.consumption == Consumption(14, 2, batch=5)


def witnessed(act):
    """What the witness was told, as pairs of shape and largest value."""
    model, told = lenet(), []
    with Meter(model, witness=lambda images: told.append((tuple(images.shape), float(images.max())))) as meter:
        act(model, meter)
    return told


def test_witness_sees_what_the_harness_did_not_hand_out():
    def act(model, meter):
        given, other = IMAGES + 1, IMAGES + 2
        meter.admit(given)
        model(given)
        model(other)
        # A changed batch is another one, and so is one that was handed out to nobody.
        model(given + 2)
        model(given)

    assert witnessed(act) == [((5, 1, 32, 32), 2.0), ((5, 1, 32, 32), 3.0)]


def test_batches_handed_out_earlier_stay_admitted():
    def act(model, meter):
        batches = [IMAGES + number for number in range(3)]
        for images in batches:
            meter.admit(images)
        for images in batches:
            model(images)

    assert witnessed(act) == []


def test_admitting_keeps_no_batch_alive():
    def act(model, meter):
        for number in range(20):
            images = IMAGES + number
            meter.admit(images)
            del images
        # Likely at the place in memory of an earlier one.
        for number in range(20):
            model(IMAGES + number)

    assert len(witnessed(act)) == 20


def test_witness_is_not_called_while_paused():
    def act(model, meter):
        with meter.paused():
            model(IMAGES)

    assert witnessed(act) == []


def test_witness_sees_through_transformations():
    def act(model, meter):
        weights = dict(model.named_parameters())
        vmap(lambda image: model(image[None]))(IMAGES + 1)
        grad(lambda weights: functional_call(model, weights, (IMAGES + 2,)).sum())(weights)

    assert witnessed(act) == [((5, 1, 32, 32), 1.0), ((5, 1, 32, 32), 2.0)]


def test_test_images_are_recognised_in_single_image_gradients():
    data = digits()
    images = data.normalise(data.test.images[:6])
    pictures, model = Pictures(data), lenet()
    with Meter(model, witness=pictures.see):
        vmap(grad(lambda image: model(image[None]).sum()))(images)
    assert (pictures.held_out, pictures.foreign) == (6, 6)


# What is opened


@pytest.fixture
def places(tmp_path):
    """A watch over a ledger's folder and its files."""
    (tmp_path / "ledger" / "runs").mkdir(parents=True)
    (tmp_path / "ledger" / "runs" / "record.json").write_text("{}")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "ledger-too").write_text("not the ledger")
    return tmp_path, Watch(
        lenet(), (), Pictures(digits()), {"ledger": [tmp_path / "ledger"], "data": [tmp_path / "data"]}
    )


def reached(places, act):
    root, watch = places
    with watch:
        act(root)
    return sorted(place.replace(str(root.resolve()), "") for place in watch.reached)


RECORD = "ledger: /ledger/runs/record.json"


def by_link(root):
    (root / "link").symlink_to(root / "ledger")
    (root / "link" / "runs" / "record.json").read_text()


def from_within(root):
    before = os.getcwd()
    os.chdir(root / "ledger" / "runs")
    try:
        open("record.json").close()
    finally:
        os.chdir(before)


OPENED = {
    "read": (lambda root: (root / "ledger/runs/record.json").read_text(), [RECORD]),
    "text": (lambda root: open(f"{root}/ledger/runs/record.json").close(), [RECORD]),
    "bytes": (lambda root: open(os.fsencode(root / "ledger/runs/record.json"), "rb").close(), [RECORD]),
    "write": (lambda root: (root / "ledger/new.json").write_text("{}"), ["ledger: /ledger/new.json"]),
    "by the system": (lambda root: os.close(os.open(root / "ledger/runs/record.json", os.O_RDONLY)), [RECORD]),
    "through another folder": (lambda root: open(f"{root}/elsewhere/../ledger/runs/record.json").close(), [RECORD]),
    "by a link": (by_link, [RECORD]),
    "from within": (from_within, [RECORD]),
    "list": (lambda root: os.listdir(root / "ledger"), ["ledger: /ledger"]),
    "glob": (lambda root: list((root / "ledger").glob("*.json")), ["ledger: /ledger"]),
    "look whether it is there": (lambda root: (root / "ledger/runs/record.json").stat(), []),
    "list the folder above": (lambda root: os.listdir(root), []),
    "a similar name": (lambda root: (root / "ledger-too").read_text(), []),
    "elsewhere": (lambda root: (root / "elsewhere/mine.txt").write_text("mine"), []),
    "a descriptor": (lambda root: os.fdopen(os.dup(0)).close(), []),
}


@pytest.mark.parametrize("way", OPENED)
def test_what_is_opened_is_noted_if_it_is_off_limits(places, way):
    act, expected = OPENED[way]
    assert reached(places, act) == expected


def test_files_that_are_not_there_are_noted_too(places):
    def act(root):
        with pytest.raises(FileNotFoundError):
            (root / "data" / "train.bin").read_bytes()

    assert reached(places, act) == ["data: /data/train.bin"]


def test_hosts_and_programs_are_noted(places):
    def act(root):
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", 9), timeout=1)
        subprocess.run(["true"], check=True)
        os.system("exit 0")
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)

    assert reached(places, act) == [
        "host: ('127.0.0.1', 9)",
        "program: exit 0",
        "program: os.fork",
        "program: true",
    ]


def test_other_threads_are_not_the_method(places):
    """Those of the test runner read and write while a method prunes."""

    def act(root):
        thread = threading.Thread(target=(root / "ledger/runs/record.json").read_text)
        thread.start()
        thread.join()

    assert reached(places, act) == []


def test_nothing_is_noted_when_nobody_watches(places):
    root, watch = places
    (root / "ledger/runs/record.json").read_text()
    with watch:
        pass
    (root / "ledger/runs/record.json").read_text()
    with contextlib.suppress(ZeroDivisionError), watch:
        _ = 1 / 0
    (root / "ledger/runs/record.json").read_text()
    assert watch.reached == set()


def test_each_watch_notes_for_itself(places):
    root, outer = places
    inner = Watch(lenet(), (), Pictures(digits()), {"reports": [root / "elsewhere"]})
    with outer:
        with inner:
            os.listdir(root / "elsewhere")
        os.listdir(root / "ledger")
    assert inner.reached == {f"reports: {root / 'elsewhere'}"}
    assert outer.reached == {f"ledger: {root / 'ledger'}"}


# Masked and shrunk


def test_equivalence_of_any_choice_in_any_precision():
    model = lenet()
    kept = {"conv1": [1, 4], "conv2": [0, 7, 15], "conv3": list(range(3, 60))}
    for dtype in (torch.float32, torch.float64):
        assert equivalence(model.to(dtype), Answer(kept, {}), digits()) < 1e-12
    assert equivalence(resnet().train(), Answer({"layer1.0.conv1": [2, 3]}, {}), digits(RESNET)) < 1e-12


def test_equivalence_leaves_the_network_as_it_was():
    model = resnet().train()
    before = digest(model)
    with Meter(model) as meter:
        equivalence(model, Answer({"layer1.0.conv1": [2, 3]}, {}), digits(RESNET))
    assert digest(model) == before and model.training
    assert meter.consumption == Consumption()


def test_hooks_that_a_method_left_do_not_count():
    model = lenet()
    model.conv1.register_forward_hook(lambda module, inputs, output: output + 1)
    model.conv2.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    assert equivalence(model, Answer({"conv1": [0, 1], "conv2": [3]}, {}), digits()) < 1e-12


def networks_with(mixed):
    """LeNet-5's first two layers, with something between them."""

    class Other(type(lenet())):
        def forward(self, images):
            return self.conv2(F.max_pool2d(mixed(self.conv1(images)), 4)).flatten(1)[:, :10]

    model = lenet()
    model.__class__ = Other
    return model


def test_an_activation_that_is_not_zero_at_zero_is_removed_right():
    """Whoever reads the channels gets zeros in the reference, whatever an activation makes of a silent filter."""
    assert equivalence(networks_with(F.softplus), Answer({"conv1": [0, 1]}, {}), digits()) < 1e-12


def test_an_operation_that_mixes_channels_is_told():
    model = networks_with(lambda maps: F.softmax(maps, dim=1))
    assert 1e-3 < equivalence(model, Answer({"conv1": [0, 1]}, {}), digits()) < 1e3


# Repetition, and all of it together


def job(steps=0, model=lenet, workload=LENET, prunable=("conv*",), ratio=0.5, data=None, **changes):
    dense = model()
    recipe = Recipe(steps=steps, lr="0:0.01", batch=16, momentum=0.9)
    made = Job(
        lambda: place(copy.deepcopy(dense), "cpu", "fp32"),
        workload,
        data or digits(workload),
        prunable,
        (),
        ratio,
        recipe,
        0,
    )
    return dataclasses.replace(made, **changes)


def written(folder, body, name="sample", head=""):
    """A method file with this body of ``prune``."""
    path = folder / f"{name}.py"
    lines = "".join(f"        {line}\n" for line in body.splitlines())
    path.write_text(
        f"import os\nimport torch\nfrom pruneaudit import Method\n\n{head}\n\n"
        f'class Sample(Method):\n    """Made for a test."""\n\n    def prune(self, task):\n{lines}'
        "        return {layer.name: task.keep_highest(layer, score(layer)) for layer in task.layers}\n"
        "\n\ndef score(layer):\n    return layer.weight.detach().abs().flatten(1).sum(dim=1)\n",
        encoding="utf-8",
    )
    return MethodSource(name, path=path)


def behaviour(source, task=None, **more):
    return observe(source, task or job(), lambda: "digest", **more).conduct


@pytest.mark.parametrize("steps", [0, 5], ids=["one-shot", "trained"])
def test_an_honest_method(tmp_path, steps):
    source = written(tmp_path, "task.train()")
    pruned = observe(source, job(steps), lambda: "digest")
    conduct = pruned.conduct
    assert conduct.equivalence < 1e-12
    expected = Conduct(
        channels={"conv1": 6, "conv2": 16, "conv3": 120},
        target=shapes.target(LENET, 0.5),
        equivalence=conduct.equivalence,
        replay="same",
        parent_digest_after="digest",
    )
    assert conduct == expected
    assert pruned.consumption.optimiser_steps == steps and pruned.consumption.scoring_samples == 0


# Body of the method, and what is said of its repetition without and with declared steps.
REPEATED = {
    "nothing special": ("task.train()", "same", "same"),
    "own stream": ("task.model.conv1.weight.data[torch.randperm(6, generator=task.generator('a'))[0]] *= 2",)
    + ("same",) * 2,
    "unseeded order": (
        "task.train()\norder = torch.randperm(120)\ntask.model.conv3.weight.data[order[:30]] = 0",
        "other filters",
        "other filters",
    ),
    "unseeded weights": ("task.train()\ntask.model.fc1.bias.data += torch.rand(84)",) + ("other weights",) * 2,
    "undeclared steps": ("task.train(4)", "same", "same"),
    "name of the test": (
        "task.model.fc1.bias.data += len(os.environ.get('PYTEST_CURRENT_TEST', ''))",
        "other weights",
        "other weights",
    ),
    "memory of the instance": (
        "self._calls = getattr(self, '_calls', 0) + 1\ntask.model.fc1.bias.data += self._calls",
        "same",
        "same",
    ),
}


@pytest.mark.parametrize("steps", [0, 5], ids=["one-shot", "trained"])
@pytest.mark.parametrize("kind", REPEATED)
def test_what_a_repetition_is_called(tmp_path, kind, steps):
    body, *said = REPEATED[kind]
    source = written(tmp_path, body, head="_calls = []")
    assert behaviour(source, job(steps)).replay == said[steps > 0]


def test_memory_of_a_module_shows_in_the_next_cell(tmp_path):
    source = written(tmp_path, "_calls.append(1)\ntask.model.fc1.bias.data += len(_calls)", head="_calls = []")
    assert [behaviour(source).replay for _ in range(2)] == ["same", "other weights"]
    # Of a training method only the first steps are repeated, but in the module that has pruned.
    assert behaviour(source, job(5)).replay == "other weights"


@pytest.mark.parametrize("asked", ["", "50", "task.steps, None"])
def test_a_training_method_repeats_two_steps_whatever_it_asks_for(tmp_path, asked):
    body = f"task.train({asked})\nopen({str(tmp_path / 'log')!r}, 'a').write(f'{{task._steps_done}} ')"
    assert behaviour(written(tmp_path, body), job(5)).replay == "same"
    assert (tmp_path / "log").read_text().split() == ["50" if asked == "50" else "5", "2", "2"]


@pytest.mark.parametrize(("noise", "said"), [("0", "same"), ("torch.rand(84)", "other weights")])
def test_a_method_that_trains_until_it_is_content_is_repeated_to_an_end(tmp_path, noise, said):
    body = f"while task._steps_done < 9:\n    task.model.fc1.bias.data += {noise}\n    task.train(1)"
    assert behaviour(written(tmp_path, body), job(5)).replay == said


def test_a_one_shot_method_is_repeated_once(tmp_path):
    body = f"open({str(tmp_path / 'log')!r}, 'a').write('x')"
    behaviour(written(tmp_path, body))
    assert (tmp_path / "log").read_text() == "xx"


@pytest.mark.parametrize("steps", [0, 5], ids=["one-shot", "trained"])
def test_a_method_that_raises_when_it_is_repeated(tmp_path, steps):
    body = f"path = {str(tmp_path / 'once')!r}\nassert not os.path.exists(path), 'only\\nonce'\nopen(path, 'w').close()"
    conduct = behaviour(written(tmp_path, body), job(steps))
    assert (
        conduct.replay.startswith("raised: method 'sample' raised AssertionError: only") and "\n" not in conduct.replay
    )


def test_a_module_that_cannot_be_imported_twice(tmp_path):
    head = f"with open({str(tmp_path / 'once')!r}, 'x'):\n    pass"
    assert behaviour(written(tmp_path, "pass", head=head)).replay.startswith("raised: FileExistsError")


def test_the_name_of_the_test_is_there_again_after_the_repetition(tmp_path):
    name = os.environ["PYTEST_CURRENT_TEST"]
    behaviour(written(tmp_path, "assert not os.environ.get('PYTEST_CURRENT_TEST', '').count('no such test')"))
    assert os.environ["PYTEST_CURRENT_TEST"] == name


def test_repetition_is_neither_metered_nor_watched(tmp_path):
    (tmp_path / "ledger").mkdir()
    log = str(tmp_path / "ledger" / "log")
    source = written(tmp_path, f"for images, _ in task.batches(2):\n    task.model(images)\nopen({log!r}, 'a').close()")
    pruned = observe(source, job(), lambda: "digest", {"ledger": [tmp_path / "ledger"]})
    assert pruned.consumption.training_samples == 32
    assert pruned.conduct.reached == (f"ledger: {log}",)
    assert pruned.conduct.foreign_samples == 0


def test_everything_at_once(tmp_path):
    body = """task.model.conv1.weight.data *= 2
task.model.fc2.bias.data += 1
task.train()
data = task._dataset
with torch.no_grad():
    task.model(data.normalise(data.test.images[:3]))
    task.model(data.normalise(data.train.images[:4]))
task.model.conv2.bias.data += 1"""
    conduct = behaviour(written(tmp_path, body), job(5))
    assert conduct.rewritten == ("conv1.weight", "conv2.bias")
    assert conduct.touched == ("fc2.bias",)
    assert (conduct.held_out_samples, conduct.foreign_samples) == (3, 7)


def test_the_norm_behind_a_pruned_layer_is_its_own(tmp_path):
    body = "task.layers[0].norm.running_mean += 1\ntask.model.bn1.running_mean += 1"
    conduct = behaviour(written(tmp_path, body), job(model=resnet, workload=RESNET, prunable=("layer*.conv1",)))
    assert conduct.rewritten == ("layer1.0.bn1.running_mean",)
    assert conduct.touched == ("bn1.running_mean",)


def test_another_network_is_an_error_that_names_the_tensor(tmp_path):
    with pytest.raises(MethodError, match=r"'sample' left another network than it was given: see 'fc2\.bias'"):
        behaviour(written(tmp_path, "task.model.fc2.bias = None"))


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize("what", ["images", "labels"])
def test_changed_data_are_an_error_and_never_used_again(tmp_path, part, what):
    # Data of its own: those that other tests share stay as they are.
    load.cache_clear()
    data = load(LENET.data)
    # In a way that no counter of torch sees, and hidden behind an error.
    source = written(tmp_path, f"task._dataset.{part}.{what}.numpy()[0] += 1\n1 / 0")
    with pytest.raises(MethodError, match="method 'sample' changed the data that it was given"):
        behaviour(source, job(data=data))
    again = load(LENET.data)
    assert again is not data
    assert not torch.equal(getattr(getattr(again, part), what), getattr(getattr(data, part), what))


def test_other_data_are_an_error(tmp_path):
    source = written(tmp_path, "task._dataset = task._dataset.__class__(**vars(task._dataset))")
    with pytest.raises(MethodError, match="method 'sample' replaced the data that it was given"):
        behaviour(source)


def test_a_method_that_raises_is_watched_no_longer(tmp_path):
    model_job = job()
    with pytest.raises(MethodError, match="method 'sample' raised ZeroDivisionError"):
        behaviour(written(tmp_path, "1 / 0"), model_job, off_limits={"ledger": [tmp_path]})
    from pruneaudit.training import watch

    assert watch._listening == []


@pytest.mark.parametrize("name", ["tpp", "greg-1"])
def test_a_killed_pruning_stage_behaves_as_one_that_was_not(tmp_path, name):
    source = CATALOG.method(name)
    checkpoint = Checkpoint(tmp_path / "state.safetensors", "cpu")

    def kill(done, total, accuracy):
        if done == 2:
            raise Killed

    whole = observe(source, job(12), lambda: "digest")
    with pytest.raises(Killed):
        observe(source, job(12), lambda: "digest", checkpoint=checkpoint, progress=kill)
    again = observe(source, job(12), lambda: "digest", checkpoint=checkpoint)
    assert (whole.resumed, again.resumed) == (0, 2)
    assert again.conduct == whole.conduct and whole.conduct.replay == "same"
    assert again.consumption == whole.consumption
    assert digest(again.model) == digest(whole.model) and again.answer == whole.answer


def test_changes_before_a_training_are_seen_again_after_a_kill(tmp_path):
    source = written(tmp_path, "task.model.conv1.weight.data *= 2\ntask.train()\ntask.model.fc2.bias.data += 1")
    checkpoint = Checkpoint(tmp_path / "state.safetensors", "cpu")

    def kill(done, total, accuracy):
        raise Killed

    whole = behaviour(source, job(12))
    with pytest.raises(Killed):
        behaviour(source, job(12), checkpoint=checkpoint, progress=kill)
    again = behaviour(source, job(12), checkpoint=checkpoint)
    assert (again.rewritten, again.touched) == (whole.rewritten, whole.touched) == (("conv1.weight",), ("fc2.bias",))


# Two counters of MACs


@pytest.mark.parametrize("name", MODELS)
def test_both_counters_of_macs_agree(name):
    model = build(name, 3, 10).train()
    example = torch.zeros(1, 3, 8, 8) if name == "vit" else torch.zeros(1, 3, 32, 32)
    if name == "llama":
        example = torch.zeros(1, 64, dtype=torch.int64)
    assert macs(model, example) == macs_by_torch(model, example) > 1e5
    assert model.training
    assert macs_by_torch(model.double(), example) == macs(model, example)


def test_both_counters_agree_on_a_shrunk_network():
    from pruneaudit.pruning.removal import shrink

    model = build("resnet20", 1, 10)
    layers = prunable_layers(model, torch.zeros(1, 1, 8, 8), ("layer*.conv1",))
    small = shrink(
        model, {layer.name: range(1 + number) for number, layer in enumerate(layers)}, torch.zeros(1, 1, 8, 8)
    )
    example = torch.zeros(1, 1, 8, 8)
    assert macs(small, example) == macs_by_torch(small, example) < macs(model, example)


def test_a_method_that_is_repeated_sees_its_whole_budget(tmp_path):
    body = "growing = range(0, task.steps, task.steps // 5)\ntask.train(len(growing))"
    assert behaviour(written(tmp_path, body), job(5)).replay == "same"


def test_a_data_root_is_off_limits_where_datasets_lie_only(tmp_path):
    places = stored_at(tmp_path)
    assert tmp_path not in places and tmp_path / "MNIST" in places
    assert [place for place in stored_at(None) if place.is_dir()] == stored_at(None)
