"""Attention by heads: which modules are multi-head attention, how their channels lie, and how they lose heads.

Torch-pruning's graph says nothing usable of heads: with grouped queries its search may not end, and torchvision's
attention it cuts in the wrong places. What is attention follows here from the layers that a module holds, under the
names that the field gives them; whether it is so, the trial of every unit tells (``equivalence.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pruneaudit.errors import MethodError

#: Layers that write queries, keys and values: Llama and most of its kin, Hugging Face's ViT; BERT; T5; the first Llama;
#: diffusers. In timm's fused layer they lie one behind the other.
_WRITERS = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q", "k", "v"),
    ("wq", "wk", "wv"),
    ("to_q", "to_k", "to_v"),
    ("qkv",),
)
#: What reads the heads; in BERT it is a neighbour of the module (``^``).
_READERS = ("o_proj", "out_proj", "proj", "o", "wo", "to_out.0", "^output.dense")
# Under which names modules keep their sizes.
_WIDTHS = ("head_dim", "attention_head_size", "key_value_proj_dim", "dim_head")
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "heads")
_GROUPS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
_ALL = ("all_head_size", "attn_dim", "inner_dim")


@dataclass(frozen=True)
class Attention:
    """Sizes of multi-head attention.

    A group is a key/value head with the query heads that read it: it goes as a whole, so that every query head keeps
    its key/value head. Without grouped queries a group is a head.

    Attributes:
        writers: Names within the module of the layers that write queries, keys and values; one layer, or none (the
            module itself), where one writes all three.
        groups: Key/value heads.
        queries: Query heads of each.
        width: Channels of a head.
    """

    writers: tuple[str, ...]
    groups: int
    queries: int
    width: int

    @property
    def channels(self) -> int:
        """Channels of all keys: what indices of the unit of its heads mean."""
        return self.groups * self.width

    @property
    def lead(self) -> str:
        """The layer that gives the unit its name: the first that has as many channels."""
        return self.writers[1] if self.queries > 1 else "".join(self.writers[:1])

    def places(self) -> tuple[torch.Tensor, ...]:
        """Channels of each writer that belong to a channel of the keys, ``[channels, places]``; last, the reader's."""
        keys = torch.arange(self.channels)
        # Query heads of one group are neighbours.
        heads = (keys // self.width)[:, None] * self.queries + torch.arange(self.queries)
        queries = heads * self.width + (keys % self.width)[:, None]
        if len(self.writers) < 3:
            return keys[:, None] + torch.arange(3) * self.channels, queries
        return queries, keys[:, None], keys[:, None], queries


def attention_of(module: nn.Module) -> Attention | None:
    """Sizes of a module as attention, or None where it is none that is known."""
    if isinstance(module, nn.MultiheadAttention):
        # With biases for keys, or inputs of several widths, there are other parameters.
        plain = module.in_proj_weight is not None and module.bias_k is None and not module.add_zero_attn
        return Attention((), len(module.in_proj_weight) // 3 // module.head_dim, 1, module.head_dim) if plain else None
    for writers in _WRITERS:
        layers = [_linear(module, name) for name in writers]
        rows = [layer.out_features for layer in layers if layer is not None]
        if len(rows) < len(writers):
            continue
        queries = rows[0] // 3 if len(rows) == 1 else rows[0]
        keys = rows[1] if len(rows) == 3 else queries
        width = _size(module, _WIDTHS) or queries // (_size(module, _HEADS) or queries + 1)
        if width and not keys % width and not queries % keys and rows in ([queries, keys, keys], [3 * queries]):
            return Attention(writers, keys // width, queries // keys, width)
    return None


def attentions(model: nn.Module) -> dict[str, tuple[Attention, str]]:
    """All attention of a network, by the name of its module, each with the name of the layer that reads its heads."""
    found = {}
    for name, module in model.named_modules():
        attention = attention_of(module)
        if attention is None:
            continue
        read = attention.channels * attention.queries
        for reader in _READERS:
            path = joined_name(name.rpartition(".")[0], reader[1:]) if reader[0] == "^" else joined_name(name, reader)
            layer = _linear(model, path)
            if layer is not None and layer.in_features == read:
                found[name] = attention, path
                break
    return found


def joined_name(*parts: str) -> str:
    """Name of a submodule, from the name of a module and a path from it."""
    return ".".join(part for part in parts if part)


def _linear(module: nn.Module, path: str) -> nn.Linear | None:
    found: Any = module
    for part in path.split("."):
        found = found._modules.get(part) if isinstance(found, nn.Module) else None
    return found if isinstance(found, nn.Linear) else None


def _size(module: nn.Module, names: Sequence[str]) -> int | None:
    return next((value for name in names if isinstance(value := getattr(module, name, None), int)), None)


# Losing heads


class Heads(nn.MultiheadAttention):
    """Torch's attention with any number of heads: its own holds that their widths add up to that of the inputs.

    It has the parameters of torch's, by the same names; :func:`open_heads` makes one of the other.
    """

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As torch's, of batches: outputs ``[B, L, E]`` (``[L, B, E]``), and weights ``[B, L, S]`` if asked for."""
        if query.dim() != 3:
            raise MethodError("attention that lost heads takes batches, [B, L, E], only")
        if not self.batch_first:
            query, key, value = (each.transpose(0, 1) for each in (query, key, value))
        parts = self.in_proj_weight.chunk(3)
        shifts = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        queries, keys, values = (
            F.linear(inputs, weight, shift).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for inputs, weight, shift in zip((query, key, value), parts, shifts, strict=True)
        )
        mask = self._mask(attn_mask, key_padding_mask, queries)
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            weights = queries @ keys.transpose(-2, -1) / math.sqrt(self.head_dim)
            weights = F.dropout((weights if mask is None else weights + mask).softmax(-1), dropout)
            heads = weights @ values
        else:
            weights = None
            heads = F.scaled_dot_product_attention(queries, keys, values, mask, dropout)
        outputs = self.out_proj(heads.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        return outputs if self.batch_first else outputs.transpose(0, 1), weights

    @staticmethod
    def _mask(mask: torch.Tensor | None, padding: torch.Tensor | None, queries: torch.Tensor) -> torch.Tensor | None:
        """One mask to be added, ``[B, heads or 1, L or 1, S]``; True means that a place is not to be looked at."""

        def added(each: torch.Tensor) -> torch.Tensor:
            if each.dtype != torch.bool:
                return each.to(queries)
            return torch.zeros(each.shape, dtype=queries.dtype, device=each.device).masked_fill_(each, -math.inf)

        if mask is not None:
            if mask.dim() == 3 and len(mask) != len(queries):
                raise MethodError("a mask for each head says nothing to attention that lost heads")
            mask = added(mask)[:, None] if mask.dim() == 3 else added(mask)
        if padding is not None:
            mask = added(padding)[:, None, None] + (0 if mask is None else mask)
        return mask


def open_heads(module: nn.Module) -> None:
    """Let torch's attention be computed layer by layer, so that layers can be silenced, and lose heads; in place."""
    if type(module) is nn.MultiheadAttention:
        module.__class__ = Heads
        # Torch's encoder layers read the weights of an attention that is as long as its inputs, and do not call it.
        module._qkv_same_embed_dim = False


def lose_heads(module: nn.Module, attention: Attention, outputs: Sequence[int]) -> None:
    """Let a module know how many heads it has left; torch's loses its weights, too.

    Args:
        module: The one that multiplies.
        attention: What it is, before any of its layers loses channels.
        outputs: Channels of the keys that stay; of torch's attention rows of its joint weights.
    """
    if isinstance(module, nn.MultiheadAttention):
        open_heads(module)
        rows = torch.as_tensor(outputs, device=module.in_proj_weight.device)
        for name in ("in_proj_weight", "in_proj_bias"):
            tensor = getattr(module, name)
            if tensor is not None:
                left = tensor.detach().index_select(0, rows)
                setattr(module, name, nn.Parameter(left, requires_grad=tensor.requires_grad))
        module.num_heads = len(outputs) // 3 // attention.width
        return
    groups = len(outputs) // attention.width
    heads = groups * attention.queries
    for names, value in ((_HEADS, heads), (_GROUPS, groups), (_ALL, heads * attention.width)):
        for name in names:
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, value)
