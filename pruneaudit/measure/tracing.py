"""Lets a trace see what functions with a gradient of their own do (``torch.autograd.Function``).

Each is one operator to a trace, which nobody knows. Layers that are called in one, as ``torch.utils.checkpoint`` calls
them where it is reentrant, have no place in a trace, and none in autograd's graph.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointFunction


@contextmanager
def functions_in_sight(all_of_them: bool = True) -> Iterator[None]:
    """Have them do their steps as if they were no functions of their own, in this thread.

    Args:
        all_of_them: Also those that are no checkpoints, whose steps have no gradient then.
    """
    function, here = torch.autograd.Function, threading.get_ident()
    before = function.__dict__["apply"]

    def apply(cls: Any, *arguments: Any, **named: Any) -> Any:
        if threading.get_ident() != here or not (all_of_them or cls is CheckpointFunction):
            return before.__get__(None, cls)(*arguments, **named)
        if cls is CheckpointFunction:
            run, _, *inputs = arguments
            return run(*inputs)
        context: Any = torch.autograd.function.FunctionCtx()
        context.needs_input_grad = tuple(isinstance(each, torch.Tensor) and each.requires_grad for each in arguments)
        first = () if cls.setup_context != function.setup_context else (context,)
        with torch.no_grad():
            return cls.forward(*first, *arguments, **named)

    function.apply = classmethod(apply)
    try:
        yield
    finally:
        function.apply = before
