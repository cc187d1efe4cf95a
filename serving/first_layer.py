"""Feature maps of a model's first convolution: its graph, cut after that node and run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from models.errors import Unsupported
from models.signature import Arrays
from pipeline.bundle import Bundle
from pipeline.values import MODEL

# Of onnx.proto, what is read and changed; all other fields are carried along unseen.
_FIELDS = {
    "ValueInfo": (("name", 1, False, ""),),
    "Node": (("input", 1, True, ""), ("output", 2, True, ""), ("op_type", 4, False, "")),
    "Graph": (("node", 1, True, "Node"), ("output", 12, True, "ValueInfo")),
    "Model": (("graph", 7, False, "Graph"),),
}


@dataclass(frozen=True, eq=False)
class FeatureMaps:
    """What each unit of a layer answers to one picture, before its activation: [maps, h, w]."""

    layer: str
    maps: np.ndarray


@dataclass(frozen=True, eq=False)
class _Cut:
    layer: str
    session: Any


def feature_maps(bundle: Bundle, inputs: Arrays) -> FeatureMaps:
    """The first convolution's answers to one row, by the bundle's portable fp32 graph.

    The served engine does not answer them: its graph is fused. Raises `Unsupported` for a graph
    without a convolution, or one that cannot be opened alone.
    """
    cut = _cut(bundle.folder / MODEL, bundle.manifest.files[MODEL])
    given = {i.name for i in cut.session.get_inputs()}
    (maps,) = cut.session.run(None, {n: array for n, array in inputs.items() if n in given})
    if maps.ndim != 4:
        raise Unsupported("the first convolution answers no maps", got=list(maps.shape))
    return FeatureMaps(cut.layer, maps[0])


@lru_cache(maxsize=4)
def _cut(path: Path, digest: str) -> _Cut:
    """The graph of a file, which its digest tells from a later one at the same place, cut."""
    model = _message("Model")()
    model.ParseFromString(path.read_bytes())
    node = next((node for node in model.graph.node if node.op_type == "Conv"), None)
    if node is None:
        raise Unsupported("the model has no convolution, and so no feature maps")
    del model.graph.output[:]
    model.graph.output.add(name=node.output[0])
    weights = node.input[1].removesuffix(".weight")
    try:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ORT's errors share no base class
        raise Unsupported("the first layer cannot be opened alone on this server") from error
    return _Cut(weights, session)


def _message(name: str) -> Any:
    """A message of ONNX in a pool of its own, beside which others may live."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="fucina/onnx.proto", package="onnx", syntax="proto3"
    )
    for owner, fields in _FIELDS.items():
        message = file.message_type.add(name=owner)
        for field, number, repeated, of in fields:
            message.field.add(
                name=field,
                number=number,
                label=kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL,
                type=kinds.TYPE_MESSAGE if of else kinds.TYPE_STRING,
                type_name=f".onnx.{of}" if of else None,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"onnx.{name}"))
