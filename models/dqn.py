"""A Q-network that learns to balance a pole, from a replay memory and against a target network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.cartpole import FEATURES, SOLVED, cartpole
from models.choices import Count, Dropout
from models.codec import Actions, Codec
from models.datasets import Dataset
from models.episodes import chance, episodes, greedy, play, returns
from models.recipe import Recipe, Tensors, Training
from models.replay import collector, huber, judged
from models.signature import BATCH, Arrays, Axis, Signature, TensorSpec

ACTIONS = cartpole().actions


class QNetwork(nn.Module):
    """Observations [batch, 4] to the value of each action `q_values` [batch, 2].

    Each feature is standardised with `mean` and `deviation` of the training rows.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, hidden: Count = 256, dropout: Dropout = 0.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("deviation", torch.ones(FEATURES))
        self.dense = nn.Linear(FEATURES, hidden)  # deviation: numbers, so no convolutions
        self.hidden = nn.Linear(hidden, hidden)
        self.values = nn.Linear(hidden, len(ACTIONS))
        self.act = nn.ReLU()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, observation: Tensor) -> dict[str, Tensor]:
        x = (observation - self.mean) / self.deviation
        x = self.dropout(self.act(self.dense(x)))
        return {"q_values": self.values(self.dropout(self.act(self.hidden(x))))}


def standardise(module: nn.Module, inputs: Tensors, targets: Tensors) -> None:
    """Set the statistics of a `QNetwork` from training rows."""
    deviation, mean = torch.std_mean(inputs["observation"].double(), dim=0)
    module.get_buffer("mean").copy_(mean)
    module.get_buffer("deviation").copy_(deviation)


def signature() -> Signature:
    batch = Axis(BATCH, 1, 8, 64)
    return Signature(
        inputs=(TensorSpec("observation", "float32", (batch, FEATURES), -5.0, 5.0),),
        outputs=(TensorSpec("q_values", "float32", (batch, len(ACTIONS))),),
    )


def codec(dataset: Dataset) -> Codec:
    return Codec(actions=Actions(observation="observation", values="q_values", names=ACTIONS))


def balance() -> Dataset:
    """Episodes of CartPole-v1 by their seeds."""
    return episodes(
        cartpole(),
        source="gymnasium's CartPole-v1 (Barto, Sutton, Anderson 1983), simulated, fixed seeds",
        licence="none needed: simulated; gymnasium is under MIT",
    )


def evaluate(outputs: Arrays, targets: Arrays) -> dict[str, float]:
    """`returns`, and the share of episodes with a return of 475 or more."""
    solved = outputs["return"] >= SOLVED
    return returns(outputs, targets) | {"solved": float(solved.mean())}


def baseline(dataset: Dataset) -> dict[str, float]:
    """The mean return of three that have not learnt, on the same episodes.

    Random actions, a network of the published size with its initial weights, and a rule written by
    hand: push to the side where the pole will be, by its angle plus its angular velocity.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        untrained = QNetwork().eval()
    standardise(
        untrained, {"observation": torch.from_numpy(dataset.train.inputs["observation"])}, {}
    )
    world, seeds = cartpole(), dataset.test.targets["episode"]
    policies = {
        "random": chance(world), "untrained": greedy(untrained), "hand_written": world.sensible
    }  # fmt: skip
    return {
        f"{name} mean_return": float(play(world, policy, seeds)["return"].mean())
        for name, policy in policies.items()
    }


DQN = Recipe(
    name="dqn",
    kind="control",
    title="Deep Q-network on CartPole",
    paper="Mnih et al. 2015, Human-level control through deep reinforcement learning; double: "
    "van Hasselt, Guez, Silver 2016, Deep reinforcement learning with double Q-learning",
    network=QNetwork,
    signature=signature,
    data={"embedded": balance},
    loss=huber,
    evaluate=evaluate,
    metric="mean_return",
    floor={"embedded": SOLVED},
    # deviation: Adam, not RMSprop
    training={
        "embedded": Training(epochs=300, learning_rate=1e-3, batch_size=256, schedule="cosine")
    },
    presets={
        "embedded": {
            "steps": 256,
            "rows": 8192,
            "environments": 8,
            "warmup": 1024,
            "capacity": 100_000,
            "gamma": 0.98,
            "epsilon": 0.04,
            "explore": 32,
        }
    },
    forward=judged(lambda module: cartpole()),
    collect=collector(lambda module: cartpole()),  # deviation: a chunk is played, then learnt from
    codec=codec,
    prepare=standardise,
    baseline=baseline,
    deviations=(
        "two dense layers of 256 on the four numbers of the state, not convolutions on frames",
        "Adam instead of RMSprop",
        "the network plays a chunk of steps and then learns from as many rows as that asks for, "
        "instead of one update every few steps",
    ),
)
