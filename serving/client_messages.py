"""Inference requests and answers as a client writes and reads them; of packages numpy alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from models.errors import BadInput

HEADER_LENGTH = "Inference-Header-Content-Length"
_KINDS = {"b": "BOOL", "u": "UINT", "i": "INT", "f": "FP"}


@dataclass(frozen=True)
class Answer:
    """An inference's answer: the outputs, and which model and version gave them."""

    model: str
    version: str
    outputs: dict[str, np.ndarray]  # read-only
    id: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


def write_question(
    inputs: Mapping[str, np.ndarray],
    outputs: Sequence[str] = (),
    id: str | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> tuple[bytes, list[memoryview]]:
    """A request's JSON, and the bytes of each input that follow it; raises `BadInput`."""
    pieces = [to_bytes(array) for array in inputs.values()]
    document: dict[str, Any] = {
        "inputs": [
            describe(name, array) | {"parameters": {"binary_data_size": len(piece)}}
            for (name, array), piece in zip(inputs.items(), pieces, strict=True)
        ],
        "parameters": {**(parameters or {}), "binary_data_output": True},
    }
    if outputs:
        document["outputs"] = [{"name": name} for name in outputs]
    if id is not None:
        document["id"] = id
    return json.dumps(document).encode(), pieces


def read_answer(body: bytes, split: int) -> Answer:
    """The answer whose JSON ends at `split`; raises ValueError, KeyError or TypeError."""
    document = json.loads(body[:split])
    outputs = {}
    view = memoryview(body)
    for tensor in document["outputs"]:
        if "data" in tensor:  # a server may not speak binary
            values = np.array(tensor["data"], _dtype(tensor["datatype"]))
            outputs[tensor["name"]] = values.reshape(tensor["shape"])
            continue
        end = split + tensor["parameters"]["binary_data_size"]
        outputs[tensor["name"]] = from_bytes(tensor, view[split:end])
        split = end
    return Answer(
        document["model_name"],
        document.get("model_version", ""),
        outputs,
        document.get("id", ""),
        document.get("parameters", {}),
    )


def describe(name: str, array: np.ndarray) -> dict[str, Any]:
    """A tensor's name, datatype and shape as the protocol has them; raises `BadInput`."""
    return {"name": name, "datatype": datatype(name, array), "shape": list(array.shape)}


def datatype(name: str, array: np.ndarray) -> str:
    """The protocol's name of an array's dtype; raises `BadInput` for one it has no name for."""
    if array.dtype.kind not in _KINDS or array.dtype.itemsize > 8:
        raise BadInput(f"input {name!r} has a dtype that cannot be sent", got=array.dtype)
    kind = _KINDS[array.dtype.kind]
    return kind if kind == "BOOL" else f"{kind}{array.dtype.itemsize * 8}"


def to_bytes(array: np.ndarray) -> memoryview:
    """An array's little-endian row-major bytes, not copied where it is that already."""
    ordered = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return ordered.reshape(-1).view(np.uint8).data


def from_bytes(tensor: Mapping[str, Any], raw: bytes | memoryview) -> np.ndarray:
    """The read-only array that a tensor's `datatype` and `shape` tell of its bytes."""
    return np.frombuffer(raw, _dtype(tensor["datatype"])).reshape(tensor["shape"])


def _dtype(name: str) -> np.dtype[Any]:
    if name == "BOOL":
        return np.dtype(bool)
    for kind, prefix in _KINDS.items():
        if name.startswith(prefix) and name[len(prefix) :].isdecimal():
            return np.dtype(f"<{kind}{int(name[len(prefix) :]) // 8}")
    raise ValueError(f"datatype {name!r} is unknown")
