"""Replay memory and targets: what is remembered, what is played, what Q is wanted to be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from models.cartpole import cartpole
from models.dqn import QNetwork
from models.episodes import Environment
from models.errors import BadSetting
from models.gridworld import gridworld
from models.replay import Tensors, collector, huber, q_targets, remember

SMALL = {"steps": 40, "rows": 64, "environments": 4, "warmup": 40, "capacity": 100}
TRANSITION = ("before", "action", "reward", "after", "terminal")


def network(seed: int = 0, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(seed)
    return QNetwork(hidden=16, dropout=dropout)


def gather(
    module: nn.Module,
    memory: Tensors,
    epoch: int,
    world: Environment | None = None,
    **changes: object,
) -> tuple[Tensors, Tensors, Tensors]:
    torch.manual_seed(epoch)
    settings = SMALL | changes
    return collector(lambda _: world or cartpole())(module, memory, epoch, **settings)


def same(left: Tensors, right: Tensors) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def test_the_memory_is_all_that_a_killed_run_needs() -> None:
    """Twice from the same memory is the same to the bit, and the memory itself stays as it was."""
    module = network(dropout=0.5)
    memory, _, _ = gather(module, {}, 1)
    kept = {name: tensor.clone() for name, tensor in memory.items()}
    module.train()  # as after an epoch; a resumed run comes from elsewhere
    first = gather(module, memory, 2)
    module.eval()
    again = gather(module, {name: tensor.clone() for name, tensor in memory.items()}, 2)
    assert same(memory, kept)
    assert all(map(same, first, again))
    assert not same(first[0], kept)
    assert all(isinstance(tensor, Tensor) for tensor in first[0].values())


@pytest.mark.parametrize("world", [cartpole(), gridworld(6)], ids=lambda world: world.name)
def test_every_row_is_a_step_of_the_environment(world: Environment) -> None:
    module = network()
    if world.actions != cartpole().actions:
        module = _Constant(len(world.actions))
    memory, inputs, targets = gather(module, {}, 1, world)
    states, actions = memory["before"].numpy(), memory["action"].numpy()
    after, rewards, terminal = world.step(states, actions)
    np.testing.assert_array_equal(memory["after"].numpy(), after)
    np.testing.assert_array_equal(memory["reward"].numpy(), rewards)
    np.testing.assert_array_equal(memory["terminal"].numpy(), terminal)
    assert len(inputs["observation"]) == len(targets["wanted"]) == SMALL["rows"]
    seen = {row.tobytes() for row in world.observe(states)}
    assert {row.tobytes() for row in inputs["observation"].numpy()} <= seen


def test_an_episode_goes_on_from_chunk_to_chunk() -> None:
    module = network()
    memory, _, _ = gather(module, {}, 1, capacity=10_000)
    more, _, _ = gather(module, memory, 2, capacity=10_000)
    begun = len(memory["before"])
    assert torch.equal(more["before"][begun : begun + 4], memory["playing"])
    assert (memory["played"] > 0).any()


def test_what_is_cut_off_is_not_terminal_and_a_new_episode_begins() -> None:
    endless = replace(
        cartpole(),
        limit=3,
        step=lambda s, a: (s + 1, np.ones(len(s), np.float32), np.zeros(len(s), bool)),
    )
    memory, _, _ = gather(network(), {}, 1, endless, warmup=24, steps=24, capacity=1000)
    assert not memory["terminal"].any()
    before = memory["before"].reshape(-1, 4, 4)  # steps, episodes, features
    age = before.mean(2).round().numpy()
    np.testing.assert_array_equal(age, np.arange(len(age))[:, None] % 3 * np.ones((1, 4)))


@given(chunks=st.lists(st.integers(1, 9), min_size=1, max_size=6), capacity=st.integers(1, 20))
def test_the_last_rows_are_remembered(chunks: list[int], capacity: int) -> None:
    memory: Tensors = {}
    told = 0
    for count in chunks:
        memory = remember(memory, {"row": torch.arange(told, told + count)}, capacity)
        told += count
    assert memory["row"].tolist() == list(range(told))[-capacity:]


@given(rows=st.integers(1, 8), gamma=st.floats(0, 1), seed=st.integers(0, 1000))
def test_targets_are_those_of_the_papers(rows: int, gamma: float, seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    values, chooser = torch.randn(2, rows, 3, generator=chance)
    rewards = torch.randn(rows, generator=chance)
    terminal = torch.rand(rows, generator=chance) < 0.5
    single = q_targets(rewards, terminal, values, values, gamma)
    double = q_targets(rewards, terminal, values, chooser, gamma)
    for row in range(rows):
        future = 0.0 if terminal[row] else gamma
        greatest = float(values[row].max())
        chosen = float(values[row, int(chooser[row].argmax())])
        assert float(single[row]) == pytest.approx(
            float(rewards[row]) + future * greatest, abs=1e-5
        )
        assert float(double[row]) == pytest.approx(float(rewards[row]) + future * chosen, abs=1e-5)
    assert (double <= single + 1e-6).all(), "double Q-learning never asks for more"


def test_wanted_is_made_by_the_target_network_which_is_copied_every_so_many_epochs() -> None:
    old, new = network(0), network(1)
    memory, _, _ = gather(old, {}, 1, target=2)
    memory, inputs, targets = gather(new, memory, 2, target=2)
    kept = {n.removeprefix("target."): t for n, t in memory.items() if n.startswith("target.")}
    assert same(kept, dict(old.state_dict()))
    # Rows are found in the memory again by what was seen.
    rows = {tuple(row.tolist()): place for place, row in enumerate(memory["before"].float())}
    places = torch.tensor([rows[tuple(row.tolist())] for row in inputs["observation"]])
    values = old(observation=memory["after"][places].float())["q_values"]
    expected = q_targets(memory["reward"][places], memory["terminal"][places], values, values, 0.99)
    torch.testing.assert_close(targets["wanted"], expected)
    assert torch.equal(targets["action"], memory["action"][places])
    _, _, double = gather(new, memory, 2, target=2, double=True)
    assert not torch.equal(double["wanted"], targets["wanted"])
    memory, _, _ = gather(new, memory, 3, target=2)
    kept = {n.removeprefix("target."): t for n, t in memory.items() if n.startswith("target.")}
    assert same(kept, dict(new.state_dict()))


def test_double_is_refused_where_both_networks_are_always_one() -> None:
    with pytest.raises(BadSetting, match="double"):
        gather(network(), {}, 1, double=True)


def test_the_share_of_random_actions_falls() -> None:
    module = _Constant(2)
    world = replace(cartpole(), limit=1)
    shares, memory = [], {}
    for epoch in (1, 2, 3, 4, 5):
        memory, _, _ = gather(
            module, memory, epoch, world, steps=4000, capacity=4000, epsilon=0.2, explore=4
        )
        shares.append(2 * float((memory["action"] != 0).float().mean()))
    np.testing.assert_allclose(shares, [1, 0.8, 0.6, 0.4, 0.2], atol=0.05)


def test_huber_is_square_near_and_linear_far() -> None:
    wanted = torch.zeros(4)
    predicted = torch.tensor([0.5, -1.0, 3.0, -3.0], requires_grad=True)
    loss = huber({"predicted": predicted, "wanted": wanted}, {})
    assert loss.item() == pytest.approx((0.125 + 0.5 + 2.5 + 2.5) / 4)
    (gradient,) = torch.autograd.grad(loss, predicted)
    assert (4 * gradient).tolist() == [0.5, -1, 1, -1]


def test_q_learning_finds_the_values_of_a_chain() -> None:
    """Three cells in a row, 1 for leaving the last: Q of going on is gamma to the steps left."""

    def step(states: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        place = states.argmax(1) + np.where(actions == 1, 1, 0)
        over = place == 3
        return np.eye(3)[np.minimum(place, 2)], over.astype(np.float32), over

    chain = Environment(
        name="chain",
        actions=("stay", "on"),
        limit=10,
        start=lambda seeds: np.eye(3)[np.zeros(len(seeds), int)],
        observe=lambda states: states.astype(np.float32),
        step=step,
        sensible=lambda seen: np.ones(len(seen), np.int64),
    )
    torch.manual_seed(0)
    table = _Table(3, 2)
    optimizer, memory = torch.optim.SGD(table.parameters(), lr=2.0), {}
    for epoch in range(1, 30):
        memory, inputs, targets = gather(table, memory, epoch, chain, gamma=0.5, rows=600)
        for _ in range(20):
            said = table(**inputs)["q_values"].gather(1, targets["action"][:, None])[:, 0]
            optimizer.zero_grad()
            huber({"predicted": said, "wanted": targets["wanted"]}, {}).backward()
            optimizer.step()
    expected = torch.tensor([[0.125, 0.25], [0.25, 0.5], [0.5, 1.0]])
    torch.testing.assert_close(table.values.weight.T, expected, atol=0.01, rtol=0)


class _Constant(nn.Module):
    """The first action is always the best."""

    def __init__(self, actions: int) -> None:
        super().__init__()
        self.values = nn.Parameter(-torch.arange(actions).float())

    def forward(self, observation: Tensor) -> Tensors:
        return {"q_values": self.values.expand(len(observation), -1)}


class _Table(nn.Module):
    """A value for each state, one-hot, and action."""

    def __init__(self, states: int, actions: int) -> None:
        super().__init__()
        self.values = nn.Linear(states, actions, bias=False)

    def forward(self, observation: Tensor) -> Tensors:
        return {"q_values": self.values(observation)}
