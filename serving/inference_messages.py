"""Inference requests and responses of the Open Inference Protocol's REST half, as bytes.

The binary extension puts tensors after the JSON: `Inference-Header-Content-Length` says where the
JSON ends, `binary_data_size` how many bytes each tensor takes, in the order of the JSON.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from models.errors import BadInput
from models.signature import Arrays, Signature
from serving.tensors import (
    check_declared,
    check_outputs,
    datatype,
    find_input,
    from_bare_bytes,
    from_bytes,
    from_json,
    to_bytes,
)

HEADER_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Question:
    """A request that was read: named inputs, and which outputs to answer, each binary or not."""

    inputs: Arrays
    outputs: dict[str, bool]
    id: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


def parse_json(raw: bytes | memoryview) -> dict[str, Any]:
    """The JSON object in `raw`; NaN and Infinity are read, so that they can be refused by name.

    Raises `BadInput`.
    """
    try:
        parsed = orjson.loads(raw)
    except orjson.JSONDecodeError:
        try:
            parsed = json.loads(bytes(raw))
        except (ValueError, RecursionError) as error:
            got = "no body" if not bytes(raw).strip() else str(error)
            raise BadInput("the body is not JSON", got=got, expected="a JSON object") from error
    if not isinstance(parsed, dict):
        raise BadInput("the body is not a JSON object", got=type(parsed).__name__)
    return parsed


def read_question(
    signature: Signature, body: bytes, header_length: bytes | None, model: str = ""
) -> Question:
    """Read a request; raises `BadInput` for whatever the protocol or the signature refuses."""
    if header_length == b"0":
        return _bare_question(signature, body)
    if not body:
        wanted = ", ".join(f"{s.name!r} {s}" for s in signature.inputs)
        raise BadInput("the body is empty", expected=f"a JSON object with inputs {wanted}")
    split = _split(body, header_length)
    whole = memoryview(body)  # of which slices are no copies
    request, rest = parse_json(body if split == len(body) else whole[:split]), whole[split:]
    # KServe's client says the model in the body as well.
    check_keys(request, ("id", "model_name", "inputs", "outputs", "parameters"))
    if request.get("model_name", model) != model:
        raise BadInput(
            "'model_name' is another than in the path", got=repr(request["model_name"]),
            expected=repr(model),
        )  # fmt: skip
    id = request.get("id")
    if id is not None and not isinstance(id, str):
        raise BadInput("'id' is not a string", got=type(id).__name__)
    if id and not id.isascii() and id.encode(errors="ignore").decode() != id:
        raise BadInput("'id' holds half a character, which cannot be said back", got=repr(id))
    inputs, used = _read_inputs(signature, _items(request, "inputs"), rest)
    if used != len(rest):
        raise BadInput(
            "binary data is left over after the last input", got=len(rest), expected=f"{used} bytes"
        )
    parameters = read_parameters(request, "the request")
    default = read_flag(parameters, "binary_data_output", False)
    outputs = _read_outputs(signature, _items(request, "outputs"), default)
    return Question(inputs, outputs, id, parameters)


def write_answer(
    name: str, version: str, question: Question, answers: Arrays, parameters: Mapping[str, Any]
) -> tuple[bytes, int | None]:
    """The response's body, and the length of its JSON when binary tensors follow it."""
    tensors: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for output, binary in question.outputs.items():
        array = answers[output]
        tensor: dict[str, Any] = {
            "name": output,
            "datatype": datatype(array),
            "shape": list(array.shape),
        }
        if binary:
            blobs.append(to_bytes(array))
            tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            tensor["data"] = np.ascontiguousarray(array).ravel()
        tensors.append(tensor)
    answer: dict[str, Any] = {"model_name": name, "model_version": version}
    if question.id is not None:
        answer["id"] = question.id
    if parameters:
        answer["parameters"] = parameters
    header = orjson.dumps(answer | {"outputs": tensors}, option=orjson.OPT_SERIALIZE_NUMPY)
    return b"".join([header, *blobs]), len(header) if blobs else None


