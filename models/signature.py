"""The single declaration of what goes into an engine and what comes out.

Dynamic axes of the export, profiles of a compiler, the shapes that `verify` sweeps, request
validation and the service's schema are all computed from one `Signature`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from models.errors import BadInput
from models.recurrence import Recurrence, State

DType = Literal["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]
Sizes = dict[str, int]
Arrays = dict[str, np.ndarray]

BATCH = "batch"


@dataclass(frozen=True)
class Axis:
    """A dimension that varies from `min` to `max`, most often `opt`."""

    name: str
    min: int
    opt: int
    max: int

    @model_validator(mode="after")
    def _ordered(self) -> Axis:
        if not self.name.isidentifier():
            raise ValueError(f"axis name must be an identifier, got {self.name!r}")
        if not 1 <= self.min <= self.opt <= self.max:
            raise ValueError(
                f"axis {self.name!r} needs 1 <= min <= opt <= max, "
                f"got {self.min}, {self.opt}, {self.max}"
            )
        return self

    def __str__(self) -> str:
        return f"{self.name} {self.min}..{self.max}"


@dataclass(frozen=True)
class TensorSpec:
    """One named tensor: its dtype, its shape (sizes and axes), the values it is meant to hold.

    `low` and `high` say what range real inputs have; they shape the edge inputs of the
    certificate and the documentation. Finite floats beyond them are not refused; integers are,
    because most integers are an index, and one outside its table crashes an engine or reads
    nonsense.
    """

    name: str
    dtype: DType
    shape: tuple[int | Axis, ...]
    low: float | None = None
    high: float | None = None

    @model_validator(mode="after")
    def _sound(self) -> TensorSpec:
        if not self.name.isidentifier():
            raise ValueError(f"tensor name must be an identifier, got {self.name!r}")
        for size in self.shape:
            if isinstance(size, int) and size < 1:
                raise ValueError(f"tensor {self.name!r} has a dimension of {size}")
        names = [size.name for size in self.shape if isinstance(size, Axis)]
        if len(names) != len(set(names)):
            raise ValueError(f"tensor {self.name!r} uses one axis twice: {names}")
        if any(isinstance(size, Axis) and size.name == BATCH for size in self.shape[1:]):
            raise ValueError(f"tensor {self.name!r}: axis 'batch' must be the first")
        return self

    @property
    def axes(self) -> tuple[Axis, ...]:
        return tuple(size for size in self.shape if isinstance(size, Axis))

    @property
    def floating(self) -> bool:
        return self.dtype.startswith("float")

    @property
    def picture(self) -> bool:
        """Whether it holds pictures: floats [batch, channels, height, width]."""
        return self.floating and len(self.shape) == 4

    def at(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The concrete shape when each axis has the given size."""
        return tuple(sizes[s.name] if isinstance(s, Axis) else s for s in self.shape)

    def declared(self) -> str:
        """How a graph declares this tensor: axes by name, what does not vary by size."""
        sizes = [
            (s.name if s.min < s.max else s.min) if isinstance(s, Axis) else s for s in self.shape
        ]
        return f"{self.dtype}[{', '.join(str(size) for size in sizes)}]"

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(str(size) for size in self.shape)}]"


