"""Recorded cases: real rows at every corner, edge inputs, and the same bytes back from the disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import TamperedFile
from models.signature import BATCH, Axis, Signature, TensorSpec
from pipeline.cases import (
    CASES_FILE,
    EDGE,
    HELD_OUT,
    Case,
    make_inputs,
    read_cases,
    write_cases,
)

ROWS = np.arange(10 * 6, dtype=np.float32).reshape(10, 6)


def of(*shape: int | Axis, dtype: str = "float32") -> Signature:
    spec = TensorSpec("x", dtype, shape, -2.0, 5.0)  # pyright: ignore[reportArgumentType]
    return Signature((spec,), (replace(spec, name="y"),))


@given(st.integers(1, 40), st.integers(1, 9))
def test_cases_hold_real_rows_at_every_corner(most: int, longest: int) -> None:
    signature = of(Axis(BATCH, 1, 1, most), Axis("time", 1, 1, longest))
    cases = [case for case in make_inputs(signature, {"x": ROWS}) if case.origin == HELD_OUT]
    assert [case.sizes for case in cases] == signature.corners()
    for case in cases:
        signature.check(case.inputs)
        for row in case.inputs["x"]:
            # A row of ours, cut or continued by its own beginning.
            source = ROWS[int(row[0]) // 6]
            np.testing.assert_array_equal(row, np.resize(source, len(row)))


def test_all_rows_are_used_before_any_comes_again() -> None:
    cases = make_inputs(of(Axis(BATCH, 1, 4, 8), 6), {"x": ROWS})
    first = np.concatenate([case.inputs["x"] for case in cases if case.origin == HELD_OUT])[:10]
    np.testing.assert_array_equal(first, ROWS)


def test_names_are_read_back_in_one_order(tmp_path: Path) -> None:
    answers = {name: np.zeros(1, np.float32) for name in "hgfedcba"}
    write_cases([Case("batch=1", HELD_OUT, {BATCH: 1}, answers, answers, answers)], tmp_path)
    for _ in range(20):  # the library reads a file into a table without an order
        assert list(read_cases(tmp_path)[0].reference) == sorted(answers)


def test_without_a_batch_axis_a_case_is_one_row() -> None:
    held_out = [c for c in make_inputs(of(6), {"x": ROWS}) if c.origin == HELD_OUT]
    assert len(held_out) == 1
    np.testing.assert_array_equal(held_out[0].inputs["x"], ROWS[0])


def test_edge_inputs_follow_the_declared_range() -> None:
    cases = {c.name: c for c in make_inputs(of(Axis(BATCH, 1, 2, 4), 6), {"x": ROWS})}
    edges = {name: case.inputs["x"] for name, case in cases.items() if case.origin == EDGE}
    assert edges["zeros"].max() == 0
    assert edges["low"].max() == -2
    assert edges["high"].min() == 5
    assert edges["middle"].min() == 1.5
    assert set(edges["alternating"].ravel()) == {-2, 5}
    assert 0 < edges["denormal"].min() < np.finfo(np.float32).tiny


def test_edges_of_integers_are_integers() -> None:
    signature = of(Axis(BATCH, 1, 2, 4), dtype="int64")
    for case in make_inputs(signature, {"x": np.arange(9)}):
        assert case.inputs["x"].dtype == np.int64


def test_cases_come_back_as_they_were_written(tmp_path: Path) -> None:
    cases = [
        replace(case, eager=case.inputs, reference={"y": case.inputs["x"].astype(np.float64)})
        for case in make_inputs(of(Axis(BATCH, 1, 2, 4), 6), {"x": ROWS})
    ]
    write_cases(cases, tmp_path)
    for written, read in zip(cases, read_cases(tmp_path), strict=True):
        assert (read.name, read.origin, read.sizes) == (written.name, written.origin, written.sizes)
        np.testing.assert_array_equal(read.inputs["x"], written.inputs["x"])
        np.testing.assert_array_equal(read.reference["y"], written.reference["y"])
        assert read.reference["y"].dtype == np.float64


@pytest.mark.parametrize("content", [b"", b"half", b"\x08\0\0\0\0\0\0\0{}      "])
def test_what_are_no_cases_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CASES_FILE).write_bytes(content)
    with pytest.raises(TamperedFile, match="does not hold recorded cases"):
        read_cases(tmp_path)


@given(st.integers(1, 9), st.integers(0, 3), st.integers(0, 40))
def test_every_integer_of_a_range_fills_a_row(most: int, low: int, more: int) -> None:
    batch, steps = Axis(BATCH, 1, 1, most), Axis("time", 2, 3, 5)
    tokens = TensorSpec("tokens", "int64", (batch, steps), low, low + more)
    label = TensorSpec("label", "int64", (batch,), 0, 1)
    signature = Signature((tokens, label), (TensorSpec("y", "float32", (batch,)),))
    rows = {"tokens": np.full((4, 3), low), "label": np.zeros(4, np.int64)}
    cases = [c for c in make_inputs(signature, rows) if c.name.startswith("integers")]
    asked = np.concatenate([case.inputs["tokens"] for case in cases])
    least = min(low, 0)
    wanted = np.arange(least, max(low + more, 1) + 1)
    np.testing.assert_array_equal(asked, np.clip(wanted, low, low + more)[:, None].repeat(2, 1))
    for case in cases:
        signature.check(case.inputs)
