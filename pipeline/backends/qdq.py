"""Graphs for int8 and fp8 by TensorRT: symmetric Q/DQ pairs before products with a weight."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.errors import BuildFailed
from models.signature import Signature
from pipeline.artifacts import replacing
from pipeline.backends.graphs import check, named, raised
from pipeline.backends.ranges import observe

# The axis of a weight that channels of the output lie along.
_AXES = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}
_DTYPES = {
    "int8": np.dtype(np.int8),
    "fp8": helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT8E4M3FN),
}
_MOST = {"int8": 127.0, "fp8": 448.0}


def products(model: Path) -> tuple[str, ...]:
    """The nodes that an engine in eight bits computes in them: activation times weight."""
    graph = named(model)
    weights = {tensor.name for tensor in graph.graph.initializer}
    return tuple(
        node.name
        for node in graph.graph.node
        if node.op_type in _AXES and node.input[1] in weights and node.input[0] not in weights
    )


def quantise(
    model: Path,
    signature: Signature,
    out: Path,
    keep: Collection[str],
    ranges: Path,
    precision: str = "int8",
) -> None:
    """Write `model` with Q/DQ pairs to `out`; nodes named in `keep` and all others are in fp32.

    Each product reads what it is given, and its own weight, through a pair of its own. Steps are
    symmetric, zero is 0, as TensorRT demands: of int8 weights one for each channel of the output,
    else one for the tensor, amax / 127 or amax / 448 (E4M3FN). Biases stay as they are.
    The calibration rows are beside `model`; `ranges` is a file for what they lead to: read when it
    is there, else written. Raises `BuildFailed`.
    """
    wanted = set(products(model)) - set(keep)
    if not wanted:
        raise BuildFailed(f"an {precision} engine needs a node in it", got="all are kept in fp32")
    seen = observe(model, signature, ranges)
    graph = raised(named(model), precision)
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.graph.node:
        if node.name in wanted:
            weight = numpy_helper.to_array(tensors[node.input[1]])
            axis = _axis(node, weight) if precision == "int8" else None
            given = f"{node.name}_given"
            step = _steps(np.float32(seen[node.input[0]].reach), precision)
            graph.graph.initializer.extend(_scale(given, step, precision))
            nodes.append(_node("QuantizeLinear", node.input[0], given, f"{given}_rounded", None))
            nodes.append(
                _node("DequantizeLinear", f"{given}_rounded", given, f"{given}_again", None)
            )
            own = f"{node.name}_weight"
            others = None if axis is None else tuple(a for a in range(weight.ndim) if a != axis)
            steps = _steps(np.abs(weight).max(axis=others), precision)
            graph.graph.initializer.extend(_scale(own, steps, precision))
            graph.graph.initializer.append(
                numpy_helper.from_array(_round(weight, steps, axis, precision), f"{own}_rounded")
            )
            nodes.append(_node("DequantizeLinear", f"{own}_rounded", own, f"{own}_again", axis))
            node.input[0], node.input[1] = f"{given}_again", f"{own}_again"
        nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    _drop_unread(graph.graph)
    check(graph, precision)
    with replacing(out) as temporary:
        onnx.save_model(graph, temporary)


def _axis(node: onnx.NodeProto, weight: np.ndarray) -> int | None:
    """The axis of a step for each channel; None where one step serves the whole weight."""
    attributes = {a.name: a.i for a in node.attribute}
    if node.op_type == "Gemm" and attributes.get("transB"):
        return 0
    if node.op_type == "MatMul" and weight.ndim != 2:
        return None
    if node.op_type == "ConvTranspose" and attributes.get("group", 1) != 1:
        return None
    return _AXES[node.op_type]


def _steps(reach: np.ndarray | np.float32, precision: str) -> np.ndarray:
    """Reach over the largest number; of what is always 0 any step will do."""
    steps = np.asarray(reach, np.float32) / np.float32(_MOST[precision])
    return np.where(steps < np.finfo(np.float32).tiny, np.float32(1), steps)


def _round(weight: np.ndarray, steps: np.ndarray, axis: int | None, precision: str) -> np.ndarray:
    if axis is not None:
        steps = steps.reshape([-1 if a == axis else 1 for a in range(weight.ndim)])
    most = _MOST[precision]
    levels = np.clip(weight / steps, -most, most)
    return (np.rint(levels) if precision == "int8" else levels).astype(_DTYPES[precision])


def _scale(name: str, steps: np.ndarray, precision: str) -> list[onnx.TensorProto]:
    zeros = np.zeros(steps.shape, _DTYPES[precision])
    return [
        numpy_helper.from_array(steps, f"{name}_step"),
        numpy_helper.from_array(zeros, f"{name}_zero"),
    ]


def _node(operator: str, source: str, scale: str, out: str, axis: int | None) -> onnx.NodeProto:
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    inputs = [source, f"{scale}_step", f"{scale}_zero"]
    return helper.make_node(operator, inputs, [out], name=out, **attributes)


def _drop_unread(body: onnx.GraphProto) -> None:
    """Remove the weights that only products in eight bits read."""
    read = {name for node in body.node for name in node.input} | {v.name for v in body.output}
    kept = [tensor for tensor in body.initializer if tensor.name in read]
    kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
    del body.initializer[:]
    body.initializer.extend(kept)
