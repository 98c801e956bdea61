"""Workloads that repeat published configurations: sizes, shapes and recipes; and ImageNet, which some of them need."""

import math
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pruneaudit.catalog.discovery import Catalog
from pruneaudit.errors import ConfigError, DataMissingError, MethodError
from pruneaudit.method.conformance import check
from pruneaudit.pruning import shapes
from pruneaudit.pruning.layers import prunable_names
from pruneaudit.pruning.removal import masked, shrink
from pruneaudit.streams import generator
from pruneaudit.training.runtime import Runtime
from pruneaudit.workloads.data import DATA_VARIABLE, Streamed, builtin, facts, load, stored_at
from pruneaudit.workloads.data.brought import find
from pruneaudit.workloads.models import build
from pruneaudit.workloads.models.initialise import initialise
from pruneaudit.workloads.schema import DataConfig

torch.set_num_threads(1)

CATALOG = Catalog()

# Parameters and MACs of Liu et al. 2019, Table 1: dense, pruned.
LIU = {
    "liu-vgg16-a-cifar10": ((14_987_722, 313_463_808), (5_397_034, 206_279_680)),
    "liu-resnet56-a-cifar10": ((853_018, 125_485_696), (773_336, 112_435_840)),
    "liu-resnet56-b-cifar10": ((853_018, 125_485_696), (735_712, 90_907_264)),
    "liu-resnet110-a-cifar10": ((1_727_962, 252_887_680), (1_688_522, 212_779_648)),
    "liu-resnet110-b-cifar10": ((1_727_962, 252_887_680), (1_168_424, 155_124_352)),
    "liu-resnet34-a-imagenet": ((21_797_672, 3_663_761_408), (20_151_764, 3_100_184_576)),
    "liu-resnet34-b-imagenet": ((21_797_672, 3_663_761_408), (19_469_372, 2_782_269_440)),
}
# Epochs of Scratch-B; the two on ImageNet are below the cap of twice the epochs.
SCRATCH_B = {
    "liu-vgg16-a-cifar10": (243, "0:0.1,121:0.01,182:0.001"),
    "liu-resnet56-a-cifar10": (178, "0:0.1,89:0.01,133:0.001"),
    "liu-resnet56-b-cifar10": (220, "0:0.1,110:0.01,165:0.001"),
    "liu-resnet110-a-cifar10": (190, "0:0.1,95:0.01,142:0.001"),
    "liu-resnet110-b-cifar10": (260, "0:0.1,130:0.01,195:0.001"),
    "liu-resnet34-a-imagenet": (106, "0:0.1,35:0.01,70:0.001"),
    "liu-resnet34-b-imagenet": (118, "0:0.1,39:0.01,78:0.001"),
}
# Speedups of GReg and TPP.
GREG = {
    "greg-resnet34-imagenet": ((0.241, 1.317),),
    "greg-resnet50-imagenet": ((0.329, 1.489), (0.567, 2.308), (0.61, 2.564), (0.674, 3.063)),
    "greg-resnet56-cifar10": ((0.609, 2.555),),
    "resnet34-imagenet": ((0.241, 1.317),),
    "resnet50-imagenet": ((0.329, 1.489), (0.567, 2.308), (0.61, 2.564), (0.674, 3.063)),
}
LABELLED = [*LIU, *GREG]
SFP = {20: (0.1, 0.2, 0.3), 32: (0.1, 0.2, 0.3), 56: (0.1, 0.2, 0.3, 0.4), 110: (0.1, 0.2, 0.3)}


def sizes(shape):
    return shape.params, shape.macs


def all_widths(workload, ratio):
    """Filters of every layer that the published numbering counts (no shortcut), in order."""
    pruned = shapes.widths_at(workload, ratio)
    return [
        pruned.get(name, module.weight.shape[0])
        for name, module in shapes.dense_network(workload).named_modules()
        if isinstance(module, nn.Conv2d) and "downsample" not in name
    ]


