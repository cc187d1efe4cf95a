"""Autoencoders, dense and convolutional: a picture through a small code and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from models.choices import ACTIVATIONS, Activation, Count, Dropout, Width, scaled
from models.digits import PICTURED_DIGITS, SIZE
from models.recipe import Recipe, Training
from models.reconstruction import (
    CODES,
    exhibits,
    linear_baseline,
    parts,
    picture_errors,
    reconstruction,
    reconstruction_codec,
    reconstruction_loss,
    served,
    whole_signature,
)

UNITS = (1000, 500, 250)  # of the hidden layers between the picture and its code
FILTERS = (100, 150, 200)  # of the convolutions
KERNELS = (5, 5, 3)
_LEFT = 2  # pixels a side that convolutions and poolings leave of 28

Layers = Annotated[int, Field(ge=0, le=len(UNITS))]


class DenseAutoencoder(nn.Module):
    """784-1000-500-250-30 and back: pictures [batch, 1, 28, 28] to logits of that shape.

    The first `layers` hidden layers are there; without any, coding is linear and so are the logits.
    The code is linear. Dropout, where it is asked for, follows each activation.
    """

    def __init__(
        self,
        code: Count = 30,
        layers: Layers = 3,
        width: Width = 1.0,
        activation: Activation = "sigmoid",
        dropout: Dropout = 0.0,
    ) -> None:
        super().__init__()
        units = [SIZE * SIZE, *(scaled(count, width) for count in UNITS[:layers]), code]
        self.encoder = nn.Sequential(nn.Flatten(), *dense(units, activation, dropout))
        self.decoder = nn.Sequential(
            *dense(units[::-1], activation, dropout), nn.Unflatten(1, (1, SIZE, SIZE))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def dense(units: Sequence[int], activation: Activation, dropout: float) -> list[nn.Module]:
    """Dense layers from the first of `units` to the last, with activations between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(units):
        if layers:
            layers += [ACTIVATIONS[activation](), nn.Dropout(dropout)]
        layers.append(nn.Linear(before, after))
    return layers


class ConvolutionalAutoencoder(nn.Module):
    """Pictures [batch, 1, 28, 28] to logits of that shape through a dense code.

    100 filters 5x5, pooling, 150 filters 5x5, pooling, 200 filters 3x3, and the code; the decoder
    is the mirror image, where pooling becomes repetition and a convolution a transposed one.
    Dropout, where it is asked for, stands on both sides of the code.
    """

    def __init__(
        self,
        code: Count = 300,
        width: Width = 1.0,
        activation: Activation = "tanh",  # deviation: not scaled
        dropout: Dropout = 0.0,
    ) -> None:
        super().__init__()
        act = ACTIVATIONS[activation]
        first, second, third = (scaled(count, width) for count in FILTERS)
        flat = third * _LEFT * _LEFT
        large, middle, small = KERNELS
        self.encoder = nn.Sequential(
            nn.Conv2d(1, first, large), act(), nn.MaxPool2d(2),
            nn.Conv2d(first, second, middle), act(), nn.MaxPool2d(2),
            nn.Conv2d(second, third, small), act(),
            nn.Flatten(), nn.Dropout(dropout), nn.Linear(flat, code),
        )  # fmt: skip
        self.decoder = nn.Sequential(  # deviation: weights of its own, not the encoder's flipped
            nn.Linear(code, flat), act(), nn.Dropout(dropout),
            nn.Unflatten(1, (third, _LEFT, _LEFT)),
            nn.ConvTranspose2d(third, second, small), act(), nn.Upsample(scale_factor=2),
            nn.ConvTranspose2d(second, first, middle), act(), nn.Upsample(scale_factor=2),
            nn.ConvTranspose2d(first, 1, large),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


AUTOENCODER = Recipe(
    name="autoencoder",
    kind="generative",
    title="Autoencoder 784-1000-500-250-30",
    paper="Hinton, Salakhutdinov 2006, Reducing the dimensionality of data with neural networks",
    network=DenseAutoencoder,
    served=served,
    signature=whole_signature(30),
    parts=parts(30),
    data=PICTURED_DIGITS,
    loss=reconstruction_loss,
    per_row=picture_errors,
    evaluate=reconstruction,
    metric="mse",
    direction="min",
    floor={"embedded": 0.009, "full": 0.0075},
    training={  # deviation: one training by Adam from weights drawn by chance
        "embedded": Training(epochs=60, batch_size=32, learning_rate=1e-3, schedule="one-cycle"),
        "full": Training(epochs=10, batch_size=128, learning_rate=2e-3, schedule="one-cycle"),
    },
    presets={  # deviation: ReLU, and two narrower layers to the code
        "embedded": {"code": CODES["embedded"], "layers": 2, "width": 0.25, "activation": "relu"},
        "full": {"code": CODES["full"], "layers": 2, "width": 0.5, "activation": "relu"},
    },
    codec=reconstruction_codec,
    baseline=linear_baseline,
    exhibits=exhibits,
    deviations=(
        "trained as a whole from weights drawn by chance, by Adam; no restricted Boltzmann "
        "machines before, no conjugate gradients",
        "on the data here ReLU instead of logistic units, two narrower layers instead of three, "
        "and of the small digits a code of 8",
    ),
)

AUTOENCODER_CONV = replace(
    AUTOENCODER,
    name="autoencoder-conv",
    title="Convolutional autoencoder, 100, 150 and 200 filters",
    paper="Masci, Meier, Ciresan, Schmidhuber 2011, "
    "Stacked convolutional auto-encoders for hierarchical feature extraction",
    network=ConvolutionalAutoencoder,
    signature=whole_signature(300),
    parts=parts(300),
    floor={"embedded": 0.011, "full": 0.010},
    training={  # deviation: all layers at once, by Adam
        "embedded": Training(epochs=30, batch_size=32, learning_rate=3e-3, schedule="one-cycle"),
        "full": Training(epochs=6, batch_size=128, learning_rate=3e-3, schedule="one-cycle"),
    },
    presets={  # deviation: ReLU, fewer filters and a smaller code
        "embedded": {"code": CODES["embedded"], "width": 0.16, "activation": "relu"},
        "full": {"code": CODES["full"], "width": 0.16, "activation": "relu"},
    },
    deviations=(
        "the activation is not scaled",
        "the decoder has weights of its own, not the encoder's flipped",
        "all layers are trained at once, by Adam, not one after the other",
        "on the data here ReLU, a sixth of the filters and a smaller code",
    ),
)
