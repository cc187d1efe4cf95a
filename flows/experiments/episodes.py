"""Episodes played through the served engine, beside its module in torch, chance and no training."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from flows import stages
from flows.console import listener
from flows.experiments import Experiment, Figure, Outcome, Setup, common_settings
from flows.stages import Job, Parts
from models.cartpole import SOLVED, cartpole
from models.dqn import DQN
from models.episodes import Policy, chance, greedy, play
from models.errors import ServingFailed
from models.signature import Arrays
from pipeline import plots
from pipeline.bundle import Bundle
from pipeline.progress import Progress
from pipeline.train import load_module
from serving.launch import serve

TORCH, SERVED, RANDOM, UNTRAINED = "module in torch", "served engine", "random", "untrained"


@dataclass(frozen=True)
class Record:
    """All that a policy was asked, call by call, and what it answered."""

    observations: list[np.ndarray]
    actions: list[np.ndarray]

    def count(self) -> int:
        return sum(map(len, self.actions))

    def others(self, policy: Policy) -> int:
        """How many of the actions another policy would not have taken."""
        calls = zip(self.observations, self.actions, strict=True)
        return sum(int((policy(seen) != taken).sum()) for seen, taken in calls)


def recorded(policy: Policy, progress: Progress, limit: int) -> tuple[Policy, Record]:
    """The same policy, and the record that it fills."""
    record = Record([], [])

    def choose(observations: np.ndarray) -> np.ndarray:
        actions = policy(observations)
        record.observations.append(observations.copy())
        record.actions.append(actions)
        progress(len(record.actions), limit, f"{len(actions)} episodes run")
        return actions

    return choose, record


def agent(connection: http.client.HTTPConnection, bundle: Bundle) -> Policy:
    """The policy of a running server, by POST /act: as many rows a request as the model takes."""
    name, batch = bundle.manifest.name, bundle.manifest.signature.batch
    most = batch.max if batch else 1

    def ask(observations: np.ndarray) -> list[int]:
        body = json.dumps({"model": name, "observation": observations.tolist()})
        connection.request("POST", "/act", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = json.load(response)
        if response.status != 200:
            raise ServingFailed(f"/act answered {response.status}", got=answer.get("error"))
        return [action["action"] for action in answer["actions"]]

    def choose(observations: np.ndarray) -> np.ndarray:
        parts = np.split(observations, range(most, len(observations), most))
        return np.array([action for part in parts for action in ask(part)])

    return choose


def judge(
    returns: Mapping[str, np.ndarray], reported: float, actions: int, others: int
) -> tuple[str, bool]:
    """The verdict, from the return of every episode by each of the four.

    It holds when the engine's episodes return what the module's do, one by one, that is what
    training reported, and more than without training or by chance.
    """
    means = {name: float(some.mean()) for name, some in returns.items()}
    difference = np.abs(returns[SERVED] - returns[TORCH])
    verdict = (
        f"Over {len(difference)} episodes the served engine has a mean return of "
        f"{means[SERVED]:.2f}, the module in torch {means[TORCH]:.2f} ({reported:.2f} reported by "
        f"training), random actions {means[RANDOM]:.2f}, the untrained module "
        f"{means[UNTRAINED]:.2f}. "
    )
    if difference.any():
        verdict += (
            f"{int((difference > 0).sum())} episodes return something else when served, by "
            f"{difference.max():g} at most. "
        )
    else:
        verdict += "Episode by episode both return the same. "
    verdict += f"Of {actions:,} actions that were served, {others} are not the module's."
    same = not difference.any() and means[TORCH] == reported
    return verdict, same and means[SERVED] > max(means[RANDOM], means[UNTRAINED])


def run(setup: Setup) -> Outcome:
    """Release the agent, serve its bundle, and play the test episodes through it."""
    changes = {"floor": "none", **setup.changes}
    job = Job(DQN.name, setup.data, changes=changes, out=setup.out, device=setup.device)
    parts = Parts()
    for stage in stages.STAGES:
        parts = stages.advance(job, stage, parts, listener.get()(job.recipe.name, stage))
    assert parts.trained is not None
    assert parts.bundle is not None
    world, seeds = cartpole(), job.dataset.test.targets["episode"]
    module = greedy(load_module(job.recipe, parts.trained))
    untrained = greedy(_initial(job, parts.trained.settings["seed"]))
    with serve([parts.bundle.folder], port=0, grpc_port=0) as server:
        connection = http.client.HTTPConnection(server.http.removeprefix("http://"))
        progress = listener.get()(job.recipe.name, "play")
        served, record = recorded(agent(connection, parts.bundle), progress, world.limit)
        policies = {TORCH: module, SERVED: served, RANDOM: chance(world), UNTRAINED: untrained}
        played = {name: play(world, policy, seeds) for name, policy in policies.items()}
        connection.close()
    others = record.others(module)
    verdict, holds = judge(
        {name: some["return"] for name, some in played.items()},
        parts.trained.metrics["mean_return"],
        record.count(),
        others,
    )
    rows = [_row(name, some) for name, some in played.items()]
    rows[list(played).index(SERVED)]["actions as the module's"] = 1 - others / record.count()
    return Outcome(verdict, holds, rows, [_figure(played)], common_settings([parts.trained]))


def _initial(job: Job, seed: int) -> nn.Module:
    """The module that training began with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return job.recipe.build().eval()


def _row(name: str, played: Arrays) -> dict[str, Any]:
    returns = played["return"]
    return {
        "policy": name,
        "mean return": float(returns.mean()),
        "standard error": float(returns.std(ddof=1) / len(returns) ** 0.5),
        "least return": float(returns.min()),
        "episodes solved": int((returns >= SOLVED).sum()),
        "actions": int(played["steps"].sum()),
    }


def _figure(played: Mapping[str, Arrays]) -> Figure:
    series = {
        name: (range(1, len(some["return"]) + 1), np.sort(some["return"]).tolist())
        for name, some in played.items()
    }
    return Figure(
        "The return of every test episode, each policy's from the least to the greatest. Where the "
        "served engine plays as its module does, one line hides the other.",
        plots.lines(
            "returns",
            series,
            f"Sorted returns of the test episodes under {len(series)} policies",
            xlabel="episode, by its return",
            ylabel="return",
        ),
    )


EXPERIMENT = Experiment(
    name="episodes",
    title="Episodes through the served engine",
    claim="An agent that is exported, certified and served plays the same episodes to the same "
    "returns as its module did in training's test, one by one, and to higher ones than chance or "
    "an untrained net does.",
    paper="Mnih and others 2015, Human-level control through deep reinforcement learning; Barto, "
    "Sutton, Anderson 1983, Neuronlike adaptive elements that can solve difficult learning control "
    "problems",
    run=run,
)
