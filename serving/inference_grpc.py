"""The Open Inference Protocol over gRPC, in the process and event loop of the REST half."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import metadata
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import numpy as np
from google.protobuf.message import DecodeError

from models.errors import BadInput, ServingFailed
from models.signature import Arrays, Signature, TensorSpec
from serving.drawing import complete
from serving.failures import failure
from serving.inference_proto import HEALTH_MESSAGES, HEALTH_SERVICE, MESSAGES, SERVICE
from serving.inference_rest import SERVER, platform
from serving.inference_stream import stream_call
from serving.tensors import (
    DATATYPES,
    check_declared,
    check_outputs,
    datatype,
    describe,
    find_input,
    from_bytes,
    from_values,
    to_bytes,
)

if TYPE_CHECKING:
    from serving.runtime import Runtime

# Which field of InferTensorContents carries a datatype; FP16 travels as raw bytes only.
CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
_SERVING, _NOT_SERVING = 1, 2

Answer = Callable[[Any], Awaitable[Any]]


async def start_grpc(runtime: Runtime) -> grpc.aio.Server:
    """Start answering; other workers of this service may bind the port too.

    Raises `ServingFailed` when the port is taken.
    """
    host, port = runtime.settings.grpc_host, runtime.settings.grpc_port
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", runtime.settings.largest_body),
            ("grpc.max_send_message_length", -1),
            # Off unless several workers share it: two unrelated services would share their traffic.
            ("grpc.so_reuseport", int(runtime.settings.workers > 1)),
        ]
    )
    calls = _inference_calls(runtime)
    inference = {
        name: _handler(answer, MESSAGES[f"{name}Request"]) for name, answer in calls.items()
    }
    inference["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
        stream_call(runtime, calls["ModelInfer"]), response_serializer=_serialize
    )
    health = {"Check": _handler(_health_call(runtime), HEALTH_MESSAGES["HealthCheckRequest"])}
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(SERVICE, inference),
            grpc.method_handlers_generic_handler(HEALTH_SERVICE, health),
        )
    )
    try:
        bound = server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except RuntimeError:
        bound = 0
    if not bound:
        raise ServingFailed(
            f"gRPC cannot listen on {host}:{port}", fix="choose another port, or stop its owner"
        )
    await server.start()
    return server


def _inference_calls(runtime: Runtime) -> dict[str, Answer]:
    async def server_live(request: Any) -> Any:
        return MESSAGES["ServerLiveResponse"](live=True)

    async def server_ready(request: Any) -> Any:
        return MESSAGES["ServerReadyResponse"](ready=runtime.models.ready)

    async def model_ready(request: Any) -> Any:
        model = runtime.models.get(request.name, request.version)
        return MESSAGES["ModelReadyResponse"](ready=model.ready)

    async def server_metadata(request: Any) -> Any:
        version = metadata.version("fucina")
        return MESSAGES["ServerMetadataResponse"](name=SERVER, version=version)

    async def model_metadata(request: Any) -> Any:
        model = runtime.models.get(request.name, request.version)
        return MESSAGES["ModelMetadataResponse"](
            name=model.name,
            versions=[one.version for one in runtime.models.versions(model.name)],
            platform=platform(model),
            inputs=[describe(spec) for spec in model.signature.inputs],
            outputs=[describe(spec) for spec in model.signature.outputs],
        )

    async def model_infer(request: Any) -> Any:
        model = runtime.models.get(request.model_name, request.model_version)
        model.check_ready()
        given, parameters = read_inputs(model.signature, request), _parameters(request)
        inputs, drawn = complete(model.signature, model.codec, given, parameters)
        wanted = [output.name for output in request.outputs]
        check_outputs(model.signature, wanted)
        answers = await model.predict(inputs)
        names = wanted or [spec.name for spec in model.signature.outputs]
        return MESSAGES["ModelInferResponse"](
            model_name=model.name,
            model_version=model.version,
            id=request.id,
            parameters={name: {"uint64_param": value} for name, value in drawn.items()},
            outputs=[
                {
                    "name": name,
                    "datatype": datatype(answers[name]),
                    "shape": answers[name].shape,
                }
                for name in names
            ],
            raw_output_contents=[to_bytes(answers[name]) for name in names],
        )

    return {
        "ServerLive": server_live,
        "ServerReady": server_ready,
        "ModelReady": model_ready,
        "ServerMetadata": server_metadata,
        "ModelMetadata": model_metadata,
        "ModelInfer": model_infer,
    }


def _health_call(runtime: Runtime) -> Answer:
    async def check(request: Any) -> Any:
        # The empty name asks for the whole server, a model's name for that model.
        named = request.service not in ("", SERVICE)
        ready = runtime.models.get(request.service).ready if named else runtime.models.ready
        status = _SERVING if ready else _NOT_SERVING
        return HEALTH_MESSAGES["HealthCheckResponse"](status=status)

    return check


def read_inputs(signature: Signature, request: Any) -> Arrays:
    """Named arrays of a ModelInferRequest, raw or typed; raises `BadInput`."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise BadInput(
            "raw_input_contents does not fit the inputs",
            got=f"{len(raw)} contents",
            expected=f"{len(request.inputs)}, one for each input",
        )
    inputs: Arrays = {}
    for number, tensor in enumerate(request.inputs):
        spec = find_input(signature, tensor.name)
        if spec.name in inputs:
            raise BadInput(f"input {spec.name!r} is given twice")
        shape = check_declared(spec, tensor.datatype, list(tensor.shape))
        if raw and tensor.HasField("contents"):
            raise BadInput(f"input {spec.name!r} needs its values once", got="raw and contents")
        inputs[spec.name] = (
            from_bytes(spec, raw[number], shape) if raw else _typed(spec, tensor.contents, shape)
        )
    return inputs


def _parameters(request: Any) -> dict[str, Any]:
    """The request's parameters as values; one that is empty is None."""
    chosen = {n: p.WhichOneof("parameter_choice") for n, p in request.parameters.items()}
    return {n: kind and getattr(request.parameters[n], kind) for n, kind in chosen.items()}


def _typed(spec: TensorSpec, contents: Any, shape: tuple[int, ...]) -> np.ndarray:
    field = CONTENTS.get(DATATYPES[spec.dtype])
    if field is None:
        raise BadInput(f"input {spec.name!r} is FP16", expected="raw_input_contents")
    for other, _ in contents.ListFields():
        if other.name != field:
            raise BadInput(
                f"input {spec.name!r} has contents of a wrong type", got=other.name, expected=field
            )
    return from_values(spec, list(getattr(contents, field)), shape)


def _handler(answer: Answer, request_type: Any) -> Any:
    """A call that parses, so that it can refuse, and whose errors are answered by the table."""

    async def call(raw: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            try:
                request = request_type.FromString(raw)
            except DecodeError as error:
                raise BadInput("the message cannot be decoded", got=f"{len(raw)} bytes") from error
            return await answer(request)
        except Exception as error:
            row, text = failure(error)
        await context.abort(row.code, text)

    return grpc.unary_unary_rpc_method_handler(call, response_serializer=_serialize)


def _serialize(message: Any) -> bytes:
    return message.SerializeToString()
