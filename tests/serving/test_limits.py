"""What one may do to a server, and what answers it.

Each line is a threat, its answer, and where it is tested: here unless another file is named.

| who sends or does | is answered by |
| --- | --- |
| a body over the limit, as declared, chunked, or decompressed | 413 before it is held |
| a body that never ends, or headers, or nothing at all | 408 or a closed connection, in time |
| headers without end, one or many, a long path, trailers | 431, closed |
| two lengths, a length and chunks, other smuggling | 400, closed |
| an upgrade to WebSocket or HTTP/2, a CONNECT | ordinary HTTP, or 400 |
| JSON nested deeply, huge numbers, long names | 400; an error text of bounded length |
| a form of many files, fields, or headers | 400 |
| a file given as an address | 400, and nobody asks that address |
| a picture of many pixels, parts, or scans; text that unpacks to much | 400; test_images |
| a picture of another format, or damaged | 400; test_images |
| messages over the limit over gRPC, as sent or unpacked | RESOURCE_EXHAUSTED, INVALID_ARGUMENT |
| names of models that are paths | 404, NOT_FOUND; no file is opened |
| no key, a wrong one, a revoked or expired one | 401, UNAUTHENTICATED; test_access, test_gate |
| a key for other models | 403, PERMISSION_DENIED; test_access |
| loading and unloading, by who may not | 403, PERMISSION_DENIED; test_gate |
| guessing a key by timing | every hash is compared whole; test_keys |
| reading a key in a log, metric, document, or error | it is in none; test_access |
| reading a key in the file of keys | it holds hashes, and is its owner's; test_keys |
| large bodies of many at a time | 503, RESOURCE_EXHAUSTED; test_gate |
| too much at a time, of one client | 429, RESOURCE_EXHAUSTED; others are answered; test_access |
| saying to be another address | X-Forwarded-For is not believed; test_access |
| listening to or changing what is sent | TLS 1.2 or 1.3 with forward secrecy; test_tls |
| a certificate of another authority, expired, or none | no connection; test_tls |
| a page of another origin that asks | no CORS header, 415; test_access |
| a page of another origin that frames | frame-ancestors; test_playground |
| a bundle that was changed | refused when opened; tests/pipeline |

Not answered here: a flood of connections or of bytes from many addresses, which is for what stands
before the server.
"""

from __future__ import annotations

import gzip
import json
import socket
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from serving.connections import LARGEST_HEAD, MOST_HEADERS
from tests.serving.conftest import assert_alive
from tests.serving.guarded_server import (
    GET,
    HEAD,
    LARGEST,
    TIMEOUT,
    Guarded,
    authorized,
    guarded_server,
    refusal,
    status,
)


@pytest.fixture(scope="module")
def guarded(
    digits: Path, pair: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guarded]:
    with guarded_server(digits, pair, tmp_path_factory.mktemp("keys") / "keys.json") as running:
        yield running


@pytest.fixture(scope="module")
def asked(guarded: Guarded) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {guarded.ada}"}
    with httpx.Client(base_url=guarded.server.http, timeout=30, headers=headers) as client:
        yield client


@pytest.fixture(autouse=True)
def alive(asked: httpx.Client) -> Iterator[None]:
    """After each threat the server answers as before."""
    yield
    assert_alive(asked)


def memory(guarded: Guarded) -> int:
    parent = psutil.Process(guarded.server.process.pid)
    return sum(one.memory_info().rss for one in parent.children(recursive=True))


# Bodies


