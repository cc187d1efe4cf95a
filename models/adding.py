"""The adding problem: two marked numbers in a long row, and their sum at its end."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from models.choices import Count
from models.datasets import Dataset, Split
from models.losses import squared_error
from models.metrics import regression
from models.recipe import Recipe, Training
from models.signature import BATCH, Axis, Signature, TensorSpec

Cell = Literal["RNN", "IRNN", "LSTM", "GRU"]
Lag = Annotated[int, Field(ge=1, le=4096)]
# What a cell hands to its next step: h [1, batch, hidden], of an LSTM (h, c).
State = Tensor | tuple[Tensor, Tensor]

LAG = 75  # as in rows of 150 steps, with which the paper begins
_HELD_OUT = 1024  # rows of validation and of test


class Adder(nn.Module):
    """Numbers and marks [batch, length, 2] to their sum [batch, 1], read from the last state.

    "RNN" has tanh units. "IRNN" has ReLUs, and begins with the identity as its recurrent matrix and
    no biases, so that what is not negative stays in its state until training changes that.
    """

    def __init__(self, cell: Cell = "LSTM", hidden: Count = 100) -> None:
        super().__init__()
        cells = {
            "RNN": nn.RNN,
            "IRNN": partial(nn.RNN, nonlinearity="relu"),
            "LSTM": nn.LSTM,
            "GRU": nn.GRU,
        }
        self.cell: nn.RNNBase = cells[cell](2, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)
        _, recurrent, *biases = self.cell.all_weights[0]
        with torch.no_grad():
            if cell == "IRNN":  # deviation: other weights as torch draws them, not N(0, 0.001)
                nn.init.eye_(recurrent)
                for bias in biases:
                    nn.init.zeros_(bias)
            if cell == "LSTM":  # it begins by not forgetting (Gers 2000); gates are i, f, g, o
                biases[-1][hidden : 2 * hidden] = 1

    def forward(self, sequence: Tensor) -> dict[str, Tensor]:
        return {"value": self.read(self.cell(sequence)[1])}

    def read(self, state: State) -> Tensor:
        """The sum [batch, 1] that a state stands for."""
        return self.head((state[0] if isinstance(state, tuple) else state)[-1])


def signature(lag: Lag = LAG, max_batch: Count = 64) -> Signature:
    """Sequences of any length up to that of the data, 2 `lag`."""
    batch = Axis(BATCH, 1, min(8, max_batch), max_batch)
    length = Axis("length", 1, 2 * lag, 2 * lag)
    return Signature(
        inputs=(TensorSpec("sequence", "float32", (batch, length, 2), 0, 1),),
        outputs=(TensorSpec("value", "float32", (batch, 1)),),
    )


def marked_numbers(lag: Lag = LAG, rows: Count = 8192) -> Dataset:
    """`rows` training rows of 2 `lag` steps: a number of U[0, 1] at each, and 1 where it is marked.

    One mark is in the first half and one in the second, so the first number must be kept for at
    least `lag` steps. Always answering 1 has a mean squared error of 1/6.
    """
    chance = np.random.default_rng(0)

    def draw(count: int) -> Split:
        numbers = chance.random((count, 2 * lag), np.float32)
        marks = np.zeros_like(numbers)
        places = chance.integers([0, lag], [lag, 2 * lag], (count, 2))
        np.put_along_axis(marks, places, 1, 1)
        sums = (numbers * marks).sum(1, keepdims=True)
        return Split({"sequence": np.stack([numbers, marks], 2)}, {"value": sums})

    return Dataset(
        name=f"adding problem, lag {lag} (synthetic)",
        source="drawn from uniform distributions by this program, from a fixed seed",
        licence="none needed: synthetic",
        train=draw(rows),
        validation=draw(_HELD_OUT),
        test=draw(_HELD_OUT),
    )


ADDING = Recipe(
    name="adding",
    kind="sequence",
    title="The adding problem",
    paper="Le, Jaitly, Hinton 2015, A simple way to initialize recurrent networks of rectified "
    "linear units; Hochreiter, Schmidhuber 1997, Long short-term memory",
    network=Adder,
    signature=signature,
    data={"embedded": marked_numbers},
    loss=squared_error,
    evaluate=regression,
    metric="r2",
    floor={"embedded": 0.9},
    # deviation: Adam, not gradient descent
    training={"embedded": Training(epochs=10, batch_size=64, learning_rate=0.005, clip_norm=1.0)},
    presets={"embedded": {"hidden": 32, "lag": 20}},
    exporter="torchscript",
    deviations=(
        "Adam instead of gradient descent",
        "an IRNN's other weights are drawn as torch draws them, not from N(0, 0.001), with which "
        "it learns too slowly here",
    ),
)
