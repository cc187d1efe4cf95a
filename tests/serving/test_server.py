"""One running server, asked by stock clients and by clients that get it wrong."""

from __future__ import annotations

import io
import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from PIL import Image
from tritonclient.utils import InferenceServerException

from models.codec import ImageInput
from pipeline.backends import Session
from pipeline.bundle import open_bundle
from serving.ask import ask
from serving.classification import PredictResponse
from serving.images import read_image
from serving.inference_proto import HEALTH_MESSAGES
from serving.launch import Server
from tests.serving.conftest import CLASSES

GREY = ImageInput(name="image", height=28, width=28)
INFER = "/v2/models/digits/infer"


@pytest.fixture(scope="module")
def http(server: Server) -> Any:
    with httpx.Client(base_url=server.http, timeout=30) as client:
        yield client


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


def assert_alive(http: httpx.Client) -> None:
    assert ask_binary(http, {}, ZEROS).status_code == 200


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
        (b"{}", {"Content-Encoding": "br"}, ["encoding", "'br'", "gzip"]),
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
        unknown = channel.unary_unary("/inference.GRPCInferenceService/ModelConfig")
        with pytest.raises(grpc.RpcError) as caught:
            unknown(b"")
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED  # pyright: ignore[reportAttributeAccessIssue]


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


def test_predict_names_classes_and_probabilities(
    http: httpx.Client, session: Session, images: np.ndarray
) -> None:
    request = {"model": "digits", "inputs": {"image": images.tolist()}, "outputs": ["logits"]}
    response = http.post("/predict", json=request)
    assert response.status_code == 200, response.text
    answer = PredictResponse.model_validate(response.json())
    expected = session.run({"image": images})
    assert (answer.model, answer.version) == ("digits", "1")
    assert [p.label for p in answer.predictions] == [
        CLASSES[i] for i in expected["probabilities"].argmax(1)
    ]
    for row, prediction in zip(expected["probabilities"], answer.predictions, strict=True):
        values = np.array([prediction.probabilities[name] for name in CLASSES], np.float32)
        np.testing.assert_array_equal(values, row)
        assert np.float32(prediction.probability) == row.max()
    np.testing.assert_array_equal(
        np.array(answer.outputs["logits"], np.float32), expected["logits"]
    )


def test_predict_serves_a_model_without_classes(http: httpx.Client) -> None:
    inputs = {"left": [[0.5, 1.5]], "right": [[1, 2]]}
    response = http.post("/predict", json={"model": "pair", "inputs": inputs})
    answer = PredictResponse.model_validate(response.json())
    assert answer.predictions == []
    assert answer.outputs == {"total": [[1.5, 3.5]], "count": [[2, 4]]}


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "empty"),
        (b"{", 400, "not JSON"),
        (b'{"inputs": {}}', 400, "'model' is missing and several are served"),
        (b'{"model": "none", "inputs": {}}', 404, "model 'none' is unknown"),
        (b'{"model": "digits"}', 400, "input 'image' is missing"),
        (b'{"model": 3}', 400, "field 'model' is of a wrong type: got int"),
        (b'{"model": "digits", "inputs": []}', 400, "field 'inputs' is of a wrong type"),
        (b'{"model": "digits", "outputs": ["z"], "inputs": {}}', 400, "output 'z' is unknown"),
        (b'{"model": "digits", "input": {}}', 400, "field 'input' is unknown"),
        (b'{"model": "digits", "inputs": {"image": "http://127.0.0.1/"}}', 400, "wrong type"),
        (b'{"model": "pair", "inputs": {"left": [["1", 2]]}}', 400, "got '1', expected FP32"),
        (b'{"model": "pair", "inputs": {"left": [[1, 2], [1]]}}', 400, "'left' is ragged"),
        (b'{"model": "pair", "inputs": {"left": [[null, 2]]}}', 400, "got null"),
        (b'{"model": "pair", "inputs": {"left": [[NaN, 2]]}}', 400, "1 NaN or infinite of 2"),
    ],
)
@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x", "a/b"])
def test_predict_refuses_whatever_the_content_type(
    http: httpx.Client, body: bytes, status: int, said: str, kind: str
) -> None:
    response = http.post("/predict", content=body, headers={"Content-Type": kind})
    assert response.status_code == status, response.text
    assert said in response.json()["error"]
    assert_alive(http)


def picture(format: str, size: tuple[int, int] = (28, 28)) -> bytes:
    gradient = np.linspace(0, 255, size[0] * size[1]).reshape(size[::-1]).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(gradient).save(file, format)
    return file.getvalue()


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
@pytest.mark.parametrize("invert", [True, False])
def test_an_uploaded_picture_is_classified(
    http: httpx.Client, session: Session, format: str, invert: bool
) -> None:
    data = picture(format, (40, 50))
    # Quoted, as BentoML's own client writes text in forms.
    form = {"model": '"digits"' if invert else "digits", "invert": str(invert).lower()}
    # Neither the name nor the content type is what the file is.
    files = {"image": ("x.txt", data, "text/plain")}
    response = http.post("/predict_image", data=form, files=files)
    assert response.status_code == 200, response.text
    answer = PredictResponse.model_validate(response.json())
    pixels = read_image(data, GREY, invert=invert)
    expected = session.run({"image": pixels})["probabilities"]
    assert answer.predictions[0].label == CLASSES[int(expected.argmax())]


@pytest.mark.parametrize(
    ("files", "form", "said"),
    [
        ({"image": b"no picture"}, {}, "a PNG or JPEG file"),
        ({"image": picture("PNG")[:60]}, {}, "the image"),
        ({"image": b""}, {}, "a PNG or JPEG file"),
        ({"other": picture("PNG")}, {}, "'other'"),
        ({}, {"image": "http://127.0.0.1:9/x.png"}, "got text"),
        ({"image": picture("PNG")}, {"invert": "maybe"}, "'maybe'"),
        ({"image": picture("PNG")}, {"model": "pair"}, "model 'pair' takes no picture"),
        ({"image": picture("PNG"), "model": b"x"}, {}, "Too many files"),
    ],
)
def test_an_upload_that_is_refused(
    http: httpx.Client, files: dict[str, bytes], form: dict[str, str], said: str
) -> None:
    parts = {"model": (None, "digits")} | {k: (None, v) for k, v in form.items()}
    parts |= {name: (f"{name}.png", data, "image/png") for name, data in files.items()}
    response = http.post("/predict_image", files=parts)
    assert response.status_code == 400, response.text
    assert said in response.json()["error"]
    assert_alive(http)


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data", "image/png"])
def test_an_upload_that_is_no_form_is_refused(http: httpx.Client, kind: str) -> None:
    response = http.post("/predict_image", content=b"abc", headers={"Content-Type": kind})
    assert response.status_code == 400, response.text
    assert "the form cannot be read" in response.text or "not a form" in response.text


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
