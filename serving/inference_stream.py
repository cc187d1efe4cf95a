"""ModelStreamInfer, Triton's extension of the protocol: a text as it is written, over gRPC.

A request whose input is `prompt`, BYTES [1], is answered by responses with the output `text`, BYTES
[1]; any other by one response, as by ModelInfer. The last response to a request has the parameter
`triton_final_response`, and of a text why and how it ended. A request that fails is answered by
an `error_message`, and the stream goes on.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc.aio
from google.protobuf.message import DecodeError

from models.errors import BadInput
from serving.failures import failure
from serving.inference_proto import MESSAGES
from serving.prompts import PROMPT_FIELDS, read_prompt
from serving.writing import Piece, Prompt, Writing

if TYPE_CHECKING:
    from serving.runtime import Runtime

MOST_OPEN = 256  # requests of one stream that are being answered
FINAL = "triton_final_response"
# The stock client may ask for a last response without an answer; here the last one says so anyway.
_IGNORED = "triton_enable_empty_final_response"
_LENGTH = struct.Struct("<I")  # before each string of BYTES

Infer = Callable[[Any], Awaitable[Any]]
Put = Callable[[Any], Awaitable[None]]
Context = grpc.aio.ServicerContext[Any, Any]


def stream_call(
    runtime: Runtime, infer: Infer
) -> Callable[[AsyncIterator[bytes], Context], AsyncIterator[Any]]:
    """The call; `infer` answers what asks for no text."""

    async def answer(raw: bytes, put: Put) -> None:
        request = MESSAGES["ModelInferRequest"]()
        try:
            try:
                request.ParseFromString(raw)
            except DecodeError as error:
                raise BadInput("the message cannot be decoded", got=f"{len(raw)} bytes") from error
            if any(tensor.name == "prompt" for tensor in request.inputs):
                await _write(runtime, request, put)
            else:
                response = await infer(request)
                response.parameters[FINAL].bool_param = True
                await put(MESSAGES["ModelStreamInferResponse"](infer_response=response))
        except Exception as error:
            about = {"id": request.id, "model_name": request.model_name}
            await put(
                MESSAGES["ModelStreamInferResponse"](
                    error_message=failure(error)[1],
                    infer_response={**about, "parameters": {FINAL: {"bool_param": True}}},
                )
            )

    async def call(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
        responses: asyncio.Queue[Any] = asyncio.Queue(MOST_OPEN)
        open_ = asyncio.Semaphore(MOST_OPEN)

        async def answer_one(raw: bytes) -> None:
            try:
                await answer(raw, responses.put)
            finally:
                open_.release()

        async def read() -> None:
            async with asyncio.TaskGroup() as tasks:
                async for raw in requests:
                    await open_.acquire()
                    tasks.create_task(answer_one(raw))
            await responses.put(None)

        reading = asyncio.create_task(read())
        try:
            while (response := await responses.get()) is not None:
                yield response
        finally:  # also when the client has gone
            reading.cancel()

    return call


async def _write(runtime: Runtime, request: Any, put: Put) -> None:
    model = runtime.models.get(request.model_name, request.model_version)
    writing = model.write(_read_prompt(request))
    try:
        async for piece in writing:
            await put(
                MESSAGES["ModelStreamInferResponse"](
                    infer_response={
                        "model_name": model.name,
                        "model_version": model.version,
                        "id": request.id,
                        "parameters": _parameters(writing, piece),
                        "outputs": [{"name": "text", "datatype": "BYTES", "shape": [1]}],
                        "raw_output_contents": [_to_bytes(piece.text)],
                    }
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
