"""Whole blocks of libraries' transformers: which parts a block has, and how it does without them.

A network of one's own says so itself (``branch`` and ``ends``). Here are the blocks of Hugging Face's decoders, of timm
and of torchvision, told by the names of their parts. All normalise what they read and add to what passes them, so that
a block that is gone passes its inputs on. Whether it is so, the trial tells (F504): a block that normalises what it
passes on, as BERT's does, is another function without its parts, and is none of these.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import nn

from pruneaudit.pruning.attention import attention_of

#: Attention, normalisations and MLP of a block, whatever else it has: Hugging Face's decoders; timm; torchvision.
_PARTS = (
    ("self_attn", "input_layernorm", "mlp", "post_attention_layernorm"),
    ("attn", "norm1", "mlp", "norm2"),
    ("self_attention", "ln_1", "mlp", "ln_2"),
)


def name_parts(block: Any) -> None:
    """Let a block of a library say what its branch is, as those do that are made for it; in place."""
    if hasattr(block, "branch"):
        return
    children = dict(block.named_children())
    for parts in _PARTS:
        attention = children.get(parts[0])
        if attention is not None and children.keys() >= set(parts) and attention_of(attention) is not None:
            others = [name for name in children if name != parts[0]]
            # What each of both writes last is what the block adds.
            block.branch, block.ends = (parts[0], *others), (_last(block, parts[0]), _last(block, "mlp"))
            block.of_a_library = True
            return


def _last(block: nn.Module, part: str) -> str:
    """Name of the last layer of a part."""
    layers = [name for name, module in block.get_submodule(part).named_modules() if isinstance(module, nn.Linear)]
    return f"{part}.{layers[-1]}"


def lose_parts(block: Any) -> None:
    """Let a block do without its branch: it passes on what it gets."""
    if getattr(block, "of_a_library", False):
        kind: Any = type(block)
        block.__class__ = _passed_by(kind)
    for part in block.branch:
        setattr(block, part, None)


def number_caches(network: nn.Module) -> None:
    """Number attention anew where some is gone: Hugging Face's keeps keys by its number, and asks the first for all.

    Where layers attend in several ways (over windows, say) numbers stay: which way goes by the number, too.
    """
    left: list[Any] = [module for module in network.modules() if isinstance(getattr(module, "layer_idx", None), int)]
    attending = [module for module in left if attention_of(module) is not None]
    kinds = {kind for module in attending for kind in getattr(module.config, "layer_types", None) or ()}
    if len(kinds) < 2:
        for number, module in enumerate(attending):
            module.layer_idx = number


@lru_cache(maxsize=16)
def _passed_by(kind: Any) -> type[nn.Module]:
    """A class of blocks without parts."""

    def forward(_self: nn.Module, inputs: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return inputs

    return type(f"{kind.__name__}PassedBy", (kind,), {"forward": forward, "__module__": kind.__module__})
