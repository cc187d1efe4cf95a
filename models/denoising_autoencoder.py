"""A denoising autoencoder: a noisy picture in, the clean one out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from models.augment import add_noise
from models.choices import ACTIVATIONS, Activation, Count, Dropout
from models.datasets import Dataset, Split
from models.digits import SIZE, embedded_digits, mnist, noisy
from models.latent import grid
from models.recipe import Recipe, Training
from models.reconstruction import (
    one_of_each,
    parts,
    picture_errors,
    reconstruction,
    reconstruction_codec,
    reconstruction_loss,
    served,
    whole_signature,
)

Filter = Callable[[np.ndarray], np.ndarray]
Corruption = Annotated[float, Field(ge=0, le=10)]  # standard deviation of the noise

_SPREADS = (0.5, 0.75, 1.0, 1.25, 1.5)  # of Gaussian filters, in pixels
_SIDES = (3, 5)  # of median filters, in pixels


class DenoisingAutoencoder(nn.Module):
    """784-1000-784: pictures [batch, 1, 28, 28] to logits of that shape, through a larger code.

    Dropout, where it is asked for, follows the code's activation.
    """

    def __init__(
        self, code: Count = 1000, activation: Activation = "sigmoid", dropout: Dropout = 0.0
    ) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(SIZE * SIZE, code), ACTIVATIONS[activation]()
        )
        self.decoder = nn.Sequential(  # deviation: weights of its own, not the encoder's transposed
            nn.Dropout(dropout), nn.Linear(code, SIZE * SIZE), nn.Unflatten(1, (1, SIZE, SIZE))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def noisy_digits(corruption: Corruption = 0.5) -> Dataset:
    return noisy(embedded_digits(), corruption)


def noisy_mnist(corruption: Corruption = 0.5) -> Dataset:
    return noisy(mnist(), corruption)


def corrupt(
    module: nn.Module,
    inputs: dict[str, Tensor],
    targets: dict[str, Tensor],
    corruption: Corruption = 0.5,
) -> dict[str, Tensor]:
    """The module's answers: in training to clean pictures with noise that is drawn anew.

    The noise is as in the rows of validation and test, which have theirs already.
    """
    image = inputs["image"]
    if module.training:
        image = add_noise(image, corruption).clamp(0, 1)  # deviation: not pixels set to 0
    return module(image=image)


def filters(dataset: Dataset) -> dict[str, float]:
    """The error of the noisy pictures, and of the Gaussian and the median filter of them.

    Of either kind it is the filter that is best on the validation rows.
    """
    from scipy.ndimage import gaussian_filter, median_filter

    gaussian: dict[str, Filter] = {
        f"Gaussian filter of {size} pixels": partial(
            gaussian_filter, sigma=(0, 0, size, size), mode="constant"
        )
        for size in _SPREADS
    }
    median: dict[str, Filter] = {
        f"median filter of {side}x{side} pixels": partial(
            median_filter, size=(1, 1, side, side), mode="constant"
        )
        for side in _SIDES
    }

    def error(clean: Filter, split: Split) -> float:
        return float(np.square(clean(split.inputs["image"]) - split.targets["image"]).mean())

    def best(kind: dict[str, Filter]) -> str:
        return min(kind, key=lambda name: error(kind[name], dataset.validation))

    measured = {"the noisy picture mse": error(lambda images: images, dataset.test)}
    for kind in (gaussian, median):
        name = best(kind)
        measured[f"{name} mse"] = error(kind[name], dataset.test)
    return measured


def exhibits(
    module: nn.Module, inputs: dict[str, Tensor], targets: dict[str, Tensor]
) -> dict[str, Tensor]:
    """A test picture of each digit: cleaned, noisy, and as it was."""
    chosen = one_of_each(targets["label"])
    given, clean = inputs["image"][chosen], targets["image"][chosen]
    cleaned = module(image=given)["reconstruction"]
    return {"Cleaned, noisy, and without the noise": grid([cleaned, given, clean])}


DENOISING_AUTOENCODER = Recipe(
    name="denoising-autoencoder",
    kind="generative",
    title="Denoising autoencoder 784-1000-784",
    paper="Vincent, Larochelle, Bengio, Manzagol 2008, "
    "Extracting and composing robust features with denoising autoencoders",
    network=DenoisingAutoencoder,
    served=served,
    signature=whole_signature(1000),
    parts=parts(1000),
    data={"embedded": noisy_digits, "full": noisy_mnist},
    loss=reconstruction_loss,
    forward=corrupt,
    per_row=picture_errors,
    evaluate=reconstruction,
    metric="mse",
    direction="min",
    floor={"embedded": 0.008, "full": 0.013},
    training={  # deviation: Adam
        "embedded": Training(epochs=60, batch_size=32, learning_rate=2e-3, schedule="one-cycle"),
        "full": Training(epochs=10, batch_size=128, learning_rate=2e-3, schedule="one-cycle"),
    },
    # deviation: ReLU, and fewer units on few rows
    presets={"embedded": {"code": 400, "activation": "relu"}, "full": {"activation": "relu"}},
    codec=reconstruction_codec,
    baseline=filters,
    exhibits=exhibits,
    deviations=(
        "the decoder has weights of its own, not the encoder's transposed",
        "normal noise, cut to [0, 1], instead of pixels set to 0",
        "Adam instead of stochastic gradient descent",
        "on the data here ReLU instead of logistic units, and 400 of them on the small digits",
    ),
)
