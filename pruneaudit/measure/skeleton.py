"""What weights do not change about a network (shapes, wiring, MACs), asked without them: ten times quicker."""

from __future__ import annotations

import copy
import hashlib
import io
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from pruneaudit.errors import AuditError

Found = TypeVar("Found")
#: Parameters of a network that is asked as it is, where nothing has loaded torch's compiler yet: torch loads it (three
#: seconds of CPU) with its first operation without values, which saves milliseconds of such a network.
_SMALL = 1_000_000
#: Answers that are kept, the oldest given up first.
_KEPT = 64
_answers: OrderedDict[tuple[tuple[str, ...], str], Any] = OrderedDict()


def on_skeleton(model: nn.Module, example: torch.Tensor, ask: Callable[[nn.Module, torch.Tensor], Found]) -> Found:
    """An answer of a copy of a network without weights and values; of a real one where that is no quicker, or fails.

    Args:
        model: The network; not changed.
        example: One input.
        ask: Gets copies of both in eval mode, on torch's device ``meta`` or on the network's own. What it gives must
            hold none of their tensors.
    """
    return _on_skeleton(model, example, ask)[0]


def on_fakes(model: nn.Module, example: torch.Tensor, ask: Callable[[nn.Module, torch.Tensor], Found]) -> Found:
    """An answer of a copy of a network that was built without weights, on ``meta``.

    Its tensors seem to lie on the CPU (torch's ``FakeTensor``). On ``meta`` itself Hugging Face's decoders fail: they
    look for packed sequences in their positions, but for traces and such tensors.

    Args:
        model: The network; not changed.
        example: One input.
        ask: As of :func:`on_skeleton`. All that it creates is of that kind, too: it must give plain numbers.
    """
    from torch._subclasses import FakeTensorMode

    network = copy.deepcopy(model).eval()
    with FakeTensorMode():
        for module in network.modules():
            # Parameters and buffers alike: no gradient is asked for.
            holders: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for held in holders:
                for name, tensor in held.items():
                    held[name] = None if tensor is None else torch.empty(tensor.shape, dtype=tensor.dtype)
        return ask(network, torch.zeros(example.shape, dtype=example.dtype))


def without_values(model: nn.Module) -> nn.Module:
    """A copy of a network whose tensors are on ``meta``: its values are never copied."""
    known: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        bare = tensor.detach().to("meta")
        known[id(tensor)] = nn.Parameter(bare, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else bare
    return copy.deepcopy(model, known).to("meta")


def asked_once(
    question: tuple[str, ...], model: nn.Module, example: torch.Tensor, ask: Callable[[nn.Module, torch.Tensor], Found]
) -> Found:
    """As :func:`on_skeleton`; networks that are built alike are asked once in a process.

    Args:
        question: What is asked, in words: of one structure the same question has the same answer.
        model: The network; not changed.
        example: One input.
        ask: As of :func:`on_skeleton`. Whoever gets its answer must not change it.
    """
    structure = _structure(model, example)
    if structure is None:
        return on_skeleton(model, example, ask)
    place = (question, structure)
    if place in _answers:
        _answers.move_to_end(place)
        found: Found = _answers[place]
        return found
    answer, without_values = _on_skeleton(model, example, ask)
    # Where values were looked at, other values may give another answer.
    if without_values:
        _answers[place] = answer
        while len(_answers) > _KEPT:
            _answers.popitem(last=False)
    return answer


def _on_skeleton(
    model: nn.Module, example: torch.Tensor, ask: Callable[[nn.Module, torch.Tensor], Found]
) -> tuple[Found, bool]:
    """The answer, and whether it came without values."""
    parameter = next(model.parameters())
    inputs = example.to(parameter) if example.is_floating_point() else example.to(parameter.device)
    if parameter.is_meta or "torch._dynamo" in sys.modules or sum(each.numel() for each in model.parameters()) > _SMALL:
        try:
            return ask(without_values(model).eval(), inputs.to("meta")), True
        except AuditError:
            raise
        except Exception:
            # It looks at values, holds tensors that are no buffers, or is traced and has convolutions, which torch 2.14
            # does not trace so. What else is wrong with it is wrong again.
            pass
    return ask(copy.deepcopy(model).eval(), inputs), False


class _Builds(pickle.Pickler):
    """Writes all of a network but the values of its tensors: classes by name, attributes, which tensor is where."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._tensors: dict[int, int] = {}

    def persistent_id(self, each: Any) -> Any:
        """A tensor as its kind and shape, and whether it is one that was met before."""
        if not isinstance(each, torch.Tensor):
            return None
        number = self._tensors.setdefault(id(each), len(self._tensors))
        return (number, type(each).__name__, tuple(each.shape), str(each.dtype), each.requires_grad)


def _structure(model: nn.Module, example: torch.Tensor) -> str | None:
    """Digest of how a network is built, for one shape of input; None where something of it cannot be written."""
    file = io.BytesIO()
    # Classes are written by name: what they compute may have been replaced.
    computed = [(kind.__qualname__, id(kind.forward)) for kind in dict.fromkeys(type(each) for each in model.modules())]
    try:
        _Builds(file).dump((model, computed, tuple(example.shape), str(example.dtype)))
    except Exception:
        # Functions of its own, locks, files: whatever cannot be pickled.
        return None
    return hashlib.sha256(file.getvalue()).hexdigest()
