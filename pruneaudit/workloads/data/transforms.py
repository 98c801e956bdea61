"""Augmentation and preprocessing as a workload states them: names of ``torchvision.transforms.v2`` with arguments.

They act on images in 8 bits, as PIL has them or as tensors; scaling to [0, 1] and normalising come last and are the
harness's. What is random in an image is a function of a seed that its caller derives, of nothing else.
"""

from __future__ import annotations

import ast
import inspect
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np
import torch

from pruneaudit.errors import ConfigError, nearest, one_line

#: They act on whole batches, on what is no image, or give several images for one.
_OTHERS = frozenset({"Compose", "CutMix", "FiveCrop", "Lambda", "MixUp", "TenCrop", "Transform"})
#: They leave PIL images as they are, with a warning at best.
_OF_TENSORS = frozenset({"RandomErasing"})
#: They do the same to images of PIL and to tensors, and draw the same for it.
_ALIKE = frozenset({"RandomHorizontalFlip", "RandomVerticalFlip"})


class Pipeline:
    """A list of transforms.

    Args:
        specs: Each ``Name`` or ``Name(arguments)``: literals, and further transforms where one takes some.
        key: Key of the workload's TOML that states them, for errors.
        pixels: What they act on: images as ``pil`` has them, or ``tensor``. What resizes, resizes in another way.

    Raises:
        ConfigError: One of them is none, or does not take its arguments.
    """

    def __init__(self, specs: Sequence[str], key: str, pixels: str = "pil") -> None:
        self.specs = tuple(specs)
        self.key = key
        self.pixels = pixels
        self._steps: list[Any] = []
        is_tensor = pixels == "tensor"
        for spec in self.specs:
            step = _parse(spec, key)
            name = type(step).__name__
            if name in _OF_TENSORS and not is_tensor:
                self._steps.append(_parse("ToImage", key))
                is_tensor = True
            is_tensor = is_tensor or name in ("ToImage", "PILToTensor")
            self._steps.append(step)
        self._names = [
            next((spec for spec in self.specs if spec.startswith(type(one).__name__)), "") for one in self._steps
        ]

    def __call__(self, example: Any) -> torch.Tensor:
        """Transform one example.

        Args:
            example: A PIL image, an image ``[H, W, C]`` uint8, or floats ``[C, H, W]``.

        Returns:
            An image ``[H, W, C]`` uint8, or what else the transforms give.

        Raises:
            ConfigError: A transform cannot be applied to it.
        """
        if not self._steps:
            return stored(example)
        image = example
        # Some only warn that they leave an image as it is.
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*passing through.*")
            for number, (spec, step) in enumerate(zip(self._names, self._steps, strict=True)):
                try:
                    if not number:
                        step, image = self._first(step, image)
                    image = _flipped(step, image) if type(image) is torch.Tensor else step(image)
                except Exception as error:
                    raise ConfigError(f"{self.key}: {spec} cannot be applied here: {one_line(error)}") from None
        return stored(image, channels_first=True)

    def _first(self, step: Any, image: Any) -> tuple[Callable[[Any], Any], Any]:
        """The first step, and the example as it takes it.

        Nine tenths of an epoch's first steps cut something out and resize it: what is not needed is cut off before
        an array becomes an image of PIL, or is resized row by row, which gives the same pixels. So does
        :mod:`.resampling`, without an image of PIL unless a later step needs one.
        """
        from torchvision.transforms import v2

        is_tensor = self.pixels == "tensor"
        if not isinstance(image, torch.Tensor):
            if not is_tensor:
                return step, image
            image = stored(image)
        if type(step) is not v2.RandomResizedCrop or not hasattr(step, "make_params") or not _is_picture(image):
            return step, _as_tensor(image) if is_tensor and _is_picture(image) else _as_pil(image)
        cut = step.make_params([_of_size(*image.shape[:2])])
        top, left, height, width = (cut[name] for name in ("top", "left", "height", "width"))
        if not is_tensor and image.shape[2] == 3:
            resized = _resizer(step.interpolation, (top, left, height, width), tuple(step.size))
            if resized is not None:
                return (lambda whole: self._second(torch.from_numpy(resized(whole.contiguous().numpy())))), image
        # Whole pixels side by side are resized in half the time that strided ones take, to the same bits.
        part = image[top : top + height, left : left + width].contiguous()
        options = {"size": step.size, "interpolation": step.interpolation, "antialias": step.antialias}
        # A tensor of no class of its own: torchvision takes it for an image, and torch calls none of Python's for it.
        return partial(v2.functional.resize, **options), part.permute(2, 0, 1) if is_tensor else _as_pil(part)

    def _second(self, image: torch.Tensor) -> Any:
        """An image ``[H, W, 3]`` for the steps behind the first: as PIL has it, or as a tensor where that will do."""
        are_alike = all(type(step).__name__ in _ALIKE for step in self._steps[1:])
        return image.permute(2, 0, 1) if are_alike else _as_pil(image)

    def __str__(self) -> str:
        return ("" if self.pixels == "pil" or not self.specs else f"{self.pixels}: ") + "+".join(self.specs)


def _resizer(
    interpolation: Any, box: tuple[int, int, int, int], size: tuple[int, ...]
) -> Callable[[np.ndarray], np.ndarray] | None:
    """What resizes a part of an image as PIL does, without PIL; None: PIL has to."""
    resampling, name = _resampling(), getattr(interpolation, "value", interpolation)
    if resampling is None or name not in resampling.FILTERS or not resampling.wide_enough(box[3], size[1]):
        return None
    order = resampling.order()
    return None if order is None else partial(resampling.resized, box=box, size=size, name=name, order=order)


