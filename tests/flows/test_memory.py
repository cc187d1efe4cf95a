"""The experiment `memory`: gradients over time by their closed form, and its verdict both ways."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from flows.experiments import Setup, memory
from flows.experiments.memory import CELLS, Flow, Found, gradient_norms, judge, reach, share
from models.adding import Cell, State
from tests.flows.conftest import Fucina

TINY = {"epochs": 1, "rows": 64, "hidden": 4}


def hidden(state: State) -> Tensor:
    return (state[0] if isinstance(state, tuple) else state)[-1]


def mean_norms(gradients: Sequence[Tensor]) -> tuple[float, ...]:
    return tuple(float(g.norm(dim=1).mean()) for g in gradients)


@given(radius=st.floats(0.1, 1.5), size=st.integers(1, 6), length=st.integers(1, 40))
def test_the_gradient_of_a_linear_net_is_a_power_of_its_spectral_radius(
    radius: float, size: int, length: int
) -> None:
    """ReLUs that are all on are linear, and a permutation keeps norms: |dL/dh_t| ~ radius^(T-t)."""
    cell = nn.RNN(1, size, nonlinearity="relu", batch_first=True).double()
    inward, recurrent, *biases = cell.all_weights[0]
    with torch.no_grad():
        inward.fill_(1)
        recurrent.copy_(radius * torch.eye(size, dtype=torch.float64).roll(1, 0))
        for bias in biases:
            bias.fill_(0.5)
    rows = torch.rand(3, length, 1, dtype=torch.float64)
    weight = torch.arange(1.0, size + 1, dtype=torch.float64)
    found = gradient_norms(cell, lambda state: hidden(state) @ weight, rows)
    expected = [float(weight.norm()) * radius ** (length - 1 - t) for t in range(length)]
    assert found == pytest.approx(expected, rel=1e-9)


@given(size=st.integers(1, 5), length=st.integers(1, 12), seed=st.integers(0, 99))
def test_gradients_of_an_rnn_are_those_of_the_textbooks_recurrence(
    size: int, length: int, seed: int
) -> None:
    torch.manual_seed(seed)
    cell = nn.RNN(2, size, batch_first=True).double()
    rows = torch.rand(4, length, 2, dtype=torch.float64)
    inward, recurrent, *biases = cell.all_weights[0]
    state = torch.zeros(4, size, dtype=torch.float64)
    states = []
    for t in range(length):
        state = torch.tanh(rows[:, t] @ inward.T + state @ recurrent.T + sum(biases))
        states.append(state)
    expected = torch.autograd.grad(state.square().sum(), states)
    found = gradient_norms(cell, lambda last: hidden(last).square().sum(1), rows)
    assert found == pytest.approx(mean_norms(expected), rel=1e-9)


def test_the_state_of_an_lstm_is_both_its_parts() -> None:
    torch.manual_seed(0)
    size, length = 3, 6
    cell = nn.LSTM(2, size, batch_first=True).double()
    rows = torch.rand(4, length, 2, dtype=torch.float64)
    inward, recurrent, *biases = cell.all_weights[0]
    h = c = torch.zeros(4, size, dtype=torch.float64)
    states = []
    for t in range(length):
        gates = rows[:, t] @ inward.T + h @ recurrent.T + sum(biases)
        i, f, g, o = gates.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        # A leaf of its own for what the next step reads: the next h also depends on this c.
        c, through = c.clone(), c
        h = o.sigmoid() * through.tanh()
        states += [h, c]
    gradients = torch.autograd.grad(
        h.square().sum(), states, allow_unused=True, materialize_grads=True
    )
    together = [torch.cat(pair, 1) for pair in zip(gradients[::2], gradients[1::2], strict=True)]
    found = gradient_norms(cell, lambda state: hidden(state).square().sum(1), rows)
    assert found == pytest.approx(mean_norms(together), rel=1e-9)
    assert found != pytest.approx(mean_norms(gradients[::2]), rel=0.01), "c carries gradient too"


KEPT, LOST = Flow((1e-9, 1.0), (0.5, 1.0)), Flow((1e-9, 1.0), (1e-9, 1.0))


def found(r2: Sequence[float], flow: Flow) -> list[Found]:
    return [Found(lag, value, flow) for lag, value in zip((4, 8, 16), r2, strict=True)]


FAR, NEAR = found((1, 1, 0.95), KEPT), found((1, 0.3, 0.0), LOST)


@pytest.mark.parametrize(
    ("cells", "holds"),
    [
        ((NEAR, FAR, FAR, FAR), True),
        ((FAR, FAR, FAR, FAR), False),
        ((NEAR, NEAR, FAR, FAR), False),
        ((NEAR, FAR, NEAR, FAR), False),
        ((NEAR, FAR, FAR, NEAR), False),
        ((NEAR, FAR, FAR, found((1, 1, 0.95), LOST)), False),  # it works, no gradient says why
        ((found((1, 0.3, 0.0), KEPT), FAR, FAR, FAR), False),  # it fails, for another reason
        ((NEAR, found((math.nan, 1, 1), Flow()), FAR, FAR), False),
    ],
)
def test_memory_is_what_others_solve_after_the_rnn_has_failed(
    cells: tuple[list[Found], ...], holds: bool
) -> None:
    named: dict[Cell, list[Found]] = dict(zip(CELLS, cells, strict=True))
    verdict, held = judge(named)
    assert held is holds
    assert "the lags 4, 8 and 16" in verdict
    assert all(f"{reach(some)} by {cell}" in verdict for cell, some in named.items())
    after = [f"{share(some[-1].flow.after):.2g} in {cell}" for cell, some in named.items()]
    assert f"after it {after[0]}, {after[1]}, {after[2]} and {after[3]}" in verdict


@pytest.mark.parametrize(
    ("r2", "longest"),
    [
        ((1, 1, 1), 16),
        ((1, 0.9, 0.89), 8),
        ((1, 0.2, 1), 4),  # a lag that is solved after one that is not does not count
        ((0.5, 1, 1), 0),
        ((1, math.nan, 1), 4),
    ],
)
def test_a_reach_ends_before_the_first_lag_that_is_not_solved(
    r2: tuple[float, ...], longest: int
) -> None:
    assert reach(found(r2, KEPT)) == longest


def test_a_share_is_of_the_last_states_gradient() -> None:
    assert share((0.5, 7, 2)) == 0.25
    assert share((0.0, 0.0)) == 0
    assert math.isnan(share(Flow().after))


def test_a_net_that_runs_away_counts_as_not_solved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "LAGS", (128,))
    monkeypatch.setattr(memory, "RATES", (0.5,))
    wild = {"epochs": 2, "rows": 64, "hidden": 16, "batch_size": 16, "clip_norm": 0}
    outcome = memory.run(Setup(tmp_path, changes=wild))
    (lost,) = (row for row in outcome.rows if not row["rates that trained"])
    assert lost["cell"] == "IRNN", "no other cell's states are unbounded"
    assert "test R2" not in lost
    assert "0 by IRNN" in outcome.verdict
    assert not outcome.holds


def test_the_command_judges_every_cell_at_every_lag(fucina: Fucina, tmp_path: Path) -> None:
    small = (
        "from flows.experiments import memory\n"
        "memory.LAGS, memory.RATES = (1, 3), (0.01, 0.02)\n"
        "from flows.cli import main\nmain()"
    )
    changes = [part for name, value in TINY.items() for part in ("--set", f"{name}={value}")]
    arguments = ("experiment", "memory", "--json", *changes)
    done = fucina(*arguments, cwd=tmp_path, code=small)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    rows = document["rows"]
    assert [(row["cell"], row["lag"]) for row in rows] == [
        (c, lag) for c in CELLS for lag in (1, 3)
    ]
    assert all(math.isfinite(v) for row in rows for v in row.values() if not isinstance(v, str))
    assert all(row["rates that trained"] == 2 for row in rows)
    assert TINY.items() <= document["settings"].items()
    assert not {"cell", "lag", "learning_rate"} & document["settings"].keys()
    assert "after it " in document["verdict"]
    assert "GRU, lag 3, rate 0.02 train 1/1" in done.stderr
    assert (tmp_path / document["report"]).read_text().count("<svg") == 3

    again = fucina(*arguments, cwd=tmp_path, code=small)
    assert " train " not in again.stderr
    assert json.loads(again.stdout)["rows"] == rows
