"""The BentoML service of segmenting models: `serving.segmentation:Segmentation`."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import bentoml
from starlette.responses import Response

from models.errors import RequestError
from serving.fields import answered
from serving.front import FrontedService
from serving.images import open_picture, pixels
from serving.overlays import overlay, paint, png
from serving.pixels import segment, tiled_input
from serving.runtime import Runtime, check_deployment
from serving.segment_messages import (
    LARGEST_SEGMENTED,
    OPACITY,
    SegmentedPicture,
    SegmentImageRequest,
    SegmentRequest,
    SegmentResponse,
    read_picture,
    respond,
    wanted_classes,
)
from serving.settings import read_settings

KIND = "segmentation"


def _folder() -> Path:
    """Where BentoML imported this service: inside a built Bento, the bundle."""
    return Path(Segmentation.working_dir)


_SETTINGS = read_settings(os.environ, Path())


@bentoml.service(
    name="Segmentation",
    workers=_SETTINGS.workers,
    # BentoML would listen on every interface. It takes text for an address, unlike its type.
    http={"host": _SETTINGS.host},  # pyright: ignore[reportArgumentType]
    service_class=FrontedService,
)
class Segmentation:
    """Segmenting models over REST with JSON and pictures, and over the Open Inference Protocol.

    Pictures may be of any size. The protocol, which takes single tiles, is served under `/v2`, and
    over gRPC beside this server.
    """

    def __init__(self) -> None:
        self.runtime = Runtime(KIND, _folder())

    @bentoml.on_deployment
    @staticmethod
    def check() -> None:
        check_deployment(KIND, _folder())

    @bentoml.on_startup
    async def start(self) -> None:
        await self.runtime.start()

    @bentoml.on_shutdown
    async def stop(self) -> None:
        await self.runtime.stop()

    @bentoml.api(route="/segment", input_spec=SegmentRequest, output_spec=SegmentResponse)
    async def segment(
        self,
        image: list[list[list[float]]] | RequestError | None = None,
        model: str | None = None,
        probabilities: bool | list[str] = False,
    ) -> Response:
        """Name the class of every pixel of a picture given as nested lists."""

        async def answer() -> Response:
            if isinstance(image, RequestError):
                raise image
            chosen = self.runtime.models.get(model)
            picture = await asyncio.to_thread(read_picture, chosen, image)
            wanted = wanted_classes(chosen.codec, probabilities, *picture.shape[1:])
            found = await segment(chosen, picture, wanted)
            return await asyncio.to_thread(respond, chosen, found, wanted)

        return await answered(answer())

    @bentoml.api(
        route="/segment_image", input_spec=SegmentImageRequest, output_spec=SegmentedPicture
    )
    async def segment_image(
        self,
        image: bytes | RequestError,
        model: str | None = None,
        answer: str = "overlay",
        opacity: float = OPACITY,
        probabilities: bool | list[str] | None = None,
    ) -> Response:
        """Name the class of every pixel of an uploaded PNG or JPEG, which is never resized."""

        async def say() -> Response:
            if isinstance(image, RequestError):
                raise image
            chosen = self.runtime.models.get(model)
            channels, codec = tiled_input(chosen).channels, chosen.codec
            largest = min(LARGEST_SEGMENTED, chosen.largest_pixels)
            picture = await asyncio.to_thread(open_picture, image, largest=largest)
            wanted = wanted_classes(codec, probabilities, picture.height, picture.width)
            array = await asyncio.to_thread(pixels, picture, channels)
            found = await segment(chosen, array, wanted)
            if answer == "json":
                return await asyncio.to_thread(respond, chosen, found, wanted)
            return await asyncio.to_thread(
                lambda: png(
                    paint(codec, found.classes)
                    if answer == "map"
                    else overlay(codec, found.classes, picture, opacity)
                )
            )

        return await answered(say())
