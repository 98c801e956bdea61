"""Sixteen images that go through a workload's pipeline: what comes out tells pipelines apart, whatever their names are.

Decoders, resizers, their versions and the processor's vector code change pixels by a grey level or by eighty, and
published accuracies with them by 0.1 to 0.8 points. The images lie in ``probes.zip``: JPEGs of several kinds of
sampling, progressive, grey and CMYK ones, one held upright by EXIF, PNGs with transparency and with a palette.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from zipfile import ZipFile

import torch

from pruneaudit.errors import ConfigError
from pruneaudit.streams import derive
from pruneaudit.workloads.data.decoding import decode
from pruneaudit.workloads.data.transforms import Pipeline, own_generators, seed_generators

FILE = Path(__file__).parent / "probes.zip"
_SEED = 16


def fingerprint(static: Pipeline, augment: Pipeline | None, mode: str) -> str:
    """What a pipeline makes of the probe images.

    Args:
        static: Transforms of images that are not augmented.
        augment: Transforms of training images, or None.
        mode: What images are decoded to: ``RGB`` or ``L``.

    Returns:
        What the transforms act on and a SHA-256 over all pixels, such as ``pil 5b3a…``.
    """
    pipelines = [static] if augment is None else [static, augment]
    return _fingerprint(tuple((one.specs, one.key, one.pixels) for one in pipelines), mode)


@lru_cache(maxsize=64)
def _fingerprint(stated: tuple[tuple[tuple[str, ...], str, str], ...], mode: str) -> str:
    found = hashlib.sha256()
    pipelines = [Pipeline(*one) for one in stated]
    for number, content in enumerate(probes()):
        image = decode(content, mode)
        for name, pipeline in zip(("static", "augment"), pipelines, strict=False):
            pixels = _through(pipeline, image, derive(_SEED, name, number))
            found.update(f"{name} {tuple(pixels.shape)} {pixels.dtype}".encode())
            found.update(pixels.contiguous().numpy().tobytes())
    return f"{pipelines[0].pixels} {found.hexdigest()}"


def _through(pipeline: Pipeline, image: object, seed: int) -> torch.Tensor:
    """A probe after some transforms; nothing of one that they do not fit: the workload's own images may be larger."""
    with own_generators():
        seed_generators(seed)
        try:
            return pipeline(image)
        except ConfigError:
            return torch.empty(0, dtype=torch.uint8)


@lru_cache(maxsize=1)
def probes() -> list[bytes]:
    """The image files, in order of their names."""
    with ZipFile(FILE) as archive:
        return [archive.read(name) for name in sorted(archive.namelist())]
