"""A small autoencoder as a recipe: parts, exhibits, rows that it gathers, a calibration."""

from __future__ import annotations

from operator import attrgetter

import numpy as np
import torch
from torch import Tensor, nn

from models.codec import Anomaly, Codec, Pictures
from models.datasets import Dataset
from models.digits import DIGITS
from models.latent import BLOCK, ROWS, grid, normal, picture
from models.recipe import Part, Recipe, Tensors, Training
from models.signature import Arrays, Signature, TensorSpec

SIZE, CODE = 28, 3


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(SIZE * SIZE, CODE)

    def forward(self, image: Tensor) -> Tensors:
        return {"latent": self.dense(image.flatten(1))}


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(CODE, SIZE * SIZE)

    def forward(self, latent: Tensor) -> Tensors:
        return {"reconstruction": self.dense(latent).sigmoid().unflatten(1, (1, SIZE, SIZE))}


class Coded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()

    def forward(self, image: Tensor) -> Tensors:
        drawn = self.encoder(image)
        drawn |= self.decoder(drawn["latent"])
        return drawn | {"error": (drawn["reconstruction"] - image).square().mean((1, 2, 3))}


def forward(module: nn.Module, inputs: Tensors, targets: Tensors) -> Tensors:
    return module(**inputs) | {"wanted": inputs["image"]}


def collect(
    module: nn.Module, memory: Tensors, epoch: int, gathered: int = 64
) -> tuple[Tensors, Tensors, Tensors]:
    """Random pictures, as many more in each epoch."""
    more = torch.rand(gathered, 1, SIZE, SIZE)
    image = torch.cat([memory["image"], more]) if memory else more
    return {"image": image}, {"image": image}, {"label": torch.zeros(len(image))}


def loss(outputs: Tensors, targets: Tensors) -> Tensor:
    return (outputs["reconstruction"] - outputs["wanted"]).square().mean()


def evaluate(outputs: Arrays, targets: Arrays) -> dict[str, float]:
    return {"mse": float(outputs["error"].mean())}


def codec(dataset: Dataset) -> Codec:
    return Codec(
        pictures=Pictures(
            latent="latent", drawn="reconstruction", decoder="decoder", encoder="encoder",
            code="latent", reconstruction="reconstruction",
        ),
        noise=("latent",),
        block=BLOCK,
    )  # fmt: skip


def calibrate(codec: Codec, outputs: Arrays, targets: Arrays) -> Codec:
    threshold = float(np.quantile(outputs["error"], 0.9))
    return codec.model_copy(update={"anomaly": Anomaly(error="error", threshold=threshold)})


def exhibits(module: nn.Module, inputs: Tensors, targets: Tensors) -> Tensors:
    shown = inputs["image"][:4]
    return {
        "reconstructions": grid([module(shown)["reconstruction"], shown]),
        "inputs": shown[None],
    }


IMAGE, LATENT = picture("image", 1, SIZE), normal("latent", CODE)
DRAWN = picture("reconstruction", 1, SIZE)

CODED = Recipe(
    name="coded",
    kind="generative",
    title="A small autoencoder",
    paper="none",
    network=Coded,
    signature=lambda: Signature((IMAGE,), (LATENT, DRAWN, TensorSpec("error", "float32", (ROWS,)))),
    parts={
        "encoder": Part(
            take=attrgetter("encoder"), signature=lambda: Signature((IMAGE,), (LATENT,))
        ),
        "decoder": Part(
            take=attrgetter("decoder"), signature=lambda: Signature((LATENT,), (DRAWN,))
        ),
    },
    data=DIGITS,
    loss=loss,
    forward=forward,
    collect=collect,
    evaluate=evaluate,
    metric="mse",
    direction="min",
    floor=dict.fromkeys(DIGITS),
    training=dict.fromkeys(DIGITS, Training(epochs=3)),
    codec=codec,
    calibrate=calibrate,
    exhibits=exhibits,
)
