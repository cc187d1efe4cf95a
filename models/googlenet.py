"""GoogLeNet: nine inception blocks, two auxiliary heads in training; and a small sibling."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from models.alexnet import normalisation
from models.choices import Count, Dropout, Width, scaled
from models.digits import CLASSES, DIGITS, SIZE, digit_codec, digits_at
from models.losses import ClassificationLoss, classification_loss
from models.metrics import classification
from models.recipe import Recipe, Training
from models.served import ImageClassifier, classified, image_classes, standardise
from models.signature import Signature

HEADS = ("auxiliary4a", "auxiliary4d")  # outputs that are there in training only
HEAD_WEIGHT = 0.3

Tensors = dict[str, Tensor]
Image = Annotated[int, Field(ge=32, le=1024)]


class Inception(nn.Module):
    """1x1, 3x3 and 5x5 convolutions and a pooling, side by side on the same input, concatenated.

    With `bottleneck`, 1x1 convolutions reduce the channels before the 3x3 and the 5x5.
    """

    def __init__(
        self,
        inputs: int,
        one: int,
        reduce3: int,
        three: int,
        reduce5: int,
        five: int,
        pool: int,
        bottleneck: bool = True,
    ) -> None:
        super().__init__()
        before3, before5 = ([(reduce3, 1)], [(reduce5, 1)]) if bottleneck else ([], [])
        self.branch1 = nn.Sequential(_convolutions(inputs, (one, 1)))
        self.branch3 = nn.Sequential(_convolutions(inputs, *before3, (three, 3)))
        self.branch5 = nn.Sequential(_convolutions(inputs, *before5, (five, 5)))
        pooling = OrderedDict[str, nn.Module](pool3x3=nn.MaxPool2d(3, stride=1, padding=1))
        self.branch_pool = nn.Sequential(pooling | _convolutions(inputs, (pool, 1)))
        self.outputs = one + three + five + pool

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.branch1, self.branch3, self.branch5, self.branch_pool)
        return torch.cat([branch(x) for branch in branches], dim=1)


def _convolutions(inputs: int, *layers: tuple[int, int]) -> OrderedDict[str, nn.Module]:
    """Convolutions of (channels, side) one after the other, sizes kept, each with its ReLU."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for outputs, side in layers:
        parts[f"conv{side}x{side}"] = nn.Conv2d(inputs, outputs, side, padding=side // 2)
        parts[f"relu{side}x{side}"] = nn.ReLU()
        inputs = outputs
    return parts


def _auxiliary_head(inputs: int, side: int, classes: int, width: float) -> nn.Sequential:
    """A small classifier on maps of side x side in the middle, so that gradients reach them."""
    window = min(5, side)  # deviation: maps of less than 5x5 are pooled whole
    reduced, dense = scaled(128, width), scaled(1024, width)
    pooled = (side - window) // 3 + 1
    return nn.Sequential(
        nn.AvgPool2d(window, stride=3),
        nn.Conv2d(inputs, reduced, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(reduced * pooled**2, dense),
        nn.ReLU(),
        nn.Dropout(0.7),
        nn.Linear(dense, classes),
    )


class GoogLeNet(nn.Module):
    """[batch, channels, image, image] to `logits` [batch, classes].

    In training the logits of both auxiliary heads stand beside them. `batchnorm` puts batch norm
    in the place of the stem's local response normalisation.
    """

    def __init__(
        self,
        image: Image = 224,
        channels: Count = 3,
        classes: Count = 1000,
        width: Width = 1.0,
        dropout: Dropout = 0.4,
        bottleneck: bool = True,
        batchnorm: bool = False,
    ) -> None:
        super().__init__()

        def block(inputs: int, *sizes: int) -> Inception:
            return Inception(inputs, *(scaled(n, width) for n in sizes), bottleneck=bottleneck)

        first, reduced, last = (scaled(n, width) for n in (64, 64, 192))
        self.stem = nn.Sequential(
            OrderedDict(
                conv7x7=nn.Conv2d(channels, first, 7, stride=2, padding=3),
                relu7x7=nn.ReLU(),
                pool1=_halve(),
                # deviation: AlexNet's constants, the paper has none
                norm1=normalisation(first, batchnorm),
                **_convolutions(first, (reduced, 1), (last, 3)),
                norm2=normalisation(last, batchnorm),
                pool2=_halve(),
            )
        )
        # Channels as in the paper's table 1: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool.
        self.inception3a = block(last, 64, 96, 128, 16, 32, 32)
        self.inception3b = block(self.inception3a.outputs, 128, 128, 192, 32, 96, 64)
        self.pool3 = _halve()
        self.inception4a = block(self.inception3b.outputs, 192, 96, 208, 16, 48, 64)
        self.inception4b = block(self.inception4a.outputs, 160, 112, 224, 24, 64, 64)
        self.inception4c = block(self.inception4b.outputs, 128, 128, 256, 24, 64, 64)
        self.inception4d = block(self.inception4c.outputs, 112, 144, 288, 32, 64, 64)
        self.inception4e = block(self.inception4d.outputs, 256, 160, 320, 32, 128, 128)
        self.pool4 = _halve()
        self.inception5a = block(self.inception4e.outputs, 256, 160, 320, 32, 128, 128)
        self.inception5b = block(self.inception5a.outputs, 384, 192, 384, 48, 128, 128)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(self.inception5b.outputs, classes)
        side = (image + 1) // 2 // 8  # of the maps of 4a to 4e: 14 of an image of 224
        self.auxiliary4a = _auxiliary_head(self.inception4a.outputs, side, classes, width)
        self.auxiliary4d = _auxiliary_head(self.inception4d.outputs, side, classes, width)
        _initialise(self)  # deviation: He's distribution, the paper names none

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.pool3(self.inception3b(self.inception3a(self.stem(x))))
        middle = self.inception4a(x)
        late = self.inception4d(self.inception4c(self.inception4b(middle)))
        x = self.pool4(self.inception4e(late))
        x = self.dropout(self.flatten(self.pool(self.inception5b(self.inception5a(x)))))
        logits = self.output(x)
        if not self.training:
            return {"logits": logits}
        heads = (self.auxiliary4a(middle), self.auxiliary4d(late))
        return {"logits": logits, **dict(zip(HEADS, heads, strict=True))}


def _halve() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)


def _initialise(network: nn.Module) -> None:
    """Weights from He's distribution, N(0, 2 / inputs), and biases of 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class InceptionMini(nn.Module):
    """[batch, 1, 28, 28] to logits [batch, 10]: a stem, three inception blocks, no dense layer."""

    def __init__(self, width: Width = 1.0, dropout: Dropout = 0.4, bottleneck: bool = True) -> None:
        super().__init__()

        def block(inputs: int, *sizes: int) -> Inception:
            return Inception(inputs, *(scaled(n, width) for n in sizes), bottleneck=bottleneck)

        first = scaled(32, width)
        # deviation: one 3x3 convolution for 28x28 pixels, no local response normalisation
        self.stem = nn.Sequential(_convolutions(1, (first, 3)) | {"pool": _halve()})
        self.inception2a = block(first, 16, 16, 32, 4, 8, 8)
        self.pool2 = _halve()
        self.inception3a = block(self.inception2a.outputs, 32, 32, 64, 8, 16, 16)
        self.inception3b = block(self.inception3a.outputs, 48, 32, 64, 8, 24, 24)
        # deviation: three narrow blocks, no auxiliary heads
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(self.inception3b.outputs, len(CLASSES))
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool2(self.inception2a(self.stem(x)))
        x = self.pool(self.inception3b(self.inception3a(x)))
        return self.output(self.dropout(self.flatten(x)))


class HeadedClassifier(nn.Module):
    """`ImageClassifier` of a network that in training gives the logits of auxiliary heads too."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))

    def forward(self, image: Tensor) -> Tensors:
        outputs = self.network((image - self.mean) / self.deviation)
        return {**outputs, **classified(outputs["logits"])}


def headed_loss(
    outputs: Tensors, targets: Tensors, loss: ClassificationLoss = "cross-entropy"
) -> Tensor:
    """The loss of `logits`, and 0.3 of the loss of each auxiliary head that answered."""
    total = classification_loss(outputs, targets, loss)
    for name in HEADS:
        if name in outputs:
            beside = classification_loss({"logits": outputs[name]}, targets, loss)
            total = total + HEAD_WEIGHT * beside
    return total


def signature(
    image: Image = 224, channels: Count = 3, classes: Count = 1000, max_batch: Count = 16
) -> Signature:
    return image_classes(channels, image, classes, max_batch)


def mini_served(network: nn.Module) -> ImageClassifier:
    return ImageClassifier(network, pad=0)


def mini_signature() -> Signature:
    return image_classes(channels=1, size=SIZE, classes=len(CLASSES))


_PAPER = "Szegedy, Liu, Jia, Sermanet, Reed, Anguelov et al. 2015, Going deeper with convolutions"

# deviation: on digits 48x48 pixels of one channel, a quarter of the channels and units
_DIGITS = {"image": 48, "channels": 1, "classes": 10, "width": 0.25}

GOOGLENET = Recipe(
    name="googlenet",
    kind="classification",
    title="GoogLeNet, 22 layers deep, auxiliary heads in training only",
    paper=_PAPER,
    network=GoogLeNet,
    served=HeadedClassifier,
    signature=signature,
    data=digits_at(image=224, channels=3),
    presets={"embedded": _DIGITS, "full": _DIGITS},
    loss=headed_loss,
    evaluate=classification,
    metric="accuracy",
    floor={"embedded": 0.95, "full": 0.985},
    training={  # deviation: Adam with a one-cycle rate, not averaged asynchronous momentum
        "embedded": Training(epochs=8, batch_size=32, learning_rate=1e-3, schedule="one-cycle"),
        "full": Training(epochs=4, batch_size=128, learning_rate=1e-3, schedule="one-cycle"),
    },
    codec=digit_codec,
    prepare=standardise,  # deviation: one mean and deviation; no crops and photometric changes
    deviations=(
        "local response normalisation has AlexNet's constants, the paper names none",
        "initial weights are He's, the paper names none",
        "on digits: 48x48 pixels of one channel, a quarter of the channels and units, auxiliary "
        "heads that pool maps of less than 5x5 whole",
        "Adam with a one-cycle rate instead of averaged asynchronous momentum",
        "one mean and deviation of all pixels; no crops and photometric changes",
        "one net, not seven",
    ),
)

INCEPTION_MINI = Recipe(
    name="inception-mini",
    kind="classification",
    title="Three inception blocks on 28x28, global average pooling",
    paper=_PAPER,
    network=InceptionMini,
    served=mini_served,
    signature=mini_signature,
    data=DIGITS,
    loss=classification_loss,
    evaluate=classification,
    metric="accuracy",
    floor={"embedded": 0.95, "full": 0.985},
    training={  # deviation: as in GOOGLENET
        "embedded": Training(epochs=10, batch_size=32, learning_rate=2e-3, schedule="one-cycle"),
        "full": Training(epochs=6, batch_size=128, learning_rate=3e-3, schedule="one-cycle"),
    },
    codec=digit_codec,
    prepare=standardise,
    deviations=(
        "three narrow blocks for 28x28 pixels instead of nine for 224x224; a 3x3 stem",
        "no local response normalisation and no auxiliary heads",
        "Adam with a one-cycle rate instead of averaged asynchronous momentum",
    ),
)
