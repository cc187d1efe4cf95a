"""AlexNet: five convolutions in two towers, three dense layers, local response normalisation."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from models.choices import Count, Dropout, Width, scaled
from models.digits import digit_codec, digits_at
from models.losses import classification_loss
from models.metrics import classification
from models.recipe import Recipe, Training
from models.served import ImageClassifier, image_classes, standardise
from models.signature import Signature

SMALLEST = 67  # of a smaller image the last pooling has nothing left

Image = Annotated[int, Field(ge=SMALLEST, le=1024)]


def local_response_norm() -> nn.LocalResponseNorm:
    """x / (2 + 1e-4 * sum of x^2 over 5 neighbouring channels)^0.75."""
    # torch divides alpha by the number of channels, the paper does not
    return nn.LocalResponseNorm(5, alpha=5 * 1e-4, beta=0.75, k=2.0)


def normalisation(channels: int, batchnorm: bool) -> nn.Module:
    """What stands after a convolution: local response normalisation, or batch norm instead."""
    return nn.BatchNorm2d(channels) if batchnorm else local_response_norm()


class AlexNet(nn.Module):
    """[batch, channels, image, image] to logits [batch, classes]; both towers in one module.

    `width` is the share of the published channels and dense units; `batchnorm` puts batch norm in
    the place of local response normalisation.
    """

    def __init__(
        self,
        image: Image = 227,
        channels: Count = 3,
        classes: Count = 1000,
        width: Width = 1.0,
        dropout: Dropout = 0.5,
        batchnorm: bool = False,
    ) -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = (scaled(count, width, 2) for count in (96, 256, 384, 384, 256))
        dense = scaled(4096, width)
        # deviation: torch's initial weights, not N(0, 0.01) with some biases of 1
        self.conv1 = nn.Conv2d(channels, c1, kernel_size=11, stride=4)
        self.norm1 = normalisation(c1, batchnorm)
        self.pool1 = nn.MaxPool2d(3, stride=2)  # overlapping: windows of 3, steps of 2
        self.conv2 = nn.Conv2d(c1, c2, kernel_size=5, padding=2, groups=2)
        self.norm2 = normalisation(c2, batchnorm)
        self.pool2 = nn.MaxPool2d(3, stride=2)
        self.conv3 = nn.Conv2d(c2, c3, kernel_size=3, padding=1)  # here the towers meet
        self.conv4 = nn.Conv2d(c3, c4, kernel_size=3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(c4, c5, kernel_size=3, padding=1, groups=2)
        self.pool5 = nn.MaxPool2d(3, stride=2)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.dense6 = nn.Linear(c5 * _side(image) ** 2, dense)
        self.dense7 = nn.Linear(dense, dense)
        self.output = nn.Linear(dense, classes)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.norm1(self.relu(self.conv1(x))))
        x = self.pool2(self.norm2(self.relu(self.conv2(x))))
        x = self.relu(self.conv3(x))
        x = self.relu(self.conv4(x))
        x = self.pool5(self.relu(self.conv5(x)))
        x = self.relu(self.dense6(self.dropout(self.flatten(x))))
        return self.output(self.relu(self.dense7(self.dropout(x))))


def _side(image: int) -> int:
    """Side of the last pooling's output: 6 of an image of 227."""
    side = (image - 11) // 4 + 1
    for _ in range(3):
        side = (side - 3) // 2 + 1
    return side


def served(network: nn.Module) -> ImageClassifier:
    return ImageClassifier(network, pad=0)


def signature(
    image: Image = 227, channels: Count = 3, classes: Count = 1000, max_batch: Count = 16
) -> Signature:
    return image_classes(channels, image, classes, max_batch)


# deviation: on digits 67x67 pixels of one channel, a quarter of the channels and units
_DIGITS = {"image": SMALLEST, "channels": 1, "classes": 10, "width": 0.25}

ALEXNET = Recipe(
    name="alexnet",
    kind="classification",
    title="AlexNet, two towers",
    paper="Krizhevsky, Sutskever, Hinton 2012, "
    "ImageNet classification with deep convolutional neural networks",
    network=AlexNet,
    served=served,
    signature=signature,
    data=digits_at(image=227, channels=3),
    presets={"embedded": _DIGITS, "full": _DIGITS},
    loss=classification_loss,
    evaluate=classification,
    metric="accuracy",
    floor={"embedded": 0.95, "full": 0.985},
    training={  # deviation: Adam with a one-cycle rate instead of momentum with steps
        "embedded": Training(epochs=10, batch_size=32, learning_rate=1e-3, schedule="one-cycle"),
        "full": Training(epochs=4, batch_size=128, learning_rate=1e-3, schedule="one-cycle"),
    },
    codec=digit_codec,
    prepare=standardise,  # deviation: one mean of all pixels; no crops, flips or colour shifts
    deviations=(
        "initial weights are torch's, not N(0, 0.01) with some biases of 1",
        "on digits: 67x67 pixels of one channel, a quarter of the channels and units",
        "Adam with a one-cycle rate instead of momentum with steps",
        "one mean and deviation of all pixels, not a mean image; no crops, flips or colour shifts",
    ),
)
