"""Questions with choices as tokens, from local files: what lm-eval 0.4 calls multiple choice.

A file has a question on each line, as JSON: ``{"context": "…", "choices": ["…", "…"], "answer": 0}``, or, where the
choices stand before what is scored (WinoGrande), ``{"contexts": ["…", "…"], "continuation": "…", "answer": 0}``.
Several right answers are a list. ``"image": "a.png"`` (or a list) names images of the task's folder, in whose places
the context has the model's token of an image.

A request is a context with one continuation, joined and cut as lm-eval does it (``TemplateLM._encode_pair``,
``HFLM._loglikelihood_tokens``): spaces at the end of a context belong to the continuation, both are tokenised together,
an empty context is the tokenizer's first token, and what is longer than a window loses its beginning.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pruneaudit.errors import ConfigError, DataMissingError, one_line
from pruneaudit.workloads.data.splits import refuse_overlap
from pruneaudit.workloads.data.tokens import tokenizer_of
from pruneaudit.workloads.networks import config_of
from pruneaudit.workloads.schema import DataConfig
from pruneaudit.workloads.sharded import file_digest


@dataclass(frozen=True)
class Request:
    """A choice of a question, as a network reads it.

    Attributes:
        tokens: Context and continuation but for its last token.
        targets: Tokens of the continuation: each follows one of the last ``tokens``.
        characters: Length of the choice.
        bytes: Its length in UTF-8.
    """

    tokens: tuple[int, ...]
    targets: tuple[int, ...]
    characters: int
    bytes: int


@dataclass(frozen=True)
class Question:
    """A question.

    Attributes:
        requests: Its choices.
        right: Numbers of those that are right.
        images: Files of its images, in the order of their places.
    """

    requests: tuple[Request, ...]
    right: tuple[int, ...]
    images: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Questions:
    """Questions of a split of a task.

    Attributes:
        each: The questions, in order.
        cut: Requests that lost their beginning.
        visual: Tokens that each image has in the place of one; 0 where there are no images.
        model: Folder of the model, which says how images are prepared.
    """

    each: tuple[Question, ...]
    cut: int = 0
    visual: int = 0
    model: Path = field(default=Path(), compare=False)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all requests as they are read, their images, lengths and answers, in order."""
        found = hashlib.sha256()
        for question in self.each:
            requests = [(one.tokens, one.targets, one.characters, one.bytes) for one in question.requests]
            images = [file_digest(path) for path in question.images]
            found.update(json.dumps([requests, question.right, images]).encode())
        return found.hexdigest()

    @property
    def requests(self) -> int:
        """How many requests they are."""
        return sum(len(question.requests) for question in self.each)

    def texts(self) -> Iterator[torch.Tensor]:
        """Tokens of each request, ``[T]``: what a method must not have seen."""
        for question in self.each:
            for one in question.requests:
                yield torch.tensor((*one.tokens, one.targets[-1]))

    def first(self, count: int) -> Questions:
        """The first questions."""
        return replace(self, each=self.each[:count])

    def pixels(self, paths: Sequence[Path]) -> torch.Tensor:
        """Images as the model takes them, ``[N, C, H, W]``, by its ``preprocessor_config.json``.

        Raises:
            ConfigError: One cannot be read, or nothing says how they are prepared.
        """
        from PIL import Image

        prepare = _processor(self.model)
        found = []
        for path in paths:
            try:
                with Image.open(path) as image:
                    found.append(prepare(image.convert("RGB"), return_tensors="pt")["pixel_values"][0])
            except OSError as error:
                raise ConfigError(f"task: {path} is no image: {one_line(error)}; copy it again") from None
        return torch.stack(found)


def questions_of(config: DataConfig) -> dict[str, Questions]:
    """Questions of a workload's task, of ``validation`` and ``test``; empty where it has none.

    Args:
        config: The workload's data section: its task, its tokenizer, and the length of a window.

    Raises:
        ConfigError: A file is wrong, or a question is in both.
        DataMissingError: A file is not there.
    """
    task = config.task
    if task is None:
        return {}
    reader = _Reader(config)
    found = {
        name: reader.read(_below(config, path)) for name, path in (("validation", task.validation), ("test", task.test))
    }
    refuse_overlap({name: _digests(part) for name, part in found.items()}, f"task '{task.name}'")
    return found


def identity_of(config: DataConfig) -> list[str]:
    """What tells a task's questions from edited ones."""
    return [part.digest for part in questions_of(config).values()]


def files_of(config: DataConfig) -> list[Path]:
    """Where a task's questions and images lie."""
    task = config.task
    if task is None:
        return []
    return [_below(config, path) for path in (task.validation, task.test, task.images) if path]


