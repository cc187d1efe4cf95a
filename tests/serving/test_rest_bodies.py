"""Bodies: what is packed comes back, what does not pay is not packed, what is too large stops."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import BadInput, TooLarge, WrongMediaType
from serving.bodies import choose_encoding, pack, read_body

UNPACK = {b"gzip": gzip.decompress, b"deflate": zlib.decompress}


def received(*chunks: bytes) -> Any:
    messages = [
        {"type": "http.request", "body": chunk, "more_body": place < len(chunks) - 1}
        for place, chunk in enumerate(chunks)
    ]

    async def receive() -> Any:
        return messages.pop(0)

    return receive


@pytest.mark.parametrize("encoding", UNPACK)
@given(seed=st.integers(0, 9), size=st.sampled_from([1399, 1400, 5000, 70_000, 300_000]))
def test_what_is_packed_comes_back(encoding: bytes, seed: int, size: int) -> None:
    body = np.random.default_rng(seed).integers(0, 4, size, np.uint8).tobytes()
    packed, name = asyncio.run(pack(body, encoding))
    assert name == (encoding if size >= 1400 else b"")
    if name:
        assert UNPACK[name](packed) == body
        assert len(packed) < 0.8 * len(body)
        header = {b"content-encoding": name}
        held: list[int] = []
        read = asyncio.run(read_body(header, received(packed), size, held.append))
        assert read == (body, len(packed))
        assert held == [len(packed), len(body)]


@pytest.mark.parametrize("size", [5000, 70_000])
def test_noise_is_not_packed(size: int) -> None:
    body = np.random.default_rng(0).bytes(size)
    assert asyncio.run(pack(body, b"gzip")) == (body, b"")


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        (b"gzip", b"gzip"),
        (b"deflate", b"deflate"),
        (b"gzip, deflate, br", b"gzip"),
        (b"gzip;q=0.2, deflate;q=0.9", b"deflate"),
        (b"gzip;q=0, deflate", b"deflate"),
        (b"GZIP ; q=1.0", b"gzip"),
        (b"*", b"gzip"),
        (b"*;q=0", b""),
        (b"gzip;q=0, *", b"deflate"),
        (b"br, zstd", b""),
        (b"identity", b""),
        (b"gzip;q=x", b""),
        (b"gzip;q=nan", b""),
        (b",;,=", b""),
    ],
)
def test_the_encoding_that_is_preferred_is_chosen(accepted: bytes, chosen: bytes) -> None:
    assert choose_encoding(accepted) == chosen


@given(st.binary(max_size=60))
def test_any_accept_encoding_is_read(accepted: bytes) -> None:
    assert choose_encoding(accepted) in (b"", b"gzip", b"deflate")


def test_bodies_are_bounded_as_they_come_and_as_they_are() -> None:
    held: list[int] = []

    def read(header: dict[bytes, bytes], *chunks: bytes) -> tuple[bytes, int]:
        held.clear()
        return asyncio.run(read_body(header, received(*chunks), 100, held.append))

    assert read({}, b"ab", b"c") == (b"abc", 3)
    assert read({b"content-encoding": b"identity"}, b"abc") == (b"abc", 3)
    with pytest.raises(TooLarge):
        read({b"content-length": b"101"})  # before a byte of it
    with pytest.raises(TooLarge):
        read({}, bytes(60), bytes(60))
    assert held == [60]  # as it comes, and no more than that
    with pytest.raises(TooLarge):
        read({b"content-encoding": b"gzip"}, gzip.compress(bytes(101)))
    with pytest.raises(BadInput, match="truncated"):
        read({b"content-encoding": b"deflate"}, zlib.compress(b"abc")[:-1])
    with pytest.raises(BadInput, match="corrupt"):
        read({b"content-encoding": b"gzip"}, b"abc")
    with pytest.raises(WrongMediaType, match="'br'"):
        read({b"content-encoding": b"br"}, b"abc")


def test_a_client_that_leaves_is_no_request() -> None:
    async def left() -> Any:
        return {"type": "http.disconnect"}

    with pytest.raises(BadInput, match="left before"):
        asyncio.run(read_body({}, left, 100, [].append))
