"""Multi-head attention and the blocks made of it, written once for encoders and decoders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from models.codec import PADDING
from models.errors import BadSetting

Layers = Annotated[int, Field(ge=1, le=64)]
Size = Annotated[int, Field(ge=2, le=16_384, multiple_of=2)]
Heads = Annotated[int, Field(ge=1, le=256)]
Inner = Annotated[int, Field(ge=1, le=65_536)]

# The base model of the paper: the defaults of every net that is made of these blocks.
LAYERS = 6
SIZE = 512  # entries of the vector that stands for one token
HEADS = 8
INNER = 2048  # units of the feed-forward layer
DROPOUT = 0.1


class Past(NamedTuple):
    """What one layer kept of the tokens before, in a table with room for more.

    Keys and values [batch, heads, capacity, size / heads], and `written` bool [batch, 1, 1,
    capacity]: what else stands in the table is never seen.
    """

    keys: Tensor
    values: Tensor
    written: Tensor


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    seen: Tensor | None = None,
    past: Past | None = None,
) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V, equation 1 of Vaswani et al. 2017, [batch, heads, places, d].

    `seen` is true where a query may look at a key. The past is read where it lies: to append the
    new keys would copy all of it at every token.
    """
    queries = queries / math.sqrt(queries.shape[-1])
    scores = _scores(queries, keys, seen)
    if past is None:
        return scores.softmax(-1) @ values
    before = _scores(queries, past.keys, past.written)
    capacity = past.keys.shape[2]
    weights = torch.cat([before, scores], -1).softmax(-1)
    return weights[..., :capacity] @ past.values + weights[..., capacity:] @ values


def _scores(queries: Tensor, keys: Tensor, seen: Tensor | None) -> Tensor:
    scores = queries @ keys.transpose(-2, -1)
    return scores if seen is None else scores.masked_fill(~seen, -torch.inf)


def causal(length: int, device: torch.device) -> Tensor:
    """Each place sees itself and those before it: bool [length, length]."""
    places = torch.arange(length, device=device)
    return places[:, None] >= places


def readable(tokens: Tensor) -> Tensor:
    """Which places of rows [batch, length] are read: what is not padding, bool [batch, length].

    The first place always is, so that a row without a token still attends to something.
    """
    first = torch.arange(tokens.shape[1], device=tokens.device) == 0
    return (tokens != PADDING) | first


def sinusoids(places: int, size: int) -> Tensor:
    """PE(p, 2i) = sin(p / 10000^(2i / size)), PE(p, 2i + 1) its cosine, [places, size]."""
    rate = 10_000.0 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angle = torch.arange(places, dtype=torch.float64)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1).float()


class Embedding(nn.Module):
    """Ids [batch, length] to vectors [batch, length, size]: token times sqrt(size), plus place."""

    places: Tensor

    def __init__(self, ids: int, size: int, places: int, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(ids, size)
        nn.init.normal_(self.tokens.weight, std=size**-0.5)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("places", sinusoids(places, size), persistent=False)

    def forward(self, tokens: Tensor, position: Tensor | None = None) -> Tensor:
        """`position` [batch] is the place of each row's first token, 0 without it."""
        length = tokens.shape[1]
        if position is None:
            places = self.places[:length]
        else:
            place = position[:, None] + torch.arange(length, device=tokens.device)
            places = self.places[place.clamp(max=self.places.shape[0] - 1)]
        vectors = self.tokens(tokens) * math.sqrt(self.places.shape[1])
        return self.dropout(vectors + places)

    def scores(self, vectors: Tensor) -> Tensor:
        """How well each token's own vector fits: the output layer that shares these weights."""
        return functional.linear(vectors, self.tokens.weight)


class Attention(nn.Module):
    """Multi-head attention of vectors [batch, length, size] to themselves or to a memory."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        if size % heads:
            raise BadSetting(
                "setting 'heads' is refused", got=heads, expected=f"a divisor of size, {size}"
            )
        self.heads = heads
        self.queries, self.keys, self.values, self.output = (_dense(size, size) for _ in range(4))

    def project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of a memory, each [batch, heads, length, size / heads]."""
        return self._split(self.keys(memory)), self._split(self.values(memory))

    def forward(
        self,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        seen: Tensor | None = None,
        past: Past | None = None,
    ) -> Tensor:
        mixed = attend(self._split(self.queries(x)), keys, values, seen, past)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """Self-attention, attention to a memory where the block is `crossed`, and a dense net.

    Each is added to its own input and normalised afterwards as in the paper, or with `norm_first`
    normalised before (Xiong et al. 2020), which trains without a warm-up.
    """

    def __init__(
        self,
        size: int,
        heads: int,
        inner: int,
        dropout: float,
        norm_first: bool = False,
        crossed: bool = False,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.attention = Attention(size, heads)
        self.cross = Attention(size, heads) if crossed else None
        self.dense = nn.Sequential(_dense(size, inner), nn.ReLU(), _dense(inner, size))
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(3 if crossed else 2))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        seen: Tensor | None = None,
        past: Past | None = None,
        memory: Tensor | None = None,
        readable: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The block's vectors, and the keys and values of its own tokens.

        `seen` masks the block's own tokens and `readable` those of the memory, each as far as
        [batch, heads, length, length] after broadcasting.
        """
        inside = self._before(0, x)
        keys, values = self.attention.project(inside)
        x = self._after(0, x, self.attention(inside, keys, values, seen, past))
        if self.cross is not None and memory is not None:
            crossed = self.cross(self._before(1, x), *self.cross.project(memory), readable)
            x = self._after(1, x, crossed)
        return self._after(-1, x, self.dense(self._before(-1, x))), keys, values

    def _before(self, part: int, x: Tensor) -> Tensor:
        return self.norms[part](x) if self.norm_first else x

    def _after(self, part: int, x: Tensor, change: Tensor) -> Tensor:
        x = x + self.dropout(change)
        return x if self.norm_first else self.norms[part](x)


class Stack(nn.Module):
    """Blocks one after the other; with `norm_first` the last is normalised too."""

    def __init__(
        self,
        layers: int,
        size: int,
        heads: int,
        inner: int,
        dropout: float,
        norm_first: bool = False,
        crossed: bool = False,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(size, heads, inner, dropout, norm_first, crossed) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(size) if norm_first else nn.Identity()

    def forward(
        self,
        x: Tensor,
        seen: Tensor | None = None,
        pasts: Sequence[Past] = (),
        memory: Tensor | None = None,
        readable: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Vectors [batch, length, size], and keys and values of each layer in turn."""
        rows: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            x, *new = block(x, seen, pasts[layer] if pasts else None, memory, readable)
            rows += new
        return self.norm(x), rows


def _dense(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