class _Reader:
    """Turns lines into questions.

    Args:
        config: The workload's data section.
    """

    def __init__(self, config: DataConfig) -> None:
        assert config.task is not None
        self._task, self._config = config.task, config
        self._tokenizer, *_ = tokenizer_of(config)
        self._model = _below(config, config.tokenizer)
        self._described = config_of(self._model) if (self._model / "config.json").is_file() else {}
        self._first = _first_token(self._model, self._described, self._tokenizer)

    def read(self, path: Path) -> Questions:
        """The questions of a file."""
        try:
            with path.open(encoding="utf-8") as file:
                lines = [(number, line) for number, line in enumerate(file, 1) if line.strip()]
        except OSError as error:
            raise DataMissingError(f"task: {path}: {error.strerror}; put the task's questions there") from None
        except ValueError as error:
            raise ConfigError(f"task: {path}: {one_line(error)}; save it as UTF-8") from None
        if not lines:
            raise ConfigError(f"task: {path} has no question")
        read = []
        for number, line in lines:
            try:
                read.append(self._question(json.loads(line)))
            except (ValueError, KeyError, TypeError, IndexError) as error:
                what = f"no key {error}" if isinstance(error, KeyError) else one_line(error)
                raise ConfigError(f"task: {path}:{number}: no question: {what}") from None
        each, cut = zip(*read, strict=True)
        visual = self._visual if any(question.images for question in each) else 0
        return Questions(each, sum(cut), visual, self._model)

    def _question(self, row: Mapping[str, Any]) -> tuple[Question, int]:
        """A question, and how many of its requests were cut."""
        delimiter = self._task.delimiter
        if "contexts" in row:
            choices = [str(one) for one in row["contexts"]]
            pairs = [(context, f"{delimiter}{row['continuation']}") for context in choices]
        else:
            choices = [str(one) for one in row["choices"]]
            pairs = [(str(row["context"]), f"{delimiter}{choice}") for choice in choices]
        if len(choices) < 2 or not all(choices):
            raise ValueError("two choices at least, and none is empty")
        given = row["answer"]
        right = tuple(sorted(given)) if isinstance(given, list) else (given,)
        if not right or not all(type(one) is int and 0 <= one < len(choices) for one in right):
            raise ValueError(
                f"answer {given!r} is the number of none of its {len(choices)} choices, which count from 0"
            )
        named = row.get("image", [])
        images = tuple(self._image(name) for name in ([named] if isinstance(named, str) else named))
        requests, cut = [], 0
        for choice, (context, continuation) in zip(choices, pairs, strict=True):
            before, targets = self._encoded(context, continuation)
            if images:
                before = self._with_images(before, len(images))
            if not targets:
                raise ValueError(f"choice '{choice}' has no token of its own behind its context")
            whole = [*before, *targets]
            longest = self._config.window + 1
            if len(targets) > self._config.window or (images and len(whole) > longest):
                raise ValueError(f"it has {len(whole) - 1} tokens, and data.window is {self._config.window}")
            cut += len(whole) > longest
            requests.append(Request(tuple(whole[-longest:-1]), tuple(targets), len(choice), len(choice.encode())))
        return Question(tuple(requests), right, images), cut

    def _encoded(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of a context and of what follows it."""
        if not context:
            if self._first is None:
                raise ValueError("its context is empty, and neither tokenizer nor model names a first token")
            targets = self._tokens(continuation, special=False)
            if targets[:1] == [self._first]:
                return targets[:1], targets[1:]
            return [self._first], targets
        kept = context.rstrip()
        continuation, context = context[len(kept) :] + continuation, kept
        before = self._tokens(context)
        return before, self._tokens(context + continuation)[len(before) :]

    def _tokens(self, text: str, special: bool = True) -> list[int]:
        if self._first is not None:
            special &= not text.startswith(self._tokenizer.decode([self._first], skip_special_tokens=False))
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
        return tokens

    # Images

    def _image(self, name: str) -> Path:
        path = _below(self._config, self._task.images) / name
        if not path.is_file():
            raise DataMissingError(f"task: {path} is not there; data.task.images is the folder of its images")
        return path

    @cached_property
    def _visual(self) -> int:
        """Tokens of an image, by the model's configuration (Llava's: one for each patch)."""
        tower = self._described.get("vision_config") or {}
        size, patch = tower.get("image_size"), tower.get("patch_size")
        if not isinstance(size, int) or not isinstance(patch, int) or self._mark is None:
            raise ValueError(
                "it has an image, and the model's config.json describes no tower for images as Llava's does"
            )
        return (size // patch) ** 2 + (self._described.get("vision_feature_select_strategy") == "full")

    @property
    def _mark(self) -> int | None:
        """The token in whose place an image is put."""
        found = self._described.get("image_token_id", self._described.get("image_token_index"))
        return found if isinstance(found, int) else None

    def _with_images(self, tokens: list[int], count: int) -> list[int]:
        visual, places = self._visual, tokens.count(self._mark)  # type: ignore[arg-type]
        if places != count:
            raise ValueError(f"its context has {places} places of images (token {self._mark}), and it names {count}")
        return [one for token in tokens for one in [token] * (visual if token == self._mark else 1)]


def _below(config: DataConfig, path: str) -> Path:
    return (config.folder or Path()) / Path(path).expanduser()


def _first_token(model: Path, described: Mapping[str, Any], tokenizer: Any) -> int | None:
    """The token that stands for an empty context: the tokenizer's first one, else its last one."""
    path = model / "tokenizer_config.json"
    try:
        said = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"data.tokenizer: {path} is damaged ({one_line(error)}); copy it again") from None
    inner = described.get("text_config") or {}
    for kind in ("bos_token", "eos_token"):
        token = said.get(kind)
        text = token.get("content") if isinstance(token, Mapping) else token
        found = tokenizer.token_to_id(text) if isinstance(text, str) else None
        found = described.get(f"{kind}_id", inner.get(f"{kind}_id")) if found is None else found
        found = found[0] if isinstance(found, list) and found else found
        if isinstance(found, int):
            return found
    return None


def _digests(questions: Questions) -> np.ndarray:
    """A digest of each question, ``[N, 32]`` uint8."""
    rows = [
        hashlib.sha256(
            json.dumps([[one.tokens for one in each.requests], [file_digest(path) for path in each.images]]).encode()
        ).digest()
        for each in questions.each
    ]
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), -1)


def _processor(model: Path) -> Any:
    """What prepares images of a model."""
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(model)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(
            f"task: {model} does not say how images are prepared: {one_line(error)}; copy its preprocessor_config.json"
        ) from None
