"""Augmentation: the pictures of a batch rotated, scaled, shifted and made noisy, each by chance.

The random numbers come from torch's current generator.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from models.recipe import Training

Amount = Tensor | float  # one for all pictures, or one for each [batch]


def augment(images: Tensor, settings: Training) -> Tensor:
    """Pictures [batch, channels, height, width], each changed by uniform amounts.

    Rotated by up to `rotate` degrees either way, scaled by 1 - `scale` to 1 + `scale`, shifted by
    up to `shift` of the side along each axis; what comes in from outside is 0.
    """
    if not (settings.rotate or settings.shift or settings.scale):
        return images
    turn, across, down, size = torch.rand(4, len(images)).to(images) * 2 - 1
    return affine(
        images,
        degrees=turn * settings.rotate,
        shift_x=across * settings.shift,
        shift_y=down * settings.shift,
        scale=1 + size * settings.scale,
    )


def affine(
    images: Tensor,
    *,
    degrees: Amount = 0.0,
    shift_x: Amount = 0.0,
    shift_y: Amount = 0.0,
    scale: Amount = 1.0,
) -> Tensor:
    """Pictures scaled, turned counter-clockwise about their centre, then moved right and down.

    Shifts are shares of width and height. Bilinear; what comes in from outside is 0.
    """
    count, _, height, width = images.shape
    degrees, shift_x, shift_y, scale = (
        torch.as_tensor(amount, dtype=images.dtype, device=images.device).expand(count)
        for amount in (degrees, shift_x, shift_y, scale)
    )
    cos, sin = torch.cos(degrees.deg2rad()) / scale, torch.sin(degrees.deg2rad()) / scale
    # For each pixel of the answer its place in the source, both in -1..1 from edge to edge, where
    # an axis counts its own half side. 2 is the whole side.
    x, y = -2 * shift_x, -2 * shift_y
    shape = height / width
    matrix = torch.stack(
        [
            torch.stack([cos, -sin * shape, cos * x - sin * shape * y], 1),
            torch.stack([sin / shape, cos, sin / shape * x + cos * y], 1),
        ],
        1,
    )
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def draw_noise(values: Tensor, settings: Training) -> Tensor:
    """Values [batch, ...] with normal noise, whose deviation each row draws from 0 to `noise`.

    A fixed deviation would never show the net a clean row.
    """
    if not settings.noise:
        return values
    return add_noise(values, settings.noise * torch.rand(len(values)))


def add_noise(values: Tensor, deviation: Amount) -> Tensor:
    """Values [batch, ...] with normal noise of that standard deviation."""
    each = torch.as_tensor(deviation).expand(len(values)).reshape(-1, *[1] * (values.ndim - 1))
    return values + (each * torch.randn(values.shape)).to(values)
