"""The one entrance for HTTP: counts, admits and bounds every request, and then lets it go its way.

The protocol's requests are answered here, without a framework between. BentoML's own routes stay
behind its middlewares, with a timer that is cancelled: its own timeout keeps every request's timer
for a minute. Unknown paths reach its router at once, for its metrics take each raw path for a
label, so that random URLs make endless series.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import bentoml
from starlette.applications import Starlette
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.errors import BadInput, TimedOut, TooLarge
from serving.calls import CALL, Call, new_id
from serving.inference_rest import Answer, Match, match, refused

if TYPE_CHECKING:
    from serving.runtime import Runtime

T = TypeVar("T")
# The extension of a scope that sends past BentoML's middlewares, which trace each piece of a body.
BARE_SEND = "fucina.send"
REQUEST_ID = b"x-request-id"
_LONGEST_ID = 128
_REPLACED = "TimeoutMiddleware"
_READINESS = "readyz"


class FrontedService(bentoml.Service[T]):
    """A BentoML service behind a front; given to `bentoml.service` as its `service_class`."""

    def to_asgi(self, is_main: bool = True) -> Any:
        return front(super().to_asgi(is_main), served)  # pyright: ignore[reportArgumentType]


def served() -> Runtime:
    """The runtime of the service instance that BentoML made in this process."""
    return bentoml.get_current_service().runtime


def front(app: Starlette, find: Callable[[], Runtime]) -> ASGIApp:
    """The ASGI application that is served, over BentoML's `app`; each request asks `find`."""
    app.user_middleware = [
        middleware
        for middleware in app.user_middleware
        if getattr(middleware.cls, "__name__", "") != _REPLACED
    ]
    routes = app.router.routes
    # BentoML says ready when its process is; ours says when the models are.
    routes[:] = [route for route in routes if getattr(route, "name", "") != _READINESS]
    own = {route.path for route in routes if isinstance(route, Route)}
    bare = ExceptionMiddleware(app.router)

    async def pass_on(call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        runtime = find()
        if scope["method"] in ("POST", "PUT", "PATCH"):
            body = await _body(call, scope, receive, runtime.settings.largest_body)
            receive = _replay(body, receive)
        if call.route:
            scope.setdefault("extensions", {})[BARE_SEND] = send
            await _within(runtime.settings.timeout, app, scope, receive, send)
        else:
            await bare(scope, receive, send)

    async def answer(found: Match, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        runtime = find()
        body = b""
        if scope["method"] == "POST":
            body = await _body(call, scope, receive, runtime.settings.largest_body)
        try:
            async with asyncio.timeout(runtime.settings.timeout):
                said = await found.handler(runtime, found.parameters, scope["headers"], body)
        except TimeoutError:
            raise _late(runtime.settings.timeout) from None
        await _send(said, send)

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        runtime, path = find(), scope["path"]
        found = match(scope["method"], path)
        route = found.route if found else path if path in own else ""
        peer = scope.get("client")
        call = Call("http", route, id=_id(scope), client=peer[0] if peer else "")
        CALL.set(call)
        begun = False

        async def counted(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                call.code = str(message["status"])
                message["headers"] = [*message.get("headers", ()), (REQUEST_ID, call.id.encode())]
            else:
                call.sent += len(message.get("body", b""))
            await send(message)

        runtime.telemetry.begin(call)
        try:
            authorization = _header(scope, b"authorization").decode("latin-1")
            runtime.gate.admit(call, authorization, admin=found is not None and found.admin)
            try:
                if found:
                    await answer(found, call, scope, receive, counted)
                else:
                    await pass_on(call, scope, receive, counted)
            finally:
                runtime.gate.leave(call)
        except Exception as error:
            if begun:  # there is no other answer to give any more
                raise
            await _send(refused(error), counted)
        finally:
            runtime.telemetry.end(call)

    return serve


async def _send(answer: Answer, send: Send) -> None:
    headers = [*answer.headers, (b"content-length", str(len(answer.body)).encode())]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


def _id(scope: Scope) -> str:
    """The request's own id, if it is one that can stand in a header and a log, or a new one."""
    given = _header(scope, REQUEST_ID).decode("latin-1")
    fits = given and len(given) <= _LONGEST_ID and given.isascii() and given.isprintable()
    return given if fits else new_id()


def _late(seconds: float) -> TimedOut:
    return TimedOut(f"no answer within {seconds:g} seconds")


async def _body(call: Call, scope: Scope, receive: Receive, largest: int) -> bytes:
    raw = await _read(scope, receive, largest)
    call.received = len(raw)
    return _decode(scope, raw, largest)


async def _read(scope: Scope, receive: Receive, largest: int) -> bytes:
    declared = _header(scope, b"content-length")
    if declared.isdigit() and int(declared) > largest:
        raise _too_large(largest)
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise BadInput("the client left before its body was complete")
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > largest:
            raise _too_large(largest)
        if not message.get("more_body", False):
            return b"".join(chunks)


def _decode(scope: Scope, body: bytes, largest: int) -> bytes:
    """The body without its gzip or deflate, of no more than `largest` bytes."""
    encoding = _header(scope, b"content-encoding").strip().lower()
    if encoding in (b"", b"identity"):
        return body
    if encoding not in (b"gzip", b"x-gzip", b"deflate"):
        raise BadInput(
            "the content encoding is unknown", got=repr(encoding.decode("latin-1")),
            expected="gzip, deflate or none",
        )  # fmt: skip
    # 32 more bits of window: gzip or zlib, whichever the header says.
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        plain = inflate.decompress(body, largest + 1)
    except zlib.error as error:
        raise BadInput("the compressed body is corrupt", got=str(error)) from error
    if len(plain) > largest:
        raise _too_large(largest)
    if not inflate.eof:
        raise BadInput("the compressed body is truncated", got=f"{len(body)} bytes")
    scope["headers"] = [
        (name, value)
        for name, value in scope["headers"]
        if name not in (b"content-encoding", b"content-length")
    ] + [(b"content-length", str(len(plain)).encode())]
    return plain


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the whole body once, then what the server still has to say."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


async def _within(
    seconds: float, app: Callable[..., Awaitable[None]], scope: Scope, receive: Receive, send: Send
) -> None:
    """Serve; raises `TimedOut` unless a response has begun within `seconds`."""
    timer = asyncio.timeout(seconds)
    try:
        async with timer:

            async def begin(message: Message) -> None:
                if timer.when() is not None:
                    timer.reschedule(None)
                await send(message)

            await app(scope, receive, begin)
    except TimeoutError:
        if not timer.expired():
            raise
        raise _late(seconds) from None


def _too_large(largest: int) -> TooLarge:
    return TooLarge("the body is too large", expected=f"at most {largest} bytes")
