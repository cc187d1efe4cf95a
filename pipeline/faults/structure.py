"""Faults of structure: what a graph lost, exchanged or does twice."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import onnx
from onnx import NodeProto, helper

from pipeline.faults.fault import Change, Fault, Subject
from pipeline.faults.places import (
    attribute,
    become,
    constant,
    kinds,
    label,
    nodes,
    number,
    pick,
    producers,
    readers,
    shuffled,
    wrap,
)


def _swapped_outputs(
    graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator
) -> Change | None:
    pairs = [
        (one.name, other.name)
        for one, other in combinations(subject.signature.outputs, 2)
        if (one.shape, one.dtype) == (other.shape, other.dtype)
    ]
    pair = pick(rng, pairs)
    if pair is None:
        return None
    one, two = pair
    other = {one: two, two: one}
    for node in graph.graph.node:
        node.input[:] = [other.get(name, name) for name in node.input]
        node.output[:] = [other.get(name, name) for name in node.output]
    return Change(" and ".join(pair))


def _second_output(
    graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator
) -> Change | None:
    """The wrong sign; what is computed from it is wrong as well."""
    floats = [spec for spec in subject.signature.outputs[1:] if spec.floating]
    spec = pick(rng, floats)
    if spec is None:
        return None
    wrap(graph, spec.name, lambda before, after: [helper.make_node("Neg", [before], [after])])
    return Change(spec.name)


_NEUTRAL = {"Sub": 0, "Add": 0, "Div": 1, "Mul": 1}


def _normalisation(
    graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator
) -> Change | None:
    """The first steps behind a float input, each by a constant that is not neutral."""
    reached = [spec.name for spec in subject.signature.inputs if spec.floating]
    found: list[NodeProto] = []
    for node in graph.graph.node:
        if node.op_type in ("Pad", "Reshape", "Transpose", "Cast") and node.input[0] in reached:
            reached.append(node.output[0])
        if node.op_type in _NEUTRAL and node.input[0] in reached:
            value = constant(graph, node.input[1])
            if value is not None:
                reached.append(node.output[0])
                if (value != _NEUTRAL[node.op_type]).any():
                    found.append(node)
    node = pick(rng, found)
    if node is None:
        return None
    where = label(node)
    become(node, "Identity", node.input[:1])
    return Change(where)


def _residual(graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator) -> Change | None:
    """Of a sum of two equal shapes, the one that something else reads as well."""
    known = kinds(graph)
    made = producers(graph)
    places = [
        (node, place)
        for node in nodes(graph, "Add")
        if all(name in made and name in known for name in node.input)
        and len({known[name] for name in node.input}) == 1
        and known[node.input[0]].floating
        for place in (0, 1)
        if len(readers(graph, node.input[place])) > 1
    ]
    found = pick(rng, places)
    if found is None:
        return None
    node, skip = found
    where = label(node)
    become(node, "Identity", [node.input[1 - skip]])
    return Change(where)


_POSITIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Exp", "Abs")
_KEEPING = ("MaxPool", "AveragePool", "ReduceMean", "ReduceMax", "Concat", "Add", "Reshape",
            "Transpose", "Slice", "Squeeze", "Unsqueeze", "Identity")  # fmt: skip


def _activations(graph: onnx.ModelProto) -> list[NodeProto]:
    """Activations that do something: not a Relu of what no input can make negative."""
    made = producers(graph)
    kept = kinds(graph)

    def positive(name: str) -> bool:
        node = made.get(name)
        if node is None or node.op_type in _POSITIVE:
            return node is not None
        floats = [i for i in node.input if i in kept and kept[i].floating]
        known = len(floats) == len(node.input) or node.op_type not in ("Concat", "Add")
        return node.op_type in _KEEPING and known and bool(floats) and all(map(positive, floats))

    candidates = nodes(graph, "Relu", "LeakyRelu", "Tanh", "Sigmoid", "Erf")
    return [n for n in candidates if not (n.op_type.endswith("Relu") and positive(n.input[0]))]


def _dropped_activation(
    graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator
) -> Change | None:
    node = pick(rng, _activations(graph))
    if node is None:
        return None
    where = label(node)
    become(node, "Identity", node.input[:1])
    return Change(where)


def _exchanged_activation(
    graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator
) -> Change | None:
    """One that looks alike: leaky for rectified, piecewise linear for smooth, tanh for erf."""
    node = pick(rng, _activations(graph))
    if node is None:
        return None
    where, source = label(node), node.input[0]
    match node.op_type:
        case "Relu":
            become(node, "LeakyRelu", [source], alpha=0.01)
        case "LeakyRelu":
            become(node, "Relu", [source])
        case "Sigmoid":
            become(node, "HardSigmoid", [source], alpha=0.25)
        case "Tanh":
            ends = [number(graph, end, np.float32) for end in (-1, 1)]
            become(node, "Clip", [source, *ends])
        case _:  # of GELU: 0.0894 is twice 0.0447, for the argument is divided by the root of 2
            cubic, one, slope = (
                number(graph, value, np.float32) for value in (0.08943, 1, 2 / np.sqrt(np.pi))
            )
            become(node, "Tanh", [f"{source}_steep"])
            place = next(i for i, n in enumerate(graph.graph.node) if n == node)
            steps = [
                ("Mul", [source, source], f"{source}_squared"),
                ("Mul", [f"{source}_squared", cubic], f"{source}_cubic"),
                ("Add", [f"{source}_cubic", one], f"{source}_bent"),
                ("Mul", [f"{source}_bent", source], f"{source}_curve"),
                ("Mul", [f"{source}_curve", slope], f"{source}_steep"),
            ]
            for offset, (operator, inputs, output) in enumerate(steps):
                graph.graph.node.insert(
                    place + offset, helper.make_node(operator, inputs, [output])
                )
    return Change(where)


def _concat(graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator) -> Change | None:
    known = kinds(graph)
    for node in shuffled(rng, nodes(graph, "Concat")):
        data = known.get(node.output[0])
        if data is None or not data.floating or len(set(node.input)) < 2:
            continue
        node.input[:] = [*node.input[1:], node.input[0]]
        return Change(f"{label(node)}: axis {attribute(node, 'axis', 0)}")
    return None


STRUCTURE_FAULTS = (
    Fault("swapped outputs", "Two outputs of one shape have each other's names.", _swapped_outputs),
    Fault("garbage second output", "An output behind the first has the wrong sign.",
          _second_output),
    Fault("missing normalisation", "A step that centres or scales the input is not there.",
          _normalisation),
    Fault("dropped residual", "A sum has lost what was carried around its layer.", _residual),
    Fault("dropped activation", "A layer's activation is not there.", _dropped_activation),
    Fault("exchanged activation", "An activation is one that looks alike.", _exchanged_activation),
    Fault("exchanged concatenation", "What is put side by side stands in another order.", _concat),
)  # fmt: skip
