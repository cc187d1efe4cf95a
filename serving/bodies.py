"""Bodies of HTTP: read whole and bounded, decompressed, and compressed where that pays."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Mapping

from starlette.types import Receive

from models.errors import BadInput, TooLarge, WrongMediaType

# Under one packet nothing is won; over the other, others would wait for it.
_WORTH_PACKING = 1400
WORTH_A_THREAD = 64 * 1024
_SAMPLE = 4096
# What a packed body may be of the plain one: to save a tenth of floats costs more than it brings.
_PAYS = 0.8
_GZIP = zlib.MAX_WBITS | 16
_EITHER = zlib.MAX_WBITS | 32  # gzip or zlib, whichever the body itself says

Lines = Mapping[bytes, bytes]  # a request's header, names in lower case


async def read_body(
    header: Lines, receive: Receive, largest: int, hold: Callable[[int], None]
) -> tuple[bytes, int]:
    """The plain body and how many bytes of it came; `hold` is told of all that is kept of it.

    Raises `TooLarge` as soon as either is over `largest`, `BadInput` for what is corrupt, and what
    `hold` does.
    """
    raw = await _read(header, receive, largest, hold)
    encoding = header.get(b"content-encoding", b"")
    if not encoding:
        return raw, len(raw)
    if len(raw) < WORTH_A_THREAD:
        plain = _unpack(encoding, raw, largest)
    else:
        plain = await asyncio.to_thread(_unpack, encoding, raw, largest)
    hold(len(plain))
    return plain, len(raw)


async def pack(body: bytes, accepted: bytes) -> tuple[bytes, bytes]:
    """The body in the encoding that is accepted and pays, and that encoding's name, or as it is."""
    if not accepted or len(body) < _WORTH_PACKING:
        return body, b""
    encoding = choose_encoding(accepted)
    if not encoding or not _pays(body):
        return body, b""
    if len(body) < WORTH_A_THREAD:
        packed = _pack(encoding, body)
    else:
        packed = await asyncio.to_thread(_pack, encoding, body)
    return (packed, encoding) if len(packed) < _PAYS * len(body) else (body, b"")


def choose_encoding(accepted: bytes) -> bytes:
    """Which of gzip and deflate an `Accept-Encoding` prefers (RFC 9110, 12.5.3), or neither."""
    weights: dict[bytes, float] = {}
    for part in accepted.lower().split(b","):
        name, _, weight = part.partition(b";")
        try:
            weights[name.strip()] = float(weight.strip().removeprefix(b"q=") or 1)
        except ValueError:
            weights[name.strip()] = 0.0  # of a malformed weight nothing is inferred
    any_other = weights.get(b"*", 0.0)
    best = max((b"gzip", b"deflate"), key=lambda name: weights.get(name, any_other))
    return best if weights.get(best, any_other) > 0 else b""


def _pays(body: bytes) -> bool:
    """Whether a sample out of a large body's middle shrinks enough."""
    if len(body) < 4 * _SAMPLE:
        return True
    middle = len(body) // 2
    return len(zlib.compress(body[middle : middle + _SAMPLE], 1)) < _PAYS * _SAMPLE


def _pack(encoding: bytes, body: bytes) -> bytes:
    deflate = zlib.compressobj(1, wbits=_GZIP if encoding == b"gzip" else zlib.MAX_WBITS)
    return deflate.compress(body) + deflate.flush()


async def _read(
    header: Lines, receive: Receive, largest: int, hold: Callable[[int], None]
) -> bytes:
    declared = header.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > largest:
        raise _too_large(largest)
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise BadInput("the client left before its body was complete")
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > largest:
            raise _too_large(largest)
        hold(len(chunks[-1]))
        if not message.get("more_body", False):
            return b"".join(chunks)


def _unpack(encoding: bytes, body: bytes, largest: int) -> bytes:
    name = encoding.strip().lower()
    if name == b"identity":
        return body
    if name not in (b"gzip", b"x-gzip", b"deflate"):
        raise WrongMediaType(
            "the content encoding is unknown", got=repr(name.decode("latin-1")),
            expected="gzip, deflate or none",
        )  # fmt: skip
    inflate = zlib.decompressobj(_EITHER)
    try:
        plain = inflate.decompress(body, largest + 1)
    except zlib.error as error:
        raise BadInput("the compressed body is corrupt", got=str(error)) from error
    if len(plain) > largest:
        raise _too_large(largest)
    if not inflate.eof:
        raise BadInput("the compressed body is truncated", got=f"{len(body)} bytes")
    return plain


def _too_large(largest: int) -> TooLarge:
    return TooLarge("the body is too large", expected=f"at most {largest} bytes")