# Sizes


@pytest.mark.parametrize("name", LIU)
def test_sizes_of_liu(name):
    workload = CATALOG.workload(name)
    (ratio,) = workload.ratios
    assert (sizes(shapes.shape(workload)), sizes(shapes.shape(workload, ratio))) == LIU[name]


@pytest.mark.parametrize("name", LIU)
def test_scratch_b_trains_as_long_as_theirs(name):
    workload = CATALOG.workload(name)
    arm = CATALOG.method("scratch-b").create()
    recipe = arm.recipe(workload, shapes.speedup(workload, workload.ratios[0]))
    assert (recipe.epochs, recipe.lr) == SCRATCH_B[name]


@pytest.mark.parametrize("name", GREG)
def test_speedups_of_greg(name):
    workload = CATALOG.workload(name)
    assert workload.ratios == tuple(ratio for ratio, _ in GREG[name])
    for ratio, speedup in GREG[name]:
        assert round(shapes.speedup(workload, ratio), 3) == speedup


@pytest.mark.parametrize("name", LABELLED)
def test_a_ratio_that_is_a_label_says_what_share_of_macs_goes(name):
    workload = CATALOG.workload(name)
    assert {ratio for ratio, _ in workload.layer_ratios} == set(workload.ratios)
    for ratio in workload.ratios:
        assert round(1 - 1 / shapes.speedup(workload, ratio), 3) == ratio


# Theirs remove floor(share · N) + 1 filters: the threshold is an element, and what is not above it goes. Ours remove as
# many, but for one filter where share · N is whole.
@pytest.mark.parametrize(
    ("name", "params", "removed"), [("cifar10", 20_035_018, 3853), ("cifar100", 20_081_188, 2753 - 1)]
)
def test_slimming_asks_for_a_share_of_all_filters(name, params, removed):
    workload = CATALOG.workload(f"slimming-vgg19-{name}")
    assert shapes.shape(workload).params == params
    known = shapes.costs(workload)
    assert len(known.filters) == 16 and sum(known.filters.values()) == 5504
    assert shapes.target(workload, workload.ratios[0], scope="global").share == 5504 - removed
    assert shapes.target(workload, workload.ratios[0], scope="layerwise").share is None


# Shapes


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("liu-vgg16-a-cifar10", [32, 64, 128, 128, *[256] * 9]),
        (
            "liu-resnet34-a-imagenet",
            {1: [64, 44, 44], 2: [128, 89, 89, 128], 3: [256, 179, 179, 179, 179, 256], 4: [512] * 3},
        ),
        (
            "liu-resnet34-b-imagenet",
            {1: [64, 32, 32], 2: [128, 51, 51, 128], 3: [256, 153, 153, 153, 153, 256], 4: [512] * 3},
        ),
    ],
)
def test_widths_of_liu(name, widths):
    workload = CATALOG.workload(name)
    found = all_widths(workload, workload.ratios[0])
    if isinstance(widths, dict):
        # The stem, then a first and a second convolution for each block; the second ones stay as they are.
        expected = [64]
        for stage, firsts in widths.items():
            for first in firsts:
                expected += [first, 32 * 2**stage]
        widths = expected
    assert found == widths


