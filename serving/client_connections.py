"""Kept HTTP connections to one server, and how each failure of theirs is raised."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from models.errors import (
    BadInput,
    Forbidden,
    FucinaError,
    NotReady,
    ServingFailed,
    TimedOut,
    TooLarge,
    TooMany,
    Unauthenticated,
    UnknownModel,
    Unsupported,
    WrongMediaType,
)
from serving.client_retries import Unanswered, asking

ERRORS: dict[int, type[FucinaError]] = {
    400: BadInput,
    401: Unauthenticated,
    403: Forbidden,
    404: UnknownModel,
    413: TooLarge,
    415: WrongMediaType,
    429: TooMany,
    501: Unsupported,
    503: NotReady,
    504: TimedOut,
}
_AGAIN = (429, 503)

Piece = bytes | memoryview
Response = http.client.HTTPResponse


@dataclass(frozen=True)
class Request:
    """What is sent: the pieces of the body one after the other, as they are."""

    method: str
    path: str
    body: Sequence[Piece] = ()
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Connections:
    """A server's connections, shared by threads; an idle one is taken before a new one is made.

    `timeout` is in seconds, for a request with its `retries`.
    """

    host: str
    port: int | None
    tls: ssl.SSLContext | None
    headers: Mapping[str, str]
    timeout: float
    retries: int
    idle: list[http.client.HTTPConnection] = field(default_factory=list)

    def ask(self, request: Request, retries: int | None = None) -> tuple[Response, bytes]:
        """The response with status 200, and its body; raises one of `ERRORS` or `ServingFailed`."""

        def attempt(seconds: float) -> tuple[Response, bytes]:
            connection, response = self._begin(request, seconds)
            body = self._read(connection, response)
            if not response.will_close:
                self.idle.append(connection)
            return response, body

        return asking(attempt, self.timeout, self.retries if retries is None else retries)

    @contextmanager
    def stream(self, request: Request) -> Iterator[Response]:
        """The response with status 200, whose body is still to come; raises as `ask` does."""
        connection, response = asking(
            lambda seconds: self._begin(request, seconds), self.timeout, self.retries
        )
        try:
            yield response
        finally:
            connection.close()

    def close(self) -> None:
        while self.idle:
            self.idle.pop().close()

    def _begin(
        self, request: Request, seconds: float
    ) -> tuple[http.client.HTTPConnection, Response]:
        connection = self._take(seconds)
        headers = {**self.headers, **request.headers}
        if request.body:
            headers["Content-Length"] = str(sum(map(len, request.body)))
        try:
            connection.request(request.method, request.path, request.body or None, headers)
            response = connection.getresponse()
        except Exception as error:
            connection.close()
            raise self._broken(error) from error
        if response.status == http.client.OK:
            return connection, response
        said = self._read(connection, response)
        connection.close()
        error = _refused(response.status, said)
        if response.status not in _AGAIN:
            raise error
        after = response.headers.get("Retry-After", "0")
        raise Unanswered(error, float(after) if after.isdecimal() else 0.0)

    def _take(self, seconds: float) -> http.client.HTTPConnection:
        try:
            connection = self.idle.pop()
        except IndexError:
            if self.tls is None:
                return http.client.HTTPConnection(self.host, self.port, timeout=seconds)
            return http.client.HTTPSConnection(
                self.host, self.port, timeout=seconds, context=self.tls
            )
        connection.timeout = seconds
        if connection.sock is not None:
            connection.sock.settimeout(seconds)
        return connection

    def _read(self, connection: http.client.HTTPConnection, response: Response) -> bytes:
        try:
            return response.read()
        except Exception as error:
            connection.close()
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> Exception:
        """What to raise of a connection that failed, without an answer."""
        if isinstance(error, TimeoutError):
            return TimedOut(f"{self.host} does not answer in time")
        told = ServingFailed(f"{self.host} does not answer", got=f"{type(error).__name__}: {error}")
        refused = isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError)
        if refused or not isinstance(error, OSError | http.client.HTTPException):
            return told
        self.close()  # the idle ones have most likely broken with it
        return Unanswered(told)


def _refused(status: int, said: bytes) -> FucinaError:
    try:
        text = str(json.loads(said)["error"])
    except (ValueError, TypeError, KeyError):
        text = f"the server answered {status}: {said[:200]!r}"
    return ERRORS.get(status, ServingFailed)(text)
