"""Connections: a head goes out with its body, and what is written arrives whole and in order."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from serving.connections import _Joined

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"
TURN = None  # of the event loop


class Recorded(asyncio.Transport):
    """A transport that keeps each write as it came."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        assert not self.closed
        self.writes.append(bytes(data))

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.write(b"".join(list_of_data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


async def written(steps: list[bytes | None], *, closed: bool) -> list[bytes]:
    transport = Recorded()
    joined = _Joined(transport, asyncio.get_running_loop())
    for step in steps:
        if step is None:
            await asyncio.sleep(0)
        else:
            joined.write(step)
    if closed:
        joined.close()
        assert joined.is_closing()
    await asyncio.sleep(0)
    return transport.writes


@given(
    st.lists(st.sampled_from([HEAD, b"body", b"", b"0\r\n\r\n", TURN]), max_size=12), st.booleans()
)
def test_every_byte_arrives_once_and_in_order(steps: list[bytes | None], closed: bool) -> None:
    writes = asyncio.run(written(steps, closed=closed))
    assert b"".join(writes) == b"".join(step for step in steps if step is not None)


def test_a_head_goes_out_with_what_follows_at_once_and_waits_for_nothing_else() -> None:
    answer = [HEAD, b"body", b"more"]
    assert asyncio.run(written([*answer], closed=False)) == [HEAD + b"body", b"more"]
    assert asyncio.run(written([HEAD, TURN, b"body"], closed=False)) == [HEAD, b"body"]
    assert asyncio.run(written([HEAD], closed=True)) == [HEAD]


def test_nothing_is_written_to_a_client_that_has_left() -> None:
    async def leave() -> list[bytes]:
        transport = Recorded()
        _Joined(transport, asyncio.get_running_loop()).write(HEAD)
        transport.close()
        await asyncio.sleep(0)
        return transport.writes

    assert asyncio.run(leave()) == []