@dataclass(frozen=True)
class Signature:
    """Named inputs and named outputs; an axis name means the same size wherever it stands.

    With a `recurrence`, a long sequence may be given in several calls that carry its state.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    recurrence: Recurrence | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Signature:
        if not self.inputs or not self.outputs:
            raise ValueError("a signature needs at least one input and one output")
        names = [spec.name for spec in self.inputs + self.outputs]
        if len(names) != len(set(names)):
            raise ValueError(f"tensor names must differ, got {names}")
        ranges: dict[str, Axis] = {}
        for spec in self.inputs + self.outputs:
            for axis in spec.axes:
                if ranges.setdefault(axis.name, axis) != axis:
                    raise ValueError(f"axis {axis.name!r} is declared with two ranges")
        known = {axis.name for spec in self.inputs for axis in spec.axes}
        for spec in self.outputs:
            for axis in spec.axes:
                if axis.name not in known:
                    raise ValueError(f"output axis {axis.name!r} is an axis of no input")
        if BATCH in ranges:
            for spec in self.inputs + self.outputs:
                first = spec.shape[0] if spec.shape else None
                if not (isinstance(first, Axis) and first.name == BATCH):
                    raise ValueError(f"tensor {spec.name!r} lacks the batch axis others have")
        if self.recurrence and not {BATCH, self.recurrence.axis} <= known:
            raise ValueError(f"a recurrence needs the axes 'batch' and {self.recurrence.axis!r}")
        for state in self.recurrence.states if self.recurrence else ():
            _check_state(self, state)
        return self

    @property
    def axes(self) -> dict[str, Axis]:
        """Every axis by name, in the order of the inputs."""
        return {axis.name: axis for spec in self.inputs for axis in spec.axes}

    @property
    def batch(self) -> Axis | None:
        return self.axes.get(BATCH)

    def input(self, name: str) -> TensorSpec:
        return next(spec for spec in self.inputs if spec.name == name)

    def output(self, name: str) -> TensorSpec:
        return next(spec for spec in self.outputs if spec.name == name)

    def dynamic_axes(self) -> dict[str, dict[int, Axis]]:
        """Per tensor, which dimension is which axis: what the exporter declares."""
        return {
            spec.name: {i: s for i, s in enumerate(spec.shape) if isinstance(s, Axis)}
            for spec in self.inputs + self.outputs
        }

    def profile(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Per input its smallest, most usual and largest shape: a compiler's profile."""
        bounds = {
            bound: {name: getattr(axis, bound) for name, axis in self.axes.items()}
            for bound in ("min", "opt", "max")
        }
        return {
            spec.name: {bound: spec.at(sizes) for bound, sizes in bounds.items()}
            for spec in self.inputs
        }

    def example(self) -> Sizes:
        """Sizes to trace with: 2 or more where allowed, all different, unlike any fixed size.

        An exporter that sees two equal numbers may take them for one, and it takes 1 for a
        constant.
        """
        taken = {s for spec in self.inputs for s in spec.shape if isinstance(s, int)}
        sizes: Sizes = {}
        for name, axis in self.axes.items():
            allowed = range(max(axis.min, min(2, axis.max)), axis.max + 1)
            fresh = (n for n in allowed if n not in taken)
            sizes[name] = next(fresh, allowed[0])
            taken.add(sizes[name])
        return sizes

    def corners(self) -> list[Sizes]:
        """Every combination of sizes that a certificate has to cover, each once.

        Batches 1, 2, 3, opt, max-1, max with the other axes as usual; each other axis at its
        ends, one inside either end, and an odd size, at batches 2 and 3; then all axes at
        their smallest and all at their largest.
        """
        usual = {name: axis.opt for name, axis in self.axes.items()}
        batches: list[Sizes] = [{}]
        if self.batch:
            low, high = self.batch.min, self.batch.max
            batches = [{BATCH: min(max(n, low), high)} for n in (2, 3)]
        sweep: list[Sizes] = []
        for name, axis in self.axes.items():
            if name == BATCH:
                sweep += [usual | {name: n} for n in (1, 2, 3, axis.opt, axis.max - 1, axis.max)]
                continue
            odd = axis.opt + 1 - axis.opt % 2
            sizes = (axis.min, axis.min + 1, odd, axis.opt, axis.max - 1, axis.max)
            for n, rows in itertools.product(sizes, batches):
                sweep.append(usual | {name: n} | rows)
        sweep.append({name: axis.min for name, axis in self.axes.items()})
        sweep.append({name: axis.max for name, axis in self.axes.items()})
        unique: list[Sizes] = []
        for sizes in sweep:
            inside = all(self.axes[n].min <= size <= self.axes[n].max for n, size in sizes.items())
            if inside and sizes not in unique:
                unique.append(sizes)
        return unique

    def check(self, arrays: Mapping[str, np.ndarray]) -> Sizes:
        """Refuse arrays that the signature does not promise to handle; the size of each axis.

        Raises `BadInput` naming the input, what it got and what it expected: a missing or
        unknown name, a dtype, a rank, a size, two inputs that disagree on an axis, a NaN or an
        infinity, an integer out of its declared range.
        """
        expected = [spec.name for spec in self.inputs]
        for name in arrays:
            if name not in expected:
                raise BadInput(f"input {name!r} is unknown", expected=_names(expected))
        sizes: Sizes = {}
        for spec in self.inputs:
            array = arrays.get(spec.name)
            if array is None:
                raise BadInput(
                    f"input {spec.name!r} is missing",
                    got=_names(list(arrays)),
                    expected=_names(expected),
                )
            _check_tensor(spec, array, sizes)
        return sizes

    def json_schema(self) -> dict[str, Any]:
        """The JSON schema of a request that holds every input as nested lists."""
        return {
            "type": "object",
            "properties": {spec.name: _tensor_schema(spec) for spec in self.inputs},
            "required": [spec.name for spec in self.inputs],
            "additionalProperties": False,
        }

    def to_json(self) -> dict[str, Any]:
        return _ADAPTER.dump_python(self, mode="json")

    @staticmethod
    def from_json(data: object) -> Signature:
        return _ADAPTER.validate_python(data)


