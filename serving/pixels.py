"""The class of every pixel of a picture of any size: a model asked tile by tile."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.codec import TiledImage
from models.errors import BadInput
from serving.model import Model
from serving.tensors import check_finite
from serving.tiles import Tile, group_tiles, mirror, picture_axes, plan_tiles

# One group is answered by the engine while another is cut or stitched.
_AT_ONCE = 2


@dataclass(frozen=True, eq=False)
class Segmented:
    """The most probable class uint8 [height, width], and float32 [wanted, height, width]."""

    classes: np.ndarray
    probabilities: np.ndarray


def tiled_input(model: Model) -> TiledImage:
    """How the model reads pictures. Raises `BadInput` when it does not."""
    if model.codec.tiled is None or model.codec.pixels is None:
        raise BadInput(f"model {model.name!r} takes no picture", expected="POST /v2/models/...")
    return model.codec.tiled


async def segment(model: Model, picture: np.ndarray, wanted: Sequence[int] = ()) -> Segmented:
    """The classes of a picture, uint8 or in [0, 1], and the probabilities of the wanted ones.

    `picture` is [channels, height, width]. What fits the engine is asked whole, what is larger in
    tiles, and what is smaller is mirrored. Raises what `Model.predict` does, and `BadInput` when
    an answer is not finite.
    """
    tiled, output = tiled_input(model), str(model.codec.pixels)
    spec, batch = model.signature.input(tiled.name), model.signature.batch
    axes = picture_axes(spec)
    _, height, width = picture.shape
    picture = mirror(picture, axes)
    _, tall, wide = picture.shape
    classes = np.empty((tall, wide), np.uint8)
    probabilities = np.empty((len(wanted), tall, wide), np.float32)

    def cut(tiles: list[Tile]) -> np.ndarray:
        rows = np.stack([tile.cut(picture) for tile in tiles])
        scale = 255 if rows.dtype == np.uint8 else 1
        return np.divide(rows, scale, dtype=spec.dtype)

    def stitch(tiles: list[Tile], answers: np.ndarray) -> None:
        check_finite(output, answers)
        for tile, answer in zip(tiles, answers, strict=True):
            tile.stitch(classes, answer.argmax(0))
            tile.stitch(probabilities, answer[list(wanted)])

    async def work() -> None:
        for tiles in groups:
            rows = await asyncio.to_thread(cut, tiles)
            answers = await model.predict({tiled.name: rows})
            await asyncio.to_thread(stitch, tiles, answers[output])

    groups = group_tiles(plan_tiles(tall, wide, axes, tiled), batch.max if batch else 1)
    try:
        async with asyncio.TaskGroup() as together:
            for _ in range(_AT_ONCE):
                together.create_task(work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return Segmented(classes[:height, :width], probabilities[:, :height, :width])