@pytest.mark.parametrize(
    ("name", "ends", "keeps", "skip"),
    [
        ("liu-resnet56-a-cifar10", (18, 36, 54), (0.9, 0.9, 0.9), {16, 20, 38, 54}),
        ("liu-resnet56-b-cifar10", (18, 36, 54), (0.4, 0.7, 0.9), {16, 18, 20, 34, 38, 54}),
        ("liu-resnet110-a-cifar10", (36, 72, 108), (0.5, 1, 1), {36}),
        ("liu-resnet110-b-cifar10", (36, 72, 108), (0.5, 0.6, 0.7), {36, 38, 74}),
        ("liu-resnet34-a-imagenet", (6, 14, 26, 32), (0.7, 0.7, 0.7, 1), {2, 8, 14, 16, 26, 28, 30, 32}),
        ("liu-resnet34-b-imagenet", (6, 14, 26, 32), (0.5, 0.4, 0.6, 1), {2, 8, 14, 16, 26, 28, 30, 32}),
        ("greg-resnet34-imagenet", (6, 14, 26, 32), (0.5, 0.4, 0.6, 1), {2, 8, 14, 16, 26, 28, 30, 32}),
    ],
)
def test_skipped_layers_are_those_that_the_papers_number(name, ends, keeps, skip):
    """Convolutions in order from 1, the stem: even ones open blocks; rates by stage, floor of what stays."""
    workload = CATALOG.workload(name)
    (ratio,) = workload.ratios
    dense = all_widths(workload.model_copy(update={"layer_ratios": ((ratio, (("*", 0.0),)),)}), ratio)
    expected = list(dense)
    for place, width in enumerate(dense, start=1):
        stage = next((number for number, end in enumerate(ends) if place <= end), None)
        if place % 2 == 0 and place not in skip and stage is not None:
            expected[place - 1] = math.floor(width * keeps[stage] + 1e-9)
    assert all_widths(workload, ratio) == expected


@pytest.mark.parametrize("depth", SFP)
def test_rates_of_soft_filter_pruning(depth):
    workload = CATALOG.workload(f"sfp-resnet{depth}-cifar10")
    assert workload.ratios == SFP[depth] and not workload.layer_ratios
    names = prunable_names(shapes.dense_network(workload), workload.prunable)
    assert len(names) == (depth - 2) // 2
    for ratio in workload.ratios:
        kept = {math.floor(width * (1 - ratio) + 1e-9) for width in (16, 32, 64)}
        assert set(shapes.widths_at(workload, ratio).values()) == kept


# Removal


def random_network(name):
    """A small input's network in float64 with random weights and random statistics, as after training."""
    model = build(name, 3, 10).double()
    draw = generator(0, "test")
    initialise(model, draw)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=draw)
                module.bias.uniform_(-1, 1, generator=draw)
                module.running_mean.uniform_(-1, 1, generator=draw)
                module.running_var.uniform_(0.5, 2, generator=draw)
    return model.eval()


