"""A convolutional Q-network that looks at pictures of a grid world and finds its goal."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from models.choices import Count, Dropout, Width, scaled
from models.codec import Actions, Codec
from models.datasets import Dataset
from models.episodes import Environment, chance, episodes, greedy, play, returns
from models.gridworld import ACTIONS, CHANNELS, Cells, gridworld
from models.recipe import Recipe, Tensors, Training
from models.replay import collector, huber, judged
from models.signature import BATCH, Arrays, Axis, Signature, TensorSpec

CELLS = 10
_SHOWN, _FRAMES = 8, 12  # episodes, steps
_PIXELS = 3  # a side of a cell
_INKS = [[0.1, 0.8, 0.8], [0.8, 0.2, 0.8], [0.75, 0.7, 0.6]]  # what each channel takes from white


class PixelQNetwork(nn.Module):
    """Pictures [batch, 3, cells, cells] to the value of each action `q_values` [batch, 4].

    Three convolutions and a dense layer; `width` is the share of their published 32, 64, 64
    channels.
    """

    def __init__(
        self, cells: Cells = CELLS, width: Width = 1.0, hidden: Count = 512, dropout: Dropout = 0.0
    ) -> None:
        super().__init__()
        self.cells = cells
        sizes = [scaled(channels, width) for channels in (32, 64, 64)]
        # deviation: kernels of 3 without strides, not of 8, 4 and 3 with strides of 4, 2 and 1
        convolution = partial(nn.Conv2d, kernel_size=3, padding=1)
        # deviation: one picture, not the last four
        self.c1 = convolution(len(CHANNELS), sizes[0])
        self.c2 = convolution(sizes[0], sizes[1])
        self.c3 = convolution(sizes[1], sizes[2])
        self.dense = nn.Linear(sizes[2] * cells * cells, hidden)
        self.values = nn.Linear(hidden, len(ACTIONS))
        self.act = nn.ReLU()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, observation: Tensor) -> dict[str, Tensor]:
        x = self.act(self.c3(self.act(self.c2(self.act(self.c1(observation))))))
        return {"q_values": self.values(self.dropout(self.act(self.dense(x.flatten(1)))))}


def signature(cells: Cells = CELLS) -> Signature:
    batch = Axis(BATCH, 1, 8, 64)
    picture = (batch, len(CHANNELS), cells, cells)
    return Signature(
        inputs=(TensorSpec("observation", "float32", picture, 0.0, 1.0),),
        outputs=(TensorSpec("q_values", "float32", (batch, len(ACTIONS))),),
    )


def codec(dataset: Dataset) -> Codec:
    return Codec(actions=Actions(observation="observation", values="q_values", names=ACTIONS))


def rooms(cells: Cells = CELLS) -> Dataset:
    """Episodes of the grid world by their seeds; each has a room of its own."""
    return episodes(
        gridworld(cells),
        source="rooms that are drawn by this program, from fixed seeds",
        licence="none needed: synthetic",
    )


def world(module: nn.Module) -> Environment:
    """The grid world of the pictures that the network looks at."""
    assert isinstance(module, PixelQNetwork)
    return gridworld(module.cells)


def evaluate(outputs: Arrays, targets: Arrays) -> dict[str, float]:
    """`returns`, and the share of episodes that reached the goal."""
    # A goal gives 1, and all steps together cost 1 at most.
    return returns(outputs, targets) | {"reached": float((outputs["return"] > -0.5).mean())}


def baseline(dataset: Dataset) -> dict[str, float]:
    """Mean return and share of goals, on the same episodes, of policies that have not learnt.

    Random actions, a network of the published size with its initial weights, and the optimum: a
    shortest path by breadth-first search.
    """
    cells, seeds = dataset.test.inputs["observation"].shape[-1], dataset.test.targets["episode"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        untrained = PixelQNetwork(cells).eval()
    grid, found = gridworld(cells), {}
    policies = {"random": chance(grid), "untrained": greedy(untrained), "optimal": grid.sensible}
    for name, policy in policies.items():
        played = play(grid, policy, seeds)["return"]
        found[f"{name} mean_return"] = float(played.mean())
        found[f"{name} reached"] = float((played > -0.5).mean())
    return found


def films(module: nn.Module, inputs: Tensors, targets: Tensors) -> Tensors:
    """Greedy episodes, a row each, a column each step: [8, 12, 3, h, w], the last one staying.

    The agent is red, the goal green, the agent in it black, walls are dark.
    """
    grid, choose = world(module), greedy(module)
    states = grid.start(targets["episode"][:_SHOWN].cpu().numpy())
    frames, running = [states], np.ones(len(states), bool)
    while len(frames) < _FRAMES:
        after, _, terminal = grid.step(states, choose(grid.observe(states)))
        states = np.where(running[:, None, None, None], after, states)
        running &= ~terminal
        frames.append(states)
    seen = torch.from_numpy(np.stack(frames, 1)).float()
    picture = 1 - torch.einsum("rtchw,cd->rtdhw", seen, torch.tensor(_INKS)).clamp(max=1)
    return {"Greedy episodes": picture.repeat_interleave(_PIXELS, 3).repeat_interleave(_PIXELS, 4)}


DQN_PIXELS = Recipe(
    name="dqn-pixels",
    kind="control",
    title="Deep Q-network on pictures of a grid world",
    paper="Mnih et al. 2015, Human-level control through deep reinforcement learning; double: "
    "van Hasselt, Guez, Silver 2016, Deep reinforcement learning with double Q-learning",
    network=PixelQNetwork,
    signature=signature,
    data={"embedded": rooms},
    loss=huber,
    evaluate=evaluate,
    metric="mean_return",
    floor={"embedded": 0.6},
    # deviation: Adam, not RMSprop
    training={
        "embedded": Training(epochs=65, batch_size=128, learning_rate=1e-3, schedule="cosine")
    },
    presets={
        "embedded": {
            "cells": 8,
            "width": 0.5,
            "hidden": 128,
            "steps": 8192,
            "rows": 8192,
            "environments": 128,
            "warmup": 8192,
            "capacity": 50_000,
            "gamma": 0.9,
            "epsilon": 0.2,
            "explore": 20,
        }
    },
    forward=judged(world),
    collect=collector(world),  # deviation: a chunk is played, then learnt from
    exhibits=films,
    codec=codec,
    baseline=baseline,
    deviations=(
        "kernels of 3 without strides on pictures of 10x10, not of 8, 4, 3 with strides on 84x84",
        "one picture is the whole state, so frames are not stacked",
        "Adam instead of RMSprop",
        "the network plays a chunk of steps and then learns from as many rows as that asks for, "
        "instead of one update every few steps",
    ),
)
