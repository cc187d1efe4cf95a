"""Faults of sequences: lost steps and states, wrong masks, noise that is always the same."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import NodeProto, helper

from models.signature import BATCH, Axis
from pipeline.faults.fault import Change, Fault, Subject
from pipeline.faults.places import (
    attribute,
    constant,
    feed,
    initializers,
    kinds,
    label,
    nodes,
    number,
    pick,
    set_attribute,
    shuffled,
    wrap,
)


def _truncated(graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator) -> Change | None:
    """Zeros, which is padding, in the place of the last step."""
    steps = [
        (spec, place)
        for spec in subject.signature.inputs
        for place, axis in enumerate(spec.shape)
        if isinstance(axis, Axis) and axis.name != BATCH and not spec.picture
    ]
    found = pick(rng, steps)
    if found is None:
        return None
    spec, place = found
    zero = number(graph, 0, np.dtype(spec.dtype).type)
    begin, last, end, axis = (
        number(graph, [value], np.int64) for value in (0, -1, np.iinfo(np.int64).max, place)
    )

    def make(before: str, after: str) -> list[NodeProto]:
        return [
            helper.make_node("Slice", [before, begin, last, axis], [f"{after}_rest"]),
            helper.make_node("Slice", [before, last, end, axis], [f"{after}_last"]),
            helper.make_node("Mul", [f"{after}_last", zero], [f"{after}_lost"]),
            helper.make_node("Concat", [f"{after}_rest", f"{after}_lost"], [after], axis=place),
        ]

    wrap(graph, spec.name, make)
    return Change(spec.name)


def _reset_state(
    graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator
) -> Change | None:
    recurrence = subject.signature.recurrence
    name = pick(rng, [state.input for state in recurrence.states] if recurrence else [])
    if name is None:
        return None
    zero = number(graph, 0, np.dtype(subject.signature.input(name).dtype).type)
    wrap(graph, name, lambda before, after: [helper.make_node("Mul", [before, zero], [after])])
    return Change(name)


def _frozen_noise(
    graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator
) -> Change | None:
    """One draw for every row of every request."""
    names = [spec.name for spec in subject.signature.inputs if spec.name in subject.codec.noise]
    name = pick(rng, names)
    if name is None:
        return None
    shape = [s if isinstance(s, int) else 1 for s in subject.signature.input(name).shape]
    drawn = number(graph, rng.standard_normal(shape), np.float32)
    zero = number(graph, 0, np.float32)
    wrap(graph, name, lambda before, after: [
        helper.make_node("Mul", [before, zero], [f"{after}_nothing"]),
        helper.make_node("Add", [f"{after}_nothing", drawn], [after]),
    ])  # fmt: skip
    return Change(name)


_CELLS = ("LSTM", "GRU", "RNN")


def _reversed(graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator) -> Change | None:
    one_way = (
        n for n in nodes(graph, *_CELLS) if attribute(n, "direction", b"forward") == b"forward"
    )
    node = pick(rng, one_way)
    if node is None:
        return None
    set_attribute(node, "direction", "reverse")
    return Change(label(node))


def _reset_gate(
    graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator
) -> Change | None:
    node = pick(rng, nodes(graph, "GRU"))
    if node is None:
        return None
    before = attribute(node, "linear_before_reset", 0)
    set_attribute(node, "linear_before_reset", 1 - before)
    return Change(label(node))


def _masks(graph: onnx.ModelProto) -> Iterator[tuple[NodeProto, int]]:
    """Where a score becomes minus infinity, and which input says so."""
    for node in nodes(graph, "Where"):
        for place in (1, 2):
            value = constant(graph, node.input[place])
            if value is not None and value.size == 1 and value.dtype.kind == "f" and value < -1e3:
                yield node, place


def _soft_mask(graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator) -> Change | None:
    found = pick(rng, _masks(graph))
    if found is None:
        return None
    node, place = found
    node.input[place] = number(graph, -10, np.float32)
    return Change(label(node))


_ORDERS = ("GreaterOrEqual", "Greater", "LessOrEqual", "Less")


def _shifted_mask(
    graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator
) -> Change | None:
    """One number more on the left: a step sees the next one, or not the last."""
    masked = {node.input[0] for node, _ in _masks(graph)}
    behind: set[str] = set()
    for node in reversed(graph.graph.node):  # what a mask is made of
        if set(node.output) & (masked | behind):
            behind |= set(node.input)
    known = kinds(graph)
    for node in shuffled(rng, nodes(graph, *_ORDERS)):
        left = known.get(node.input[0])
        tensor = initializers(graph).get(node.input[0])
        if node.output[0] not in masked | behind or (left is None and tensor is None):
            continue
        dtype = left.dtype if left is not None else tensor.data_type if tensor is not None else 0
        one = number(graph, 1, helper.tensor_dtype_to_np_dtype(dtype).type)
        feed(graph, node, 0, lambda before, after, one=one: [
            helper.make_node("Add", [before, one], [after])
        ])  # fmt: skip
        return Change(label(node))
    return None


def _padding_seen(
    graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator
) -> Change | None:
    """Tokens are compared with what none of them is."""
    given = {spec.name for spec in subject.signature.inputs if not spec.floating}
    for node in shuffled(rng, nodes(graph, "Equal")):
        for place in (0, 1):
            value = constant(graph, node.input[place])
            if value is not None and value.size == 1 and node.input[1 - place] in given:
                node.input[place] = number(graph, -1, value.dtype.type)
                return Change(label(node))
    return None


SEQUENCE_FAULTS = (
    Fault("truncated sequence", "The last step is not seen.", _truncated),
    Fault("reset state", "What an earlier call left behind is forgotten.", _reset_state),
    Fault("frozen noise", "The noise is drawn once, at export, and is no longer an input.",
          _frozen_noise),
    Fault("reversed direction", "A recurrent cell reads its sequence from the end.", _reversed),
    Fault("wrong reset gate", "A GRU resets before its matrix in place of after, or the reverse.",
          _reset_gate),
    Fault("soft mask", "A masked score is -10 and not minus infinity.", _soft_mask),
    Fault("shifted mask", "A mask by position is one step off.", _shifted_mask),
    Fault("padding not masked", "Padding is read as if it were text.", _padding_seen),
)  # fmt: skip
