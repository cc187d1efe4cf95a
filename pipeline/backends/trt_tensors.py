"""What a TensorRT plan takes and gives: its tensors, and the profiles that admit their shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.errors import BadInput, BuildFailed
from models.signature import Arrays

Shapes = tuple[tuple[str, tuple[int, ...]], ...]  # by name


@dataclass(frozen=True)
class Tensor:
    """An input (`given`) or output of an engine."""

    name: str
    dtype: np.dtype
    given: bool

    def nbytes(self, shape: Sequence[int]) -> int:
        return math.prod(shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Bounds:
    """Shapes that one input is compiled for: sizes from `least` to `largest`, tuned for `usual`."""

    least: tuple[int, ...]
    usual: tuple[int, ...]
    largest: tuple[int, ...]

    def admit(self, shape: Sequence[int]) -> bool:
        return len(shape) == len(self.least) and all(
            low <= size <= high
            for low, size, high in zip(self.least, shape, self.largest, strict=True)
        )

    def __str__(self) -> str:
        return f"{list(self.least)} to {list(self.largest)}"


@dataclass(frozen=True)
class Profile:
    """Shapes of all inputs that an engine is compiled for together."""

    index: int
    bounds: dict[str, Bounds]

    @property
    def usual(self) -> Shapes:
        return tuple((name, bounds.usual) for name, bounds in self.bounds.items())

    @property
    def largest(self) -> Shapes:
        return tuple((name, bounds.largest) for name, bounds in self.bounds.items())

    @property
    def shapes(self) -> dict[str, dict[str, list[int]]]:
        """As `Signature.profile` writes them."""
        return {
            name: {"min": list(b.least), "opt": list(b.usual), "max": list(b.largest)}
            for name, b in self.bounds.items()
        }

    @property
    def volume(self) -> int:
        return sum(math.prod(shape) for _, shape in self.largest)

    def admits(self, shapes: Shapes) -> bool:
        return all(self.bounds[name].admit(shape) for name, shape in shapes)


def read_tensors(engine: Any, trt: Any) -> tuple[Tensor, ...]:
    """Inputs and outputs of an engine. Raises `BuildFailed` for one that no array can be."""
    return tuple(
        _tensor(engine, trt, engine.get_tensor_name(index))
        for index in range(engine.num_io_tensors)
    )


def read_profiles(engine: Any, tensors: Sequence[Tensor]) -> tuple[Profile, ...]:
    """The optimisation profiles of an engine; of an input that does not vary all are the same."""
    given = [tensor.name for tensor in tensors if tensor.given]
    return tuple(
        Profile(
            index,
            {
                name: Bounds(*(tuple(s) for s in engine.get_tensor_profile_shape(name, index)))
                for name in given
            },
        )
        for index in range(engine.num_optimization_profiles)
    )


def admit(
    inputs: Mapping[str, Any], tensors: Sequence[Tensor], profiles: Sequence[Profile]
) -> tuple[Arrays, Shapes, Profile]:
    """Inputs as arrays, their shapes, and the tightest of the profiles that admit these.

    Raises `BadInput` with the name, what was got and what the profiles take.
    """
    expected = {tensor.name: tensor for tensor in tensors if tensor.given}
    if inputs.keys() != expected.keys():
        raise BadInput("the engine has other inputs", got=sorted(inputs), expected=sorted(expected))
    arrays = {name: np.asarray(inputs[name]) for name in expected}
    for name, array in arrays.items():
        if array.dtype != expected[name].dtype:
            raise BadInput(
                f"input {name!r} has a wrong dtype",
                got=array.dtype.name,
                expected=expected[name].dtype.name,
            )
    shapes = tuple((name, array.shape) for name, array in arrays.items())
    if fitting := [profile for profile in profiles if profile.admits(shapes)]:
        return arrays, shapes, min(fitting, key=lambda profile: profile.volume)
    for name, shape in shapes:
        ranges = [profile.bounds[name] for profile in profiles]
        if not any(bounds.admit(shape) for bounds in ranges):
            raise BadInput(
                f"input {name!r} is out of the engine's range",
                got=list(shape),
                expected=" or ".join(dict.fromkeys(str(bounds) for bounds in ranges)),
            )
    raise BadInput(
        "no profile of the engine admits these inputs together",
        got=", ".join(f"{name} {list(shape)}" for name, shape in shapes),
    )


def _tensor(engine: Any, trt: Any, name: str) -> Tensor:
    kind = engine.get_tensor_dtype(name)
    try:
        dtype = np.dtype(trt.nptype(kind))
    except TypeError as error:
        raise BuildFailed(
            f"tensor {name!r} of the engine is {kind}, which no array holds"
        ) from error
    if engine.is_shape_inference_io(name):
        raise BuildFailed(
            f"the values of {name!r} are shapes of the engine, which must lie on the host",
            fix="let shapes follow from shapes of inputs only",
        )
    return Tensor(name, dtype, engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)
