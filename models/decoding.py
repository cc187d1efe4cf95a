"""Step-by-step decoding: what a decoder keeps of each token, as tables that its caller carries.

Each layer has a table of keys and one of values, inputs of the graph of their own: to cut them out
of one large cache would copy the whole of it at every token.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from models.attention import Past
from models.language import LOGITS
from models.recurrence import Recurrence, State
from models.signature import BATCH, Axis, Signature, TensorSpec

POSITION = "position"
LENGTH = "length"


def stepwise(network: nn.Module, inputs: tuple[str, ...], layers: int) -> nn.Module:
    """The served module of a decoder: named inputs, `position` and tables to logits and new rows.

    `network(*inputs, position, pasts)` gives logits and the new rows of each table. Without
    `position` nothing came before. Rows of a table from `position` on are never read.
    """
    tables = _tables(layers)

    class Stepwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, **given: Tensor) -> dict[str, Tensor]:
            position = given.get(POSITION)
            pasts: list[Past] = []
            if position is not None:
                places = torch.arange(given[tables[0]].shape[2], device=position.device)
                written = (places < position[:, None])[:, None, None]
                for keys, values in zip(tables[::2], tables[1::2], strict=True):
                    pasts.append(Past(given[keys], given[values], written))
            logits, rows = self.network(*(given[name] for name in inputs), position, pasts)
            return {LOGITS: logits} | {_new(n): t for n, t in zip(tables, rows, strict=True)}

    # torch.export asks a module for the names of its inputs, and `**given` has none.
    names = ("self", *inputs, POSITION, *tables)
    Stepwise.forward.__dict__["__signature__"] = inspect.Signature(
        [
            inspect.Parameter(
                name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=None if name in (POSITION, *tables) else inspect.Parameter.empty,
            )
            for name in names
        ]
    )
    return Stepwise()


def stepwise_signature(
    inputs: tuple[TensorSpec, ...],
    ids: int,
    layers: int,
    heads: int,
    width: int,
    capacity: int,
) -> Signature:
    """The signature of `stepwise`: the given inputs, then `position` and the tables.

    Tables are [batch, heads, capacity, width], width being the entries of one head.
    """
    axes = {axis.name: axis for spec in inputs for axis in spec.axes}
    batch, length = axes[BATCH], axes[LENGTH]
    tables = _tables(layers)
    return Signature(
        inputs=(
            *inputs,
            TensorSpec(POSITION, "int64", (batch,), 0, capacity - 1),
            *(TensorSpec(n, "float32", (batch, heads, capacity, width), -1, 1) for n in tables),
        ),
        outputs=(
            TensorSpec(LOGITS, "float32", (batch, length, ids)),
            *(TensorSpec(_new(n), "float32", (batch, heads, length, width)) for n in tables),
        ),
        recurrence=Recurrence(LENGTH, tuple(State(n, _new(n), POSITION) for n in tables)),
    )


def rows_and_steps(capacity: int) -> tuple[Axis, Axis]:
    """The axes of concurrent sequences and of the tokens that one call takes of each.

    Half of what fits at the most: a longer text comes in several calls, of which all but the first
    find something in the tables.
    """
    longest = max(1, capacity // 2)
    return Axis(BATCH, 1, 8, 32), Axis(LENGTH, 1, min(16, longest), longest)


def _tables(layers: int) -> tuple[str, ...]:
    return tuple(f"{kind}_{layer}" for layer in range(layers) for kind in ("keys", "values"))


def _new(table: str) -> str:
    return f"new_{table}"
