"""Tiny folders of image files."""

import io
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

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


def write_probes(path):
    """The probe images as they were once written to ``pruneaudit/workloads/data/probes.zip``: smooth, with edges."""
    kinds = [
        *({"format": "JPEG", "quality": quality, "subsampling": 2} for quality in (75, 80, 85, 90, 92, 95)),
        {"format": "JPEG", "quality": 90, "subsampling": 0},
        {"format": "JPEG", "quality": 90, "subsampling": 1},
        {"format": "JPEG", "quality": 85, "progressive": True},
        {"format": "JPEG", "quality": 60, "optimize": True},
        {"format": "JPEG", "quality": 85, "mode": "L"},
        {"format": "JPEG", "quality": 85, "mode": "CMYK"},
        {"format": "JPEG", "quality": 85, "exif": 6},
        {"format": "PNG"},
        {"format": "PNG", "mode": "RGBA"},
        {"format": "PNG", "mode": "P"},
    ]
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        for number, kind in enumerate(kinds):
            draw = np.random.default_rng(number)
            width, height = 500 - 17 * number, 375 - 8 * number
            small = Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8))
            image = small.resize((width, height), Image.Resampling.BICUBIC)
            for _ in range(6):
                left, top = int(draw.integers(0, width - 90)), int(draw.integers(0, height - 90))
                colour = tuple(int(value) for value in draw.integers(0, 256, 3))
                image.paste(colour, (left, top, left + int(draw.integers(5, 90)), top + int(draw.integers(5, 90))))
            options = {key: value for key, value in kind.items() if key not in ("mode", "exif")}
            if "exif" in kind:
                exif = Image.Exif()
                exif[0x0112] = kind["exif"]
                options["exif"] = exif
            content = io.BytesIO()
            image.convert(kind.get("mode", "RGB")).save(content, **options)
            archive.writestr(ZipInfo(f"{number:02}.{kind['format'].lower()}"), content.getvalue())
