"""CartPole-v1 as it comes with gymnasium: a pole on a cart that is pushed left or right."""

from __future__ import annotations

from functools import cache

import gymnasium
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleEnv, CartPoleVectorEnv

from models.episodes import Environment

NAME = "CartPole-v1"
FEATURES = 4  # position, velocity, angle, angular velocity
SOLVED = gymnasium.spec(NAME).reward_threshold or 0.0  # mean return


def cartpole() -> Environment:
    """States float64 [episodes, 4]; each step is worth 1, the one with which the pole falls too."""
    carts = cache(CartPoleVectorEnv)  # by number; building one takes longer than many steps

    def start(seeds: np.ndarray) -> np.ndarray:
        cart, states = CartPoleEnv(), np.empty((len(seeds), FEATURES))
        for row, seed in enumerate(seeds):
            cart.reset(seed=int(seed))
            states[row] = cart.state
        return states

    def step(states: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        some = carts(len(states))
        some.reset()
        some.state = states.T
        _, rewards, fallen, _, _ = some.step(actions)
        return np.ascontiguousarray(some.state.T), rewards, fallen

    return Environment(
        name=NAME,
        actions=("left", "right"),
        limit=gymnasium.spec(NAME).max_episode_steps or 0,
        start=start,
        observe=lambda states: states.astype(np.float32),
        step=step,
        sensible=lambda seen: (seen[:, 2] + seen[:, 3] > 0).astype(np.int64),  # after the pole
    )
