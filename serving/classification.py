"""The BentoML service of classifiers: `bentoml serve serving.classification:Classification`.

Models that answer one number per row are served by it too.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import bentoml
from starlette.responses import Response

from models.errors import BadInput, RequestError
from serving.fields import answered
from serving.front import FrontedService
from serving.images import read_image
from serving.predict_messages import (
    ImageRequest,
    PredictRequest,
    PredictResponse,
    read_arrays,
    read_text,
    respond,
)
from serving.runtime import Runtime, check_deployment
from serving.settings import read_settings
from serving.tensors import check_outputs

KIND = "classification"


def _folder() -> Path:
    """Where BentoML imported this service: inside a built Bento, the bundle."""
    return Path(Classification.working_dir)


_SETTINGS = read_settings(os.environ, Path())


@bentoml.service(
    name="Classification",
    workers=_SETTINGS.workers,
    # BentoML would listen on every interface. It takes text for an address, unlike its type.
    http={"host": _SETTINGS.host},  # pyright: ignore[reportArgumentType]
    service_class=FrontedService,
)
class Classification:
    """Classifiers over REST with JSON, text and pictures, and over the Open Inference Protocol.

    The protocol is served under `/v2`, and over gRPC beside this server.
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

    @bentoml.api(route="/predict", input_spec=PredictRequest, output_spec=PredictResponse)
    async def predict(
        self,
        model: str | None = None,
        inputs: dict[str, Any] | RequestError | None = None,
        text: str | list[str] | None = None,
        outputs: list[str] | None = None,
    ) -> Response:
        """Classify rows given as nested lists, or plain texts."""

        async def answer() -> Response:
            if isinstance(inputs, RequestError):
                raise inputs
            chosen = self.runtime.models.get(model)
            check_outputs(chosen.signature, outputs or [])
            if text is None:
                rows = read_arrays(chosen, inputs or {})
            else:  # long texts take a while, for which others are not to wait
                rows = await asyncio.to_thread(read_text, chosen, inputs or {}, text)
            return respond(chosen, await chosen.predict(rows), outputs or [])

        return await answered(answer())

    @bentoml.api(route="/predict_image", input_spec=ImageRequest, output_spec=PredictResponse)
    async def predict_image(
        self, image: bytes | RequestError, model: str | None = None, invert: bool = False
    ) -> Response:
        """Classify an uploaded PNG or JPEG, converted and resized as the model needs."""

        async def answer() -> Response:
            if isinstance(image, RequestError):
                raise image
            chosen = self.runtime.models.get(model)
            wanted = chosen.codec.image
            if wanted is None:
                raise BadInput(f"model {chosen.name!r} takes no picture", expected="POST /predict")
            pixels = await asyncio.to_thread(
                read_image, image, wanted, invert=invert, largest=chosen.largest_pixels
            )
            return respond(chosen, await chosen.predict({wanted.name: pixels}), [])

        return await answered(answer())
