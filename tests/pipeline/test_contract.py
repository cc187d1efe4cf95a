"""The shape contract: every place says what the signature says, or the row tells who does not."""

from __future__ import annotations

import pytest

from models.signature import BATCH, Axis, Signature, TensorSpec
from pipeline.contract import contract, disagreements
from pipeline.values import OnnxModel

ROWS, STEPS = Axis(BATCH, 1, 8, 64), Axis("time", 2, 16, 100)
SIGNATURE = Signature(
    (
        TensorSpec("tokens", "int64", (ROWS, STEPS), 0, 9),
        TensorSpec("mask", "float32", (ROWS, 1, STEPS)),
    ),
    (TensorSpec("scores", "float32", (ROWS, 3)),),
)
DECLARED = {
    "tokens": "int64[batch, time]",
    "mask": "float32[batch, 1, time]",
    "scores": "float32[batch, 3]",
}
RANGES = {BATCH: (1, 64), "time": (2, 100)}


def model(**changes: object) -> OnnxModel:
    fields = {
        "folder": ".", "recipe": "r", "parent": "", "signature": SIGNATURE, "opset": 18,
        "exporter": "dynamo", "libraries": {}, "files": {}, "declared": DECLARED, "ranges": RANGES,
    }  # fmt: skip
    return OnnxModel.model_validate({**fields, **changes})


def test_each_tensor_and_each_axis_has_a_row_and_all_agree() -> None:
    rows = contract(model(), DECLARED)
    assert [row.what for row in rows] == [
        "tensor tokens", "tensor mask", "tensor scores", "axis batch", "axis time",
    ]  # fmt: skip
    assert list(disagreements(rows)) == []
    time = rows[-1]
    assert (time.exporter, time.profile, time.service) == ("2 to 100",) * 3
    assert all(row.agreed for row in rows)


def test_an_exporter_that_says_nothing_is_not_held_to_have_agreed() -> None:
    rows = contract(model(ranges=None), DECLARED)
    assert {row.exporter for row in rows} == {None}
    assert all(row.agreed for row in rows)


@pytest.mark.parametrize(
    ("changes", "declared", "words"),
    [
        ({}, DECLARED | {"tokens": "int64[2, time]"}, "tensor tokens: engine says int64[2, time]"),
        ({}, {n: d for n, d in DECLARED.items() if n != "scores"}, "engine says no such tensor"),
        (
            {"declared": DECLARED | {"mask": "float32[batch, 1, 7]"}}, DECLARED,
            "tensor mask: graph says float32[batch, 1, 7], the signature float32[batch, 1, time]",
        ),
        ({"ranges": {**RANGES, "time": (2, 99)}}, DECLARED, "axis time: exporter says 2 to 99"),
    ],
)  # fmt: skip
def test_who_says_something_else_is_named(
    changes: dict[str, object], declared: dict[str, str], words: str
) -> None:
    rows = contract(model(**changes), declared)
    (line,) = disagreements(rows)
    assert words in line
    assert sum(not row.agreed for row in rows) == 1