def _bare_question(signature: Signature, body: bytes) -> Question:
    if len(signature.inputs) != 1:
        raise BadInput(
            "bare bytes can be the data of one input only",
            got=f"a model of {len(signature.inputs)} inputs",
            expected="a JSON header",
        )
    spec = signature.inputs[0]
    # Who sends bare bytes is answered in bytes.
    outputs = {output.name: True for output in signature.outputs}
    return Question({spec.name: from_bare_bytes(spec, body)}, outputs)


def _split(body: bytes, header_length: bytes | None) -> int:
    if header_length is None:
        return len(body)
    if not header_length.isdigit() or len(header_length) > 18:
        raise BadInput(
            f"{HEADER_LENGTH} is not a number", got=repr(header_length.decode("latin-1"))
        )
    length = int(header_length)
    if length > len(body):
        raise BadInput(
            f"{HEADER_LENGTH} is larger than the body", got=length, expected=f"at most {len(body)}"
        )
    return length


def _read_inputs(
    signature: Signature, items: list[dict[str, Any]], rest: memoryview
) -> tuple[Arrays, int]:
    inputs: Arrays = {}
    start = 0
    for item in items:
        spec = find_input(signature, item.get("name"))
        where = f"input {spec.name!r}"
        if spec.name in inputs:
            raise BadInput(f"{where} is given twice")
        shape = check_declared(spec, item.get("datatype"), item.get("shape"))
        size = read_parameters(item, where).get("binary_data_size")
        if (size is None) == ("data" not in item):
            raise BadInput(
                f"{where} needs its values once",
                got="none" if size is None else "both",
                expected="either 'data' or the parameter 'binary_data_size'",
            )
        if size is None:
            if spec.dtype == "float16":
                raise BadInput(f"{where} is FP16, which JSON has no form for", expected="binary")
            inputs[spec.name] = from_json(spec, item["data"], shape)
            continue
        if type(size) is not int or size < 0:
            raise BadInput(f"{where} has a malformed 'binary_data_size'", got=repr(size))
        if start + size > len(rest):
            raise BadInput(
                f"{where} is truncated", got=f"{len(rest) - start} bytes", expected=f"{size} bytes"
            )
        inputs[spec.name] = from_bytes(spec, rest[start : start + size], shape)
        start += size
    return inputs, start


def _read_outputs(
    signature: Signature, items: list[dict[str, Any]], default: bool
) -> dict[str, bool]:
    check_outputs(signature, [item.get("name") for item in items])
    outputs: dict[str, bool] = {spec.name: default for spec in signature.outputs}
    if items:
        outputs = {}
        for item in items:
            where = f"output {item['name']!r}"
            parameters = read_parameters(item, where)
            for unsupported in parameters.keys() - {"binary_data"}:
                raise BadInput(
                    f"{where} has an unsupported parameter", got=unsupported, expected="binary_data"
                )
            outputs[item["name"]] = read_flag(parameters, "binary_data", default)
    for name, binary in outputs.items():
        if not binary and signature.output(name).dtype == "float16":
            raise BadInput(
                f"output {name!r} is FP16, which JSON has no form for",
                expected="'binary_data' or 'binary_data_output' to be true",
            )
    return outputs


def _items(request: dict[str, Any], key: str) -> list[dict[str, Any]]:
    items = request.get(key, [])
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise BadInput(f"{key!r} is malformed", got=type(items).__name__, expected="objects listed")
    return items


def check_keys(item: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise `BadInput` naming a field that nobody would read."""
    for key in item:
        if key not in known:
            raise BadInput(f"field {key!r} is unknown", expected=", ".join(known) or "none")


def read_parameters(item: dict[str, Any], where: str) -> dict[str, Any]:
    """The parameters of a request or of a tensor; none where there are none."""
    parameters = item.get("parameters", {})
    if not isinstance(parameters, dict):
        raise BadInput(f"{where}: 'parameters' is not an object", got=type(parameters).__name__)
    return parameters


def read_flag(parameters: dict[str, Any], key: str, default: bool) -> bool:
    """A field that is true or false. Raises `BadInput`."""
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise BadInput(f"{key!r} is not a boolean", got=repr(value))
    return value
