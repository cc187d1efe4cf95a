"""Rows apart from the cases: real, as many as fit, and known only where they are whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.datasets import Split
from models.errors import TamperedFile
from models.recurrence import Recurrence, State
from models.signature import BATCH, Axis, Signature, TensorSpec
from pipeline.samples import Samples, choose_samples, read_samples, write_samples
from tests.conftest import Release

ROWS = Axis(BATCH, 1, 2, 4)


def split(rows: int, length: int) -> Split:
    return Split(
        {"x": np.arange(rows * length, dtype=np.float32).reshape(rows, length)},
        {"label": np.arange(rows)},
    )


def signature(low: int, high: int) -> Signature:
    steps = Axis("time", low, low, high)
    return Signature(
        (TensorSpec("x", "float32", (ROWS, steps)),), (TensorSpec("y", "float32", (ROWS, 1)),)
    )


@given(st.integers(1, 20), st.integers(1, 30), st.integers(1, 9), st.integers(1, 9))
def test_rows_are_the_first_ones_and_keep_their_length_where_it_is_promised(
    rows: int, most: int, low: int, length: int
) -> None:
    samples = choose_samples(signature(low, low + 3), split(rows, length), rows=most)
    assert len(samples) == min(rows, most)
    size = min(max(length, low), low + 3)
    wanted = split(rows, length).inputs["x"][: len(samples)]
    np.testing.assert_array_equal(samples.inputs["x"], wanted[:, np.arange(size) % length])
    assert ("label" in samples.targets) == (size == length)
    batches = samples.batches(signature(low, low + 3))
    assert max(len(batch["x"]) for batch in batches) <= 4
    np.testing.assert_array_equal(
        np.concatenate([batch["x"] for batch in batches]), samples.inputs["x"]
    )


def test_many_large_rows_are_fewer() -> None:
    large = split(600, 1 << 14)  # 64 KiB each
    assert len(choose_samples(signature(1, 1 << 22), large, rows=600)) == 256
    assert len(choose_samples(signature(1, 1 << 22), large, rows=600, answer_bytes=1 << 20)) == 128
    assert len(choose_samples(signature(1, 1 << 22), large, rows=5)) == 5


def test_state_begins_anew_in_every_batch() -> None:
    steps = Axis("time", 1, 3, 5)
    state = TensorSpec("hidden", "float32", (ROWS, 7))
    recurrent = Signature(
        (TensorSpec("x", "float32", (ROWS, steps)), state),
        (TensorSpec("next", "float32", (ROWS, 7)),),
        Recurrence("time", (State("hidden", "next"),)),
    )
    samples = choose_samples(recurrent, split(6, 3), rows=6)
    assert samples.inputs.keys() == {"x"}
    first, last = samples.batches(recurrent)
    assert (first["hidden"].shape, last["hidden"].shape) == ((4, 7), (2, 7))
    assert not first["hidden"].any()


def test_tables_are_read_back_and_nothing_else_is(tmp_path: Path) -> None:
    rows = Samples({"x": np.ones((2, 3))}, {"label": np.arange(2)}, {"y": np.zeros((2, 1))})
    write_samples(rows, tmp_path / "rows")
    again = read_samples(tmp_path / "rows")
    np.testing.assert_array_equal(again.inputs["x"], rows.inputs["x"])
    np.testing.assert_array_equal(again.targets["label"], rows.targets["label"])
    np.testing.assert_array_equal(again.reference["y"], rows.reference["y"])
    (tmp_path / "rows").write_bytes(b"no")
    with pytest.raises(TamperedFile, match="does not hold rows"):
        read_samples(tmp_path / "rows")


def test_each_table_is_of_its_own_split_and_a_changed_one_is_refused(lenet5: Release) -> None:
    dataset, folder = lenet5.job.dataset, lenet5.model.folder
    for part, name in (
        (dataset.train, "calibration.safetensors"),
        (dataset.validation, "validation.safetensors"),
        (dataset.test, "held_out.safetensors"),
    ):
        rows = read_samples(folder / name)
        np.testing.assert_array_equal(rows.inputs["image"], part.inputs["image"][: len(rows)])
        assert name in lenet5.model.apart
    calibration = read_samples(folder / "calibration.safetensors")
    assert not calibration.targets
    assert not calibration.reference
    assert lenet5.certificate.samples["drift_sha256"] == lenet5.model.apart["held_out.safetensors"]
