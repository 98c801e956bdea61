"""Base models as people have them: read as data only, named as the network names them, refused in one line.

Reading and looking at a safetensors file need no torch; whatever else does imports it when it is called.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import safetensors

from pruneaudit.errors import ConfigError, nearest, one_line
from pruneaudit.workloads import sharded
from pruneaudit.workloads.schema import Reading, Workload

if TYPE_CHECKING:
    import torch

#: Where training code puts the weights beside other things; the first that is there is read.
_NESTED = ("state_dict", "model_state_dict", "model", "net", "ema", "model_ema", "state_dict_ema")
#: What wrappers put before every name: DataParallel, torch.compile, Lightning and others, detectors.
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
_TRACKED = "num_batches_tracked"
Kept = TypeVar("Kept")
#: Share of zeros from which a base is called sparse: rounding and dead filters leave some in any network.
_SPARSE = 0.01


@dataclass(frozen=True)
class Weights:
    """A checkpoint as a network takes it.

    Attributes:
        tensors: For each tensor of the network's state, by name, what the file holds, in the file's type.
        notes: What was done to the file's content, for people: nothing where it held just that.
    """

    tensors: dict[str, torch.Tensor]
    notes: tuple[str, ...]


def base_path(option: Path | None, workload: Workload) -> Path | None:
    """File (folder) of the base model of a workload: the session's, else the workload's own, else None."""
    if option is not None:
        return option.expanduser()
    if workload.base is None or workload.base.path is None:
        return None
    path = Path(workload.base.path).expanduser()
    return path if workload.folder is None else workload.folder / path


def digest(path: Path) -> str:
    """SHA-256 of a checkpoint; of a folder that of all that makes its model (:func:`.sharded.digest`).

    Raises:
        ConfigError: It cannot be read, or is none.
    """
    return sharded.digest(path) if path.is_dir() else hashlib.sha256(read(path)).hexdigest()


def read(path: Path) -> bytes:
    """Content of a checkpoint, as far as can be told without a network: a format that is known, and no integers.

    Raises:
        ConfigError: It cannot be read, is damaged, no checkpoint, or quantised.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"base {path}: {error.strerror}; give a safetensors file or a PyTorch checkpoint") from None
    if content.startswith(b"version https://git-lfs"):
        raise ConfigError(f"base {path}: only a pointer of Git LFS; fetch the file itself with 'git lfs pull'")
    if _is_safetensors(content):
        for name, entry in _deserialised(content, path):
            # In safetensors' words I8, U8, F8_E4M3, …; larger whole numbers may be indices that a network keeps.
            if name.endswith(".weight") and entry["dtype"][1:].partition("_")[0] in ("4", "6", "8"):
                raise ConfigError(_quantised(path, name, entry["dtype"]))
    elif not _is_torch(content):
        raise ConfigError(
            f"base {path}: not a safetensors file or damaged, and no PyTorch checkpoint; convert or copy it again"
        )
    return content


def fitted(content: bytes, path: Path, reading: Reading, network: torch.nn.Module, what: str) -> Weights:
    """The weights that a checkpoint holds for a network.

    Args:
        content: What :func:`read` gave.
        path: For messages.
        reading: What the workload says about where and how the file names its tensors.
        network: A network whose weights are to be replaced; it is not changed.
        what: Its name, for messages.

    Raises:
        ConfigError: The file is for another network, or holds what no trained network holds; the message names the
            first difference and what to do.
    """
    import torch

    state, notes = _state(content, path, reading)
    notes += released_as(content)
    state = _renamed(state, path, reading)
    expected = network.state_dict()
    prefix = _prefix(state, expected)
    if prefix:
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        notes.append(f"prefix '{prefix}' taken off")
    untracked = [name for name in expected if name.endswith(_TRACKED) and name not in state]
    if untracked:
        state.update({name: torch.zeros_like(expected[name]) for name in untracked})
        notes.append(f"{len(untracked)} {_TRACKED} missing, set to 0")
    _compare(state, expected, path, what)
    _trained(state, path)
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in state.values() if tensor.is_floating_point()}
    notes += [f"{kind} cast to float32" for kind in sorted(kinds - {"float32"})]
    matrices = [tensor for tensor in state.values() if tensor.dim() > 1]
    zeros = 1 - sum(int(one.count_nonzero()) for one in matrices) / max(1, sum(one.numel() for one in matrices))
    if zeros >= _SPARSE:
        held = "and stay so" if reading.zeros == "hold" else "and may grow: zeros = 'hold' in [base] keeps them"
        notes.append(f"{zeros:.1%} of its weights are zero, {held}")
    return Weights({name: state[name] for name in expected}, tuple(notes))


