"""What each error is answered with: the one table of HTTP statuses and gRPC codes."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import grpc

from models.errors import (
    BadInput,
    Forbidden,
    NotReady,
    Overloaded,
    RequestError,
    TimedOut,
    TooLarge,
    TooMany,
    Unauthenticated,
    UnknownModel,
    Unsupported,
    WrongMediaType,
)

logger = logging.getLogger("fucina.serving")


@dataclass(frozen=True)
class Failure:
    """How a failure is answered; `retry_after` is in seconds, for the HTTP header."""

    status: int
    code: grpc.StatusCode
    retry_after: int | None = None


FAILURES: dict[type[RequestError], Failure] = {
    BadInput: Failure(400, grpc.StatusCode.INVALID_ARGUMENT),
    TooLarge: Failure(413, grpc.StatusCode.INVALID_ARGUMENT),
    Unauthenticated: Failure(401, grpc.StatusCode.UNAUTHENTICATED),
    Forbidden: Failure(403, grpc.StatusCode.PERMISSION_DENIED),
    UnknownModel: Failure(404, grpc.StatusCode.NOT_FOUND),
    WrongMediaType: Failure(415, grpc.StatusCode.INVALID_ARGUMENT),
    TooMany: Failure(429, grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=1),
    Unsupported: Failure(501, grpc.StatusCode.UNIMPLEMENTED),
    NotReady: Failure(503, grpc.StatusCode.UNAVAILABLE, retry_after=5),
    Overloaded: Failure(503, grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=1),
    TimedOut: Failure(504, grpc.StatusCode.DEADLINE_EXCEEDED),
}
# Of an error's text, which says back what was sent: names that nobody has may be of any length.
LONGEST = 1000
INTERNAL = Failure(500, grpc.StatusCode.INTERNAL)


def failure(error: Exception) -> tuple[Failure, str]:
    """The answer to an error and its text; what is not the request's fault is logged, not told."""
    for kind in type(error).__mro__:
        if kind in FAILURES:
            text = str(error)
            return FAILURES[kind], text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
    logger.error("a request failed", exc_info=error)
    return INTERNAL, "internal error: the server's log has its cause"
