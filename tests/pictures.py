"""Tiny folders of image files."""

import numpy as np
from PIL import Image


def picture(number, size=(8, 8), mode="RGB"):
    """Random pixels, no two numbers alike."""
    width, height = size
    shape = (height, width) if mode == "L" else (height, width, 3)
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8))


def folder(root, splits, size=(8, 8), mode="RGB", suffix=".png"):
    """Files below ``root/SPLIT/CLASS/``, numbered through; ``splits``: images of each class, by split."""
    number = 0
    for split, classes in splits.items():
        for label, count in classes.items():
            place = root / split / label
            place.mkdir(parents=True)
            for index in range(count):
                picture(number, size(number) if callable(size) else size, mode).save(place / f"{index:03}{suffix}")
                number += 1
    return root


SPLITS = {"train": {"cat": 12, "dog": 8}, "val": {"cat": 3, "dog": 2}}