@pytest.mark.parametrize("path", ["/v2/models/digits/infer", "/predict", "/predict_image"])
def test_large_bodies_are_refused_however_they_come(asked: httpx.Client, path: str) -> None:
    for content, headers in (
        (bytes(LARGEST + 1), {}),
        ((bytes(LARGEST // 2) for _ in range(3)), {}),
        (gzip.compress(bytes(LARGEST + 1)), {"Content-Encoding": "gzip"}),
        (zlib.compress(bytes(LARGEST + 1)), {"Content-Encoding": "deflate"}),
    ):
        answer = asked.post(path, content=content, headers=headers)
        assert answer.status_code == 413, answer.text
        assert str(LARGEST) in answer.json()["error"]


def test_a_declared_size_is_refused_before_a_byte_of_it(guarded: Guarded) -> None:
    lines = authorized(guarded, "Content-Type: application/json", f"Content-Length: {10**12}")
    assert status(guarded.send(HEAD + lines + b"\r\n")) == 413


def test_what_no_model_will_take_is_refused_before_its_body(guarded: Guarded) -> None:
    lines = authorized(guarded, "Content-Type: application/json", "Content-Length: 1000")
    unknown = HEAD.replace(b"/models/digits/", b"/models/nobody/")
    assert unknown != HEAD
    assert status(guarded.send(unknown + lines + b"\r\n")) == 404


def test_a_bomb_is_not_unpacked(guarded: Guarded, asked: httpx.Client) -> None:
    body = gzip.compress(bytes(100 * 2**20))
    assert len(body) < LARGEST
    before = memory(guarded)
    for _ in range(5):
        answer = asked.post("/predict", content=body, headers={"Content-Encoding": "gzip"})
        assert answer.status_code == 413
    assert memory(guarded) - before < 50 * 2**20


UNENDING = (
    b"",
    b"POST",
    b"\r\n\r\n",
    HEAD,
    HEAD + b"KEY\r\nContent-Length: 9\r\n\r\nhalf",
    HEAD + b"KEY\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhalf",
    HEAD + b"Content-Length: 9\r\n\r\nhalf",  # refused before its end
)


def test_what_never_ends_is_ended(guarded: Guarded) -> None:
    def wait(sent: bytes) -> tuple[bytes, float]:
        start = time.monotonic()
        with socket.create_connection(guarded.address, 30) as connection:
            connection.sendall(sent.replace(b"KEY\r\n", authorized(guarded)))
            got = b""
            while more := connection.recv(65536):  # until the server closes, or 30 seconds
                got += more
        return got, time.monotonic() - start

    with ThreadPoolExecutor(len(UNENDING)) as pool:
        answers = [*pool.map(wait, UNENDING)]
    for sent, (got, seconds) in zip(UNENDING, answers, strict=True):
        expected = 401 if sent == UNENDING[-1] else 408
        assert status(got) == expected, sent
        assert seconds > TIMEOUT / 2  # and not at once


def test_drop_by_drop_is_as_never(guarded: Guarded) -> None:
    """Each byte comes well in time, and all of them do not."""
    closed = 0
    connections = [socket.create_connection(guarded.address, 30) for _ in range(20)]
    try:
        until = time.monotonic() + 10 * TIMEOUT
        pending = [*HEAD + b"A: " + b"a" * 10_000]
        while closed < len(connections) and time.monotonic() < until:
            closed, byte = 0, bytes([pending.pop(0)])
            for connection in connections:
                try:
                    connection.sendall(byte)
                except OSError:
                    closed += 1
            time.sleep(TIMEOUT / 10)
    finally:
        for connection in connections:
            connection.close()
    assert closed == len(connections)


# Headers


@pytest.mark.parametrize(
    "lines",
    [
        b"A: " + b"a" * 2**20 + b"\r\n",
        b"A: a\r\n" * (2**20 // 6),
        b"A: a\r\n" * MOST_HEADERS,
        b"A" * LARGEST_HEAD + b": a\r\n",
    ],
)
def test_large_headers_are_refused(guarded: Guarded, lines: bytes) -> None:
    answer = guarded.send(GET + lines + b"\r\n")
    # A client that is still sending may see the closed connection only.
    assert not answer or status(answer) == 431


def test_ordinary_headers_are_taken(guarded: Guarded) -> None:
    assert status(guarded.send(GET + b"A: aaaa\r\n" * (MOST_HEADERS - 1) + b"\r\n")) == 200
    assert status(guarded.send(GET + b"A: " + b"a" * (LARGEST_HEAD - 99) + b"\r\n\r\n")) == 200


def test_an_unfinished_header_is_not_held(guarded: Guarded) -> None:
    before = memory(guarded)
    guarded.send(GET + b"A: ", *[bytes([97]) * 2**20] * 60)
    assert memory(guarded) - before < 30 * 2**20


def test_trailers_are_bounded(guarded: Guarded) -> None:
    before = memory(guarded)
    chunked = authorized(guarded, "Transfer-Encoding: chunked") + b"\r\n2\r\n{}\r\n0\r\n"
    guarded.send(HEAD + chunked, *[b"A: " + b"a" * 2**20 + b"\r\n"] * 60)
    assert memory(guarded) - before < 30 * 2**20


SMUGGLED = {
    "two lengths": b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
    "one length twice": b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "length and chunks": b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
    "unknown coding": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "two codings": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "no number": b"Content-Length: two\r\n\r\n{}",
    "a signed number": b"Content-Length: +2\r\n\r\n{}",
    "two numbers": b"Content-Length: 2, 2\r\n\r\n{}",
    "space before the colon": b"Content-Length : 2\r\n\r\n{}",
    "folded": b"A: a\r\n b\r\nContent-Length: 2\r\n\r\n{}",
    "bad chunk": b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a zero byte": b"A: \0\r\nContent-Length: 2\r\n\r\n{}",
}


@pytest.mark.parametrize("case", SMUGGLED)
def test_ambiguous_requests_are_refused_and_closed(guarded: Guarded, case: str) -> None:
    second = GET + b"X-Request-Id: smuggled\r\n\r\n"
    with socket.create_connection(guarded.address, 30) as connection:
        connection.sendall(HEAD + authorized(guarded) + SMUGGLED[case] + second)
        got = b""
        while more := connection.recv(65536):  # until it is closed
            got += more
    assert status(got) == 400
    assert b"smuggled" not in got


@pytest.mark.parametrize("kind", ["websocket", "h2c"])
def test_an_upgrade_is_not_made(guarded: Guarded, kind: str) -> None:
    lines = f"Connection: Upgrade\r\nUpgrade: {kind}\r\nSec-WebSocket-Version: 13\r\n"
    lines += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    assert status(guarded.send(GET + lines.encode())) == 200
    assert status(guarded.send(b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n")) in (400, 401, 404, 405)


# Content


@pytest.mark.parametrize("path", ["/v2/models/digits/infer", "/predict"])
@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs": ' + b"[" * 300_000 + b"]" * 300_000 + b"}",
        b'{"a":' * 100_000,
        b'{"inputs": 1' + b"0" * 400_000 + b"}",
        json.dumps({"x" * 500_000: 1}).encode(),
        json.dumps({"model": "x" * 500_000, "inputs": [{"name": "y" * 400_000}]}).encode(),
        b'{"model": "\\ud800", "inputs": []}',
    ],
)
def test_monstrous_json_is_a_short_error(asked: httpx.Client, path: str, body: bytes) -> None:
    answer = asked.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 404), answer.text[:300]
    assert len(answer.text) < 5_000


def test_long_names_are_a_short_error_over_grpc(guarded: Guarded) -> None:
    for name in ("x" * 500_000, "ü" * 100_000):
        assert refusal(guarded, name)[0] == "NOT_FOUND"


def test_large_messages_are_refused_over_grpc(guarded: Guarded) -> None:
    large = (LARGEST // 784, 1, 28, 28)
    assert refusal(guarded, "digits", large)[0] == "RESOURCE_EXHAUSTED"
    packed = refusal(guarded, "digits", large, compression_algorithm="gzip")
    assert packed[0] in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED")


@pytest.mark.parametrize(
    "form",
    [
        [("image", (f"{n}.png", b"x")) for n in range(100)],
        [("image", ("a.png", b"x"))] + [(f"f{n}", (None, b"x")) for n in range(100)],
        [("image", ("a.png", b"x")), ("model", (None, bytes(900_000)))],
        [("image", ("n" * 100_000, b"x"))],
        [("image", ("a.png", b"x", "image/png", {f"h{n}": "x" for n in range(50)}))],
    ],
)
def test_forms_are_bounded(asked: httpx.Client, form: Any) -> None:
    answer = asked.post("/predict_image", files=form)
    assert answer.status_code in (400, 404, 413), answer.text[:300]
    assert len(answer.text) < 5_000


@pytest.mark.parametrize("way", ["form text", "form file", "json"])
def test_an_address_is_never_asked(asked: httpx.Client, way: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bait:
        bait.settimeout(1)
        url = f"http://127.0.0.1:{bait.getsockname()[1]}/image.png"
        if way == "json":
            answer = asked.post("/predict_image", json={"image": url, "model": "digits"})
        else:
            name = None if way == "form text" else "image"
            answer = asked.post(
                "/predict_image", files={"image": (name, url.encode())}, data={"model": "digits"}
            )
        assert answer.status_code in (400, 415), answer.text
        with pytest.raises(TimeoutError):
            bait.accept()


def test_the_limit_of_pixels_is_the_servers(asked: httpx.Client) -> None:
    from tests.serving.test_images import bomb

    for width, expected in ((100, "corrupt"), (101, "101 x 100 pixels, expected at most 10000")):
        files = {"image": ("a.png", bomb(width, 100))}
        answer = asked.post("/predict_image", files=files, data={"model": "digits"})
        assert answer.status_code == 400
        assert expected in answer.json()["error"]


PATHS = (
    "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "/etc/passwd",
    "....//etc/passwd", "..\\..\\etc\\passwd", "digits/../../../etc/passwd", "%00", "C:\\x",
    "file:///etc/passwd", "~root", "$(id)", "\u2025/\u2025/etc/passwd",
)  # fmt: skip


@pytest.mark.parametrize("name", PATHS)
def test_names_are_no_paths(guarded: Guarded, asked: httpx.Client, name: str) -> None:
    routes = [
        ("GET", f"/v2/models/{name}"), ("GET", f"/v2/models/{name}/ready"),
        ("POST", f"/v2/models/{name}/infer"), ("GET", f"/v2/models/digits/versions/{name}"),
        ("POST", f"/v2/repository/models/{name}/load"), ("GET", f"/static_content/{name}"),
        ("GET", f"/playground/{name}"), ("GET", f"/{name}"),
    ]  # fmt: skip
    for method, path in routes:
        target = path.encode("utf-8", "surrogateescape")
        raw = b"".join(b"%%%02x" % byte if byte > 126 else bytes([byte]) for byte in target)
        line = f"{method} ".encode() + raw.replace(b"\\", b"%5c") + b" HTTP/1.1\r\nHost: x\r\n"
        answer = guarded.send(line + authorized(guarded, "Content-Length: 0") + b"\r\n")
        assert status(answer) in (400, 403, 404, 405), (path, answer)
        assert b"root:" not in answer
    answer = asked.post("/predict", json={"model": name, "inputs": {}})
    assert answer.status_code == 404
    assert refusal(guarded, name)[0] == "NOT_FOUND"


def test_connections_that_say_nothing_do_not_keep_others_out(guarded: Guarded) -> None:
    held = [socket.create_connection(guarded.address, 30) for _ in range(200)]
    try:
        with ThreadPoolExecutor(20) as pool:
            answers = [*pool.map(guarded.send, [GET + b"\r\n"] * 20)]
        assert [status(answer) for answer in answers] == [200] * 20
    finally:
        for connection in held:
            connection.close()
