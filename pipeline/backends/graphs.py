"""Graphs: names, opset and types of what is rewritten for lower precision."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, defs, shape_inference, version_converter

from models.errors import BuildFailed, first_line

# The first opset that has a precision: bf16 in convolutions, pooling and recurrent nets, steps for
# each channel, and eight-bit floats.
_OPSETS = {"bf16": 22, "int8": 13, "fp8": 19}
# What makes floats of no floats, and can make lower ones instead.
SOURCES = ("Cast", "ConstantOfShape")
# What reads no value.
MEASURING = ("Shape", "Size")
# What gives values as it was given them.
MOVING = (
    "Cast", "Concat", "ConstantOfShape", "DepthToSpace", "Expand", "Flatten", "Gather",
    "GatherElements", "GatherND", "Identity", "MaxPool", "Pad", "Relu", "Reshape",
    "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where",
)  # fmt: skip


def named(model: Path) -> onnx.ModelProto:
    """The graph with a name for every node, and its constants among the weights."""
    graph = onnx.load_model(model)
    for number, node in enumerate(graph.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    constants = [
        (node, attribute.t)
        for node in graph.graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    ]
    for node, tensor in constants:
        own = graph.graph.initializer.add()
        own.CopyFrom(tensor)
        own.name = node.output[0]
        graph.graph.node.remove(node)
    return graph


def raised(graph: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """The graph in an opset that has the precision. Raises `BuildFailed`."""
    opset = _OPSETS.get(precision, 0)
    if opset_of(graph) >= opset:
        return graph
    try:
        return version_converter.convert_version(graph, opset)
    except Exception as error:  # the converter's errors share no class
        raise BuildFailed(
            f"the graph cannot be brought to opset {opset}, which {precision} needs",
            got=first_line(error),
        ) from error


def check(graph: onnx.ModelProto, precision: str) -> None:
    """Raise `BuildFailed` if types or shapes of a graph do not agree."""
    try:
        onnx.checker.check_model(graph, full_check=True)
    except Exception as error:  # the checker's errors share no class
        raise BuildFailed(
            f"the graph cannot be written in {precision}", got=first_line(error)
        ) from error
    types = types_of(graph)
    for node in graph.graph.node:
        if said := _disagreeing(node, types, opset_of(graph)):
            raise BuildFailed(f"the graph cannot be written in {precision}", got=said)


def opset_of(graph: onnx.ModelProto) -> int:
    """The opset of ONNX's own operators."""
    return next(entry.version for entry in graph.opset_import if entry.domain in ("", "ai.onnx"))


def types_of(graph: onnx.ModelProto) -> dict[str, int]:
    """The type of each tensor outside of bodies; what is no tensor is not among them."""
    body = shape_inference.infer_shapes(graph, check_type=True, strict_mode=True).graph
    values = [*body.input, *body.value_info, *body.output]
    found = {value.name: value.type.tensor_type.elem_type for value in values}
    return found | {tensor.name: tensor.data_type for tensor in body.initializer}


def has_floats(node: onnx.NodeProto, types: Mapping[str, int]) -> bool:
    """Whether a node, or a body of it, reads or gives float32, and not only its shape."""
    if node.op_type in MEASURING:
        return False
    names = {*node.input, *node.output} | captured(node)
    return any(types.get(name) == TensorProto.FLOAT for name in names)


def bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs that a node holds: a loop's, or each branch."""
    return [a.g for a in node.attribute if a.HasField("g")] + [
        body for a in node.attribute for body in a.graphs
    ]


def captured(node: onnx.NodeProto) -> set[str]:
    """What the bodies of a node read, and with it what they read of the graph around."""
    inside = [one for body in bodies(node) for one in body.node]
    names = {name for one in inside for name in one.input}
    answers = {value.name for body in bodies(node) for value in body.output}
    return names.union(answers, *(captured(one) for one in inside))


def places_of(
    node: onnx.NodeProto, types: Mapping[str, int], opset: int, precision: str
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Which inputs and outputs are of the lower type when the node is; None when it cannot be."""
    if bodies(node) or node.domain not in ("", "ai.onnx"):
        return None
    lower = f"tensor({'float16' if precision == 'fp16' else 'bfloat16'})"
    # Of an input that is float32 and nothing else, as Resize's scales, there is no choice.
    floats = [
        tie
        for tie in _ties(node, opset)
        if tie.admitted and types.get(tie.name) == TensorProto.FLOAT
    ]
    read = tuple(tie.place for tie in floats if tie.reads)
    made = tuple(tie.place for tie in floats if not tie.reads)
    if not floats or any(lower not in tie.admitted for tie in floats):
        return None
    return None if made and not read and node.op_type not in SOURCES else (read, made)


@dataclass(frozen=True)
class _Tie:
    """A tensor of a node, and the type variable of the schema it stands for; "" if for none."""

    name: str
    place: int
    reads: bool
    variable: str
    admitted: Collection[str]


def _ties(node: onnx.NodeProto, opset: int) -> Iterator[_Tie]:
    schema = defs.get_schema(node.op_type, opset, "")
    admitted = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    for reads, names, formals in (
        (True, node.input, schema.inputs),
        (False, node.output, schema.outputs),
    ):
        for place, name in enumerate(names):
            formal = formals[min(place, len(formals) - 1)]
            variable = formal.type_str if formal.type_str in admitted else ""
            if name and formal.is_homogeneous:
                yield _Tie(name, place, reads, variable, admitted.get(variable, ()))


def _disagreeing(node: onnx.NodeProto, types: Mapping[str, int], opset: int) -> str:
    """What a schema says of types that ONNX's checker does not look at; "" if all is well."""
    if node.domain not in ("", "ai.onnx"):
        return ""
    bound: dict[str, str] = {}
    for tie in _ties(node, opset):
        if not tie.variable or tie.name not in types:
            continue
        kind = f"tensor({TensorProto.DataType.Name(types[tie.name]).lower()})"
        if kind not in tie.admitted and kind != "tensor(undefined)":
            return f"{node.op_type} {node.name!r} of {kind}"
        if bound.setdefault(tie.variable, kind) != kind:
            return f"{node.op_type} {node.name!r} of {bound[tie.variable]} and {kind}"
    return ""
