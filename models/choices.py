"""Settings that many nets share: bounds of sizes, activations and poolings by name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import nn

Count = Annotated[int, Field(ge=1, le=65_536)]  # of channels, classes, units, rows, pixels a side
Width = Annotated[float, Field(gt=0, le=8)]  # the share of the published channels that are kept
Dropout = Annotated[float, Field(ge=0, lt=1)]  # the share of units that are set to 0 in training

Activation = Literal["sigmoid", "tanh", "relu"]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
}

Pooling = Literal["max", "average"]
POOLINGS: dict[Pooling, type[nn.MaxPool2d] | type[nn.AvgPool2d]] = {
    "max": nn.MaxPool2d,
    "average": nn.AvgPool2d,
}


def scaled(count: int, width: float, groups: int = 1) -> int:
    """That share of a layer's `count` channels, a multiple of `groups` and never none."""
    return groups * max(1, round(count * width / groups))
