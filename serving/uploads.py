"""Several uploaded files of one multipart form, beside fields that are read as JSON's are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from models.errors import BadInput, first_line
from serving.fields import JsonField


async def read_uploads(
    request: Request, upload: str, known: Mapping[str, JsonField], most: int
) -> dict[str, Any]:
    """The fields of a multipart form, with the bytes of 1 to `most` files, listed, for `upload`.

    Of the other fields it may lack any. BentoML's own form reading would download a file that is
    given as an address. Raises `BadInput` naming the field.
    """
    files = f"1 to {most} files" if most > 1 else "a file"
    wanted = f"multipart/form-data with {files} {upload!r}"
    kind = request.headers.get("content-type", "")
    if not kind.startswith("multipart/form-data"):
        raise BadInput("the body is not a form", got=repr(kind), expected=wanted)
    try:
        async with request.form(max_files=most, max_fields=len(known)) as form:
            for name in form.keys() - known.keys() - {upload}:
                raise BadInput(
                    f"field {name!r} is unknown", expected=", ".join(map(repr, (upload, *known)))
                )
            given = form.getlist(upload)
            sent = [file for file in given if isinstance(file, UploadFile)]
            if not sent or len(sent) < len(given):
                got = "text" if given else "no file"
                raise BadInput(f"field {upload!r} is no upload", got=got, expected=wanted)
            fields: dict[str, Any] = {upload: [await file.read() for file in sent]}
            for name in form.keys() & known.keys():
                fields[name] = _value(name, form.getlist(name), known[name])
            return fields
    except (HTTPException, MultiPartException) as error:  # Starlette's, inside a route and outside
        got = getattr(error, "detail", None) or first_line(error)
        raise BadInput("the form cannot be read", got=got, expected=wanted) from error


def _value(name: str, given: list[Any], field: JsonField) -> Any:
    """The value of a form's text: the text itself where that fits, else what it says as JSON."""
    if len(given) > 1 or not isinstance(given[0], str):
        got = "several" if len(given) > 1 else "a file"
        raise BadInput(f"field {name!r} is not one text", got=got)
    # BentoML's own client writes text as JSON, in quotes that no value has.
    text = given[0].strip('"')
    if field.fits(text):
        return text
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = text
    if not field.fits(value):
        raise BadInput(
            f"field {name!r} is of a wrong type", got=repr(text[:60]), expected=field.expected
        )
    return value
