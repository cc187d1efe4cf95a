"""The life of a gRPC call: counted, admitted, bounded in time, and refused by the one table.

Messages arrive as they were sent: gRPC itself would decompress one without a limit.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from models.errors import BadInput, TimedOut, TooLarge
from serving.calls import CALL, Call, new_id, sound_id
from serving.failures import failure
from serving.gate import PROBES
from serving.settings import Settings

if TYPE_CHECKING:
    from serving.runtime import Runtime

Context = grpc.aio.ServicerContext[Any, Any]
Metadata = tuple[tuple[str, str | bytes], ...]
Answer = Callable[[Any], Awaitable[Any]]

REQUEST_ID = "x-request-id"
# Of an error's text, which travels in a header: those are bounded, and a character takes up to 12.
_LONGEST_TEXT = 512
# The first bytes of gzip and of zlib. No message of the protocol begins so: the one would be of a
# wire type that does not exist, the other a field 15.
_COMPRESSED = (b"\x1f\x8b", b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
_EITHER = zlib.MAX_WBITS | 32  # gzip or zlib, whichever the message says
_WORTH_A_THREAD = 64 * 1024
# Seconds: a deadline counts from when the call arrives, so that it ends later here than there.
_ON_ITS_WAY = 0.05


def unary(
    runtime: Runtime, route: str, request_type: Any, answer: Answer, *, admin: bool = False
) -> grpc.RpcMethodHandler[Any, Any]:
    """A method of one message and one answer; the call's own id, if it has none, is `.id`."""

    async def serve(raw: bytes, context: Context) -> bytes:
        call, metadata = arrive(route, context)
        call.received = len(raw)
        CALL.set(call)
        runtime.telemetry.begin(call, metadata)
        try:
            try:
                if route not in PROBES:
                    runtime.check_staying()
                runtime.gate.admit(call, header(metadata, "authorization"), admin=admin)
                try:
                    runtime.gate.hold(call, len(raw))
                    async with asyncio.timeout(runtime.settings.timeout):
                        request = await parse(request_type, raw, runtime.settings.largest_body)
                        name_call(call, request)
                        said = (await answer(request)).SerializeToString()
                finally:
                    runtime.gate.leave(call)
            except TimeoutError:
                problem = late(runtime.settings)
            except Exception as error:
                problem = error
            else:
                call.code, call.sent = "OK", len(said)
                return said
            await refuse(call, context, problem)
            raise AssertionError("a call that is refused has ended")
        except asyncio.CancelledError:
            call.code = ended_by(context)
            raise
        finally:
            runtime.telemetry.end(call)

    return grpc.unary_unary_rpc_method_handler(serve)


def streaming(
    runtime: Runtime, route: str, answer: Callable[[Any, Context], AsyncGenerator[bytes, None]]
) -> Callable[[Any, Context], AsyncIterator[bytes]]:
    """A method of one message or many whose answers come one by one, for as long as they may."""

    async def serve(asked: Any, context: Context) -> AsyncIterator[bytes]:
        call, metadata = arrive(route, context)
        call.received = len(asked) if isinstance(asked, bytes) else 0
        CALL.set(call)
        runtime.telemetry.begin(call, metadata)
        try:
            try:
                name_call(call, None)
                runtime.gate.admit(call, header(metadata, "authorization"))
                try:
                    async with aclosing(answer(asked, context)) as answers:
                        async for said in answers:
                            call.sent += len(said)
                            yield said
                finally:
                    runtime.gate.leave(call)
            except Exception as error:
                await refuse(call, context, error)
            call.code = "OK"
        except (asyncio.CancelledError, GeneratorExit):
            call.code = ended_by(context)
            raise
        finally:
            runtime.telemetry.end(call)

    return serve


def arrive(route: str, context: Context) -> tuple[Call, Metadata]:
    """A call that has come, and its metadata; it has an id if it brought a sound one."""
    metadata: Metadata = context.invocation_metadata() or ()  # pyright: ignore[reportAssignmentType]
    given = header(metadata, REQUEST_ID)
    peer = context.peer().partition(":")[2].rpartition(":")[0]
    client = unquote(peer).strip("[]") if "%" in peer else peer
    return Call("grpc", route, id=given if sound_id(given) else "", client=client), metadata


def header(metadata: Metadata, name: str) -> str:
    """The first value of that name; nothing if there is none."""
    for key, value in metadata:
        if key == name:
            return value if isinstance(value, str) else value.decode("latin-1")
    return ""


def name_call(call: Call, request: Any) -> None:
    """Give a call without an id its request's, or a new one."""
    if not call.id:
        given = getattr(request, "id", "")
        call.id = given if sound_id(given) else new_id()


async def parse(request_type: Any, raw: bytes, largest: int) -> Any:
    """The message in `raw`, decompressed to at most `largest` bytes; raises `BadInput`."""
    if raw.startswith(_COMPRESSED):
        worth = len(raw) > _WORTH_A_THREAD
        raw = await asyncio.to_thread(_unpack, raw, largest) if worth else _unpack(raw, largest)
    try:
        return request_type.FromString(raw)
    except DecodeError as error:
        raise BadInput("the message cannot be decoded", got=f"{len(raw)} bytes") from error


async def refuse(call: Call, context: Context, error: Exception) -> None:
    """End a call with an error's code, text, and when to ask again."""
    row, text = failure(error)
    call.code = row.code.name
    call.id = call.id or new_id()
    trailing = [(REQUEST_ID, call.id)]
    if row.retry_after is not None:
        trailing.append(("retry-after", str(row.retry_after)))
    await context.abort(row.code, text[:_LONGEST_TEXT], tuple(trailing))


def late(settings: Settings) -> TimedOut:
    return TimedOut(f"no answer within {settings.timeout:g} seconds")


def ended_by(context: Context) -> str:
    """Of a call that was cancelled, the code that its client sees."""
    left = context.time_remaining()
    return "CANCELLED" if left is None or left > _ON_ITS_WAY else "DEADLINE_EXCEEDED"


def _unpack(raw: bytes, largest: int) -> bytes:
    inflate = zlib.decompressobj(_EITHER)
    try:
        plain = inflate.decompress(raw, largest + 1)
    except zlib.error as error:
        raise BadInput("the compressed message is corrupt", got=str(error)) from error
    if len(plain) > largest:
        raise TooLarge("the message is too large", expected=f"at most {largest} bytes")
    if not inflate.eof:
        raise BadInput("the compressed message is truncated", got=f"{len(raw)} bytes")
    return plain
