"""Matching: which tensors of an engine's graph the reference computes too, by their values."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from pipeline.compare import relative_error

if TYPE_CHECKING:
    import onnx

_FEW = 8  # numbers of a shape, which by themselves say nothing
_SEEN = 4096
# Where a node that answers in whole numbers reads what one of them is worth.
_SCALES = {
    "QuantizeLinear": 1, "QLinearConv": 6, "QLinearMatMul": 6, "QLinearAdd": 6, "QLinearMul": 6,
    "QGemm": 7, "QLinearGlobalAveragePool": 3, "QLinearAveragePool": 3, "QLinearSigmoid": 3,
    "QLinearLeakyRelu": 3, "QLinearSoftmax": 3,
}  # fmt: skip
_QUANTISED = ("_QuantizeLinear_Output", "_DequantizeLinear_Output")
_SHAPING = {"Reshape", "Flatten", "Squeeze", "Unsqueeze"}
_VIEWS = (".t.default", "transpose.int", "permute.default", "view.default")


@dataclass(frozen=True)
class Reference:
    """What an engine's tensors are looked for in: all that a graph or a module computes.

    The names in `arrays` mean something to an engine only where they come from its graph. `strict`
    takes a module's tensor for another where it has another shape.
    """

    arrays: Mapping[str, np.ndarray]
    graph: onnx.ModelProto | None = None
    strict: bool = False

    @cached_property
    def named(self) -> Mapping[str, np.ndarray]:
        return {} if self.graph is None else self.arrays

    @cached_property
    def producers(self) -> Mapping[str, onnx.NodeProto]:
        nodes = self.graph.graph.node if self.graph else ()
        return {name: node for node in nodes for name in node.output if name}

    @cached_property
    def _by_size(self) -> Mapping[int, list[str]]:
        found: dict[int, list[str]] = {}
        for name, array in self.arrays.items():
            found.setdefault(array.size, []).append(name)
        return found

    def of(self, names: list[str]) -> Reference:
        """The same, without its names and nodes where an engine of these tensors has its own."""
        shared = sum(name in self.named for name in names)
        return self if 4 * shared >= len(names) else Reference(self.arrays)

    def find(self, array: np.ndarray, tolerance: float, shapes: bool = False) -> str | None:
        """The name of an equal tensor, if need be in another shape; of a graph's in another order.

        A module's are not looked for in another order of axes, which may be what is wrong, nor in
        another shape where a node only `shapes`.
        """
        names = self._by_size.get(array.size, [])
        moved = self.graph is not None
        for name in names:
            if array.shape == self.arrays[name].shape and _same(
                array, self.arrays[name], tolerance
            ):
                return name
        for name in names if moved or not (shapes or self.strict) else ():
            for other in _moved(self.arrays[name], array.shape, moved):
                if _same(array, other, tolerance):
                    return name
        for other in _unblocked(array) if moved else ():
            for name, wanted in self.arrays.items():
                if wanted.ndim == 4 and _same(other[:, : wanted.shape[1]], wanted, tolerance):
                    return name
        return None

    def next_step(self, known: Iterable[str], values: Iterable[np.ndarray], most: float) -> str:
        """The first array after these that is none of an engine's values, plain ones aside."""
        names = list(self.arrays)
        after = max((names.index(name) for name in known if name in self.arrays), default=-1)
        engine = Reference({str(i): array for i, array in enumerate(values)})
        later = (
            name
            for name in names[after + 1 :]
            if not name.endswith(_VIEWS) and not plain(self.arrays[name])
        )
        return next((name for name in later if engine.find(self.arrays[name], most) is None), "")

    def error(self, name: str, array: np.ndarray) -> float | None:
        """How far a tensor is from its namesake, or from the nearest of its shape."""
        if name in self.named:
            return error(array, self.named[name])
        of_shape = (a for a in self.arrays.values() if a.shape == array.shape)
        known = [e for a in of_shape if (e := error(array, a)) is not None]
        return min(known, default=None)


@dataclass(frozen=True)
class Frontier:
    """The first node whose output the reference does not hold, with what it does hold.

    `matches` are the engine's tensors with the reference's names of them; "" where none is needed.
    `namesake` is the first unknown tensor from there on that the reference has by name.
    """

    node: onnx.NodeProto
    tensor: str
    namesake: str
    matches: Mapping[str, str]
    computed: frozenset[str]


def frontier(
    graph: onnx.ModelProto,
    values: Mapping[str, np.ndarray],
    reference: Reference,
    wrong: Iterable[str],
    tolerance: float,
) -> Frontier | None:
    """The first node from which a path of unknown tensors leads to a wrong one.

    A tensor that a fusion made has known ones after it, and is on no such path. Where it is on one
    all the same, what another node makes of it vouches for it.
    """
    matches = match(graph, values, reference, tolerance)
    outputs = {output.name for output in graph.graph.output}
    matches = {n: m for n, m in matches.items() if not (n in wrong and n in outputs)}
    unknown = {name for name in wrong if name not in matches}
    found: list[tuple[onnx.NodeProto, str]] = []
    vouched: set[str] = set()
    for node in reversed(graph.graph.node):
        made = [name for name in node.output if name in unknown]
        if made:
            found.append((node, made[0]))
            unknown |= {n for n in inputs_of(node) if n in values and n not in matches}
        elif any(matches.get(n) and not plain(values[n]) for n in node.output if n in values):
            vouched |= {n for n in inputs_of(node) if n not in reference.named}
    found.reverse()
    if not found:
        return None
    first = next((i for i, one in enumerate(found) if one[1] not in vouched), 0)
    node, tensor = found[first]
    namesake = next((name for _, name in found[first:] if name in reference.named), tensor)
    return Frontier(node, tensor, namesake, matches, frozenset(values))


