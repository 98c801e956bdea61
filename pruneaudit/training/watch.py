"""Watches a method that holds the network: what it changes outside metered training, and what else it reaches.

Nothing here prevents anything: it is measured, and the audit says what was seen. What a method cannot do at all is said
in ``method/isolation.py``.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from pruneaudit.ledger.records import Shown
from pruneaudit.workloads.data import Dataset, Split, is_reading

#: Correlation from which two images are the same picture: brightness and contrast do not count.
SAME_PICTURE = 0.995
#: Foreign pictures, a sample, that are compared with every held-out one at every shift; all others only as they are.
COMPARED_PICTURES = 8
#: Tokens of an n-gram by which texts are told apart (Brown et al. 2020, appendix C), and the share of a window's
#: n-grams that held-out texts have, and the training texts have not, from which it is theirs: wherever it begins.
NGRAM, SAME_TEXT = 13, 0.5


class Reach:
    """Hears what this process opens, while entered.

    Args:
        off_limits: Folders that a method has no business with, by what they hold: ``data``, ``ledger``, ``reports``.
        everywhere: Hear all threads, not only the one that made this.
        own: Folder in which sockets are nobody else's; None: there is none.

    Attributes:
        found: What was reached: ``data: PATH``, ``host: ADDRESS``, ``program: NAME``.
    """

    def __init__(
        self, off_limits: Mapping[str, Sequence[Path]] | None = None, everywhere: bool = False, own: Path | None = None
    ) -> None:
        self.found: set[str] = set()
        self._off_limits = [(kind, str(path.resolve())) for kind, paths in (off_limits or {}).items() for path in paths]
        self._thread = None if everywhere else threading.get_ident()
        self._own = own

    def __enter__(self) -> Self:
        _listen()
        _listening.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _listening.remove(self)

    def heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note what this process opens, if it is off limits."""
        if self._thread not in (None, threading.get_ident()) or is_reading():
            return
        first = arguments[0] if arguments else None
        if event in _FILES:
            # A file descriptor instead of a name: whoever opened it was seen then.
            for name in arguments[: _FILES[event]]:
                if isinstance(name, str | bytes | os.PathLike):
                    path = os.path.realpath(os.fsdecode(name))
                    for kind, place in self._off_limits:
                        if path == place or path.startswith(f"{place}/"):
                            self.found.add(f"{kind}: {path}")
        elif event == "socket.connect":
            if self._own is not None and str(arguments[1]).startswith(f"{self._own}/"):
                return  # workers of a loader
            self.found.add(f"host: {arguments[1]}")
        elif event in _PROGRAMS and not _asked_by_a_library():
            self.found.add(f"program: {event if first is None else os.fsdecode(first)}")


