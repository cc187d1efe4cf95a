"""Long dependencies: RNN, LSTM and GRU on the adding problem, and how far back gradients reach."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from flows import stages
from flows.console import listener
from flows.experiments import Experiment, Figure, Outcome, Setup, common_settings, read_history
from flows.stages import Job
from models.adding import ADDING, Adder, Cell, State
from models.datasets import Split
from models.errors import TrainingFailed
from pipeline import plots
from pipeline.train import load_module
from pipeline.values import TrainedModel

CELLS: tuple[Cell, ...] = get_args(Cell)
RNN, *_OTHERS = CELLS
# The fewest steps for which the first number must be kept; a row has twice as many.
LAGS = (4, 8, 16, 32, 64)
# At each lag a cell counts with the one that does best on the validation rows.
RATES = (0.002, 0.006, 0.02)

SOLVED = 0.9  # test R2: 0 is always answering the mean, 1 is every sum
VANISHED = 1e-3  # of the gradient by the last state

_ROWS = 64  # test rows over which gradient norms are a mean


@dataclass(frozen=True)
class Flow:
    """Norms of d loss / d state_t for the steps t of a row, before and after training."""

    before: tuple[float, ...] = (math.nan,)
    after: tuple[float, ...] = (math.nan,)


@dataclass(frozen=True)
class Found:
    """A cell at one lag: its test R2, and how the gradient flows; NaN where no rate could train."""

    lag: int
    r2: float = math.nan
    flow: Flow = Flow()


def reach(found: Sequence[Found]) -> int:
    """The longest lag up to which a cell solved every one of them; 0 if not even the first."""
    longest = 0
    for one in found:
        if not one.r2 >= SOLVED:
            break
        longest = one.lag
    return longest


def share(norms: Sequence[float]) -> float:
    """What of the last state's gradient reaches the first."""
    return norms[0] / norms[-1] if norms[-1] else 0.0


def gradient_norms(
    cell: nn.RNNBase, loss: Callable[[State], Tensor], rows: Tensor
) -> tuple[float, ...]:
    """|d loss / d state_t| after each step t of rows [n, length, features], the mean over the rows.

    `loss` gives each row's loss from the last state. All that a cell hands on is its state: h, and
    of an LSTM c beside it, as one vector. The derivative is total, through all later steps.
    """
    states: list[State] = []
    for step in rows.split(1, dim=1):
        states.append(cell(step, states[-1] if states else None)[1])
    tensors = [t for state in states for t in (state if isinstance(state, tuple) else (state,))]
    gradients = torch.autograd.grad(
        loss(states[-1]).sum(),
        tensors,
        allow_unused=True,  # nothing reads the last c of an LSTM
        materialize_grads=True,
    )
    steps = torch.stack(gradients).unflatten(0, (len(states), -1))  # [steps, h and c, 1, n, hidden]
    return tuple(torch.linalg.vector_norm(steps, dim=(1, 2, 4)).mean(1).tolist())


def judge(cells: Mapping[Cell, Sequence[Found]]) -> tuple[str, bool]:
    """The verdict, from what each cell did at the same growing lags."""
    reaches = {cell: reach(found) for cell, found in cells.items()}
    last = {cell: found[-1] for cell, found in cells.items()}
    before = {cell: share(one.flow.before) for cell, one in last.items()}
    after = {cell: share(one.flow.after) for cell, one in last.items()}
    lags = [one.lag for one in cells[RNN]]
    verdict = (
        f"Of the lags {_listed(map(str, lags))}, the longest that is solved like all before it is "
        f"{_listed(f'{lag} by {cell}' for cell, lag in reaches.items())} (solved means a test R2 "
        f"of {SOLVED:g} or more). At lag {lags[-1]} the gradient by the first of {2 * lags[-1]} "
        f"states, as a share of the last one's, is before training "
        f"{_listed(f'{value:.2g} in {cell}' for cell, value in before.items())}, and after it "
        f"{_listed(f'{value:.2g} in {cell}' for cell, value in after.items())} (vanished means "
        f"below {VANISHED:g})."
    )
    farther = all(reaches[cell] > reaches[RNN] for cell in _OTHERS)
    kept = all(after[cell] >= VANISHED for cell in _OTHERS)
    return verdict, farther and after[RNN] < VANISHED and kept