@dataclass(frozen=True)
class Shards:
    """Where a folder keeps the weights of a network.

    Attributes:
        places: For each parameter and buffer of the network's state, by name, where it is; those that are shared once.
        notes: How they are stored, for people.
    """

    places: dict[str, sharded.Stored]
    notes: tuple[str, ...]

    def read(self) -> dict[str, torch.Tensor]:
        """All of them, each in the type of its file: read one by one, so that none is in memory twice.

        Raises:
            ConfigError: A file cannot be read, or holds what no trained network holds.
        """
        found = {}
        for name, place in self.places.items():
            found[name] = sharded.read(place)
            _trained({name: found[name]}, place.path)
        return found


def found_in(folder: Path, reading: Reading, network: torch.nn.Module, what: str) -> Shards:
    """Where a folder keeps the weights of a network, by the headers of its files: no weight is read.

    Args:
        folder: As Hugging Face keeps models.
        reading: What the workload says about how the files name their tensors.
        network: A network whose weights are to be replaced; it is not changed.
        what: Its name, for messages.

    Raises:
        ConfigError: The folder is damaged, or of another network; the message names the first difference.
    """
    import torch

    from pruneaudit.workloads.models.tensors import aliases

    if reading.key or reading.zeros == "hold":
        raise ConfigError(f"base {folder}: [base] key and zeros are for single files; leave them out")
    stored = _renamed(sharded.stored_in(folder), folder, reading)
    # The module that holds Hugging Face's network has it under a name of its own.
    own = f"{next(iter(dict(network.named_children())), '')}."
    state = network.state_dict()
    if all(name.startswith(own) for name in state):
        stored = {f"{own}{name}": tensor for name, tensor in stored.items()}
    shared = aliases(network)
    # Of tied weights files hold one or both; rates of rotary places were kept once, and follow from the configuration.
    places = {
        name: tensor
        for name, tensor in stored.items()
        if shared.get(name) not in stored and (name in state or not name.endswith("rotary_emb.inv_freq"))
    }
    places = {shared.get(name, name): tensor for name, tensor in places.items()}
    looks = {
        name: torch.empty(tensor.shape, dtype=getattr(torch, tensor.kind), device="meta")
        for name, tensor in places.items()
    }
    _compare(looks, {name: tensor for name, tensor in state.items() if name not in shared}, folder, what)
    kinds = sorted({tensor.kind for tensor in places.values() if tensor.is_float})
    files = len({tensor.path for tensor in places.values()})
    return Shards(places, (f"{' and '.join(kinds)} weights from {files} file{'s' * (files > 1)}",))


def released_as(content: bytes) -> list[str]:
    """Which of torchvision's released weights a file holds, in words; nothing where it is none of them.

    What papers prune are the first ones (V1): ResNet-50 has 76.13 % with them, and 80.86 % with V2, which was trained
    with another recipe and is tested at another size.

    Args:
        content: The file.
    """
    note = _released().get(hashlib.sha256(content).hexdigest()[:8])
    return [] if note is None else [note]


@lru_cache(maxsize=1)
def _released() -> dict[str, str]:
    """What torchvision's weights are called, by the end of their files' names: eight digits of their SHA-256."""
    from torchvision import models

    found = {}
    for name in models.list_models(module=models):
        first, *others = models.get_model_weights(name)
        called = f"torchvision's {type(first).__name__}.{first.name}"
        found[_digits(first.url)] = called
        for one in others:
            more = f"torchvision's {type(one).__name__}.{one.name}"
            found[_digits(one.url)] = f"{more}, and not the {first.name} that papers prune"
    return found


