"""Graphs for int8 on the CPU: static Q/DQ, ranges from training rows, weights per channel."""

from __future__ import annotations

from collections.abc import Collection, Iterator, MutableSequence
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from models.errors import BuildFailed, first_line
from models.signature import Arrays, Signature
from pipeline.samples import CALIBRATION_ROWS, read_samples

# What is worth computing in int8 by itself: products with a weight.
_PRODUCTS = ("Conv", "Gemm", "MatMul")
# Of these the kernels can give the sums as floats, not rounded again.
_FLOAT_SUMS = ("Gemm", "MatMul")
# What int8 values pass through as they are, so that they need not become floats in between.
_PASSING = (
    "AveragePool", "Clip", "Flatten", "GlobalAveragePool", "MaxPool", "Pad", "Relu", "Reshape",
    "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
_JOINING = ("Add", "Concat")
# Through these what a convolution gives is an answer of the graph, weighted and summed up.
_LINEAR = (
    "Add", "AveragePool", "ConvTranspose", "Flatten", "GlobalAveragePool", "Reshape", "Resize",
    "Slice", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip

_ROWS = 32  # a call, while ranges are observed


def products(model: Path) -> tuple[str, ...]:
    """The nodes that an int8 engine computes in int8: activation times weight.

    A convolution gives int8 only, so one that gives an answer of the graph, perhaps upsampled or
    summed up with others, is none of them.
    """
    return _products(_named(model))


def _named(model: Path) -> onnx.ModelProto:
    graph = onnx.load_model(model)
    for number, node in enumerate(graph.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    return graph


def _products(graph: onnx.ModelProto) -> tuple[str, ...]:
    weights = {tensor.name for tensor in graph.graph.initializer}
    answers = {value.name for value in graph.graph.output}
    for node in reversed(graph.graph.node):
        if node.op_type in _LINEAR and answers.intersection(node.output):
            answers.update(node.input)
    return tuple(
        node.name
        for node in graph.graph.node
        if node.op_type in _PRODUCTS
        and node.input[1] in weights
        and (node.op_type in _FLOAT_SUMS or node.output[0] not in answers)
    )


def quantise(
    model: Path, signature: Signature, out: Path, keep: Collection[str], ranges: Path
) -> None:
    """Write `model` with Q/DQ pairs to `out`; nodes named in `keep` stay in fp32.

    The calibration rows are beside `model`. `ranges` is a file for what they lead to: read when it
    is there, else written, for another graph of the same model. Raises `BuildFailed`.
    """
    rows = model.parent / CALIBRATION_ROWS
    if not rows.is_file():
        raise BuildFailed(
            f"an int8 engine needs rows to calibrate with beside {model.name}",
            got=f"no {CALIBRATION_ROWS}",
            fix="build it where the model was exported, or export it again",
        )
    graph = _named(model)
    unshare(graph)
    wanted = [name for name in _products(graph) if name not in keep]
    if not wanted:  # of no names the quantiser takes all
        raise BuildFailed("an int8 engine needs a node in int8", got="all are kept in fp32")
    add_pre_process_metadata(graph)  # the exporter has folded what that step would fold
    nodes = [*wanted, *_between(graph, wanted)]
    try:
        quantize_static(
            graph,
            out,
            _Rows(read_samples(rows).batches(signature, _ROWS)),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=sorted({*_PRODUCTS, *_PASSING, *_JOINING}),
            nodes_to_quantize=nodes,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={
                "MatMulConstBOnly": True,
                "OpTypesToExcludeOutputQuantization": list(_FLOAT_SUMS),
            },
            calibration_cache_path=ranges,
        )
    except Exception as error:  # the library's quantiser raises what it likes, of NaN an assertion
        raise BuildFailed(
            "ONNX Runtime cannot quantise the graph", got=first_line(error)
        ) from error
    rounded = onnx.load_model(out)
    _spare(rounded.graph, nodes)
    onnx.save_model(rounded, out)


def unshare(graph: onnx.ModelProto) -> None:
    """Give each node weights of its own: a quantiser changes them for one node in place."""
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    used: set[str] = set()
    for node in graph.graph.node:
        for place, name in enumerate(node.input):
            if name in used and tensors[name].data_type == onnx.TensorProto.FLOAT:
                own = graph.graph.initializer.add()
                own.CopyFrom(tensors[name])
                own.name = node.input[place] = f"{name}_{node.name or node.output[0]}_{place}"
            elif name in tensors:
                used.add(name)


def _between(graph: onnx.ModelProto, wanted: Collection[str]) -> list[str]:
    """Nodes that lie between products in int8 and only pass, join or add up what these give."""
    int8: set[str] = set()
    found = []
    weights = {tensor.name for tensor in graph.graph.initializer}
    for node in graph.graph.node:
        given = [name for name in node.input if name and name not in weights]
        if node.name in wanted:
            int8.update(node.output if node.op_type == "Conv" else ())
        elif (node.op_type in _PASSING and int8.intersection(given[:1])) or (
            node.op_type in _JOINING and len(given) > 1 and int8.issuperset(given)
        ):
            int8.update(node.output)
            found.append(node.name)
    return found


def _spare(graph: onnx.GraphProto, nodes: Collection[str]) -> None:
    """Give what is not int8, and the graph's answers, a value itself and not what it rounds to.

    The quantiser rounds a value for all when one of those that take it is int8.
    """
    makers = {name: node for node in graph.node for name in node.output}
    answers = {value.name for value in graph.output}
    for back in graph.node:
        there = makers.get(back.input[0]) if back.op_type == "DequantizeLinear" else None
        if there is None:  # a weight
            continue
        exact, rounded = there.input[0], back.output[0]
        maker = makers.get(exact)
        if maker and maker.name in nodes and maker.op_type not in _FLOAT_SUMS:
            continue
        for node in graph.node:
            if node.name not in nodes:
                _rename(node.input, rounded, exact)
        if rounded in answers and maker:
            for node in graph.node:
                _rename(node.input, rounded, f"{rounded}_rounded")
                _rename(node.input, exact, rounded)
            _rename(maker.output, exact, rounded)
            back.output[0] = f"{rounded}_rounded"


def _rename(names: MutableSequence[str], old: str, new: str) -> None:
    names[:] = [new if name == old else name for name in names]


class _Rows(CalibrationDataReader):
    """Calibration rows as the quantiser asks for them."""

    def __init__(self, batches: list[Arrays]) -> None:
        self._batches: Iterator[Arrays] = iter(batches)

    def get_next(self) -> Any:
        return next(self._batches, None)
