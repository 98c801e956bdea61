"""Splits: stratified, disjoint, whatever copies there are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneaudit.errors import ConfigError
from pruneaudit.workloads.data.splits import refuse_overlap, single, stratified


def digests(numbers):
    """A digest for each number; equal for equal ones, and full of zeros, which must count."""
    rows = np.zeros((len(numbers), 32), dtype=np.uint8)
    rows[:, 3] = numbers
    return rows


@given(
    labels=st.lists(st.integers(0, 4), min_size=4, max_size=60),
    share=st.floats(0.05, 0.9),
    name=st.sampled_from(["test", "validation"]),
)
@settings(max_examples=60, deadline=None)
def test_a_split_is_disjoint_complete_and_stratified(labels, share, name):
    labels = np.array(labels)
    count = max(1, int(share * len(labels)))
    stays, held_out = stratified(labels, count, name)
    assert sorted([*stays, *held_out]) == list(range(len(labels))) and len(held_out) == count
    assert list(stays) == sorted(stays) and list(held_out) == sorted(held_out)
    taken = np.bincount(labels[held_out], minlength=5)
    assert (np.abs(taken - np.bincount(labels, minlength=5) * count / len(labels)) < 1).all()
    again = stratified(labels, count, name)
    assert np.array_equal(again[0], stays) and np.array_equal(again[1], held_out)


@given(data=st.data(), classes=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_copies_stay_on_one_side(data, classes):
    contents = data.draw(st.lists(st.integers(0, 30), min_size=20, max_size=60))
    labels = np.array([content % classes for content in contents])
    rows = digests(contents)
    try:
        stays, held_out = stratified(labels, len(labels) // 5, "validation", single(rows))
    except ConfigError as error:
        assert "without a second copy" in str(error)
        return
    assert len(held_out) == len(labels) // 5
    assert not set(rows[stays, 3]) & set(rows[held_out, 3])
    refuse_overlap({"train": rows[stays], "validation": rows[held_out]}, "these")


def test_a_shared_example_is_refused_and_copies_inside_are_not():
    train, validation, test = digests([1, 1, 2, 3]), digests([4, 4]), digests([5])
    refuse_overlap({"train": train, "validation": validation, "test": test}, "data")
    with pytest.raises(ConfigError, match="data: 2 examples are both in train and in test; remove them") as caught:
        refuse_overlap({"train": train, "validation": validation, "test": digests([3, 1, 6])}, "data")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="1 example is both in validation and in test; remove it"):
        refuse_overlap({"train": train, "validation": validation, "test": digests([4])}, "data")


def test_which_examples_have_no_copy():
    assert single(digests([1, 2, 1, 3])).tolist() == [False, True, False, True]