@pytest.mark.parametrize("name", ["liu-vgg16-a-cifar10", "liu-resnet34-b-imagenet", "greg-resnet50-imagenet"])
def test_the_shrunk_network_computes_what_the_masked_one_computes(name):
    workload = CATALOG.workload(name)
    model = random_network(workload.model)
    draw = torch.Generator().manual_seed(1)
    kept = {}
    for layer, width in shapes.widths_at(workload, workload.ratios[-1]).items():
        count = model.get_parameter(f"{layer}.weight").shape[0]
        kept[layer] = sorted(torch.randperm(count, generator=draw)[:width].tolist())
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=draw)
    small = shrink(model, kept, images[:1])
    with torch.no_grad():
        expected = masked(model, kept, images[:1])(images)
        assert torch.allclose(small(images), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    assert all(len(small.get_parameter(f"{layer}.weight")) == len(stay) for layer, stay in kept.items())


@pytest.mark.parametrize("name", ["liu-vgg16-a-cifar10", "liu-resnet34-b-imagenet", "greg-resnet50-imagenet"])
def test_costs_know_what_a_counted_network_costs(name):
    """Also where a pruned layer reads from a pruned layer, as within a bottleneck."""
    workload = CATALOG.workload(name)
    for ratio in workload.ratios:
        widths = shapes.widths_at(workload, ratio)
        assert shapes.costs(workload).of_widths(widths) == shapes.shape(workload, ratio).macs


@pytest.mark.parametrize(("model", "layer"), [("resnet34", "layer1.0.conv2"), ("resnet50", "layer2.1.conv3")])
def test_layers_on_the_residual_stream_cannot_be_pruned_alone(model, layer):
    network = build(model, 3, 10)
    filters = len(network.get_parameter(f"{layer}.weight"))
    with pytest.raises(MethodError, match=f"'{layer}' cannot be pruned alone: it shares its channels with"):
        shrink(network, {layer: range(1, filters)}, torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("name", ["liu-vgg16-a-cifar10", "greg-resnet50-imagenet"])
@pytest.mark.parametrize("method", ["l1", "l1-global"])
@pytest.mark.parametrize("what", ["meets-target", "masked-equals-shrunk", "leaves-weights"])
def test_methods_keep_their_contract_on_published_shapes(name, method, what, monkeypatch):
    """On the embedded digits: the wiring and the shares are the same, whatever the images."""
    workload = CATALOG.workload(name)
    changes = {"data": CATALOG.workload("lenet5-digits").data, "ratios": workload.ratios[-1:]}
    monkeypatch.setitem(CATALOG.workloads, name, workload.model_copy(update=changes))
    check(what, CATALOG, method, name, Runtime("cpu"))


# Models


def test_public_checkpoints_of_torchvision_fit():
    from torchvision.models import resnet34

    theirs = resnet34(weights=None)
    ours = build("resnet34", 3, 1000)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours.eval()(images), theirs.eval()(images))


def test_an_imagenet_network_takes_other_images():
    assert build("resnet34", 1, 7).eval()(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


def test_initialisation_resets_the_normalisation_of_a_hidden_layer():
    model = build("vgg16-li", 3, 10)
    norm = model.classifier[1]
    assert isinstance(norm, nn.BatchNorm1d)
    nn.init.constant_(norm.weight, 7)
    nn.init.constant_(norm.bias, 7)
    norm.running_var.fill_(3)
    initialise(model, generator(0, "initialise"))
    assert torch.equal(norm.weight, torch.ones(512)) and not norm.bias.any()
    assert torch.equal(norm.running_var, torch.ones(512))


# Recipes


@pytest.mark.parametrize("name", [name for name in CATALOG.workloads if name.startswith(("liu-", "slimming-"))])
def test_recipes_of_liu(name):
    workload = CATALOG.workload(name)
    imagenet = name.endswith("imagenet")
    length = (90, "0:0.1,30:0.01,60:0.001") if imagenet else (160, "0:0.1,80:0.01,120:0.001")
    assert (workload.pretrain.epochs, workload.pretrain.lr) == (workload.scratch.epochs, workload.scratch.lr) == length
    assert (workload.retrain.epochs, workload.retrain.lr) == (20 if imagenet else 40, "0:0.001")
    assert workload.seeds == ((0, 1, 2) if imagenet else (0, 1, 2, 3, 4))
    for recipe in (workload.pretrain, workload.prune, workload.retrain, workload.scratch):
        assert (recipe.batch, recipe.momentum, recipe.weight_decay) == (256 if imagenet else 64, 0.9, 1e-4)
        assert not recipe.nesterov


@pytest.mark.parametrize("depth", SFP)
def test_recipes_of_soft_filter_pruning(depth):
    workload = CATALOG.workload(f"sfp-resnet{depth}-cifar10")
    assert (workload.pretrain.epochs, workload.scratch.epochs) == (200, 200)
    rates = {epoch: workload.pretrain.rate(epoch, 0) for epoch in (0, 1, 59, 60, 119, 120, 159, 160, 199)}
    # 0.01 times 10, 0.2, 0.2, 0.2, from epochs 1, 60, 120 and 160.
    assert list(rates.values()) == [0.01, 0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008]
    recipe = workload.scratch
    assert (recipe.batch, recipe.momentum, recipe.weight_decay, recipe.nesterov) == (128, 0.9, 5e-4, True)


@pytest.mark.parametrize("name", [*LIU, *GREG])
def test_pruning_lasts_as_long_as_its_comment_says(name):
    workload = CATALOG.workload(name)
    if name.endswith("imagenet"):
        assert workload.prune.steps == 90_000
        return
    usual = CATALOG.workload("resnet56-cifar10")

    def length(job):
        per_epoch = math.ceil(facts(job.data).train / job.prune.batch)
        return job.prune.steps / (job.pretrain.epochs * per_epoch)

    assert length(workload) == length(usual)


# ImageNet


IMAGENET = DataConfig(name="imagenet", size=28, mean=(0.5,) * 3, std=(0.5,) * 3, validation=2)
PICTURES = {"train": {"n01": 4, "n02": 3}, "val": {"n01": 2, "n02": 1}}


def picture(number):
    """Random pixels, no two numbers alike; every second one upright."""
    height, width = (40, 60) if number % 2 else (60, 40)
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8))


