"""From a workload's data section to its three splits: known by name, or brought by a user."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, update_wrapper
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

import numpy as np
import torch

from pruneaudit.errors import ConfigError, unknown
from pruneaudit.state import cache_folder, data_root
from pruneaudit.workloads.data import texts
from pruneaudit.workloads.data.brought import FOLDER, TEXTS, Origin, find, is_brought
from pruneaudit.workloads.data.builtin import LOADERS, STORED, bundled, resized, torchvision_folders
from pruneaudit.workloads.data.dataset import Dataset, Split
from pruneaudit.workloads.data.examples import Arrays, Examples
from pruneaudit.workloads.data.facts import Facts
from pruneaudit.workloads.data.parts import Part, are_images, input_shape
from pruneaudit.workloads.data.questions import files_of, identity_of, questions_of
from pruneaudit.workloads.data.splits import refuse_overlap, single, stratified
from pruneaudit.workloads.data.store import kept
from pruneaudit.workloads.data.streamed import CHUNK, Streamed, in_order, usual_workers
from pruneaudit.workloads.data.transforms import Pipeline, own_generators, seed_generators
from pruneaudit.workloads.schema import DataConfig

Asked = ParamSpec("Asked")
Found = TypeVar("Found")

#: A split of at most so many bytes is decoded into memory; larger ones are streamed.
RESIDENT_BYTES = 2**28
#: Training images, spread evenly over the split, in which mean and standard deviation are found.
_STATISTICS = 10_000

_root: Path | None = None


def look_in(root: Path | None) -> None:
    """Where this process looks for data from now on, whoever asks: the data root of its session."""
    global _root
    _root = root


def facts(config: DataConfig, root: Path | None = None) -> Facts:
    """Sizes of the three splits and of an input. Of a dataset known by name nothing is read.

    Args:
        config: The workload's data section.
        root: The data root; None: where this process looks (:func:`look_in`), else ``$PRUNEAUDIT_DATA``.

    Raises:
        ConfigError: No such dataset, or something is wrong with it.
        DataMissingError: The sizes of a user's data can be found in the data only, and they are not there.
    """
    _check(config)
    if config.name in texts.SIZES:
        # Said here: the code of the texts is a part of runs' identity.
        return replace(texts.SIZES[config.name], labels=(texts.WINDOW,))
    if is_brought(config.name):
        return _facts_of(config, root or _root or data_root(None))
    if config.name not in STORED:
        raise unknown("dataset", config.name, STORED)
    channels, height, classes, train, test = STORED[config.name]
    side = config.size or height
    blank = torch.zeros(side, side, channels, dtype=torch.uint8)
    return _divided(config, _seeded(_static(config), blank) if config.test else blank, classes, train, 0, test)


@lru_cache(maxsize=64)
def _facts_of(config: DataConfig, root: Path | None) -> Facts:
    """Sizes of a user's data."""
    origin = find(config, root)
    validation, test = (0 if split is None else len(split) for split in (origin.validation, origin.test))
    found = _divided(config, _first(origin, _static(config)), origin.classes, len(origin.train), validation, test)
    if found.dtype != torch.int64 or not isinstance(origin.train, Arrays):
        return found
    return replace(
        found,
        highest=max(int(split.inputs.max()) for split in origin.splits.values() if isinstance(split, Arrays)),
        labels=tuple(origin.train.labels.shape[1:]),
    )


