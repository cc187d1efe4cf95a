"""The one entrance for HTTP: counts, admits and bounds every request, and then lets it go its way.

The protocol's requests and the typed ones are answered here, without a framework between: BentoML's
own path costs a request several times what a small engine takes. Its other routes stay behind its
middlewares, but for a timeout that keeps every request's timer for a minute. Unknown paths reach
its router at once, for its metrics take each raw path for a label, so that random URLs make endless
series.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bentoml import Service, get_current_service
from starlette.applications import Starlette
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.errors import TimedOut
from serving import playground_routes
from serving.bodies import Lines, pack, read_body
from serving.calls import CALL, Call, new_id, sound_id
from serving.connections import bound_connections
from serving.inference_rest import Answer, Match, match, refused, wrong_method
from serving.openapi import PATH, document
from serving.settings import read_settings
from serving.typed_routes import Endpoint, typed_routes

if TYPE_CHECKING:
    from serving.runtime import Runtime

T = TypeVar("T")
REQUEST_ID = b"x-request-id"
_CLOSE = (b"connection", b"close")
_REPLACED = "TimeoutMiddleware"
_READINESS = "readyz"
_WITH_BODY = ("POST", "PUT", "PATCH")


class FrontedService(Service[T]):
    """A BentoML service behind a front; given to `bentoml.service` as its `service_class`."""

    def to_asgi(self, is_main: bool = True) -> Any:
        bound_connections(read_settings(os.environ, Path()).timeout)
        return front(super().to_asgi(is_main), served, self)  # pyright: ignore[reportArgumentType]


def served() -> Runtime:
    """The runtime of the service instance that BentoML made in this process."""
    return get_current_service().runtime


def front(
    app: Starlette, find: Callable[[], Runtime], service: Service[Any] | None = None
) -> ASGIApp:
    """The ASGI application that is served, over BentoML's `app` of `service`.

    Each request asks `find` for the runtime.
    """
    app.user_middleware = [
        middleware
        for middleware in app.user_middleware
        if getattr(middleware.cls, "__name__", "") != _REPLACED
    ]
    routes = app.router.routes
    # BentoML says ready when its process is; ours says when the models are.
    routes[:] = [route for route in routes if getattr(route, "name", "") != _READINESS]
    typed = typed_routes(service) if service else {}
    own = {PATH, *(route.path for route in routes if isinstance(route, Route))}
    bare = ExceptionMiddleware(app.router)

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        runtime, method, path, peer = find(), scope["method"], scope["path"], scope.get("client")
        header: Lines = dict(scope["headers"])
        found = match(method, path)
        if found is None and runtime.settings.playground:
            found = playground_routes.match(method, path)
        route = found.route if found else path if path in own else ""
        call = Call("http", route, id=_id(header), client=peer[0] if peer else "")
        CALL.set(call)
        reply = _Reply(call, send, closing=runtime.draining)
        runtime.telemetry.begin(call, scope["headers"])
        try:
            authorization = header.get(b"authorization", b"").decode("latin-1")
            runtime.gate.admit(call, authorization, admin=found is not None and found.admin)
            try:
                if found and found.check:
                    found.check(runtime, found.parameters)
                body, limit = b"", runtime.settings.timeout
                if method in _WITH_BODY:
                    largest = runtime.settings.largest_body
                    hold = partial(runtime.gate.hold, call)
                    body, call.received = await read_body(header, receive, largest, hold)
                if found:
                    said = await _handled(found, runtime, header, body, limit)
                    await _say(said, header, reply.send)
                elif path in typed:
                    if method == "POST":
                        ask = _typed(typed[path], header)
                        await _within(limit, ask, _plain(scope), _replay(body, receive), reply.send)
                    else:
                        await _say(wrong_method(method, "POST"), header, reply.send)
                elif path == PATH and service:
                    said = await _described(service, runtime, method)
                    await _say(said, header, reply.send)
                elif method in _WITH_BODY:
                    to = app if route else bare
                    await _within(limit, to, _plain(scope), _replay(body, receive), reply.send)
                else:
                    await _within(limit, app if route else bare, scope, receive, reply.send)
            finally:
                runtime.gate.leave(call)
        except Exception as error:
            if reply.begun:  # there is no other answer to give any more
                raise
            await _say(refused(error), header, reply.send)
        finally:
            runtime.telemetry.end(call)

    return serve


class _Reply:
    """The way back to the client, which notes in the call what goes there."""

    def __init__(self, call: Call, send: Send, *, closing: bool) -> None:
        self._call = call
        self._send = send
        # Of a server that ends: the client is to ask elsewhere next, before it is cut off.
        self._more = [_CLOSE] if closing else []
        self.begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            self._call.code = str(message["status"])
            own = (REQUEST_ID, self._call.id.encode())
            message["headers"] = [*message.get("headers", ()), own, *self._more]
        else:
            self._call.sent += len(message.get("body", b""))
        await self._send(message)


async def _say(answer: Answer, header: Lines, send: Send) -> None:
    """Send a whole answer, compressed if it may be and that pays."""
    body, headers = answer.body, list(answer.headers)
    if answer.packable:
        body, encoding = await pack(body, header.get(b"accept-encoding", b""))
        if encoding:
            headers += [(b"content-encoding", encoding), (b"vary", b"accept-encoding")]
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _handled(
    found: Match, runtime: Runtime, header: Lines, body: bytes, limit: float
) -> Answer:
    try:
        async with asyncio.timeout(limit):
            return await found.handler(runtime, found.parameters, header, body)
    except TimeoutError:
        raise _late(limit) from None


async def _described(service: Service[Any], runtime: Runtime, method: str) -> Answer:
    if method not in ("GET", "HEAD"):
        return wrong_method(method, "GET, HEAD")
    return Answer(await asyncio.to_thread(document, service, runtime), packable=True)


def _typed(endpoint: Endpoint, header: Lines) -> ASGIApp:
    """A typed route as an application: a whole response as an answer, a stream as it will."""

    async def ask(scope: Scope, receive: Receive, send: Send) -> None:
        response = await endpoint(Request(scope, receive))
        if type(response) is not Response:
            await response(scope, receive, send)
            return
        headers = [line for line in response.raw_headers if line[0] != b"content-length"]
        status = response.status_code
        said = Answer(bytes(response.body), status, headers, packable=status == 200)
        await _say(said, header, send)

    return ask


def _plain(scope: Scope) -> Scope:
    """The scope of a request whose body is there, and no longer compressed."""
    gone = (b"content-encoding", b"content-length", b"transfer-encoding")
    return {**scope, "headers": [line for line in scope["headers"] if line[0] not in gone]}


def _id(header: Lines) -> str:
    """The request's own id, if it is one that can stand in a header and a log, or a new one."""
    given = header.get(REQUEST_ID, b"").decode("latin-1")
    return given if sound_id(given) else new_id()


def _late(seconds: float) -> TimedOut:
    return TimedOut(f"no answer within {seconds:g} seconds")


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the whole body once, then what the server still has to say."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


async def _within(seconds: float, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
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