def match(
    graph: onnx.ModelProto,
    values: Mapping[str, np.ndarray],
    reference: Reference,
    tolerance: float,
) -> dict[str, str]:
    """The tensors of a graph that the reference computes too, with its names of them.

    Where the engine came from the reference's graph, a namesake decides: ONNX Runtime gives what
    it adds new names. Any other tensor is known by equal values, plain ones only after known ones.
    What no input reaches, and counts, are "", known without a name: who uses them will tell.
    """
    named = reference.named
    constant = {tensor.name for tensor in graph.graph.initializer}
    matches = dict.fromkeys(constant, "") | {value.name: value.name for value in graph.graph.input}
    for node in graph.graph.node:
        given = inputs_of(node)
        fixed = all(name in constant for name in given)
        after_known = all(name in matches for name in given)
        for name in (n for n in node.output if n in values):
            array = values[name]
            if fixed:
                constant.add(name)
            own = _original(name)
            if own in named:
                if _same(array, named[own], tolerance):
                    matches[name] = own
            elif fixed or (array.dtype.kind in "iu" and array.size <= _FEW):
                matches[name] = ""
            elif after_known or not plain(array):
                other = reference.find(array, tolerance, node.op_type in _SHAPING)
                if other is not None:
                    matches[name] = other
    return matches


def dequantised(graph: onnx.ModelProto, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The values, of which those that a node quantised stand for real numbers again."""
    from onnx.numpy_helper import to_array

    known = {tensor.name: to_array(tensor) for tensor in graph.graph.initializer} | dict(values)
    meant = dict(values)
    for node in graph.graph.node:
        place = _SCALES.get(node.op_type)
        if place is None or node.output[0] not in values:
            continue
        if len(node.input) < place + 2:  # a product whose sums are floats
            continue
        scale, zero = (known.get(name) for name in node.input[place : place + 2])
        if scale is not None and zero is not None and scale.size == zero.size == 1:
            whole = values[node.output[0]].astype(np.float32)
            meant[node.output[0]] = (whole - zero.reshape(())) * scale.reshape(())
    return meant


def inputs_of(node: onnx.NodeProto) -> list[str]:
    """What a node reads, by itself or by a graph inside it."""
    inner = [a.g for a in node.attribute if a.HasField("g")]
    read = [name for g in inner for n in g.node for name in inputs_of(n)]
    return [name for name in (*node.input, *read) if name]


def _original(name: str) -> str:
    """The name of what a tensor is the quantised form of."""
    for ending in _QUANTISED:
        name = name.removesuffix(ending)
    return name


def plain(array: np.ndarray) -> bool:
    """True of two values or fewer, which many tensors share by chance."""
    return array.dtype.kind == "b" or np.unique(array.reshape(-1)[:_SEEN]).size <= 2


def error(actual: np.ndarray, expected: np.ndarray) -> float | None:
    """`relative_error` over the tensor's own scale, where NaN is equal to NaN in its place."""
    if actual.shape == expected.shape and actual.size == 0:
        return 0.0
    if actual.shape == expected.shape and actual.dtype.kind == expected.dtype.kind == "f":
        nan = np.isnan(expected)
        if nan.any():
            if not np.array_equal(nan, np.isnan(actual)):
                return None
            actual, expected = np.where(nan, 0, actual), np.where(nan, 0, expected)
    return relative_error(actual, expected, 0.0)


def differs(actual: np.ndarray | None, expected: np.ndarray, most: float) -> bool:
    found = None if actual is None else error(actual, expected)
    return found is None or found > most


def _same(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> bool:
    if actual.shape != expected.shape:
        return False
    step = max(1, actual.size // 64)
    some, others = actual.reshape(-1)[::step], expected.reshape(-1)[::step]
    with np.errstate(invalid="ignore"):
        top = np.nanmax(np.abs(expected.astype(np.float64, copy=False)), initial=0.0)
        if np.nanmax(np.abs(some.astype(np.float64) - others), initial=0.0) > tolerance * top:
            return False
    return not differs(actual, expected, tolerance)


def _moved(array: np.ndarray, shape: tuple[int, ...], transposed: bool) -> Iterator[np.ndarray]:
    yield array.reshape(shape)
    if not transposed:
        return
    small = np.squeeze(array)
    wanted = tuple(size for size in shape if size != 1)
    if 1 < small.ndim <= 5:
        for order in itertools.permutations(range(small.ndim)):
            if tuple(small.shape[axis] for axis in order) == wanted:
                yield small.transpose(order).reshape(shape)


def _unblocked(array: np.ndarray) -> Iterator[np.ndarray]:
    """ONNX Runtime's NCHWc on a CPU: channels in blocks that lie together, the last one padded."""
    for block in (8, 16) if array.ndim == 4 else ():
        if array.shape[1] % block == 0:
            rows, channels, height, width = array.shape
            blocks = array.reshape(rows, channels // block, height, width, block)
            yield blocks.transpose(0, 1, 4, 2, 3).reshape(array.shape)
