"""Fields of a typed request, out of JSON or a form, each known and of the right type."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import Response

from models.errors import BadInput, first_line
from serving.inference_messages import parse_json
from serving.inference_rest import failed
from serving.predictor import Models

# Gives the value of a form's text, or raises `BadInput` naming the field.
ReadText = Callable[[str, str], Any]


@dataclass(frozen=True)
class JsonField:
    """What a field may hold, in words and as a test."""

    expected: str
    fits: Callable[[Any], bool]


MODEL = JsonField("a string", lambda value: value is None or isinstance(value, str))


def served_models() -> Models:
    """The models of the service instance that BentoML made in this process."""
    import bentoml  # takes a second, which `fucina serve` would wait for

    return bentoml.get_current_service().runtime.models


async def answered(answer: Coroutine[Any, Any, Response]) -> Response:
    """The answer, with whatever it raises answered by the table of failures."""
    try:
        return await answer
    except Exception as error:
        return failed(error)


def one_of(schema: dict[str, Any]) -> None:
    """Say `oneOf` for `anyOf`, of which BentoML's OpenAPI keeps the first only."""
    schema["oneOf"] = schema.pop("anyOf")


def read_fields(body: bytes, known: Mapping[str, JsonField], example: str) -> dict[str, Any]:
    """The fields of a JSON request, which may lack any. Raises `BadInput` naming the field."""
    if not body:
        raise BadInput("the body is empty", expected=example)
    fields = parse_json(body)
    for name, value in fields.items():
        if name not in known:
            raise BadInput(f"field {name!r} is unknown", expected=", ".join(map(repr, known)))
        if not known[name].fits(value):
            raise BadInput(
                f"field {name!r} is of a wrong type",
                got=type(value).__name__,
                expected=known[name].expected,
            )
    return fields


async def read_form(request: Request, upload: str, known: Mapping[str, ReadText]) -> dict[str, Any]:
    """The fields of a multipart form, with the bytes of the one uploaded file for `upload`.

    Of the other fields it may lack any. BentoML's own form reading would download a file that is
    given as an address. Raises `BadInput` naming the field.
    """
    wanted = f"multipart/form-data with a file {upload!r}"
    kind = request.headers.get("content-type", "")
    if not kind.startswith("multipart/form-data"):
        raise BadInput("the body is not a form", got=repr(kind), expected=wanted)
    try:
        async with request.form(max_files=1, max_fields=len(known) + 1) as form:
            unknown = form.keys() - known.keys() - {upload}
            file = form.get(upload)
            if unknown or not isinstance(file, UploadFile):
                got = "text" if isinstance(file, str) else ", ".join(map(repr, form)) or "nothing"
                raise BadInput("the form does not fit", got=got, expected=wanted)
            fields: dict[str, Any] = {upload: await file.read()}
            for name in form.keys() & known.keys():
                # BentoML's own client writes text as JSON, in quotes that no value has.
                fields[name] = known[name](name, str(form[name]).strip('"'))
            return fields
    except (HTTPException, MultiPartException) as error:  # Starlette's, inside a route and outside
        got = getattr(error, "detail", None) or first_line(error)
        raise BadInput("the form cannot be read", got=got, expected=wanted) from error


def as_text(name: str, value: str) -> str:
    """The text itself."""
    return value


def as_flag(name: str, value: str) -> bool:
    """True or false."""
    flags = {"true": True, "1": True, "false": False, "0": False}
    if value.lower() not in flags:
        raise BadInput(
            f"field {name!r} is of a wrong type", got=repr(value), expected="true or false"
        )
    return flags[value.lower()]
