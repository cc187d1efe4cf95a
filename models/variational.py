"""The evidence lower bound: its terms, its loss and metrics, and pictures of what was learned."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from models.codec import Codec, ImageInput, Pictures
from models.datasets import Dataset, Split
from models.disentanglement import mutual_information_gap
from models.judge import Judge, frechet_distance
from models.latent import BLOCK, grid, traverse
from models.recipe import Tensors
from models.signature import Arrays

TRAVERSALS = "traversals"  # the exhibit of that name
Beta = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_ACTIVE = 0.01  # nats are told by a latent whose mean varies more than this
_WATCHED = 512  # pictures that tell which latents are active, to show them
_COLUMNS = 10


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(q || p) [rows] in nats of q = N(mean, exp(log_variance)) and p = N(0, 1), [rows, latents].

    1/2 sum (mean^2 + variance - log variance - 1) (Kingma, Welling 2014, appendix B).
    """
    terms = mean.square() + log_variance.exp() - log_variance - 1
    return terms.sum(1) / 2


def cross_entropy(logits: Tensor, image: Tensor) -> Tensor:
    """-log p(x|z) [rows] in nats, summed over pixels that are 1 with chance sigmoid(logits).

    Of grey levels in [0, 1] it is the mean over all pictures of zeros and ones that are drawn by
    them, each pixel by itself.
    """
    loss = functional.binary_cross_entropy_with_logits(logits, image, reduction="none")
    return loss.flatten(1).sum(1)


def look(module: nn.Module, inputs: Tensors, targets: Tensors) -> Tensors:
    """Of each row both terms of the bound, its mean code, and how its noise looks as a picture.

    In training the noise is drawn afresh from torch's generator; in evaluation it is the data's,
    and read as a prior sample as well, of which the module's judge sees the picture.
    """
    image, noise = inputs["image"], inputs["noise"]
    outputs = module(image, torch.randn_like(noise) if module.training else noise)
    seen = {name: outputs[name] for name in ("mean", "error")}
    seen["reconstruction"] = cross_entropy(outputs["logits"], image)
    seen["kl"] = divergence(outputs["mean"], outputs["log_variance"])
    judge = getattr(module, "judge", None)
    if isinstance(judge, Judge) and not module.training:
        seen["drawn"], _ = judge.look(_decode(module, noise))
        seen["real"], _ = judge.look(image)
    return seen


def bound(outputs: Tensors, targets: Tensors, beta: Beta = 1.0) -> Tensor:
    """Reconstruction + `beta` KL, the mean over rows in nats: at beta 1 the negative bound."""
    return (outputs["reconstruction"] + beta * outputs["kl"]).mean()


def measure(outputs: Arrays, targets: Arrays) -> dict[str, float]:
    """The bound and its terms in nats per picture, whatever the beta of the training.

    `elbo` = -`reconstruction` - `kl`. `active_units` are the latents whose mean has a variance over
    pictures above 0.01 (Burda, Grosse, Salakhutdinov 2016). Where they can be known:
    `lenet5_frechet_distance` between prior samples and the pictures, and `mig`, the mutual
    information gap between mean codes and the factors of the pictures.
    """
    reconstruction, kl = (float(outputs[n].astype(float).mean()) for n in ("reconstruction", "kl"))
    metrics = {
        "elbo": -reconstruction - kl,
        "reconstruction": reconstruction,
        "kl": kl,
        "mse": float(outputs["error"].astype(float).mean()),
        "active_units": float((outputs["mean"].var(0) > _ACTIVE).sum()),
    }
    if "drawn" in outputs:
        metrics["lenet5_frechet_distance"] = frechet_distance(outputs["real"], outputs["drawn"])
    if "factors" in targets:
        metrics["mig"] = mutual_information_gap(outputs["mean"], targets["factors"])
    return metrics


def baseline(dataset: Dataset) -> dict[str, float]:
    """What a model without a code reaches, by which a pixel is 1 as often as in training rows."""
    # Half a row of ones and half a row of zeros more, so that no chance is 0.
    train, test = (split.inputs["image"].astype(float) for split in (dataset.train, dataset.test))
    share = (train.sum(0) + 0.5) / (len(train) + 1)
    nats = -(test * np.log(share) + (1 - test) * np.log1p(-share)).sum((1, 2, 3)).mean()
    return {
        "mean picture, elbo": -float(nats),
        "mean picture, mse": float(np.square(test - share).mean()),
    }


def exhibits(module: nn.Module, inputs: Tensors, targets: Tensors) -> Tensors:
    """Prior samples of the first noise, pictures above their reconstructions, and traversals.

    A traversal changes one latent of the first picture's mean code from -3 to 3; the latents whose
    means vary most come first. Reconstructions are of mean codes.
    """
    image, noise = inputs["image"][:_WATCHED], inputs["noise"][:_WATCHED]
    outputs = module(image, torch.zeros_like(noise))
    rows = min(4, len(noise) // _COLUMNS)
    samples = _decode(module, noise[: rows * _COLUMNS]).unflatten(0, (rows, _COLUMNS))
    order = outputs["mean"].var(0).argsort(descending=True)[:_COLUMNS]
    moved = traverse(lambda code: _decode(module, code), outputs["mean"][0])
    return {
        "samples": samples,
        "reconstructions": grid([image[:_COLUMNS], outputs["reconstruction"][:_COLUMNS]]),
        TRAVERSALS: moved[order],
    }


def drawing_codec(dataset: Dataset) -> Codec:
    """A picture has a code, a code draws a picture; noise comes from the request's seed."""
    _, channels, height, width = dataset.test.inputs["image"].shape
    return Codec(
        image=ImageInput(name="image", height=height, width=width, channels=channels),
        pictures=Pictures(
            latent="latent", drawn="reconstruction", decoder="decoder", encoder="encoder",
            code="mean", reconstruction="reconstruction",
        ),
        noise=("noise", "latent"),
        block=BLOCK,
    )  # fmt: skip


def with_noise(dataset: Dataset, latents: int) -> Dataset:
    """The data with the input `noise` [rows, latents], N(0, 1), the same every time."""

    def noisy(split: Split, seed: int) -> Split:
        noise = np.random.default_rng(seed).standard_normal((len(split), latents), np.float32)
        return Split({**split.inputs, "noise": noise}, split.targets)

    return replace(
        dataset,
        train=noisy(dataset.train, 0),
        validation=noisy(dataset.validation, 1),
        test=noisy(dataset.test, 2),
    )


def _decode(module: nn.Module, latent: Tensor) -> Tensor:
    return module.get_submodule("decoder")(latent)["reconstruction"]