def _asked_by_a_library() -> bool:
    """Whether a library that everybody uses starts a program or a process for its own ends: core counts, loaders."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).startswith(_HELPERS):
            return True
        frame = frame.f_back
    return False


#: ``platform.processor()``, joblib's count of cores, workers of a DataLoader.
_HELPERS = ("platform", "joblib.externals.loky.backend.context", "torch.utils.data.dataloader")


class Watch:
    """Watches one network while entered.

    Args:
        model: The network.
        own: Names of the modules that the method may change: the layers it prunes and their normalisation.
        pictures: What looks at images that the harness did not hand out.
        off_limits: Folders that a method has no business with, see :class:`Reach`.
    """

    def __init__(
        self,
        model: nn.Module,
        own: Sequence[str],
        pictures: Pictures,
        off_limits: Mapping[str, Sequence[Path]] | None = None,
    ) -> None:
        self.rewritten: set[str] = set()
        self.touched: set[str] = set()
        self.pictures = pictures
        self._model = model
        self._own = tuple(own)
        self._reach = Reach(off_limits)
        self._known = _copy(model)

    @property
    def reached(self) -> set[str]:
        """What was opened that is off limits."""
        return self._reach.found

    def __enter__(self) -> Self:
        self._reach.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reach.__exit__(kind, error, trace)
        self._compare()

    @contextmanager
    def training(self) -> Iterator[None]:
        """Within, changes of weights are metered training."""
        self._compare()
        try:
            yield
        finally:
            self._known = _copy(self._model)

    def _compare(self) -> None:
        """Note every tensor that is not what it was after the last metered training."""
        rewritten, touched = changes(self._known, self._model.state_dict(), self._own)
        self.rewritten |= rewritten
        self.touched |= touched


def changes(
    before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], own: Collection[str]
) -> tuple[set[str], set[str]]:
    """Names of the tensors that differ bit for bit: those of some modules, and the others."""
    found = {
        name
        for name in {*before, *after}
        if name not in before or name not in after or not torch.equal(before[name], after[name])
    }
    rewritten = {name for name in found if name.rpartition(".")[0] in own}
    return rewritten, found - rewritten


class Pictures:
    """Tells whether images (texts) that passed a network are held-out ones, and which were handed out for scores.

    Attributes:
        foreign: Images that the harness did not hand out.
        held_out: Those of them that are validation or test images.
        own: Those of them that the harness did not hand out for scores either: in other batches, say.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.foreign = 0
        self.held_out = 0
        self.own = 0
        self._dataset = dataset
        self._admitted: dict[bytes, int] = {}
        self._keys: frozenset[bytes] | None = None
        self._sample: dict[bytes, torch.Tensor] = {}

    def admit(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Note a batch that the harness hands out for scores: ``[N, C, H, W]``, and ``[N]`` (of tokens ``[N, T]``)."""
        each = labels[0].numel() if len(labels) else 1
        self._admitted.update((key, each) for key in _keys(images))

    @property
    def shown(self) -> Shown:
        """What was handed out for scores."""
        digest = hashlib.sha256(b"".join(sorted(self._admitted))).hexdigest() if self._admitted else ""
        return Shown(examples=len(self._admitted), tokens=sum(self._admitted.values()), digest=digest)

    def see(self, images: torch.Tensor) -> None:
        """Count a batch that the harness did not hand out, ``[N, C, H, W]``; other shapes are no inputs."""
        data = self._dataset
        if images.is_meta or tuple(images.shape[1:]) != data.shape:
            return
        if self._keys is None:
            held_out = {key for part in (data.validation, data.test) for key in self._keys_of(part)}
            # One by one: all keys of a large training split need not be in memory at once.
            held_out.difference_update(self._keys_of(data.train))
            self._keys = frozenset(held_out)
        self.foreign += len(images)
        for image, key in zip(images.detach(), _keys(images), strict=True):
            self.own += key not in self._admitted
            if key in self._keys:
                self.held_out += 1
            else:
                self._remember(image, key)

    def _keys_of(self, part: Split) -> Iterator[bytes]:
        for images, _ in self._dataset.inputs(part):
            yield from _keys(images)

    def _remember(self, image: torch.Tensor, digest: bytes) -> None:
        """Keep the images with the smallest digests: a fair sample, whatever order they come in."""
        if len(self._sample) < COMPARED_PICTURES or digest < max(self._sample):
            self._sample[digest] = image.cpu().float()
            if len(self._sample) > COMPARED_PICTURES:
                del self._sample[max(self._sample)]

    def compare(self) -> int:
        """Held-out images among all, those in disguise (shifted, mirrored, scaled) included as far as sampled."""
        data = self._dataset
        if not data.example().is_floating_point():
            return self.held_out + self._moved_texts()
        if len(data.shape) != 3:
            # A vector has neither place nor brightness.
            return self.held_out
        margin = min(data.config.pad, (min(data.height, data.width) - 1) // 2)
        disguised = [_standard(_views(image, margin, data.config.flip)) for image in self._sample.values()]
        sample = [views for views in disguised if len(views)]
        if not sample:
            return self.held_out
        validation, test, train = (
            self._closest(sample, part, margin) for part in (data.validation, data.test, data.train)
        )
        # A changed training image may resemble a held-out one; it resembles itself more (or, where a picture is in
        # both, as much).
        found = sum(
            max(one, other) >= SAME_PICTURE and max(one, other) > trained + 1e-5
            for one, other, trained in zip(validation, test, train, strict=True)
        )
        return self.held_out + found

    def _moved_texts(self) -> int:
        """Sampled windows of tokens whose n-grams are those of held-out texts, wherever these begin."""
        if not self._sample:
            return 0
        data = self._dataset
        windows = torch.stack(list(self._sample.values()))
        length = min(NGRAM, (windows.shape[1] + 1) // 2)
        sample = _ngrams(windows, length)
        # Windows of a text follow each other; questions of a task are as held out as its texts.
        asked = [text for part in data.questions.values() for text in part.texts() if len(text) >= length]
        held_out, known = (
            np.concatenate([_ngrams(text, length) for text in (*map(_joined, map(data.inputs, parts)), *more)])
            for parts, more in (((data.validation, data.test), asked), ((data.train,), []))
        )
        only_theirs = np.isin(sample, held_out) & ~np.isin(sample, known)
        return int((only_theirs.mean(axis=1) >= SAME_TEXT).sum())

    def _closest(self, sample: Sequence[torch.Tensor], part: Split, margin: int) -> list[float]:
        """For each image of a sample: the largest correlation of its views with the middle of any image of a split."""
        best = [-1.0] * len(sample)
        _, height, width = self._dataset.shape
        for _, stored in self._dataset.stored(part, 4096):
            images = stored if stored.dtype != torch.uint8 else stored.permute(0, 3, 1, 2)
            known = _standard(images[:, :, margin : height - margin, margin : width - margin].cpu())
            if len(known):
                best = [max(one, float((views @ known.T).max())) for one, views in zip(best, sample, strict=True)]
        return best


def _copy(model: nn.Module) -> Mapping[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _keys(images: torch.Tensor) -> list[bytes]:
    """A key for each image: a digest of its pixels to a 64th of a standard deviation; of tokens as they are."""
    exact = images.detach()
    whole = (exact.double() * 64).round().to(torch.int16) if exact.is_floating_point() else exact.to(torch.int64)
    return [hashlib.sha256(image.tobytes()).digest() for image in whole.cpu().contiguous().numpy()]


def _joined(batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Tokens of a split, ``[N * T]``."""
    return torch.cat([tokens.flatten().cpu() for tokens, _ in batches])


def _ngrams(tokens: torch.Tensor, length: int) -> np.ndarray:
    """A number for each n-gram of tokens ``[..., T]``: ``[..., T - n + 1]``, the same for the same tokens."""
    known = tokens.cpu().long().numpy().astype(np.uint64) + np.uint64(1)
    # A polynomial modulo 2^64: different n-grams all but never meet.
    powers = np.uint64(0x9E3779B97F4A7C15) ** np.arange(length, dtype=np.uint64)
    found: np.ndarray = (np.lib.stride_tricks.sliding_window_view(known, length, axis=-1) * powers).sum(axis=-1)
    return found


def _views(image: torch.Tensor, margin: int, flip: bool) -> torch.Tensor:
    """What may be the middle of an image ``[C, H, W]`` that augmentation shifted and mirrored: ``[V, C, h, w]``.

    The middle alone is compared: whatever an image is padded with, its middle stays in the picture at every shift.
    """
    height, width = image.shape[1] - 2 * margin, image.shape[2] - 2 * margin
    shifted = [
        image[:, row : row + height, column : column + width]
        for row in range(2 * margin + 1)
        for column in range(2 * margin + 1)
    ]
    return torch.stack([*shifted, *(view.flip(-1) for view in shifted)] if flip else shifted)


def _standard(images: torch.Tensor) -> torch.Tensor:
    """Images as vectors of length 1, each channel freed of brightness and contrast, ``[N, C·H·W]``.

    Flat images, which resemble everything, are left out.
    """
    channels = images.flatten(2).float()
    channels = channels - channels.mean(dim=2, keepdim=True)
    flat = nn.functional.normalize(channels, dim=2, eps=1e-6).flatten(1)
    length = flat.norm(dim=1)
    return flat[length > 1e-3] / length[length > 1e-3, None]


# Python offers audit hooks for a whole process only, and for good: one hook, which asks who is watching.
_listening: list[Reach] = []


@cache
def _listen() -> None:
    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if _listening and event in _EVENTS:
            for reach in tuple(_listening):
                reach.heard(event, arguments)

    sys.addaudithook(heard)


#: What is done in another process is neither metered nor watched.
_PROGRAMS = frozenset(
    {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty"}
)
#: Events about files, and how many of their arguments are names.
_FILES = {"open": 1, "os.listdir": 1, "os.scandir": 1, "os.remove": 1, "os.rename": 2, "os.link": 2, "os.truncate": 1}
_EVENTS = frozenset({*_PROGRAMS, *_FILES, "socket.connect"})