_ADAPTER = TypeAdapter(Signature)


def _check_state(signature: Signature, state: State) -> None:
    """Refuse a state whose output cannot become its input in the next call."""
    given = {spec.name: spec for spec in signature.inputs}
    answered = {spec.name: spec for spec in signature.outputs}
    if state.input not in given or state.output not in answered:
        raise ValueError(f"state {state.input!r} from {state.output!r} names no input and output")
    before, after = given[state.input], answered[state.output]
    axes = [axis.name for spec in (before, after) for axis in spec.axes]
    if state.position is None:
        sound = before.shape == after.shape and set(axes) <= {BATCH}
    else:
        place = given.get(state.position)
        steps = signature.recurrence.axis if signature.recurrence else ""
        sound = (
            place is not None
            and place.dtype == "int64"
            and place.shape == before.shape[:1]
            and len(before.shape) == 4
            and all(isinstance(size, int) for size in before.shape[1:])
            and [a.name for a in after.axes] == [BATCH, steps]
            and after.shape == (*before.shape[:2], signature.axes[steps], before.shape[3])
        )
    if not sound or before.dtype != after.dtype:
        raise ValueError(f"state {before.name!r} is {before}, its output {after.name!r} is {after}")


def _names(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names) or "no inputs"


def _check_tensor(spec: TensorSpec, array: np.ndarray, sizes: Sizes) -> None:
    where = f"input {spec.name!r}"
    # Equal as objects at once; a dtype's name is put together anew each time it is asked for.
    if array.dtype != spec.dtype:
        raise BadInput(f"{where} has a wrong dtype", got=array.dtype.name, expected=spec.dtype)
    if array.ndim != len(spec.shape):
        raise BadInput(f"{where} has a wrong shape", got=list(array.shape), expected=str(spec))
    for size, wanted in zip(array.shape, spec.shape, strict=True):
        if isinstance(wanted, int):
            if size != wanted:
                raise BadInput(
                    f"{where} has a wrong shape", got=list(array.shape), expected=str(spec)
                )
            continue
        if not wanted.min <= size <= wanted.max:
            raise BadInput(
                f"{where} axis {wanted.name!r} is out of range",
                got=size,
                expected=f"{wanted.min} to {wanted.max}",
            )
        if sizes.setdefault(wanted.name, size) != size:
            raise BadInput(
                f"{where} disagrees on axis {wanted.name!r} with the inputs before it",
                got=size,
                expected=sizes[wanted.name],
            )
    # min and max carry a NaN through and need no array of booleans.
    if (
        spec.floating
        and array.size
        and not (math.isfinite(array.min()) and math.isfinite(array.max()))
    ):
        bad = int(array.size - np.isfinite(array).sum())
        raise BadInput(
            f"{where} holds values that are not finite",
            got=f"{bad} NaN or infinite of {array.size}",
            expected="finite values",
        )
    if not spec.floating and array.size:
        _check_range(spec, int(array.min()), int(array.max()))


def _check_range(spec: TensorSpec, least: int, most: int) -> None:
    low = -math.inf if spec.low is None else spec.low
    high = math.inf if spec.high is None else spec.high
    if least < low or most > high:
        raise BadInput(
            f"input {spec.name!r} holds a value out of range",
            got=least if least < low else most,
            expected=f"{low:.0f} to {high:.0f}",
        )


def _tensor_schema(spec: TensorSpec) -> dict[str, Any]:
    kind = "number" if spec.floating else "boolean" if spec.dtype == "bool" else "integer"
    schema: dict[str, Any] = {"type": kind}
    if kind == "integer":  # of which those out of range are refused
        bounds = {"minimum": spec.low, "maximum": spec.high}
        schema |= {name: int(bound) for name, bound in bounds.items() if bound is not None}
    for size in reversed(spec.shape):
        low, high = (size.min, size.max) if isinstance(size, Axis) else (size, size)
        schema = {"type": "array", "items": schema, "minItems": low, "maxItems": high}
    return schema | {"title": spec.name, "description": str(spec)}