def _flipped(step: Any, image: torch.Tensor) -> Any:
    """What a step makes of an image ``[C, H, W]``: a flip at random takes a third of torchvision's time without it."""
    if type(step).__name__ != "RandomHorizontalFlip":
        return step(image)
    return image if torch.rand(1) >= step.p else image.flip(-1)


@lru_cache(maxsize=2048)
def _of_size(height: int, width: int) -> Any:
    """An image of a size, without pixels of its own."""
    from torchvision import tv_tensors

    return tv_tensors.Image(torch.zeros((), dtype=torch.uint8).expand(3, height, width))


@cache
def _resampling() -> Any:
    """The module that resizes; None without the extra "compiled": everything is the same, more slowly."""
    try:
        from pruneaudit.workloads.data import resampling
    except ImportError:
        return None
    return resampling


def stored(example: Any, channels_first: bool = False) -> torch.Tensor:
    """An example as it is kept: images ``[H, W, C]`` uint8, everything else as it is.

    Args:
        example: A PIL image, an array or a tensor.
        channels_first: Whether tensors of images are ``[C, H, W]``, as torchvision has them.
    """
    if isinstance(example, torch.Tensor):
        # Without the class that torchvision gives its images.
        tensor = example.as_subclass(torch.Tensor)
        is_image = tensor.dtype == torch.uint8 and tensor.dim() == 3
        return typed(tensor.permute(1, 2, 0) if is_image and channels_first else tensor, is_image)
    array = np.array(example)
    if array.ndim == 2 and array.dtype == np.uint8:
        array = array[..., None]
    return typed(torch.from_numpy(array), array.ndim == 3)


def typed(values: torch.Tensor, are_images: bool) -> torch.Tensor:
    """Values in the type that they are kept in: images uint8, other whole numbers int64, everything else float32.

    Args:
        values: The values.
        are_images: Whether their shape is that of images; 8 bits of another shape are numbers.
    """
    if values.dtype == torch.uint8 and are_images:
        return values
    is_real = values.is_floating_point() or values.dtype in (torch.bool, torch.uint8)
    return values.float() if is_real else values.long()


def _as_pil(image: torch.Tensor) -> Any:
    """What transforms get: images as PIL has them, which computes the same on every machine; others as tensors."""
    from PIL import Image
    from torchvision import tv_tensors

    if image.dtype != torch.uint8 or image.dim() != 3:
        return tv_tensors.Image(image) if image.dim() == 3 else image
    if not _is_picture(image):
        return tv_tensors.Image(image.permute(2, 0, 1))
    return Image.fromarray((image[..., 0] if image.shape[2] == 1 else image).contiguous().numpy())


def _as_tensor(image: Any) -> Any:
    """An image as transforms of tensors have it, ``[C, H, W]``."""
    from torchvision import tv_tensors

    return tv_tensors.Image(stored(image).permute(2, 0, 1))


def _is_picture(image: torch.Tensor) -> bool:
    """Whether PIL has images like this one, ``[H, W, 1 or 3]`` uint8."""
    return image.dtype == torch.uint8 and image.dim() == 3 and image.shape[2] in (1, 3)


def _parse(spec: str, key: str) -> Any:
    """A transform as it is stated. Nothing is evaluated but literals."""
    try:
        tree = ast.parse(spec.strip(), mode="eval").body
    except SyntaxError:
        raise ConfigError(f"{key}: '{spec}' is no transform; expected 'Name' or 'Name(arguments)'") from None
    return _made(tree, spec, key)


def _made(node: ast.expr, spec: str, key: str) -> Any:
    from torchvision.transforms import v2

    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name):
        raise ConfigError(f"{key}: '{spec}' is no transform; expected 'Name' or 'Name(arguments)'")
    name = call.func.id
    known = {
        one
        for one, found in vars(v2).items()
        if inspect.isclass(found) and issubclass(found, v2.Transform) and one not in _OTHERS
    }
    if name not in known:
        mixes = name in ("MixUp", "CutMix")
        hint = " Mixing images of a batch belongs to a recipe." if mixes else nearest(name, known)
        raise ConfigError(f"{key}: unknown transform '{name}' of torchvision.transforms.v2.{hint}")
    if any(isinstance(one, ast.Starred) for one in call.args) or any(word.arg is None for word in call.keywords):
        raise ConfigError(f"{key}: '{spec}': state each argument")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(v2, name)(
                *[_value(one, "", spec, key) for one in call.args],
                **{word.arg: _value(word.value, word.arg, spec, key) for word in call.keywords if word.arg},
            )
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{key}: '{spec}': {one_line(error)}") from None


def _value(node: ast.expr, name: str, spec: str, key: str) -> Any:
    """An argument: a literal, a transform, or several of them."""
    if isinstance(node, ast.Call):
        return _made(node, spec, key)
    if isinstance(node, ast.List | ast.Tuple) and any(isinstance(one, ast.Call) for one in node.elts):
        return [_value(one, "", spec, key) for one in node.elts]
    try:
        value = ast.literal_eval(node)
    except ValueError:
        raise ConfigError(f"{key}: '{spec}': '{ast.unparse(node)}' is neither a literal nor a transform") from None
    if isinstance(value, str):
        # Where Python code names an enumeration.
        from torchvision.transforms import v2

        kind = {"interpolation": v2.InterpolationMode, "policy": v2.AutoAugmentPolicy}.get(name)
        return value if kind is None else kind(value)
    return value


@contextmanager
def own_generators() -> Iterator[None]:
    """Within, the generators of torch, Python and NumPy may be seeded; they are restored."""
    state, plain, numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)
        random.setstate(plain)
        np.random.set_state(numpy)


def seed_generators(seed: int) -> None:
    """Seed the CPU generators that a transform may draw from: torch's, Python's and NumPy's."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
