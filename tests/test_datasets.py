"""Splits, batches and augmentation."""

import dataclasses
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from pruneaudit.catalog.discovery import Catalog
from pruneaudit.errors import ConfigError, DataMissingError
from pruneaudit.streams import generator
from pruneaudit.workloads.data import DATA_VARIABLE, Dataset, Part, data_root, facts, load
from pruneaudit.workloads.data import dataset as dataset_module
from pruneaudit.workloads.schema import DataConfig

torch.set_num_threads(1)

DIGITS = DataConfig(name="digits", mean=(0.3,), std=(0.4,))


def noise_dataset(images=12, side=6, pad=2, flip=True, channels=3):
    """Images of random pixels, no two alike, labelled by their number."""
    draw = torch.Generator().manual_seed(3)
    # No zero pixel: the padding is then recognisable.
    pixels = torch.randint(1, 256, (images, side, side, channels), dtype=torch.uint8, generator=draw)
    part = Part(pixels, torch.arange(images))
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.25, 0.3)[:channels]
    config = DataConfig(name="noise", mean=mean, std=std, pad=pad, flip=flip)
    return Dataset(config, images, part, part, part, "noise")


def epoch_of(dataset, seed=0, stream="retrain", epoch=0, batch=5):
    """One pass, joined: images and labels."""
    images, labels = zip(*dataset.batches(seed, stream, epoch, batch, torch.float64), strict=True)
    return torch.cat(images), torch.cat(labels)


def pixels_of(dataset, images):
    """Undo the normalisation: uint8 ``[N, H, W, C]``."""
    mean = torch.tensor(dataset.config.mean, dtype=torch.float64)
    std = torch.tensor(dataset.config.std, dtype=torch.float64)
    return ((images.permute(0, 2, 3, 1) * std + mean) * 255).round().to(torch.uint8)


def first_batch_digest(dataset, batch):
    images, labels = next(dataset.batches(0, "retrain", 0, batch, torch.float64))
    content = hashlib.sha256(pixels_of(dataset, images).contiguous().numpy().tobytes())
    content.update(labels.numpy().tobytes())
    return content.hexdigest()


# The digits split


def test_digits_sizes_and_golden_digest():
    digits = load(DIGITS)
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (1079, 359, 359)
    assert digits.split_digest == "af24ab657ac96263ad10c7f41169e1621b28f968b8209c2f8beb5e81e272b5dd"
    assert digits.train.images.shape == (1079, 8, 8, 1) and digits.train.images.dtype == torch.uint8
    assert (digits.channels, digits.height, digits.classes) == (1, 8, 10)
    assert digits.example().shape == (1, 1, 8, 8)


