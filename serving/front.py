"""What stands before BentoML's own middlewares: bounded bodies, and only its own routes behind.

BentoML's metrics take each raw path for a label, so that random URLs make endless series, and its
timeout keeps every request's timer for a minute. Behind its middlewares stay its own routes, with
a timer that is cancelled; mounted apps and unknown paths reach the router at once, which also
saves the protocol most of a millisecond a request.
"""

from __future__ import annotations

import asyncio
import os
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import bentoml
from starlette.applications import Starlette
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.errors import BadInput
from serving.inference_rest import failed, json_response
from serving.settings import read_settings

T = TypeVar("T")
# The extension of a scope that sends past BentoML's middlewares, which trace each piece of a body.
BARE_SEND = "fucina.send"
TIMEOUT = 60.0
_REPLACED = "TimeoutMiddleware"
_READINESS = "readyz"


class FrontedService(bentoml.Service[T]):
    """A BentoML service behind a front; given to `bentoml.service` as its `service_class`."""

    def to_asgi(self, is_main: bool = True) -> Any:
        app: Any = super().to_asgi(is_main)
        return front(app, largest=read_settings(os.environ, Path(self.working_dir)).largest_body)


def front(app: Starlette, *, largest: int) -> ASGIApp:
    """The ASGI application that is served, over BentoML's `app`."""
    app.user_middleware = [
        middleware
        for middleware in app.user_middleware
        if getattr(middleware.cls, "__name__", "") != _REPLACED
    ]
    routes = app.router.routes
    # BentoML says ready when its process is; ours, mounted behind, says when the models are.
    routes[:] = [route for route in routes if getattr(route, "name", "") != _READINESS]
    own = {route.path for route in routes if isinstance(route, Route)}
    bare = ExceptionMiddleware(app.router)

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        if scope["method"] in ("POST", "PUT", "PATCH"):
            try:
                body = await _read(scope, receive, largest)
                body = _decode(scope, body, largest)
            except _TooLarge:
                text = f"the body is too large: expected at most {largest} bytes"
                await json_response({"error": text}, 413)(scope, receive, send)
                return
            except BadInput as error:
                await failed(error)(scope, receive, send)
                return
            receive = _replay(body, receive)
        if scope["path"] in own:
            scope.setdefault("extensions", {})[BARE_SEND] = send
            await _within(TIMEOUT, app, scope, receive, send)
        else:
            await bare(scope, receive, send)

    return serve


class _TooLarge(Exception): ...


async def _read(scope: Scope, receive: Receive, largest: int) -> bytes:
    declared = _header(scope, b"content-length")
    if declared.isdigit() and int(declared) > largest:
        raise _TooLarge
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise BadInput("the client left before its body was complete")
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > largest:
            raise _TooLarge
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
        raise _TooLarge
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
    """Serve, answering 504 unless a response has begun within `seconds`."""
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
        text = f"no answer within {seconds:g} seconds"
        await json_response({"error": text}, 504)(scope, receive, send)
