"""What compiled steps are shown: the images of torch's loop, put into lanes."""

import dataclasses
from contextlib import ExitStack

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from trainers import needs_numba

from pruneaudit.streams import generator
from pruneaudit.training.metering import Meter
from pruneaudit.training.tiled import Tiles
from pruneaudit.training.tiled_layers import Flat, Map
from pruneaudit.training.tiled_steps import Showing
from pruneaudit.workloads import optimisers
from pruneaudit.workloads.data import Dataset, Part
from pruneaudit.workloads.recipes import Recipe
from pruneaudit.workloads.schema import DataConfig


class Onlooker(Tiles):
    """It takes images; what it was shown before is still there."""

    def __init__(self, shape, dtype):
        images = Map(*shape)
        super().__init__([Flat(Map(images.size), [images])], 72, dtype)
        self._shape = shape
        images.values[...] = 7

    def seen(self, batch):
        """Images ``[B, C, H, W]``, and lanes that have none."""
        images = self.room(batch).transpose(0, 4, 1, 2, 3).reshape(-1, *self._shape)
        return torch.from_numpy(images[:batch]), images[batch:]


def pictures(count, shape, pad, flip, brought=False):
    """A dataset of random images, in memory as bytes, or as the floats that somebody brought."""
    draw, (channels, high, wide) = generator(count, "pictures"), shape

    def part():
        images = torch.randint(0, 256, (count, high, wide, channels), generator=draw, dtype=torch.uint8)
        return Part(images.permute(0, 3, 1, 2) / 255 if brought else images, torch.arange(count) % 3)

    config = DataConfig(
        name="digits", mean=(0.4, 0.5, 0.45)[:channels], std=(0.3, 0.2, 0.25)[:channels], pad=pad, flip=flip
    )
    return Dataset(config, 3, part(), part(), part(), "")


def assert_shown(dataset, batch, dtype):
    """An epoch and an evaluation show what torch's loop is given, to the bit."""
    tiles = Onlooker(dataset.shape, dtype)
    showing = Showing(tiles, dataset)
    passes = [
        (showing.batches(3, "retrain", 2, batch), dataset.batches(3, "retrain", 2, batch, dtype)),
        (showing.inputs(dataset.test, batch), dataset.inputs(dataset.test, dtype, batch)),
    ]
    for ours, wanted in passes:
        for labels, (images, expected) in zip(ours, wanted, strict=True):
            seen, blank = tiles.seen(len(labels))
            assert torch.equal(labels, expected) and torch.equal(seen, images) and not blank.any()


@needs_numba
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    count=st.integers(1, 40),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
    pad=st.integers(0, 2),
    flip=st.booleans(),
    batch=st.integers(1, 17),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_images_in_memory_are_shown_with_the_bits_of_torchs_batches(count, shape, pad, flip, batch, dtype):
    assert_shown(pictures(count, shape, pad, flip), batch, dtype)


@needs_numba
def test_images_that_torch_prepares_are_shown_as_they_come():
    dataset = pictures(21, (2, 3, 4), 0, False, brought=True)
    assert dataset.obstacle
    assert_shown(dataset, 8, torch.float32)


def test_steps_that_no_optimiser_made_are_counted_as_if_it_had():
    model = nn.Linear(2, 2)
    optimiser = optimisers.make(Recipe(epochs=1, lr="0:0.1", batch=1, momentum=0.9, weight_decay=0.01), model, 0.1)
    rates, found = [0.1, 0.1, 0.01], []
    for told in (False, True):
        with ExitStack() as stack:
            meter = stack.enter_context(Meter(model))
            stack.enter_context(meter.noting({"mixed": "no"}, optimiser))
            for rate in rates:
                optimiser.param_groups[0]["lr"] = rate
                if not told:
                    optimiser.step()
            if told:
                meter.note_steps(optimiser, rates)
                with meter.paused():
                    meter.note_steps(optimiser, rates)
        found.append(dataclasses.asdict(meter.consumption))
    assert found[0] == found[1] and found[0]["rates"] == [[0.1, 2], [0.01, 1]]
    meter.note_steps(optimiser, rates)
    assert meter.consumption.optimiser_steps == 3, "it no longer listens"
