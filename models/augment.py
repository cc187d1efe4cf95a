"""Augmentation: the pictures of a batch moved, mirrored, bent and made noisy, each by chance.

The random numbers come from torch's current generator.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from models.recipe import Training

Amount = Tensor | float  # one for all pictures, or one for each [batch]


def augment(images: Tensor, settings: Training) -> Tensor:
    """Pictures [batch, channels, height, width], each changed by chance.

    Rotated by up to `rotate` degrees either way, scaled by 1 - `scale` to 1 + `scale`, shifted by
    up to `shift` of the side along each axis, all uniform; with `flip` half of them are mirrored
    along each axis. `elastic` is the standard deviation, in pixels, of the displacements of a grid
    of 3x3 points, between which they are interpolated (Ronneberger 2015). Bilinear; what comes in
    from outside is 0. `crop` is for pictures with maps.
    """
    if not _moves(settings):
        return images
    return _sample(images, _draw_grid(images, settings), "bilinear", "zeros")


def augment_maps(
    images: Tensor, maps: Tensor, settings: Training, bent: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Pictures and their maps of classes int64 [batch, height, width], moved together.

    As `augment`, but what comes in from outside is mirrored, and a random square of side `crop`
    is cut out of each picture; of one that is smaller, all. Maps take the nearest pixel. A
    share of 1 - `bent` of the pictures is mirrored and cut only: what is bent or turned lies
    between pixels and loses its grain, which a net has to see as well.
    """
    if not (_moves(settings) or settings.crop):
        return images, maps
    grid = _draw_grid(images, settings, settings.crop, bent)
    moved = _sample(maps[:, None].to(images), grid, "nearest", "reflection")
    return _sample(images, grid, "bilinear", "reflection"), moved[:, 0].to(maps)


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
    matrix = _matrix(images, degrees, shift_x, shift_y, scale)
    return _sample(images, _centres(images) @ matrix, "bilinear", "zeros")


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


def _moves(settings: Training) -> bool:
    return bool(
        settings.rotate or settings.shift or settings.scale or settings.flip or settings.elastic
    )


def _draw_grid(images: Tensor, settings: Training, crop: int = 0, bent: float = 1.0) -> Tensor:
    """For each pixel of the answer its place in the source, [batch, height, width, 2].

    Places are x and y in -1..1 from edge to edge. With `crop` the pixels are those of a square. A
    share of 1 - `bent` of the pictures is mirrored and cut only.
    """
    count = len(images)
    chosen = torch.rand(count) < bent if bent < 1 else torch.ones(count)
    moved = chosen.to(images)
    turn, across, down, size = moved * (torch.rand(4, count).to(images) * 2 - 1)
    matrix = _matrix(
        images,
        degrees=turn * settings.rotate,
        shift_x=across * settings.shift,
        shift_y=down * settings.shift,
        scale=1 + size * settings.scale,
    )
    if settings.flip:
        signs = torch.cat([torch.randint(0, 2, (count, 2)) * 2 - 1, torch.ones(count, 1)], 1)
        matrix = matrix * signs.to(images)[:, None, :, None]
    places = _centres(images, crop)
    grid = places @ matrix
    if settings.elastic:
        height, width = images.shape[2:]
        coarse = settings.elastic * torch.randn(count, 2, 3, 3).to(images)
        coarse = coarse * moved[:, None, None, None]
        fine = functional.grid_sample(
            coarse, places[..., :2], mode="bicubic", padding_mode="border", align_corners=True
        )
        grid = grid + fine.permute(0, 2, 3, 1) * torch.tensor([2 / width, 2 / height]).to(images)
    return grid


def _centres(images: Tensor, crop: int = 0) -> Tensor:
    """x, y and 1 of the pixels of each picture, or of a square drawn from it, [batch, h, w, 3]."""
    count = len(images)
    places = []
    for whole in images.shape[2:]:
        side = min(crop or whole, whole)
        first = torch.randint(0, whole - side + 1, (count, 1)) if side < whole else 0
        place = (torch.arange(side) + first + 0.5) * 2 / whole - 1
        places.append(place.to(images).expand(count, side))
    y, x = places
    y, x = torch.broadcast_tensors(y[:, :, None], x[:, None, :])
    return torch.stack([x, y, torch.ones_like(x)], 3)


def _matrix(
    images: Tensor, degrees: Amount, shift_x: Amount, shift_y: Amount, scale: Amount
) -> Tensor:
    """From x, y and 1 of the answer to x and y of the source, as [batch, 1, 3, 2]."""
    count, _, height, width = images.shape
    degrees, shift_x, shift_y, scale = (
        torch.as_tensor(amount, dtype=images.dtype, device=images.device).expand(count)
        for amount in (degrees, shift_x, shift_y, scale)
    )
    cos, sin = torch.cos(degrees.deg2rad()) / scale, torch.sin(degrees.deg2rad()) / scale
    # Both places in -1..1 from edge to edge, where an axis counts its own half side. 2 is the
    # whole side.
    x, y = -2 * shift_x, -2 * shift_y
    shape = height / width
    return torch.stack(
        [
            torch.stack([cos, sin / shape], 1),
            torch.stack([-sin * shape, cos], 1),
            torch.stack([cos * x - sin * shape * y, sin / shape * x + cos * y], 1),
        ],
        1,
    )[:, None]


def _sample(images: Tensor, grid: Tensor, mode: str, outside: str) -> Tensor:
    return functional.grid_sample(
        images, grid, mode=mode, padding_mode=outside, align_corners=False
    )
