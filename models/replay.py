"""Learning from a replay memory: epsilon-greedy playing, drawing transitions, and their targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from models.choices import Count
from models.episodes import Environment, greedy, play
from models.errors import BadSetting

Tensors = dict[str, Tensor]
Many = Annotated[int, Field(ge=1, le=1 << 24)]  # of steps, rows
Share = Annotated[float, Field(ge=0, le=1)]
Gathered = tuple[Tensors, Tensors, Tensors]  # memory, inputs, targets

_TARGET = "target."  # before the names of the target network's weights
_TRANSITION = ("before", "action", "reward", "after", "terminal")
_AT_ONCE = 1024  # rows that the target network is asked


def collector(environment: Callable[[nn.Module], Environment]) -> Callable[..., Gathered]:
    """The `collect` of a recipe whose module learns to act in that environment (see `Recipe`)."""

    def collect(
        module: nn.Module,
        memory: Tensors,
        epoch: int,
        steps: Many = 40_000,
        rows: Many = 320_000,
        environments: Count = 1,
        warmup: Many = 50_000,
        capacity: Many = 1_000_000,
        gamma: Share = 0.99,
        epsilon: Share = 0.1,
        explore: Count = 25,
        target: Count = 1,
        double: bool = False,
    ) -> Gathered:
        """Play a chunk of steps, and draw the rows to learn from out of all that is remembered.

        An epoch is a chunk: `steps` steps in `environments` episodes side by side, epsilon-greedy,
        before the first of them `warmup` at random; then `rows` transitions, drawn uniformly from
        the last `capacity`. The share epsilon of random actions falls from 1 to `epsilon` in
        `explore` epochs. The target network is copied from the network every `target` epochs.

        The targets are those of the chunk's beginning: the target network does not change within
        one, so a chunk of the published 10,000 updates of 32 rows (an update every 4 steps) has the
        published targets. What is played in it is played by the network of its beginning.

        Raises `BadSetting` for `double` where the two networks are always the same.
        """
        if double and target == 1:
            raise BadSetting(
                "setting 'double' asks for two networks that differ",
                got="target=1, which copies the one into the other before every use",
                expected="target of 2 or more",
            )
        module.eval()
        world = environment(module)
        memory = dict(memory)
        if "playing" not in memory:
            memory |= _begin(world, environments)
            memory = _explore(world, module, memory, -(-warmup // environments), 1.0, capacity)
        if (epoch - 1) % target == 0:
            memory |= {
                _TARGET + n: t.detach().cpu().clone() for n, t in module.state_dict().items()
            }
        share = 1 + (epsilon - 1) * min(1.0, (epoch - 1) / explore)
        memory = _explore(world, module, memory, -(-steps // environments), share, capacity)
        drawn = torch.randint(len(memory["action"]), (rows,))
        batch = {name: memory[name][drawn] for name in _TRANSITION}
        device = next(module.parameters()).device
        wanted = _wanted(world, module, memory, batch, gamma, double)
        inputs = {"observation": _observe(world, batch["before"]).to(device)}
        return memory, inputs, {"action": batch["action"].to(device), "wanted": wanted.to(device)}

    return collect


def judged(environment: Callable[[nn.Module], Environment]) -> Callable[..., Tensors]:
    """The `forward` of such a recipe: what its loss and evaluation see (see `Recipe`)."""

    def forward(
        module: nn.Module, inputs: Tensors, targets: Tensors, gamma: Share = 0.99
    ) -> Tensors:
        """In training Q(s, a) as `predicted`, and what it is `wanted` to be.

        In evaluation a row is the episode of a seed, played greedily to its end: its `return` and
        `steps`, the greatest Q at its start as `predicted`, its discounted return as `wanted`.
        """
        if module.training:
            values = module(**inputs)["q_values"]
            said = values.gather(1, targets["action"][:, None])[:, 0]
            return {"predicted": said, "wanted": targets["wanted"]}
        world, seeds = environment(module), targets["episode"].cpu().numpy()
        played = play(world, greedy(module), seeds, gamma)
        device = targets["episode"].device
        begun = torch.from_numpy(world.observe(world.start(seeds))).to(device)
        return {
            "predicted": module(observation=begun)["q_values"].amax(1),
            "wanted": torch.from_numpy(played["discounted"]).to(device),
            "return": torch.from_numpy(played["return"]).to(device),
            "steps": torch.from_numpy(played["steps"]).to(device),
        }

    return forward


def huber(outputs: Tensors, targets: Tensors) -> Tensor:
    """The mean Huber loss of `predicted` against `wanted`: the squared error, clipped at 1.

    d^2 / 2 where |d| < 1, else |d| - 1/2, so that its gradient is in [-1, 1].
    """
    return functional.huber_loss(outputs["predicted"], outputs["wanted"])


def remember(memory: Mapping[str, Tensor], new: Mapping[str, Tensor], capacity: int) -> Tensors:
    """The last `capacity` rows of what is remembered and what is new, oldest first."""
    return {
        name: torch.cat([memory[name], rows])[-capacity:] if name in memory else rows[-capacity:]
        for name, rows in new.items()
    }


def q_targets(
    rewards: Tensor, terminal: Tensor, values: Tensor, chooser: Tensor, gamma: float
) -> Tensor:
    """reward + gamma (1 - terminal) values[argmax_a chooser], [rows], of values [rows, actions].

    `values` are those of the target network after the step. With `chooser` the same, that is
    Q-learning's max_a (Watkins 1989); with the network's own, double Q-learning's (van Hasselt
    2016).
    """
    best = values.gather(1, chooser.argmax(1, keepdim=True))[:, 0]
    return rewards + gamma * best.masked_fill(terminal, 0)


@torch.no_grad()
def _wanted(
    world: Environment,
    module: nn.Module,
    memory: Tensors,
    batch: Tensors,
    gamma: float,
    double: bool,
) -> Tensor:
    device = next(module.parameters()).device
    weights = {
        name.removeprefix(_TARGET): tensor.to(device)
        for name, tensor in memory.items()
        if name.startswith(_TARGET)
    }
    found = []
    for after in batch["after"].split(_AT_ONCE):
        seen = {"observation": _observe(world, after).to(device)}
        values = functional_call(module, weights, kwargs=seen)["q_values"]
        chooser = module(**seen)["q_values"] if double else values
        found.append(torch.stack([values, chooser]).cpu())
    values, chooser = torch.cat(found, 1)
    return q_targets(batch["reward"], batch["terminal"], values, chooser, gamma)


def _begin(world: Environment, count: int) -> Tensors:
    states = torch.from_numpy(world.start(_seeds(count)))
    return {"playing": states, "played": torch.zeros(count, dtype=torch.int64)}


def _explore(
    world: Environment,
    module: nn.Module,
    memory: Tensors,
    steps: int,
    epsilon: float,
    capacity: int,
) -> Tensors:
    """The memory after so many steps of every episode that is being played."""
    states, played = memory["playing"].numpy(), memory["played"].numpy()
    choose, count = greedy(module), len(states)
    seen: list[tuple[np.ndarray, ...]] = []
    for _ in range(steps):
        drawn = torch.randint(len(world.actions), (count,)).numpy()
        random = (torch.rand(count) < epsilon).numpy()
        best = drawn if random.all() else choose(world.observe(states))
        actions = np.where(random, drawn, best)
        after, rewards, terminal = world.step(states, actions)
        seen.append((states, actions, rewards, after, terminal))
        played = played + 1
        # An episode that is cut off had a future, so its last step is not terminal.
        over = terminal | (played >= world.limit)
        states, played = after, np.where(over, 0, played)
        if over.any():
            states = after.copy()
            states[over] = world.start(_seeds(int(over.sum())))
    new = {
        name: torch.from_numpy(np.concatenate(parts))
        for name, parts in zip(_TRANSITION, zip(*seen, strict=True), strict=True)
    }
    going = {"playing": torch.from_numpy(states), "played": torch.from_numpy(played)}
    return memory | going | remember(memory, new, capacity)


def _seeds(count: int) -> np.ndarray:
    """Seeds of episodes to learn from, drawn from torch's generator.

    They are beyond those of the episodes that a data set holds.
    """
    return torch.randint(1 << 20, 1 << 31, (count,)).numpy()


def _observe(world: Environment, states: Tensor) -> Tensor:
    return torch.from_numpy(world.observe(states.numpy()))
