"""Faults of learned numbers: poisoned, dropped, scaled, exchanged, stale."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from pipeline.faults.fault import Change, Fault, Put, Subject
from pipeline.faults.places import (
    Weight,
    altered,
    attribute,
    biases,
    constant,
    initializers,
    nodes,
    producers,
    readers,
    rewrite,
    shuffled,
    weights,
)


def _poisoned(value: float) -> Put:
    def poison(weight: Weight, array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        array.reshape(-1)[int(rng.integers(array.size))] = value
        return array

    return altered(poison)


def _scaled(weight: Weight, array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    flat = array.reshape(-1)
    flat[rng.choice(flat.size, max(1, flat.size // 50), replace=False)] *= 1.5
    return array


def _flipped(weight: Weight, array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    flat = array.reshape(-1)
    flat[np.abs(flat).argmax()] *= -1
    return array


def _swapped_channels(
    weight: Weight, array: np.ndarray, rng: np.random.Generator
) -> np.ndarray | None:
    axis = weight.channels
    if axis is None or array.shape[axis] < 2:
        return None
    channels = np.moveaxis(array, axis, 0)
    one = int(rng.integers(len(channels)))
    other = int((one + rng.integers(1, len(channels))) % len(channels))
    channels[[one, other]] = channels[[other, one]]
    return array


def _transposed(weight: Weight, array: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    square = array.shape[0] == array.shape[1] and weight.node.op_type != "Gather"
    return array.swapaxes(0, 1) if square else None


def _rolled(weight: Weight, array: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    return np.roll(array, 1, axis=0) if weight.node.op_type == "Gather" else None


def _dropped_bias(
    graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator
) -> Change | None:
    """Of keys, a bias adds the same to every score of a query, which a softmax takes off again."""
    keys = _key_biases(graph)
    return altered(
        lambda weight, array, rng: None if weight.tensor.name in keys else np.zeros_like(array),
        biases,
    )(graph, subject, rng)


def _key_biases(graph: onnx.ModelProto) -> set[str]:
    """The biases that do no more than move all scores of an attention by one number."""
    made = producers(graph)
    answers = {value.name for value in graph.graph.output}

    def behind(name: str, *moving: str) -> onnx.NodeProto | None:
        """The node behind those that only move, scale or mask what nobody else reads."""
        while (node := made.get(name)) is not None:
            if len(readers(graph, name)) > 1 or name in answers:
                return None
            if node.op_type not in moving:
                return node
            if node.op_type in ("Mul", "Div", "Where"):
                factor = constant(graph, node.input[1])
                if factor is None or factor.size > 1:
                    return None
            name = node.input[2 if node.op_type == "Where" else 0]
        return None

    found = set()
    for softmax in nodes(graph, "Softmax"):
        scores = behind(softmax.input[0], "Mul", "Div", "Where")
        if scores is not None and scores.op_type == "MatMul":
            keys = behind(scores.input[1], "Transpose", "Reshape", "Mul", "Div")
            if keys is not None and keys.op_type == "Add":
                found |= set(keys.input) & initializers(graph).keys()
    return found


def _stale_tensor(
    graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator
) -> Change | None:
    if subject.other is None:
        return None
    pairs = zip(weights(graph), weights(subject.other), strict=False)
    for own, other in shuffled(rng, pairs):
        array = numpy_helper.to_array(other.tensor)
        same_place = own.node.output == other.node.output and own.tensor.dims == other.tensor.dims
        if same_place and not np.array_equal(array, numpy_helper.to_array(own.tensor)):
            rewrite(own.tensor, array)
            return Change(own.tensor.name)
    return None


def _all_stale(graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator) -> Change | None:
    if subject.other is None or subject.other.graph.initializer == graph.graph.initializer:
        return None
    graph.CopyFrom(subject.other)
    return Change("every weight")


_GATES = {"LSTM": ("iofc", "of"), "GRU": ("zrh", "zr")}


def _swapped_gates(
    graph: onnx.ModelProto, subject: Subject, rng: np.random.Generator
) -> Change | None:
    tensors = initializers(graph)
    cells = [node for node in graph.graph.node if node.op_type in _GATES]
    for node in shuffled(rng, cells):
        gates, (one, other) = _GATES[node.op_type]
        order = [gates.index({one: other, other: one}.get(gate, gate)) for gate in gates]
        changed = False
        for place, copies in ((1, 1), (2, 1), (3, 2)):
            if place >= len(node.input) or node.input[place] not in tensors:
                continue
            tensor = tensors[node.input[place]]
            before = numpy_helper.to_array(tensor)
            blocks = before.reshape(len(before), copies, len(gates), -1, *before.shape[2:])
            after = blocks[:, :, order].reshape(before.shape)
            changed = changed or not np.array_equal(before, after)
            rewrite(tensor, after)
        if changed:
            return Change(f"{node.op_type} {node.name}: gates {one} and {other}")
    return None


def _shifted_kernel(
    weight: Weight, array: np.ndarray, rng: np.random.Generator
) -> np.ndarray | None:
    windows = weight.node.op_type in ("Conv", "ConvTranspose") and array.shape[-1] > 1
    return np.roll(array, 1, axis=-1) if windows else None


def _turned_kernel(
    weight: Weight, array: np.ndarray, rng: np.random.Generator
) -> np.ndarray | None:
    windows = weight.node.op_type in ("Conv", "ConvTranspose") and array.ndim == 4
    return array.swapaxes(2, 3) if windows and array.shape[2] == array.shape[3] else None


def _exchanged_groups(
    weight: Weight, array: np.ndarray, rng: np.random.Generator
) -> np.ndarray | None:
    """The channels of one group in the place of another's."""
    groups = attribute(weight.node, "group", 1)
    if weight.node.op_type != "Conv" or not isinstance(groups, int) or groups < 2:
        return None
    return np.roll(array, array.shape[0] // groups, axis=0)


WEIGHT_FAULTS = (
    Fault("NaN weight", "One weight is not a number: a diverged step, a damaged file.",
          _poisoned(np.nan)),
    Fault("infinite weight", "One weight is infinite: an overflow in a conversion.",
          _poisoned(np.inf)),
    Fault("dropped bias", "A bias is lost: a fusion or a converter that forgot it.", _dropped_bias),
    Fault("scaled weights", "2 % of a weight tensor times 1.5: a damaged or half-written file.",
          altered(_scaled)),
    Fault("flipped sign", "The largest weight of a tensor changes its sign: one flipped bit.",
          altered(_flipped)),
    Fault("swapped channels", "Two output channels of a weight change places, not their biases.",
          altered(_swapped_channels)),
    Fault("transposed weight", "A square weight is used transposed: a wrong layout fits by shape.",
          altered(_transposed)),
    Fault("stale tensor", "One tensor is of another training: a cache that was not emptied.",
          _stale_tensor),
    Fault("stale weights", "All tensors are of another training: the wrong file.", _all_stale),
    Fault("swapped gates", "Two gates of a recurrent cell change places: libraries order them "
          "differently.", _swapped_gates),
    Fault("shifted kernel", "A kernel lies one place to the side: an off-by-one in its packing.",
          altered(_shifted_kernel)),
    Fault("turned kernel", "A square kernel's height and width change places: a wrong layout.",
          altered(_turned_kernel)),
    Fault("exchanged groups", "A grouped convolution's groups change places.",
          altered(_exchanged_groups)),
    Fault("off-by-one embedding", "A table is read one row off: special tokens counted twice.",
          altered(_rolled)),
)  # fmt: skip
