"""Tensors of the Open Inference Protocol and named arrays, both ways, strictly.

Every refusal is a `BadInput` that names the input, what it got and what it expected. Shapes and
finite values are the signature's to check; here it is datatypes, element and byte counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from models.errors import BadInput
from models.signature import Axis, DType, Signature, TensorSpec

DATATYPES: dict[DType, str] = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
# A dtype's own name is put together anew each time it is asked for.
_NAMES = {np.dtype(name): datatype for name, datatype in DATATYPES.items()}


def datatype(array: np.ndarray) -> str:
    """The protocol's name of an array's dtype."""
    return _NAMES[array.dtype]


def describe(spec: TensorSpec) -> dict[str, Any]:
    """A tensor in model metadata: name, datatype, shape with -1 for each axis that varies."""
    shape = [-1 if isinstance(size, Axis) else size for size in spec.shape]
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": shape}


def find_input(signature: Signature, name: object) -> TensorSpec:
    """The input of that name; raises `BadInput` with the names there are."""
    for spec in signature.inputs:
        if spec.name == name:
            return spec
    raise BadInput(
        f"input {name!r} is unknown", expected=", ".join(repr(s.name) for s in signature.inputs)
    )


def check_outputs(signature: Signature, names: Sequence[object]) -> None:
    """Refuse an output that the model does not have, or one that is asked for twice."""
    known = [spec.name for spec in signature.outputs]
    for name in names:
        if name not in known:
            raise BadInput(
                f"output {name!r} is unknown", expected=", ".join(repr(n) for n in known)
            )
        if names.count(name) > 1:
            raise BadInput(f"output {name!r} is asked for twice")


def check_finite(name: str, array: np.ndarray) -> None:
    """Refuse an answer with a NaN or an infinity: JSON has no form for it, nobody can use it."""
    if not np.isfinite(array).all():
        bad = int(array.size - np.isfinite(array).sum())
        raise BadInput(
            f"output {name!r} is not finite for these inputs",
            got=f"{bad} NaN or infinite of {array.size}",
            expected="inputs of the size that the model was trained on",
        )


def check_declared(spec: TensorSpec, declared: object, shape: object) -> tuple[int, ...]:
    """The declared shape as a tuple, once datatype and shape are of the right form."""
    if declared != DATATYPES[spec.dtype]:
        raise BadInput(
            f"input {spec.name!r} has a wrong datatype", got=declared, expected=_wanted(spec)
        )
    if not isinstance(shape, list) or any(type(size) is not int or size < 0 for size in shape):
        raise BadInput(
            f"input {spec.name!r} has a malformed shape",
            got=_shown(shape),
            expected=f"a list of sizes for {spec}",
        )
    return tuple(shape)


def from_json(spec: TensorSpec, data: object, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """An array from JSON lists: nested, or flat in row-major order when `shape` is declared."""
    where = f"input {spec.name!r}"
    values, found, kinds = _flatten(where, data)
    if shape is not None:
        if math.prod(shape) != len(values):
            raise BadInput(
                f"{where} has a wrong number of elements",
                got=len(values),
                expected=f"{math.prod(shape)} for shape {list(shape)}",
            )
        if len(found) > 1 and found != shape:
            raise BadInput(
                f"{where} is nested unlike its shape", got=list(found), expected=list(shape)
            )
    return _shaped(spec, _convert(spec, values, kinds), found if shape is None else shape)


def from_values(spec: TensorSpec, values: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    """An array from a flat sequence of numbers already known to be of the right type."""
    if math.prod(shape) != len(values):
        raise BadInput(
            f"input {spec.name!r} has a wrong number of elements",
            got=len(values),
            expected=f"{math.prod(shape)} for shape {list(shape)}",
        )
    return _shaped(spec, _convert(spec, values, set(map(type, values))), shape)


def from_bytes(spec: TensorSpec, raw: bytes | memoryview, shape: tuple[int, ...]) -> np.ndarray:
    """A read-only array over little-endian row-major bytes, which are copied if out of line."""
    where = f"input {spec.name!r}"
    dtype = np.dtype(spec.dtype).newbyteorder("<")
    expected = math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise BadInput(
            f"{where} has a wrong number of bytes",
            got=len(raw),
            expected=f"{expected} for {DATATYPES[spec.dtype]} of shape {list(shape)}",
        )
    array = np.frombuffer(raw, dtype)
    if spec.dtype == "bool" and array.size and array.view(np.uint8).max() > 1:
        raise BadInput(f"{where} holds bytes that are not booleans", expected="0 or 1")
    # Kernels read whole vectors: after a header of any length these may lie between their places.
    placed = array if array.flags.aligned else array.copy()
    return _shaped(spec, placed.astype(spec.dtype, copy=False), shape)


def _shaped(spec: TensorSpec, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    try:
        return array.reshape(shape)
    except ValueError as error:  # no number, yet in a shape that no array can have
        raise BadInput(
            f"input {spec.name!r} has a malformed shape",
            got=_shown(list(shape)),
            expected=str(spec),
        ) from error


def from_bare_bytes(spec: TensorSpec, raw: bytes) -> np.ndarray:
    """An array of undeclared shape; its one varying axis follows from the number of bytes."""
    if len(spec.axes) > 1:
        raise BadInput(
            f"input {spec.name!r} has more than one varying axis, so bare bytes lack a shape",
            expected="a JSON header with its shape",
        )
    fixed = np.dtype(spec.dtype).itemsize * math.prod(s for s in spec.shape if isinstance(s, int))
    if len(raw) % fixed or (len(raw) != fixed and not spec.axes):
        raise BadInput(
            f"input {spec.name!r} has a wrong number of bytes",
            got=len(raw),
            expected=f"a multiple of {fixed}" if spec.axes else str(fixed),
        )
    sizes = {axis.name: len(raw) // fixed for axis in spec.axes}
    return from_bytes(spec, raw, spec.at(sizes))


def to_bytes(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def _flatten(where: str, data: object) -> tuple[list[Any], tuple[int, ...], set[type]]:
    """The leaves of nested lists, the shape they span, their types; each level at C speed."""
    level: list[Any] = [data]
    shape: list[int] = []
    while list in (kinds := set(map(type, level))):
        sizes = set(map(len, level)) if kinds == {list} else set()
        if len(sizes) != 1:
            got = f"lists of {_either(sizes)} elements" if sizes else "lists beside values"
            raise BadInput(
                f"{where} is ragged at depth {len(shape)}", got=got, expected="equal lengths"
            )
        shape.append(sizes.pop())
        level = list(chain.from_iterable(level))
    return level, tuple(shape), kinds


def _convert(spec: TensorSpec, values: Sequence[Any], kinds: set[type]) -> np.ndarray:
    where = f"input {spec.name!r}"
    allowed = {float, int} if spec.floating else {bool} if spec.dtype == "bool" else {int}
    strange = kinds - allowed
    if strange:
        first = next(value for value in values if type(value) in strange)
        raise BadInput(
            f"{where} holds values of a wrong type", got=_shown(first), expected=_wanted(spec)
        )
    if np.issubdtype(np.dtype(spec.dtype), np.integer) and values:
        info = np.iinfo(spec.dtype)
        for value in (min(values), max(values)):
            if not info.min <= value <= info.max:
                raise BadInput(
                    f"{where} holds a value out of range",
                    got=value,
                    expected=f"{info.min} to {info.max}",
                )
        return np.array(values, spec.dtype)
    try:
        # A float64 too large for float32 becomes an infinity, which the signature refuses.
        with np.errstate(over="ignore"):
            return np.array(values, float if spec.floating else bool).astype(spec.dtype)
    except OverflowError as error:
        raise BadInput(
            f"{where} holds a value out of range", got="a huge integer", expected=_wanted(spec)
        ) from error


def _wanted(spec: TensorSpec) -> str:
    return f"{DATATYPES[spec.dtype]}, as {spec}"


def _either(sizes: set[int]) -> str:
    return " and ".join(str(size) for size in sorted(sizes)[:3])


def _shown(value: object) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
