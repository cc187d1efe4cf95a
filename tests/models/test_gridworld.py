"""The grid world: what its pictures promise, its rules, and the optimum that it is measured by."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.episodes import chance, play
from models.gridworld import ACTIONS, LIMIT, distances, gridworld, shortest

AGENT, GOAL, WALL = range(3)
SEEDS = st.lists(st.integers(0, (1 << 31) - 1), min_size=1, max_size=8).map(np.array)
CELLS = st.integers(4, 12)


@given(seeds=SEEDS, cells=CELLS)
def test_a_room_is_walled_around_and_its_goal_can_be_reached(seeds: np.ndarray, cells: int) -> None:
    states = gridworld(cells).start(seeds)
    assert states.shape == (len(seeds), 3, cells, cells)
    assert set(np.unique(states)) == {0, 1}
    assert (states[:, [AGENT, GOAL]].sum((2, 3)) == 1).all()
    assert (states.sum(1) <= 1).all(), "agent, goal and wall are in three places"
    border = np.ones((cells, cells), bool)
    border[1:-1, 1:-1] = False
    assert states[:, WALL, border].all()
    away = distances(states[:, WALL] > 0, states[:, GOAL] > 0)
    assert (away[states[:, AGENT] > 0] < cells * cells).all()


@given(seeds=SEEDS, cells=CELLS, chance=st.randoms(use_true_random=False))
def test_a_step_moves_one_cell_or_stays_before_a_wall(
    seeds: np.ndarray, cells: int, chance: object
) -> None:
    world = gridworld(cells)
    before = world.start(seeds)
    actions = np.array([chance.randrange(len(ACTIONS)) for _ in seeds])  # pyright: ignore
    after, rewards, terminal = world.step(before, actions)
    assert (after[:, [GOAL, WALL]] == before[:, [GOAL, WALL]]).all()
    for row, action in enumerate(actions):
        (place,) = np.argwhere(before[row, AGENT])
        wanted = (
            place
            + {"up": (-1, 0), "right": (0, 1), "down": (1, 0), "left": (0, -1)}[ACTIONS[action]]
        )
        if before[row, WALL][tuple(wanted)]:
            wanted = place
        assert (np.argwhere(after[row, AGENT]) == wanted).all()
        assert terminal[row] == bool(before[row, GOAL][tuple(wanted)])
    np.testing.assert_allclose(rewards, terminal - 1 / LIMIT, rtol=1e-6)
    assert rewards.dtype == np.float32


@given(seeds=SEEDS, cells=CELLS)
def test_distances_are_those_of_a_queue(seeds: np.ndarray, cells: int) -> None:
    states = gridworld(cells).start(seeds)
    away = distances(states[:, WALL] > 0, states[:, GOAL] > 0)
    for room, found in zip(states, away, strict=True):
        (goal,) = np.argwhere(room[GOAL])
        expected, queue = {tuple(goal): 0}, deque([tuple(goal)])
        while queue:
            row, column = queue.popleft()
            for place in (
                (row - 1, column),
                (row + 1, column),
                (row, column - 1),
                (row, column + 1),
            ):
                if not room[WALL][place] and place not in expected:
                    expected[place] = expected[row, column] + 1
                    queue.append(place)
        reached = found < 1 << 15
        assert {tuple(p) for p in np.argwhere(reached)} == expected.keys()
        assert all(found[place] == steps for place, steps in expected.items())


def test_the_optimum_takes_the_shortest_path_and_chance_does_not() -> None:
    world, seeds = gridworld(8), np.arange(200)
    states = world.start(seeds)
    away = distances(states[:, WALL] > 0, states[:, GOAL] > 0)[states[:, AGENT] > 0]
    best = play(world, shortest, seeds)
    np.testing.assert_array_equal(best["steps"], away)
    np.testing.assert_allclose(best["return"], 1 - away / LIMIT, atol=1e-5)
    assert play(world, chance(world), seeds)["return"].mean() < best["return"].mean() - 0.5


def test_a_goal_that_is_walled_in_empties_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.gridworld.WALLS", 0.9)
    states = gridworld(8).start(np.arange(300))
    assert (states[:, AGENT].sum((1, 2)) == 1).all()
    assert (states[:, WALL].sum((1, 2)) == 28).any(), "the border of an emptied room"


def test_a_room_depends_on_its_own_seed_alone() -> None:
    world = gridworld(8)
    together = world.start(np.arange(20))
    np.testing.assert_array_equal(together[7:8], world.start(np.array([7])))
    assert len(np.unique(together.reshape(20, -1), axis=0)) == 20
