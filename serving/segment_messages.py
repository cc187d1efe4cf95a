"""Requests and responses of `/segment` and `/segment_image`, typed and strictly read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import bentoml
import numpy as np
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from models.codec import Codec
from models.errors import BadInput, RequestError
from serving.fields import MODEL, JsonField, as_text, one_of, read_fields, read_form
from serving.inference_rest import json_response
from serving.model import Model
from serving.pixels import Segmented, tiled_input
from serving.tensors import from_json

# A picture of 4000 x 4000, which with its class map and overlay takes 310 MB at most, measured.
LARGEST_SEGMENTED = 16_000_000
# Numbers of probability in one answer, about 50 MB of JSON.
MOST_PROBABILITIES = 4_000_000
OPACITY = 0.5
ANSWERS = ("overlay", "map", "json")

_JSON_FIELDS = {
    "model": MODEL,
    "image": JsonField("nested lists", lambda value: isinstance(value, list)),
    "probabilities": JsonField(
        "true, false or a list of classes",
        lambda value: (
            isinstance(value, bool)
            or (isinstance(value, list) and all(isinstance(name, str) for name in value))
        ),
    ),
}
_EXAMPLE = '{"image": [[[0.5, ...], ...], ...]}, as [channels, height, width]'


class SegmentRequest(bentoml.IODescriptor):
    """One picture as JSON."""

    model: str | None = Field(None, description="which model; needed when several are served")
    image: list[list[list[float]]] = Field(
        description="values of [0, 1] as [channels, height, width], of any height and width"
    )
    probabilities: bool | list[str] = Field(
        False,
        description="answer the probability of every pixel too: of all classes, or of those named",
        json_schema_extra=one_of,
    )

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> SegmentRequest:
        # A refusal raised here would be answered in another format: `segment` raises it.
        try:
            fields = read_fields(await request.body(), _JSON_FIELDS, _EXAMPLE)
            return cls.model_construct(**{"image": None} | fields)
        except RequestError as error:
            return cls.model_construct(image=error)


class SegmentImageRequest(bentoml.IODescriptor):
    """A PNG or JPEG file in a multipart form."""

    image: Path = Field(description="the PNG or JPEG file itself, of any size; never an address")
    model: str | None = Field(None, description="which model; needed when several are served")
    answer: Literal["overlay", "map", "json"] = Field(
        "overlay",
        description="a PNG of the classes' colours over the picture, a PNG with a palette whose "
        "pixels are class numbers, or what `/segment` answers",
    )
    opacity: float = Field(OPACITY, ge=0, le=1, description="of the colours in an overlay")
    probabilities: str | None = Field(
        None, description="for `json`: true, false, or names of classes between commas"
    )

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> SegmentImageRequest:
        try:
            fields = await read_form(request, "image", _FORM_FIELDS)
            _check_together(fields)
            return cls.model_construct(**fields)
        except RequestError as error:
            return cls.model_construct(image=error)


class SegmentClass(BaseModel):
    """One class and how much of the picture it has."""

    name: str
    colour: str = Field(description="as #rrggbb, in overlays and palettes")
    share: float = Field(description="of the picture's pixels, from 0 to 1")


class SegmentResponse(bentoml.IODescriptor):
    """What every pixel of one picture is."""

    model: str
    version: str
    height: int
    width: int
    classes: list[SegmentClass] = Field(description="in the order of their numbers, from 0")
    map: list[list[int]] = Field(description="the number of each pixel's most probable class")
    probabilities: dict[str, list[list[float]]] = Field(
        {}, description="by class, of every pixel; empty unless asked for"
    )


class SegmentedPicture(bentoml.IODescriptor):
    """A PNG as large as the picture; with `answer` json, JSON as `/segment` answers."""

    media_type: ClassVar[str | None] = "image/png"

    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {"type": "string", "format": "binary", "description": cls.__doc__}


def read_picture(model: Model, image: object) -> np.ndarray:
    """Nested lists as an array [channels, height, width] in [0, 1]. Raises `BadInput`."""
    wanted = tiled_input(model)
    if image is None:
        raise BadInput("field 'image' is missing", expected=_EXAMPLE)
    picture = from_json(model.signature.input(wanted.name), image)
    if picture.ndim != 3 or picture.shape[0] != wanted.channels or not picture.size:
        raise BadInput(
            "field 'image' has a wrong shape",
            got=list(picture.shape),
            expected=f"[{wanted.channels}, height, width]",
        )
    low, high = picture.min(), picture.max()
    if not (low >= 0 and high <= 1):  # a NaN is in no range
        raise BadInput(
            "field 'image' holds values out of range", got=f"{low} to {high}", expected="0 to 1"
        )
    check_size(*picture.shape[1:])
    return picture


def check_size(height: int, width: int) -> None:
    """Refuse a picture that would take more memory than one request may."""
    if height * width > LARGEST_SEGMENTED:
        raise BadInput(
            "the image is too large",
            got=f"{width} x {height} pixels",
            expected=f"at most {LARGEST_SEGMENTED} pixels",
        )


def wanted_classes(
    codec: Codec, probabilities: bool | Sequence[str] | None, height: int, width: int
) -> list[int]:
    """The numbers of the classes whose probabilities are to be answered. Raises `BadInput`."""
    names = codec.classes if probabilities is True else probabilities or ()
    for name in names:
        if name not in codec.classes:
            raise BadInput(
                f"class {name!r} is unknown", expected=", ".join(map(repr, codec.classes))
            )
    wanted = [number for number, name in enumerate(codec.classes) if name in names]
    if len(wanted) * height * width > MOST_PROBABILITIES:
        raise BadInput(
            "the probabilities are too many for one answer",
            got=len(wanted) * height * width,
            expected=f"at most {MOST_PROBABILITIES}",
            fix="name fewer classes, or send parts of the picture",
        )
    return wanted


def respond(model: Model, found: Segmented, wanted: Sequence[int]) -> Response:
    """A `SegmentResponse` as bytes."""
    codec, (height, width) = model.codec, found.classes.shape
    counts = [np.count_nonzero(found.classes == number) for number in range(len(codec.classes))]
    classes = [
        {"name": name, "colour": colour, "share": count / (height * width)}
        for name, colour, count in zip(codec.classes, codec.colours, counts, strict=True)
    ]
    answer = {
        "model": model.name,
        "version": model.version,
        "height": height,
        "width": width,
        "classes": classes,
        "map": np.ascontiguousarray(found.classes),
        "probabilities": {
            codec.classes[number]: np.ascontiguousarray(array)
            for number, array in zip(wanted, found.probabilities, strict=True)
        },
    }
    return json_response(answer)


def _as_answer(name: str, value: str) -> str:
    if value not in ANSWERS:
        raise BadInput(
            f"field {name!r} has an unknown value",
            got=repr(value),
            expected=", ".join(map(repr, ANSWERS)),
        )
    return value


def _as_opacity(name: str, value: str) -> float:
    try:
        opacity = float(value)
    except ValueError:
        opacity = math.nan
    if not 0 <= opacity <= 1:
        raise BadInput(f"field {name!r} is out of range", got=repr(value), expected="0 to 1")
    return opacity


def _as_probabilities(name: str, value: str) -> bool | list[str]:
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    return [part.strip() for part in value.split(",")]


def _check_together(fields: dict[str, Any]) -> None:
    """Refuse a field that the wanted answer would not heed."""
    answer = fields.get("answer", "overlay")
    for name, heeds in (("opacity", "overlay"), ("probabilities", "json")):
        if name in fields and answer != heeds:
            raise BadInput(f"field {name!r} is of no use", got=f"answer {answer!r}", expected=heeds)


_FORM_FIELDS = {
    "model": as_text,
    "answer": _as_answer,
    "opacity": _as_opacity,
    "probabilities": _as_probabilities,
}
