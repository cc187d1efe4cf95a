"""Inferred: what an ONNX file and its samples say of its tensors, as a signature."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime
from pydantic import ValidationError

from models.errors import BadSetting, ExportFailed, first_line
from models.signature import BATCH, Arrays, Axis, Signature, Sizes, TensorSpec
from pipeline.backends import ort

Value = TypeVar("Value")
Ranges = Mapping[str, tuple[int, int, int]]
Dimension = int | Axis

_BATCH = 8  # rows of a usual call
_SIZES = (8, 16, 32)  # of an axis of which nothing is known
_NAMELESS = ("None", "0")  # how an open dimension without a name is written
_ROWS = 256  # drawn where no samples are given


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Inputs and outputs of the file as its engine declares them."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4  # what fails is raised; no need to print it as well
    try:
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no base class
        raise BadSetting(f"ONNX Runtime cannot open {path}: {first_line(error)}") from error
    return ort.declared(session.get_inputs()), ort.declared(session.get_outputs())


def infer_inputs(
    inputs: Mapping[str, str], rows: Arrays | None, max_batch: int, ranges: Ranges
) -> tuple[tuple[TensorSpec, ...], dict[str, Dimension]]:
    """The inputs, and what each open dimension of the file is.

    The first dimension is the batch where it is open and the same in all inputs, or where `ranges`
    say so. Raises `BadSetting`.
    """
    shapes = {name: _dimensions(text) for name, text in inputs.items()}
    firsts = {shape[0] if shape else "0" for shape in shapes.values()}
    batched = BATCH in ranges or (len(firsts) == 1 and not min(firsts).isdigit())
    left = dict(ranges)
    symbols: dict[str, Dimension] = {}

    def axis(symbol: str, name: str, usual: tuple[int, int, int]) -> Dimension:
        if symbol not in symbols:
            bounds = left.pop(name, left.pop(symbol, usual))
            symbols[symbol] = bounds[0] if bounds[0] == bounds[2] else _checked(Axis, name, *bounds)
        return symbols[symbol]

    specs = []
    for name, shape in shapes.items():
        array = rows[name] if rows else None
        sizes: list[Dimension] = []
        for place, text in enumerate(shape):
            if batched and place == 0:
                symbol = min(firsts) if len(firsts) == 1 else BATCH
                sizes.append(axis(symbol, BATCH, (1, min(_BATCH, max_batch), max_batch)))
            elif text.isdigit():
                sizes.append(int(text))
            else:
                symbol = f"{name}_{place}" if text in _NAMELESS else text
                seen = array.shape[place + (not batched) :][:1] if array is not None else ()
                usual = (max(1, seen[0] // 2), seen[0], seen[0]) if seen else _SIZES
                sizes.append(axis(symbol, _identifier(symbol), usual))
        dtype = inputs[name].partition("[")[0]
        specs.append(_checked(TensorSpec, name, dtype, tuple(sizes), *_bounds(dtype, array)))
    if left:
        raise BadSetting(
            f"the file has no axis {min(left)!r}",
            expected=", ".join(symbols) or "none: it has no open dimension",
        )
    return tuple(specs), symbols


def infer_signature(inputs: tuple[TensorSpec, ...], ask: Callable[[Arrays], Arrays]) -> Signature:
    """What the module answers at two sets of sizes tells which dimension is which axis.

    Raises `ExportFailed` for a dimension that is neither an axis nor of one size.
    """
    axes = {axis.name: axis for spec in inputs for axis in spec.axes}
    probes = _probes(axes)
    first, second = (
        ask({s.name: np.full(s.at(sizes), max(0, s.low or 0), s.dtype) for s in inputs})
        for sizes in probes
    )
    outputs = []
    for name, array in first.items():
        shape: list[Dimension] = []
        for place, pair in enumerate(zip(array.shape, second[name].shape, strict=True)):
            own = [axis for n, axis in axes.items() if pair == (probes[0][n], probes[1][n])]
            if pair[0] != pair[1] and not own:
                raise ExportFailed(
                    f"dimension {place} of output {name!r} is computed from the inputs' sizes",
                    got=f"{pair[0]} at {probes[0]}, {pair[1]} at {probes[1]}",
                    expected="an axis of an input, or a fixed size",
                    fix="fix that size by --axis NAME=SIZE",
                )
            shape.append(own[0] if own else pair[0])
        outputs.append(_checked(TensorSpec, name, array.dtype.name, tuple(shape)))
    return _checked(Signature, inputs, tuple(outputs))


def _probes(axes: Mapping[str, Axis]) -> tuple[Sizes, Sizes]:
    """Two sets of sizes, both as small as allowed, in which no two axes go alike."""
    low: Sizes = {}
    high: Sizes = {}
    taken: set[tuple[int, int]] = set()
    for axis in axes.values():
        sizes = range(axis.min, axis.max + 1)
        pairs = ((n, m) for n in sizes for m in range(n + 1, axis.max + 1))
        pair = next(pair for pair in pairs if pair not in taken)
        taken.add(pair)
        low[axis.name], high[axis.name] = pair
    return low, high


def read_as(text: str, spec: TensorSpec, symbols: Mapping[str, Dimension]) -> str:
    """What a tensor of the file declares, in the signature's words.

    A dimension that is open and has no name, or the name of no axis, says nothing against it.
    """
    sizes = _dimensions(text)
    if len(sizes) != len(spec.shape):
        return text
    meant = [
        symbols.get(size, own) if size in _NAMELESS or not size.isdigit() else int(size)
        for size, own in zip(sizes, spec.shape, strict=True)
    ]
    words = (m.name if isinstance(m, Axis) else str(m) for m in meant)
    return f"{text.partition('[')[0]}[{', '.join(words)}]"


def read_rows(path: Path, names: list[str]) -> Arrays:
    """Rows for each input of an .npz. Raises `BadSetting` when it does not hold them."""
    try:
        with np.load(path, allow_pickle=False) as file:
            rows = {name: np.asarray(file[name]) for name in file.files}
    except Exception as error:  # of whatever is not such a file
        raise BadSetting(
            f"{path} holds no rows: {first_line(error)}", expected="an .npz of arrays"
        ) from error
    lengths = {len(array) if array.ndim else 0 for array in rows.values()}
    if rows.keys() != set(names) or len(lengths) != 1 or 0 in lengths:
        raise BadSetting(
            f"{path} does not hold the rows of every input",
            got=", ".join(f"{name} {list(array.shape)}" for name, array in rows.items()),
            expected=f"as many rows, at least one, of {', '.join(names)}",
        )
    return rows


def fitting(signature: Signature, rows: Arrays) -> Arrays:
    """Rows in the inputs' types; only open dimensions may have another size."""
    for spec in signature.inputs:
        array, wanted = rows[spec.name], spec.shape[1:] if signature.batch else spec.shape
        fixed = [(n, own) for n, own in zip(array.shape[1:], wanted, strict=False) if n != own]
        if (
            array.ndim != len(wanted) + 1
            or np.dtype(spec.dtype).kind != array.dtype.kind
            or any(isinstance(own, int) for _, own in fixed)
        ):
            raise BadSetting(
                f"the samples of input {spec.name!r} do not fit it",
                got=f"{array.dtype.name}{list(array.shape)}",
                expected=f"rows of {spec}",
            )
    return {spec.name: rows[spec.name].astype(spec.dtype) for spec in signature.inputs}


