"""Accuracy of a split and its record."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

from pruneaudit.ledger.records import pack, unpack
from pruneaudit.measure.accuracy import evaluate
from pruneaudit.workloads.data import Dataset, Part
from pruneaudit.workloads.schema import DataConfig

torch.set_num_threads(1)


class ReadsTheAnswer(nn.Module):
    """A perfect classifier: the label is the grey level of an image, except where ``wrong`` says otherwise."""

    def __init__(self, classes=10, wrong=()):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.norm = nn.BatchNorm2d(1, affine=False).double()
        self.classes = classes
        self.wrong = wrong
        self.modes = []

    def forward(self, images):
        self.modes.append(self.training)
        self.norm(images)
        level = images[:, 0, 0, 0].mul(255).round().long()
        number = images[:, 0, 0, 1].mul(255).round().long()
        wrong = torch.isin(number, torch.tensor(self.wrong, dtype=torch.long))
        return 5 * self.scale * F.one_hot((level + wrong) % self.classes, self.classes).double()


def labelled(images):
    """Images that hold their label and their number."""
    labels = torch.arange(images) % 10
    pixels = torch.zeros(images, 2, 2, 1, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = labels.to(torch.uint8)
    pixels[:, 0, 1, 0] = torch.arange(images).to(torch.uint8)
    part = Part(pixels, labels)
    config = DataConfig(name="labelled", mean=(0.0,), std=(1.0,), pad=1, flip=True)
    return Dataset(config, 10, part, part, part, "labelled")


@pytest.mark.parametrize("images", [1, 63, 64, 65, 129, 200])
def test_perfect_classifier_is_perfect_on_a_ragged_last_batch(images):
    dataset = labelled(images)
    score = evaluate(ReadsTheAnswer(), dataset, dataset.test, "fp64", batch=64)
    assert score.accuracy == 100.0
    assert score.correct.dtype == bool and score.correct.shape == (images,) and score.correct.all()


@pytest.mark.parametrize("batch", [1, 7, 64, 512])
def test_every_image_weighs_the_same_whatever_the_batch(batch):
    dataset = labelled(131)
    wrong = (0, 64, 128, 129, 130)
    score = evaluate(ReadsTheAnswer(wrong=wrong), dataset, dataset.test, "fp64", batch=batch)
    assert np.flatnonzero(~score.correct).tolist() == list(wrong)
    assert score.accuracy == 100.0 * 126 / 131
    right, missed = math.log(1 + 9 * math.exp(-5)), 5 + math.log(1 + 9 * math.exp(-5))
    assert score.loss == pytest.approx((126 * right + 5 * missed) / 131, rel=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_restores_the_mode_and_changes_nothing(training):
    model = ReadsTheAnswer().train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    dataset = labelled(10)
    evaluate(model, dataset, dataset.test, "fp64")
    assert model.modes == [False]
    assert model.training is training and model.norm.training is training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.scale.grad is None


def test_bf16_scores_in_float32():
    dataset = labelled(20)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 10))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    score = evaluate(model, dataset, dataset.test, "bf16")
    assert score.loss == pytest.approx(math.log(10), rel=1e-6)


@settings(deadline=None)
@given(arrays.arrays(bool, st.integers(0, 300)))
def test_correctness_survives_its_record(correct):
    text = pack(correct)
    assert text.isascii() and "\n" not in text
    assert [bit == "1" for bit in f"{unpack(text, len(correct)):0{len(correct)}b}"[: len(correct)]] == correct.tolist()


def test_record_of_correctness_is_stable():
    assert pack(np.array([True, False, True] + [False] * 5 + [True])) == "oIA="
