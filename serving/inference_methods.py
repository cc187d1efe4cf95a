"""What each method of the protocol's gRPC half answers: messages in, messages out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from models.errors import BadInput, Unsupported
from models.signature import BATCH, Axis, TensorSpec
from serving.drawing import complete
from serving.inference_calls import Answer
from serving.inference_contents import read_inputs, read_outputs, read_parameters, write_response
from serving.inference_proto import MESSAGES
from serving.inference_rest import SERVER, platform
from serving.tensors import DATATYPES, describe

if TYPE_CHECKING:
    from serving.model import Model
    from serving.runtime import Runtime

EXTENSIONS = (
    "model_repository",
    "model_repository(unload_dependents)",
    "model_configuration",
)
# Triton's enumeration of datatypes in a model's configuration.
_DATATYPES = {
    "BOOL": 1, "UINT8": 2, "INT8": 6, "INT16": 7, "INT32": 8, "INT64": 9,
    "FP16": 10, "FP32": 11, "FP64": 12,
}  # fmt: skip


@dataclass(frozen=True)
class Method:
    """One method of one message and one answer, and whether it is an administrator's."""

    answer: Answer
    admin: bool = False


def inference_methods(runtime: Runtime) -> Mapping[str, Method]:
    """The methods by name, but for the stream."""

    async def server_live(request: Any) -> Any:
        return MESSAGES["ServerLiveResponse"](live=True)

    async def server_ready(request: Any) -> Any:
        return MESSAGES["ServerReadyResponse"](ready=runtime.ready)

    async def model_ready(request: Any) -> Any:
        model = runtime.models.get(request.name, request.version)
        return MESSAGES["ModelReadyResponse"](ready=model.ready)

    async def server_metadata(request: Any) -> Any:
        return MESSAGES["ServerMetadataResponse"](
            name=SERVER, version=metadata.version("fucina"), extensions=EXTENSIONS
        )

    async def model_metadata(request: Any) -> Any:
        model = runtime.models.get(request.name, request.version)
        return MESSAGES["ModelMetadataResponse"](
            name=model.name,
            versions=[one.version for one in runtime.models.versions(model.name)],
            platform=platform(model),
            inputs=[describe(spec) for spec in model.signature.inputs],
            outputs=[describe(spec) for spec in model.signature.outputs],
            properties=model.properties,
        )

    async def model_config(request: Any) -> Any:
        model = runtime.models.get(request.name, request.version)
        return MESSAGES["ModelConfigResponse"](config=_config(model))

    async def model_infer(request: Any) -> Any:
        model = runtime.models.get(request.model_name, request.model_version)
        model.check_room()
        given = read_inputs(model.signature, request)
        parameters = read_parameters(request) if request.parameters else {}
        inputs, drawn = complete(model.signature, model.codec, given, parameters)
        names = read_outputs(model.signature, request)
        answers = await model.predict(inputs)
        response = write_response(model.name, model.version, request.id, answers, names)
        for name, value in drawn.items():
            response.parameters[name].uint64_param = value
        return response

    async def index(request: Any) -> Any:
        _check_repository(request)
        entries = runtime.repository.index(ready=request.ready)
        return MESSAGES["RepositoryIndexResponse"](
            models=[
                {"name": e.name, "version": e.version, "state": e.state, "reason": e.reason}
                for e in entries
            ]
        )

    async def load(request: Any) -> Any:
        _check_repository(request)
        for name in request.parameters:
            raise Unsupported(
                f"parameter {name!r} is not supported", expected="a model as its folder holds it"
            )
        await runtime.repository.load(request.model_name)
        return MESSAGES["RepositoryModelLoadResponse"]()

    async def unload(request: Any) -> Any:
        _check_repository(request)
        # A model's parts, which are all that depends on it, always leave with it.
        for name in request.parameters.keys() - {"unload_dependents"}:
            raise Unsupported(
                f"parameter {name!r} is not supported", expected="'unload_dependents'"
            )
        await runtime.repository.unload(request.model_name)
        return MESSAGES["RepositoryModelUnloadResponse"]()

    return {
        "ServerLive": Method(server_live),
        "ServerReady": Method(server_ready),
        "ModelReady": Method(model_ready),
        "ServerMetadata": Method(server_metadata),
        "ModelMetadata": Method(model_metadata),
        "ModelConfig": Method(model_config),
        "ModelInfer": Method(model_infer),
        "RepositoryIndex": Method(index),
        "RepositoryModelLoad": Method(load, admin=True),
        "RepositoryModelUnload": Method(unload, admin=True),
    }


def _check_repository(request: Any) -> None:
    if request.repository_name:
        raise BadInput("there is one repository", got=repr(request.repository_name), expected="''")


def _config(model: Model) -> dict[str, Any]:
    """As Triton says it: where every tensor has a batch axis, that one is not in `dims`."""
    signature = model.signature
    specs = (*signature.inputs, *signature.outputs)
    batched = signature.batch is not None and all(_first_is_batch(spec) for spec in specs)

    def tensor(spec: TensorSpec) -> dict[str, Any]:
        dims = [-1 if isinstance(size, Axis) else size for size in spec.shape]
        kind = _DATATYPES[DATATYPES[spec.dtype]]
        return {"name": spec.name, "data_type": kind, "dims": dims[1:] if batched else dims}

    return {
        "name": model.name,
        "platform": platform(model),
        "max_batch_size": signature.batch.max if batched and signature.batch else 0,
        "input": [tensor(spec) for spec in signature.inputs],
        "output": [tensor(spec) for spec in signature.outputs],
        "dynamic_batching": {} if batched else None,
        "model_transaction_policy": {"decoupled": model.codec.generation is not None},
    }


def _first_is_batch(spec: TensorSpec) -> bool:
    first = spec.shape[0] if spec.shape else None
    return isinstance(first, Axis) and first.name == BATCH
