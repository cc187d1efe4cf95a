"""Which nodes do not bear fp16 or bf16 is found from operators and from ranges, with a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from models.errors import BuildFailed
from pipeline.backends.mixed import lowered, sensitive, write
from pipeline.backends.ranges import observe
from pipeline.samples import CALIBRATION_ROWS
from pipeline.values import MODEL
from tests.pipeline.calibrated import FLOAT, SIGNATURE, WIDTH, reasons, save
from tests.pipeline.simulated import simulated


def squares(folder: Path, scale: float) -> Path:
    nodes = [
        helper.make_node("MatMul", ["x", "wide"], ["big"], "product"),
        helper.make_node("Mul", ["big", "big"], ["square"], "square"),
        helper.make_node("Div", ["square", "much"], ["small"], "division"),
        helper.make_node("Tanh", ["small"], ["y"], "tanh"),
    ]
    wide = np.eye(WIDTH, dtype=np.float32) * np.float32(scale)
    return save(folder, nodes, {"wide": wide, "much": np.array(scale * scale, np.float32)})


def test_what_overflows_is_found_from_ranges_and_kept(tmp_path: Path) -> None:
    model = squares(tmp_path, 1000.0)
    found = sensitive(model, SIGNATURE, "fp16")
    assert found == {
        "square": "reaches 1.0e+06, over fp16's 65504",
        "division": "reaches 1.0e+06, over fp16's 65504",
    }
    assert sensitive(model, SIGNATURE, "bf16") == {}
    rows = np.full((2, WIDTH), 0.75, np.float32)
    write(model, tmp_path / "kept.onnx", "fp16", found)
    kept = simulated(tmp_path / "kept.onnx", "fp16")({"x": rows})["y"]
    np.testing.assert_allclose(kept, np.tanh(0.75**2), rtol=2e-3)
    with np.errstate(over="ignore"):
        write(model, tmp_path / "all.onnx", "fp16", ())
    lost = simulated(tmp_path / "all.onnx", "fp16")({"x": rows})["y"]
    assert not np.allclose(lost, kept, atol=0.1)


def test_other_rows_may_go_farther_than_those_seen(tmp_path: Path) -> None:
    assert sensitive(squares(tmp_path, 150.0), SIGNATURE, "fp16") == {
        "square": "reaches 2.2e+04, near fp16's 65504",
        "division": "reaches 2.2e+04, near fp16's 65504",
    }
    assert sensitive(squares(tmp_path, 100.0), SIGNATURE, "fp16") == {}


def test_what_vanishes_is_found_from_ranges(tmp_path: Path) -> None:
    assert sensitive(squares(tmp_path, 0.001), SIGNATURE, "fp16") == {
        "square": "stays below 1.0e-06, under fp16's 6.1e-05",
        "division": "stays below 1.0e-06, under fp16's 6.1e-05",
    }


def test_ranges_are_those_of_numpy_and_read_back(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(40, WIDTH)).astype(np.float32)
    nodes = [
        helper.make_node("Neg", ["x"], ["n"], "neg"),
        helper.make_node("Log", ["n"], ["y"], "log"),  # NaN and infinity are left out
    ]
    found = observe(save(tmp_path, nodes, {}, rows), SIGNATURE, tmp_path / "ranges.json")
    assert (found["n"].low, found["n"].high, found["n"].size) == (-rows.max(), -rows.min(), WIDTH)
    assert found["y"].high == pytest.approx(np.log(-rows.min()), rel=1e-5)
    (tmp_path / CALIBRATION_ROWS).unlink()
    assert observe(tmp_path / MODEL, SIGNATURE, tmp_path / "ranges.json") == found
    with pytest.raises(BuildFailed, match="rows to calibrate with"):
        observe(tmp_path / MODEL, SIGNATURE)


def test_a_normalisation_that_is_written_out_is_kept_from_mean_to_division(tmp_path: Path) -> None:
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w"], ["h"], "product"),
        node("ReduceMean", ["h", "axis"], ["m"], "mean"),
        node("Sub", ["h", "m"], ["c"], "centre"),
        node("Mul", ["c", "c"], ["s"], "square"),
        node("ReduceMean", ["s", "axis"], ["v"], "variance"),
        node("Add", ["v", "epsilon"], ["e"], "epsilon"),
        node("Sqrt", ["e"], ["d"], "root"),
        node("Div", ["c", "d"], ["z"], "division"),
        node("Tanh", ["z"], ["y"], "tanh"),
    ]
    found = reasons(
        tmp_path, nodes, w=np.eye(WIDTH, dtype=np.float32), axis=np.array([1]),
        epsilon=np.array(1e-5, np.float32),
    )  # fmt: skip
    assert found == dict.fromkeys(
        ("mean", "centre", "square", "variance", "epsilon", "root", "division"), "normalisation"
    )


def test_what_prepares_the_input_is_kept_up_to_the_first_product(tmp_path: Path) -> None:
    node = helper.make_node
    nodes = [
        node("Reshape", ["x", "shape"], ["r"], "reshape"),
        node("Sub", ["r", "mean"], ["c"], "centre"),
        node("Relu", ["c"], ["p"], "relu"),
        node("MatMul", ["p", "w"], ["h"], "product"),
        node("Add", ["h", "mean"], ["y"], "bias"),
    ]
    found = reasons(
        tmp_path, nodes, shape=np.array([-1, WIDTH]), mean=np.ones(WIDTH, np.float32),
        w=np.eye(WIDTH, dtype=np.float32),
    )  # fmt: skip
    assert found == dict.fromkeys(("reshape", "centre"), "scales what the graph is given")


def test_what_scales_the_answer_is_kept_but_no_bias(tmp_path: Path) -> None:
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w"], ["h"], "product"),
        node("Add", ["h", "shift"], ["b"], "bias"),
        node("Mul", ["b", "size"], ["s"], "size"),
        node("Add", ["s", "shift"], ["y"], "shift"),
    ]
    found = reasons(
        tmp_path, nodes, w=np.eye(WIDTH, dtype=np.float32), size=np.array(9, np.float32),
        shift=np.ones(WIDTH, np.float32),
    )  # fmt: skip
    assert found == dict.fromkeys(("size", "shift"), "scales what the graph answers")


def test_shapes_in_floats_and_what_has_no_such_type_are_kept(tmp_path: Path) -> None:
    node = helper.make_node
    nodes = [
        node("Shape", ["x"], ["s"], "shape"),
        node("Cast", ["s"], ["f"], "sizes", to=FLOAT),
        node("ReduceMax", ["f"], ["most"], "most", keepdims=0),
        node("MatMul", ["x", "w"], ["h"], "product"),
        node("Range", ["zero", "most", "one"], ["r"], "range"),
        node("ReduceMax", ["r"], ["last"], "last", keepdims=0),
        node("Add", ["h", "last"], ["y"], "add"),
    ]
    found = reasons(
        tmp_path, nodes, w=np.eye(WIDTH, dtype=np.float32), zero=np.array(0, np.float32),
        one=np.array(1, np.float32),
    )  # fmt: skip
    shapes = dict.fromkeys(("sizes", "most", "last"), "computed from shapes and constants")
    assert found == {**shapes, "range": "Range has no fp16 in opset 18"}
    assert lowered(tmp_path / MODEL) == ("most", "product", "range", "last", "add")
