"""Laws of the tensor codec: round trips, and refusals that name the input."""

from __future__ import annotations

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models.errors import BadInput
from models.signature import Axis, Signature, TensorSpec
from serving.inference_messages import Question, read_question, write_answer
from serving.tensors import (
    DATATYPES,
    check_declared,
    from_bare_bytes,
    from_bytes,
    from_json,
    from_values,
    to_bytes,
)

ROWS = Axis("rows", 1, 2, 4)


def arrays(dtype: str) -> st.SearchStrategy[np.ndarray]:
    shapes = hnp.array_shapes(min_dims=1, max_dims=3, max_side=4)
    finite = hnp.from_dtype(np.dtype(dtype), allow_nan=False, allow_infinity=False)
    return hnp.arrays(dtype, shapes, elements=finite)


def spec_of(array: np.ndarray) -> TensorSpec:
    return TensorSpec("x", array.dtype.name, array.shape)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("dtype", DATATYPES)
@given(data=st.data())
def test_bytes_bring_back_the_same_bits(dtype: str, data: st.DataObject) -> None:
    array = data.draw(arrays(dtype))
    back = from_bytes(spec_of(array), to_bytes(array), array.shape)
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", DATATYPES)
@pytest.mark.parametrize("nested", [True, False])
@given(data=st.data())
def test_json_brings_back_the_same_bits(dtype: str, nested: bool, data: st.DataObject) -> None:
    array = data.draw(arrays(dtype))
    sent = array if nested else array.ravel()
    text = orjson.dumps(sent, option=orjson.OPT_SERIALIZE_NUMPY)
    back = from_json(spec_of(array), orjson.loads(text), array.shape)
    assert back.tobytes() == array.tobytes()


@given(
    array=hnp.arrays("float32", (3, 2), elements=st.floats(-9, 9, width=32)),
    binary=st.booleans(),
    id=st.none() | st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=5),
)
def test_an_answer_reads_back_as_a_question(
    array: np.ndarray, binary: bool, id: str | None
) -> None:
    signature = Signature(
        (TensorSpec("x", "float32", (3, 2)),), (TensorSpec("y", "float32", (3, 2)),)
    )
    body, length = write_answer("m", "1", Question({}, {"x": binary}, id), {"x": array}, {})
    header = orjson.loads(body[:length])
    request = {"inputs": header["outputs"]} | ({"id": header["id"]} if "id" in header else {})
    sent = orjson.dumps(request)
    split = None if length is None else str(len(sent)).encode()
    question = read_question(signature, sent + (body[length:] if length else b""), split)
    assert question.inputs["x"].tobytes() == array.tobytes()
    assert question.id == id


@pytest.mark.parametrize(
    ("dtype", "data", "said"),
    [
        ("float32", [["1", 2.0]], "wrong type: got '1', expected FP32"),
        ("float32", [[None, 2.0]], "wrong type: got null, expected FP32"),
        ("float32", [[True, 2.0]], "wrong type: got True, expected FP32"),
        ("float32", [[{}, 2.0]], "wrong type: got {}, expected FP32"),
        ("float32", [[1.0, 2.0], [3.0]], "ragged at depth 1: got lists of 1 and 2 elements"),
        ("float32", [[1.0, 2.0], 3.0], "ragged at depth 1: got lists beside values"),
        ("float32", [[10**400, 2.0]], "out of range"),
        ("int64", [[1.5, 2]], "wrong type: got 1.5, expected INT64"),
        ("int64", [[2**63, 2]], f"out of range: got {2**63}"),
        ("int8", [[200, 2]], "out of range: got 200, expected -128 to 127"),
        ("uint8", [[-1, 2]], "out of range: got -1, expected 0 to 255"),
        ("bool", [[1, 0]], "wrong type: got 1, expected BOOL"),
        ("float32", [[1.0, 2.0, 3.0]], "wrong number of elements: got 3, expected 2"),
        ("float32", [[1.0], [2.0]], r"nested unlike its shape: got \[2, 1\], expected \[1, 2\]"),
    ],
)
def test_json_that_is_refused(dtype: str, data: object, said: str) -> None:
    spec = TensorSpec("x", dtype, (1, 2))  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadInput, match=f"input 'x'.*{said}"):
        from_json(spec, data, (1, 2))


@pytest.mark.parametrize("shape", [None, "1", [1.0], [True], [-1], {}])
def test_a_malformed_shape_is_refused(shape: object) -> None:
    with pytest.raises(BadInput, match="input 'x' has a malformed shape"):
        check_declared(TensorSpec("x", "float32", (2,)), "FP32", shape)


def test_bytes_that_are_refused() -> None:
    with pytest.raises(BadInput, match="got 7, expected 8 for FP32"):
        from_bytes(TensorSpec("x", "float32", (2,)), bytes(7), (2,))
    with pytest.raises(BadInput, match="not booleans"):
        from_bytes(TensorSpec("x", "bool", (2,)), b"\x00\x02", (2,))


def test_bare_bytes_give_the_varying_axis() -> None:
    spec = TensorSpec("x", "int16", (ROWS, 3))
    assert from_bare_bytes(spec, bytes(12)).shape == (2, 3)
    with pytest.raises(BadInput, match="got 7, expected a multiple of 6"):
        from_bare_bytes(spec, bytes(7))
    with pytest.raises(BadInput, match="more than one varying axis"):
        from_bare_bytes(TensorSpec("x", "int16", (ROWS, Axis("t", 1, 2, 3))), bytes(12))
    with pytest.raises(BadInput, match="got 4, expected 6"):
        from_bare_bytes(TensorSpec("x", "int16", (3,)), bytes(4))


def test_no_values_in_a_shape_that_no_array_has() -> None:
    spec, shape = TensorSpec("x", "float32", (2, 2)), (0, 2**62, 2**62)
    for read in (
        lambda: from_bytes(spec, b"", shape),
        lambda: from_values(spec, [], shape),
        lambda: from_json(spec, [], shape),
    ):
        with pytest.raises(BadInput, match="malformed shape"):
            read()
