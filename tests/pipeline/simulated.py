"""Graphs of lower precision as fp32 arithmetic that rounds where they do: what any CPU can run.

Sums are in fp32 and results are rounded, as a GPU's matrix units do; a GPU may round elsewhere.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.backends.graphs import types_of
from pipeline.compare import Run
from pipeline.intermediates import unoptimised

_LOW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_PRODUCTS = ("Conv", "ConvTranspose", "GRU", "Gemm", "LSTM", "MatMul", "RNN")


def simulated(model: Path, precision: str) -> Run:
    """A graph of `mixed` or `qdq`, or of fp32 for tf32, opened so that ONNX Runtime computes it."""
    return unoptimised(rounding(model, precision))


def rounding(model: Path, precision: str) -> onnx.ModelProto:
    """The same as a graph."""
    graph = onnx.load_model(model)
    if precision == "tf32":
        _truncate(graph)
    elif precision in ("fp16", "bf16"):
        _widen(graph)
    return graph


def _widen(graph: onnx.ModelProto) -> None:
    """Make every tensor fp32, and round those to a lower type and back that were of it."""
    types = types_of(graph)
    body = graph.graph
    for tensor in body.initializer:
        if tensor.data_type in _LOW:
            array = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    nodes = []
    for node in body.node:
        if (
            node.op_type == "Cast"
            and types.get(node.input[0]) in _LOW
            and types[node.output[0]] == 1
        ):
            nodes.append(helper.make_node("Identity", node.input, node.output))
            continue
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i in _LOW:
                attribute.i = TensorProto.FLOAT
            elif attribute.name == "value" and attribute.t.data_type in _LOW:
                array = numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(numpy_helper.from_array(array))
        after = []
        for place, name in enumerate(node.output):
            if (kind := types.get(name)) in _LOW:
                node.output[place] = f"{name}_exact"
                low = f"{name}_low"
                after += [
                    helper.make_node("Cast", [f"{name}_exact"], [low], to=kind),
                    helper.make_node("Cast", [low], [name], to=TensorProto.FLOAT),
                ]
        nodes += [onnx.NodeProto.FromString(node.SerializeToString()), *after]
    _replace(graph, nodes)


def _truncate(graph: onnx.ModelProto) -> None:
    """Round what products read to 11 bits of significand, by Veltkamp's splitting."""
    graph.graph.initializer.append(
        numpy_helper.from_array(np.array(2**13 + 1, np.float32), "splitter")
    )
    types = types_of(graph)
    nodes = []
    for number, node in enumerate(graph.graph.node):
        if node.op_type in _PRODUCTS:
            for place, name in enumerate(node.input):
                if types.get(name) != TensorProto.FLOAT or place > 2:
                    continue
                if place == 2 and node.op_type in ("Conv", "ConvTranspose", "Gemm"):  # the bias
                    continue
                new = f"{name}_{number}_{place}"
                nodes += [
                    helper.make_node("Mul", [name, "splitter"], [f"{new}_wide"]),
                    helper.make_node("Sub", [f"{new}_wide", name], [f"{new}_rest"]),
                    helper.make_node("Sub", [f"{new}_wide", f"{new}_rest"], [new]),
                ]
                node.input[place] = new
        nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
    _replace(graph, nodes)


def _replace(graph: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    del graph.graph.value_info[:]
