"""Requests of pictures and codes, as JSON or uploads, typed and strictly read."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import bentoml
from pydantic import Field
from starlette.requests import Request

from models.errors import BadInput, RequestError
from serving.drawing import LARGEST_SEED
from serving.fields import MODEL, JsonField, one_of, read_fields
from serving.grids import LARGEST_SCALE
from serving.picture_responses import Values
from serving.uploads import read_uploads

MOST = 64  # pictures or codes in one request
MOST_STEPS, FURTHEST = 64, 100.0

Descriptor = TypeVar("Descriptor", bound=bentoml.IODescriptor)
Codes = list[float] | list[list[float]]
Images = Values | list[Values]

_WHOLE = JsonField("a whole number", lambda value: type(value) is int)
_LISTS = JsonField("nested lists", lambda value: isinstance(value, list))
_SEED = JsonField("a whole number", lambda value: value is None or type(value) is int)
_GRID = {
    "format": JsonField("'json' or 'png'", lambda value: value in ("json", "png")),
    "scale": _WHOLE,
    "columns": _WHOLE,
}
_CLASS = JsonField(
    "a class or a list of classes",
    lambda value: (
        isinstance(value, str)
        or (isinstance(value, list) and all(isinstance(name, str) for name in value))
    ),
)
_TRAVERSE = {
    "class": _CLASS,
    "latents": JsonField(
        "a list of whole numbers",
        lambda value: isinstance(value, list) and all(type(place) is int for place in value),
    ),
    "reach": JsonField("a number", lambda value: type(value) in (int, float)),
    "steps": _WHOLE,
    "format": _GRID["format"],
    "scale": _WHOLE,
}
_UPLOAD = {
    "model": MODEL,
    "invert": JsonField("true or false", lambda value: isinstance(value, bool)),
}
_IMAGE = '{"image": [[[0.5, ...], ...], ...]}, as [channels, height, width]'
_LATENT = '{"latent": [0.5, ...]}'

_MODEL_FIELD = Field(None, description="which model; needed when several are served")
_IMAGE_FIELD = Field(
    description=f"values of [0, 1] as [channels, height, width]; or a list of up to {MOST} of them",
    json_schema_extra=one_of,
)
_UPLOAD_FIELD = Field(
    description=f"1 to {MOST} PNG or JPEG files themselves, never addresses; resized as the model "
    "needs"
)
_INVERT_FIELD = Field(False, description="for dark drawings on light ground")
_FORMAT_FIELD: Any = Field("json", description="nested lists, or one PNG of all pictures")
_SCALE_FIELD = Field(
    None, ge=1, le=LARGEST_SCALE, description="for `png`: how many pixels wide a pixel becomes"
)
_COLUMNS_FIELD = Field(None, ge=1, le=MOST, description="for `png`; about square when absent")
_CLASS_FIELD: Any = Field(
    [],
    alias="class",
    description="for a model that draws classes: one for all, or one for each; when absent, all "
    "classes in turn",
    json_schema_extra=one_of,
)
_NOISE_SEED_FIELD = Field(
    None, ge=0, le=LARGEST_SEED, description="of the code's noise; without one there is no noise"
)
_LATENTS_FIELD = Field(None, description="the numbers of those to traverse, from 0; all if absent")
_REACH_FIELD = Field(3.0, gt=0, le=FURTHEST, description="each latent goes from -reach to reach")
_STEPS_FIELD = Field(9, ge=2, le=MOST_STEPS)


class SampleRequest(bentoml.IODescriptor):
    """How many pictures to draw, and which: each is the same however many are asked for."""

    model: str | None = _MODEL_FIELD
    n: int = Field(1, ge=1, le=MOST)
    seed: int | None = Field(None, ge=0, le=LARGEST_SEED, description="drawn and told when absent")
    classes: str | list[str] = _CLASS_FIELD
    format: Literal["json", "png"] = _FORMAT_FIELD
    scale: int | None = _SCALE_FIELD
    columns: int | None = _COLUMNS_FIELD

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> SampleRequest:
        known = {"model": MODEL, "n": _WHOLE, "seed": _SEED, "class": _CLASS, **_GRID}
        return await _read(cls, request, known, '{"n": 16, "seed": 5}')


class EncodeRequest(bentoml.IODescriptor):
    """Pictures as JSON, to be turned into codes."""

    model: str | None = _MODEL_FIELD
    image: Images = _IMAGE_FIELD

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> EncodeRequest:
        return await _read(cls, request, {"model": MODEL, "image": _LISTS}, _IMAGE, "image")


class EncodeUpload(bentoml.IODescriptor):
    """Pictures as files in a multipart form, to be turned into codes."""

    image: list[Path] = _UPLOAD_FIELD
    model: str | None = _MODEL_FIELD
    invert: bool = _INVERT_FIELD

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> EncodeUpload:
        return await _constructed(cls, read_uploads(request, "image", _UPLOAD, MOST))


class DecodeRequest(bentoml.IODescriptor):
    """Codes, to be turned into pictures."""

    model: str | None = _MODEL_FIELD
    latent: Codes = Field(
        description=f"a code, or a list of up to {MOST} codes", json_schema_extra=one_of
    )
    classes: str | list[str] = _CLASS_FIELD
    format: Literal["json", "png"] = _FORMAT_FIELD
    scale: int | None = _SCALE_FIELD
    columns: int | None = _COLUMNS_FIELD

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> DecodeRequest:
        known = {"model": MODEL, "latent": _LISTS, "class": _CLASS, **_GRID}
        return await _read(cls, request, known, _LATENT, "latent")


class ReconstructRequest(bentoml.IODescriptor):
    """Pictures as JSON, to be turned into codes and back."""

    model: str | None = _MODEL_FIELD
    image: Images = _IMAGE_FIELD
    seed: int | None = _NOISE_SEED_FIELD
    format: Literal["json", "png"] = _FORMAT_FIELD
    scale: int | None = _SCALE_FIELD
    columns: int | None = _COLUMNS_FIELD

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> ReconstructRequest:
        known = {"model": MODEL, "image": _LISTS, "seed": _SEED, **_GRID}
        return await _read(cls, request, known, _IMAGE, "image")


class ReconstructUpload(bentoml.IODescriptor):
    """Pictures as files in a multipart form, to be turned into codes and back."""

    image: list[Path] = _UPLOAD_FIELD
    model: str | None = _MODEL_FIELD
    invert: bool = _INVERT_FIELD
    seed: int | None = _NOISE_SEED_FIELD
    format: Literal["json", "png"] = _FORMAT_FIELD
    scale: int | None = _SCALE_FIELD
    columns: int | None = _COLUMNS_FIELD

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> ReconstructUpload:
        known = {**_UPLOAD, "seed": _SEED, **_GRID}
        return await _constructed(cls, read_uploads(request, "image", known, MOST))


class TraverseRequest(bentoml.IODescriptor):
    """Where to start, by one of `image`, `latent` and `seed`, and which latents to change."""

    model: str | None = _MODEL_FIELD
    image: Values | None = Field(
        None, description="a picture's code: values of [0, 1] as [channels, height, width]"
    )
    latent: list[float] | None = Field(None, description="the code itself")
    seed: int | None = Field(
        None, ge=0, le=LARGEST_SEED, description="the code of `/sample` with this seed"
    )
    classes: str | list[str] = _CLASS_FIELD
    latents: list[int] | None = _LATENTS_FIELD
    reach: float = _REACH_FIELD
    steps: int = _STEPS_FIELD
    format: Literal["json", "png"] = _FORMAT_FIELD
    scale: int | None = _SCALE_FIELD

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> TraverseRequest:
        known = {"model": MODEL, "image": _LISTS, "latent": _LISTS, "seed": _SEED, **_TRAVERSE}
        return await _read(cls, request, known, '{"seed": 5}')


class TraverseUpload(bentoml.IODescriptor):
    """A picture as a file in a multipart form, and which latents of its code to change."""

    image: Path = Field(description="the PNG or JPEG file itself, resized as the model needs")
    model: str | None = _MODEL_FIELD
    invert: bool = _INVERT_FIELD
    classes: str | list[str] = _CLASS_FIELD
    latents: list[int] | None = _LATENTS_FIELD
    reach: float = _REACH_FIELD
    steps: int = _STEPS_FIELD
    format: Literal["json", "png"] = _FORMAT_FIELD
    scale: int | None = _SCALE_FIELD

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> TraverseUpload:
        return await _constructed(cls, read_uploads(request, "image", {**_UPLOAD, **_TRAVERSE}, 1))


async def _read(
    cls: type[Descriptor],
    request: Request,
    known: Mapping[str, JsonField],
    example: str,
    needed: str | None = None,
) -> Descriptor:
    async def fields() -> dict[str, Any]:
        found = read_fields(await request.body(), known, example)
        if needed is not None and needed not in found:
            raise BadInput(f"field {needed!r} is missing", expected=example)
        return found

    return await _constructed(cls, fields())


async def _constructed(cls: type[Descriptor], fields: Awaitable[dict[str, Any]]) -> Descriptor:
    # A refusal raised here would be answered in another format: the service raises it.
    try:
        return cls.model_construct(**await fields)
    except RequestError as error:
        refused: dict[str, Any] = dict.fromkeys(cls.model_fields, error)
        return cls.model_construct(**refused)
