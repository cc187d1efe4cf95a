"""Two nets against each other: their losses and gradients, and what a judge says of the drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from models.datasets import Dataset, Split
from models.judge import Judge, frechet_distance, judge
from models.recipe import Tensors
from models.signature import Arrays

SURE = 0.9  # the probability from which on the judge is confident of a class
COVERED = 0.01  # the least share of all pictures in a class that counts as drawn


class GAN(nn.Module):
    """What a generator draws; the discriminator is there for its training and never served.

    Both nets may be conditional: they then also take the class `label` [batch] to draw or judge.
    A `judge` looks at what training makes. It is no part of the model.
    """

    judge: Judge | None = None

    def __init__(self, generator: nn.Module, discriminator: nn.Module) -> None:
        super().__init__()
        self.generator = generator
        self.discriminator = discriminator

    def forward(self, latent: Tensor, label: Tensor | None = None) -> Tensors:
        drawn = self.generator(latent) if label is None else self.generator(latent, label)
        return {
            "logits": drawn,
            "image": drawn.sigmoid(),
        }

    def discriminate(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        """The logit [batch] of being real, and of that class, of pictures."""
        return self.discriminator(image) if label is None else self.discriminator(image, label)


def discriminator_loss(real: Tensor, drawn: Tensor) -> Tensor:
    """Binary cross-entropy of the logits of real pictures as 1 and of drawn ones as 0, summed.

    -log D(x) - log(1 - D(G(z))), each the mean over rows; log(1 + e^s) is -log(1 - sigmoid(s)).
    """
    return softplus(-real).mean() + softplus(drawn).mean()


def generator_loss(drawn: Tensor) -> Tensor:
    """-log D(G(z)), the mean over rows: non-saturating (Goodfellow 2014, section 3)."""
    return softplus(-drawn).mean()


def adversarial_loss(outputs: Tensors, targets: Tensors) -> Tensor:
    """Both losses together. No net minimises the sum."""
    real, drawn = outputs["real"], outputs["drawn"]
    return discriminator_loss(real, drawn) + generator_loss(drawn)


def oppose(module: nn.Module, inputs: Tensors, targets: Tensors) -> Tensor:
    """The gradient of each net's own loss by its own parameters, from one and the same batch."""
    assert isinstance(module, GAN)
    outputs = look(module, inputs, targets)
    both = discriminator_loss(outputs["real"], outputs["drawn"]), generator_loss(outputs["drawn"])
    both[0].backward(inputs=list(module.discriminator.parameters()), retain_graph=True)
    both[1].backward(inputs=list(module.generator.parameters()))
    return (both[0] + both[1]).detach()


def look(module: nn.Module, inputs: Tensors, targets: Tensors) -> Tensors:
    """The logits [batch] of real pictures and of as many drawn ones, of the same classes.

    In training the latents are drawn afresh from torch's generator. In evaluation they are the
    data's, and the judge looks at the pictures: features and probabilities of both.
    """
    assert isinstance(module, GAN)
    latent, label = inputs["latent"], inputs.get("label")
    image = module(torch.randn_like(latent) if module.training else latent, label)["image"]
    seen = {"real": module.discriminate(targets["image"], label)}
    seen["drawn"] = module.discriminate(image, label)
    if module.judge and not module.training:
        for name, pictures in (("real", targets["image"]), ("drawn", image)):
            seen[f"{name}_features"], seen[f"{name}_classes"] = module.judge.look(pictures)
    return seen


