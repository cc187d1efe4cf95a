"""Protocol buffers of the Open Inference Protocol, built from a table of field numbers.

They live in a pool of their own: another package's `inference` messages in the same process
(a stock client's, say) do not clash with them. An enumeration is an int32 here, which on the wire
it is.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "inference.GRPCInferenceService"
HEALTH_SERVICE = "grpc.health.v1.Health"

# "name: type number", where `*` repeats, `{}` maps strings to the type and `?` is of the one-of.
_INFERENCE = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live:bool 1",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready:bool 1",
    "ModelReadyRequest": "name:string 1, version:string 2",
    "ModelReadyResponse": "ready:bool 1",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name:string 1, version:string 2, extensions:string* 3",
    "ModelMetadataRequest": "name:string 1, version:string 2",
    "ModelMetadataResponse.TensorMetadata": "name:string 1, datatype:string 2, shape:int64* 3",
    "ModelMetadataResponse": (
        "name:string 1, versions:string* 2, platform:string 3, "
        "inputs:ModelMetadataResponse.TensorMetadata* 4, "
        "outputs:ModelMetadataResponse.TensorMetadata* 5, properties:string{} 6"
    ),
    "InferParameter": (
        "bool_param:bool? 1, int64_param:int64? 2, string_param:string? 3, "
        "double_param:double? 4, uint64_param:uint64? 5"
    ),
    "InferTensorContents": (
        "bool_contents:bool* 1, int_contents:int32* 2, int64_contents:int64* 3, "
        "uint_contents:uint32* 4, uint64_contents:uint64* 5, fp32_contents:float* 6, "
        "fp64_contents:double* 7, bytes_contents:bytes* 8"
    ),
    "ModelInferRequest.InferInputTensor": (
        "name:string 1, datatype:string 2, shape:int64* 3, parameters:InferParameter{} 4, "
        "contents:InferTensorContents 5"
    ),
    "ModelInferRequest.InferRequestedOutputTensor": "name:string 1, parameters:InferParameter{} 2",
    "ModelInferRequest": (
        "model_name:string 1, model_version:string 2, id:string 3, "
        "parameters:InferParameter{} 4, inputs:ModelInferRequest.InferInputTensor* 5, "
        "outputs:ModelInferRequest.InferRequestedOutputTensor* 6, raw_input_contents:bytes* 7"
    ),
    "ModelInferResponse.InferOutputTensor": (
        "name:string 1, datatype:string 2, shape:int64* 3, parameters:InferParameter{} 4, "
        "contents:InferTensorContents 5"
    ),
    "ModelInferResponse": (
        "model_name:string 1, model_version:string 2, id:string 3, "
        "parameters:InferParameter{} 4, outputs:ModelInferResponse.InferOutputTensor* 5, "
        "raw_output_contents:bytes* 6"
    ),
    "ModelStreamInferResponse": "error_message:string 1, infer_response:ModelInferResponse 2",
    # Triton's extensions: the repository, and of a model's configuration what clients ask for.
    "RepositoryIndexRequest": "repository_name:string 1, ready:bool 2",
    "RepositoryIndexResponse.ModelIndex": (
        "name:string 1, version:string 2, state:string 3, reason:string 4"
    ),
    "RepositoryIndexResponse": "models:RepositoryIndexResponse.ModelIndex* 1",
    "ModelRepositoryParameter": (
        "bool_param:bool? 1, int64_param:int64? 2, string_param:string? 3, bytes_param:bytes? 4"
    ),
    "RepositoryModelLoadRequest": (
        "repository_name:string 1, model_name:string 2, parameters:ModelRepositoryParameter{} 3"
    ),
    "RepositoryModelLoadResponse": "",
    "RepositoryModelUnloadRequest": (
        "repository_name:string 1, model_name:string 2, parameters:ModelRepositoryParameter{} 3"
    ),
    "RepositoryModelUnloadResponse": "",
    "ModelConfigRequest": "name:string 1, version:string 2",
    "ModelInput": "name:string 1, data_type:int32 2, dims:int64* 4",
    "ModelOutput": "name:string 1, data_type:int32 2, dims:int64* 3",
    "ModelDynamicBatching": "",
    "ModelTransactionPolicy": "decoupled:bool 1",
    "ModelConfig": (
        "name:string 1, platform:string 2, max_batch_size:int32 4, input:ModelInput* 5, "
        "output:ModelOutput* 6, dynamic_batching:ModelDynamicBatching 11, "
        "model_transaction_policy:ModelTransactionPolicy 19"
    ),
    "ModelConfigResponse": "config:ModelConfig 1",
}
_HEALTH = {"HealthCheckRequest": "service:string 1", "HealthCheckResponse": "status:int32 1"}

# "method: request response", where `*` streams.
_INFERENCE_METHODS = {
    **{
        name: f"{name}Request {name}Response"
        for name in (
            *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata"),
            *("ModelInfer", "ModelConfig"),
            *("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
        )
    },
    "ModelStreamInfer": "ModelInferRequest* ModelStreamInferResponse*",
}
_HEALTH_METHODS = {
    "Check": "HealthCheckRequest HealthCheckResponse",
    "Watch": "HealthCheckRequest HealthCheckResponse*",
}

_Field = descriptor_pb2.FieldDescriptorProto


def _add_field(owner: descriptor_pb2.DescriptorProto, package: str, path: str, text: str) -> None:
    name, rest = text.split(":")
    kind, number = rest.split(" ")
    bare = kind.rstrip("*?{}")
    field = owner.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
    if kind.endswith("{}"):
        entry = name.title().replace("_", "") + "Entry"
        nested = owner.nested_type.add(name=entry)
        nested.options.map_entry = True
        _add_field(nested, package, f"{path}.{entry}", "key:string 1")
        _add_field(nested, package, f"{path}.{entry}", f"value:{bare} 2")
        bare = f"{path}.{entry}"
    if kind.endswith(("*", "{}")):
        field.label = _Field.LABEL_REPEATED
    if kind.endswith("?"):
        if not owner.oneof_decl:
            owner.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
    if bare[0].isupper():
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{package}.{bare}"
    else:
        field.type = getattr(_Field, f"TYPE_{bare.upper()}")


def _build(service: str, messages: dict[str, str], methods: dict[str, str]) -> dict[str, Any]:
    package, _, service_name = service.rpartition(".")
    file = descriptor_pb2.FileDescriptorProto(
        name=f"fucina/{package}.proto", package=package, syntax="proto3"
    )
    owners: dict[str, descriptor_pb2.DescriptorProto] = {}
    # A nested message is listed before its parent, which is made first all the same.
    for path in sorted(messages):
        parent, _, name = path.rpartition(".")
        owners[path] = (
            owners[parent].nested_type.add(name=name)
            if parent
            else file.message_type.add(name=name)
        )
    for path, fields in messages.items():
        for text in filter(None, fields.split(", ")):
            _add_field(owners[path], package, path, text)
    described = file.service.add(name=service_name)
    for name, text in methods.items():
        asked, answered = text.split(" ")
        described.method.add(
            name=name,
            input_type=f".{package}.{asked.rstrip('*')}",
            output_type=f".{package}.{answered.rstrip('*')}",
            client_streaming=asked.endswith("*"),
            server_streaming=answered.endswith("*"),
        )
    POOL.Add(file)
    return {
        path: message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"{package}.{path}"))
        for path in messages
    }


POOL = descriptor_pool.DescriptorPool()
MESSAGES = _build(SERVICE, _INFERENCE, _INFERENCE_METHODS)
HEALTH_MESSAGES = _build(HEALTH_SERVICE, _HEALTH, _HEALTH_METHODS)
