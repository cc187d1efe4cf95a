"""What models of pictures and their codes share: tensors, sizes, and pictures to look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.signature import BATCH, Axis, TensorSpec

BLOCK = 8  # rows that an engine is asked at once, whatever is wanted
ROWS = Axis(BATCH, 1, BLOCK, 64)


def picture(name: str, channels: int, size: int) -> TensorSpec:
    """Square pictures [batch, channels, size, size] in [0, 1]."""
    return TensorSpec(name, "float32", (ROWS, channels, size, size), 0.0, 1.0)


def logits(channels: int, size: int) -> TensorSpec:
    """What a sigmoid makes pictures of."""
    return TensorSpec("logits", "float32", (ROWS, channels, size, size))


def normal(name: str, features: int) -> TensorSpec:
    """Vectors [batch, features] about normal with deviation 1."""
    return TensorSpec(name, "float32", (ROWS, features), -6.0, 6.0)


def grid(rows: Sequence[Tensor]) -> Tensor:
    """Rows of pictures [columns, channels, height, width] as one exhibit."""
    return torch.stack(list(rows))


def traverse(
    decode: Callable[[Tensor], Tensor], code: Tensor, *, reach: float = 3.0, steps: int = 9
) -> Tensor:
    """Pictures [features, steps, channels, height, width] of a code [features].

    Each row lets one feature go from -reach to reach while the others stay.
    """
    values = torch.linspace(-reach, reach, steps, device=code.device)
    codes = code.repeat(len(code), steps, 1)
    for feature in range(len(code)):
        codes[feature, :, feature] = values
    drawn = decode(codes.flatten(0, 1))
    return drawn.unflatten(0, (len(code), steps))
