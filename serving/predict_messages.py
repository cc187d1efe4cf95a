"""Requests and responses of `/predict` and `/predict_image`, typed and strictly read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bentoml
import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from models.codec import Codec
from models.errors import BadInput, RequestError
from models.signature import Arrays
from serving.fields import (
    MODEL,
    JsonField,
    as_flag,
    as_text,
    one_of,
    read_fields,
    read_form,
    served_models,
)
from serving.inference_rest import json_response
from serving.model import Model
from serving.tensors import check_finite, find_input, from_json
from serving.texts import read_texts

_JSON_FIELDS = {
    "model": MODEL,
    "inputs": JsonField("an object", lambda value: isinstance(value, dict)),
    "text": JsonField(
        "a string or a list of strings",
        lambda value: value is None or isinstance(value, str | list),
    ),
    "outputs": JsonField(
        "a list of names",
        lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    ),
}
_FORM_FIELDS = {"model": as_text, "invert": as_flag}
_EXAMPLE = '{"inputs": {NAME: nested lists}} or {"text": TEXT}'


def _describe_inputs(schema: dict[str, Any]) -> None:
    """Put the served models' own inputs into the OpenAPI schema, where a service is running."""
    try:
        models = list(served_models())
    except bentoml.exceptions.BentoMLException:
        return  # a Bento is being built
    wanted = [m.signature.json_schema() | {"title": m.name} for m in models]
    schema.pop("additionalProperties")
    schema.update(wanted[0] if len(wanted) == 1 else {"oneOf": wanted})


class PredictRequest(bentoml.IODescriptor):
    """Rows as JSON: each input's name with its values as nested lists, or plain texts instead."""

    model: str | None = Field(None, description="which model; needed when several are served")
    inputs: dict[str, Any] = Field({}, json_schema_extra=_describe_inputs)
    text: str | list[str] | None = Field(
        None,
        description="instead of `inputs`, for a model that reads text: one text, or one per row",
        examples=["You have won a prize! Call now", ["See you at six", "Free entry, text WIN"]],
        json_schema_extra=one_of,
    )
    outputs: list[str] = Field(
        [], description="outputs to answer as arrays, beside the predictions"
    )

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> PredictRequest:
        # A refusal raised here would be answered in another format: `predict` raises it.
        try:
            return cls.model_construct(**read_fields(await request.body(), _JSON_FIELDS, _EXAMPLE))
        except RequestError as error:
            return cls.model_construct(inputs=error)


class ImageRequest(bentoml.IODescriptor):
    """A PNG or JPEG file in a multipart form."""

    image: Path = Field(description="the PNG or JPEG file itself; never an address to fetch")
    model: str | None = Field(None, description="which model; needed when several are served")
    invert: bool = Field(False, description="for dark drawings on light ground")

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> ImageRequest:
        try:
            return cls.model_construct(**await read_form(request, "image", _FORM_FIELDS))
        except RequestError as error:
            return cls.model_construct(image=error)


class ClassPrediction(BaseModel):
    """What a classifier says of one row."""

    model_config = ConfigDict(populate_by_name=True)

    label: str = Field(alias="class", description="the most probable class")
    probability: float
    probabilities: dict[str, float] = Field(description="of every class, by its name")


class SignPrediction(BaseModel):
    """What a classifier without probabilities says of one row."""

    model_config = ConfigDict(populate_by_name=True)

    label: str = Field(alias="class", description="the second class where the score is positive")
    score: float = Field(description="the further from 0, the further from the boundary")


class ValuePrediction(BaseModel):
    """What a regression says of one row."""

    value: float
    unit: str = Field(description="what the value is measured in; may be empty")


class PredictResponse(bentoml.IODescriptor):
    """One prediction a row; `outputs` holds what was asked for, or all of a model without any."""

    model: str
    version: str
    predictions: list[ClassPrediction | SignPrediction | ValuePrediction] = Field(
        [], description="empty for a model that answers arrays only"
    )
    outputs: dict[str, list[Any]] = Field({}, description="nested lists by output name")


def read_arrays(model: Model, inputs: dict[str, Any]) -> Arrays:
    """Named arrays of nested lists; sizes are the signature's to check. Raises `BadInput`."""
    if model.codec.text and not inputs:
        raise BadInput("the request is empty", expected="'text' or 'inputs'")
    return {n: from_json(find_input(model.signature, n), v) for n, v in inputs.items()}


def read_text(model: Model, inputs: dict[str, Any], text: str | list[str]) -> Arrays:
    """Token ids of plain texts, by the model's codec. Raises `BadInput`, also beside `inputs`."""
    wanted = model.codec.text
    if wanted is None:
        raise BadInput(f"model {model.name!r} takes no text", expected="'inputs'")
    if inputs:
        raise BadInput("the rows are given twice", got="'text' and 'inputs'", expected="one")
    batch = model.signature.batch
    return {wanted.name: read_texts(text, wanted, most=batch.max if batch else 1)}


def respond(model: Model, arrays: Arrays, wanted: list[str]) -> Response:
    """A `PredictResponse` as bytes, without building the model for every row.

    Raises `BadInput` when the model has no finite answer to these inputs.
    """
    answer: dict[str, Any] = {"model": model.name, "version": model.version, "predictions": []}
    said = model.codec.answer
    if said is not None:
        check_finite(said, arrays[said])
        answer["predictions"] = _predictions(model.codec, arrays[said])
    names = wanted or ([] if said is not None else list(arrays))
    answer["outputs"] = {name: np.ascontiguousarray(arrays[name]) for name in names}
    return json_response(answer)


def _predictions(codec: Codec, array: np.ndarray) -> list[dict[str, Any]]:
    """What each row of the answering output says."""
    if codec.values is not None:
        return [{"value": value, "unit": codec.unit} for value in array.ravel()]
    if codec.sign is not None:
        return [{"class": codec.classes[int(s > 0)], "score": s} for s in array.ravel()]
    rows = array.reshape(-1, len(codec.classes))
    return [
        {
            "class": codec.classes[best],
            "probability": row[best],
            "probabilities": dict(zip(codec.classes, row, strict=True)),
        }
        for row, best in zip(rows, rows.argmax(1), strict=True)
    ]
