"""What a sequence carries from one call of an engine to the next, and how it is carried."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from pydantic.dataclasses import dataclass

if TYPE_CHECKING:
    from models.signature import Arrays, Signature


@dataclass(frozen=True)
class State:
    """An input of one call and the output of the call before that it is made of; zeros at first.

    Without `position` the output replaces the input. With it the input is a table [batch, tables,
    capacity, width], the output [batch, tables, steps, width] its new rows, and `position` an
    integer input [batch]: how many rows of the table are written, and so where the new ones go.
    """

    input: str
    output: str
    position: str | None = None


@dataclass(frozen=True)
class Recurrence:
    """The axis of time, along which a sequence may be cut into calls, and what joins them."""

    axis: str
    states: tuple[State, ...]


def state_names(signature: Signature) -> tuple[str, ...]:
    """The inputs that carry state, positions among them; none of a net without memory."""
    states = signature.recurrence.states if signature.recurrence else ()
    names = [name for s in states for name in (s.input, s.position) if name is not None]
    return tuple(dict.fromkeys(names))


def step_names(signature: Signature) -> tuple[str, ...]:
    """The inputs that hold one entry for each step of time."""
    axis = signature.recurrence.axis if signature.recurrence else None
    carried = state_names(signature)
    return tuple(
        spec.name
        for spec in signature.inputs
        if spec.name not in carried and any(a.name == axis for a in spec.axes)
    )


def capacity(signature: Signature) -> int | None:
    """How many steps fit into the smallest table; None where a sequence may go on for ever."""
    states = signature.recurrence.states if signature.recurrence else ()
    sizes = [signature.input(s.input).shape[2] for s in states if s.position is not None]
    return min((size for size in sizes if isinstance(size, int)), default=None)


def start(signature: Signature, rows: int) -> Arrays:
    """The state inputs of sequences that begin: zeros, [rows, ...]."""
    specs = [signature.input(name) for name in state_names(signature)]
    return {s.name: np.zeros((rows, *_fixed(s.shape[1:])), s.dtype) for s in specs}


def advance(
    signature: Signature,
    states: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    steps: int,
) -> Arrays:
    """The state inputs of the next call, from those and the outputs of a call of `steps` steps.

    Tables and positions are written in place; every row must have room for the steps.
    """
    assert signature.recurrence is not None
    after = dict(states)
    for state in signature.recurrence.states:
        new = outputs[state.output]
        if state.position is None:
            after[state.input] = new
            continue
        table = after[state.input]
        for row, place in enumerate(after[state.position]):
            table[row, :, place : place + steps] = new[row]
    for name in {s.position for s in signature.recurrence.states if s.position is not None}:
        after[name] += steps
    return after


def _fixed(shape: tuple[object, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if isinstance(size, int))
