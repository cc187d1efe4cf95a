"""One process of several that train small recipes together: its rank, their number, a folder."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.recipe import Recipe
from models.zoo import ZOO
from pipeline.train import train

# The last batch has 57 rows.
LITTLE = {"epochs": 1, "floor": "none", "batch_size": 100, "learning_rate": 0.1, "optimizer": "sgd"}


class Idle(nn.Module):
    """A served module with a parameter that no loss reaches, though an output does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.idle = nn.Parameter(torch.ones(3))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        outputs = self.network(image)
        return outputs | {"unasked": outputs["logits"][:, :3] * self.idle}


def _idle() -> Recipe:
    recipe = ZOO["mlp"]
    return replace(
        recipe,
        served=lambda network: Idle(recipe.served(network)),
        prepare=lambda module, inputs, targets: None,
    )


# What has to come out alike: clipped gradients, statistics of a batch over epochs, moved pictures,
# a parameter without a gradient.
RECIPES: dict[str, Recipe] = {
    "plain": ZOO["mlp"].override(LITTLE | {"hidden": 16, "clip_norm": 0.5}),
    "norm": ZOO["mlp-batchnorm"].override(LITTLE | {"hidden": 16, "epochs": 2}),
    "moved": ZOO["lenet5"].override(LITTLE | {"rotate": 9, "noise": 0.1}),
    "idle": _idle().override(LITTLE | {"hidden": 16}),
}


def main(rank: int, world: int, meeting: Path) -> None:
    """Train every recipe, each into the folder NAME/RANK."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{meeting}/store", rank=rank, world_size=world)
    for name, recipe in RECIPES.items():
        out = meeting / name / str(rank)
        out.mkdir(parents=True)
        train(recipe, "embedded", recipe.load("embedded"), out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
