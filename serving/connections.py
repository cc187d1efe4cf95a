"""Connections: uvicorn's protocol with an end to what one may send before it is answered.

uvicorn reads headers without limit of size or time, and bodies without limit of time: measured, 100
MB of an unfinished header were 135 MB of memory, and half a header held its connection for good. It
also writes the head of an answer alone, which wakes the client for nothing.
"""

from __future__ import annotations

import asyncio
import json
import resource
from functools import partial
from typing import Any

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

MOST_HEADERS = 128
LARGEST_HEAD = 64 * 2**10  # bytes of a request's line and headers
# Files, engines and gRPC need descriptors as well: without one, nothing can be accepted any more.
SHARE_OF_DESCRIPTORS = 0.75
MOST_CONNECTIONS = 10_000
# A chunk of a body may come with so many bytes around each of its own.
_AROUND = 16


def bound_connections(seconds: float) -> None:
    """Let this process's uvicorn take connections whose requests arrive within `seconds`."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_CONNECTIONS
    if descriptors != resource.RLIM_INFINITY:
        most = min(most, int(descriptors * SHARE_OF_DESCRIPTORS))
    # BentoML lets uvicorn choose its protocol, and has no option for it.
    protocols: dict[str, Any] = uvicorn.config.HTTP_PROTOCOLS
    protocols["auto"] = partial(BoundedProtocol, seconds=seconds, most=most)


class _Joined:
    """A transport that writes the head of an answer together with what follows at once."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""
        self._flushing: asyncio.Handle | None = None
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
            self._transport.writelines([self._head, data])
        elif data.startswith(b"HTTP/") and data.endswith(b"\r\n\r\n"):
            self._head = data
            self._flushing = self._loop.call_soon(self._flush)  # what follows is not there yet
        else:
            self._transport.write(data)

    def close(self) -> None:
        if self._flushing is not None:
            self._flushing.cancel()
            self._flush()
        self._transport.close()

    def _flush(self) -> None:
        self._flushing = None
        if not self._transport.is_closing():  # the client may have left meanwhile
            self._transport.write(self._head)


class BoundedProtocol(HttpToolsProtocol):
    """A connection whose requests are bounded: headers in size and number, all in time."""

    def __init__(self, *, seconds: float, most: int, **given: Any) -> None:
        super().__init__(**given)
        self._seconds = seconds
        self._most = most
        self._partial = False  # a request has begun to arrive
        self._around = 0  # bytes of it that are no body
        self._small = False  # the piece that came last is small and began it
        self._refused = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self.transport = _Joined(transport, self.loop)  # pyright: ignore[reportAttributeAccessIssue]
        if len(self.connections) > self._most:
            self._refuse(503, "too many connections", b"retry-after: 1\r\n")
        else:
            self._partial = True
            self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._partial = True
        self._small = False
        self._around += len(data)
        super().data_received(data)
        if not self._partial or self._refused:
            return
        if self._around > LARGEST_HEAD:
            self._refuse(431, f"the headers are too large: expected at most {LARGEST_HEAD} bytes")
        elif self._timer is None:
            self._start()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._partial = True
        self._small = self._around <= LARGEST_HEAD
        # A little is forgotten when it came in one piece with what was before.
        self._around = 0

    def on_headers_complete(self) -> None:
        if not self._small and self._size() > LARGEST_HEAD:
            self._refuse(431, f"the headers are too large: expected at most {LARGEST_HEAD} bytes")
        elif len(self.headers) > MOST_HEADERS:
            self._refuse(431, f"there are too many headers: expected at most {MOST_HEADERS}")
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._around = max(self._around - _AROUND * len(body), 0)
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._partial = False
        if self._timer is not None:
            self._stop()
        if not self._refused:
            super().on_message_complete()

    def _size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "the request is not HTTP/1.1")

    def _should_upgrade_to_ws(self) -> bool:
        return False  # nothing here speaks it, and its protocol has no bounds

    def _unsupported_upgrade_warning(self) -> None:
        """Some clients ask for HTTP/2 with every request: no reason to log."""

    def _start(self) -> None:
        self._timer = self.loop.call_later(self._seconds, self._late)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        cycle = self.cycle
        if self.transport.is_closing():
            return
        if cycle is not None and not cycle.response_complete and not cycle.more_body:
            self._start()  # an answer is under way, and what comes after it may wait
        elif cycle is not None and (cycle.response_started or cycle.response_complete):
            self.transport.close()
        else:
            self._refuse(408, f"the request did not arrive within {self._seconds:g} seconds")

    def _refuse(self, status: int, text: str, header: bytes = b"") -> None:
        self._refused = True
        body = json.dumps({"error": text}).encode()
        self.transport.write(
            STATUS_LINE[status]
            + b"content-type: application/json\r\nconnection: close\r\n"
            + header
            + f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        self.transport.close()
        if self.cycle is not None and not self.cycle.response_complete:
            # Whoever still reads the body is to give it up.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
