"""The access log: a JSON line on standard error for each request, written off the hot path.

A thread of its own writes, for a reader of standard error that is slow or stops would otherwise
stop the event loop. What it cannot write in time is dropped and counted; when nobody reads, all is.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import orjson

from serving.calls import Call

INTERVAL = 0.1  # seconds between writes
MOST = 10_000  # lines that may wait
_STDERR = 2
# A write of no more than this is one piece, also where several workers write into one pipe.
_PIECE = select.PIPE_BUF


class AccessLog:
    """The lines of one worker; `write` takes bytes, and may block or raise `OSError`.

    By default it writes to standard error.
    """

    def __init__(self, write: Callable[[bytes], object] | None = None) -> None:
        self._write = write or partial(os.write, _STDERR)
        self._waiting: deque[tuple[Call, float, float]] = deque()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.dropped = 0

    def add(self, call: Call, seconds: float) -> None:
        """A line for a call that has ended after so many seconds."""
        if len(self._waiting) >= MOST:
            self.dropped += 1
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
            self._thread.start()
        self._waiting.append((call, seconds, time.time()))

    def close(self) -> None:
        """Write what is waiting, for a second at most."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(1.0)

    def _run(self) -> None:
        ending = False
        while not ending:
            ending = self._ended.wait(INTERVAL)
            for piece, count in _pieces(self._lines()):
                try:
                    self._write(piece)
                except OSError:  # it is closed, or its reader has gone
                    self.dropped += count

    def _lines(self) -> Iterator[bytes]:
        while self._waiting:
            call, seconds, ended = self._waiting.popleft()
            yield line(call, seconds, ended)


def line(call: Call, seconds: float, ended: float) -> bytes:
    """What is logged of a call: never a payload, a key, or a path that a client made up.

    `ended` is in seconds since the epoch.
    """
    said: dict[str, Any] = {
        "time": datetime.fromtimestamp(ended, UTC).isoformat(timespec="milliseconds"),
        "id": call.id,
        "client": call.client,
        "transport": call.transport,
        "route": call.route or None,
        "model": call.model or None,
        "version": call.version or None,
        "code": call.code or None,  # none where the client had gone before
        "ms": round(seconds * 1000, 3),
        "received": call.received,
        "sent": call.sent,
        "trace": call.trace or None,
    }
    if call.rows:
        said |= {
            "rows": call.rows,
            "queue_ms": round(call.queued * 1000, 3),
            "engine_ms": round(call.engine * 1000, 3),
        }
    return orjson.dumps({k: v for k, v in said.items() if v is not None}) + b"\n"


def _pieces(lines: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
    """Lines joined into pieces of at most `_PIECE` bytes, or of one line; with their count."""
    held: list[bytes] = []
    size = 0
    for one in lines:
        if held and size + len(one) > _PIECE:
            yield b"".join(held), len(held)
            held, size = [], 0
        held.append(one)
        size += len(one)
    if held:
        yield b"".join(held), len(held)
