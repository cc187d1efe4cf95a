"""Load: one request asked again and again over raw connections, and how long each answer took.

The client is lean, so that it is the server which is measured: it writes the same bytes, and of
what comes back it reads the status and the length.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import cast
from urllib.parse import urlsplit

import numpy as np

from models.signature import Arrays
from serving.client_messages import write_question
from serving.inference_messages import HEADER_LENGTH

_OK, _OVERLOADED = 200, 503
_SECONDS = 60.0  # after the last request was sent, for what is still under way


@dataclass
class Answers:
    """What came back: the seconds of each answer, of refusals, and how many were neither."""

    seconds: float = 0.0  # from the first request to the last answer
    accepted: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    failed: int = 0

    @property
    def rate(self) -> float:
        """Accepted requests per second."""
        return len(self.accepted) / self.seconds

    def percentile(self, percent: float) -> float:
        """Seconds within which that share of the accepted requests was answered."""
        return float(np.percentile(self.accepted, percent)) if self.accepted else float("nan")

    def add(self, status: int, seconds: float) -> None:
        if status == _OK:
            self.accepted.append(seconds)
        elif status == _OVERLOADED:
            self.refused.append(seconds)
        else:
            self.failed += 1


def request_of(address: str, model: str, inputs: Arrays) -> bytes:
    """The bytes of an HTTP request for one inference, tensors in binary."""
    header, pieces = write_question(inputs)
    body = b"".join([header, *pieces])
    place = urlsplit(address)
    lines = (
        f"POST /v2/models/{model}/infer HTTP/1.1", f"Host: {place.netloc}",
        "Content-Type: application/octet-stream", f"{HEADER_LENGTH}: {len(header)}",
        f"Content-Length: {len(body)}",
    )  # fmt: skip
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def closed_loop(
    address: str, requests: Sequence[bytes], clients: int, seconds: float
) -> Answers:
    """Clients that each ask again as soon as they are answered; no more than `clients` wait.

    Each asks one of the requests, again and again.
    """
    answers = Answers()
    begun = time.perf_counter()
    connections = [await _connect(address) for _ in range(clients)]

    async def ask(connection: _Connection, request: bytes) -> None:
        while time.perf_counter() < begun + seconds:
            sent = time.perf_counter()
            answers.add(status := await connection.ask(request), time.perf_counter() - sent)
            if not status:  # the connection is gone
                return

    await asyncio.gather(*map(ask, connections, cycle(requests)))
    answers.seconds = time.perf_counter() - begun
    for connection in connections:
        connection.close()
    return answers


async def open_loop(
    address: str, request: bytes, rate: float, seconds: float, connections: int = 256
) -> Answers:
    """`rate` requests per second, at even distances, however the server answers.

    Each answer's time is from the moment its request was due, so that one which finds none of the
    `connections` free is not made to look short.
    """
    answers = Answers()
    free = [await _connect(address) for _ in range(connections)]
    freed = asyncio.Condition()

    async def ask(due: float) -> None:
        async with freed:
            await freed.wait_for(lambda: bool(free))
            connection = free.pop()
        if connection.gone:  # a server ends those that are idle, and any client connects again
            connection = await _connect(address)
        answers.add(await connection.ask(request), time.perf_counter() - due)
        async with freed:
            free.append(connection)
            freed.notify()

    begun = time.perf_counter()
    tasks: set[asyncio.Task[None]] = set()
    for number in range(max(1, int(rate * seconds))):
        due = begun + number / rate
        if (ahead := due - time.perf_counter()) > 0:
            await asyncio.sleep(ahead)
        task = asyncio.create_task(ask(due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        await asyncio.wait(tasks, timeout=_SECONDS)
    answers.failed += len(tasks)
    answers.seconds = time.perf_counter() - begun
    for connection in free:
        connection.close()
    return answers


class _Connection(asyncio.Protocol):
    """One connection that is kept, for one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.WriteTransport | None = None
        self._answer: asyncio.Future[int] | None = None
        self._said = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are none by inheritance.
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        self._said += data
        end = self._said.find(b"\r\n\r\n")
        if end < 0 or self._answer is None:
            return
        head = bytes(self._said[:end]).lower()
        length = int(head.partition(b"\r\ncontent-length:")[2].split(b"\r\n")[0])
        if len(self._said) >= end + 4 + length:
            self._said.clear()
            self._end(int(head[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._end(0)

    def _end(self, status: int) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(status)

    @property
    def gone(self) -> bool:
        return self._transport is None

    async def ask(self, request: bytes) -> int:
        """The status of the answer; 0 when the connection is gone."""
        if self._transport is None:
            return 0
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def _connect(address: str) -> _Connection:
    place = urlsplit(address)
    loop = asyncio.get_running_loop()
    host, port = place.hostname or "", place.port or 80
    _, connection = await loop.create_connection(_Connection, host, port)
    return connection
