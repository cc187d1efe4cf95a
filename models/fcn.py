"""FCN-8s: VGG-16 made fully convolutional, its scores enlarged and added to finer ones."""

from __future__ import annotations

from typing import Annotated, Literal

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

CONVOLUTIONS = (2, 2, 3, 3, 3)  # of VGG-16, before each of its poolings
SKIPS = 2  # poolings before the last whose scores are added

Stages = Annotated[int, Field(ge=SKIPS + 1, le=len(CONVOLUTIONS))]
Kernel = Literal[1, 3, 5, 7]


class FCN(nn.Module):
    """[batch, channels, height, width] to logits of that size, both sides multiples of 2^stages.

    VGG-16's first `stages` stages, its dense layers as convolutions, and class scores of the last
    three poolings, each enlarged and added to the next finer. Batch norm, where it is asked for,
    stands after each convolution of the stages, dropout after both dense layers.
    """

    def __init__(
        self,
        channels: Count = 3,
        classes: Count = 21,
        width: Count = 64,
        stages: Stages = 5,
        dense: Count = 4096,
        kernel: Kernel = 7,
        batchnorm: bool = False,
        dropout: Dropout = 0.5,
    ) -> None:
        super().__init__()
        widths = [min(width << stage, 8 * width) for stage in range(stages)]
        self.stages = nn.ModuleList(
            stage(before, after, count, batchnorm)
            for before, after, count in zip(
                [channels, *widths], widths, CONVOLUTIONS[:stages], strict=False
            )
        )
        self.dense = nn.Sequential(
            # deviation: padded here, where the paper pads the picture by 100 zeros
            nn.Conv2d(widths[-1], dense, kernel, padding=kernel // 2),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(dense, dense, 1),
            nn.ReLU(),
            nn.Dropout(dropout),
        )
        self.scores = nn.ModuleList(
            nn.Conv2d(before, classes, 1) for before in (dense, *widths[-2 : -2 - SKIPS : -1])
        )
        self.enlarge = nn.ModuleList(enlargement(classes, 2) for _ in range(SKIPS))
        self.enlarge_last = enlargement(classes, 2 ** (stages - SKIPS))
        self.enlarge_last.requires_grad_(False)  # fixed, as in the paper
        for module in [*self.stages.modules(), *self.dense.modules()]:
            if isinstance(module, nn.Conv2d):  # deviation: drawn by chance, not learned on ImageNet
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        for score in self.scores.children():  # zeros, as in the paper
            for parameter in score.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        pooled = []
        for convolutions in self.stages:
            x = convolutions(x)
            pooled.append(x)
        first, *finer = self.scores
        scores = first(self.dense(pooled.pop()))
        for enlarge, score in zip(self.enlarge, finer, strict=True):
            scores = enlarge(scores) + score(pooled.pop())
        return self.enlarge_last(scores)


def stage(before: int, after: int, count: int, batchnorm: bool) -> nn.Sequential:
    """So many 3x3 convolutions with ReLU, then pooling to half."""
    layers: list[nn.Module] = []
    for place in range(count):
        layers.append(nn.Conv2d(after if place else before, after, 3, padding=1))
        if batchnorm:
            layers.append(nn.BatchNorm2d(after))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.MaxPool2d(2))


def enlargement(classes: int, factor: int) -> nn.ConvTranspose2d:
    """Bilinear interpolation to `factor` times the size, each class by itself, to be learned on."""
    layer = nn.ConvTranspose2d(
        classes, classes, 2 * factor, stride=factor, padding=factor // 2, bias=False
    )
    tent = 1 - (torch.arange(2 * factor) + 0.5 - factor).abs() / factor
    with torch.no_grad():
        layer.weight.copy_(torch.eye(classes)[:, :, None, None] * tent[:, None] * tent)
    return layer


def fcn_margin(stages: int, kernel: int) -> int:
    """How far a pixel of the answer sees, at most; with a cell of n = 2^stages pixels a side.

    The enlargements reach 7n/8 beyond a pixel, rounded to cells; the first dense layer sees
    kernel // 2 cells to each side, and each convolution one of its pixels.
    """
    cell = 2**stages
    seen = sum(count << place for place, count in enumerate(CONVOLUTIONS[:stages]))
    return 7 * cell // 8 - 1 + cell * (1 + kernel // 2) + seen


def served(network: nn.Module, stages: Stages = 5) -> Segmenter:
    return Segmenter(network, multiple=2**stages)


def signature(
    channels: Count = 3,
    classes: Count = 21,
    smallest: Count = 32,
    usual: Count = 96,
    largest: Count = 640,
    max_batch: Count = 4,
) -> Signature:
    return segmentation_signature(channels, classes, smallest, usual, largest, max_batch)


def codec(dataset: Dataset, stages: Stages = 5, kernel: Kernel = 7) -> Codec:
    return segmentation_codec(dataset, margin=fcn_margin(stages, kernel), multiple=2**stages)


# deviation: three stages, narrow, with batch norm
_SMALL = {
    "channels": 1,
    "width": 16,
    "stages": 3,
    "dense": 64,
    "kernel": 3,
    "batchnorm": True,
    "dropout": 0.1,
}

FCN8S = Recipe(
    name="fcn",
    kind="segmentation",
    title="FCN-8s on VGG-16",
    paper="Long, Shelhamer, Darrell 2015, Fully convolutional networks for semantic segmentation",
    network=FCN,
    served=served,
    signature=signature,
    data={"embedded": cells, "full": membranes},  # deviation: not PASCAL VOC
    loss=segmentation_loss,
    per_row=picture_counts,
    evaluate=segmentation,
    metric="mean_iou",
    floor={"embedded": 0.75, "full": 0.70},
    training={  # deviation: Adam, not momentum 0.9 on one picture at a time
        "embedded": Training(
            epochs=12, batch_size=8, learning_rate=4e-3, schedule="one-cycle", flip=True
        ),
        "full": Training(
            epochs=20,
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
    presets={
        "embedded": _SMALL | {"classes": 3, "largest": 128},
        "full": _SMALL | {"classes": 2, "largest": 256},
    },
    codec=codec,
    prepare=standardise,
    baseline=pixel_baseline,
    deviations=(
        "the picture is mirrored to a whole number of cells and the first dense layer padded; no "
        "border of 100 zeros",
        "initial weights are drawn by chance, not learned on ImageNet",
        "cells or membranes instead of PASCAL VOC",
        "Adam with a one-cycle rate instead of momentum 0.9 on one picture at a time",
        "on the data here three stages from 16 channels on, 64 dense units of 3x3, batch norm",
    ),
)
