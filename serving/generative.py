"""The BentoML service of models that draw pictures: `serving.generative:Generative`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import bentoml
from starlette.responses import Response

from serving import picture_answers as answers
from serving.fields import answered
from serving.front import FrontedService
from serving.picture_messages import (
    DecodeRequest,
    EncodeRequest,
    EncodeUpload,
    ReconstructRequest,
    ReconstructUpload,
    SampleRequest,
    TraverseRequest,
    TraverseUpload,
)
from serving.picture_responses import (
    AnomalyResponse,
    EncodeResponse,
    PicturesResponse,
    ReconstructResponse,
    TraverseResponse,
)
from serving.runtime import Runtime, check_deployment
from serving.settings import read_settings

KIND = "generative"


def _folder() -> Path:
    """Where BentoML imported this service: inside a built Bento, the bundle."""
    return Path(Generative.working_dir)


_SETTINGS = read_settings(os.environ, Path())


@bentoml.service(
    name="Generative",
    workers=_SETTINGS.workers,
    # BentoML would listen on every interface. It takes text for an address, unlike its type.
    http={"host": _SETTINGS.host},  # pyright: ignore[reportArgumentType]
    service_class=FrontedService,
)
class Generative:
    """Models that draw, encode and judge pictures, as nested lists, uploads and PNG grids.

    The same seed gives the same picture, to the bit, whatever else is asked. A route that a model
    cannot answer says which it can. The Open Inference Protocol is served under `/v2`, and over
    gRPC beside this server, for the whole as NAME and for its parts as NAME.PART.
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

    @bentoml.api(route="/sample", input_spec=SampleRequest, output_spec=PicturesResponse)
    async def sample(self, **fields: Any) -> Response:
        """Draw pictures by a seed."""
        return await answered(answers.sample(self.runtime.models, fields))

    @bentoml.api(route="/encode", input_spec=EncodeRequest, output_spec=EncodeResponse)
    async def encode(self, **fields: Any) -> Response:
        """Turn pictures into their codes."""
        return await answered(answers.encode(self.runtime.models, fields))

    @bentoml.api(route="/encode_image", input_spec=EncodeUpload, output_spec=EncodeResponse)
    async def encode_image(self, **fields: Any) -> Response:
        """Turn uploaded pictures into their codes."""
        return await answered(answers.encode(self.runtime.models, fields))

    @bentoml.api(route="/decode", input_spec=DecodeRequest, output_spec=PicturesResponse)
    async def decode(self, **fields: Any) -> Response:
        """Turn codes into pictures."""
        return await answered(answers.decode(self.runtime.models, fields))

    @bentoml.api(
        route="/reconstruct", input_spec=ReconstructRequest, output_spec=ReconstructResponse
    )
    async def reconstruct(self, **fields: Any) -> Response:
        """Turn pictures into their codes and back."""
        return await answered(answers.reconstruct(self.runtime.models, fields))

    @bentoml.api(
        route="/reconstruct_image", input_spec=ReconstructUpload, output_spec=ReconstructResponse
    )
    async def reconstruct_image(self, **fields: Any) -> Response:
        """Turn uploaded pictures into their codes and back."""
        return await answered(answers.reconstruct(self.runtime.models, fields))

    @bentoml.api(route="/traverse", input_spec=TraverseRequest, output_spec=TraverseResponse)
    async def traverse(self, **fields: Any) -> Response:
        """Draw pictures of one code, of which one latent at a time takes every value in reach."""
        return await answered(answers.traverse(self.runtime.models, fields))

    @bentoml.api(route="/traverse_image", input_spec=TraverseUpload, output_spec=TraverseResponse)
    async def traverse_image(self, **fields: Any) -> Response:
        """Traverse the latents of an uploaded picture's code."""
        return await answered(answers.traverse(self.runtime.models, fields))

    @bentoml.api(route="/anomaly", input_spec=EncodeRequest, output_spec=AnomalyResponse)
    async def anomaly(self, **fields: Any) -> Response:
        """Tell pictures that are unlike all that the model has learned."""
        return await answered(answers.anomaly(self.runtime.models, fields))

    @bentoml.api(route="/anomaly_image", input_spec=EncodeUpload, output_spec=AnomalyResponse)
    async def anomaly_image(self, **fields: Any) -> Response:
        """Tell uploaded pictures that are unlike all that the model has learned."""
        return await answered(answers.anomaly(self.runtime.models, fields))
