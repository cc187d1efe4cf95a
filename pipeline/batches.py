"""Batches of rows of named tensors: which are asked together, and what is kept of each."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from models.recipe import Recipe, Tensors, Training
from models.recurrence import State
from models.signature import Arrays

Rows = tuple[Tensors, Tensors]  # inputs, targets

_EVALUATION_ROWS = 512
_EVALUATION_VALUES = 1 << 20  # of one input


@torch.inference_mode()
def predict(module: nn.Module, inputs: Tensors) -> Tensors:
    """The module's named outputs over all rows, each for itself, in evaluation mode."""
    module.eval()
    rows = torch.arange(count_rows(inputs)).to(device_of(inputs)).split(_evaluation_rows(inputs))
    parts = [module(**select(inputs, some)) for some in rows]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@torch.inference_mode()
def measure(
    recipe: Recipe, settings: Training, module: nn.Module, inputs: Tensors, targets: Tensors
) -> tuple[float, Arrays]:
    """The mean loss over all rows, and what `recipe.per_row` keeps of each, in evaluation mode."""
    module.eval()
    count = count_rows(inputs)
    if settings.carry:
        batches = streams(count, settings.batch_size)
    else:
        batches = list(torch.arange(count).split(_evaluation_rows(inputs)))
    loss = 0.0
    kept: list[Arrays] = []
    carried, states = carried_states(recipe, settings), Tensors()
    for rows in batches:
        some = rows.to(device_of(inputs))
        wanted = select(targets, some)
        given = select(inputs, some) | first(states, len(rows))
        outputs = recipe.answer(module, given, wanted)
        states = {state.input: outputs[state.output] for state in carried}
        loss += float(recipe.compute_loss(outputs, wanted)) * len(rows) / count
        kept.append(recipe.per_row(to_arrays(outputs), to_arrays(wanted)))
    back = torch.cat(batches).argsort().numpy()
    return loss, {name: np.concatenate([part[name] for part in kept])[back] for name in kept[0]}


def select(tensors: Tensors, rows: Tensor) -> Tensors:
    """Rows by their numbers."""
    # index_select is faster than indexing by a tensor.
    return {name: tensor.index_select(0, rows) for name, tensor in tensors.items()}


def streams(count: int, most: int) -> list[Tensor]:
    """Row numbers in batches of at most `most`: the first has the first row of each stream.

    A stream is rows that follow one another; those that end sooner are the last of a batch.
    """
    length = -(-count // most)
    return [torch.arange(step, count, length) for step in range(length)]


def first(states: Tensors, rows: int) -> Tensors:
    """The first rows of each state."""
    return {name: tensor[:rows] for name, tensor in states.items()}


def carried_states(recipe: Recipe, settings: Training) -> tuple[State, ...]:
    """The states that go from row to row, where a training carries any."""
    recurrence = recipe.make_signature().recurrence if settings.carry else None
    return recurrence.states if recurrence else ()


def count_rows(tensors: Tensors) -> int:
    """How many rows there are."""
    return len(next(iter(tensors.values())))


def device_of(tensors: Tensors) -> torch.device:
    """Where the rows are."""
    return next(iter(tensors.values())).device


def _evaluation_rows(inputs: Tensors) -> int:
    """How many rows are asked at once: fewer where one is large."""
    largest = max(tensor[0].numel() for tensor in inputs.values())
    return max(1, min(_EVALUATION_ROWS, _EVALUATION_VALUES // largest))


def to_tensors(arrays: Arrays, device: str) -> Tensors:
    """Arrays as tensors on a device."""
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def to_arrays(tensors: Tensors) -> Arrays:
    """Tensors of any device as arrays."""
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