def test_digits_parts_are_disjoint_and_complete():
    digits = load(DIGITS)
    bunch = load_digits()
    stored = Counter(
        (np.rint(image * 255 / 16).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(bunch.images, bunch.target, strict=True)
    )
    split = Counter()
    for part in (digits.train, digits.validation, digits.test):
        split.update(
            (image.numpy().tobytes(), int(label)) for image, label in zip(part.images, part.labels, strict=True)
        )
    assert split == stored


def test_digits_split_is_stratified():
    digits = load(DIGITS)
    stored = np.bincount(load_digits().target)
    test = torch.bincount(digits.test.labels).numpy()
    assert np.all(np.abs(test - stored * 359 / 1797) < 1)
    rest = stored - test
    validation = torch.bincount(digits.validation.labels).numpy()
    assert np.all(np.abs(validation - rest * 359 / 1438) < 1)


def test_validation_size_can_be_chosen():
    smaller = load(DIGITS.model_copy(update={"validation": 100}))
    assert (len(smaller.train), len(smaller.validation), len(smaller.test)) == (1338, 100, 359)
    assert smaller.test.digest == load(DIGITS).test.digest, "the test part does not depend on it"


def test_validation_larger_than_the_data_is_refused():
    with pytest.raises(ConfigError, match="validation"):
        load(DIGITS.model_copy(update={"validation": 5000}))


@pytest.mark.parametrize("change", [{}, {"size": 32}, {"validation": 200}])
def test_facts_agree_with_what_is_loaded(change):
    config = DIGITS.model_copy(update=change)
    known, loaded = facts(config), load(config)
    assert (known.channels, known.height, known.classes) == (loaded.channels, loaded.height, loaded.classes)
    assert (known.train, known.validation, known.test) == (len(loaded.train), len(loaded.validation), len(loaded.test))


def test_data_are_held_once_however_they_are_asked_for():
    data = load(DIGITS)
    assert load(DIGITS, None, False) is load(DIGITS, download=False, device="cpu") is load(config=DIGITS) is data
    load.cache_clear()
    assert load(DIGITS) is not data


def test_resize_is_one_pil_bilinear():
    digits, large = load(DIGITS), load(DIGITS.model_copy(update={"size": 32}))
    for index in (0, 500, 1078):
        small = Image.fromarray(digits.train.images[index, :, :, 0].numpy())
        expected = np.asarray(small.resize((32, 32), Image.Resampling.BILINEAR))
        assert np.array_equal(large.train.images[index, :, :, 0].numpy(), expected)
    assert torch.equal(digits.train.labels, large.train.labels)
    assert large.split_digest == "0db3bd0c010af89e724233a1444daf6dc750d6d1918861881efd5296608b3ac7"


def test_digests_see_every_pixel_and_label():
    part = load(DIGITS).validation
    other = Part(part.images.clone(), part.labels.clone())
    assert other.digest == part.digest
    other.images[-1, -1, -1, 0] ^= 1
    assert other.digest != part.digest
    other.images[-1, -1, -1, 0] ^= 1
    other.labels[0] += 1
    assert other.digest != part.digest


# What is wrong or absent


def test_unknown_dataset_names_the_nearest():
    config = DataConfig(name="cifar", mean=(0.5,) * 3, std=(0.5,) * 3)
    for call in (facts, load):
        with pytest.raises(ConfigError, match=r"unknown dataset 'cifar'\. Did you mean 'cifar10'\?"):
            call(config)


@pytest.mark.parametrize("change", [{"mean": (0.1, 0.2)}, {"std": (0.1, 0.2)}, {"mean": (0.1,) * 3, "std": (0.1,) * 3}])
def test_statistics_of_the_wrong_length(change):
    with pytest.raises(ConfigError, match=r"data\.mean and data\.std of digits need 1 values each"):
        load(DIGITS.model_copy(update=change))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fmnist"])
def test_missing_data_says_how_to_get_it(name, tmp_path):
    channels = facts(DataConfig(name=name, mean=(), std=())).channels
    config = DataConfig(name=name, mean=(0.5,) * channels, std=(0.5,) * channels)
    with pytest.raises(DataMissingError) as caught:
        load(config)
    assert "--audit-data-root DIR --audit-download" in str(caught.value) and DATA_VARIABLE in str(caught.value)
    with pytest.raises(DataMissingError) as caught:
        load(config, tmp_path)
    assert f"is not in {tmp_path}" in str(caught.value) and "--audit-download" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir()), "asking must leave nothing behind"


def test_data_root_prefers_the_option(monkeypatch):
    monkeypatch.setenv(DATA_VARIABLE, "from-variable")
    assert data_root(None) == Path("from-variable")
    assert data_root("from-option") == Path("from-option")
    monkeypatch.delenv(DATA_VARIABLE)
    assert data_root(None) is None


# Batches


def test_a_pass_shows_every_image_once():
    dataset = noise_dataset()
    sizes = [len(labels) for _, labels in dataset.batches(0, "retrain", 0, 5)]
    assert sizes == [5, 5, 2]
    _, labels = epoch_of(dataset)
    assert sorted(labels.tolist()) == list(range(12))


def test_batches_depend_on_seed_stream_and_epoch_only():
    dataset = noise_dataset()
    images, labels = epoch_of(dataset, 7, "retrain", 3)
    torch.manual_seed(99)
    torch.rand(10)
    epoch_of(dataset, 1, "prune", 0)
    again, labels_again = epoch_of(noise_dataset(), 7, "retrain", 3, batch=4)
    assert torch.equal(labels, labels_again) and torch.equal(images, again)
    for other in ((8, "retrain", 3), (7, "prune", 3), (7, "retrain", 4)):
        images_other, labels_other = epoch_of(dataset, *other)
        assert not torch.equal(labels, labels_other)
        assert not torch.equal(images, images_other)