def unpack(root, pictures=PICTURES):
    """A tiny ImageNet below a data root: lossless files under the usual ending."""
    number = 0
    for split, classes in pictures.items():
        for label, count in classes.items():
            folder = root / "imagenet" / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                picture(number).save(folder / f"{index}.JPEG", format="PNG")
                number += 1


@pytest.fixture
def tiny(monkeypatch):
    """Facts of the tiny ImageNet in place of the real ones; a thread reads three of its files."""
    monkeypatch.setitem(builtin.STORED, "imagenet", (3, 224, 2, 7, 3))
    monkeypatch.setattr(builtin, "_FILES_OF_A_THREAD", 3)


def centre(number):
    """What should be kept of a picture: the middle 28 pixels once its shorter side has 32, as 224 of 256."""
    image = picture(number)
    image = image.resize((48, 32) if number % 2 else (32, 48), Image.Resampling.BILINEAR)
    left, top = (image.width - 28) // 2, (image.height - 28) // 2
    return np.asarray(image.crop((left, top, left + 28, top + 28)))


def test_imagenet_is_known_without_its_files():
    known = facts(CATALOG.workload("greg-resnet50-imagenet").data)
    assert (known.channels, known.height, known.classes) == (3, 224, 1000)
    assert (known.train + known.validation, known.validation, known.test) == (1_281_167, 50_000, 50_000)
    assert shapes.example(CATALOG.workload("greg-resnet50-imagenet")).shape == (1, 3, 224, 224)


def test_imagenet_is_read_from_folders(tmp_path, tiny):
    unpack(tmp_path)
    dataset = load(IMAGENET, tmp_path)
    known = facts(IMAGENET)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (5, 2, 3)
    assert (known.train, known.validation, known.test) == (5, 2, 3)
    assert (dataset.channels, dataset.height, dataset.classes) == (3, 28, 2)
    # Both parts of the training folder together are all of its images, each with the label of its folder.
    found = {
        (image.numpy().tobytes(), int(label))
        for part in (dataset.train, dataset.validation)
        for image, label in zip(part.images, part.labels, strict=True)
    }
    assert found == {(centre(number).tobytes(), int(number >= 4)) for number in range(7)}
    assert np.array_equal(dataset.test.images.numpy(), np.stack([centre(number) for number in (7, 8, 9)]))
    assert dataset.test.labels.tolist() == [0, 0, 1]
    images, _ = next(dataset.batches(0, "retrain", 0, 4))
    assert images.shape == (4, 3, 28, 28)


