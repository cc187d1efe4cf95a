"""Variational autoencoders: dense, of digits; and with a beta above 1, of shapes with factors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from models.choices import Activation, Count, Dropout
from models.datasets import Dataset
from models.digits import SIZE, digits_at
from models.judge import Judge, judge
from models.latent import ROWS, logits, normal, picture
from models.mlp import MLP
from models.recipe import Part, Recipe, Tensors, Training
from models.reconstruction import Decoder, squared_error
from models.shapes import shapes
from models.signature import Signature, TensorSpec
from models.variational import (
    Beta,
    baseline,
    bound,
    drawing_codec,
    exhibits,
    look,
    measure,
    with_noise,
)

Latents = Annotated[int, Field(ge=1, le=1024)]

FIELD = 64  # the side of the pictures of shapes that are published


class Encoder(nn.Module):
    """Pictures [batch, 1, side, side] and `noise` [batch, latents] to a code.

    `mean` and `log_variance` are those of q(z|x); `latent` is drawn from it by the noise:
    mean + exp(log_variance / 2) noise.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, noise: Tensor) -> Tensors:
        mean, log_variance = self.network(image).chunk(2, dim=1)
        latent = mean + (log_variance / 2).exp() * noise
        return {"mean": mean, "log_variance": log_variance, "latent": latent}


class VAE(nn.Module):
    """The encoder, then the decoder; `error` [batch] is the mean squared error per pixel.

    A `judge` looks at what training makes. It is no part of the model.
    """

    judge: Judge | None = None

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, image: Tensor, noise: Tensor) -> Tensors:
        code = self.encoder(image, noise)
        drawn = self.decoder(code["latent"])
        return {**code, **drawn, "error": squared_error(image, drawn["reconstruction"])}


def network(
    latents: Latents = 20,
    hidden: Count = 500,
    layers: Count = 1,
    activation: Activation = "tanh",
    dropout: Dropout = 0.0,
    image: Count = SIZE,
) -> VAE:
    """Encoder and decoder each have `layers` hidden layers of `hidden` units."""
    pixels = image * image
    reading = MLP(pixels, 2 * latents, hidden, layers, activation, dropout=dropout)
    drawing = MLP(latents, pixels, hidden, layers, activation, dropout=dropout)
    square = nn.Unflatten(1, (1, image, image))
    return VAE(Encoder(reading), Decoder(nn.Sequential(drawing, square)))


def beta_network(
    latents: Latents = 10,
    hidden: Count = 1200,
    layers: Count = 2,  # deviation: in the decoder as well, not three of tanh
    activation: Activation = "relu",
    dropout: Dropout = 0.0,
    image: Count = FIELD,
) -> VAE:
    return network(latents, hidden, layers, activation, dropout, image)


def hear_judge(module: nn.Module, inputs: Tensors, targets: Tensors) -> None:
    """Let a judge look, if it is digits that are drawn, and of the size that it knows."""
    if isinstance(module, VAE) and "label" in targets and inputs["image"].shape[-1] == SIZE:
        module.judge = judge(inputs["image"], targets["label"])


def beta_bound(outputs: Tensors, targets: Tensors, beta: Beta = 4.0) -> Tensor:
    return bound(outputs, targets, beta)


def declare(inputs: str, outputs: str, latents: int, image: int) -> Callable[..., Signature]:
    """The signature of the whole or a part by the names of its tensors, at the published size."""

    def signature(latents: Latents = latents, image: Count = image) -> Signature:
        specs = {
            "image": picture("image", 1, image),
            "noise": normal("noise", latents),
            "mean": TensorSpec("mean", "float32", (ROWS, latents)),
            "log_variance": TensorSpec("log_variance", "float32", (ROWS, latents)),
            "latent": normal("latent", latents),
            "logits": logits(1, image),
            "reconstruction": picture("reconstruction", 1, image),
            "error": TensorSpec("error", "float32", (ROWS,), 0.0, 1.0),
        }
        return Signature(
            tuple(specs[name] for name in inputs.split()),
            tuple(specs[name] for name in outputs.split()),
        )

    return signature


_CODE = "mean log_variance latent"
_DRAWN = "logits reconstruction"


def whole(latents: int, image: int) -> Callable[..., Signature]:
    return declare("image noise", f"{_CODE} {_DRAWN} error", latents, image)


def parts(latents: int, image: int) -> dict[str, Part]:
    """The encoder and the decoder."""
    return {
        "encoder": Part(
            take=attrgetter("encoder"), signature=declare("image noise", _CODE, latents, image)
        ),
        "decoder": Part(
            take=attrgetter("decoder"), signature=declare("latent", _DRAWN, latents, image)
        ),
    }


def noisy_digits(data: str) -> Callable[..., Dataset]:
    """Digits of any size with noise."""

    def digits(latents: Latents = 20, image: Count = SIZE) -> Dataset:
        return with_noise(digits_at(image, 1)[data](), latents)

    return digits


def noisy_shapes(latents: Latents = 10, image: Count = FIELD) -> Dataset:
    return with_noise(shapes(image), latents)


def remarks(dataset: Dataset, metrics: dict[str, float]) -> tuple[str, ...]:
    return (
        "grey levels are the chances of a pixel to be 1: the bound is of pictures binarised by "
        "them, in the mean over all such pictures",
        f"{metrics['active_units']:.0f} of {dataset.test.inputs['noise'].shape[1]} latents are "
        "active",
    )


VAE_20 = Recipe(
    name="vae",
    kind="generative",
    title="Variational autoencoder 784-500-20-500-784",
    paper="Kingma, Welling 2014, Auto-encoding variational Bayes",
    network=network,
    signature=whole(20, SIZE),
    data={"embedded": noisy_digits("embedded"), "full": noisy_digits("full")},
    loss=bound,
    forward=look,
    evaluate=measure,
    metric="elbo",
    floor={"embedded": -290.0, "full": -106.0},
    training={  # deviation: Adam, not Adagrad
        "embedded": Training(epochs=100, batch_size=64, learning_rate=2e-3, schedule="cosine"),
        "full": Training(epochs=30, batch_size=128, learning_rate=2e-3, schedule="one-cycle"),
    },
    parts=parts(20, SIZE),
    codec=drawing_codec,
    prepare=hear_judge,
    exhibits=exhibits,
    baseline=baseline,
    remarks=remarks,
    deviations=("Adam with a schedule instead of Adagrad",),
)

BETA_VAE = replace(
    VAE_20,
    name="beta-vae",
    title="beta-VAE 4096-1200-1200-10-1200-1200-4096",
    paper="Higgins, Matthey, Pal, Burgess, Glorot, Botvinick, Mohamed, Lerchner 2017, "
    "beta-VAE: learning basic visual concepts with a constrained variational framework",
    network=beta_network,
    signature=whole(10, FIELD),
    data={"embedded": noisy_shapes},
    loss=beta_bound,
    floor={"embedded": -72.0},
    training={  # deviation: Adam, not Adagrad
        "embedded": Training(epochs=60, batch_size=64, learning_rate=2e-3, schedule="cosine")
    },
    presets={"embedded": {"image": 32, "hidden": 128, "beta": 8.0}},  # deviation: smaller
    parts=parts(10, FIELD),
    deviations=(
        "Adam with a schedule instead of Adagrad",
        "a decoder of two layers of ReLU instead of three of tanh",
        "on the data here pictures of 32x32 and layers of 128 units",
    ),
)
