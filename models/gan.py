"""GAN on digits: a convolutional generator against a convolutional discriminator."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from models.adversarial import (
    GAN,
    adversarial_loss,
    baseline,
    between,
    hear_judge,
    look,
    measure,
    oppose,
    remarks,
    with_latents,
)
from models.choices import Count, Dropout, Width, scaled
from models.codec import Codec, Pictures
from models.datasets import Dataset
from models.digits import PICTURED_DIGITS, SIZE
from models.latent import BLOCK, grid, logits, normal, picture
from models.recipe import Recipe, Tensors, Training
from models.signature import Signature

LATENTS = 100
UNITS = 1024  # of the dense layer on either side
SLOPE = 0.2  # of leaky ReLUs below 0
ROWS, COLUMNS = 8, 10  # of pictures to look at

_OUTER, _INNER = 64, 128  # channels of 14x14 and of 7x7
_SIDE = SIZE // 4


class Generator(nn.Module):
    """[batch, inputs] to the logits of pictures [batch, 1, 28, 28], which grow from 7x7."""

    def __init__(self, inputs: int, units: int, width: float) -> None:
        super().__init__()
        outer, inner = scaled(_OUTER, width), scaled(_INNER, width)
        self.dense = nn.Sequential(
            nn.Linear(inputs, units, bias=False),
            nn.BatchNorm1d(units),
            nn.ReLU(),
            nn.Linear(units, inner * _SIDE**2, bias=False),
            nn.BatchNorm1d(inner * _SIDE**2),
            nn.ReLU(),
        )
        self.grow = nn.Sequential(
            _doubling(inner, outer, bias=False),
            nn.BatchNorm2d(outer),
            nn.ReLU(),
            _doubling(outer, 1, bias=True),
        )

    def forward(self, code: Tensor) -> Tensor:
        return self.grow(self.dense(code).unflatten(1, (-1, _SIDE, _SIDE)))


class Discriminator(nn.Module):
    """Pictures [batch, 1, 28, 28] to logits [batch, outputs] of being real.

    It has no batch normalisation: statistics over real and over drawn pictures differ, and what is
    measured in evaluation mode would be with those of neither.
    """

    def __init__(self, outputs: int, units: int, width: float, dropout: float) -> None:
        super().__init__()
        outer, inner = scaled(_OUTER, width), scaled(_INNER, width)
        self.layers = nn.Sequential(
            nn.Conv2d(1, outer, 5, stride=2, padding=2),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(outer, inner, 5, stride=2, padding=2),
            nn.LeakyReLU(SLOPE),
            nn.Flatten(),
            nn.Dropout(dropout) if dropout else nn.Identity(),
            nn.Linear(inner * _SIDE**2, units),
            nn.LeakyReLU(SLOPE),
            nn.Linear(units, outputs),
        )
        for weight in self.parameters():
            if weight.ndim > 1:  # deviation: He's, for nothing else keeps the signal's size
                nn.init.kaiming_normal_(weight, a=SLOPE)

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)


def _doubling(inputs: int, outputs: int, *, bias: bool) -> nn.ConvTranspose2d:
    """Channels at twice the height and width."""
    return nn.ConvTranspose2d(inputs, outputs, 5, stride=2, padding=2, output_padding=1, bias=bias)


def network(
    latents: Count = LATENTS,
    units: Count = UNITS,
    width: Width = 1.0,
    dropout: Dropout = 0.0,
) -> GAN:
    """Dropout stands before the discriminator's dense layer; `width` is the share of channels."""
    return GAN(  # deviation: of the size of the authors' conditional model, and no tanh at the end
        Generator(latents, units, width),
        # deviation: no batch normalisation in it, but dropout
        nn.Sequential(Discriminator(1, units, width, dropout), nn.Flatten(0)),
    )


def signature(latents: Count = LATENTS) -> Signature:
    drawn = (logits(1, SIZE), picture("image", 1, SIZE))
    return Signature((normal("latent", latents),), drawn)


def exhibits(module: nn.Module, inputs: Tensors, targets: Tensors) -> Tensors:
    """Samples of the first latents, and the way from some of them to others."""
    latent = inputs["latent"]
    ways = between(latent[:ROWS], latent[ROWS : 2 * ROWS], COLUMNS)
    return {
        "samples": grid(
            [module(some)["image"] for some in latent[: ROWS * COLUMNS].split(COLUMNS)]
        ),
        "interpolations": grid([module(way)["image"] for way in ways]),
    }


def codec(dataset: Dataset) -> Codec:
    """A latent code, which the server draws from a seed, is drawn as a picture."""
    pictures = Pictures(latent="latent", drawn="image")
    return Codec(pictures=pictures, noise=("latent",), block=BLOCK)


def coded_digits(data: str) -> Callable[..., Dataset]:
    def digits(latents: Count = LATENTS) -> Dataset:
        return with_latents(PICTURED_DIGITS[data](), latents)

    return digits


DCGAN = Recipe(
    name="gan",
    kind="generative",
    title="Convolutional GAN (DCGAN) on digits",
    paper="Goodfellow, Pouget-Abadie, Mirza, Xu, Warde-Farley, Ozair, Courville, Bengio 2014, "
    "Generative adversarial nets; Radford, Metz, Chintala 2016, Unsupervised representation "
    "learning with deep convolutional generative adversarial networks",
    network=network,
    signature=signature,
    # deviation: latents are normal, not uniform
    data={"embedded": coded_digits("embedded"), "full": coded_digits("full")},
    loss=adversarial_loss,
    forward=look,
    gradients=oppose,  # deviation: for one update of both nets, not the discriminator's first
    evaluate=measure,
    metric="lenet5_frechet_distance",
    direction="min",
    floor={"embedded": 4.0, "full": 2.0},
    training={  # deviation: other rates than 2e-4, which end at 0
        "embedded": Training(
            epochs=16, repeat=5, batch_size=64, learning_rate=1e-3, momentum=0.5, schedule="cosine"
        ),
        "full": Training(
            epochs=9, batch_size=64, learning_rate=1e-3, momentum=0.5, schedule="cosine"
        ),
    },
    presets={
        "embedded": {"latents": 64, "units": 128, "width": 0.25, "dropout": 0.2},
        "full": {"latents": 64, "units": 256, "width": 0.5, "dropout": 0.3},
    },
    codec=codec,
    prepare=hear_judge,
    exhibits=exhibits,
    baseline=baseline,
    remarks=remarks,
    deviations=(
        "the size is that of the authors' conditional model of MNIST; pixels are a sigmoid's",
        "latents are normal, not uniform",
        "no batch normalisation in the discriminator, and dropout where it is set",
        "weights begin as He's and PyTorch's, not normal with deviation 0.02, of which a generator "
        "with batch normalisation learns faster than a discriminator without",
        "both nets are updated at once, from one batch, not in turn",
        "Adam's learning rate is not 2e-4 and falls to 0 along a cosine",
    ),
)
