"""What is exported around a network: scaling before it, softmax after it, so no client does."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.signature import BATCH, Axis, Signature, TensorSpec


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

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        if self.pad:
            image = functional.pad(image, [self.pad] * 4)
        logits = self.network((image - self.mean) / self.deviation)
        return {"logits": logits, "probabilities": logits.softmax(dim=-1)}


def standardise(module: nn.Module, inputs: dict[str, Tensor]) -> None:
    """Set the scalar mean and deviation of an `ImageClassifier` from training images."""
    deviation, mean = torch.std_mean(inputs["image"].double())
    module.get_buffer("mean").copy_(mean)
    module.get_buffer("deviation").copy_(deviation)


def image_classes(channels: int, size: int, classes: int, max_batch: int = 64) -> Signature:
    """The signature of an `ImageClassifier` over square images."""
    batch = Axis(BATCH, 1, min(8, max_batch), max_batch)
    return Signature(
        inputs=(TensorSpec("image", "float32", (batch, channels, size, size), 0.0, 1.0),),
        outputs=(
            TensorSpec("logits", "float32", (batch, classes)),
            TensorSpec("probabilities", "float32", (batch, classes), 0.0, 1.0),
        ),
    )
