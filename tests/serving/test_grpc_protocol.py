"""The gRPC half with stock clients: triton, sync and asyncio and streaming, health, reflection."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from tritonclient.utils import InferenceServerException

from serving.inference_proto import HEALTH_SERVICE, POOL, SERVICE
from serving.launch import Server, serve
from tests.serving.conftest import DIGITS

TYPE_FP32 = 11  # of Triton's DataType


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Any]:
    with triton.InferenceServerClient(server.grpc) as found:
        yield found


@pytest.fixture(scope="module")
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc) as found:
        yield found


def sent(images: np.ndarray, module: Any = triton) -> Any:
    tensor = module.InferInput("image", list(images.shape), "FP32")
    tensor.set_data_from_numpy(images)
    return [tensor]


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_answers_are_the_engines_compressed_or_not(
    client: Any, session: Any, images: np.ndarray, compression: str | None
) -> None:
    result = client.infer(
        "digits", sent(images), request_id="seven", compression_algorithm=compression
    )
    expected = session.run({"image": images})
    for name, array in expected.items():
        np.testing.assert_array_equal(result.as_numpy(name), array)
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("seven", "digits", "1")
    assert [output.name for output in response.outputs] == ["logits", "probabilities"]


def test_only_the_outputs_that_are_asked_for_come(client: Any, images: np.ndarray) -> None:
    wanted = [triton.InferRequestedOutput("probabilities")]
    result = client.infer("digits", sent(images), model_version="1", outputs=wanted)
    assert [output.name for output in result.get_response().outputs] == ["probabilities"]
    assert result.as_numpy("logits") is None


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ([triton.InferRequestedOutput("nothing")], "output 'nothing' is unknown"),
        ([triton.InferRequestedOutput("logits", class_count=3)], "unsupported parameter"),
        ([triton.InferRequestedOutput("logits")] * 2, "twice"),
    ],
)
def test_outputs_that_cannot_be_are_refused(
    client: Any, images: np.ndarray, outputs: list[Any], said: str
) -> None:
    with pytest.raises(InferenceServerException, match=said) as caught:
        client.infer("digits", sent(images), outputs=outputs)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_what_the_server_and_its_models_are(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits", "1")
    assert client.get_server_metadata().name == "fucina"
    about = client.get_model_metadata("digits")
    assert [(one.name, list(one.shape)) for one in about.inputs] == [("image", [-1, 1, 28, 28])]
    with pytest.raises(InferenceServerException, match="'none' is unknown") as caught:
        client.is_model_ready("none")
    assert caught.value.status() == "StatusCode.NOT_FOUND"


def test_the_configuration_says_batch_and_dims_as_triton_does(
    client: Any,
) -> None:
    config = client.get_model_config("digits").config
    assert DIGITS.batch is not None
    assert config.max_batch_size == DIGITS.batch.max
    assert [(one.name, one.data_type, list(one.dims)) for one in config.input] == [
        ("image", TYPE_FP32, [1, 28, 28])
    ]
    assert [list(one.dims) for one in config.output] == [[10], [10]]
    assert not config.model_transaction_policy.decoupled
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"


def test_what_is_not_implemented_says_so(client: Any) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.get_inference_statistics()
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


def test_the_repository_is_listed_and_not_changed_without_admin(
    client: Any,
) -> None:
    models = client.get_model_repository_index().models
    assert ("digits", "1", "READY") in [(one.name, one.version, one.state) for one in models]
    for change in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="does not load or unload") as caught:
            change("digits")
        assert caught.value.status() == "StatusCode.PERMISSION_DENIED"


def test_asyncio_answers_the_same(server: Server, session: Any, images: np.ndarray) -> None:
    async def ask() -> list[Any]:
        async with triton_aio.InferenceServerClient(server.grpc) as client:
            each = [client.infer("digits", sent(image[None], triton_aio)) for image in images]
            return await asyncio.gather(*each)

    for image, result in zip(images, asyncio.run(ask()), strict=True):
        np.testing.assert_allclose(
            result.as_numpy("logits"), session.run({"image": image[None]})["logits"], rtol=1e-5
        )


def test_a_stream_answers_each_request_and_goes_on_after_a_bad_one(
    server: Server, session: Any, images: np.ndarray
) -> None:
    came: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton.InferenceServerClient(server.grpc) as client:
        client.start_stream(
            lambda result, error: came.put((result, error)), compression_algorithm="gzip"
        )
        client.async_stream_infer("none", sent(images), request_id="bad")
        client.async_stream_infer("digits", sent(images), request_id="good")
        answers = [came.get(timeout=10) for _ in range(2)]
        client.stop_stream()
    errors = [error for _, error in answers if error]
    (result,) = [result for result, error in answers if not error]
    assert "'none' is unknown" in errors[0].message()
    assert len(errors) == 1
    assert result.get_response().id == "good"
    assert result.get_response().parameters["triton_final_response"].bool_param
    np.testing.assert_array_equal(
        result.as_numpy("logits"), session.run({"image": images})["logits"]
    )


def test_health_of_the_server_and_of_each_model(channel: grpc.Channel) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    for service in ("", SERVICE, "digits"):
        asked = health_pb2.HealthCheckRequest(service=service)
        assert stub.Check(asked).status == health_pb2.HealthCheckResponse.SERVING
        watched = stub.Watch(asked)
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        watched.cancel()
    unknown = health_pb2.HealthCheckRequest(service="none")
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(unknown)
    assert code_of(caught.value) == "NOT_FOUND"
    watched = stub.Watch(unknown)
    assert next(watched).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watched.cancel()


def test_reflection_tells_the_services_as_they_are(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert {SERVICE, HEALTH_SERVICE} <= set(database.get_services())
    service = DescriptorPool(database).FindServiceByName(SERVICE)
    told, ours = descriptor_pb2.FileDescriptorProto(), descriptor_pb2.FileDescriptorProto()
    service.file.CopyToProto(told)
    POOL.FindFileContainingSymbol(SERVICE).CopyToProto(ours)
    assert told == ours


def test_an_administrator_unloads_and_loads(digits: Any, images: np.ndarray) -> None:
    with (
        serve([digits], port=0, grpc_port=0, admin=True) as running,
        triton.InferenceServerClient(running.grpc) as client,
    ):
        again: Any = client
        with pytest.raises(InferenceServerException, match="'config' is not supported") as caught:
            client.load_model("digits", config="{}")
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
        client.unload_model("digits")
        with pytest.raises(InferenceServerException, match="unknown"):
            client.infer("digits", sent(images))
        client.load_model("digits")
        assert again.infer("digits", sent(images)).as_numpy("logits").shape == (3, 10)


def code_of(error: Any) -> str:
    return error.code().name
