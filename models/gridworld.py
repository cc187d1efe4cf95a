"""A grid world in pictures: rooms with random walls, in which an agent looks for a goal."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from models.episodes import Environment

Cells = Annotated[int, Field(ge=4, le=64)]  # a side of a room, its walls included

CHANNELS = ("agent", "goal", "wall")
ACTIONS = ("up", "right", "down", "left")
LIMIT = 50  # steps
WALLS = 0.25  # share of the inner cells

_AGENT, _GOAL, _WALL = range(len(CHANNELS))
_MOVES = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])  # rows, columns
_FAR = 1 << 15


def gridworld(cells: Cells) -> Environment:
    """Rooms of `cells` squared, walled around, whose states are pictures uint8 [episodes, 3, h, w].

    Each has other walls, and a goal that can be reached. A step costs 1 / 50, also one into a wall,
    which moves nothing; the one to the goal gives 1 and ends the episode.
    """

    def start(seeds: np.ndarray) -> np.ndarray:
        # One number a cell for its wall, one for being the goal, one for being the agent's.
        drawn = np.stack([np.random.default_rng(seed).random((3, cells, cells)) for seed in seeds])
        walls = (drawn[:, _WALL] < WALLS) | ~_inner(cells)
        goal = _first(drawn[:, _GOAL] * _inner(cells))
        walls &= ~goal
        away = distances(walls, goal)
        closed = ~((away > 0) & (away < _FAR)).any((1, 2))
        walls[closed] = ~_inner(cells)  # a goal walled in altogether: the room is emptied
        away[closed] = distances(walls[closed], goal[closed])
        agent = _first(np.where((away > 0) & (away < _FAR), drawn[:, _AGENT], 0))
        return np.stack([agent, goal, walls], 1).astype(np.uint8)

    return Environment(
        name=f"grid world {cells}x{cells} (synthetic)",
        actions=ACTIONS,
        limit=LIMIT,
        start=start,
        observe=lambda states: states.astype(np.float32),
        step=_step,
        sensible=shortest,
    )


def distances(walls: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Steps to the goal from each cell, int [rooms, h, w], by breadth-first search.

    1 << 15 where it cannot be reached, which holds for walls. The border must be walls.
    """
    away = np.where(goal, 0, _FAR)
    while True:
        closest = np.full_like(away, _FAR)
        inner = _neighbours(away)
        closest[:, 1:-1, 1:-1] = np.minimum(inner.min(0) + 1, _FAR)
        further = np.where(walls, _FAR, np.minimum(away, closest))
        if (further == away).all():
            return away
        away = further


def shortest(observations: np.ndarray) -> np.ndarray:
    """The optimal policy: a step that comes closer to the goal, of several the first."""
    seen = observations > 0
    away = distances(seen[:, _WALL], seen[:, _GOAL])
    around = np.full((len(ACTIONS), *away.shape), _FAR)
    around[:, :, 1:-1, 1:-1] = _neighbours(away)
    return around.transpose(1, 2, 3, 0)[seen[:, _AGENT]].argmin(1)


def _step(states: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rooms, rows, columns = np.nonzero(states[:, _AGENT])
    there = np.stack([rows, columns], 1) + _MOVES[actions]
    free = states[rooms, _WALL, there[:, 0], there[:, 1]] == 0
    there = np.where(free[:, None], there, np.stack([rows, columns], 1))
    after = states.copy()
    after[rooms, _AGENT, rows, columns] = 0
    after[rooms, _AGENT, there[:, 0], there[:, 1]] = 1
    reached = states[rooms, _GOAL, there[:, 0], there[:, 1]] == 1
    return after, (reached - 1 / LIMIT).astype(np.float32), reached


def _inner(cells: int) -> np.ndarray:
    return np.pad(np.ones((cells - 2, cells - 2), bool), 1)


def _neighbours(away: np.ndarray) -> np.ndarray:
    """What stands up, right, down and left of each inner cell, [4, rooms, h - 2, w - 2]."""
    return np.stack([away[:, :-2, 1:-1], away[:, 1:-1, 2:], away[:, 2:, 1:-1], away[:, 1:-1, :-2]])


def _first(scores: np.ndarray) -> np.ndarray:
    """Of each room the cell of the greatest score, as booleans [rooms, h, w]."""
    flat = scores.reshape(len(scores), -1)
    return (np.arange(flat.shape[1]) == flat.argmax(1)[:, None]).reshape(scores.shape)