def drawn(signature: Signature) -> Arrays:
    """Rows at random: floats normal with deviation 1, integers 0 or 1, the same in every run."""
    generator = np.random.default_rng(0)
    sizes = {name: axis.max for name, axis in signature.axes.items()} | {BATCH: _ROWS}
    rows = {}
    for spec in signature.inputs:
        shape = spec.at(sizes) if signature.batch else (_ROWS, *spec.at(sizes))
        some = generator.normal(size=shape) if spec.floating else generator.integers(0, 2, shape)
        rows[spec.name] = some.astype(spec.dtype)
    return rows


def _dimensions(text: str) -> list[str]:
    inside = text.partition("[")[2].removesuffix("]")
    return inside.split(", ") if inside else []


def _bounds(dtype: str, array: np.ndarray | None) -> tuple[float, float]:
    if array is not None:
        return float(array.min()), float(array.max())
    return (-3.0, 3.0) if dtype.startswith("float") else (0.0, 1.0)


def _checked(make: Callable[..., Value], *values: Any) -> Value:
    """A value, or in one line what its checks refuse."""
    try:
        return make(*values)
    except ValidationError as error:
        raise BadSetting(
            f"the file's tensors make no signature: {error.errors()[0]['msg']}",
            fix="name inputs, outputs and axes when exporting, or give --axis NAME=MIN:OPT:MAX",
        ) from error


def _identifier(symbol: str) -> str:
    word = re.sub(r"\W", "_", symbol)
    word = word if word.isidentifier() else f"axis_{word}"
    return f"{word}_axis" if word == BATCH else word
