"""What is known of one image file: which files are images, and what a look at one tells."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from pruneaudit.errors import ConfigError

#: Endings of image files, as torchvision has them.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
#: A file that changed so shortly before it was read may have changed since, within the same tick of the clock.
SETTLED_NS = 2_000_000_000
# Modes of PIL that are grey; those with more than 8 bits lose what they hold when they are converted.
_GREY, _DEEP = ("1", "L", "LA"), ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def facts(content: bytes, path: Path) -> tuple[Any, ...]:
    """Digest ``[32]`` uint8, width, height, and whether it is grey.

    Args:
        content: The file.
        path: Its name, for errors.

    Raises:
        ConfigError: It is no image, or one of more than 8 bits.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            mode, (width, height) = image.mode, image.size
    except Exception as error:
        raise unreadable(path, error) from None
    if mode in _DEEP:
        raise ConfigError(f"{path} has more than 8 bits for each value (PIL mode {mode}): convert it to 8 bits")
    digest = np.frombuffer(hashlib.sha256(content).digest(), dtype=np.uint8)
    return digest, width, height, mode in _GREY


def unreadable(path: Path, error: Exception) -> ConfigError:
    """An image that cannot be read, and what to do about it."""
    reason = " ".join(str(error).replace(str(path), "the file").split()) or type(error).__name__
    return ConfigError(f"cannot read image {path}: {reason}; replace it or take it away")
