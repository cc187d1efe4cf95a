"""Places: what of a graph a fault can be put into, and how tensors and nodes are exchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from pipeline.faults.fault import Change, Put, Subject

Place = TypeVar("Place")

# Which inputs of an operator are learned matrices, and which its bias.
_MATRICES = {
    "Conv": (1,), "ConvTranspose": (1,), "Gemm": (1,), "MatMul": (1,), "Gather": (0,),
    "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2),
}  # fmt: skip
_BIASES = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2, "LSTM": 3, "GRU": 3, "RNN": 3,
           "LayerNormalization": 2, "BatchNormalization": 2}  # fmt: skip


@dataclass(frozen=True)
class Weight:
    """A learned tensor and the node that uses it; `channels` is its axis of output channels."""

    node: NodeProto
    tensor: TensorProto
    channels: int | None = None


def weights(graph: onnx.ModelProto) -> list[Weight]:
    """The float matrices, kernels and tables of two axes or more that nodes use, each once."""
    found: dict[str, Weight] = {}
    tensors = initializers(graph)
    for node in graph.graph.node:
        for place in _MATRICES.get(node.op_type, ()):
            tensor = tensors.get(node.input[place])
            if tensor is None or tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2:
                continue
            channels = {
                "Conv": 0,
                "ConvTranspose": 1,
                "Gemm": 0 if attribute(node, "transB", 0) else 1,
                "MatMul": len(tensor.dims) - 1,
            }.get(node.op_type)
            found.setdefault(tensor.name, Weight(node, tensor, channels))
    return list(found.values())


def biases(graph: onnx.ModelProto) -> list[Weight]:
    """The float vectors that nodes add, each once."""
    found: dict[str, Weight] = {}
    tensors = initializers(graph)
    for node in graph.graph.node:
        names = list(node.input) if node.op_type == "Add" else []
        place = _BIASES.get(node.op_type)
        if place is not None and place < len(node.input):
            names.append(node.input[place])
        for name in names:
            tensor = tensors.get(name)
            if tensor is not None and tensor.data_type == TensorProto.FLOAT and tensor.dims:
                found.setdefault(name, Weight(node, tensor))
    return list(found.values())


def altered(
    function: Callable[[Weight, np.ndarray, np.random.Generator], np.ndarray | None],
    places: Callable[[onnx.ModelProto], list[Weight]] = weights,
) -> Put:
    """The fault that one tensor, by chance, holds what `function` makes of it.

    A tensor for which that is None is no place for the fault. One that it leaves as it is, is taken
    where there is no other.
    """

    def put(graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator) -> Change | None:
        same = None
        for weight in shuffled(rng, places(graph)):
            before = numpy_helper.to_array(weight.tensor)
            after = function(weight, before.copy(), rng)
            if after is None:
                continue
            if not np.array_equal(before, after):
                rewrite(weight.tensor, after)
                return Change(weight.tensor.name)
            same = Change(weight.tensor.name, "the tensor holds already what the fault makes of it")
        return same

    return put


def initializers(graph: onnx.ModelProto) -> dict[str, TensorProto]:
    """The tensors of a graph by name."""
    return {tensor.name: tensor for tensor in graph.graph.initializer}


def constant(graph: onnx.ModelProto, name: str) -> np.ndarray | None:
    """The value of a tensor that is a number in the file; None of one that is computed."""
    for tensor in graph.graph.initializer:
        if tensor.name == name:
            return numpy_helper.to_array(tensor)
    for node in graph.graph.node:
        if node.op_type == "Constant" and node.output[0] == name:
            value = attribute(node, "value", None)
            return None if value is None else numpy_helper.to_array(value)
    return None


def rewrite(tensor: TensorProto, array: np.ndarray) -> None:
    """Put other values of the same dtype into a tensor of a graph."""
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array, dtype), tensor.name))


def number(graph: onnx.ModelProto, value: object, dtype: type | None = None) -> str:
    """The name of a new tensor with that value."""
    name = f"fault_{len(graph.graph.initializer)}"
    graph.graph.initializer.append(numpy_helper.from_array(np.array(value, dtype), name))
    return name


def wrap(graph: onnx.ModelProto, name: str, make: Callable[[str, str], list[NodeProto]]) -> None:
    """Put nodes between a tensor and all that read it: `make` gets its name and the new one."""
    producer = next((i for i, n in enumerate(graph.graph.node) if name in n.output), None)
    if producer is None:
        before, after, start = name, f"{name}_faulty", 0
        for node in graph.graph.node:
            node.input[:] = [after if i == name else i for i in node.input]
    else:
        before, after, start = f"{name}_sound", name, producer + 1
        node = graph.graph.node[producer]
        node.output[:] = [before if o == name else o for o in node.output]
    for place, node in enumerate(make(before, after)):
        graph.graph.node.insert(start + place, node)


def feed(
    graph: onnx.ModelProto, reader: NodeProto, place: int,
    make: Callable[[str, str], list[NodeProto]],
) -> None:  # fmt: skip
    """Put nodes between one input of one node and what it reads there."""
    before, after = reader.input[place], f"{reader.output[0]}_given"
    start = next(i for i, node in enumerate(graph.graph.node) if node == reader)
    reader.input[place] = after
    for offset, node in enumerate(make(before, after)):
        graph.graph.node.insert(start + offset, node)


def become(node: NodeProto, operator: str, inputs: Iterable[str], **attributes: Any) -> None:
    """Make another operator of a node, in its place and with its outputs."""
    node.CopyFrom(
        helper.make_node(operator, list(inputs), list(node.output), node.name, **attributes)
    )


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """The value of an attribute as Python says it."""
    for entry in node.attribute:
        if entry.name == name:
            return helper.get_attribute_value(entry)
    return default


def set_attribute(node: NodeProto, name: str, value: Any) -> None:
    """Give an attribute a value, whether it had one or not."""
    kept = [entry for entry in node.attribute if entry.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


@dataclass(frozen=True)
class Kind:
    """What is known of a tensor without running: dtype, and each size or its name."""

    dtype: int
    shape: tuple[int | str, ...]

    @property
    def floating(self) -> bool:
        return self.dtype == TensorProto.FLOAT


def kinds(graph: onnx.ModelProto) -> dict[str, Kind]:
    """Every tensor that nodes make or that is given, as the file says or onnx infers."""
    known = graph if graph.graph.value_info else onnx.shape_inference.infer_shapes(graph)
    values = [*known.graph.input, *known.graph.output, *known.graph.value_info]
    return {
        value.name: Kind(
            value.type.tensor_type.elem_type,
            tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim),
        )
        for value in values
    }


def nodes(graph: onnx.ModelProto, *operators: str) -> list[NodeProto]:
    """The nodes of these operators, in order."""
    return [node for node in graph.graph.node if node.op_type in operators]


def producers(graph: onnx.ModelProto) -> dict[str, NodeProto]:
    """Which node makes a tensor."""
    return {name: node for node in graph.graph.node for name in node.output}


def readers(graph: onnx.ModelProto, name: str) -> list[NodeProto]:
    """Which nodes read a tensor."""
    return [node for node in graph.graph.node if name in node.input]


def label(node: NodeProto) -> str:
    """A node as a person finds it: its operator and its name, or what it makes."""
    return f"{node.op_type} {node.name or node.output[0]}"


def pick(rng: np.random.Generator, places: Iterable[Place]) -> Place | None:
    """One of these places; None where there is none."""
    return next(shuffled(rng, places), None)


def shuffled(rng: np.random.Generator, places: Iterable[Place]) -> Iterator[Place]:
    """These places in an order by chance."""
    known = list(places)
    for index in rng.permutation(len(known)):
        yield known[int(index)]