def measure(outputs: Arrays, targets: Arrays) -> dict[str, float]:
    """The distance of drawn from real pictures as the judge sees them, and the training's health.

    `lenet5_frechet_distance` is in the features of Fucina's own LeNet-5. `confident` is the share
    of drawn pictures of whose class the judge is 90 % sure or more, `classes_covered` counts
    classes that 1 % of them or more belong to, `judge_accuracy` is its accuracy on real pictures.
    `discriminator_accuracy` is over as many real as drawn pictures: 0.5 is not to know.
    """
    real, drawn = outputs["real"].astype(float), outputs["drawn"].astype(float)
    said = outputs["drawn_classes"]
    shares = np.bincount(said.argmax(1), minlength=said.shape[1]) / len(said)
    known = outputs["real_classes"].argmax(1) == targets["label"]
    return {
        "lenet5_frechet_distance": frechet_distance(
            outputs["real_features"], outputs["drawn_features"]
        ),
        "discriminator_loss": float((np.logaddexp(0, -real) + np.logaddexp(0, drawn)).mean()),
        "generator_loss": float(np.logaddexp(0, -drawn).mean()),
        "discriminator_accuracy": float(((real > 0).mean() + (drawn <= 0).mean()) / 2),
        "confident": float((said.max(1) >= SURE).mean()),
        "classes_covered": float((shares >= COVERED).sum()),
        "judge_accuracy": float(known.mean()),
    }


def baseline(dataset: Dataset) -> dict[str, float]:
    """Distances to the test rows of train rows, which is the best to hope for, and of a Gaussian.

    The Gaussian has the mean and covariance of the train rows' pixels, cut to [0, 1]. Of each there
    are as many rows as of test rows, or as there are.
    """
    rng = np.random.default_rng(0)
    train, test = dataset.train.targets["image"], dataset.test.targets["image"]
    known = judge(torch.from_numpy(train), torch.from_numpy(dataset.train.targets["label"]))
    flat = train.reshape(len(train), -1).astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(flat, rowvar=False))
    scales = np.sqrt(values.clip(0))
    pixels = flat.mean(0) + (rng.standard_normal((len(test), len(values))) * scales) @ vectors.T
    others = {
        "train rows": rng.permutation(train)[: len(test)],
        "Gaussian pixels": pixels.clip(0, 1).reshape(test.shape).astype(np.float32),
    }
    real = _features(known, test)
    return {
        f"{name}, lenet5_frechet_distance": frechet_distance(real, _features(known, rows))
        for name, rows in others.items()
    }


def _features(known: Judge, images: np.ndarray) -> np.ndarray:
    return known.look(torch.from_numpy(images))[0].numpy()


def remarks(dataset: Dataset, metrics: dict[str, float]) -> tuple[str, ...]:
    return (
        "distance, confidence and classes are those of Fucina's own LeNet-5, trained on the same "
        f"rows and right on {metrics['judge_accuracy']:.2%} of the real test rows: the distance is "
        "not Inception's FID, and it grows as rows become fewer",
    )


def hear_judge(module: nn.Module, inputs: Tensors, targets: Tensors) -> None:
    assert isinstance(module, GAN)
    module.judge = judge(targets["image"], targets["label"])


def with_latents(dataset: Dataset, latents: int) -> Dataset:
    """Pictured digits whose only input is `latent` [rows, latents], N(0, 1), always the same."""

    def coded(split: Split, seed: int) -> Split:
        latent = np.random.default_rng(seed).standard_normal((len(split), latents), np.float32)
        return replace(split, inputs={"latent": latent})

    return replace(
        dataset,
        train=coded(dataset.train, 0),
        validation=coded(dataset.validation, 1),
        test=coded(dataset.test, 2),
    )


def between(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Codes [rows, steps, n] on the great circle from `start` to `end`, both [rows, n].

    Normal vectors of many features have nearly one length, which a straight way would leave; this
    one goes evenly from one length to the other (Shoemake 1985; White 2016).
    """
    cosine = nn.functional.cosine_similarity(start, end)[:, None, None].clamp(-1, 1)
    angle, share = cosine.acos().clamp(min=1e-4), torch.linspace(0, 1, steps)[:, None].to(start)
    first, last = ((1 - share) * angle).sin(), (share * angle).sin()
    return (first * start[:, None] + last * end[:, None]) / angle.sin()
