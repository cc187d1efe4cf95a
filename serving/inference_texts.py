"""A text over the protocol's gRPC half: its prompt out of a request, its pieces into responses."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from models.errors import BadInput
from serving.inference_proto import MESSAGES
from serving.prompts import PROMPT_FIELDS, read_prompt
from serving.writing import Piece, Prompt, Writing

if TYPE_CHECKING:
    from serving.runtime import Runtime

FINAL = "triton_final_response"
# The stock client may ask for a last response without an answer; here the last one says so anyway.
_IGNORED = "triton_enable_empty_final_response"
_LENGTH = struct.Struct("<I")  # before each string of BYTES

Put = Callable[[Any], Awaitable[None]]


async def write_text(runtime: Runtime, request: Any, put: Put) -> None:
    """Write what a request asks for, a response for each piece.

    Raises `TimeoutError` unless the first comes in time, and what refuses or stops a text.
    """
    model = runtime.models.get(request.model_name, request.model_version)
    writing = model.write(_read_prompt(request))
    try:
        async with asyncio.timeout(runtime.settings.timeout) as first:
            async for piece in writing:
                first.reschedule(None)
                await put(
                    MESSAGES["ModelInferResponse"](
                        model_name=model.name,
                        model_version=model.version,
                        id=request.id,
                        parameters=_parameters(writing, piece),
                        outputs=[{"name": "text", "datatype": "BYTES", "shape": [1]}],
                        raw_output_contents=[_to_bytes(piece.text)],
                    )
                )
    finally:
        writing.cancel()


def _parameters(writing: Writing, piece: Piece) -> dict[str, Any]:
    if piece.finish is None:
        return {FINAL: {"bool_param": False}}
    return {
        FINAL: {"bool_param": True},
        "finish": {"string_param": piece.finish},
        "tokens": {"int64_param": piece.tokens},
        "prompt_tokens": {"int64_param": writing.prompt_tokens},
        "context_cuts": {"int64_param": piece.cuts},
        "seed": {"uint64_param": writing.seed},
    }


def _read_prompt(request: Any) -> Prompt:
    """The prompt and its parameters; `stop` is a parameter, or an input of several strings."""
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise BadInput(
            "raw_input_contents does not fit the inputs", got=len(raw), expected=len(request.inputs)
        )
    fields: dict[str, Any] = {}
    for number, tensor in enumerate(request.inputs):
        strings = _from_bytes(tensor, raw[number] if raw else None)
        if tensor.name in fields:
            raise BadInput(f"input {tensor.name!r} is given twice")
        fields[tensor.name] = strings
    if len(fields["prompt"]) != 1:
        raise BadInput("input 'prompt' is of a wrong shape", got=len(fields["prompt"]), expected=1)
    fields["prompt"] = fields["prompt"][0]
    for name, parameter in request.parameters.items():
        if name == _IGNORED:
            continue
        if name not in PROMPT_FIELDS or name in fields:
            known = ", ".join(repr(known) for known in PROMPT_FIELDS if known not in fields)
            raise BadInput(f"parameter {name!r} is unknown", expected=known)
        value = getattr(parameter, parameter.WhichOneof("parameter_choice") or "bool_param")
        expected, fits = PROMPT_FIELDS[name]
        if not fits(value):
            raise BadInput(
                f"parameter {name!r} is of a wrong type",
                got=type(value).__name__, expected=expected,
            )  # fmt: skip
        fields[name] = value
    return read_prompt(fields)


def _from_bytes(tensor: Any, raw: bytes | None) -> list[str]:
    if tensor.name not in ("prompt", "stop") or tensor.datatype != "BYTES":
        raise BadInput(
            f"input {tensor.name!r} does not fit", got=tensor.datatype,
            expected="'prompt' and 'stop' of BYTES",
        )  # fmt: skip
    strings = list(tensor.contents.bytes_contents)
    place = 0
    while raw and place < len(raw):
        begin = place + _LENGTH.size
        size = _LENGTH.unpack_from(raw, place)[0] if begin <= len(raw) else len(raw)
        place = begin + size
        if place > len(raw):
            raise BadInput(f"input {tensor.name!r} is truncated", got=f"{len(raw)} bytes")
        strings.append(raw[begin:place])
    if list(tensor.shape) != [len(strings)]:
        raise BadInput(
            f"input {tensor.name!r} has a wrong number of strings",
            got=len(strings), expected=f"shape {list(tensor.shape)}",
        )  # fmt: skip
    try:
        return [string.decode() for string in strings]
    except UnicodeDecodeError as error:
        raise BadInput(f"input {tensor.name!r} is not UTF-8", got=str(error)) from error


def _to_bytes(text: str) -> bytes:
    encoded = text.encode()
    return _LENGTH.pack(len(encoded)) + encoded
