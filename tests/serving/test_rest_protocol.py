"""The REST half of the protocol as stock clients and plain HTTP see it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from pipeline.backends import Session
from serving.inference_rest import match
from serving.launch import Server, serve
from tests.serving.conftest import assert_alive

INFER = "/v2/models/digits/infer"
BINARY = {"binary_data_output": True}


def asked(images: np.ndarray) -> triton.InferInput:
    sent = triton.InferInput("image", list(images.shape), "FP32")
    sent.set_data_from_numpy(images)
    return sent


@pytest.mark.parametrize("request_packed", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_packed", [None, "gzip", "deflate"])
def test_the_stock_asyncio_client_infers(
    server: Server,
    session: Session,
    images: np.ndarray,
    request_packed: str | None,
    response_packed: str | None,
) -> None:
    async def infer() -> Any:
        async with triton_aio.InferenceServerClient(server.http.removeprefix("http://")) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("digits", "1")
            assert (await client.get_model_metadata("digits"))["name"] == "digits"
            assert len(await client.get_model_repository_index()) == 4
            return await client.infer(
                "digits",
                [asked(images)],
                model_version="1",
                request_id="eight",
                request_compression_algorithm=request_packed,
                response_compression_algorithm=response_packed,
                outputs=[
                    triton.InferRequestedOutput("probabilities", binary_data=True),
                    triton.InferRequestedOutput("logits", binary_data=False),
                ],
            )

    answer = asyncio.run(infer())
    expected = session.run({"image": images})
    for name in ("logits", "probabilities"):
        np.testing.assert_array_equal(answer.as_numpy(name), expected[name])
    assert answer.get_response()["id"] == "eight"
    assert [tensor["name"] for tensor in answer.get_response()["outputs"]] == [
        "probabilities",
        "logits",
    ]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("rows", [1, 64])
def test_a_large_answer_is_compressed_for_who_asks(
    server: Server, http: httpx.Client, session: Session, algorithm: str, rows: int
) -> None:
    images = np.zeros((rows, 1, 28, 28), np.float32)
    with triton.InferenceServerClient(server.http.removeprefix("http://")) as client:
        answer = client.infer("digits", [asked(images)], response_compression_algorithm=algorithm)
    np.testing.assert_array_equal(
        answer.as_numpy("logits"), session.run({"image": images})["logits"]
    )
    sent = {"name": "image", "datatype": "FP32", "shape": list(images.shape)}
    body = json.dumps({"inputs": [sent | {"data": images.ravel().tolist()}]})
    said = http.post(INFER, content=body, headers={"Accept-Encoding": algorithm})
    assert said.headers.get("content-encoding") == (algorithm if rows == 64 else None)
    plain = http.post(INFER, content=body, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.content == said.content
    if rows == 64:
        assert int(said.headers["content-length"]) < len(said.content) / 2


def test_the_stock_client_reads_the_repository(server: Server) -> None:
    with triton.InferenceServerClient(server.http.removeprefix("http://")) as client:
        index = client.get_model_repository_index()
        assert [entry["name"] for entry in index] == ["digits", "level", "pair", "words"]
        assert {entry["state"] for entry in index} == {"READY"}
        for change in (client.load_model, client.unload_model):
            with pytest.raises(InferenceServerException) as caught:
                change("digits")
            assert caught.value.status() == "403"


@pytest.fixture(scope="module")
def own(level: Path) -> Iterator[Server]:
    """A server of one model that lets it be loaded and unloaded."""
    with serve([level], port=0, grpc_port=0, admin=True) as running:
        yield running


def test_the_stock_client_loads_and_unloads(own: Server) -> None:
    with triton.InferenceServerClient(own.http.removeprefix("http://")) as client:
        assert client.is_model_ready("level")
        client.unload_model("level")
        assert not client.is_model_ready("level")
        (entry,) = client.get_model_repository_index()
        assert (entry["name"], entry["state"]) == ("level", "UNAVAILABLE")
        only_ready = httpx.post(f"{own.http}/v2/repository/index", json={"ready": True})
        assert only_ready.json() == []
        with pytest.raises(InferenceServerException) as caught:
            client.load_model("level", config='{"parameters": {}}')
        assert "field 'config' is unknown" in caught.value.message()
        with pytest.raises(InferenceServerException) as caught:
            client.load_model("nothing")
        assert caught.value.status() == "404"
        client.load_model("level")
        assert client.is_model_ready("level")
        sent = triton.InferInput("features", [1, 3], "FP32")
        sent.set_data_from_numpy(np.array([[1, 0, 0]], np.float32))
        np.testing.assert_array_equal(client.infer("level", [sent]).as_numpy("value"), [[2.0]])


def test_no_page_loads_or_unloads(own: Server) -> None:
    for change in ("load", "unload"):
        address = f"{own.http}/v2/repository/models/level/{change}"
        answer = httpx.post(address, headers={"Origin": "http://elsewhere"})
        assert answer.status_code == 403
        assert "no page may load or unload" in answer.json()["error"]
    assert httpx.get(f"{own.http}/v2/models/level/ready").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/v2", "GET, HEAD"),
        ("DELETE", "/v2/models/digits", "GET, HEAD"),
        ("POST", "/v2/models/digits/versions/1/ready", "GET, HEAD"),
        ("GET", INFER, "POST"),
        ("HEAD", INFER, "POST"),
        ("OPTIONS", INFER, "POST"),
        ("GET", "/v2/repository/index", "POST"),
        ("GET", "/predict", "POST"),
        ("PUT", "/openapi.json", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(
    http: httpx.Client, method: str, path: str, allow: str
) -> None:
    response = http.request(method, path)
    assert response.status_code == 405
    assert response.headers["allow"] == allow
    if method != "HEAD":
        assert method in response.json()["error"]
    assert_alive(http)


@pytest.mark.parametrize("path", ["/v2", "/v2/health/ready", "/v2/models/digits", "/openapi.json"])
def test_head_is_get_without_its_body(http: httpx.Client, path: str) -> None:
    head, get = http.head(path), http.get(path)
    assert head.status_code == get.status_code == 200
    assert head.content == b""
    plain = http.get(path, headers={"Accept-Encoding": "identity"})
    told = http.head(path, headers={"Accept-Encoding": "identity"})
    assert told.headers["content-length"] == str(len(plain.content))


@pytest.mark.parametrize("part", ["config", "stats"])
def test_what_only_triton_has_is_said_to_be_missing(http: httpx.Client, part: str) -> None:
    response = http.get(f"/v2/models/digits/{part}")
    assert response.status_code == 501
    assert "GET /v2/models/digits" in response.json()["error"]
    assert http.get(f"/v2/models/nothing/{part}").status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models", "/v2/models/", "/v2/models//infer", "/v2/models/digits/versions//infer",
        "/v2/models/digits/versions", "/v2/models/stats", "/v2/systemsharedmemory/status",
        "/v2/trace/setting", "/v2/logging", "/v2/health", "/v2/repository", "/v2/{model}",
    ],
)  # fmt: skip
def test_what_no_route_takes_is_404(http: httpx.Client, path: str) -> None:
    for response in (http.get(path), http.post(path)):
        assert response.status_code in (404, 405), path
        assert response.json()["error"]
    assert http.get(path).status_code == 404


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"ready": 1}', "'ready' is not a boolean"),
        (b'{"name": "digits"}', "field 'name' is unknown"),
        (b"[]", "not a JSON object"),
    ],
)
def test_a_malformed_index_request_is_refused(http: httpx.Client, body: bytes, said: str) -> None:
    response = http.post("/v2/repository/index", content=body)
    assert response.status_code == 400
    assert said in response.json()["error"]


def test_server_metadata_names_the_extensions_there_are(http: httpx.Client) -> None:
    assert http.get("/v2").json()["extensions"] == [
        "binary_tensor_data",
        "model_repository",
        "parameters",
    ]


def test_a_request_id_comes_back(http: httpx.Client) -> None:
    assert http.get("/v2", headers={"X-Request-Id": "abc"}).headers["x-request-id"] == "abc"
    made = {http.get("/v2").headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3
    odd = http.get("/v2", headers={b"X-Request-Id": b"\xe9"}).headers["x-request-id"]
    assert odd.isascii()


def test_binary_follows_a_header_of_any_length(http: httpx.Client, session: Session) -> None:
    """Each of eight lengths shifts the values in memory: none of them changes a number."""
    image = np.random.default_rng(3).random((1, 1, 28, 28), np.float32)
    expected = session.run({"image": image})["logits"].ravel().tolist()
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 1, 28, 28]}
    tensor["parameters"] = {"binary_data_size": image.nbytes}
    for spaces in range(8):
        header = json.dumps({"inputs": [tensor], "outputs": [{"name": "logits"}]}).encode()
        header += b" " * spaces
        headers = {"Inference-Header-Content-Length": str(len(header))}
        answer = http.post(INFER, content=header + image.tobytes(), headers=headers).json()
        assert np.float32(answer["outputs"][0]["data"]).tolist() == expected


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v2/models/a/infer", "/v2/models/{model}/infer"),
        ("/v2/models/a/versions/b/infer", "/v2/models/{model}/versions/{version}/infer"),
        ("/v2/models/versions/versions/models", "/v2/models/{model}/versions/{version}"),
        ("/v2/models/a/b", "/v2/{rest}"),
        ("/v2/repository/models/models/load", "/v2/repository/models/{model}/load"),
        ("/readyz", "/readyz"),
        ("/v2/", "/v2"),
    ],
)
def test_routes_are_templates(path: str, route: str) -> None:
    for method in ("GET", "POST"):
        found = match(method, path)
        assert found is not None
        assert found.route == route


@pytest.mark.parametrize("path", ["/", "", "/v3", "/predict", "/readyz/x", "//v2", "/V2"])
def test_other_paths_are_not_the_protocols(path: str) -> None:
    assert match("GET", path) is None or path == "//v2"
