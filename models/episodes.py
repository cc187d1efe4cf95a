"""Environments as pure functions of states, how their episodes are played, and what that is worth.

Nothing is kept between calls, so a training that is killed goes on in the middle of its episodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from models.datasets import Dataset, Split
from models.signature import Arrays

Policy = Callable[[np.ndarray], np.ndarray]  # observations [episodes, ...] to actions [episodes]

_SPLITS = {"train": 64, "validation": 50, "test": 100}  # episodes


@dataclass(frozen=True)
class Environment:
    """Episodes side by side, whose states are an array [episodes, ...].

    `start(seeds)` gives the states in which the episodes of these seeds begin, `observe(states)`
    what an agent sees of them, float32, and `step(states, actions)` the next states, the rewards
    float32 and whether that ended the episode. One that goes on after `limit` steps is cut off.
    `sensible` is a policy that is better than chance.
    """

    name: str
    actions: tuple[str, ...]
    limit: int
    start: Callable[[np.ndarray], np.ndarray]
    observe: Callable[[np.ndarray], np.ndarray]
    step: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
    sensible: Policy


def play(environment: Environment, choose: Policy, seeds: np.ndarray, gamma: float = 1.0) -> Arrays:
    """Play the episodes of these seeds to their ends: `return`, `discounted` and `steps` [seeds].

    `choose` is asked about those that still run, in the order of their seeds.
    """
    states = environment.start(seeds)
    running = np.arange(len(seeds))
    totals = {name: np.zeros(len(seeds), np.float32) for name in ("return", "discounted", "steps")}
    for step in range(environment.limit):
        states, rewards, terminal = environment.step(states, choose(environment.observe(states)))
        totals["return"][running] += rewards
        totals["discounted"][running] += gamma**step * rewards
        totals["steps"][running] += 1
        states, running = states[~terminal], running[~terminal]
        if not len(running):
            break
    return totals


def greedy(module: nn.Module) -> Policy:
    """Always the action of the greatest value, and of equals the first."""
    device = next(module.parameters()).device

    @torch.inference_mode()
    def choose(observations: np.ndarray) -> np.ndarray:
        values = module(observation=torch.from_numpy(observations).to(device))["q_values"]
        return values.argmax(1).cpu().numpy()

    return choose


def chance(environment: Environment, seed: int = 0) -> Policy:
    """Every action with the same probability."""
    generator = np.random.default_rng(seed)
    return lambda observations: generator.integers(len(environment.actions), size=len(observations))


def episodes(environment: Environment, source: str, licence: str) -> Dataset:
    """A row is an episode: its seed is the target `episode`, and `observation` is one met in it.

    It is met by a policy between chance and the sensible one, at a time that is drawn, so that the
    observations are as varied as those of a training.
    """
    generator = np.random.default_rng(0)
    count = sum(_SPLITS.values())
    seeds = np.arange(count)
    states = environment.start(seeds)
    observations = environment.observe(states)
    skill = generator.random(count)
    last = generator.integers(0, environment.limit // 4, count)
    at_random, running = chance(environment), np.ones(count, bool)
    for step in range(int(last.max())):
        sensible = generator.random(count) < skill
        actions = np.where(sensible, environment.sensible(observations), at_random(observations))
        after, _, terminal = environment.step(states, actions)
        running &= ~terminal & (step < last)
        states[running] = after[running]
        observations = environment.observe(states)
    splits, begun = {}, 0
    for name, size in _SPLITS.items():
        rows = slice(begun, begun + size)
        splits[name] = Split({"observation": observations[rows]}, {"episode": seeds[rows]})
        begun += size
    return Dataset(name=environment.name, source=source, licence=licence, **splits)


def returns(outputs: Arrays, targets: Arrays) -> dict[str, float]:
    """Of greedy episodes: mean and least `return`, and by how much their value was overestimated.

    `value_bias` is the mean of max_a Q(s, a) at the start less the discounted return that followed.
    """
    return {
        "mean_return": float(outputs["return"].mean()),
        "least_return": float(outputs["return"].min()),
        "value_bias": float((outputs["predicted"] - outputs["wanted"]).mean()),
    }
