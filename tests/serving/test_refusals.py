"""What a client gets that asks wrongly: 400 with the name, got and expected; the server goes on."""

from __future__ import annotations

import json
import zlib
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from serving.launch import Server
from tests.serving.conftest import assert_alive

INFER = "/v2/models/digits/infer"
SHAPE = [1, 1, 28, 28]
ZEROS = np.zeros(SHAPE, np.float32)
NAN = np.full(SHAPE, np.nan, np.float32)
INFINITE = np.full(SHAPE, np.inf, np.float32)
MANY = np.zeros([65, 1, 28, 28], np.float32)
BAD: dict[str, tuple[dict[str, Any], np.ndarray, list[str]]] = {
    "rank": ({"shape": [784]}, ZEROS, ["'image'", "[784]", "float32[batch 1..64, 1, 28, 28]"]),
    "size": (
        {"shape": [1, 1, 14, 56]}, ZEROS, ["'image'", "[1, 1, 14, 56]", "batch 1..64, 1, 28, 28"],
    ),
    # Counted in elements (784 of 1568) or in bytes (3136 of 6272).
    "elements": ({"shape": [2, 1, 28, 28]}, ZEROS, ["'image'", "wrong number of", "expected"]),
    "dtype": ({"datatype": "FP64"}, ZEROS, ["'image'", "FP64", "FP32"]),
    "name": ({"name": "picture"}, ZEROS, ["'picture'", "'image'"]),
    "nan": ({}, NAN, ["'image'", "784 NaN or infinite of 784", "finite"]),
    "infinity": ({}, INFINITE, ["'image'", "784 NaN or infinite of 784", "finite"]),
    "batch": ({"shape": [65, 1, 28, 28]}, MANY, ["'image'", "'batch'", "65", "1 to 64"]),
    "empty": ({"shape": [0, 1, 28, 28]}, ZEROS[:0], ["'image'", "'batch'", "0", "1 to 64"]),
    "missing": ({"name": None}, ZEROS, ["'image'", "missing"]),
}  # fmt: skip


def described_input(changes: dict[str, Any]) -> dict[str, Any]:
    return {"name": "image", "datatype": "FP32", "shape": SHAPE} | changes


def ask_json(http: httpx.Client, changes: dict[str, Any], values: np.ndarray) -> httpx.Response:
    tensor = described_input(changes) | {"data": values.ravel().tolist()}
    inputs = [tensor] if tensor["name"] else []
    # The standard library writes NaN and Infinity, as Python clients do.
    return http.post(INFER, content=json.dumps({"inputs": inputs}))


def ask_binary(http: httpx.Client, changes: dict[str, Any], values: np.ndarray) -> httpx.Response:
    tensor = described_input(changes) | {"parameters": {"binary_data_size": values.nbytes}}
    inputs = [tensor] if tensor["name"] else []
    header = json.dumps({"inputs": inputs}).encode()
    headers = {"Inference-Header-Content-Length": str(len(header))}
    rest = values.tobytes() if inputs else b""
    return http.post(INFER, content=header + rest, headers=headers)


def ask_predict(http: httpx.Client, changes: dict[str, Any], values: np.ndarray) -> httpx.Response:
    tensor = described_input(changes)
    data = values.reshape(tensor["shape"] if tensor["shape"][0] != 2 else [1, 784]).tolist()
    inputs = {tensor["name"]: data} if tensor["name"] else {}
    return http.post("/predict", content=json.dumps({"model": "digits", "inputs": inputs}))


@pytest.mark.parametrize("ask", [ask_json, ask_binary])
@pytest.mark.parametrize("case", BAD)
def test_rest_refuses_and_names_input_got_and_expected(
    http: httpx.Client, ask: Any, case: str
) -> None:
    changes, values, said = BAD[case]
    response = ask(http, changes, values)
    assert response.status_code == 400, response.text
    for words in said:
        assert words in response.json()["error"]
    assert_alive(http)


@pytest.mark.parametrize("case", sorted(set(BAD) - {"dtype", "empty"}))
def test_predict_refuses_and_names_the_input(http: httpx.Client, case: str) -> None:
    changes, values, said = BAD[case]
    response = ask_predict(http, changes, values)
    assert response.status_code == 400, response.text
    assert said[0] in response.json()["error"]
    assert_alive(http)


@pytest.mark.parametrize("case", BAD)
def test_grpc_refuses_and_names_input_got_and_expected(server: Server, case: str) -> None:
    changes, values, said = BAD[case]
    tensor = described_input(changes)
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        inputs = []
        if tensor["name"]:
            sent = triton_grpc.InferInput(tensor["name"], tensor["shape"], tensor["datatype"])
            sent._raw_content = values.tobytes()  # what the stock client itself would refuse
            inputs.append(sent)
        with pytest.raises(InferenceServerException) as caught:
            client.infer("digits", inputs)
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        message = caught.value.message()
        for words in said:
            assert words in message
        assert client.is_server_live()


