"""Pillow's resizing without Pillow: the same pixels, in both orders, and Pillow itself where it computes others."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pictures import picture
from PIL import Image
from trainers import needs_numba

from pruneaudit.workloads.data import transforms
from pruneaudit.workloads.data.transforms import Pipeline, own_generators, seed_generators

pytestmark = needs_numba


@pytest.fixture
def resampling():
    from pruneaudit.workloads.data import resampling

    # What is asked of a changed Pillow must not stay.
    yield resampling
    resampling.order.cache_clear()


def pillows(image, box, size, name):
    top, left, tall, wide = box
    part = image.crop((left, top, left + wide, top + tall))
    return np.asarray(part.resize((size[1], size[0]), Image.Resampling[name.upper()]))


@st.composite
def cut(draw):
    """An image's height and width, and a box within."""
    tall, wide = draw(st.integers(1, 300)), draw(st.integers(6, 300))
    height, width = draw(st.integers(1, tall)), draw(st.integers(6, wide))
    box = draw(st.integers(0, tall - height)), draw(st.integers(0, wide - width)), height, width
    return (tall, wide), box


@given(
    seed=st.integers(0, 10**6),
    cut=cut(),
    size=st.tuples(st.integers(1, 250), st.integers(6, 250)),
    name=st.sampled_from(["bilinear", "bicubic"]),
    is_hard=st.booleans(),
)
@example(0, ((375, 500), (0, 0, 375, 500)), (224, 224), "bilinear", True)
@example(1, ((375, 500), (374, 494, 1, 6)), (1, 6), "bicubic", True)
@example(2, ((300, 6), (0, 0, 300, 6)), (1, 6), "bicubic", True)
@settings(max_examples=150, deadline=None)
def test_every_pixel_is_pillows(seed, cut, size, name, is_hard):
    from pruneaudit.workloads.data import resampling

    (tall, wide), box = cut
    pixels = np.random.default_rng(seed).integers(0, 256, (tall, wide, 3), dtype=np.uint8)
    # Black and white alone: filters that overshoot leave what 8 bits hold.
    pixels = (pixels > 127).astype(np.uint8) * 255 if is_hard else pixels
    found = resampling.resized(pixels, box, size, name, resampling.order())
    assert np.array_equal(found, pillows(Image.fromarray(pixels), box, size, name))


@given(size=st.integers(1, 2000), wanted=st.integers(1, 500), name=st.sampled_from(["bilinear", "bicubic"]))
def test_no_sum_asks_for_a_pixel_that_is_not_there(size, wanted, name):
    from pruneaudit.workloads.data.resampling import _weights

    begins, weights = _weights(size, wanted, name)
    assert len(begins) == weights.shape[1] == wanted and weights.flags.c_contiguous
    assert begins.min() >= 0 and begins.max() + len(weights) <= size


def test_memory_around_is_left_alone(resampling):
    """Vectors are wider than pixels: of results the bytes behind, of images those that nobody owns."""
    whole = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    allocated = []

    def guarded(size, kind):
        around = np.full(size + 64, 171, kind)
        allocated.append(around)
        return around[:size]

    for box, size in (((0, 0, 40, 30), (9, 25)), ((20, 13, 20, 17), (33, 7)), ((39, 0, 1, 30), (1, 30))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resampling.np, "empty", guarded)
            resampling.resized(whole, box, size, "bicubic", resampling.order())
    assert len(allocated) >= 9
    assert all((around[-64:] == 171).all() for around in allocated)


def test_each_order_is_told_by_its_pixels_and_another_resizer_is_left_to_pillow(resampling, monkeypatch):
    resize = Image.Image.resize

    def in_order(image, size, resample):
        array, name = np.asarray(image), Image.Resampling(resample).name.lower()
        return Image.fromarray(resampling.resized(array, (0, 0, *array.shape[:2]), size[::-1], name, wanted))

    for wanted in (resampling.vertical_first_where_height_shrinks_more, resampling.horizontal_first):
        resampling.order.cache_clear()
        monkeypatch.setattr(Image.Image, "resize", in_order)
        assert resampling.order() is wanted
    resampling.order.cache_clear()
    monkeypatch.setattr(Image.Image, "resize", lambda image, size, _: resize(image, size, Image.Resampling.BOX))
    assert resampling.order() is None
    assert transforms._resizer("bilinear", (0, 0, 20, 20), (9, 9)) is None


def test_what_only_pillow_resizes_is_left_to_it(resampling):
    assert transforms._resizer("bilinear", (0, 0, 20, 6), (9, 9)) is not None
    assert transforms._resizer("bilinear", (0, 0, 20, 5), (9, 9)) is None
    assert transforms._resizer("bilinear", (0, 0, 20, 20), (9, 5)) is None
    assert transforms._resizer("lanczos", (0, 0, 20, 20), (9, 9)) is None
    assert transforms._resizer(Image.Resampling.BILINEAR, (0, 0, 20, 20), (9, 9)) is None


@pytest.mark.parametrize("name", ["nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos"])
@pytest.mark.parametrize("later", [[], ["RandomVerticalFlip", "RandomHorizontalFlip(0.7)"], ["ColorJitter(0.4)"]])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pipelines_give_the_same_with_it_and_without(name, later, mode, monkeypatch):
    pipeline = Pipeline([f"RandomResizedCrop((40, 31), interpolation='{name}')", *later], "data.train")
    image = torch.from_numpy(np.array(picture(3, (90, 130), mode))).reshape(130, 90, -1)

    def seeded(example):
        found = []
        for seed in range(6):
            with own_generators():
                seed_generators(seed)
                found.append(pipeline(example))
        return torch.stack(found)

    found = seeded(image)
    monkeypatch.setattr(transforms, "_resampling", lambda: None)
    assert torch.equal(found, seeded(image)) and found.shape == (6, 40, 31, len(mode))
    assert torch.equal(found, seeded(picture(3, (90, 130), mode)))


def test_an_image_in_colours_never_meets_pillow(monkeypatch):
    pipeline = Pipeline(["RandomResizedCrop(24)", "RandomHorizontalFlip"], "data.train")
    image = torch.from_numpy(np.array(picture(4, (90, 130))))
    assert transforms._resizer("bilinear", (0, 0, 90, 90), (24, 24)) is not None

    def refused(*_):
        raise AssertionError("an image of Pillow's was made")

    monkeypatch.setattr(Image, "fromarray", refused)
    with own_generators():
        seed_generators(1)
        assert pipeline(image).shape == (24, 24, 3)
