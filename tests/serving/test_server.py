"""One running server, asked by stock clients over both transports."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from pipeline.backends import Session
from pipeline.bundle import open_bundle
from serving.ask import ask
from serving.inference_proto import HEALTH_MESSAGES
from serving.launch import Server
from tests.serving.conftest import TARGET

INFER = "/v2/models/digits/infer"


@pytest.fixture(scope="module", params=["http", "grpc"])
def triton(request: pytest.FixtureRequest, server: Server) -> Any:
    """The stock client's module and an open client of it."""
    if request.param == "grpc":
        client, module = triton_grpc.InferenceServerClient(server.grpc), triton_grpc
    else:
        address = server.http.removeprefix("http://")
        client, module = triton_http.InferenceServerClient(address), triton_http
    yield module, client
    client.close()


def described(client: Any, name: str) -> dict[str, Any]:
    metadata = client.get_model_metadata(name)
    if isinstance(metadata, dict):
        assert metadata.pop("properties") == {"requested_target": TARGET, "served_target": TARGET}
        return metadata
    return {
        "name": metadata.name,
        "versions": list(metadata.versions),
        "platform": metadata.platform,
        **{
            part: [
                {"name": t.name, "datatype": t.datatype, "shape": list(t.shape)}
                for t in getattr(metadata, part)
            ]
            for part in ("inputs", "outputs")
        },
    }


def test_the_stock_client_reads_health_and_metadata(triton: Any) -> None:
    _, client = triton
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1")
    assert described(client, "digits") == {
        "name": "digits",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 28, 28]}],
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [-1, 10]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]},
        ],
    }
    server = client.get_server_metadata()
    assert (server["name"] if isinstance(server, dict) else server.name) == "fucina"


def test_the_stock_client_infers_the_engines_own_numbers(
    triton: Any, session: Session, images: np.ndarray
) -> None:
    module, client = triton
    sent = module.InferInput("image", list(images.shape), "FP32")
    sent.set_data_from_numpy(images)
    expected = session.run({"image": images})
    answer = client.infer("digits", [sent], request_id="seven")
    for name, array in expected.items():
        np.testing.assert_array_equal(answer.as_numpy(name), array)
    response = answer.get_response()
    assert (response["id"] if isinstance(response, dict) else response.id) == "seven"
    chosen = client.infer("digits", [sent], outputs=[module.InferRequestedOutput("logits")])
    assert chosen.as_numpy("probabilities") is None
    np.testing.assert_array_equal(chosen.as_numpy("logits"), expected["logits"])


def test_the_stock_client_infers_two_inputs_of_two_types(triton: Any) -> None:
    module, client = triton
    left = np.arange(6, dtype=np.float32).reshape(2, 3)
    right = np.arange(6, dtype=np.int64).reshape(2, 3)
    inputs = [
        module.InferInput("left", [2, 3], "FP32"),
        module.InferInput("right", [2, 3], "INT64"),
    ]
    inputs[0].set_data_from_numpy(left)
    inputs[1].set_data_from_numpy(right)
    answer = client.infer("pair", inputs)
    np.testing.assert_array_equal(answer.as_numpy("total"), left + right)
    np.testing.assert_array_equal(answer.as_numpy("count"), right * 2)


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_the_stock_client_may_compress(
    triton: Any, compression: str, session: Session, images: np.ndarray
) -> None:
    module, client = triton
    sent = module.InferInput("image", list(images.shape), "FP32")
    sent.set_data_from_numpy(images)
    key = "request_compression_algorithm" if module is triton_http else "compression_algorithm"
    answer = client.infer("digits", [sent], **{key: compression})
    expected = session.run({"image": images})["logits"]
    np.testing.assert_array_equal(answer.as_numpy("logits"), expected)


def test_the_stock_http_client_may_send_and_ask_json(
    server: Server, session: Session, images: np.ndarray
) -> None:
    with triton_http.InferenceServerClient(server.http.removeprefix("http://")) as client:
        sent = triton_http.InferInput("image", list(images.shape), "FP32")
        sent.set_data_from_numpy(images, binary_data=False)
        wanted = triton_http.InferRequestedOutput("logits", binary_data=False)
        answer = client.infer("digits", [sent], outputs=[wanted])
    np.testing.assert_array_equal(
        answer.as_numpy("logits"), session.run({"image": images})["logits"]
    )


