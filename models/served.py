"""What is exported around a network: scaling before it, softmax after it, so no client does."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.signature import BATCH, Axis, Signature, TensorSpec

Tensors = dict[str, Tensor]


def classified(logits: Tensor) -> Tensors:
    """`logits` as they are, and `probabilities` of all classes.

    [batch, classes] goes through softmax; one logit [batch, 1] gives sigmoid's two classes.
    """
    if logits.shape[1] == 1:
        yes = logits.sigmoid()
        return {"logits": logits, "probabilities": torch.cat([1 - yes, yes], dim=1)}
    return {"logits": logits, "probabilities": logits.softmax(dim=-1)}


class ImageClassifier(nn.Module):
    """Pixels in [0, 1] to `logits` and `probabilities`: pads by `pad`, standardises, classifies.

    `mean` and `deviation` are scalars of the training pixels, set by `standardise`.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module, pad: int) -> None:
        super().__init__()
        self.network = network
        self.pad = pad
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))

    def forward(self, image: Tensor) -> Tensors:
        if self.pad:
            image = functional.pad(image, [self.pad] * 4)
        return classified(self.network((image - self.mean) / self.deviation))


class VectorClassifier(nn.Module):
    """Rows of raw features [batch, features] to `logits` and `probabilities`.

    Each feature is standardised with `mean` and `deviation` of the training rows.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module, features: int) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(features))

    def forward(self, features: Tensor) -> Tensors:
        return classified(self.network((features - self.mean) / self.deviation))


class VectorRegressor(nn.Module):
    """Rows of raw features [batch, features] to `value` [batch, 1] in the target's own unit.

    Features are standardised on the way in, and the network's answer is put back on the target's
    scale on the way out, both with statistics of the training rows.
    """

    mean: Tensor
    deviation: Tensor
    value_mean: Tensor
    value_deviation: Tensor

    def __init__(self, network: nn.Module, features: int) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(features))
        self.register_buffer("value_mean", torch.zeros(1))
        self.register_buffer("value_deviation", torch.ones(1))

    def forward(self, features: Tensor) -> Tensors:
        standard = self.network((features - self.mean) / self.deviation)
        return {"value": standard * self.value_deviation + self.value_mean}


def standardise(module: nn.Module, inputs: Tensors, targets: Tensors) -> None:
    """Set the scalar mean and deviation of an `ImageClassifier` from training images."""
    deviation, mean = torch.std_mean(inputs["image"].double())
    module.get_buffer("mean").copy_(mean)
    module.get_buffer("deviation").copy_(deviation)


def standardise_features(module: nn.Module, inputs: Tensors, targets: Tensors) -> None:
    """Set the statistics of a `VectorClassifier` or a `VectorRegressor` from training rows.

    A feature that does not vary keeps a deviation of 1.
    """
    _set_statistics(module, "", inputs["features"])
    if "value" in targets:
        _set_statistics(module, "value_", targets["value"])


def _set_statistics(module: nn.Module, prefix: str, rows: Tensor) -> None:
    deviation, mean = torch.std_mean(rows.double(), dim=0)
    module.get_buffer(f"{prefix}mean").copy_(mean)
    module.get_buffer(f"{prefix}deviation").copy_(torch.where(deviation > 0, deviation, 1.0))


def image_classes(channels: int, size: int, classes: int, max_batch: int = 64) -> Signature:
    """The signature of an `ImageClassifier` over square images."""
    batch = Axis(BATCH, 1, min(8, max_batch), max_batch)
    image = TensorSpec("image", "float32", (batch, channels, size, size), 0.0, 1.0)
    return Signature((image,), classifier_outputs(batch, classes))


def vector_classes(features: int, classes: int, max_batch: int = 64) -> Signature:
    """The signature of a `VectorClassifier`; 2 classes by one logit are `classes` = 1."""
    batch = Axis(BATCH, 1, min(8, max_batch), max_batch)
    vectors = TensorSpec("features", "float32", (batch, features))
    return Signature((vectors,), classifier_outputs(batch, classes))


def vector_values(features: int, max_batch: int = 64) -> Signature:
    """The signature of a `VectorRegressor`."""
    batch = Axis(BATCH, 1, min(8, max_batch), max_batch)
    return Signature(
        (TensorSpec("features", "float32", (batch, features)),),
        (TensorSpec("value", "float32", (batch, 1)),),
    )


def classifier_outputs(batch: Axis, classes: int) -> tuple[TensorSpec, TensorSpec]:
    """`logits` and `probabilities`, as `classified` gives them."""
    return (
        TensorSpec("logits", "float32", (batch, classes)),
        TensorSpec("probabilities", "float32", (batch, max(classes, 2)), 0.0, 1.0),
    )
