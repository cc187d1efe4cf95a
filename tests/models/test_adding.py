"""The adding problem: what its rows promise, and the cells that are put to it."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.adding import ADDING, Adder, Cell, marked_numbers
from models.errors import BadSetting

CELLS: tuple[Cell, ...] = get_args(Cell)


@given(lag=st.integers(1, 40))
def test_a_row_asks_for_the_sum_of_a_number_of_each_half(lag: int) -> None:
    dataset = marked_numbers(lag, rows=16)
    for split in (dataset.train, dataset.validation, dataset.test):
        sequence, value = split.inputs["sequence"], split.targets["value"]
        assert sequence.shape == (len(split), 2 * lag, 2)
        assert sequence.dtype == value.dtype == np.float32
        numbers, marks = sequence[..., 0], sequence[..., 1]
        assert ((numbers >= 0) & (numbers < 1)).all()
        assert set(np.unique(marks)) <= {0, 1}
        assert (marks[:, :lag].sum(1) == 1).all()
        assert (marks[:, lag:].sum(1) == 1).all()
        # From the first mark to the last step, where the sum is asked for.
        assert (2 * lag - 1 - marks.argmax(1) >= lag).all()
        np.testing.assert_allclose(value[:, 0], numbers[marks == 1].reshape(-1, 2).sum(1))
    assert len(dataset.train) == 16


def test_rows_are_drawn_once_and_every_place_is_marked() -> None:
    dataset = marked_numbers(5)
    assert dataset.digest == marked_numbers(5).digest
    assert dataset.digest != marked_numbers(6).digest
    assert "synthetic" in dataset.name
    rows = np.concatenate([s.inputs["sequence"] for s in (dataset.train, dataset.test)])
    assert len(np.unique(rows.reshape(len(rows), -1), axis=0)) == len(rows)
    np.testing.assert_allclose(rows[..., 1].mean(0), 1 / 5, atol=0.02)


def test_the_mean_is_worth_nothing_and_one_number_half() -> None:
    test = marked_numbers(20).test
    value = test.targets["value"]
    first = (test.inputs["sequence"][:, :20].prod(2)).sum(1, keepdims=True)
    assert np.square(value - 1).mean() == pytest.approx(1 / 6, rel=0.1)
    constant = ADDING.evaluate({"value": np.full_like(value, value.mean())}, test.targets)
    assert constant["r2"] == pytest.approx(0, abs=1e-6)
    one = ADDING.evaluate({"value": first + 0.5}, test.targets)
    assert one["r2"] == pytest.approx(0.5, abs=0.1)
    assert ADDING.evaluate({"value": value}, test.targets)["r2"] == 1


@pytest.mark.parametrize(("cell", "gates"), list(zip(CELLS, (1, 1, 4, 3), strict=True)))
def test_parameters(cell: Cell, gates: int) -> None:
    """Each gate has a weight for 2 inputs and 100 states, and two biases; the head 101."""
    count = sum(p.numel() for p in Adder(cell).parameters())
    assert count == gates * 100 * (2 + 100 + 2) + 101


@pytest.mark.parametrize("cell", CELLS)
def test_a_sum_is_read_after_the_last_step_of_any_length(cell: Cell) -> None:
    net = Adder(cell, hidden=5)
    sequence = torch.rand(3, 9, 2)
    for length in (1, 2, 7, 9):
        _, state = net.cell(sequence[:, :1])
        for step in sequence[:, 1:length].split(1, dim=1) if length > 1 else ():
            _, state = net.cell(step, state)
        torch.testing.assert_close(net(sequence[:, :length])["value"], net.read(state))
    assert net(sequence)["value"].shape == (3, 1)


def test_an_irnn_begins_by_keeping_its_state() -> None:
    net = Adder("IRNN", hidden=7)
    state = torch.rand(1, 2, 7)
    _, after = net.cell(torch.zeros(2, 50, 2), state)
    assert torch.equal(after, state)
    _, forgotten = Adder("RNN", hidden=7).cell(torch.zeros(2, 50, 2), state)
    assert not torch.allclose(forgotten, state, atol=0.1)


def test_an_lstm_begins_by_not_forgetting() -> None:
    """With a bias of 1 its forget gates are about sigmoid(1), beside torch's sigmoid(0)."""
    biases = Adder("LSTM", hidden=64).cell.all_weights[0][3]
    assert torch.equal(biases[64:128], torch.ones(64))
    others = torch.cat([biases[:64], biases[128:]])
    assert others.abs().max() <= 64**-0.5


def test_settings_reach_net_signature_and_data_at_once() -> None:
    recipe = ADDING.override({"lag": "3", "rows": "8", "cell": "GRU"}).on("embedded")
    dataset = recipe.load("embedded")
    recipe.check_fits(dataset, "embedded")
    assert dataset.train.inputs["sequence"].shape == (8, 6, 2)
    assert isinstance(recipe.build().cell, torch.nn.GRU)
    assert [axis.max for axis in recipe.make_signature().input("sequence").axes] == [64, 6]
    with pytest.raises(BadSetting, match="setting 'cell' of recipe 'adding' is refused"):
        ADDING.override({"cell": "transistor"})
