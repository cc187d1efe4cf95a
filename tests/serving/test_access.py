"""Who is answered: keys over both transports, what each may ask, and what nobody is told."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from tests.serving.conftest import assert_alive
from tests.serving.guarded_server import (
    GET,
    HEAD,
    PER_CLIENT,
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


OPEN = ("/livez", "/readyz", "/healthz", "/v2/health/live", "/v2/health/ready")
CLOSED = (
    "/", "/metrics", "/docs.json", "/openapi.json", "/v2", "/v2/models/digits",
    "/v2/models/digits/ready", "/predict", "/nothing", "/static_content/index.css", "/schema.json",
)  # fmt: skip


def test_all_but_probes_needs_a_key(guarded: Guarded, asked: httpx.Client) -> None:
    with httpx.Client(base_url=guarded.server.http) as nobody:
        for path in OPEN:
            assert nobody.get(path).status_code == 200, path
        for path in CLOSED:
            for headers in ({}, {"Authorization": f"Bearer {guarded.ada}x"}):
                answer = nobody.get(path, headers=headers)
                assert answer.status_code == 401, path
                assert answer.headers["www-authenticate"] == "Bearer"
        assert nobody.post("/v2/models/digits/infer", content=b"{}").status_code == 401
    for path in ("/metrics", "/docs.json", "/v2", "/v2/models/digits/ready"):
        assert asked.get(path).status_code == 200, path


def test_a_key_of_another_model_is_forbidden(guarded: Guarded) -> None:
    headers = {"Authorization": f"Bearer {guarded.bob}"}
    with httpx.Client(base_url=guarded.server.http, headers=headers) as bob:
        assert bob.get("/v2/models/pair").status_code == 200
        assert bob.get("/v2/models/digits").status_code == 403
        for path, body in (
            ("/v2/models/digits/infer", {"inputs": []}),
            ("/predict", {"model": "digits", "inputs": {}}),
        ):
            answer = bob.post(path, json=body)
            assert answer.status_code == 403, answer.text
            assert "may not ask model 'digits'" in answer.json()["error"]
    assert refusal(guarded, "digits", key=guarded.bob)[0] == "PERMISSION_DENIED"


def test_grpc_wants_the_same_key(guarded: Guarded) -> None:
    assert refusal(guarded, "digits", key="fucina_wrong")[0] == "UNAUTHENTICATED"
    with triton_grpc.InferenceServerClient(guarded.server.grpc) as client:
        assert client.is_server_live()  # a probe
        with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
            client.get_model_metadata("digits")
        headers = {"authorization": f"Bearer {guarded.ada}"}
        metadata: Any = client.get_model_metadata("digits", headers=headers)
        assert metadata.name == "digits"
    with grpc.insecure_channel(guarded.server.grpc) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"") == b"\x08\x01"


def test_no_key_is_told(guarded: Guarded, asked: httpx.Client) -> None:
    wrong = "fucina_of-somebody-else"
    with httpx.Client(base_url=guarded.server.http) as client:
        for headers in ({"Authorization": f"Bearer {wrong}"}, {"X-Request-Id": "seen"}):
            texts = [client.get(f"/v2?key={wrong}", headers=headers).text]
            texts.append(client.get(f"/{wrong}", headers=headers).text)
    refusal(guarded, "digits", key=wrong)
    texts += [asked.get(path).text for path in ("/metrics", "/docs.json", "/v2")]
    texts.append(asked.post("/predict", content=b"{").text)
    time.sleep(0.5)  # the log is written in batches
    texts.append(guarded.said())
    assert "is ready" in guarded.said()
    for text in texts:
        for key in (guarded.ada, guarded.bob, wrong):
            assert key not in text
            assert key.removeprefix("fucina_") not in text


def test_nobody_says_to_be_another(guarded: Guarded) -> None:
    before = len(guarded.said())
    assert status(guarded.send(b"GET /v2 HTTP/1.1\r\nX-Forwarded-For: 10.9.8.7\r\n\r\n")) == 401
    time.sleep(0.5)  # the log is written in batches
    line = json.loads(guarded.said()[before:].splitlines()[-1])
    assert (line["code"], line["client"]) == ("401", "127.0.0.1")


def test_a_client_has_its_share_and_others_have_theirs(guarded: Guarded) -> None:
    lines = HEAD + authorized(guarded, "Content-Length: 2") + b"\r\n"
    held = [socket.create_connection(guarded.address, 30) for _ in range(PER_CLIENT)]
    try:
        for connection in held:
            connection.sendall(lines + b"{")
        time.sleep(0.5)
        refused = guarded.send(lines + b"{}")
        assert status(refused) == 429
        assert b"retry-after: 1" in refused
        # Others are answered meanwhile, and so is who watches.
        other = f"GET /v2 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {guarded.bob}\r\n\r\n"
        assert status(guarded.send(other.encode())) == 200
        assert status(guarded.send(GET + b"\r\n")) == 200
        assert refusal(guarded, "digits")[0] == "RESOURCE_EXHAUSTED"
    finally:
        for connection in held:
            connection.close()
    time.sleep(0.5)  # their places are free again, as the next request shows


def test_pages_of_other_origins_may_not_read(guarded: Guarded, asked: httpx.Client) -> None:
    headers = {"Origin": "https://elsewhere.example"}
    for method, path in (("GET", "/v2"), ("OPTIONS", "/predict"), ("OPTIONS", "/v2/models/digits")):
        answer = asked.request(method, path, headers=headers)
        assert not [name for name in answer.headers if name.startswith("access-control")]
    # What a page may send without asking first: a form, or text.
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = asked.post(
            "/v2/models/digits/infer", content=b"{}", headers={**headers, "Content-Type": kind}
        )
        assert answer.status_code == 415, answer.text