@pytest.mark.parametrize(
    ("body", "headers", "said"),
    [
        (b"", {}, ["empty", "'image'", "float32[batch 1..64, 1, 28, 28]"]),
        (b"not json", {}, ["not JSON"]),
        (b"[" * 5000, {}, ["not JSON"]),
        (b"[1]", {}, ["not a JSON object", "list"]),
        (b'{"inputs": 3}', {}, ["'inputs' is malformed", "int"]),
        (b'{"inputs": [], "extra": 1}', {}, ["'extra' is unknown"]),
        (b'{"inputs": [], "id": 7}', {}, ["'id'", "int"]),
        (b"{}", {"Inference-Header-Content-Length": "9"}, ["larger than the body", "9", "2"]),
        (b"{}", {"Inference-Header-Content-Length": "x"}, ["not a number", "'x'"]),
        (b"{}extra", {"Inference-Header-Content-Length": "2"}, ["left over", "5", "0 bytes"]),
        (b"", {"Inference-Header-Content-Length": "0"}, ["'batch'", "got 0", "1 to 64"]),
        (b"123", {"Inference-Header-Content-Length": "0"}, ["'image'", "3", "multiple of 3136"]),
        (b"garbage", {"Content-Encoding": "gzip"}, ["corrupt"]),
        (zlib.compress(b"{}")[:-1], {"Content-Encoding": "deflate"}, ["truncated"]),
        (b"{}", {"Inference-Header-Content-Length": "9" * 5000}, ["not a number"]),
        (b'{"inputs": [{"name": "\\ud800"}]}', {}, [r"input '\ud800' is unknown"]),
        (b'{"id": "\\ud800", "inputs": []}', {}, ["'id' holds half a character"]),
    ],
)
def test_rest_refuses_what_is_no_request(
    http: httpx.Client, body: bytes, headers: dict[str, str], said: list[str]
) -> None:
    response = http.post(INFER, content=body, headers=headers)
    assert response.status_code == 400, response.text
    for words in said:
        assert words in response.json()["error"]
    assert_alive(http)


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"Content-Encoding": "br"}, ["encoding", "'br'", "gzip"]),
        ({"Content-Type": "text/plain"}, ["content type", "'text/plain'", "application/json"]),
        ({"Content-Type": "application/x-www-form-urlencoded"}, ["application/octet-stream"]),
        ({"Content-Type": "multipart/form-data; boundary=x"}, ["content type"]),
    ],
)
def test_rest_refuses_media_it_does_not_read(
    http: httpx.Client, headers: dict[str, str], said: list[str]
) -> None:
    response = http.post(INFER, content=b"{}", headers=headers)
    assert response.status_code == 415, response.text
    for words in said:
        assert words in response.json()["error"]


def test_truncated_binary_is_refused(http: httpx.Client, server: Server) -> None:
    tensor = described_input({}) | {"parameters": {"binary_data_size": 3136}}
    header = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(header))}
    response = http.post(INFER, content=header + bytes(100), headers=headers)
    assert response.status_code == 400
    assert response.json()["error"] == (
        "input 'image' is truncated: got 100 bytes, expected 3136 bytes"
    )
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        sent = triton_grpc.InferInput("image", SHAPE, "FP32")
        sent._raw_content = bytes(100)
        with pytest.raises(InferenceServerException, match=r"'image'.*got 100, expected 3136"):
            client.infer("digits", [sent])
    assert_alive(http)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"outputs": [{"name": "nothing"}]}, ["output 'nothing' is unknown", "'logits'"]),
        ({"outputs": [{"name": "logits"}, {"name": "logits"}]}, ["'logits'", "twice"]),
        ({"outputs": [{"name": "logits", "parameters": {"classification": 3}}]}, ["unsupported"]),
        ({"parameters": {"binary_data_output": "yes"}}, ["not a boolean", "'yes'"]),
    ],
)
def test_rest_refuses_outputs_it_has_not(
    http: httpx.Client, request_: dict[str, Any], said: list[str]
) -> None:
    tensor = described_input({}) | {"data": ZEROS.ravel().tolist()}
    response = http.post(INFER, json={"inputs": [tensor]} | request_)
    assert response.status_code == 400
    for words in said:
        assert words in response.json()["error"]


def test_values_given_twice_or_never_are_refused(http: httpx.Client) -> None:
    both = described_input({}) | {"data": [], "parameters": {"binary_data_size": 0}}
    for tensor in (both, described_input({})):
        response = http.post(INFER, json={"inputs": [tensor]})
        assert response.status_code == 400
        assert "input 'image' needs its values once" in response.json()["error"]


def test_grpc_refuses_raw_beside_typed_contents_and_garbage(server: Server) -> None:
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        sent = triton_grpc.InferInput("image", SHAPE, "FP32")
        sent.set_data_from_numpy(ZEROS)
        sent._get_tensor().contents.fp32_contents.append(1.0)
        with pytest.raises(InferenceServerException, match="values once: got raw and contents"):
            client.infer("digits", [sent])
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff\xff")
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # pyright: ignore[reportAttributeAccessIssue]
        unknown = channel.unary_unary("/inference.GRPCInferenceService/ModelStatistics")
        with pytest.raises(grpc.RpcError) as caught:
            unknown(b"")
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    "path", ["/v2/models/none", "/v2/models/digits/versions/9", "/v2/models/digits/zzz", "/v2/zzz"]
)
def test_what_is_not_there_is_404(http: httpx.Client, path: str) -> None:
    response = http.get(path)
    assert response.status_code == 404
    assert response.json()["error"]


def test_unknown_paths_make_no_metric_series(http: httpx.Client) -> None:
    for number in range(5):
        assert http.get(f"/random/{number}").status_code == 404
        assert http.get(f"/v2/models/random{number}").status_code == 404
    assert "random" not in http.get("/metrics").text


def test_a_body_over_the_limit_is_refused_before_it_is_read(http: httpx.Client) -> None:
    def chunks() -> Any:
        for _ in range(65):
            yield bytes(2**20)

    response = http.post("/predict", content=chunks())
    assert response.status_code == 413
    assert response.json() == {"error": "the body is too large: expected at most 67108864 bytes"}
    bomb = zlib.compress(bytes(65 * 2**20))
    response = http.post(INFER, content=bomb, headers={"Content-Encoding": "deflate"})
    assert response.status_code == 413
    assert_alive(http)


# The typed endpoints.
