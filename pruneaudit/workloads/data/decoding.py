"""How the bytes of an image file become pixels: those that PIL gives, exactly, by whatever decodes them fastest.

Decoders of ordinary JPEG files agree bit for bit: all stand on libjpeg-turbo with its exact transform. Resizers do not,
so that whoever resizes is part of what a workload states (``data.pixels``).
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch

try:
    import simplejpeg
except ImportError:  # The extra "jpeg": without it everything is the same, more slowly.
    simplejpeg = None

_JPEG = b"\xff\xd8\xff"


def decode(content: bytes, mode: str) -> Any:
    """Pixels of an image file.

    Args:
        content: The file.
        mode: PIL's name of what is wanted: ``RGB`` or ``L``.

    Returns:
        An image ``[H, W, 3]`` uint8 where simplejpeg decoded it, else a PIL image; both hold the same pixels. How a
        camera was held (EXIF) changes neither.

    Raises:
        Exception: PIL cannot read it.
    """
    if simplejpeg is not None and mode == "RGB" and content.startswith(_JPEG):
        pixels = _by_simplejpeg(content)
        if pixels is not None:
            return torch.from_numpy(pixels)
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        return image.convert(mode)


def _by_simplejpeg(content: bytes) -> np.ndarray | None:
    """An ordinary JPEG's pixels, ``[H, W, 3]``; None for grey, CMYK and damaged ones, of which PIL has an opinion."""
    try:
        if simplejpeg.decode_jpeg_header(content)[2] != "YCbCr":
            return None
        found: np.ndarray = simplejpeg.decode_jpeg(content, "RGB")
    except (ValueError, RuntimeError):
        return None
    return found
