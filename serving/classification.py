"""The BentoML service of classifiers: `bentoml serve serving.classification:Classification`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from models.errors import BadInput, RequestError
from models.signature import Arrays
from serving.front import FrontedService
from serving.images import read_image
from serving.inference_messages import parse_json
from serving.inference_rest import failed, inference_routes, json_response
from serving.predictor import Model, Models
from serving.runtime import Runtime, check_deployment
from serving.settings import read_settings
from serving.tensors import check_outputs, find_input, from_json

KIND = "classification"


def _folder() -> Path:
    """Where BentoML imported this service: inside a built Bento, the bundle."""
    return Path(Classification.working_dir)


def _served() -> Models:
    """The models of the service instance that BentoML made in this process."""
    return bentoml.get_current_service().runtime.models


def _describe_inputs(schema: dict[str, Any]) -> None:
    """Put the served models' own inputs into the OpenAPI schema, where a service is running."""
    try:
        models = list(_served())
    except bentoml.exceptions.BentoMLException:
        return  # a Bento is being built
    wanted = [m.signature.json_schema() | {"title": m.name} for m in models]
    schema.pop("additionalProperties")
    schema.update(wanted[0] if len(wanted) == 1 else {"oneOf": wanted})


class PredictRequest(bentoml.IODescriptor):
    """Arrays as JSON: each input's name, and its values as nested lists."""

    model: str | None = Field(None, description="which model; needed when several are served")
    inputs: dict[str, Any] = Field({}, json_schema_extra=_describe_inputs)
    outputs: list[str] = Field([], description="outputs to answer as arrays, beside the classes")

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> PredictRequest:
        # A refusal raised here would be answered in another format: `predict` raises it.
        try:
            return cls.model_construct(**_read_request(await request.body()))
        except RequestError as error:
            return cls.model_construct(inputs=error)


class ImageRequest(bentoml.IODescriptor):
    """A PNG or JPEG file in a multipart form."""

    image: Path = Field(description="the PNG or JPEG file itself; never an address to fetch")
    model: str | None = Field(None, description="which model; needed when several are served")
    invert: bool = Field(False, description="for dark drawings on light ground")

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> ImageRequest:
        # BentoML's own form reading would download an image that is given as an address.
        try:
            return cls.model_construct(**await _read_form(request))
        except RequestError as error:
            return cls.model_construct(image=error)


class Prediction(BaseModel):
    """What the model says of one row."""

    model_config = ConfigDict(populate_by_name=True)

    label: str = Field(alias="class", description="the most probable class")
    probability: float
    probabilities: dict[str, float] = Field(description="of every class, by its name")


class PredictResponse(bentoml.IODescriptor):
    """One prediction a row; `outputs` holds arrays that were asked for, or all without classes."""

    model: str
    version: str
    predictions: list[Prediction] = Field([], description="empty for a model without classes")
    outputs: dict[str, list[Any]] = Field({}, description="nested lists by output name")


_SETTINGS = read_settings(os.environ, Path())


@bentoml.service(
    name="Classification",
    workers=_SETTINGS.workers,
    # BentoML would listen on every interface. It takes text for an address, unlike its type.
    http={"host": _SETTINGS.host},  # pyright: ignore[reportArgumentType]
    service_class=FrontedService,
)
@bentoml.asgi_app(Starlette(routes=inference_routes(_served)), path="/")
class Classification:
    """Classifiers over REST with JSON and pictures, and over the Open Inference Protocol.

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
        outputs: list[str] | None = None,
    ) -> Response:
        """Classify rows given as nested lists."""

        async def answer() -> Response:
            if isinstance(inputs, RequestError):
                raise inputs
            chosen = self.runtime.models.get(model)
            check_outputs(chosen.signature, outputs or [])
            arrays = {
                n: from_json(find_input(chosen.signature, n), v) for n, v in (inputs or {}).items()
            }
            return _respond(chosen, await chosen.predict(arrays), outputs or [])

        return await _answered(answer())

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
            pixels = await asyncio.to_thread(read_image, image, wanted, invert=invert)
            return _respond(chosen, await chosen.predict({wanted.name: pixels}), [])

        return await _answered(answer())


async def _answered(answer: Coroutine[Any, Any, Response]) -> Response:
    try:
        return await answer
    except Exception as error:
        return failed(error)


def _respond(model: Model, arrays: Arrays, wanted: list[str]) -> Response:
    """A `PredictResponse` as bytes, without building the model for every row."""
    scores = model.codec.scores
    answer: dict[str, Any] = {"model": model.name, "version": model.version, "predictions": []}
    if scores is not None:
        rows = arrays[scores].reshape(-1, len(model.codec.classes))
        answer["predictions"] = [_prediction(model.codec.classes, row) for row in rows]
    names = wanted or ([] if scores is not None else list(arrays))
    answer["outputs"] = {name: np.ascontiguousarray(arrays[name]) for name in names}
    return json_response(answer)


def _prediction(classes: tuple[str, ...], row: np.ndarray) -> dict[str, Any]:
    best = int(row.argmax())
    return {
        "class": classes[best],
        "probability": row[best],
        "probabilities": dict(zip(classes, row, strict=True)),
    }


def _read_request(body: bytes) -> dict[str, Any]:
    """The fields of a `PredictRequest`; values of inputs are the signature's to check."""
    if not body:
        raise BadInput("the body is empty", expected='{"inputs": {NAME: nested lists}}')
    fields = parse_json(body)
    for name in fields.keys() - PredictRequest.model_fields.keys():
        raise BadInput(
            f"field {name!r} is unknown", expected=", ".join(map(repr, PredictRequest.model_fields))
        )
    checks = {
        "model": lambda value: value is None or isinstance(value, str),
        "inputs": lambda value: isinstance(value, dict),
        "outputs": lambda value: (
            isinstance(value, list) and all(isinstance(name, str) for name in value)
        ),
    }
    expected = {"model": "a string", "inputs": "an object", "outputs": "a list of names"}
    for name, value in fields.items():
        if not checks[name](value):
            raise BadInput(
                f"field {name!r} is of a wrong type",
                got=type(value).__name__,
                expected=expected[name],
            )
    return fields


async def _read_form(request: Request) -> dict[str, Any]:
    """The fields of an `ImageRequest`, with the uploaded bytes for `image`."""
    wanted = "multipart/form-data with a file 'image'"
    kind = request.headers.get("content-type", "")
    if not kind.startswith("multipart/form-data"):
        raise BadInput("the body is not a form", got=repr(kind), expected=wanted)
    try:
        async with request.form(max_files=1, max_fields=4) as form:
            unknown = form.keys() - ImageRequest.model_fields.keys()
            image = form.get("image")
            if unknown or not isinstance(image, UploadFile):
                got = "text" if isinstance(image, str) else ", ".join(map(repr, form)) or "nothing"
                raise BadInput("the form does not fit", got=got, expected=wanted)
            fields: dict[str, Any] = {"image": await image.read()}
            if "model" in form:
                # BentoML's own client writes text as JSON, in quotes that no name has.
                fields["model"] = str(form["model"]).strip('"')
            if "invert" in form:
                fields["invert"] = _flag(form["invert"])
            return fields
    except HTTPException as error:
        raise BadInput("the form cannot be read", got=error.detail, expected=wanted) from error


def _flag(value: object) -> bool:
    flags = {"true": True, "1": True, "false": False, "0": False}
    if not isinstance(value, str) or value.lower() not in flags:
        raise BadInput(
            "field 'invert' is of a wrong type", got=repr(value), expected="true or false"
        )
    return flags[value.lower()]
