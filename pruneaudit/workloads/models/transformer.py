"""Small transformers: a vision transformer and a decoder of Llama's class. Heads and hidden neurons can be removed.

Layers have the names that the field gives them, so that their heads are found (``pruning/attention.py``). Blocks hold
no number of heads: each attention is as wide as its layers are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

#: Keys and values of the tokens so far, ``[N, groups, T, width]`` each.
Past = tuple[torch.Tensor, torch.Tensor]


class Attention(nn.Module):
    """Multi-head attention, with grouped queries where there are fewer key/value heads (Ainslie et al. 2023).

    Args:
        width: Of the residual stream.
        heads: Query heads.
        groups: Key/value heads; neighbouring query heads share one.
        bias: Whether its layers have biases.
        base: Base of the rotary position embedding (Su et al. 2021); 0: none, and every token sees every other one.
    """

    def __init__(self, width: int, heads: int, groups: int | None = None, bias: bool = True, base: float = 0.0) -> None:
        super().__init__()
        self.head_dim = width // heads
        self.base = base
        keys = (groups or heads) * self.head_dim
        self.q_proj = nn.Linear(width, heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(width, keys, bias=bias)
        self.v_proj = nn.Linear(width, keys, bias=bias)
        self.o_proj = nn.Linear(heads * self.head_dim, width, bias=bias)

    def forward(self, inputs: torch.Tensor, past: Past | None = None) -> tuple[torch.Tensor, Past]:
        """What tokens ``[N, T, width]`` add to themselves, and keys and values so far."""
        queries, keys, values = (
            layer(inputs).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.base:
            start = 0 if past is None else past[0].shape[2]
            queries, keys = (self._rotated(each, start) for each in (queries, keys))
        if past is not None:
            keys, values = (torch.cat(pair, dim=2) for pair in zip(past, (keys, values), strict=True))
        now = keys, values
        each = queries.shape[1] // keys.shape[1]
        keys, values = (part.repeat_interleave(each, dim=1) for part in now) if each > 1 else now
        # A token that comes after a cache sees all of it: such come one by one.
        heads = F.scaled_dot_product_attention(queries, keys, values, is_causal=bool(self.base) and past is None)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), now

    def _rotated(self, parts: torch.Tensor, start: int) -> torch.Tensor:
        """Pairs of channels, half a head apart, rotated by their place: as Llama does it."""
        half = self.head_dim // 2
        rates = self.base ** (-torch.arange(half, dtype=torch.float64, device=parts.device) / half)
        places = torch.arange(start, start + parts.shape[2], dtype=torch.float64, device=parts.device)
        angles = torch.outer(places, rates)
        cosine, sine = angles.cos().to(parts), angles.sin().to(parts)
        first, second = parts[..., :half], parts[..., half:]
        return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


class MLP(nn.Module):
    """Two layers with GELU between them.

    Attributes:
        end: Its last layer.
    """

    end = "fc2"

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """What tokens ``[N, T, width]`` add to themselves."""
        return self.fc2(F.gelu(self.fc1(inputs)))


class GatedMLP(nn.Module):
    """SwiGLU (Shazeer 2020): hidden neurons are multiplied by gates, and go with them.

    Attributes:
        end: Its last layer.
    """

    end = "down_proj"

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """What tokens ``[N, T, width]`` add to themselves."""
        return self.down_proj(F.silu(self.gate_proj(inputs)) * self.up_proj(inputs))


class Block(nn.Module):
    """Attention and an MLP, each behind its normalisation and beside a shortcut.

    Attributes:
        branch: All of its modules; None where the block was removed, which then passes on its inputs.
        ends: Layers that write what it adds to its inputs.
    """

    branch = ("attn", "norm1", "mlp", "norm2")

    def __init__(self, norm: type[nn.Module], width: int, attention: Attention, mlp: MLP | GatedMLP) -> None:
        super().__init__()
        self.norm1, self.attn = norm(width), attention
        self.norm2, self.mlp = norm(width), mlp
        self.ends = ("attn.o_proj", f"mlp.{mlp.end}")

    def forward(self, inputs: torch.Tensor, past: Past | None = None) -> tuple[torch.Tensor, Past | None]:
        """Tokens ``[N, T, width]``, and keys and values so far."""
        if self.attn is None:
            return inputs, None
        added, now = self.attn(self.norm1(inputs), past)
        inputs = inputs + added
        return inputs + self.mlp(self.norm2(inputs)), now


class VisionTransformer(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021) that classifies the mean of its tokens.

    Input ``[N, channels, side, side]``, output ``[N, classes]``.

    Args:
        channels: Input channels.
        classes: Output classes.
        side: Height and width of images.
        patch: Those of the patch that becomes a token.
        width: Of the residual stream.
        depth: Blocks.
        heads: Of each block.
        hidden: Neurons of each block's MLP.
    """

    def __init__(
        self,
        channels: int = 1,
        classes: int = 10,
        side: int = 8,
        patch: int = 2,
        width: int = 48,
        depth: int = 2,
        heads: int = 4,
        hidden: int = 96,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.places = Places((side // patch) ** 2, width)
        self.blocks = nn.ModuleList(
            Block(nn.LayerNorm, width, Attention(width, heads), MLP(width, hidden)) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of a batch."""
        tokens = self.places(self.patches(images).flatten(2).transpose(1, 2))
        for block in self.blocks:
            tokens, _ = block(tokens)
        return self.head(self.norm(tokens).mean(dim=1))


class Places(nn.Module):
    """Adds a learned vector to each token by its place."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.empty(tokens, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw them: normal, of deviation 1, which is about that of what a patch becomes."""
        nn.init.normal_(self.vectors, std=1.0)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens ``[N, T, width]``."""
        return tokens + self.vectors


class Llama(nn.Module):
    """A decoder of Llama's class (Touvron et al. 2023): RMSNorm, rotary places, grouped queries, SwiGLU, no biases.

    Input: tokens ``[N, T]``. Output: logits ``[N, classes, T]``, of the token that follows each.

    Args:
        classes: Tokens that there are.
        width: Of the residual stream.
        depth: Blocks.
        heads: Query heads of each block.
        groups: Key/value heads of each block.
        hidden: Neurons of each block's MLP.
    """

    def __init__(
        self,
        channels: int = 0,
        classes: int = 256,
        width: int = 64,
        depth: int = 2,
        heads: int = 8,
        groups: int = 4,
        hidden: int = 128,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(classes, width)
        self.blocks = nn.ModuleList(
            Block(nn.RMSNorm, width, Attention(width, heads, groups, False, 1e4), GatedMLP(width, hidden))
            for _ in range(depth)
        )
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, classes, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of the next token behind each."""
        return self._logits(tokens, [None] * len(self.blocks))[0].transpose(1, 2)

    def _logits(self, tokens: torch.Tensor, past: list[Past | None]) -> tuple[torch.Tensor, list[Past | None]]:
        now: list[Past | None] = []
        inputs = self.embed(tokens)
        for block, before in zip(self.blocks, past, strict=True):
            inputs, kept = block(inputs, before)
            now.append(kept)
        return self.head(self.norm(inputs)), now

    @torch.no_grad()
    def generate(self, tokens: torch.Tensor, count: int, cache: bool = True) -> torch.Tensor:
        """Tokens ``[N, T]`` and the ``count`` most probable ones that follow, ``[N, T + count]``.

        Args:
            tokens: What is there.
            count: How many to add.
            cache: Whether keys and values are kept, or computed anew for each token.
        """
        past: list[Past | None] = [None] * len(self.blocks)
        given = tokens
        for _ in range(count):
            logits, now = self._logits(given, past)
            following = logits[:, -1].argmax(dim=-1, keepdim=True)
            tokens = torch.cat((tokens, following), dim=1)
            given, past = (following, now) if cache else (tokens, past)
        return tokens