def test_imagenet_as_papers_train_on_it_is_streamed(tmp_path, tiny, monkeypatch):
    """Crops of random sizes of its files, all of its test images, and no more of it than a batch in memory."""
    monkeypatch.setenv("PRUNEAUDIT_CACHE", str(tmp_path / "cache"))
    unpack(tmp_path)
    config = CATALOG.workload("resnet50-imagenet").data.model_copy(update={"validation": 2})
    known = facts(config)
    dataset = load(config, tmp_path)
    assert (known.train, known.validation, known.test, known.shape) == (5, 2, 3, (3, 224, 224))
    assert isinstance(dataset.train, Streamed) and (len(dataset.train), len(dataset.test)) == (5, 3)
    image = picture(7)
    image = image.resize((384, 256) if image.width > image.height else (256, 384), Image.Resampling.BILINEAR)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    assert np.array_equal(dataset.test.images[0].numpy(), np.asarray(image.crop((left, top, left + 224, top + 224))))
    whole = torch.cat([images for images, _ in dataset.batches(0, "retrain", 0, 2)])
    later = torch.cat([images for images, _ in dataset.batches(0, "retrain", 0, 2, start=1)])
    assert whole.shape == (5, 3, 224, 224) and torch.equal(later, whole[2:])
    assert dataset.pipeline.startswith("pil ") and tmp_path / "cache" in stored_at(tmp_path, config)
    monkeypatch.setitem(builtin.STORED, "imagenet", (3, 224, 2, 8, 3))
    load.cache_clear(), find.cache_clear()
    assert "which is not the whole ImageNet" in refusal(DataMissingError, config, tmp_path)


def test_grey_pictures_get_three_channels(tmp_path, tiny):
    unpack(tmp_path)
    Image.new("L", (50, 40), 77).save(tmp_path / "imagenet" / "val" / "n02" / "0.JPEG", format="PNG")
    assert torch.equal(load(IMAGENET, tmp_path).test.images[2], torch.full((28, 28, 3), 77, dtype=torch.uint8))


def refusal(kind, config, root):
    with pytest.raises(kind) as caught:
        load(config, root)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_missing_imagenet_says_how_to_unpack_it(tmp_path):
    assert DATA_VARIABLE in refusal(DataMissingError, IMAGENET, None)
    message = refusal(DataMissingError, IMAGENET, tmp_path)
    assert f"is not in {tmp_path}" in message and "imagenet/train/CLASS/*.JPEG" in message
    (tmp_path / "imagenet" / "train" / "n01").mkdir(parents=True)
    assert "is not in" in refusal(DataMissingError, IMAGENET, tmp_path), "a class without pictures"


def test_a_part_of_imagenet_is_told_from_the_whole(tmp_path, tiny, monkeypatch):
    unpack(tmp_path)
    monkeypatch.setitem(builtin.STORED, "imagenet", (3, 224, 1000, 1_281_167, 50_000))
    message = refusal(DataMissingError, IMAGENET, tmp_path)
    assert "2 classes with 7 training and 3 test images" in message
    assert "1000 classes with 1281167 training and 50000 test images" in message


def test_classes_must_be_the_same_in_both_folders(tmp_path, tiny):
    unpack(tmp_path, {"train": PICTURES["train"], "val": {"n01": 2, "n03": 1}})
    assert "classes" in refusal(DataMissingError, IMAGENET, tmp_path)


@pytest.mark.parametrize(("pad", "needed"), [(0, 2 * 7 + 3), (14, 7 + 3 + 4 * 7)])
def test_imagenet_that_does_not_fit_is_refused_before_it_is_read(tmp_path, tiny, monkeypatch, pad, needed):
    unpack(tmp_path)
    config = IMAGENET.model_copy(update={"pad": pad})
    memory = needed * 3 * 28 * 28
    with monkeypatch.context() as small:
        small.setattr(os, "sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": memory - 1}.__getitem__)
        small.setattr(builtin, "_centres", lambda *_: pytest.fail("read all the same"))
        message = refusal(ConfigError, config, tmp_path)
    assert "ImageNet at 28 pixels" in message and "data.size" in message
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": memory}.__getitem__)
    assert len(load(config, tmp_path).train) == 5


def test_imagenet_is_off_limits_to_methods(tmp_path):
    assert tmp_path / "imagenet" in stored_at(tmp_path)
