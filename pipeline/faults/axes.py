"""Faults of axes: sizes that were frozen, rows that know of each other, classes in disorder."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, helper

from models.signature import BATCH, Axis, Signature
from pipeline.faults.fault import Change, Fault, Subject
from pipeline.faults.places import (
    attribute,
    kinds,
    label,
    nodes,
    number,
    pick,
    readers,
    set_attribute,
    wrap,
)


def _baked_batch(
    graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator
) -> Change | None:
    """A reshape to the rows of the example that was traced; other numbers of rows do not fit."""
    batch = subject.signature.batch
    spec = pick(rng, subject.signature.inputs)
    if spec is None or batch is None or batch.min == batch.max:
        return None
    rows = subject.signature.example()[BATCH]
    shape = number(graph, [rows] + [0] * (len(spec.shape) - 1), np.int64)
    wrap(graph, spec.name, lambda before, after: [
        helper.make_node("Reshape", [before, shape], [after])
    ])  # fmt: skip
    return Change(f"{spec.name}: batch {rows}")


def _declared_batch(
    graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator
) -> Change | None:
    batch = subject.signature.batch
    value = pick(rng, graph.graph.input)
    if value is None or batch is None or batch.min == batch.max:
        return None
    size = value.type.tensor_type.shape.dim[0]
    size.Clear()
    size.dim_value = subject.signature.example()[BATCH]
    return Change(f"{value.name}: batch {size.dim_value}")


def _long(signature: Signature) -> list[tuple[str, int, Axis]]:
    """Inputs, places and axes of which some sizes are larger than the traced example's."""
    example = signature.example()
    return [
        (spec.name, place, axis)
        for spec in signature.inputs
        for place, axis in enumerate(spec.shape)
        if isinstance(axis, Axis) and axis.name != BATCH and axis.max > example[axis.name]
    ]


def _baked_size(
    graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator
) -> Change | None:
    """What lies beyond the traced example's size is not seen."""
    found = pick(rng, _long(subject.signature))
    if found is None:
        return None
    name, place, axis = found
    size = subject.signature.example()[axis.name]
    parts = [number(graph, [value], np.int64) for value in (0, size, place)]
    wrap(graph, name, lambda before, after: [
        helper.make_node("Slice", [before, *parts], [after])
    ])  # fmt: skip
    return Change(f"{name}: {axis.name} {size}")


def _by_rows(graph: onnx.ModelProto, signature: Signature) -> list[str]:
    """The float tensors of two axes or more whose first axis is the batch, used by a node."""
    if signature.batch is None or signature.batch.max == 1:
        return []
    return [
        name
        for name, kind in kinds(graph).items()
        if kind.floating and len(kind.shape) > 1 and kind.shape[0] == BATCH and readers(graph, name)
    ]


def _batch_leak(
    graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator
) -> Change | None:
    """A thousandth of the way to the mean over rows: nothing at all where there is one row."""
    name = pick(rng, _by_rows(graph, subject.signature))
    if name is None:
        return None
    axis, little = number(graph, [0], np.int64), number(graph, 1e-3, np.float32)

    def make(before: str, after: str) -> list[NodeProto]:
        return [
            helper.make_node("ReduceMean", [before, axis], [f"{after}_mean"], keepdims=1),
            helper.make_node("Sub", [f"{after}_mean", before], [f"{after}_way"]),
            helper.make_node("Mul", [f"{after}_way", little], [f"{after}_leak"]),
            helper.make_node("Add", [before, f"{after}_leak"], [after]),
        ]

    wrap(graph, name, make)
    return Change(name)


def _last_row(graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator) -> Change | None:
    batch = subject.signature.batch
    spec = pick(rng, subject.signature.outputs)
    if batch is None or batch.max == 1 or spec is None:
        return None
    first, second, last = (number(graph, [n], np.int64) for n in (0, 1, -1))

    def make(before: str, after: str) -> list[NodeProto]:
        return [
            helper.make_node("Slice", [before, first, last, first], [f"{after}_rest"]),
            helper.make_node("Slice", [before, first, second, first], [f"{after}_first"]),
            helper.make_node("Concat", [f"{after}_rest", f"{after}_first"], [after], axis=0),
        ]

    wrap(graph, spec.name, make)
    return Change(spec.name)


def _softmax_axis(
    graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator
) -> Change | None:
    known = kinds(graph)
    places = [n for n in nodes(graph, "Softmax", "LogSoftmax") if n.input[0] in known]
    node = pick(rng, places)
    if node is None:
        return None
    rank = len(known[node.input[0]].shape)
    if rank < 2:
        return None
    axis = attribute(node, "axis", -1) % rank
    other = axis - 1 if axis else 1
    set_attribute(node, "axis", other)
    return Change(f"{label(node)}: axis {other}")


def _double_softmax(
    graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator
) -> Change | None:
    node = pick(rng, nodes(graph, "Softmax"))
    if node is None:
        return None
    axis = attribute(node, "axis", -1)
    wrap(graph, node.output[0], lambda before, after: [
        helper.make_node("Softmax", [before], [after], axis=axis)
    ])  # fmt: skip
    return Change(label(node))


def _classes(subject: Subject) -> list[tuple[str, int, int]]:
    """Outputs, axes and numbers of what a codec names: classes, characters, actions."""
    codec = subject.codec
    named = {
        codec.scores: 1,
        codec.pixels: 1,
        codec.generation and codec.generation.logits: 2,
        codec.actions and codec.actions.values: 1,
    }
    return [
        (spec.name, axis, size)
        for spec in subject.signature.outputs
        for axis in [named.get(spec.name)]
        if axis is not None and isinstance(size := spec.shape[axis], int) and size > 1
    ]


def _reordered(graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator) -> Change | None:
    found = pick(rng, _classes(subject))
    if found is None:
        return None
    name, axis, size = found
    order = rng.permutation(size)
    if (order == np.arange(size)).all():
        order = np.roll(order, 1)
    indices = number(graph, order, np.int64)
    wrap(graph, name, lambda before, after: [
        helper.make_node("Gather", [before, indices], [after], axis=axis)
    ])  # fmt: skip
    return Change(f"{name}: axis {axis}")


AXIS_FAULTS = (
    Fault("baked batch", "The graph computes only as many rows as the traced example had.",
          _baked_batch),
    Fault("declared batch", "The graph computes any batch and says that it takes one size.",
          _declared_batch),
    Fault("baked size", "What lies beyond the traced example's length or height is not seen.",
          _baked_size),
    Fault("batch leak", "Rows are drawn to their mean: batch statistics of training.",
          _batch_leak),
    Fault("last row", "The last row of a batch is answered as its first: a compiler's bug.",
          _last_row),
    Fault("wrong softmax axis", "A softmax adds up to one along another axis.", _softmax_axis),
    Fault("double softmax", "A softmax of a softmax: once in the graph, once around it.",
          _double_softmax),
    Fault("reordered classes", "The classes stand in another order: sorted as text.", _reordered),
)  # fmt: skip
