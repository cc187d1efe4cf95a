"""Mixed: a graph whose nodes compute in fp16 or bf16, by casts, but for those kept in fp32."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.artifacts import replacing
from pipeline.backends.graphs import (
    MEASURING,
    MOVING,
    SOURCES,
    captured,
    check,
    has_floats,
    named,
    opset_of,
    places_of,
    raised,
    types_of,
)
from pipeline.backends.sensitive import sensitive

__all__ = ["lowered", "sensitive", "write"]

_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def lowered(model: Path) -> tuple[str, ...]:
    """The nodes that compute with floats; what only moves values is lowered as well, unnamed."""
    graph = named(model)
    types = types_of(graph)
    return tuple(
        node.name
        for node in graph.graph.node
        if node.op_type not in MOVING and has_floats(node, types)
    )


def write(model: Path, out: Path, precision: str, keep: Collection[str]) -> None:
    """Write `model` to `out` with every node but those in `keep` in `precision`.

    Kept are those as well of which ONNX has no such precision. Inputs and outputs of the graph
    keep their types. A tensor that is wanted in both types is cast once. Raises `BuildFailed`.
    """
    graph = raised(named(model), precision)
    _lower(graph, precision, keep)
    check(graph, precision)
    with replacing(out) as temporary:
        onnx.save_model(graph, temporary)


def _lower(graph: onnx.ModelProto, precision: str, keep: Collection[str]) -> None:
    body, kind = graph.graph, _TYPES[precision]
    types = types_of(graph)
    places = {
        node.name: found
        for node in body.node
        if node.name not in keep and node.op_type not in MEASURING
        if (found := places_of(node, types, opset_of(graph), precision))
    }
    read, made = set[str](), set[str]()  # in the lower type
    whole = {value.name for value in body.output}  # read in fp32
    for node in body.node:
        low_in, low_out = places.get(node.name, ((), ()))
        read |= {node.input[place] for place in low_in}
        made |= {node.output[place] for place in low_out}
        if node.op_type not in MEASURING:
            whole |= {name for place, name in enumerate(node.input) if place not in low_in}
        whole |= captured(node)
    given = {value.name for value in body.input}
    weights = {t.name: t for t in body.initializer if t.name in read and t.name not in given}
    only = (made | weights.keys()) - whole

    def low(name: str) -> str:
        return name if name in only else f"{name}_{precision}"

    def casts(names: Iterable[str]) -> Iterator[onnx.NodeProto]:
        for name in names:
            if name in made and name in whole:
                yield _cast(low(name), name, TensorProto.FLOAT)
            elif name in read and name not in made and name not in only:
                yield _cast(name, low(name), kind)

    nodes = list(
        casts([*(value.name for value in body.input), *(t.name for t in body.initializer)])
    )
    for node in body.node:
        given_by = list(node.output)
        for place, name in enumerate(node.input):
            if place in places.get(node.name, ((), ()))[0] or (
                node.op_type in MEASURING and name in made
            ):
                node.input[place] = low(name)
        if node.name in places:
            for place in places[node.name][1]:
                node.output[place] = low(node.output[place])
            _retype(node, kind)
        nodes += [node, *casts(given_by)]
    for name in only & weights.keys():
        weights[name].CopyFrom(_rounded(weights[name], kind))
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del body.node[:]
    body.node.extend(nodes)
    del body.value_info[:]  # of the types before


def _cast(source: str, name: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [name], name=f"{source}_to_{name}", to=kind)


def _retype(node: onnx.NodeProto, kind: int) -> None:
    """Make a node that makes floats make the lower ones."""
    if node.op_type == "ConstantOfShape" and not node.attribute:  # of float32 zeros
        zero = numpy_helper.from_array(np.zeros(1, np.float32))
        node.attribute.append(helper.make_attribute("value", zero))
    for attribute in node.attribute if node.op_type in SOURCES else ():
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = kind
        elif attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(_rounded(attribute.t, kind))


def _rounded(tensor: onnx.TensorProto, kind: int) -> onnx.TensorProto:
    array = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        low = array.astype(helper.tensor_dtype_to_np_dtype(kind))
    return numpy_helper.from_array(low, tensor.name)