def _divided(config: DataConfig, example: torch.Tensor, classes: int, train: int, validation: int, test: int) -> Facts:
    """Sizes once the splits that are not there, whose size is 0, are taken from the training examples."""
    if validation and config.validation:
        raise ConfigError(f"data.validation: {config.name} has a validation split of its own; leave the key out")
    held_out = validation or config.validation or max(train // 10 if test else train // 5, 1)
    taken = 0 if validation else held_out
    if not test:
        test = max(train // 5, 1)
        taken += test
    if taken >= train:
        left = train - taken + held_out
        raise ConfigError(f"data.validation {held_out} leaves no training image: {config.name} has {left}")
    return Facts(input_shape(example[None]), classes, train - taken, held_out, test, example.dtype)


def _check(config: DataConfig) -> None:
    """Refuse keys that exclude each other."""
    if config.size and (config.train or config.test):
        raise ConfigError("data.size: state sizes in data.train and data.test, or leave those out")
    if config.train and (config.pad or config.flip):
        raise ConfigError("data.train: it takes the place of data.pad and data.flip; leave those out")
    transforms = config.train or config.test or (config.size and is_brought(config.name))
    if config.pixels != "pil" and not transforms:
        raise ConfigError("data.pixels says what data.train and data.test act on; state those, or leave it out")
    is_text = config.name.startswith(f"{TEXTS}:")
    if is_text != bool(config.tokenizer) or is_text != bool(config.window):
        raise ConfigError(f"data.tokenizer and data.window: both of {TEXTS}:PATH, and of nothing else")
    if config.task is not None and not is_text:
        raise ConfigError(f"data.task: questions are asked of language models, on {TEXTS}:PATH; leave it out")
    if config.classes and not config.name.startswith(f"{FOLDER}:"):
        raise ConfigError(f"data.classes draws classes of a folder of images, which {config.name} is not; leave it out")


def _static(config: DataConfig) -> Pipeline:
    """What happens to each image without augmentation."""
    if is_brought(config.name) and config.size:
        return Pipeline((f"Resize({config.size})", f"CenterCrop({config.size})"), "data.size", config.pixels)
    return Pipeline(config.test, "data.test", config.pixels)


def _seeded(pipeline: Pipeline, example: Any) -> torch.Tensor:
    with own_generators():
        seed_generators(0)
        return pipeline(example)


def _first(origin: Origin, static: Pipeline) -> torch.Tensor:
    """The first training example as it is kept.

    Raises:
        ConfigError: Examples have different shapes.
    """
    if not static.specs:
        shapes = sorted(set().union(*(split.shapes for split in origin.splits.values())))
        if len(shapes) > 1:
            raise ConfigError(
                f"{origin.where}: examples have {len(shapes)} shapes, {list(shapes[0])} and {list(shapes[-1])} among "
                "them; give data.size, or data.train and data.test that end in one size"
            )
    return _seeded(static, origin.train[0])


class _Once(Generic[Asked, Found]):
    """Remembers a few answers by what is asked, however it is written: with defaults left out, given, or named.

    To ``lru_cache`` alone these are different questions, and a session held the same data twice.
    """

    def __init__(self, function: Callable[Asked, Found]) -> None:
        self._signature = inspect.signature(function)
        self._found = lru_cache(maxsize=4)(function)
        update_wrapper(self, function)

    def __call__(self, *given: Asked.args, **named: Asked.kwargs) -> Found:
        asked = self._signature.bind(*given, **named)
        asked.apply_defaults()
        return self._found(*asked.args)

    def cache_clear(self) -> None:
        """Forget all answers."""
        self._found.cache_clear()


@_Once
def load(config: DataConfig, root: Path | None = None, download: bool = False, device: str = "cpu") -> Dataset:
    """Load a dataset and split it; one object for all who ask: runs that train together read the same tensors.

    Args:
        config: The workload's data section.
        root: Folder of data in torchvision's layout; None: as for :func:`facts`.
        download: Whether torchvision may download.
        device: Where its tensors are.

    Raises:
        ConfigError: No such dataset, or something is wrong with it.
        DataMissingError: The files are not there; the message says how to get them.
    """
    if device != "cpu":
        return load(config, root, download).to(torch.device(device))
    if is_brought(config.name) or ((config.train or config.test) and config.name in LOADERS):
        return _brought(config, root or _root or data_root(None), download)
    return _known(config, root, download)


def _known(config: DataConfig, root: Path | None, download: bool) -> Dataset:
    """A dataset known by name."""
    if config.name not in LOADERS:
        raise unknown("dataset", config.name, LOADERS)
    sizes = facts(config)
    if config.mean is not None or config.std is not None:
        _check_statistics(config, sizes)
    raw = LOADERS[config.name](config, root, download)
    images, labels = raw.images, raw.labels
    if raw.test_images is None or raw.test_labels is None:
        # 60 / 20 / 20: the dataset has no test set of its own.
        rest, test_index = stratified(labels, sizes.test, "test")
        test_images, test_labels = images[test_index], labels[test_index]
        images, labels = images[rest], labels[rest]
    else:
        test_images, test_labels = raw.test_images, raw.test_labels
    train_index, validation_index = stratified(labels, sizes.validation, "validation")

    def part(pixels: np.ndarray, targets: np.ndarray) -> Part:
        return Part(torch.from_numpy(resized(pixels, config.size)), torch.from_numpy(np.ascontiguousarray(targets)))

    train = part(images[train_index], labels[train_index])
    validation = part(images[validation_index], labels[validation_index])
    test = part(test_images, test_labels)
    return _joined(config, sizes.classes, train, validation, test)


def _joined(
    config: DataConfig, classes: int, train: Split, validation: Split, test: Split, augment: Pipeline | None = None
) -> Dataset:
    joined = hashlib.sha256("".join(split.digest for split in (train, validation, test)).encode()).hexdigest()
    if config.mean is None or config.std is None:
        mean, std = statistics(train)
        config = config.model_copy(update={"mean": mean, "std": std})
    return Dataset(config, classes, train, validation, test, joined, augment)


def _check_statistics(config: DataConfig, sizes: Facts) -> None:
    mean, std = config.mean or (), config.std or ()
    if len(mean) != len(std) or len(mean) not in (
        {sizes.channels} if sizes.dtype == torch.uint8 else {0, 1, sizes.channels}
    ):
        raise ConfigError(f"data.mean and data.std of {config.name} need {sizes.channels} values each")


def _brought(config: DataConfig, root: Path | None, download: bool) -> Dataset:
    """Data that a user brings, or images by name with transforms of single ones."""
    _check(config)
    origin, static = find(config, root, download), _static(config)
    sizes = facts(config, root)
    is_image = sizes.dtype == torch.uint8
    if not is_image and (config.pad or config.flip):
        raise ConfigError(f"data.pad and data.flip need images [N, H, W, C] uint8, which {origin.where} has not")
    if config.mean is not None or config.std is not None:
        _check_statistics(config, sizes)
    # What is known by name is split as it always was: some of these sets have copies.
    splits = split(origin, sizes, apart=is_brought(config.name))
    if is_brought(config.name):
        refuse_overlap({name: _short_digests(part) for name, part in splits.items()}, origin.where)
    augment = Pipeline(config.train, "data.train", config.pixels) if config.train else None
    shape = tuple(_first(origin, static).shape)
    if augment is not None:
        # What cannot be applied is said before anything trains.
        _seeded(augment, origin.train[0])
    parts = {
        name: _part(part, static, shape, is_image, in_memory=augment is None or name != "train")
        for name, part in splits.items()
    }
    joined = _joined(config, origin.classes, parts["train"], parts["validation"], parts["test"], augment)
    joined = replace(joined, questions=questions_of(config), bytes=origin.bytes)
    is_transformed = is_image and (origin.is_decoded or augment is not None or bool(static.specs))
    return replace(joined, static=static, mode=origin.mode) if is_transformed else joined


def split(origin: Origin, sizes: Facts, apart: bool = True) -> dict[str, Examples]:
    """The three splits; those that are not there are taken from the training examples.

    Args:
        origin: What was found.
        sizes: How many each is to have.
        apart: Whether an example of which there is a second copy is never held out: no two splits then share it.

    Raises:
        ConfigError: Too few examples can be held out.
    """
    train, found = origin.train, dict(origin.splits)
    for name, count in (("test", sizes.test), ("validation", sizes.validation)):
        if name not in found:
            stays, held_out = stratified(train.labels, count, name, single(_short_digests(train)) if apart else None)
            found[name], train = train.take(held_out), train.take(stays)
    return {"train": train, "validation": found["validation"], "test": found["test"]}


def _short_digests(examples: Examples) -> np.ndarray:
    """The first eight bytes of the digest of each example, ``[N, 8]`` uint8: enough to tell a million apart."""
    # Copied: a view would keep all that was read with it.
    return np.concatenate([block[:, :8].copy() for block in examples.digests()])


def _part(examples: Examples, static: Pipeline, shape: tuple[int, ...], is_image: bool, in_memory: bool) -> Split:
    """A split in memory where it is small, else streamed: from a file of decoded images where there is room for one."""
    labels = torch.from_numpy(np.ascontiguousarray(examples.labels, dtype=np.int64))
    if in_memory and isinstance(examples, Arrays) and not static.specs:
        return Part(examples.inputs, labels)
    plain = Streamed(examples, labels, static, shape, is_image, workers=usual_workers())
    if not in_memory:
        return plain
    if len(examples) * int(np.prod(shape)) * (1 if is_image else 4) <= RESIDENT_BYTES:
        return plain.first(len(plain))
    if not is_image:
        return plain
    return stored_in_file(plain)


def stored_in_file(part: Streamed) -> Streamed:
    """A streamed split that reads its decoded images from a file in the cache folder, where there is room for it."""
    key = hashlib.sha256(json.dumps([part.digest, part.shape, versions()]).encode()).hexdigest()
    store = kept(cache_folder(), key, len(part), part.stored_shape, part.read(in_order(len(part))))
    return Streamed(part.examples, part.labels, part.static, part.stored_shape, True, store, part.workers, part.device)


def statistics(train: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of training images in [0, 1], without augmentation.

    Of at most 10,000 images, spread evenly over the split, as sums of whole numbers: the same on every machine. What
    is no image is taken as it is, and has none.

    Args:
        train: The training split.
    """
    is_image = are_images(train.images) if isinstance(train, Part) else train.is_image
    if not is_image:
        return (), ()
    count = min(len(train), _STATISTICS)
    index = [number * len(train) // count for number in range(count)]
    chunks = [index[start : start + CHUNK] for start in range(0, count, CHUNK)]
    total = squares = torch.zeros(train.shape[0], dtype=torch.int64)
    pixels = 0
    for images in (train.images[chunk] for chunk in chunks) if isinstance(train, Part) else train.read(chunks):
        values = images.flatten(0, 2).long()
        total, squares, pixels = total + values.sum(0), squares + (values**2).sum(0), pixels + len(values)
    mean = [int(one) / pixels for one in total]
    variance = [int(square) / pixels - one**2 for square, one in zip(squares, mean, strict=True)]
    # A channel that never changes is only shifted.
    std = [max(one, 0.0) ** 0.5 or 255.0 for one in variance]
    return tuple(round(one / 255, 6) for one in mean), tuple(round(one / 255, 6) for one in std)


def versions() -> dict[str, str]:
    """Versions of the libraries that decode and transform."""
    import PIL
    import torchvision

    return {"pillow": PIL.__version__, "torchvision": torchvision.__version__.partition("+")[0]}


def identity(config: DataConfig, root: Path | None = None) -> str | None:
    """What tells data from an edited version of them, besides the data section: None of what is known by name.

    SHA-256 over examples and labels as they are now, the code that gives them, and the versions of the libraries that
    decode or transform them.

    Args:
        config: The workload's data section.
        root: The data root, as for :func:`facts`.

    Raises:
        ConfigError: Something is wrong with them.
        DataMissingError: They are not there.
    """
    transforms = bool(config.train or config.test)
    if not is_brought(config.name):
        content: dict[str, Any] = {"versions": versions()} if transforms else {}
    else:
        origin = find(config, root or _root or data_root(None))
        decodes = origin.is_decoded or transforms or bool(config.size)
        content = {"content": origin.content(), "code": origin.code(), "versions": versions() if decodes else {}}
        content |= {} if config.task is None else {"task": identity_of(config)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest() if content else None


def stored_at(root: Path | None, config: DataConfig | None = None) -> list[Path]:
    """Folders of datasets: scikit-learn's own, torchvision's below a data root, a workload's own, decoded ones."""
    own: list[Path] = []
    if config is not None and (is_brought(config.name) or _is_streamed_imagenet(config)):
        own = [*find(config, root or _root or data_root(None)).folders, *files_of(config), cache_folder()]
    return [bundled(), *torchvision_folders(root), *own]


def _is_streamed_imagenet(config: DataConfig) -> bool:
    return config.name == "imagenet" and bool(config.train or config.test)


def imitation(config: DataConfig, images: int, held_out: int) -> Dataset:
    """Random inputs in the sizes of a dataset: what computing takes does not depend on them.

    Decoding and transforming single images is left out.

    Args:
        config: The workload's data section.
        images: Training images.
        held_out: Images of validation and test, each.

    Raises:
        ConfigError: No such dataset.
    """
    sizes, noise = facts(config), torch.Generator().manual_seed(0)
    is_image = sizes.dtype == torch.uint8
    if config.mean is None or config.std is None:
        values = (0.5,) * sizes.channels if is_image else ()
        config = config.model_copy(update={"mean": values, "std": values})

    def part(count: int) -> Part:
        if is_image:
            channels, *sides = sizes.shape
            inputs = torch.randint(0, 256, (count, *sides, channels), dtype=torch.uint8, generator=noise)
        elif sizes.dtype == torch.int64:
            inputs = torch.randint(0, sizes.highest + 1, (count, *sizes.shape), generator=noise)
        else:
            inputs = torch.randn(count, *sizes.shape, generator=noise)
        return Part(inputs, torch.randint(0, sizes.classes, (count, *sizes.labels), generator=noise))

    return Dataset(config, sizes.classes, part(images), part(held_out), part(held_out), "random")
