"""Pixels: PIL's whoever decodes, tensors' apart, and what tells two pipelines from each other."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import folder, picture, write_probes
from PIL import Image
from torchvision.transforms import v2

from pruneaudit.errors import ConfigError
from pruneaudit.workloads.data import decoding, load, probes
from pruneaudit.workloads.data.brought import find
from pruneaudit.workloads.data.decoding import decode
from pruneaudit.workloads.data.loading import identity
from pruneaudit.workloads.data.probes import fingerprint
from pruneaudit.workloads.data.transforms import Pipeline, own_generators, seed_generators
from pruneaudit.workloads.schema import DataConfig

torch.set_num_threads(1)
fast = pytest.mark.skipif(decoding.simplejpeg is None, reason="simplejpeg is not installed")
RANDOM = ("RandomResizedCrop(24)", "RandomHorizontalFlip")


def jpeg(image, **options):
    content = io.BytesIO()
    image.save(content, "JPEG", **options)
    return content.getvalue()


def smooth(number, size):
    """A picture as cameras make them: neighbours are alike."""
    return picture(number, (5, 4)).resize(size, Image.Resampling.BICUBIC)


def by_pil(content, mode="RGB"):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert(mode))


def seeded(pipeline, image, seed=0):
    with own_generators():
        seed_generators(seed)
        return pipeline(image)


@fast
@given(
    number=st.integers(0, 1000),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    quality=st.integers(1, 100),
    subsampling=st.sampled_from([0, 1, 2]),
    progressive=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_ordinary_jpegs_have_the_pixels_of_pil_bit_for_bit(number, size, quality, subsampling, progressive):
    content = jpeg(smooth(number, size), quality=quality, subsampling=subsampling, progressive=progressive)
    found = decode(content, "RGB")
    assert isinstance(found, torch.Tensor), "decoded by simplejpeg"
    assert np.array_equal(found.numpy(), by_pil(content))


@fast
@pytest.mark.parametrize(
    "content",
    [
        jpeg(smooth(0, (31, 22)).convert("L")),
        jpeg(smooth(1, (31, 22)).convert("CMYK")),
        jpeg(smooth(2, (31, 22)), keep_rgb=True),
    ],
    ids=["grey", "CMYK", "RGB inside"],
)
def test_of_other_jpegs_pil_has_the_word(content):
    assert np.array_equal(np.asarray(decode(content, "RGB")), by_pil(content))


def test_a_png_under_the_name_of_a_jpeg_and_a_picture_held_upright_are_what_pil_makes_of_them():
    for content in probes.probes():
        for mode in ("RGB", "L"):
            assert np.array_equal(np.asarray(decode(content, mode)), by_pil(content, mode))


@fast
def test_a_cut_off_jpeg_is_an_error_as_it_is_of_pil():
    content = jpeg(smooth(3, (60, 60)))[:-200]
    with pytest.raises(OSError, match="truncated"):
        decode(content, "RGB")


@given(
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(3, 90), st.integers(3, 90)),
    grey=st.booleans(),
    interpolation=st.sampled_from(["bilinear", "bicubic", "nearest"]),
)
@settings(max_examples=60, deadline=None)
def test_cutting_before_an_array_becomes_an_image_of_pil_changes_no_pixel(seed, size, grey, interpolation):
    image = picture(seed, size, "L" if grey else "RGB")
    array = torch.from_numpy(np.array(image)).reshape(size[1], size[0], -1)
    pipeline = Pipeline((f"RandomResizedCrop(17, interpolation='{interpolation}')", *RANDOM[1:]), "data.train")
    assert torch.equal(seeded(pipeline, array, seed), seeded(pipeline, image, seed))


@given(
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(3, 300), st.integers(3, 300)),
    grey=st.booleans(),
    interpolation=st.sampled_from(["bilinear", "bicubic", "nearest"]),
)
@settings(max_examples=60, deadline=None)
def test_cutting_before_a_tensor_is_resized_changes_no_pixel(seed, size, grey, interpolation):
    image = picture(seed, size, "L" if grey else "RGB")
    torchvisions = v2.RandomResizedCrop(17, interpolation=v2.InterpolationMode(interpolation))
    expected = seeded(torchvisions, v2.functional.pil_to_tensor(image), seed).permute(1, 2, 0)
    ours = Pipeline((f"RandomResizedCrop(17, interpolation='{interpolation}')",), "data.train", "tensor")
    for given_as in (image, torch.from_numpy(np.array(image)).reshape(size[1], size[0], -1)):
        assert torch.equal(seeded(ours, given_as, seed), expected)


def test_pixels_of_tensors_are_those_of_torchvisions_tensors():
    image = picture(4, (301, 203))
    tensor = v2.functional.pil_to_tensor(image)
    stated = Pipeline(("Resize(90)", "CenterCrop(80)"), "data.test", "tensor")
    expected = v2.functional.center_crop(v2.functional.resize(tensor, [90]), [80]).permute(1, 2, 0)
    for given_as in (image, torch.from_numpy(np.array(image))):
        assert torch.equal(stated(given_as), expected)
    by_default = Pipeline(("Resize(90)", "CenterCrop(80)"), "data.test")(image)
    difference = (by_default.int() - expected.int()).abs()
    assert difference.max() <= 2 and difference.any(), "another resizer"


def test_erasing_needs_no_other_step_where_images_are_tensors():
    erasing = ("RandomErasing(1.0, scale=(0.2, 0.3))",)
    image = picture(5, (16, 16))
    for pixels in ("pil", "tensor"):
        assert (np.asarray(image) != seeded(Pipeline(erasing, "data.train", pixels), image).numpy()).any()


@pytest.fixture
def leaves(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEAUDIT_CACHE", str(tmp_path / "cache"))
    sizes = {"train": {"ant": 6, "bee": 5, "cat": 6}, "val": {"ant": 2, "bee": 2, "cat": 2}}
    return folder(tmp_path / "leaves", sizes, lambda number: (40 + number, 60 - number), suffix=".jpg")


def of(root, **keys):
    load.cache_clear()
    find.cache_clear()
    return load(DataConfig(name=f"imagefolder:{root}", **keys))


def epoch(dataset):
    return torch.cat([images for images, _ in dataset.batches(0, "retrain", 0, 4, torch.float64)])


@pytest.mark.parametrize("pixels", ["pil", "tensor"])
def test_who_decodes_changes_no_batch_and_no_identity(leaves, pixels, monkeypatch):
    keys = {"train": RANDOM, "test": ("Resize(30)", "CenterCrop(24)"), "pixels": pixels}
    config = DataConfig(name=f"imagefolder:{leaves}", **keys)
    before = of(leaves, **keys)
    expected, known = epoch(before), identity(config)
    monkeypatch.setattr(decoding, "simplejpeg", None)
    probes._fingerprint.cache_clear()
    after = of(leaves, **keys)
    assert torch.equal(epoch(after), expected) and identity(config) == known
    assert after.split_digest == before.split_digest
    assert after.pipeline == fingerprint(after.static, after.augment, "RGB")


def test_tensors_are_other_data_and_another_pipeline(leaves):
    keys = {"train": RANDOM, "test": ("Resize(30)", "CenterCrop(24)")}
    pil, tensor = of(leaves, **keys), of(leaves, **keys, pixels="tensor")
    assert not torch.equal(epoch(pil), epoch(tensor)) and pil.split_digest != tensor.split_digest
    assert pil.pipeline.startswith("pil ") and tensor.pipeline.startswith("tensor ")
    assert pil.pipeline[-64:] != tensor.pipeline[-64:]


def test_the_whole_test_set_is_evaluated_and_nothing_twice(leaves):
    dataset = of(leaves, train=RANDOM, test=("Resize(30)", "CenterCrop(24)"))
    batches = list(dataset.inputs(dataset.test, batch=4))
    assert [len(images) for images, _ in batches] == [4, 2]
    assert torch.equal(torch.cat([labels for _, labels in batches]), torch.tensor([0, 0, 1, 1, 2, 2]))


def test_what_becomes_of_sixteen_images_tells_pipelines_apart(monkeypatch):
    def told(test=("Resize(64)", "CenterCrop(56)"), train=None, pixels="pil", mode="RGB"):
        static = Pipeline(test, "data.test", pixels)
        return fingerprint(static, None if train is None else Pipeline(train, "data.train", pixels), mode)

    variants = [
        told(),
        told(pixels="tensor"),
        told(("Resize(65)", "CenterCrop(56)")),
        told(("Resize(64, interpolation='bicubic')", "CenterCrop(56)")),
        told(train=("RandomResizedCrop(56)",)),
        told(train=("RandomResizedCrop(56)", "RandomHorizontalFlip")),
        told(mode="L"),
    ]
    assert len(set(variants)) == len(variants) and told() == variants[0]
    # A library that resizes in another way from one version to the next, under one name.
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda image, size, **_: resize(image, size, Image.Resampling.BOX))
    probes._fingerprint.cache_clear()
    assert told() != variants[0] and told()[:4] == "pil "
    probes._fingerprint.cache_clear()


def test_a_pipeline_that_probes_are_too_small_for_has_a_digest_too():
    found = fingerprint(Pipeline(("RandomCrop(5000)",), "data.test"), None, "RGB")
    assert len(found) == len("pil ") + 64


def test_images_that_are_taken_as_they_are_have_no_pipeline(leaves):
    assert load(DataConfig(name="digits")).pipeline is None
    assert load(DataConfig(name="digits", train=("RandomHorizontalFlip",))).pipeline is not None
    assert of(leaves, size=20).pipeline.startswith("pil ")


def test_there_are_sixteen_probes_of_all_kinds(tmp_path):
    found = probes.probes()
    assert len(found) == len(set(found)) == 16
    with_pil = [Image.open(io.BytesIO(content)) for content in found]
    assert {image.format for image in with_pil} == {"JPEG", "PNG"}
    assert {image.mode for image in with_pil} == {"RGB", "L", "CMYK", "RGBA", "P"}
    assert min(min(image.size) for image in with_pil) >= 224
    # How they were made is known, whatever an encoder makes of it today.
    write_probes(tmp_path / "probes.zip")
    assert (tmp_path / "probes.zip").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"name": "digits", "pixels": "tensor"}, "data.pixels says what data.train and data.test act on"),
        ({"name": "digits", "classes": 5}, "data.classes draws classes of a folder of images, which digits is not"),
        ({"name": "imagefolder:{}", "classes": 4, "size": 9}, "data.classes 4: {}/train has 3; state 2 to 3"),
        ({"name": "imagefolder:{}", "classes": 1, "size": 9}, "data.classes 1: {}/train has 3; state 2 to 3"),
    ],
)
def test_keys_that_say_nothing_here_are_refused_in_one_line(leaves, keys, said):
    find.cache_clear()
    with pytest.raises(ConfigError) as caught:
        load(DataConfig(**{**keys, "name": keys["name"].format(leaves)}))
    assert said.format(leaves) in str(caught.value) and "\n" not in str(caught.value)


def test_classes_are_drawn_once_and_for_all(leaves):
    whole, part = of(leaves, size=9), of(leaves, size=9, classes=2)
    assert (whole.classes, part.classes) == (3, 2)
    assert len(part.test) == 4 and len(part.train) + len(part.validation) in (11, 12)
    chosen = {path.parent.name for path in map(find(part.config, None).train.path, range(11))}
    again = {path.parent.name for path in map(find(part.config, None).test.path, range(4))}
    assert chosen == again and len(chosen) == 2
    assert part.split_digest == of(leaves, size=9, classes=2).split_digest != whole.split_digest
