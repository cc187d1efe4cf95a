"""Laws of the signature: what it promises is swept, traced and accepted; the rest is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from models.errors import BadInput
from models.signature import BATCH, Axis, DType, Signature, TensorSpec


def axes(name: str) -> st.SearchStrategy[Axis]:
    sizes = st.lists(st.integers(1, 40), min_size=3, max_size=3).map(sorted)
    return sizes.map(lambda n: Axis(name, *n))


@st.composite
def signatures(draw: st.DrawFn) -> Signature:
    batch, time = draw(axes(BATCH)), draw(axes("time"))
    fixed = draw(st.integers(1, 5))
    return Signature(
        inputs=(
            TensorSpec("x", "float32", (batch, time, fixed)),
            TensorSpec("mask", "bool", (batch, time)),
        ),
        outputs=(TensorSpec("y", "float32", (batch, fixed)),),
    )


def arrays(signature: Signature, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    return {spec.name: np.zeros(spec.at(sizes), spec.dtype) for spec in signature.inputs}


@given(signatures())
def test_every_corner_is_accepted_and_lies_in_range(signature: Signature) -> None:
    corners = signature.corners()
    assert len(corners) == len({tuple(sorted(c.items())) for c in corners})
    for sizes in corners:
        assert signature.check(arrays(signature, sizes)) == sizes


@given(signatures())
def test_corners_hold_both_ends_and_one_inside(signature: Signature) -> None:
    corners = signature.corners()
    for name, axis in signature.axes.items():
        swept = {sizes[name] for sizes in corners}
        assert {axis.min, axis.max, axis.opt} <= swept
        assert {n for n in (axis.max - 1,) if n >= axis.min} <= swept
    batch = signature.axes[BATCH]
    assert {n for n in (1, 2, 3) if batch.min <= n <= batch.max} <= {s[BATCH] for s in corners}


@given(signatures())
def test_example_sizes_are_2_or_more_and_differ(signature: Signature) -> None:
    example = signature.example()
    for name, axis in signature.axes.items():
        assert axis.min <= example[name] <= axis.max
        assert example[name] >= 2 or axis.max == 1
    wide = [axis for axis in signature.axes.values() if axis.max - axis.min >= 5]
    if len(wide) == len(signature.axes):
        assert len(set(example.values())) == len(example)


@given(signatures(), st.sampled_from([BATCH, "time"]), st.sampled_from([-1, 1]))
def test_a_size_out_of_range_is_refused(signature: Signature, name: str, side: int) -> None:
    axis = signature.axes[name]
    sizes = {n: a.opt for n, a in signature.axes.items()}
    sizes[name] = axis.max + 1 if side > 0 else axis.min - 1
    with pytest.raises(BadInput, match=rf"'x' axis '{name}' is out of range"):
        signature.check(arrays(signature, sizes))


@given(signatures())
def test_json_round_trip(signature: Signature) -> None:
    assert Signature.from_json(signature.to_json()) == signature


BATCHED = Axis(BATCH, 1, 4, 8)
PAIR = Signature(
    inputs=(TensorSpec("a", "float32", (BATCHED, 3)), TensorSpec("b", "int64", (BATCHED,))),
    outputs=(TensorSpec("y", "float32", (BATCHED,)),),
)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"b": None}, "input 'b' is missing: got 'a', expected 'a', 'b'"),
        ({"c": np.zeros(2)}, "input 'c' is unknown: expected 'a', 'b'"),
        ({"a": np.zeros((2, 3))}, "'a' has a wrong dtype: got float64, expected float32"),
        ({"a": np.zeros((2, 4), "f4")}, r"'a' has a wrong shape: got \[2, 4\]"),
        ({"a": np.zeros(3, "f4")}, r"'a' has a wrong shape: got \[3\]"),
        ({"b": np.zeros(3, "i8")}, "'b' disagrees on axis 'batch'.*got 3, expected 2"),
        ({"a": np.zeros((9, 3), "f4")}, "'a' axis 'batch' is out of range: got 9, expected 1 to 8"),
        ({"a": np.full((2, 3), np.nan, "f4")}, "'a' holds values that are not finite: got 6 NaN"),
        ({"a": np.full((2, 3), -np.inf, "f4")}, "not finite"),
    ],
)
def test_bad_arrays_are_named(change: dict[str, np.ndarray | None], words: str) -> None:
    good = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(2, np.int64)}
    given_arrays = {n: a for n, a in {**good, **change}.items() if a is not None}
    with pytest.raises(BadInput, match=words):
        PAIR.check(given_arrays)
    assert PAIR.check(good) == {BATCH: 2}


@given(st.lists(st.integers(-3, 12), min_size=1, max_size=8))
def test_an_integer_is_refused_exactly_where_it_leaves_its_range(values: list[int]) -> None:
    index = Signature(inputs=(TensorSpec("i", "int64", (BATCHED,), 0, 9),), outputs=PAIR.outputs)
    arrays = {"i": np.array(values)}
    outside = [value for value in values if not 0 <= value <= 9]
    if not outside:
        assert index.check(arrays) == {BATCH: len(values)}
        return
    got = min(values) if min(values) < 0 else max(values)
    with pytest.raises(BadInput, match=f"'i' holds a value out of range: got {got}, expected 0 to"):
        index.check(arrays)


def test_a_range_binds_integers_on_the_side_that_is_declared_and_no_floats() -> None:
    def check(dtype: DType, value: int, low: float | None, high: float | None) -> None:
        spec = TensorSpec("i", dtype, (BATCHED,), low, high)
        Signature(inputs=(spec,), outputs=PAIR.outputs).check({"i": np.array([value], dtype)})

    check("int8", -128, None, 9)
    check("uint8", 255, 0, None)
    check("float32", 10, 0, 9)
    check("bool", 1, 0, 1)
    for value, low, high in ((10, None, 9), (-1, 0, None)):
        with pytest.raises(BadInput, match="out of range"):
            check("int64", value, low, high)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Axis("batch", 0, 1, 2),
        lambda: Axis("batch", 3, 2, 4),
        lambda: Axis("two words", 1, 1, 1),
        lambda: TensorSpec("x", "float32", (3, BATCHED)),
        lambda: TensorSpec("x", "float32", (BATCHED, BATCHED)),
        lambda: TensorSpec("x", "complex64", (2,)),  # pyright: ignore[reportArgumentType]
        lambda: Signature(inputs=(), outputs=PAIR.outputs),
        lambda: Signature(PAIR.inputs, PAIR.inputs),
        lambda: Signature(PAIR.inputs, (TensorSpec("y", "float32", (Axis("time", 1, 2, 3),)),)),
        lambda: Signature(PAIR.inputs, (TensorSpec("y", "float32", (Axis(BATCH, 1, 2, 3),)),)),
        lambda: Signature(PAIR.inputs, (TensorSpec("y", "float32", (3,)),)),
    ],
)
def test_a_signature_that_cannot_hold_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValidationError):
        make()


def test_profile_and_dynamic_axes_come_from_the_same_axes() -> None:
    assert PAIR.profile()["a"] == {"min": (1, 3), "opt": (4, 3), "max": (8, 3)}
    assert PAIR.dynamic_axes() == {"a": {0: BATCHED}, "b": {0: BATCHED}, "y": {0: BATCHED}}


def test_json_schema_bounds_every_dimension() -> None:
    schema = PAIR.json_schema()
    assert schema["required"] == ["a", "b"]
    assert schema["properties"]["a"]["minItems"] == 1
    assert schema["properties"]["a"]["maxItems"] == 8
    assert schema["properties"]["a"]["items"]["maxItems"] == 3
    assert schema["properties"]["b"]["items"] == {"type": "integer"}
