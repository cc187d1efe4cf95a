"""An autoencoder that tells what it was never shown: trained without one of the digits."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from models.autoencoder import DenseAutoencoder, Layers
from models.choices import Activation, Count, Dropout, Width
from models.codec import Anomaly, Codec
from models.datasets import Dataset
from models.digits import embedded_digits, mnist, without
from models.latent import grid
from models.recipe import Recipe, Training
from models.reconstruction import (
    Reconstructor,
    exhibits,
    parts,
    picture_errors,
    principal_components,
    reconstruction,
    reconstruction_codec,
    reconstruction_loss,
    squared_error,
    whole_signature,
)
from models.signature import Arrays

Digit = Annotated[int, Field(ge=0, le=9)]
Tensors = dict[str, Tensor]

CODE = 16  # numbers of every preset, which is what the linear baseline has
QUANTILE = 0.95  # of what is known, so much counts as known
_BLANK = 0.01  # mean brightness, so that an empty picture has an error as well
_SHOWN = 10  # pictures of the largest errors
_SEARCHED = 2000  # test pictures among which these are


def network(
    code: Count = 30,
    layers: Layers = 3,
    width: Width = 1.0,
    activation: Activation = "sigmoid",
    dropout: Dropout = 0.0,
) -> DenseAutoencoder:
    return DenseAutoencoder(code, layers, width, activation, dropout)


def relative_error(image: Tensor, reconstruction: Tensor) -> Tensor:
    """Squared error of both pictures blurred 3x3, over the mean brightness of the first, [batch].

    Blurred, a line that is a pixel off is a small error. Of a picture with much ink more is wrong.
    """
    # deviation: not the squared error itself
    blurred = functional.avg_pool2d(image - reconstruction, 3, stride=1, padding=1)
    return blurred.square().mean((1, 2, 3)) / (image.mean((1, 2, 3)) + _BLANK)


def served(network: nn.Module) -> Reconstructor:
    return Reconstructor(network, relative_error)


def digits_without(anomaly: Digit = 0) -> Dataset:
    return without(embedded_digits(), anomaly)


def mnist_without(anomaly: Digit = 0) -> Dataset:
    return without(mnist(), anomaly)


def detection(outputs: Arrays, targets: Arrays) -> dict[str, float]:
    """How the output `error` [rows] tells rows whose target `anomaly` [rows] is 1 from the others.

    `auc`: the area under the ROC curve, which is how often an anomaly has the larger error of a
    random pair; 0.5 where there is none, so that among epochs on validation rows the loss decides.
    `detected`: the share of the anomalies with a larger error than 95 % of the others.
    `mse`: the mean squared error per pixel of the others.
    """
    there = targets["anomaly"] == 1
    known, unknown = np.sort(outputs["error"][~there]), outputs["error"][there]
    auc, detected = 0.5, 0.0
    if there.any():
        below = (known.searchsorted(unknown, side).mean() for side in ("left", "right"))
        auc = float(sum(below)) / 2 / len(known)
        detected = float((unknown > np.quantile(known, QUANTILE)).mean())
    normal = {"squared": outputs["squared"][~there]}
    return {"auc": auc, "detected": detected} | reconstruction(normal, targets)


def calibrate(codec: Codec, outputs: Arrays, targets: Arrays) -> Codec:
    """The codec with a threshold that 5 % of these rows exceed, none of which is an anomaly."""
    threshold = float(np.quantile(outputs["error"], QUANTILE))
    return codec.model_copy(update={"anomaly": Anomaly(error="error", threshold=threshold)})


def linear_detection(dataset: Dataset) -> dict[str, float]:
    """The AUC of what principal components give back, by its squared error and by `relative_error`.

    There are as many as the code has numbers.
    """
    test = dataset.test.inputs["image"]
    given = principal_components(dataset.train.inputs["image"])(test, CODE)
    image, back = torch.from_numpy(test), torch.from_numpy(given.astype(np.float32))
    errors = {"squared": squared_error(image, back), "relative": relative_error(image, back)}
    known = {"squared": np.zeros(len(test))}
    return {
        f"{CODE} principal components, {name} error, auc": detection(
            known | {"error": error.numpy()}, dataset.test.targets
        )["auc"]
        for name, error in errors.items()
    }


def unknown_exhibits(module: nn.Module, inputs: Tensors, targets: Tensors) -> Tensors:
    """The exhibits of any autoencoder, and the largest errors among the first test pictures."""
    images = inputs["image"][:_SEARCHED]
    largest = module(image=images)["error"].topk(min(_SHOWN, len(images))).indices
    answers = module(image=images[largest])
    return exhibits(module, inputs, targets) | {
        f"The largest errors of {len(images)} test pictures, these beneath": grid(
            [answers["reconstruction"], images[largest]]
        )
    }


def remarks(dataset: Dataset, metrics: dict[str, float]) -> tuple[str, ...]:
    targets = dataset.test.targets
    digit = int(targets["label"][targets["anomaly"] == 1][0])
    return (
        f"it was trained without the digit {digit}, which is the anomaly of the test rows",
        "how well a digit is told depends on the digit: what others have strokes for, such as a 1, "
        "is given back well though it was never shown",
    )


ANOMALY_AUTOENCODER = Recipe(
    name="anomaly-autoencoder",
    kind="generative",
    title="Autoencoder that was not shown one digit",
    paper="Sakurada, Yairi 2014, "
    "Anomaly detection using autoencoders with nonlinear dimensionality reduction",
    network=network,  # deviation: not the paper's net
    served=served,
    signature=whole_signature(30),
    parts=parts(30),
    data={"embedded": digits_without, "full": mnist_without},
    loss=reconstruction_loss,
    per_row=picture_errors,
    evaluate=detection,
    metric="auc",
    floor={"embedded": 0.97, "full": 0.93},
    training={  # deviation: Adam
        "embedded": Training(epochs=60, batch_size=32, learning_rate=1e-3, schedule="one-cycle"),
        "full": Training(epochs=8, batch_size=128, learning_rate=2e-3, schedule="one-cycle"),
    },
    presets={  # deviation: ReLU, narrower
        "embedded": {"code": CODE, "layers": 2, "width": 0.25, "activation": "relu"},
        "full": {"code": CODE, "layers": 2, "width": 0.4, "activation": "relu"},
    },
    codec=reconstruction_codec,
    calibrate=calibrate,
    baseline=linear_detection,
    exhibits=unknown_exhibits,
    remarks=remarks,
    deviations=(
        "digits, one of which is never shown, instead of telemetry; the net is Hinton's of 2006",
        "the error is that of blurred pictures, over their brightness",
        "trained by Adam",
        "on the data here ReLU, narrower layers and a code of 16",
    ),
)
