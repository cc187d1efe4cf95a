"""KServe's own Python client, unchanged, over REST and gRPC; and the protocol's published stubs."""

from __future__ import annotations

import json
import subprocess
import venv
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from serving.inference_proto import MESSAGES, SERVICE
from serving.launch import Server

# 68 packages and 450 MB that nothing else needs: an environment of their own, made once.
ENVIRONMENT = Path(__file__).parents[2] / "build" / "kserve"
REQUIREMENTS = ("kserve>=0.15,<1", "open-inference-grpc>=2,<3", "protobuf>=5")

KSERVE = """
import asyncio, json, sys
import numpy as np
from kserve import (
    InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig,
)
from kserve.protocol.infer_type import RequestedOutput

http, rpc, path = sys.argv[1:]
image = np.load(path)

def request(binary, **how):
    given = InferInput("image", list(image.shape), "FP32")
    given.set_data_from_numpy(image, binary_data=binary)
    wanted = [RequestedOutput("probabilities", how)]
    return InferRequest("digits", [given], request_id="seven", request_outputs=wanted)

def told(response):
    (output,) = response.outputs
    array = output.as_numpy()
    return {
        "id": response.id, "model": response.model_name, "name": output.name,
        "shape": list(array.shape), "bytes": array.astype("<f4").tobytes().hex(),
    }

def asked(rest, binary):
    return rest.infer(http, request(binary, binary_data=binary), model_name="digits")

async def main():
    said = {}
    rest = InferenceRESTClient(RESTConfig(protocol="v2", timeout=30))
    said["rest"] = {
        "live": await rest.is_server_live(http),
        "ready": await rest.is_server_ready(http),
        "model": await rest.is_model_ready(http, "digits"),
        "json": told(await asked(rest, False)),
        "binary": told(await asked(rest, True)),
    }
    try:
        await rest.infer(http, request(True), model_name="nobody")
    except Exception as error:
        said["rest"]["unknown"] = str(error)
    await rest.close()
    async with InferenceGRPCClient(rpc, timeout=30) as client:
        said["grpc"] = {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model": await client.is_model_ready("digits"),
            "json": told(await client.infer(request(False))),
            "binary": told(await client.infer(request(True))),
        }
        try:
            await client.is_model_ready("nobody")
        except Exception as error:
            said["grpc"]["unknown"] = error.details()
    print(json.dumps(said))

asyncio.run(main())
"""

STUBS = """
import json, sys
import grpc
import numpy as np
from open_inference.grpc import service
from open_inference.grpc.protocol import (
    ModelInferRequest, ModelMetadataRequest, ServerLiveRequest, ServerMetadataRequest,
)

image = np.load(sys.argv[2])
with grpc.insecure_channel(sys.argv[1]) as channel:
    stub = service.GRPCInferenceServiceStub(channel)
    answer = stub.ModelInfer(ModelInferRequest(
        model_name="digits", id="seven",
        inputs=[{"name": "image", "datatype": "FP32", "shape": list(image.shape)}],
        outputs=[{"name": "probabilities"}],
        raw_input_contents=[image.tobytes()],
    ), timeout=30)
    said = {
        "live": stub.ServerLive(ServerLiveRequest()).live,
        "server": stub.ServerMetadata(ServerMetadataRequest()).name,
        "inputs": [i.name for i in stub.ModelMetadata(ModelMetadataRequest(name="digits")).inputs],
        "id": answer.id, "shape": list(answer.outputs[0].shape),
        "bytes": answer.raw_output_contents[0].hex(),
    }
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter that has these clients."""
    binary = ENVIRONMENT / "bin" / "python"
    there = ENVIRONMENT / "requirements.json"
    if not there.is_file() or json.loads(there.read_text()) != list(REQUIREMENTS):
        venv.create(ENVIRONMENT, clear=True, with_pip=True)
        done = subprocess.run(
            [str(binary), "-m", "pip", "install", "--quiet", "--no-input", *REQUIREMENTS],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode and "NewConnectionError" in done.stderr:
            pytest.skip("no package index is reached")
        assert done.returncode == 0, done.stderr
        there.write_text(json.dumps(REQUIREMENTS))
    return binary


def said_by(python: Path, program: str, *arguments: str) -> Any:
    done = subprocess.run(
        [str(python), "-W", "ignore", "-c", program, *arguments],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "image.npy"
    np.save(path, np.random.default_rng(3).random((3, 1, 28, 28), np.float32))
    return path


def decoded(answer: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(answer["bytes"]), "<f4").reshape(answer["shape"])


@pytest.mark.slow  # installs 68 packages the first time
def test_kserves_client_works_unchanged(
    server: Server, session: Any, python: Path, image: Path
) -> None:
    expected = session.run({"image": np.load(image)})["probabilities"]
    said = said_by(python, KSERVE, server.http, server.grpc, str(image))
    for transport in ("rest", "grpc"):
        over = said[transport]
        assert (over["live"], over["ready"], over["model"]) == (True, True, True)
        assert "nobody" in over["unknown"]
        for form in ("json", "binary"):
            answer = over[form]
            assert (answer["id"], answer["model"], answer["name"]) == (
                "seven", "digits", "probabilities",
            )  # fmt: skip
            # Batches differ in the last bits only as the certificate allows; here none is shared.
            np.testing.assert_array_equal(decoded(answer), expected)


@pytest.mark.slow  # installs 68 packages the first time
def test_the_published_stubs_work(server: Server, session: Any, python: Path, image: Path) -> None:
    expected = session.run({"image": np.load(image)})["probabilities"]
    said = said_by(python, STUBS, server.grpc, str(image))
    assert said["live"] is True
    assert said["inputs"] == ["image"]
    assert said["id"] == "seven"
    np.testing.assert_array_equal(decoded(said), expected)
    assert said["server"]


def test_a_body_may_name_the_model_of_the_path_and_no_other(http: httpx.Client) -> None:
    tensor = {"name": "image", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": [0.0] * 784}
    for name, code in (("digits", 200), ("words", 400), (None, 400)):
        document = {"model_name": name, "inputs": [tensor]}
        answer = http.post("/v2/models/digits/infer", json=document)
        assert answer.status_code == code
        assert code == 200 or "model_name" in answer.json()["error"]


@pytest.mark.parametrize("size", [3136, 3135])
def test_raw_contents_are_of_the_size_that_is_said(server: Server, size: int) -> None:
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 1, 28, 28]}
    request = MESSAGES["ModelInferRequest"](
        model_name="digits",
        inputs=[tensor | {"parameters": {"binary_data_size": {"int64_param": size}}}],
        raw_input_contents=[bytes(3136)],
    )
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        if size == 3136:
            assert call(request.SerializeToString(), timeout=30)
        else:
            with pytest.raises(grpc.RpcError, match="another size") as refused:
                call(request.SerializeToString(), timeout=30)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # pyright: ignore
