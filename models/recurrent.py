"""Recurrent cells in the textbook's notation, and the nets that are made of torch's fast ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from models.codec import PADDING
from models.corpus import IDS
from models.language import LOGITS
from models.recurrence import Recurrence, State
from models.signature import BATCH, Axis, Signature, TensorSpec
from models.text import TOKENS

# The size of Karpathy, Johnson, Fei-Fei 2015; declared here once for network and signature.
HIDDEN = 512
LAYERS = 2
EMBEDDING = 128
Layers = Annotated[int, Field(ge=1, le=64)]
_STATES = ("hidden", "cell")

Cells = nn.RNN | nn.LSTM | nn.GRU
Make = Callable[[int], Cells]  # of so many inputs


class Weights(NamedTuple):
    """Of one layer, gates one below the other as torch has them; each bias is [gates * size]."""

    w_xh: Tensor  # [gates * size, inputs]
    w_hh: Tensor  # [gates * size, size]
    b_xh: Tensor
    b_hh: Tensor


def rnn_step(
    w: Weights, x: Tensor, h: Tensor, activation: Callable[[Tensor], Tensor] = torch.tanh
) -> Tensor:
    """h_t = tanh(W_hh h_{t-1} + W_xh x_t + b), Elman 1990; x [batch, inputs], h [batch, size]."""
    return activation(h @ w.w_hh.T + x @ w.w_xh.T + w.b_xh + w.b_hh)


def lstm_step(w: Weights, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """h_t = o tanh(c_t), c_t = f c_{t-1} + i g.

    i, f, o are sigmoids and g the tanh of W_hh h_{t-1} + W_xh x_t + b; the rows of the weights are
    i, f, g, o. Hochreiter, Schmidhuber 1997, with the forget gate of Gers, Schmidhuber, Cummins
    2000.
    """
    i, f, g, o = (h @ w.w_hh.T + x @ w.w_xh.T + w.b_xh + w.b_hh).chunk(4, dim=1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_step(w: Weights, x: Tensor, h: Tensor) -> Tensor:
    """h_t = (1 - z) n + z h_{t-1}, n = tanh(W_xn x_t + b_xn + r (W_hn h_{t-1} + b_hn)).

    r and z are sigmoids of W_hh h_{t-1} + W_xh x_t + b; the rows of the weights are r, z, n. The
    reset gate comes after the product, the variant that Cho 2014 v1 and torch have.
    """
    from_x, from_h = x @ w.w_xh.T + w.b_xh, h @ w.w_hh.T + w.b_hh
    r_x, z_x, n_x = from_x.chunk(3, dim=1)
    r_h, z_h, n_h = from_h.chunk(3, dim=1)
    r, z = (r_x + r_h).sigmoid(), (z_x + z_h).sigmoid()
    return (1 - z) * (n_x + r * n_h).tanh() + z * h


class RecurrentLanguageModel(nn.Module):
    """Tokens int64 [batch, length] to `logits` [batch, length, ids] of what comes next, and state.

    The state before, `hidden` and for an LSTM `cell`, is [batch, layers, size], zeros where it is
    not given; the state after the last token is answered as `next_hidden` and `next_cell`.
    """

    def __init__(self, cells: Make, embedding: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(IDS, embedding)
        self.cells = cells(embedding)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(self.cells.hidden_size, IDS)

    def forward(
        self, tokens: Tensor, hidden: Tensor | None = None, cell: Tensor | None = None
    ) -> dict[str, Tensor]:
        given = tuple(s.transpose(0, 1).contiguous() for s in (hidden, cell) if s is not None)
        before = given if len(given) > 1 else given[0] if given else None
        every, after = self.cells(self.dropout(self.embedding(tokens)), before)
        states = zip(_STATES, after if isinstance(after, tuple) else (after,), strict=False)
        return {
            LOGITS: self.output(self.dropout(every)),
            **{f"next_{name}": state.transpose(0, 1) for name, state in states},
        }


class RecurrentClassifier(nn.Module):
    """Token ids int64 [batch, length], 0 for padding, to logits [batch, classes].

    The answer is read off the state after the last token that is no padding, so how far a row is
    padded does not change it.
    """

    def __init__(
        self, cells: Make, vocabulary: int, embedding: int, classes: int, dropout: float
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=PADDING)
        self.cells = cells(embedding)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(self.cells.hidden_size, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        every, _ = self.cells(self.dropout(self.embedding(tokens)))
        places = torch.arange(tokens.shape[1], device=tokens.device)
        last = (places * (tokens != PADDING)).amax(1)
        state = every.gather(1, last[:, None, None].expand(-1, 1, every.shape[2])).squeeze(1)
        return self.output(self.dropout(state))


def language_signature(states: tuple[str, ...], hidden: int, layers: int, window: int) -> Signature:
    """The signature of a `RecurrentLanguageModel` that carries those states."""
    batch = Axis(BATCH, 1, 8, 32)
    length = Axis("length", 1, min(16, window), window)
    bounded = {"hidden": 1.0, "cell": 4.0}
    before = [
        TensorSpec(name, "float32", (batch, layers, hidden), -bounded[name], bounded[name])
        for name in states
    ]
    after = [TensorSpec(f"next_{name}", "float32", (batch, layers, hidden)) for name in states]
    return Signature(
        inputs=(TensorSpec(TOKENS, "int64", (batch, length), 0, IDS - 1), *before),
        outputs=(TensorSpec(LOGITS, "float32", (batch, length, IDS)), *after),
        recurrence=Recurrence("length", tuple(State(name, f"next_{name}") for name in states)),
    )