def _digits(url: str) -> str:
    return url.rpartition("-")[2].removesuffix(".pth")


def _is_safetensors(content: bytes) -> bool:
    # Eight bytes of length, then JSON.
    return content[8:9] == b"{"


def _is_torch(content: bytes) -> bool:
    # A ZIP archive since PyTorch 1.6, bare pickles before.
    return content.startswith((b"PK\x03\x04", b"\x80"))


def _deserialised(content: bytes, path: Path) -> list[Any]:
    try:
        return safetensors.deserialize(content)
    except safetensors.SafetensorError as error:
        raise ConfigError(
            f"base {path}: not a safetensors file or damaged ({error}); convert or copy it again"
        ) from None


def _quantised(path: Path, name: str, kind: str) -> str:
    return (
        f"base {path}: tensor '{name}' is stored as {kind}, as in quantised networks, which compute otherwise; "
        "give its float weights"
    )


def _state(content: bytes, path: Path, reading: Reading) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Tensors by the names that the file gives them, and where they were found."""
    import torch

    if _is_safetensors(content):
        from safetensors.torch import load

        found: Any = load(content)
    else:
        found = _unpickled(content, path)
    notes = []
    if reading.key:
        for part in reading.key.split("."):
            if not (isinstance(found, Mapping) and part in found):
                keys = list(map(str, found)) if isinstance(found, Mapping) else []
                raise ConfigError(
                    f"base {path}: key '{reading.key}': there is no '{part}'.{nearest(part, keys)} {_shown(keys)}"
                )
            found = found[part]
        notes.append(f"read from '{reading.key}'")
    else:
        places: list[str] = []
        while isinstance(found, Mapping):
            inner = [key for key in _NESTED if isinstance(found.get(key), Mapping)]
            if not inner:
                break
            places.append(inner[0])
            others = ", ".join(f"'{key}'" for key in inner[1:])
            notes += [f"{others} not read"] if others else []
            found = found[inner[0]]
        notes = [f"read from '{'.'.join(places)}'", *notes] if places else notes
    if not isinstance(found, Mapping) or not any(isinstance(value, torch.Tensor) for value in found.values()):
        keys = list(map(str, found)) if isinstance(found, Mapping) else []
        raise ConfigError(
            f"base {path}: no tensors by name where they were looked for. {_shown(keys)} "
            "Say where they are with 'key' in the workload's [base]"
        )
    state = {str(name): value for name, value in found.items()}
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise ConfigError(
                f"base {path}: '{name}' is a {type(value).__name__} and no tensor, as in quantised networks; "
                "give a plain state_dict of float weights"
            )
        small = value.is_floating_point() and value.dtype.itemsize < 2
        if value.is_quantized or small:
            raise ConfigError(_quantised(path, name, str(value.dtype).removeprefix("torch.")))
    return state, notes


def _shown(keys: list[str]) -> str:
    return f"Keys: {', '.join(keys[:8])}{', …' if len(keys) > 8 else ''}." if keys else "It has no keys."


def _unpickled(content: bytes, path: Path) -> Any:
    """Data of a PyTorch checkpoint; no code of it runs.

    Raises:
        ConfigError: It is damaged, or holds more than data.
    """
    import numpy as np
    import torch

    # What trainers keep beside the weights and what is nothing but data: options, and accuracies as numpy's numbers.
    scalar = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
    data: list[Any] = [Namespace, np.dtype, *kinds]
    data += [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    try:
        with torch.serialization.safe_globals(data), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        text = one_line(error)
        if "TorchScript" in text:
            raise ConfigError(
                f"base {path}: a TorchScript archive holds code; give its weights: torch.save(model.state_dict(), FILE)"
            ) from None
        foreign = re.search(r"(?:GLOBAL|class) ([\w.]+)", text)
        if foreign:
            raise ConfigError(
                f"base {path}: holds more than weights, an object of {foreign[1]} (torch.save(model) leaves such): "
                "reading it would run code; give the weights alone: torch.save(model.state_dict(), FILE)"
            ) from None
        raise ConfigError(
            f"base {path}: no PyTorch checkpoint or damaged ({text[:120]}); convert or copy it again"
        ) from None


def _renamed(state: Mapping[str, Kept], path: Path, reading: Reading) -> dict[str, Kept]:
    """Tensors by their new names; one whose name becomes empty is left out."""
    names: dict[str, str] = {}
    for old in state:
        new = old
        for pattern, replacement in reading.rename:
            new = re.sub(pattern, replacement, new)
        if new in names:
            raise ConfigError(f"base {path}: rename gives '{names[new]}' and '{old}' one name, '{new}'; mend a pattern")
        if new:
            names[new] = old
    return {new: state[old] for new, old in names.items()}


def _prefix(state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> str:
    """What wrappers put before the names: the known prefix without which most of them are the network's."""
    found = {""}
    for name in state:
        prefix, rest = "", name
        while outer := next((one for one in _PREFIXES if rest.startswith(one)), None):
            prefix, rest = prefix + outer, rest.removeprefix(outer)
            found.add(prefix)

    def hits(prefix: str) -> int:
        names = [name.removeprefix(prefix) for name in state]
        return len(expected.keys() & set(names)) if len(set(names)) == len(names) else -1

    # The shortest wins a tie.
    return max(sorted(found, key=len), key=hits)


