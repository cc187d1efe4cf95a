"""Conditional GAN on digits: both nets know the class, so pictures can be asked for by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from models.adversarial import GAN, between, look, measure, with_latents
from models.choices import Count, Dropout, Width
from models.codec import Codec, Pictures
from models.datasets import Dataset, Split
from models.digits import CLASSES, PICTURED_DIGITS
from models.gan import COLUMNS, DCGAN, LATENTS, ROWS, UNITS, Discriminator, Generator
from models.gan import signature as unconditional
from models.latent import BLOCK, grid
from models.latent import ROWS as BATCH
from models.recipe import Tensors
from models.signature import Arrays, Signature, TensorSpec

Few = Annotated[int, Field(ge=0, le=10_000)]


class OfClass(nn.Module):
    """A generator whose code [batch, n] is continued by the class [batch] as a one-hot vector."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, code: Tensor, label: Tensor) -> Tensor:
        told = label[:, None] == torch.arange(len(CLASSES), device=label.device)
        return self.net(torch.cat([code, told.to(code.dtype)], dim=1))


class AtClass(nn.Module):
    """A discriminator's logit [batch] for the class [batch], of those [batch, 10] for every one."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        return self.net(image).gather(1, label[:, None])[:, 0]


def network(
    latents: Count = LATENTS,
    units: Count = UNITS,
    width: Width = 1.0,
    dropout: Dropout = 0.0,
) -> GAN:
    """Dropout stands before the discriminator's dense layer; `width` is the share of channels."""
    # deviation: convolutions, not dense layers
    return GAN(
        OfClass(Generator(latents + len(CLASSES), units, width)),
        # deviation: no batch normalisation in it, but dropout
        # deviation: the class chooses among its logits, and is not one of its inputs
        AtClass(Discriminator(len(CLASSES), units, width, dropout)),
    )


def signature(latents: Count = LATENTS) -> Signature:
    drawing = unconditional(latents)
    label = TensorSpec("label", "int64", (BATCH,), 0, len(CLASSES) - 1)
    return Signature((*drawing.inputs, label), drawing.outputs)


def measure_classes(outputs: Arrays, targets: Arrays) -> dict[str, float]:
    """`measure`, and of how many pictures the judge sees the class that was to be drawn."""
    drawn = outputs["drawn_classes"].argmax(1) == targets["label"]
    return measure(outputs, targets) | {"class_accuracy": float(drawn.mean())}


def exhibits(module: nn.Module, inputs: Tensors, targets: Tensors) -> Tensors:
    """Every class in a column of its own, a latent to a row; and ways between latents by class."""
    latent = inputs["latent"]
    classes = torch.arange(len(CLASSES), device=latent.device)
    samples = [module(one.expand(len(classes), -1), classes)["image"] for one in latent[:ROWS]]
    ways = between(latent[: len(classes)], latent[len(classes) : 2 * len(classes)], COLUMNS)
    drawn = [
        module(way, label.expand(COLUMNS))["image"]
        for way, label in zip(ways, classes, strict=True)
    ]
    return {"samples": grid(samples), "interpolations": grid(drawn)}


def codec(dataset: Dataset) -> Codec:
    """A class by name and a latent code, which the server draws from a seed, become a picture."""
    pictures = Pictures(latent="latent", drawn="image", label="label")
    return Codec(classes=dataset.classes, pictures=pictures, noise=("latent",), block=BLOCK)


def labelled_digits(data: str) -> Callable[..., Dataset]:
    """Pictured digits with the inputs `latent` and `label`."""

    def digits(latents: Count = LATENTS, per_class: Few = 0, draw: Few = 0) -> Dataset:
        dataset = with_latents(few(PICTURED_DIGITS[data](), per_class, draw), latents)
        return replace(
            dataset,
            train=_labelled(dataset.train),
            validation=_labelled(dataset.validation),
            test=_labelled(dataset.test),
        )

    return digits


def few(dataset: Dataset, per_class: int, draw: int) -> Dataset:
    """The data with so many train rows of each class, drawn by the seed `draw`; 0 keeps all.

    The classes take turns, so that any part of the rows has as many of each.
    """
    if not per_class:
        return dataset
    rng, label = np.random.default_rng(draw), dataset.train.targets["label"]
    each = [rng.permutation(np.flatnonzero(label == c))[:per_class] for c in range(len(CLASSES))]
    turns = np.concatenate([np.arange(len(some)) for some in each])
    rows = np.concatenate(each)[turns.argsort(kind="stable")]
    train = Split(
        {name: array[rows] for name, array in dataset.train.inputs.items()},
        {name: array[rows] for name, array in dataset.train.targets.items()},
    )
    return replace(dataset, train=train)


def _labelled(split: Split) -> Split:
    return replace(split, inputs={**split.inputs, "label": split.targets["label"]})


CGAN = replace(
    DCGAN,
    name="cgan",
    title="Conditional convolutional GAN on digits",
    paper="Mirza, Osindero 2014, Conditional generative adversarial nets; its nets after Radford, "
    "Metz, Chintala 2016",
    network=network,
    signature=signature,
    data={"embedded": labelled_digits("embedded"), "full": labelled_digits("full")},
    forward=look,  # deviation: normal latents, not uniform ones, and one update of both nets
    evaluate=measure_classes,
    training=DCGAN.training,  # deviation: Adam, and no decay of the momentum from 0.5 to 0.7
    codec=codec,
    exhibits=exhibits,
    deviations=(
        "convolutions instead of dense layers; the generator is told the class with its code alone",
        "the discriminator has a logit for each class, of which that of the label is taken",
        "no batch normalisation in the discriminator, and dropout where it is set",
        "latents are normal, not uniform, and both nets are updated at once",
        "Adam with a cosine instead of stochastic gradient descent with a growing momentum",
    ),
)
