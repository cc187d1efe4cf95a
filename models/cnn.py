"""The two-convolution net: convolve, pool, convolve, pool, one dense layer, softmax."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from models.choices import ACTIVATIONS, POOLINGS, Activation, Count, Dropout, Pooling
from models.digits import CLASSES, DIGITS, SIZE, digit_codec
from models.losses import classification_loss
from models.metrics import classification
from models.recipe import Recipe, Training
from models.served import ImageClassifier, image_classes, standardise
from models.signature import Signature

Head = Literal["dense", "global-average", "global-max"]

_GLOBAL = {"global-average": nn.AdaptiveAvgPool2d, "global-max": nn.AdaptiveMaxPool2d}


class CNN(nn.Module):
    """[batch, 1, 28, 28] to logits [batch, 10].

    The head is a dense layer of `hidden` units on all of the last pooling's output, or each map's
    mean or largest value alone (Lin, Chen, Yan 2013, Network in network).
    """

    def __init__(
        self,
        kernel: Annotated[int, Field(ge=1, le=15)] = 3,  # deviation: 5 in the paper
        hidden: Count = 1024,  # deviation: 512 in the paper
        dropout: Dropout = 0.0,
        batchnorm: bool = False,
        activation: Activation = "relu",
        pooling: Pooling = "max",
        head: Head = "dense",
    ) -> None:
        super().__init__()
        self.stage1 = _stage(1, 32, kernel, batchnorm, activation, pooling)
        self.stage2 = _stage(32, 64, kernel, batchnorm, activation, pooling)
        if head == "dense":
            self.head = nn.Sequential(
                OrderedDict(
                    flatten=nn.Flatten(),
                    dense=nn.Linear(64 * (SIZE // 4) ** 2, hidden),
                    activation=ACTIVATIONS[activation](),
                    dropout=nn.Dropout(dropout),
                )
            )
        else:
            hidden = 64
            self.head = nn.Sequential(
                OrderedDict(
                    pool=_GLOBAL[head](1), flatten=nn.Flatten(), dropout=nn.Dropout(dropout)
                )
            )
        self.output = nn.Linear(hidden, len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.head(self.stage2(self.stage1(x))))


def _stage(
    inputs: int,
    outputs: int,
    kernel: int,
    batchnorm: bool,
    activation: Activation,
    pooling: Pooling,
) -> nn.Sequential:
    """A convolution that keeps the size, and a pooling that halves it."""
    parts = OrderedDict[str, nn.Module](conv=nn.Conv2d(inputs, outputs, kernel, padding="same"))
    if batchnorm:
        parts["norm"] = nn.BatchNorm2d(outputs)
    parts |= {"activation": ACTIVATIONS[activation](), "pool": POOLINGS[pooling](2)}
    return nn.Sequential(parts)


def served(network: nn.Module) -> ImageClassifier:
    return ImageClassifier(network, pad=0)


def signature() -> Signature:
    return image_classes(channels=1, size=SIZE, classes=len(CLASSES))


CNN_32_64_1024 = Recipe(
    name="cnn",
    kind="classification",
    title="Convolutional net 32-64-1024-10",
    paper="McMahan, Moore, Ramage, Hampson, Arcas 2017, "
    "Communication-efficient learning of deep networks from decentralized data",
    network=CNN,
    served=served,
    signature=signature,
    data=DIGITS,
    # deviation: the paper has no dropout
    presets={"embedded": {"dropout": 0.5}, "full": {"dropout": 0.5}},
    loss=classification_loss,
    evaluate=classification,
    metric="accuracy",
    floor={"embedded": 0.95, "full": 0.990},
    training={  # deviation: Adam with a one-cycle rate, not averaged SGD of many machines
        "embedded": Training(epochs=8, batch_size=32, schedule="one-cycle"),
        "full": Training(epochs=5, batch_size=128, learning_rate=2e-3, schedule="one-cycle"),
    },
    codec=digit_codec,
    prepare=standardise,
    deviations=(
        "3x3 filters and 1024 dense units instead of 5x5 and 512",
        "dropout 0.5 before the output",
        "Adam with a one-cycle rate on one machine instead of averaged SGD of many",
    ),
)
