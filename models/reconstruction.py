"""What autoencoders share: the served module and its parts, losses, metrics, pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.choices import Count
from models.codec import Codec, ImageInput, Pictures
from models.datasets import Dataset
from models.digits import CLASSES, SIZE
from models.latent import BLOCK, ROWS, grid, logits, picture
from models.recipe import Part
from models.signature import Arrays, Signature, TensorSpec

Tensors = dict[str, Tensor]
Error = Callable[[Tensor, Tensor], Tensor]  # of pictures and their reconstructions, [batch]
Loss = Literal["bce", "mse"]

# The presets' codes: 8x8 pixels that were enlarged have less to say.
CODES = {"embedded": 8, "full": 30}
STEPS = 9  # pictures from one code to another


def squared_error(image: Tensor, reconstruction: Tensor) -> Tensor:
    """The mean squared error per pixel, [batch]."""
    return (image - reconstruction).square().mean((1, 2, 3))


class Encoder(nn.Module):
    """Pictures [batch, channels, height, width] to their code `latent` [batch, n]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensors:
        return {"latent": self.network(image)}


class Decoder(nn.Module):
    """Codes [batch, n] to `logits`, and the pictures that a sigmoid makes of these."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, latent: Tensor) -> Tensors:
        drawn = self.network(latent)
        return {"logits": drawn, "reconstruction": drawn.sigmoid()}


class Reconstructor(nn.Module):
    """Pictures to what their encoder and then their decoder say, and their `error` [batch].

    The network has the submodules `encoder` and `decoder`.
    """

    def __init__(self, network: nn.Module, error: Error) -> None:
        super().__init__()
        self.encoder = Encoder(network.get_submodule("encoder"))
        self.decoder = Decoder(network.get_submodule("decoder"))
        self.error = error

    def forward(self, image: Tensor) -> Tensors:
        answers = self.encoder(image)
        answers |= self.decoder(answers["latent"])
        return answers | {"error": self.error(image, answers["reconstruction"])}


def served(network: nn.Module) -> Reconstructor:
    return Reconstructor(network, squared_error)


def whole_signature(published: int) -> Callable[..., Signature]:
    """The signature of a `Reconstructor` of digits, whose setting `code` has that default."""

    def signature(code: Count = published) -> Signature:
        error = TensorSpec("error", "float32", (ROWS,), 0.0)
        return Signature((picture("image", 1, SIZE),), (_code(code), *_drawn(), error))

    return signature


def parts(published: int) -> dict[str, Part]:
    """Both parts of a `Reconstructor`, from left to right."""

    def encoder(code: Count = published) -> Signature:
        return Signature((picture("image", 1, SIZE),), (_code(code),))

    def decoder(code: Count = published) -> Signature:
        return Signature((_code(code),), _drawn())

    return {
        "encoder": Part(take=lambda module: module.get_submodule("encoder"), signature=encoder),
        "decoder": Part(take=lambda module: module.get_submodule("decoder"), signature=decoder),
    }


def reconstruction_loss(outputs: Tensors, targets: Tensors, loss: Loss = "bce") -> Tensor:
    """The mean over pixels of the error against the target `image`.

    bce: cross-entropy of `logits` for the brightness as a probability. mse: squared error of
    `reconstruction`.
    """
    if loss == "bce":
        return functional.binary_cross_entropy_with_logits(outputs["logits"], targets["image"])
    return functional.mse_loss(outputs["reconstruction"], targets["image"])


def picture_errors(outputs: Arrays, targets: Arrays) -> Arrays:
    """Of each row its output `error`, and `squared`, the mean squared error to the target."""
    difference = outputs["reconstruction"] - targets["image"]
    return {"error": outputs["error"], "squared": np.square(difference).mean((1, 2, 3))}


def reconstruction(outputs: Arrays, targets: Arrays) -> dict[str, float]:
    """The mean squared error per pixel over rows, of `picture_errors`."""
    return {"mse": float(outputs["squared"].mean(dtype=np.float64))}


def reconstruction_codec(dataset: Dataset) -> Codec:
    """An uploaded picture of one light digit on a dark ground, its code, its reconstruction."""
    _, channels, height, width = dataset.test.inputs["image"].shape
    return Codec(
        image=ImageInput(name="image", height=height, width=width, channels=channels),
        pictures=Pictures(
            latent="latent",
            drawn="reconstruction",
            decoder="decoder",
            encoder="encoder",
            code="latent",
            reconstruction="reconstruction",
        ),
        block=BLOCK,
    )


def principal_components(rows: np.ndarray) -> Callable[[np.ndarray, int], np.ndarray]:
    """What gives pictures back from so many principal components of `rows` (Pearson 1901).

    No linear encoder and decoder of a code of that size have a smaller squared error on these rows.
    """
    flat = rows.reshape(len(rows), -1)
    mean = flat.mean(0, dtype=np.float64)
    centred = flat - mean
    _, vectors = np.linalg.eigh(centred.T @ centred)  # from the least variance on

    def give_back(images: np.ndarray, components: int) -> np.ndarray:
        kept = vectors[:, -components:]
        codes = (images.reshape(len(images), -1) - mean) @ kept
        return (mean + codes @ kept.T).reshape(images.shape)

    return give_back


def linear_baseline(dataset: Dataset) -> dict[str, float]:
    """The error of as many principal components as a preset's code has, and of the mean picture.

    What is given back is not cut to [0, 1].
    """
    train, test = dataset.train.inputs["image"], dataset.test.inputs["image"]
    give_back = principal_components(train)
    given = {f"{count} principal components": give_back(test, count) for count in CODES.values()}
    given["the mean picture"] = train.mean(0, dtype=np.float64)
    return {f"{name} mse": float(np.square(test - back).mean()) for name, back in given.items()}


def exhibits(module: nn.Module, inputs: Tensors, targets: Tensors) -> Tensors:
    """A test picture of each digit beneath its reconstruction, and codes between pairs of these."""
    images = inputs["image"][one_of_each(targets["label"])]
    answers = module(image=images)
    return {
        "Reconstructions, and beneath them their pictures": grid(
            [answers["reconstruction"], images]
        ),
        "From the code of one picture to that of the next": between(module, answers["latent"]),
    }


def one_of_each(labels: Tensor) -> Tensor:
    """The number of the first row of each digit that is there."""
    firsts = [(labels == digit).nonzero()[:1, 0] for digit in range(len(CLASSES))]
    return torch.cat(firsts)


def between(module: nn.Module, codes: Tensor) -> Tensor:
    """Pictures [pairs, steps, ...] of the codes on a line from the first of a pair to the last."""
    share = torch.linspace(0, 1, STEPS, device=codes.device)[:, None]
    lines = [first.lerp(last, share) for first, last in zip(codes[::2], codes[1::2], strict=False)]
    drawn = module.get_submodule("decoder")(torch.cat(lines))["reconstruction"]
    return drawn.unflatten(0, (len(lines), STEPS))


def _code(features: int) -> TensorSpec:
    return TensorSpec("latent", "float32", (ROWS, features))


def _drawn() -> tuple[TensorSpec, TensorSpec]:
    return logits(1, SIZE), picture("reconstruction", 1, SIZE)
