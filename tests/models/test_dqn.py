"""Both Q-networks: CartPole is gymnasium's own, evaluation plays, and training may be killed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from models.cartpole import NAME, SOLVED, cartpole
from models.dqn import DQN, QNetwork
from models.dqn_pixels import DQN_PIXELS, PixelQNetwork
from models.episodes import chance, greedy, play, returns
from models.gridworld import gridworld
from models.recipe import Recipe
from pipeline.train import measure, train
from pipeline.values import HISTORY, WEIGHTS

RECIPES = [DQN, DQN_PIXELS]
SMALL = {
    DQN.name: {"hidden": 8, "steps": 64, "rows": 128, "warmup": 64, "explore": 2},
    DQN_PIXELS.name: {
        "cells": 6, "width": 0.125, "hidden": 8, "environments": 8, "steps": 64, "rows": 128,
        "warmup": 64, "explore": 2,
    },
}  # fmt: skip


def small(recipe: Recipe, **changes: object) -> Recipe:
    return recipe.override({"epochs": 4, "floor": "none", **SMALL[recipe.name], **changes})


def test_cartpole_is_gymnasiums_own_to_the_bit() -> None:
    """Whole episodes side by side, each the same as alone in what `gymnasium.make` gives."""
    world, seeds = cartpole(), np.arange(6)
    states, running = world.start(seeds), np.ones(6, bool)
    carts = [gymnasium.make(NAME) for _ in seeds]
    seen = np.stack([cart.reset(seed=int(s))[0] for cart, s in zip(carts, seeds, strict=True)])
    generator, steps = np.random.default_rng(0), 0
    assert carts[0].spec is not None
    assert carts[0].spec.max_episode_steps == world.limit == 500
    assert SOLVED == 475
    while running.any():
        np.testing.assert_array_equal(world.observe(states)[running], seen[running])
        assert world.observe(states).dtype == np.float32
        wrong = generator.random(6) < np.linspace(0, 0.6, 6)
        actions = np.where(wrong, generator.integers(2, size=6), world.sensible(seen))
        states, rewards, fallen = world.step(states, actions)
        steps += 1
        for row in np.flatnonzero(running):
            seen[row], reward, terminal, cut, _ = carts[row].step(int(actions[row]))
            assert (rewards[row], fallen[row]) == (reward, terminal)
            assert cut == (steps >= world.limit)
            running[row] = not (terminal or cut)
    assert steps > 200


def test_the_return_is_what_the_episodes_gave() -> None:
    world, seeds = cartpole(), np.arange(20)
    played = play(world, world.sensible, seeds, gamma=0.9)
    np.testing.assert_array_equal(played["return"], played["steps"])
    np.testing.assert_allclose(played["discounted"], (1 - 0.9 ** played["steps"]) / 0.1, rtol=1e-5)
    assert played["steps"].max() <= world.limit
    for row in (0, 7):
        alone = play(world, world.sensible, seeds[row : row + 1])
        assert alone["return"][0] == played["return"][row]


def test_a_constant_action_falls_soon_and_the_rule_by_hand_does_not() -> None:
    world, seeds = cartpole(), np.arange(50)

    def constant(seen: np.ndarray) -> np.ndarray:
        return np.ones(len(seen), np.int64)

    assert play(world, constant, seeds)["return"].mean() < 12
    assert play(world, chance(world), seeds)["return"].mean() < 30
    assert play(world, world.sensible, seeds)["return"].mean() > 400


@pytest.mark.parametrize(
    ("module", "parameters"),
    [
        (QNetwork(), 4 * 256 + 256 + 256 * 256 + 256 + 256 * 2 + 2),
        (
            PixelQNetwork(cells=8),
            (27 * 32 + 32) + (288 * 64 + 64) + (576 * 64 + 64) + (4096 * 512 + 512) + (512 * 4 + 4),
        ),
    ],
)
def test_parameters(module: nn.Module, parameters: int) -> None:
    assert sum(p.numel() for p in module.parameters()) == parameters


def test_evaluation_says_what_came_of_the_episodes() -> None:
    said = np.array([1.0, 4.0], np.float32)
    outputs = {"return": np.array([500.0, 474.0]), "predicted": said, "wanted": said - 0.5}
    assert DQN.evaluate(outputs, {}) == {
        "mean_return": 487, "least_return": 474, "value_bias": 0.5, "solved": 0.5,
    }  # fmt: skip
    outputs["return"] = np.array([-1.0, 0.9], np.float32)
    assert DQN_PIXELS.evaluate(outputs, {})["reached"] == 0.5


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_in_evaluation_a_row_is_an_episode_played_greedily(recipe: Recipe) -> None:
    recipe = small(recipe).on("embedded")
    torch.manual_seed(0)
    module, rows = recipe.build(), recipe.load("embedded").validation
    inputs, targets = (
        {name: torch.from_numpy(array) for name, array in part.items()}
        for part in (rows.inputs, rows.targets)
    )
    loss, measured = measure(recipe, recipe.training["embedded"], module, inputs, targets)
    again, _ = measure(recipe, recipe.training["embedded"], module, inputs, targets)
    assert loss == again
    world = cartpole() if isinstance(module, QNetwork) else gridworld(6)
    seeds = rows.targets["episode"]
    gamma = recipe.settings["gamma"]
    played = play(world, greedy(module), seeds, gamma)
    np.testing.assert_array_equal(measured["return"], played["return"])
    np.testing.assert_array_equal(measured["wanted"], played["discounted"])
    begun = torch.from_numpy(world.observe(world.start(seeds)))
    values = module(observation=begun)["q_values"].amax(1)
    np.testing.assert_allclose(measured["predicted"], values.detach().numpy(), rtol=1e-6)
    assert returns(measured, {})["mean_return"] == pytest.approx(played["return"].mean())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_killed_training_ends_in_the_same_weights(recipe: Recipe, tmp_path: Path) -> None:
    recipe = small(recipe, dropout=0.1, target=2, double=True)
    dataset = recipe.on("embedded").load("embedded")
    (tmp_path / "whole").mkdir()
    (tmp_path / "resumed").mkdir()
    whole = train(recipe, "embedded", dataset, tmp_path / "whole")
    checkpoint = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        train(recipe, "embedded", dataset, tmp_path / "resumed",
              checkpoint=checkpoint, progress=_killed_after(2))  # fmt: skip
    resumed = train(recipe, "embedded", dataset, tmp_path / "resumed", checkpoint=checkpoint)
    assert whole.metrics == resumed.metrics
    # Every epoch was as in the other, also those after the best one, whose weights are kept.
    left, right = ((tmp_path / n / HISTORY).read_text() for n in ("whole", "resumed"))
    assert left == right
    left, right = (load_file(tmp_path / n / WEIGHTS) for n in ("whole", "resumed"))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_those_that_have_not_learnt_stand_beside_it(recipe: Recipe) -> None:
    recipe = recipe.on("embedded")
    baselines = recipe.baseline(recipe.load("embedded"))
    floor = recipe.floor["embedded"]
    assert floor is not None
    assert baselines["random mean_return"] < floor
    assert baselines["untrained mean_return"] < floor
    assert max(baselines.values()) > floor


def test_films_show_greedy_episodes() -> None:
    recipe = small(DQN_PIXELS).on("embedded")
    module, test = recipe.build().eval(), recipe.load("embedded").test
    targets = {"episode": torch.from_numpy(test.targets["episode"])}
    (film,) = recipe.exhibits(module, {}, targets).values()
    assert film.shape == (8, 12, 3, 18, 18)
    assert film.min() >= 0
    assert film.max() <= 1
    first = film[:, 0, :, ::3, ::3]
    states = gridworld(6).start(test.targets["episode"][:8])
    for colour, channel in (((0.9, 0.2, 0.2), 0), ((0.2, 0.8, 0.2), 1)):
        painted = (first - torch.tensor(colour)[:, None, None]).abs().amax(1) < 1e-4
        np.testing.assert_array_equal(painted.numpy(), states[:, channel] > 0)


def _killed_after(epochs: int) -> Callable[[int, int, str], None]:
    def progress(done: int, total: int, text: str) -> None:
        if done == epochs and text.startswith("loss"):
            raise KeyboardInterrupt

    return progress
