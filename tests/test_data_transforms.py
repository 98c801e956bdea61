"""Transforms of single images: how they are stated, and that what is random is a function of a seed."""

import random

import numpy as np
import pytest
import torch
from pictures import picture
from torchvision.transforms import v2

from pruneaudit.errors import ConfigError
from pruneaudit.workloads.data.transforms import Pipeline, own_generators, seed_generators

RECIPE = ["RandomResizedCrop(6)", "RandomHorizontalFlip", "RandAugment(2, 9)", "ColorJitter(0.4, hue=0.1)"]


def seeded(pipeline, example, seed=3):
    with own_generators():
        seed_generators(seed)
        return pipeline(example)


def test_a_list_is_what_torchvision_composes():
    image = picture(0, (20, 14))
    composed = v2.Compose(
        [
            v2.Resize(10, interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomResizedCrop(6, scale=(0.3, 1.0)),
            v2.RandomApply([v2.ColorJitter(0.4)], p=0.8),
            v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
        ]
    )
    stated = Pipeline(
        [
            "Resize(10, interpolation='bicubic')",
            "RandomResizedCrop(6, scale=(0.3, 1.0))",
            "RandomApply([ColorJitter(0.4)], p=0.8)",
            "AutoAugment(policy='cifar10')",
        ],
        "data.train",
    )
    for seed in range(8):
        with own_generators():
            seed_generators(seed)
            expected = np.asarray(composed(image))
        assert np.array_equal(seeded(stated, image, seed).numpy(), expected)


def test_an_image_in_memory_and_the_same_image_from_a_file_become_the_same():
    image = picture(1, (9, 7))
    assert torch.equal(
        seeded(Pipeline(RECIPE, "data.train"), image),
        seeded(Pipeline(RECIPE, "data.train"), torch.from_numpy(np.array(image))),
    )


def test_grey_images_keep_their_channel():
    grey = picture(2, (9, 7), "L")
    assert seeded(Pipeline(["CenterCrop(5)"], "data.test"), grey).shape == (5, 5, 1)
    assert seeded(Pipeline([], "data.test"), torch.zeros(7, 9, 1, dtype=torch.uint8)).shape == (7, 9, 1)


def test_random_erasing_acts_though_it_leaves_pil_images_alone():
    image = picture(3, (16, 16))
    plain, erased = (
        seeded(Pipeline(one, "data.train"), image) for one in ([], ["RandomErasing(1.0, scale=(0.2, 0.3))"])
    )
    assert plain.shape == erased.shape == (16, 16, 3)
    assert 0.1 < (plain != erased).any(2).double().mean() < 0.4


def test_generators_are_as_they_were():
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    seeded(Pipeline(RECIPE, "data.train"), picture(4))
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("RandomFlip", "unknown transform 'RandomFlip' of torchvision.transforms.v2. Did you mean 'Random"),
        ("RandomResizedCrop(224", "'RandomResizedCrop(224' is no transform; expected 'Name' or 'Name(arguments)'"),
        ("v2.Resize(3)", "is no transform; expected 'Name'"),
        ("Resize(side)", "'side' is neither a literal nor a transform"),
        ("Resize(__import__('os').getcwd())", "is no transform"),
        ("Resize(2 ** 9)", "neither a literal"),
        ("Resize(sides=3)", "unexpected keyword argument 'sides'"),
        ("RandomHorizontalFlip(7)", ""),
        ("Resize(5, interpolation='cubism')", "'cubism' is not a valid InterpolationMode"),
        ("MixUp(num_classes=3)", "Mixing images of a batch belongs to a recipe"),
        ("Lambda(3)", "unknown transform 'Lambda'"),
        ("Resize(*[3])", "state each argument"),
        ("InterpolationMode", "unknown transform"),
    ],
)
def test_what_is_no_transform_is_refused_in_one_line(spec, said):
    with pytest.raises(ConfigError) as caught:
        Pipeline(["CenterCrop(3)", spec], "data.train")(picture(5))
    message = str(caught.value)
    assert message.startswith("data.train: ") and said in message and "\n" not in message


def test_what_cannot_be_applied_names_the_transform():
    with pytest.raises(ConfigError, match=r"data\.test: RandomCrop\(20\) cannot be applied here: ValueError"):
        Pipeline(["RandomCrop(20)"], "data.test")(picture(6))
