"""Arrays in the messages of the protocol's gRPC half, both ways, strictly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from models.errors import BadInput
from models.signature import Arrays, Signature, TensorSpec
from serving.inference_proto import MESSAGES
from serving.tensors import (
    DATATYPES,
    check_declared,
    check_outputs,
    datatype,
    find_input,
    from_bytes,
    from_values,
    to_bytes,
)

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
_RESPONSE = MESSAGES["ModelInferResponse"]


def read_inputs(signature: Signature, request: Any) -> Arrays:
    """Named arrays of a ModelInferRequest, raw or typed; raises `BadInput`."""
    raw, tensors = request.raw_input_contents, request.inputs
    if raw and len(raw) != len(tensors):
        raise BadInput(
            "raw_input_contents does not fit the inputs",
            got=f"{len(raw)} contents",
            expected=f"{len(tensors)}, one for each input",
        )
    inputs: Arrays = {}
    for number, tensor in enumerate(tensors):
        spec = find_input(signature, tensor.name)
        if spec.name in inputs:
            raise BadInput(f"input {spec.name!r} is given twice")
        _check_parameters(f"input {spec.name!r}", tensor, len(raw[number]) if raw else None)
        shape = check_declared(spec, tensor.datatype, list(tensor.shape))
        if not raw:
            inputs[spec.name] = _typed(spec, tensor.contents, shape)
        elif tensor.HasField("contents"):
            raise BadInput(f"input {spec.name!r} needs its values once", got="raw and contents")
        else:
            inputs[spec.name] = from_bytes(spec, raw[number], shape)
    return inputs


def read_outputs(signature: Signature, request: Any) -> list[str]:
    """The outputs that a ModelInferRequest asks for, or all; raises `BadInput`."""
    if not request.outputs:
        return [spec.name for spec in signature.outputs]
    names = [output.name for output in request.outputs]
    check_outputs(signature, names)
    for output in request.outputs:
        _check_parameters(f"output {output.name!r}", output)
    return names


def read_parameters(request: Any) -> dict[str, Any]:
    """The parameters of a message as values; one that is empty is None."""
    chosen = {n: p.WhichOneof("parameter_choice") for n, p in request.parameters.items()}
    return {n: kind and getattr(request.parameters[n], kind) for n, kind in chosen.items()}


def write_response(
    name: str, version: str, id: str, arrays: Mapping[str, np.ndarray], names: Sequence[str]
) -> Any:
    """A ModelInferResponse with these arrays, as raw contents."""
    response = _RESPONSE(model_name=name, model_version=version, id=id)
    outputs, contents = response.outputs, response.raw_output_contents
    for output in names:
        array = arrays[output]
        # Nested dicts in one constructor are several times as slow.
        outputs.add(name=output, datatype=datatype(array), shape=array.shape)
        contents.append(to_bytes(array))
    return response


def _check_parameters(where: str, tensor: Any, size: int | None = None) -> None:
    """No parameter of a tensor is known here, shared memory and top-k classes among them.

    But KServe's client says the size of raw contents, as over REST.
    """
    for name, value in read_parameters(tensor).items() if tensor.parameters else ():
        if name != "binary_data_size" or size is None:
            raise BadInput(f"{where} has an unsupported parameter", got=name, expected="none")
        if value != size:
            raise BadInput(f"{where} is of another size than it says", got=size, expected=value)


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
