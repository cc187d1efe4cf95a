"""Faults of rounding: fewer bits, a wrong range, a wrong zero point, a wrong small constant."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from pipeline.faults.fault import Change, Fault, Subject
from pipeline.faults.places import (
    Weight,
    altered,
    attribute,
    constant,
    kinds,
    label,
    nodes,
    number,
    pick,
    producers,
    set_attribute,
    shuffled,
    weights,
    wrap,
)


def _quantise(array: np.ndarray, largest: float, levels: int) -> np.ndarray:
    """The nearest of 2 * levels + 1 symmetric steps up to `largest`, as float32."""
    step = largest / levels if largest > 0 else 1.0
    return (np.clip(np.round(array / step), -levels, levels) * step).astype(np.float32)


def _coarse(weight: Weight, array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _quantise(array, float(np.abs(array).max()), 7)


def _clipped(weight: Weight, array: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """3 deviations of a normal tensor leave one weight in 370 outside; None where none is."""
    largest = 3 * float(array.std())
    return _quantise(array, largest, 127) if np.abs(array).max() > largest else None


def _shifted(weight: Weight, array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    largest = float(np.abs(array).max())
    return _quantise(array, largest, 127) + np.float32(largest / 127)


def _bf16(weight: Weight, array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    bits = array.astype(np.float32).view(np.uint32)
    # To the nearest, ties to even: what a cast does.
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.astype(np.uint32).view(np.float32)


def _fp16(weight: Weight, array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return array.astype(np.float16).astype(np.float32)


def _largest(graph: onnx.ModelProto) -> list[Weight]:
    known = weights(graph)
    return [max(known, key=lambda w: int(np.prod(w.tensor.dims)))] if known else []


# What may stand at the end of a layer: its range is what a calibration looks at.
_LAYERS = ("Relu", "Tanh", "Sigmoid", "Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "MaxPool",
           "AveragePool", "LayerNormalization", "Gather")  # fmt: skip


def _activations(graph: onnx.ModelProto) -> list[str]:
    known = kinds(graph)
    return [
        node.output[0]
        for node in nodes(graph, *_LAYERS)
        if node.output[0] in known and known[node.output[0]].floating
    ]


def _activation_zero_point(
    graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator
) -> Change | None:
    name = pick(rng, _activations(graph))
    if name is None:
        return None
    own = f"{name}_quantised"

    def make(before: str, after: str) -> list[onnx.NodeProto]:
        parts = [own, f"{own}_scale", f"{own}_zero_point"]
        return [
            helper.make_node("DynamicQuantizeLinear", [before], parts),
            helper.make_node("DequantizeLinear", parts, [f"{own}_sound"]),
            helper.make_node("Add", [f"{own}_sound", parts[1]], [after]),
        ]

    wrap(graph, name, make)
    return Change(name)


def _overflow(graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator) -> Change | None:
    """Times 2^20: what is larger than 1/16 is beyond fp16's largest number."""
    name = pick(rng, _activations(graph))
    if name is None:
        return None
    factor = number(graph, 2.0**20, np.float32)
    own = f"{name}_half"

    def make(before: str, after: str) -> list[onnx.NodeProto]:
        return [
            helper.make_node("Mul", [before, factor], [f"{own}_large"]),
            helper.make_node("Cast", [f"{own}_large"], [own], to=TensorProto.FLOAT16),
            helper.make_node("Cast", [own], [f"{own}_wide"], to=TensorProto.FLOAT),
            helper.make_node("Div", [f"{own}_wide", factor], [after]),
        ]

    wrap(graph, name, make)
    return Change(name)


_NORMS = ("LayerNormalization", "BatchNormalization", "InstanceNormalization")


def _epsilon(graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator) -> Change | None:
    """1e-5 is the one framework's default and 1e-3 the other's."""
    made = producers(graph)
    roots = [made[n.input[0]] for n in nodes(graph, "Sqrt") if n.input[0] in made]
    for node in shuffled(rng, [*nodes(graph, *_NORMS), *roots]):
        if node.op_type in _NORMS:
            epsilon = attribute(node, "epsilon", 1e-5)
            assert isinstance(epsilon, float)
            set_attribute(node, "epsilon", 1e-3 if epsilon < 1e-4 else 1e-5)
            return Change(f"{label(node)}: {epsilon:.0e}")
        for place, name in enumerate(node.input) if node.op_type == "Add" else ():
            value = constant(graph, name)
            if value is not None and value.size == 1 and 0 < value.item() < 1e-4:
                node.input[place] = number(graph, 1e-3, np.float32)
                return Change(f"{label(node)}: {value.item():.0e}")
    return None


PRECISION_FAULTS = (
    Fault("coarse quantisation", "A weight tensor in 4 bits.", altered(_coarse)),
    Fault("clipped quantisation", "A weight tensor in 8 bits whose range ends at 3 deviations.",
          altered(_clipped)),
    Fault("wrong zero point", "A weight tensor in 8 bits, read with its zero point off by one.",
          altered(_shifted)),
    Fault("wrong activation zero point",
          "An activation in 8 bits, read with its zero point off by one.", _activation_zero_point),
    Fault("fp16 overflow", "An activation grows beyond the largest half-precision number.",
          _overflow),
    Fault("fp16 weight", "The largest weight tensor, rounded to half precision unasked.",
          altered(_fp16, _largest)),
    Fault("bf16 weight", "A weight tensor, rounded to bfloat16 unasked.", altered(_bf16)),
    Fault("wrong epsilon", "A normalisation's small constant is another framework's default.",
          _epsilon),
)  # fmt: skip
