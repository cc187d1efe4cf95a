"""Requests and responses of `/generate` and `/classify`, typed and strictly read."""

from __future__ import annotations

from typing import Literal

import bentoml
from pydantic import Field
from starlette.requests import Request

from models.errors import BadInput, RequestError
from serving.fields import MODEL, JsonField, one_of, read_fields
from serving.prompts import HOTTEST, MOST_TOKENS, PROMPT_FIELDS, TOKENS
from serving.writing import Finish

FORMATS = ("text", "midi")

_GENERATE_FIELDS = {name: JsonField(*field) for name, field in PROMPT_FIELDS.items()} | {
    "model": MODEL,
    "stream": JsonField("a boolean", lambda value: value is None or isinstance(value, bool)),
    "format": JsonField(" or ".join(map(repr, FORMATS)), lambda value: value in FORMATS),
}
_CLASSIFY_FIELDS = {
    "model": MODEL,
    "text": JsonField("a string or a list of strings", lambda value: isinstance(value, str | list)),
}


class GenerateRequest(bentoml.IODescriptor):
    """What to continue or to answer, and how the text is drawn."""

    prompt: str = Field(
        "",
        description="continued; of a model that answers a source, the source",
        examples=["To be"],
    )
    model: str | None = Field(None, description="which model; needed when several are served")
    max_tokens: int = Field(TOKENS, ge=1, le=MOST_TOKENS)
    temperature: float = Field(1.0, ge=0, le=HOTTEST, description="0 is greedy")
    top_k: int = Field(0, ge=0, description="only the k most probable tokens; 0 is all")
    top_p: float = Field(
        1.0, gt=0, le=1, description="only the fewest tokens that are so probable together"
    )
    seed: int | None = Field(
        None, description="0 to 2^64 - 1: the same text again; drawn and told when absent"
    )
    stop: str | list[str] = Field(
        [], description="ends before any of these strings", json_schema_extra=one_of
    )
    stream: bool | None = Field(
        None, description="server-sent events, so also when absent; false is one JSON"
    )
    format: Literal["text", "midi"] = Field(
        "text", description="midi is a file, never streamed, of a model that writes ABC notation"
    )

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> GenerateRequest:
        # A refusal raised here would be answered in another format: `generate` raises it.
        try:
            fields = read_fields(await request.body(), _GENERATE_FIELDS, '{"prompt": TEXT}')
        except RequestError as error:
            return cls.model_construct(prompt=error)
        return cls.model_construct(**fields)


class GenerateResponse(bentoml.IODescriptor):
    """What was written, once it is whole; the last event of a stream holds the same.

    The events before it are `data: {"text": ..., "index": ...}`, a piece of text and the number of
    characters before it; the last one has the last piece for its text. An error after the first
    event is the last event, `data: {"error": ...}`. There is no mark after the last event.
    """

    model: str
    version: str
    prompt: str = Field(description="what was continued: an opening where none was given")
    text: str = Field(description="without the prompt and without the stop string")
    finish: Finish = Field(description="a stop string, max_tokens, or the model's own end")
    tokens: int = Field(description="how many were chosen")
    prompt_tokens: int
    context_cuts: int = Field(
        description="how often the model's context was full, and its older half was forgotten"
    )
    seed: int


class ClassifyRequest(bentoml.IODescriptor):
    """Plain texts, one or a batch."""

    text: str | list[str] = Field(
        description="one text, or one per row",
        examples=["You have won a prize! Call now", ["See you at six", "Free entry, text WIN"]],
        json_schema_extra=one_of,
    )
    model: str | None = Field(None, description="which model; needed when several are served")

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> ClassifyRequest:
        try:
            fields = read_fields(await request.body(), _CLASSIFY_FIELDS, '{"text": TEXT}')
            if "text" not in fields:
                raise BadInput(
                    "field 'text' is missing", expected=_CLASSIFY_FIELDS["text"].expected
                )
        except RequestError as error:
            return cls.model_construct(text=error)
        return cls.model_construct(**fields)