def test_batches_leave_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    epoch_of(noise_dataset())
    assert torch.equal(torch.get_rng_state(), before)


def test_normalisation():
    dataset = noise_dataset()
    pixels = dataset.train.images
    normal = dataset.normalise(pixels, torch.float64)
    mean = torch.tensor(dataset.config.mean, dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor(dataset.config.std, dtype=torch.float64).view(3, 1, 1)
    expected = (pixels.permute(0, 3, 1, 2).double() / 255 - mean) / std
    assert torch.allclose(normal, expected, rtol=0, atol=1e-14)
    assert dataset.normalise(pixels).dtype == torch.float32
    assert torch.equal(pixels_of(dataset, normal), pixels)


@pytest.mark.parametrize("at_hand", [1, 5 * 108, 1 << 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_normalising_part_by_part_has_the_bits_of_all_at_once(monkeypatch, at_hand, dtype):
    monkeypatch.setattr(dataset_module, "_AT_HAND", at_hand)
    dataset = noise_dataset()
    # Crops of larger images, whose rows do not lie side by side.
    for pixels in (dataset.train.images, dataset.train.images[:, 1:, 2:], dataset.train.images[:0]):
        mean, std = (torch.tensor(values, dtype=dtype) for values in (dataset.config.mean, dataset.config.std))
        expected = ((pixels.to(dtype) - mean * 255) * (1 / (std * 255))).permute(0, 3, 1, 2)
        found = dataset.normalise(pixels, dtype)
        assert torch.equal(found, expected)
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_without_augmentation_images_are_as_stored():
    dataset = noise_dataset(pad=0, flip=False)
    images, labels = epoch_of(dataset)
    assert torch.equal(images, dataset.normalise(dataset.train.images[labels], torch.float64))


def crops(dataset, index):
    """Every crop of an image as torchvision makes it: pad, crop, flip, then scale and normalise. By offset and flip."""
    pad, side = dataset.config.pad, dataset.height
    image = TF.pad(dataset.train.images[index].permute(2, 0, 1), [pad] * 4)
    found = {}
    for top in range(2 * pad + 1):
        for left in range(2 * pad + 1):
            for flip in (False, True) if dataset.config.flip else (False,):
                crop = TF.crop(image, top, left, side, side)
                crop = TF.hflip(crop) if flip else crop
                found[top, left, flip] = TF.normalize(crop.double() / 255, dataset.config.mean, dataset.config.std)
    return found


@pytest.mark.parametrize(("pad", "flip"), [(2, True), (2, False), (0, True), (1, True)])
def test_augmented_images_are_torchvisions_crops(pad, flip):
    dataset = noise_dataset(pad=pad, flip=flip)
    possible = [crops(dataset, index) for index in range(len(dataset.train))]
    drawn = Counter()
    for epoch in range(40):
        images, labels = epoch_of(dataset, epoch=epoch)
        for image, label in zip(images, labels.tolist(), strict=True):
            matches = [key for key, crop in possible[label].items() if torch.allclose(image, crop, rtol=0, atol=1e-13)]
            assert len(matches) == 1
            drawn[matches[0]] += 1
    # Every offset and both directions occur, about equally often.
    assert set(drawn) == set(possible[0])
    if flip:
        flipped = sum(count for (_, _, mirrored), count in drawn.items() if mirrored)
        assert 0.42 < flipped / drawn.total() < 0.58


def gathered(dataset, seed, stream, epoch):
    """The images of a pass as they were first written: every pixel is looked up, and its channels normalised."""
    count, pad, side = len(dataset.train), dataset.config.pad, dataset.height
    order = torch.randperm(count, generator=generator(seed, stream, "order", epoch))
    noise = generator(seed, stream, "augment", epoch)
    shift = torch.randint(0, 2 * pad + 1, (count, 2), generator=noise)
    columns = torch.arange(side).expand(count, side)
    if dataset.config.flip:
        columns = torch.where((torch.rand(count, generator=noise) < 0.5)[:, None], columns.flip(1), columns)
    rows, columns = torch.arange(side) + shift[:, :1], columns + shift[:, 1:]
    padded = F.pad(dataset.train.images, (0, 0, pad, pad, pad, pad))
    images = padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]][order]
    mean, std = torch.tensor(dataset.config.mean), torch.tensor(dataset.config.std)
    return ((images.float() - mean * 255) * (1 / (std * 255))).permute(0, 3, 1, 2)


@given(
    side=st.integers(1, 9),
    channels=st.sampled_from([1, 3]),
    pad=st.integers(0, 4),
    flip=st.booleans(),
    batch=st.integers(1, 13),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_batches_are_to_the_bit_what_a_gather_of_pixels_gives(side, channels, pad, flip, batch, seed):
    dataset = noise_dataset(12, side, pad, flip, channels)
    batches = [images for images, _ in dataset.batches(seed, "retrain", 1, batch)]
    assert torch.equal(torch.cat(batches), gathered(dataset, seed, "retrain", 1))
    strides = (side * side * channels, 1, side * channels, channels)
    assert {images.stride() for images in batches} == {strides}, "channels last in memory"


def test_padding_is_black_before_normalising():
    dataset = noise_dataset(pad=6, flip=False)
    black = torch.tensor([-0.4 / 0.2, -0.5 / 0.25, -0.6 / 0.3], dtype=torch.float64)
    images, _ = epoch_of(dataset)
    padding = pixels_of(dataset, images).eq(0).all(dim=3)
    assert padding.any(), "no pixel of the images is black, so what is black is padding"
    found = images.permute(0, 2, 3, 1)[padding]
    assert torch.allclose(found, black.expand_as(found), rtol=0, atol=1e-14)


def test_datasets_that_share_images_keep_their_own_padding():
    wide = noise_dataset(pad=3, flip=False)
    narrow = dataclasses.replace(wide, config=wide.config.model_copy(update={"pad": 1}))
    epoch_of(wide)
    fresh = noise_dataset(pad=1, flip=False)
    assert torch.equal(epoch_of(narrow)[0], epoch_of(fresh)[0])


def test_golden_first_batches_of_digits():
    catalog = Catalog()
    for name, digest in (
        ("resnet20-digits", "87ce1de0df0e69d16009082a3411b890a53c58e12bfcb22e09b456c99c033bdb"),
        ("lenet5-digits", "55d8d1ae8dc5cfc6227311355e158ba2ccd1bb77f53f8a22d9b0981909b379bf"),
    ):
        assert first_batch_digest(load(catalog.workload(name).data), 64) == digest


# Real data


@pytest.mark.parametrize(
    ("name", "split", "first_batch"),
    [
        (
            "resnet56-cifar10",
            "0936130620beaef5522790204672fd30284c9bb1c65873e1354005a9dfa3ebdd",
            "8d46b31f34299f25d9a3ed99f7b29f84beb19a32ef544b1b379a10939a6f8472",
        ),
        (
            "lenet5-mnist",
            "37cbbf2ef71179578a5cab1f7fc455689419397e06bbd3b1c92f1d4d7b250aca",
            "40d0f18ad3ffb8c20307d0ac997a71524a3d99617359a11b9b3ecd304120caf7",
        ),
        (
            "lenet5-fmnist",
            "f2728b713eb7b82cf02143ce4ef9599de265a35cffed7ae5e16dc45c067ee462",
            "1ec598232b1fc1fe96aac04be96304eda033551f8e24ee0ed5b97ddb443dccc4",
        ),
    ],
    ids=["cifar10", "mnist", "fmnist"],
)
def test_golden_digests_of_real_data(name, split, first_batch):
    root = data_root(None)
    if root is None:
        pytest.skip(f"{DATA_VARIABLE} names no data folder")
    workload = Catalog().workload(name)
    try:
        dataset = load(workload.data, root)
    except DataMissingError as error:
        pytest.skip(str(error))
    known = facts(workload.data)
    assert (known.train, known.validation, known.test) == (
        len(dataset.train),
        len(dataset.validation),
        len(dataset.test),
    )
    per_class = torch.bincount(dataset.train.labels) + torch.bincount(dataset.validation.labels)
    assert torch.all(
        (torch.bincount(dataset.validation.labels) - per_class * known.validation / per_class.sum()).abs() < 1
    )
    assert dataset.split_digest == split
    assert first_batch_digest(dataset, workload.retrain.batch) == first_batch
