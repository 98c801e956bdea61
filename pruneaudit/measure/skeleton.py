"""What weights do not change about a network (shapes, wiring, MACs), asked without them: ten times quicker."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from pruneaudit.errors import AuditError

Found = TypeVar("Found")


def on_skeleton(model: nn.Module, example: torch.Tensor, ask: Callable[[nn.Module, torch.Tensor], Found]) -> Found:
    """An answer of a copy of a network without weights and values; of a real copy where it does not run like that.

    Args:
        model: The network; not changed.
        example: One input.
        ask: Gets copies of both in eval mode, on torch's device ``meta`` or on the network's own. What it gives must
            hold none of their tensors.
    """
    parameter = next(model.parameters())
    inputs = example.to(parameter) if example.is_floating_point() else example.to(parameter.device)
    try:
        return ask(copy.deepcopy(model).eval().to("meta"), inputs.to("meta"))
    except AuditError:
        raise
    except Exception:
        # It looks at values, or holds tensors that are no buffers. What else is wrong with it is wrong again.
        return ask(copy.deepcopy(model).eval(), inputs)