def run(setup: Setup) -> Outcome:
    """Every cell at every lag with every rate, each for as many updates on the same rows."""
    rows: list[dict[str, Any]] = []
    cells: dict[Cell, list[Found]] = {}
    models: list[TrainedModel] = []
    for cell in CELLS:
        cells[cell] = []
        for lag in LAGS:
            tries = [made for rate in RATES if (made := _trained(setup, cell, lag, rate))]
            models += [model for _, model in tries]
            best = max(tries, key=lambda made: _validation(made[1]), default=None)
            found = Found(lag)
            row = {"cell": cell, "lag": lag, "steps": 2 * lag, "rates that trained": len(tries)}
            if best:
                job, model = best
                found = Found(lag, model.metrics["r2"], _flow(job, model))
                row |= {
                    "learning rate": model.settings["learning_rate"],
                    "parameters": model.parameters,
                    "test R2": found.r2,
                    "test RMSE": model.metrics["rmse"],
                    "first / last gradient, before": share(found.flow.before),
                    "first / last gradient, after": share(found.flow.after),
                }
            cells[cell].append(found)
            rows.append(row)
    verdict, holds = judge(cells)
    return Outcome(verdict, holds, rows, _figures(cells), common_settings(models))


def _trained(setup: Setup, cell: Cell, lag: int, rate: float) -> tuple[Job, TrainedModel] | None:
    """Train, or take what is there; None where the loss runs away."""
    own = {"floor": "none", "cell": cell, "lag": lag, "learning_rate": rate}
    job = Job(
        "models.adding:ADDING", setup.data, changes=own | dict(setup.changes), out=setup.out,
        device=setup.device,
    )  # fmt: skip
    try:
        return job, stages.train(job, listener.get()(f"{cell}, lag {lag}, rate {rate:g}", "train"))
    except TrainingFailed:
        return None


def _validation(model: TrainedModel) -> float:
    ranks = [ADDING.rank(epoch["validation"]) for epoch in read_history(model)]
    return max((rank for rank in ranks if not math.isnan(rank)), default=-math.inf)


def _flow(job: Job, model: TrainedModel) -> Flow:
    """Gradient norms of the net that training began with, and of the one that it kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(model.settings["seed"])
        first = job.recipe.build()
    test = job.dataset.test
    return Flow(_norms(first, test), _norms(load_module(job.recipe, model), test))


def _norms(net: nn.Module, test: Split) -> tuple[float, ...]:
    """In fp64, where no gradient underflows on its way back."""
    assert isinstance(net, Adder)
    net.double()
    sequence = torch.from_numpy(test.inputs["sequence"][:_ROWS]).double()
    value = torch.from_numpy(test.targets["value"][:_ROWS]).double()
    return gradient_norms(net.cell, lambda state: (net.read(state) - value).square(), sequence)


def _figures(cells: Mapping[Cell, Sequence[Found]]) -> list[Figure]:
    solved = plots.lines(
        "r2",
        {cell: ([f.lag for f in found], [f.r2 for f in found]) for cell, found in cells.items()},
        f"Test R2 of {len(cells)} cells over the lag",
        xlabel="lag: steps for which the first number must be kept at least",
        ylabel="test R2",
        log_x=True,
    )
    last = {cell: found[-1] for cell, found in cells.items()}
    before = {cell: one.flow.before for cell, one in last.items()}
    after = {cell: one.flow.after for cell, one in last.items()}
    return [
        Figure("Test R2 over the lag: 1 is every sum, 0 is always answering the mean.", solved),
        _over_steps("before", before, f"before training, at lag {last[RNN].lag}"),
        _over_steps("after", after, f"after training, at lag {last[RNN].lag}"),
    ]


def _over_steps(name: str, norms: Mapping[str, Sequence[float]], when: str) -> Figure:
    markup = plots.lines(
        name,
        {cell: (range(len(values)), values[::-1]) for cell, values in norms.items()},
        f"Gradient norm by the state over the steps back from the end, {when}",
        xlabel="steps back from the end of the row",
        ylabel="gradient norm (logarithmic)",
        log_y=True,
    )
    return Figure(
        f"Norm of the loss's gradient by the state after each step, {when}: mean over {_ROWS} test "
        "rows, from the last step on the left back to the first.",
        markup,
    )


def _listed(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


EXPERIMENT = Experiment(
    name="memory",
    title="Long dependencies in RNN, LSTM and GRU",
    claim="On the adding problem an RNN of tanh units fails at lags at which LSTM, GRU and an RNN "
    "of ReLUs that begins with the identity (IRNN) still give the sum, with the same hidden size "
    "and after as many updates; at the longest lag the gradient by the first state has vanished "
    "in the RNN, and in the others, once trained, it has not.",
    paper="Bengio, Simard, Frasconi 1994, Learning long-term dependencies with gradient descent is "
    "difficult; Hochreiter, Schmidhuber 1997, Long short-term memory; Le, Jaitly, Hinton 2015, A "
    "simple way to initialize recurrent networks of rectified linear units",
    run=run,
    varied=("cell", "lag", "learning_rate", "patience"),
)