def test_bare_bytes_are_answered_in_bytes(
    http: httpx.Client, session: Session, images: np.ndarray
) -> None:
    headers = {"Inference-Header-Content-Length": "0"}
    response = http.post(INFER, content=images.tobytes(), headers=headers)
    assert response.status_code == 200
    split = int(response.headers["Inference-Header-Content-Length"])
    header = json.loads(response.content[:split])
    first = header["outputs"][0]
    size = first["parameters"]["binary_data_size"]
    values = np.frombuffer(response.content[split : split + size], "<f4").reshape(first["shape"])
    np.testing.assert_array_equal(values, session.run({"image": images})[first["name"]])


def test_both_transports_reproduce_every_recorded_case(server: Server, digits: Path) -> None:
    for findings in ask(server.http, server.grpc, open_bundle(digits)).values():
        assert findings
        assert all(finding.passed for finding in findings)


def test_concurrent_requests_each_get_their_own_answer(
    http: httpx.Client, session: Session
) -> None:
    rows = np.random.default_rng(1).random((40, 1, 28, 28), np.float32)
    expected = session.run({"image": rows})["logits"]

    def one(row: int) -> np.ndarray:
        headers = {"Inference-Header-Content-Length": "0"}
        content = http.post(INFER, content=rows[row].tobytes(), headers=headers).content
        return np.frombuffer(content[-80:-40], "<f4")

    with ThreadPoolExecutor(8) as pool:
        answers = np.stack(list(pool.map(one, range(40))))
    # A row's sums may be taken in another order inside a larger batch.
    np.testing.assert_allclose(answers, expected, rtol=1e-5, atol=1e-6)


# What a client may get wrong, and what each transport says of it.


def test_grpc_takes_typed_contents(server: Server, session: Session, images: np.ndarray) -> None:
    messages: Any = triton_grpc.service_pb2
    tensor = messages.ModelInferRequest.InferInputTensor(
        name="image", datatype="FP32", shape=images.shape
    )
    tensor.contents.fp32_contents.extend(images.ravel().tolist())
    request = messages.ModelInferRequest(model_name="digits", inputs=[tensor])
    with grpc.insecure_channel(server.grpc) as channel:
        stub = triton_grpc.service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answer = stub.ModelInfer(request)
    np.testing.assert_array_equal(
        np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(-1, 10),
        session.run({"image": images})["logits"],
    )


def test_grpc_answers_the_standard_health_check(server: Server) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=HEALTH_MESSAGES["HealthCheckRequest"].SerializeToString,
            response_deserializer=HEALTH_MESSAGES["HealthCheckResponse"].FromString,
        )
        assert check(HEALTH_MESSAGES["HealthCheckRequest"]()).status == 1
        assert check(HEALTH_MESSAGES["HealthCheckRequest"](service="digits")).status == 1
        with pytest.raises(grpc.RpcError) as caught:
            check(HEALTH_MESSAGES["HealthCheckRequest"](service="nothing"))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND  # pyright: ignore[reportAttributeAccessIssue]


def test_the_schema_is_typed_by_the_served_signatures(http: httpx.Client) -> None:
    paths = http.get("/docs.json").json()["paths"]
    content = paths["/predict"]["post"]["requestBody"]["content"]["application/json"]
    models = {m["title"]: m for m in content["schema"]["properties"]["inputs"]["oneOf"]}
    assert models["digits"]["properties"]["image"]["maxItems"] == 64
    assert models["pair"]["required"] == ["left", "right"]
    upload = paths["/predict_image"]["post"]["requestBody"]["content"]
    assert "image" in upload["multipart/form-data"]["schema"]["properties"]


def test_the_serving_process_loads_no_training_library(
    server: Server, forbidden_imports: Path
) -> None:
    assert httpx.get(f"{server.http}/v2/health/ready").status_code == 200
    assert not forbidden_imports.exists(), forbidden_imports.read_text()
