"""Counts what a piece of code computes by the operations that reach torch's kernels, whoever calls them.

Hooks on layers see a network that is called. A method that gives ``F.conv2d`` its weights, or trains tensors that are
no layers, is seen here only. What it computes without torch is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.flop_counter import flop_registry


class Operations(TorchDispatchMode):
    """While entered, hears the multiply-adds of every product, convolution and attention of this thread.

    Forward and backward passes alike, within ``torch.func`` and without gradients as well.

    Args:
        heard: Called with the multiply-adds of each of them.
    """

    def __init__(self, heard: Callable[[int], None]) -> None:
        super().__init__()
        self._heard = heard

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Torch would load its compiler for it, which takes seconds; nobody compiles here.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation, and count it where torch knows what it costs."""
        named = kwargs or {}
        out = func(*args, **named)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self._heard(formula(*args, **named, out_val=out) // 2)
        return out


@contextmanager
def unheard() -> Iterator[None]:
    """Let operations go as if nobody listened: at the speed of kernels that no Python stands before."""
    with _disable_current_modes():
        yield