def _compare(state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], path: Path, what: str) -> None:
    """See that a state is the network's: its names, shapes and kinds of numbers.

    Raises:
        ConfigError: It is not; the message names the first difference.
    """
    missing = next((name for name in expected if name not in state), None)
    strangers = [name for name in state if name not in expected]
    if missing is not None:
        beside = f", but '{strangers[0]}'" if strangers else ""
        raise ConfigError(
            f"base {path}: no tensor '{missing}', which {what} needs{beside}; give a checkpoint of {what}, or map its "
            "names with [base.rename] in the workload"
        )
    names = list(expected)
    for name in names:
        if expected[name].is_floating_point() and not state[name].is_floating_point():
            raise ConfigError(_quantised(path, name, str(state[name].dtype).removeprefix("torch.")))
        ours, theirs = list(expected[name].shape), list(state[name].shape)
        if ours == theirs:
            continue
        wrong = f"base {path}: tensor '{name}' has shape {theirs}, {what} needs {ours}"
        # A classifier's rows are the last ones of a network.
        if name in names[-2:] and ours[1:] == theirs[1:]:
            raise ConfigError(
                f"{wrong}: it tells {theirs[0]} classes apart, the data has {ours[0]}; train its last layer"
            )
        raise ConfigError(f"{wrong}: it is of another width or architecture; give a checkpoint of {what}")
    if strangers:
        raise ConfigError(
            f"base {path}: tensor '{strangers[0]}' is none of {what}'s; give a checkpoint of {what}, or leave it out: "
            f"[base.rename] maps '^{strangers[0]}$' to ''"
        )


def _trained(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """See that values are those of a trained network.

    Raises:
        ConfigError: A value is not finite, or a variance is negative.
    """
    import torch

    for name, tensor in state.items():
        # Extremes are not finite where anything is not, and are found without a copy.
        if tensor.is_floating_point() and tensor.numel() and not bool(torch.stack(tensor.aminmax()).isfinite().all()):
            count = int((~tensor.isfinite()).sum())
            raise ConfigError(
                f"base {path}: tensor '{name}' holds {count} value{'s' * (count > 1)} that are no finite numbers: the "
                "training diverged or the file is damaged; give another checkpoint"
            )
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise ConfigError(
                f"base {path}: tensor '{name}' holds a negative variance ({float(tensor.min()):g}): no normalisation "
                "counts one; give another checkpoint"
            )
