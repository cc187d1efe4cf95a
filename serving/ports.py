"""Ports of a server: whether one is free, and keeping it so until the server listens."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from models.errors import ServingFailed


def free_port(host: str) -> int:
    """A port that nobody listens on now."""
    with _bound(host, 0) as probe:
        return probe.getsockname()[1]


def check_port(host: str, port: int, what: str) -> None:
    """Raise `ServingFailed` naming the port unless it is free for us alone."""
    with kept_port(host, port, what):
        pass


@contextmanager
def kept_port(host: str, port: int, what: str) -> Iterator[int]:
    """The port, or any free one for 0, which the system offers to nobody inside the block.

    A server of ours may listen on it all the same. Raises `ServingFailed` naming a port that is not
    free.
    """
    try:
        kept = _bound(host, port)
    except OSError as error:
        raise ServingFailed(
            f"{what} port {port} on {host} cannot be used",
            got=error.strerror,
            fix="choose another port, or stop what uses it",
        ) from error
    with kept:
        number = kept.getsockname()[1]
        if sys.platform != "linux":  # where a port that is bound is nobody else's to listen on
            kept.close()
        yield number


def _bound(host: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        # A port whose last connections linger is free; one that is listened on is not.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound
