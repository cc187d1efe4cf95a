"""Noise of a seed is the same whoever asks, and engines asked in blocks answer bit by bit alike."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from scipy import stats

from models.codec import Codec
from models.errors import BadInput
from models.signature import Arrays, Axis, Signature, TensorSpec
from pipeline.bundle import Bundle, open_bundle
from serving.drawing import LARGEST_SEED, complete, draw, in_blocks
from serving.opening import open_session
from tests.serving.conftest import TARGET
from tests.serving.generative_bundle import BLOCK, DRAWER, make_bundle

BATCH = Axis("batch", 1, 8, 64)
NOISE = TensorSpec("noise", "float32", (BATCH, 3))
LATENT = TensorSpec("latent", "float32", (BATCH, 2, 5))
IMAGE = TensorSpec("image", "float32", (BATCH, 4))
OUT = (TensorSpec("out", "float32", (BATCH,)),)
SEEDS = st.integers(0, LARGEST_SEED)


@given(SEEDS, st.integers(1, 20), st.integers(1, 20))
def test_a_row_is_the_same_however_many_are_drawn(seed: int, few: int, more: int) -> None:
    whole = draw(seed, few + more, LATENT)
    assert whole.shape == (few + more, 2, 5)
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(whole[:few], draw(seed, few, LATENT))


@given(SEEDS, SEEDS)
def test_seeds_rows_and_names_share_no_numbers(first: int, second: int) -> None:
    # In float64: of numbers in float32 two are equal by chance once in a thousand such draws.
    latent, other = (TensorSpec(name, "float64", LATENT.shape) for name in ("latent", "other"))
    drawn = [draw(first, 8, latent), draw(first, 8, other)]
    drawn += [draw(second, 8, latent)] * (second != first)
    numbers = np.concatenate([array.ravel() for array in drawn])
    assert len(np.unique(numbers)) == len(numbers)


def test_noise_is_normal_and_rows_are_independent() -> None:
    spec = TensorSpec("noise", "float64", (Axis("batch", 1, 1, 4000), 50))
    drawn = draw(3, 4000, spec)
    assert stats.kstest(drawn.ravel(), "norm").pvalue > 0.01
    # Of neighbouring rows, and of the rows of neighbouring seeds.
    for others in (np.roll(drawn, 1, 0), draw(4, 4000, spec)):
        correlation = np.corrcoef(drawn.ravel(), others.ravel())[0, 1]
        assert abs(correlation) < 4 / np.sqrt(drawn.size)


def test_rows_are_far_apart_on_the_one_stream_of_a_seed_and_name() -> None:
    seed, row = 7, 5
    name = int.from_bytes(hashlib.sha256(b"noise").digest()[:8], "little")
    stream = np.random.Philox(key=seed + (name << 64)).advance(row << 192)
    expected = np.random.Generator(stream).standard_normal(3).astype(np.float32)
    np.testing.assert_array_equal(draw(seed, row + 1, NOISE)[row], expected)


SIGNATURE = Signature((IMAGE, NOISE, LATENT), OUT)
CODEC = Codec(noise=("noise", "latent"))
ROWS = np.zeros((3, 4), np.float32)


def test_what_is_missing_is_drawn_for_as_many_rows_as_there_are() -> None:
    inputs, told = complete(SIGNATURE, CODEC, {"image": ROWS}, {"seed": 5, "other": [1]})
    assert told == {"seed": 5}
    np.testing.assert_array_equal(inputs["noise"], draw(5, 3, NOISE))
    np.testing.assert_array_equal(inputs["latent"], draw(5, 3, LATENT))
    assert SIGNATURE.check(inputs) == {"batch": 3}
    given = np.ones((3, 3), np.float32)
    inputs, told = complete(SIGNATURE, CODEC, {"image": ROWS, "noise": given}, {"seed": 5})
    assert inputs["noise"] is given
    np.testing.assert_array_equal(inputs["latent"], draw(5, 3, LATENT))


def test_without_a_seed_one_is_drawn_and_told() -> None:
    only = Signature((NOISE,), OUT)
    inputs, told = complete(only, CODEC, {}, {"rows": 4})
    np.testing.assert_array_equal(inputs["noise"], draw(told["seed"], 4, NOISE))
    again, others = complete(only, CODEC, {}, {"rows": 4})
    assert others != told
    assert (again["noise"] != inputs["noise"]).all()
    assert len(complete(only, CODEC, {}, {"seed": 1})[0]["noise"]) == 1


@pytest.mark.parametrize(
    ("inputs", "parameters", "said"),
    [
        (
            {"image": ROWS}, {},
            "input 'noise' is missing: got 'image', expected 'image', 'noise', 'latent'; "
            "give it, or the parameter 'seed'",
        ),
        ({"image": ROWS}, {"seed": -1}, "parameter 'seed' is out of range: got -1"),
        ({"image": ROWS}, {"seed": 2**64}, "out of range"),
        ({"image": ROWS}, {"seed": 1.0}, "parameter 'seed' is of a wrong type: got float"),
        ({"image": ROWS}, {"seed": True}, "got bool, expected a whole number"),
        ({"image": ROWS}, {"seed": None}, "got NoneType"),
        ({"image": ROWS}, {"rows": 2}, "parameter 'rows' disagrees with input 'image': got 2"),
        ({}, {"rows": 0}, "parameter 'rows' is out of range: got 0, expected 1 to 64"),
        ({}, {"rows": 65}, "got 65"),
        ({}, {"rows": "1"}, "got str"),
        # So many empty rows take no bytes, but would take noise.
        ({"image": np.zeros((10**9, 0), np.float32)}, {"seed": 1}, "axis 'batch' is out of range"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(
    inputs: Arrays, parameters: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadInput) as caught:
        complete(SIGNATURE, CODEC, inputs, parameters)
    assert said in str(caught.value)


def test_nothing_is_drawn_where_all_is_given_or_nothing_is_noise() -> None:
    whole = {"image": ROWS, "noise": ROWS, "latent": ROWS}
    assert complete(SIGNATURE, CODEC, whole, {"binary_data_output": True}) == (whole, {})
    with pytest.raises(BadInput, match="parameter 'seed' is of no use, for every noise is given"):
        complete(SIGNATURE, CODEC, whole, {"seed": 5})
    # As before: what a model without noise lacks is for its signature to say.
    assert complete(SIGNATURE, Codec(), {}, {"seed": 5}) == ({}, {})


Run = Callable[[Arrays], Arrays]
WEIGHT = np.random.default_rng(1).normal(size=(300, 200)).astype(np.float32)


def rounding(inputs: Arrays) -> Arrays:
    """An engine whose answers depend on the number of rows as kernels' roundings do."""
    return {"y": inputs["x"] * np.float32(1 + 1e-6 * len(inputs["x"]))}


@pytest.fixture(scope="module")
def real() -> Run:
    """A real engine that takes another kernel for one row: its weight is no constant."""

    def declare(name: str, *shape: str | int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "graph",
        [declare("x", "batch", 300), declare("w", 300, 200)], [declare("y", "batch", 200)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def run(inputs: Arrays) -> Arrays:
        return {"y": np.asarray(session.run(["y"], {"x": inputs["x"], "w": WEIGHT})[0])}

    return run


ASKED = np.random.default_rng(2).normal(size=(64, 300)).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(64)), count=st.sampled_from([1, 7, 8, 9, 64]))
def test_in_blocks_no_bit_depends_on_the_other_rows(
    real: Run, order: list[int], count: int
) -> None:
    chosen = np.array(order[:count])
    for engine in (real, rounding):
        ask = in_blocks(engine, 8)
        whole = ask({"x": ASKED})["y"]
        np.testing.assert_array_equal(ask({"x": ASKED[chosen]})["y"], whole[chosen])
    # Without blocks it does.
    apart = rounding({"x": ASKED[:1]})["y"] != rounding({"x": ASKED})["y"][:1]
    assert apart.any()


@given(rows=st.integers(1, 40), block=st.integers(1, 12))
def test_an_engine_is_asked_blocks_only_and_answers_row_by_row(rows: int, block: int) -> None:
    sizes = []

    def run(inputs: Arrays) -> Arrays:
        sizes.append({len(array) for array in inputs.values()})
        return {"sum": inputs["a"] + inputs["b"][:, 0], "a": inputs["a"]}

    a = np.arange(rows)
    answer = in_blocks(run, block)({"a": a, "b": 10 * a[:, None]})
    np.testing.assert_array_equal(answer["sum"], 11 * a)
    np.testing.assert_array_equal(answer["a"], a)
    assert sizes == [{block}] * -(-rows // block)


def test_a_served_model_is_asked_in_the_blocks_of_its_codec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(make_bundle(tmp_path, "drawer", DRAWER))
    engine, sizes = bundle.open_engine(TARGET), set()

    class Counted:
        def run(self, inputs: Mapping[str, Any]) -> Arrays:
            sizes.update(len(array) for array in inputs.values())
            return engine.run(inputs)

    # The recorded cases that are replayed have from 1 to 64 rows.
    monkeypatch.setattr(Bundle, "open_engine", lambda *args: Counted())
    open_session(bundle, TARGET)
    assert sizes == {BLOCK}
