"""Residual networks and their plain twins: 20 and 56 layers for CIFAR, 18 for ImageNet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional

from models.choices import Count, Dropout, Width, scaled
from models.digits import digit_codec, digits_at
from models.losses import classification_loss
from models.metrics import classification
from models.recipe import Recipe, Training
from models.served import ImageClassifier, image_classes, standardise
from models.signature import Signature

Shortcut = Literal["none", "pad", "project"]


class PadShortcut(nn.Module):
    """Option A: every `stride`-th pixel, and zeros for the channels that are new; no parameters."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.more = outputs - inputs
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(x, [0, 0, 0, 0, 0, self.more])


class Block(nn.Module):
    """Two 3x3 convolutions: relu(z + shortcut(x)), or relu(z) with the shortcut "none"."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.shortcut = _shortcut(inputs, outputs, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        if self.shortcut is not None:
            z = z + self.shortcut(x)
        return self.relu(z)


def _shortcut(inputs: int, outputs: int, stride: int, kind: Shortcut) -> nn.Module | None:
    if kind == "none":
        return None
    if inputs == outputs and stride == 1:
        return nn.Identity()
    if kind == "pad":
        return PadShortcut(inputs, outputs, stride)
    return nn.Sequential(  # option B
        nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
    )


class ResNet(nn.Module):
    """[batch, channels, height, width] to logits [batch, classes].

    A stem, then stages of `blocks` blocks each; every stage but the first halves the image. The
    paper has no dropout before the output.
    """

    def __init__(
        self,
        stem: nn.Module,
        widths: list[int],
        blocks: int,
        classes: int,
        shortcut: Shortcut,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.Sequential()
        inputs = widths[0]
        for stage, outputs in enumerate(widths, 1):
            for number in range(1, blocks + 1):
                stride = 2 if stage > 1 and number == 1 else 1
                block = Block(inputs, outputs, stride, shortcut)
                self.blocks.add_module(f"stage{stage}_block{number}", block)
                inputs = outputs
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al. 2015: sqrt(2 / (f_h f_w c_in))
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.flatten(self.pool(self.blocks(self.stem(x))))
        return self.output(self.dropout(x))


def cifar_net(depth: int, shortcut: Shortcut) -> Callable[..., ResNet]:
    """The paper's CIFAR net of `depth` = 6n + 2 layers: n blocks each of 16, 32, 64 channels."""

    def network(
        channels: Count = 3, classes: Count = 10, width: Width = 1.0, dropout: Dropout = 0.0
    ) -> ResNet:
        widths = [scaled(count, width) for count in (16, 32, 64)]
        stem = nn.Sequential(*_convolution(channels, widths[0], kernel=3, stride=1))
        return ResNet(stem, widths, (depth - 2) // 6, classes, shortcut, dropout)

    return network


def imagenet_net18(
    channels: Count = 3, classes: Count = 1000, width: Width = 1.0, dropout: Dropout = 0.0
) -> ResNet:
    """The paper's 18 layers: two blocks of 64, 128, 256 and 512 channels, option B."""
    widths = [scaled(count, width) for count in (64, 128, 256, 512)]
    convolution = _convolution(channels, widths[0], kernel=7, stride=2)
    stem = nn.Sequential(*convolution, nn.MaxPool2d(3, stride=2, padding=1))
    return ResNet(stem, widths, 2, classes, "project", dropout)


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


def served(network: nn.Module) -> ImageClassifier:
    return ImageClassifier(network, pad=0)


def cifar_signature(
    image: Count = 32, channels: Count = 3, classes: Count = 10, max_batch: Count = 64
) -> Signature:
    return image_classes(channels, image, classes, max_batch)


def imagenet_signature(
    image: Count = 224, channels: Count = 3, classes: Count = 1000, max_batch: Count = 16
) -> Signature:
    return image_classes(channels, image, classes, max_batch)


def _on_digits(embedded: float, full: float) -> dict[str, dict[str, Any]]:
    """Presets: grey digits of 28x28 and, on either data, a share of the channels."""
    grey = {"image": 28, "channels": 1, "classes": 10}
    return {"embedded": grey | {"width": embedded}, "full": grey | {"width": full}}


def _training(embedded: int, full: int, rate: float) -> dict[str, Training]:
    """Momentum at a rate that rises and falls, for that many epochs on either data."""
    small = Training(
        epochs=embedded, batch_size=32, optimizer="momentum", learning_rate=rate,
        schedule="one-cycle", weight_decay=1e-4,
    )  # fmt: skip
    # deviation: shifts of 2 pixels, no flips, which make other digits
    large = small.model_copy(update={"epochs": full, "batch_size": 128, "shift": 0.07})
    return {"embedded": small, "full": large}


RESNET20 = Recipe(
    name="resnet20",
    kind="classification",
    title="Residual net of 20 layers, option A",
    paper="He, Zhang, Ren, Sun 2016, Deep residual learning for image recognition",
    network=cifar_net(20, "pad"),
    served=served,
    signature=cifar_signature,
    data=digits_at(image=32, channels=3),
    presets=_on_digits(embedded=0.5, full=1.0),  # deviation: 28x28, grey, perhaps narrower
    loss=classification_loss,
    evaluate=classification,
    metric="accuracy",
    floor={"embedded": 0.95, "full": 0.993},
    # deviation: one cycle of a few epochs, not 160 with steps
    training=_training(embedded=8, full=5, rate=0.1),
    codec=digit_codec,
    prepare=standardise,  # deviation: one mean and deviation of all pixels
    deviations=(
        "on digits: 28x28 grey pixels, and on the embedded ones fewer channels",
        "one cycle of the rate over a few epochs instead of steps over 160",
        "shifts of 2 pixels where data is large, no flips",
        "one mean and deviation of all pixels, not a mean of each",
    ),
)

PLAIN20 = replace(
    RESNET20,
    name="plain20",
    title="Plain net of 20 layers: resnet20 without its shortcuts",
    network=cifar_net(20, "none"),
    presets=_on_digits(embedded=0.5, full=0.5),
    floor={"embedded": 0.90, "full": 0.98},
)

RESNET56 = replace(
    RESNET20,
    name="resnet56",
    title="Residual net of 56 layers, option A",
    network=cifar_net(56, "pad"),
    presets=_on_digits(embedded=0.25, full=0.5),
    floor={"embedded": 0.95, "full": 0.99},
    training=_training(embedded=12, full=4, rate=0.1),
)

PLAIN56 = replace(
    RESNET56,
    name="plain56",
    title="Plain net of 56 layers: resnet56 without its shortcuts",
    network=cifar_net(56, "none"),
    # A plain net this deep trains badly, which is what it is here to show.
    floor={"embedded": 0.40, "full": 0.90},
    training=_training(embedded=10, full=4, rate=0.05),
)

RESNET18 = replace(
    RESNET20,
    name="resnet18",
    title="Residual net of 18 layers for ImageNet, option B",
    network=imagenet_net18,
    signature=imagenet_signature,
    data=digits_at(image=224, channels=3),
    presets=_on_digits(embedded=0.25, full=0.25),
    floor={"embedded": 0.95, "full": 0.985},
    training=_training(embedded=8, full=4, rate=0.05),
)
