"""Sensitive: which nodes do not bear fp16 or bf16, by operator and by range, and why."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, numpy_helper

from models.signature import Signature
from pipeline.backends.graphs import (
    MEASURING,
    MOVING,
    bodies,
    captured,
    has_floats,
    named,
    opset_of,
    places_of,
    raised,
    types_of,
)
from pipeline.backends.ranges import Range, observe, range_of

# The greatest number, the least normal one, and the bits of significand.
_NUMBERS = {
    "fp16": (65504.0, 2.0**-14, 11),
    "bf16": ((2 - 2.0**-7) * 2.0**127, 2.0**-126, 8),
}
# How far beyond the greatest value of calibration rows other rows may go.
_ROOM = 4.0

_NORMS = (
    "GroupNormalization", "InstanceNormalization", "LRN", "LayerNormalization", "LpNormalization",
    "MeanVarianceNormalization", "RMSNormalization",
)  # fmt: skip
# With a constant these scale, centre or convert what they are given, and nothing else.
_SCALING = ("Add", "Div", "Mul", "Sub")
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_EXPONENTIALS = ("LogSoftmax", "Softmax", "ReduceLogSumExp")
_SQUARES = ("ReduceL2", "ReduceSumSquare")
_MEANS = ("AveragePool", "GlobalAveragePool", "ReduceMean")


def sensitive(model: Path, signature: Signature, precision: str) -> dict[str, str]:
    """Nodes of any kind that stay in fp32 from the start, each with the reason.

    These are what has no such precision by ONNX's schema, norms, softmax, what scales inputs
    and answers of the graph, and what reaches values beyond the precision's
    normal numbers on the calibration rows beside `model`, with room.
    """
    graph = raised(named(model), precision)
    types, ranges = types_of(graph), observe(model, signature)
    variance = _variances(graph.graph.node)
    ranges |= {
        tensor.name: range_of(numpy_helper.to_array(tensor))
        for tensor in graph.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
    }
    varying = _varying(graph.graph)
    scaling = _scaling(graph.graph, varying)
    found = {}
    for node in graph.graph.node:
        if not has_floats(node, types):
            continue
        reason = (
            _impossible(node, types, graph, precision)
            or _by_operator(node, variance)
            or scaling.get(node.name, "")
            or ("" if varying.intersection(node.output) else "computed from shapes and constants")
            or _by_range(node, types, ranges, precision)
        )
        if reason:
            found[node.name] = reason
    return found


def _impossible(
    node: onnx.NodeProto, types: Mapping[str, int], graph: onnx.ModelProto, precision: str
) -> str:
    if bodies(node):
        return f"{node.op_type} is kept whole"
    if places_of(node, types, opset_of(graph), precision) is None:
        return f"{node.op_type} has no {precision} in opset {opset_of(graph)}"
    return ""


def _by_operator(node: onnx.NodeProto, variance: Collection[str]) -> str:
    if node.op_type in _NORMS or node.name in variance:
        return "normalisation"
    if node.op_type in _EXPONENTIALS:
        return "softmax"
    return "sum of squares" if node.op_type in _SQUARES else ""


def _variances(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    """Nodes of a normalisation that is written out: from a mean of squares to the division by it.

    With what the mean was subtracted by, and the mean.
    """
    makers = {name: node for node in nodes for name in node.output}
    found: set[str] = set()
    for node in nodes:
        square = makers.get(node.input[0]) if node.op_type in ("ReduceMean", "ReduceSum") else None
        if square is None or not (
            square.op_type == "Pow"
            or (square.op_type == "Mul" and square.input[0] == square.input[1])
        ):
            continue
        found |= {square.name, node.name}
        centred = makers.get(square.input[0])
        if centred is not None and centred.op_type == "Sub":
            found.add(centred.name)
            mean = makers.get(centred.input[1])
            found |= {mean.name} if mean is not None and mean.op_type == "ReduceMean" else set()
        reached = set(node.output)
        for after in nodes:
            if reached.intersection(after.input):
                if after.op_type in ("Add", "Clip", "Max", "Pow", "Reciprocal", "Sqrt"):
                    found.add(after.name)
                    reached.update(after.output)
                elif after.op_type in ("Div", "Mul"):
                    found.add(after.name)
    return found


def _varying(body: onnx.GraphProto) -> set[str]:
    """What depends on values that the graph is given, and not only on their shapes."""
    found = {value.name for value in body.input}
    for node in body.node:
        if node.op_type not in MEASURING and found.intersection({*node.input} | captured(node)):
            found.update(node.output)
    return found


def _scaling(body: onnx.GraphProto, varying: set[str]) -> dict[str, str]:
    """Nodes that scale by constants what the graph is given, or what it answers.

    Inputs such as 1013 and 1014 are one number to 8 bits of significand until they are centred.
    """
    given = _path(body.node, {value.name for value in body.input}, varying, forwards=True)
    answers = _path(body.node, {value.name for value in body.output}, varying, forwards=False)
    return dict.fromkeys(answers, "scales what the graph answers") | dict.fromkeys(
        given, "scales what the graph is given"
    )


def _path(
    nodes: Sequence[onnx.NodeProto], ends: set[str], varying: set[str], *, forwards: bool
) -> set[str]:
    """What lies between one end of a graph and the scaling that is farthest from it."""
    products = {name for node in nodes if node.op_type in _PRODUCTS for name in node.output}
    path = []
    for node in nodes if forwards else reversed(nodes):
        near, far = (node.input, node.output) if forwards else (node.output, node.input)
        alone = len(varying.intersection(node.input)) == 1
        bias = node.op_type == "Add" and products.intersection(node.input)
        known = node.op_type in (*_SCALING, *MOVING) and not bias
        if ends.intersection(near) and alone and known:
            ends.update(far)
            path.append((node, {*near}, {*far}))
    found: set[str] = set()
    wanted: set[str] = set()
    for node, near, far in reversed(path):
        if node.op_type in _SCALING or wanted.intersection(far):
            found.add(node.name)
            wanted |= near
    return found


def _by_range(
    node: onnx.NodeProto,
    types: Mapping[str, int],
    ranges: Mapping[str, Range],
    precision: str,
) -> str:
    most, least, bits = _NUMBERS[precision]
    for name in (*node.output, *node.input):
        seen = ranges.get(name)
        if seen is None or types.get(name) != TensorProto.FLOAT:
            continue
        if seen.reach > most / _ROOM:
            where = "over" if seen.reach > most else "near"
            return f"reaches {seen.reach:.1e}, {where} {precision}'s {most:g}"
        if 0 < seen.reach < least:
            return f"stays below {seen.reach:.1e}, under {precision}'s {least:.1e}"
    source, given = ranges.get(node.input[0]) if node.input else None, ranges.get(node.output[0])
    if given is None:
        return ""
    if node.op_type in _MEANS and source is not None:
        total = given.reach * source.size / given.size
        if total > most / _ROOM:
            return f"adds up {total:.1e}, over {precision}'s {most:g}"
    whole = 2**bits
    if node.op_type == "Cast" and source is None and given.reach > whole:
        return f"counts to {given.reach:g}, {precision} to {whole}"
    return ""
