"""Faults of windows: padding, dilation, pooling, interpolation, and what they are read from."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import NodeProto, helper

from pipeline.faults.fault import Change, Fault, Subject
from pipeline.faults.places import (
    attribute,
    become,
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


def _kernel(graph: onnx.ModelProto, node: NodeProto) -> list[int]:
    """The sizes of a window over height and width, or over length."""
    given = attribute(node, "kernel_shape", None)
    if given is None:
        tensor = initializers(graph).get(node.input[1]) if len(node.input) > 1 else None
        given = [] if tensor is None else tensor.dims[2:]
    return list(given)


def _windows(graph: onnx.ModelProto, *operators: str) -> Iterable[tuple[NodeProto, list[int]]]:
    """Nodes with a window of more than one place."""
    for node in nodes(graph, *operators):
        kernel = _kernel(graph, node)
        if kernel and max(kernel) > 1:
            yield node, kernel


def _shift(graph: onnx.ModelProto, node: NodeProto, place: int, axis: int, rank: int) -> None:
    """Give a node what it reads one place further along an axis, the first place zero."""
    pads = np.zeros(2 * rank, np.int64)
    pads[axis], pads[rank + axis] = 1, -1
    name = number(graph, pads)
    feed(graph, node, place, lambda before, after: [
        helper.make_node("Pad", [before, name], [after])
    ])  # fmt: skip


def _padding(graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator) -> Change | None:
    """One more before, one less after, so that every shape stays."""
    found = pick(rng, _windows(graph, "Conv", "MaxPool", "AveragePool"))
    if found is None:
        return None
    node, kernel = found
    dims = len(kernel)
    axis = int(rng.choice(np.flatnonzero(np.array(kernel) > 1)))
    pads = list(attribute(node, "pads", [0] * 2 * dims))
    if pads[dims + axis] > 0 and pads[axis] + 1 < kernel[axis]:
        pads[axis] += 1
        pads[dims + axis] -= 1
        set_attribute(node, "pads", pads)
    else:
        _shift(graph, node, 0, axis + 2, dims + 2)
    return Change(f"{label(node)}: axis {axis + 2}")


def _output_padding(
    graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator
) -> Change | None:
    """One more is cut off before and one less after: another convention of output padding."""
    for node, kernel in shuffled(rng, _windows(graph, "ConvTranspose")):
        dims = len(kernel)
        pads = list(attribute(node, "pads", [0] * 2 * dims))
        if pads[-1] > 0:
            pads[dims - 1] += 1
            pads[-1] -= 1
            set_attribute(node, "pads", pads)
            return Change(f"{label(node)}: axis {dims + 1}")
    return None


def _dilation(graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator) -> Change | None:
    """Padding grows with the window, so that every shape stays."""
    found = pick(rng, _windows(graph, "Conv"))
    if found is None:
        return None
    node, kernel = found
    dims = len(kernel)
    dilations = list(attribute(node, "dilations", [1] * dims))
    pads = list(attribute(node, "pads", [0] * 2 * dims))
    for axis, size in enumerate(kernel):
        pads[axis] += (size - 1) // 2
        pads[dims + axis] += size - 1 - (size - 1) // 2
    set_attribute(node, "dilations", [d + 1 for d in dilations])
    set_attribute(node, "pads", pads)
    return Change(label(node))


def _pooling(graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator) -> Change | None:
    found = pick(rng, _windows(graph, "MaxPool", "AveragePool"))
    if found is None:
        return None
    node, kernel = found
    kept = {
        name: attribute(node, name, default)
        for name, default in (
            ("pads", [0] * 2 * len(kernel)), ("strides", [1] * len(kernel)), ("ceil_mode", 0)
        )
    }  # fmt: skip
    where = label(node)
    other = "AveragePool" if node.op_type == "MaxPool" else "MaxPool"
    become(node, other, node.input[:1], kernel_shape=kernel, **kept)
    return Change(where)


def _counted(graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator) -> Change | None:
    padded = (n for n, _ in _windows(graph, "AveragePool") if any(attribute(n, "pads", [])))
    node = pick(rng, padded)
    if node is None:
        return None
    set_attribute(node, "count_include_pad", 1 - attribute(node, "count_include_pad", 0))
    return Change(label(node))


def _interpolation(
    graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator
) -> Change | None:
    """Nearest becomes linear; what was not nearest takes other coordinates. Not of one pixel."""
    known = kinds(graph)
    one = {name for name, kind in known.items() if set(kind.shape[2:]) == {1}}
    node = pick(rng, (node for node in nodes(graph, "Resize") if node.input[0] not in one))
    if node is None:
        return None
    if attribute(node, "mode", b"nearest") == b"nearest":
        set_attribute(node, "mode", "linear")
        set_attribute(node, "coordinate_transformation_mode", "half_pixel")
    else:
        usual = attribute(node, "coordinate_transformation_mode", b"half_pixel")
        other = "asymmetric" if usual != b"asymmetric" else "half_pixel"
        set_attribute(node, "coordinate_transformation_mode", other)
    return Change(label(node))


def _exchanged_axes(
    graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator
) -> Change | None:
    """Of maps that a window then looks at, for one that is averaged whole has no sides."""
    known = kinds(graph)
    maps = {
        node.input[0]
        for node, _ in _windows(graph, "Conv", "ConvTranspose")
        if node.input[0] in known
    }
    square = [
        name
        for name in sorted(maps)
        if len(shape := known[name].shape) == 4 and shape[2] == shape[3] and shape[2] not in (0, 1)
    ]
    name = pick(rng, square)
    if name is None:
        return None
    wrap(graph, name, lambda before, after: [
        helper.make_node("Transpose", [before], [after], perm=[0, 1, 3, 2])
    ])  # fmt: skip
    return Change(name)


def _slice(graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator) -> Change | None:
    """What is cut out begins one place too early, where there is a zero."""
    known = kinds(graph)
    for node in shuffled(rng, nodes(graph, "Slice", "Split")):
        data = known.get(node.input[0])
        if data is None or not data.floating or not data.shape:
            continue
        axes = [attribute(node, "axis", 0)]
        if node.op_type == "Slice":
            given = constant(graph, node.input[3]) if len(node.input) > 3 else np.array([0])
            if given is None:
                continue
            axes = given.tolist()
        axis = axes[0] % len(data.shape)
        _shift(graph, node, 0, axis, len(data.shape))
        return Change(f"{label(node)}: axis {axis}")
    return None


WINDOW_FAULTS = (
    Fault("off-by-one padding", "A window reads one place off: same-padding of an even window.",
          _padding),
    Fault("wrong output padding", "A transposed convolution is cut at its other end.",
          _output_padding),
    Fault("wrong dilation", "A kernel's places lie one further apart.", _dilation),
    Fault("exchanged pooling", "The largest of a window in place of its mean, or the reverse.",
          _pooling),
    Fault("padding counted", "A mean over a window counts its padding, or no longer does.",
          _counted),
    Fault("wrong interpolation", "A map is enlarged in another mode or by other coordinates.",
          _interpolation),
    Fault("height and width exchanged", "A square map is turned: a wrong layout fits by shape.",
          _exchanged_axes),
    Fault("off-by-one slice", "What is cut out of a tensor begins one place too early.", _slice),
)  # fmt: skip
