"""Blame: of the node where an engine diverges, its name in the reference's graph and what changed.

An engine's node may be several of the graph's, fused; one of them is named where that can be told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from pipeline.matching import Frontier, Reference, inputs_of, plain

if TYPE_CHECKING:
    import onnx


def blame(
    graph: onnx.ModelProto,
    found: Frontier,
    values: Mapping[str, np.ndarray],
    reference: Reference,
    tolerance: float,
) -> tuple[str, str, str]:
    """Name and operator of the node, and a note of what of it is not the reference's."""
    node = found.node
    region = _region(reference, found)
    read = {name for r in region for name in inputs_of(r)}
    changed = _changed(graph, reference, node)
    notes = [f"tensor {name!r} is not the graph's" for name in sorted(changed)]
    array = values[found.tensor]
    held = None if plain(array) else reference.find(array, tolerance)
    if held is not None and held != found.tensor:
        notes.append(f"it holds what the reference has in {held!r}")
    # Whoever reads what is not read, or makes of what is held what should be held, is not here.
    ours = {found.matches.get(name) for name in inputs_of(node)}
    unread = {n for n in read if found.matches.get(n) == n and n not in ours}
    alike = [r for r in region if r.op_type == node.op_type.removeprefix("Fused")]
    lost = _before(region, alike[0], found) if alike and not notes else []
    if lost:
        notes.append(f"the engine goes on without it in {_name(node)!r}")
    elif unread:
        notes.append(f"{', '.join(sorted(unread))} is not read")
    chosen = next(
        (
            few[0]
            for few in (
                [r for r in region if changed & set(r.input)],
                [r for r in region if held in r.input],
                lost,
                [r for r in region if unread.intersection(inputs_of(r))],
                [r for r in region if r.name and r.name == node.name],
                alike,
                region[-1:],
            )
            if few
        ),
        node,
    )
    if chosen.op_type == node.op_type and chosen not in lost:
        notes += _attributes(node, chosen)
    if reference.graph is None:
        known = [found.matches[name] for name in inputs_of(node) if name in found.matches]
        if step := reference.next_step(known, values.values(), tolerance):
            notes.append(f"the module's next step that the engine does not take is {step}")
    if len(region) > 1:
        notes.append(f"here the graph has {', '.join(map(_name, region))}")
    return _name(chosen), chosen.op_type, "; ".join(notes)


def _before(
    region: list[onnx.NodeProto], node: onnx.NodeProto, found: Frontier
) -> list[onnx.NodeProto]:
    """The nodes of a region before one of them whose outputs the engine does not compute."""
    return [r for r in region[: region.index(node)] if not found.computed.intersection(r.output)]


def _region(reference: Reference, found: Frontier) -> list[onnx.NodeProto]:
    """The reference's nodes between what the engine has of it and its namesake of the tensor."""
    matched = set(found.matches.values()) | set(found.matches)
    wanted, between = {found.namesake}, []
    for node in reversed(reference.graph.graph.node if reference.graph else ()):
        if wanted.intersection(node.output):
            between.append(node)
            wanted |= {name for name in inputs_of(node) if name not in matched}
    return between[::-1]


def _changed(graph: onnx.ModelProto, reference: Reference, node: onnx.NodeProto) -> set[str]:
    """Weights of a node that are not those of the same name in the reference's graph."""
    from onnx.numpy_helper import to_array

    if reference.graph is None:
        return set()
    ours = {t.name: t for t in graph.graph.initializer if t.name in node.input}
    theirs = {t.name: t for t in reference.graph.graph.initializer if t.name in ours}
    return {
        name
        for name, tensor in theirs.items()
        if not np.array_equal(to_array(tensor), to_array(ours[name]))
    }


def _attributes(node: onnx.NodeProto, other: onnx.NodeProto) -> Iterable[str]:
    from onnx.helper import get_attribute_value

    ours, theirs = (
        {a.name: get_attribute_value(a) for a in n.attribute if not a.HasField("g")}
        for n in (node, other)
    )
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            yield f"{name} is {ours.get(name)}, in the graph {theirs.get(name)}"


def _name(node: onnx.NodeProto) -> str:
    return node.name or node.output[0]
