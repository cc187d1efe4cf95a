"""U-Net: a contracting path, an expanding path, and a copy of the one beside the other."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from models.cells import cells
from models.choices import Count, Dropout
from models.codec import Codec
from models.datasets import Dataset
from models.membranes import membranes
from models.recipe import Recipe, Training
from models.segmentation_losses import segmentation_loss
from models.segmentation_metrics import picture_counts, segmentation
from models.segmented import (
    Segmenter,
    pixel_baseline,
    segmentation_codec,
    segmentation_signature,
)
from models.served import standardise
from models.signature import Signature

Depth = Annotated[int, Field(ge=1, le=6)]  # how often the picture is halved


class DoubleConvolution(nn.Sequential):
    """Two 3x3 convolutions with ReLU, each taking a pixel off every side unless `padded`."""

    def __init__(self, before: int, after: int, padded: bool, batchnorm: bool) -> None:
        layers: list[nn.Module] = []
        for channels in (before, after):
            layers.append(nn.Conv2d(channels, after, 3, padding=int(padded)))
            if batchnorm:
                layers.append(nn.BatchNorm2d(after))
            layers.append(nn.ReLU())
        super().__init__(*layers)


class UNet(nn.Module):
    """[batch, channels, n, n] to logits [batch, classes, m, m]: of 572 pixels a side 388.

    A side is 2^depth x + 4 (2^depth - 1) for a whole x, and loses 12 * 2^depth - 8 pixels; with
    `padded` it is a multiple of 2^depth and loses none. Batch norm, where it is asked for, stands
    after each 3x3 convolution, dropout at the end of the contracting path.
    """

    def __init__(
        self,
        channels: Count = 1,
        classes: Count = 2,
        width: Count = 64,
        depth: Depth = 4,
        padded: bool = False,
        batchnorm: bool = False,
        dropout: Dropout = 0.5,
    ) -> None:
        super().__init__()
        widths = [width << level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            DoubleConvolution(before, after, padded, batchnorm)
            for before, after in zip([channels, *widths], widths, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(dropout)
        self.enlarge = nn.ModuleList(
            nn.ConvTranspose2d(2 * after, after, 2, stride=2) for after in widths[-2::-1]
        )
        self.up = nn.ModuleList(
            DoubleConvolution(2 * after, after, padded, batchnorm) for after in widths[-2::-1]
        )
        self.output = nn.Conv2d(width, classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # as in the paper: N(0, sqrt(2 / inputs))
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        copies = []
        for level, convolutions in enumerate(self.down):
            x = convolutions(self.pool(x) if level else x)
            copies.append(x)
        x = self.dropout(copies.pop())
        for enlarge, convolutions in zip(self.enlarge, self.up, strict=True):
            x = enlarge(x)
            x = convolutions(torch.cat([crop(copies.pop(), x), x], dim=1))
        return self.output(x)


def crop(copy: Tensor, x: Tensor) -> Tensor:
    """The middle of a copy, as large as `x`; both [batch, channels, height, width]."""
    for axis in (2, 3):
        size = x.shape[axis]
        copy = copy.narrow(axis, (copy.shape[axis] - size) // 2, size)
    return copy


def unet_margin(depth: int) -> int:
    """How far a pixel of the answer sees, at most; with a cell of n = 2^depth pixels a side.

    On the expanding path its convolutions see 2 (n - 1) pixels, rounded to cells: from the pixel
    n - 3 of its cell these are 2 cells. At the bottom they see 2 more, and 2 (n - 1) pixels on the
    contracting path: n - 3 + 4n + 2 (n - 1) in all.
    """
    return 7 * 2**depth - 5


def served(network: nn.Module, depth: Depth = 4, padded: bool = False) -> Segmenter:
    cell = 2**depth
    if padded:
        return Segmenter(network, multiple=cell)
    return Segmenter(network, multiple=cell, border=6 * cell - 4, offset=4 * (cell - 1))


def signature(
    channels: Count = 1,
    classes: Count = 2,
    smallest: Count = 32,
    usual: Count = 96,
    largest: Count = 572,
    max_batch: Count = 4,
) -> Signature:
    return segmentation_signature(channels, classes, smallest, usual, largest, max_batch)


def codec(dataset: Dataset, depth: Depth = 4) -> Codec:
    return segmentation_codec(dataset, margin=unet_margin(depth), multiple=2**depth)


UNET = Recipe(
    name="unet",
    kind="segmentation",
    title="U-Net, valid convolutions, depth 4, 64 channels at the top",
    paper="Ronneberger, Fischer, Brox 2015, "
    "U-Net: convolutional networks for biomedical image segmentation",
    network=UNet,
    served=served,
    signature=signature,
    data={"embedded": cells, "full": membranes},
    loss=segmentation_loss,  # deviation: no weight map that stresses borders between touching cells
    per_row=picture_counts,
    evaluate=segmentation,
    metric="mean_iou",
    floor={"embedded": 0.80, "full": 0.78},
    training={  # deviation: Adam, not momentum 0.99 on one tile at a time
        "embedded": Training(
            epochs=12, batch_size=8, learning_rate=4e-3, schedule="one-cycle", flip=True
        ),
        "full": Training(
            epochs=40,
            batch_size=2,
            learning_rate=2e-3,
            schedule="one-cycle",
            rotate=20,
            flip=True,
            elastic=5,
            crop=192,
            repeat=5,
        ),
    },
    presets={  # deviation: padded, narrower, less deep, with batch norm
        "embedded": {
            "classes": 3,
            "width": 12,
            "depth": 3,
            "padded": True,
            "batchnorm": True,
            "dropout": 0.0,
            "largest": 160,
        },
        "full": {
            "width": 32,
            "depth": 3,
            "padded": True,
            "batchnorm": True,
            "dropout": 0.1,
            "loss": "both",
            "largest": 256,
        },
    },
    codec=codec,
    prepare=standardise,
    baseline=pixel_baseline,
    deviations=(
        "cross-entropy, on membranes with Dice, without the weight map that stresses borders "
        "between touching cells",
        "Adam with a one-cycle rate instead of momentum 0.99 on one large tile at a time",
        "on the data here convolutions keep the size (padded), depth 3, 12 or 32 channels at the "
        "top, batch norm",
    ),
)
