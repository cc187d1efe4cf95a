"""int8: what rounding costs is known from torch, the engine is inside it, a damaged one is not."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from torch import nn

from flows import stages
from flows.stages import Job
from models.errors import BuildFailed
from models.signature import Axis, Signature, TensorSpec
from models.zoo import find
from pipeline.artifacts import digest_files
from pipeline.backends import Built, ort, ort_int8
from pipeline.backends import target as find_target
from pipeline.cases import read_cases
from pipeline.lowering import lower
from pipeline.optimize import optimize
from pipeline.quantised import quantised
from pipeline.samples import CALIBRATION_ROWS, Samples, write_samples
from pipeline.values import (
    CANDIDATES,
    MODEL,
    REFUSAL_VALUE,
    Certificate,
    Engine,
    OnnxModel,
    Refusal,
)
from pipeline.verify import verify
from tests.conftest import TINY

INT8 = find_target("ort-cpu-int8")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    """A small convolutional net, trained and exported."""
    job = Job("lenet5", changes=TINY, out=tmp_path_factory.mktemp("int8"))
    return stages.export(job, stages.train(job))


def engine_of(model: OnnxModel, built: Built, folder: Path, kept: tuple[str, ...] = ()) -> Engine:
    return Engine(
        folder=folder, target=INT8.name, parent=model.digest, signature=model.signature,
        options=built.options, built_on=built.built_on, kept=kept,
        files=digest_files(folder, list(built.files)),
    )  # fmt: skip


def certify(model: OnnxModel, engine: Engine, tmp_path: Path) -> Certificate:
    (tmp_path / "certificate").mkdir()
    return verify(engine, model, tmp_path / "certificate")


class Dense(nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(*reversed(weight.shape), bias=False)
        self.layer.weight = nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": self.layer(x)}


@pytest.mark.parametrize("rounding", ["int8", "int8-symmetric"])
@given(
    seed=st.integers(0, 2**31), inputs=st.integers(1, 9), outputs=st.integers(1, 9),
    scale=st.floats(0.01, 100),
)  # fmt: skip
def test_the_rounded_module_is_the_formula_in_numpy(
    rounding: str, seed: int, inputs: int, outputs: int, scale: float
) -> None:
    noise = np.random.default_rng(seed)
    weight = noise.normal(scale=scale, size=(outputs, inputs)).astype(np.float32)
    rows = noise.normal(loc=scale, scale=scale, size=(50, inputs)).astype(np.float32)
    module = Dense(torch.from_numpy(weight))
    copy = quantised(module, Samples({"x": rows}), rounding)
    with torch.no_grad():
        got = copy(torch.from_numpy(rows))["y"].numpy()
    steps = np.abs(weight).max(axis=1, keepdims=True) / 127
    low, high = min(rows.min(), 0), max(rows.max(), 0)
    if rounding == "int8":
        step = (high - low) / 255
        zero = round(float(-low / step))
        levels = np.clip(np.rint(rows / step) + zero, 0, 255)
    else:
        step, zero = max(-low, high) / 127, 0
        levels = np.clip(np.rint(rows / step), -128, 127)
    expected = ((levels - zero) * step) @ (np.rint(weight / steps) * steps).T
    # Where a value is in the middle of two levels, either is right.
    slack = 0.51 * step * np.abs(weight).max() + 0.51 * steps.max() * np.abs(rows).max()
    assert np.abs(got - expected).max() <= slack
    assert np.median(np.abs(got - expected)) <= 1e-5 * np.abs(expected).max()
    np.testing.assert_array_equal(module.layer.weight.detach().numpy(), weight)  # it is a copy


def test_an_int8_engine_is_certified_and_says_that_it_is_int8(
    exported: OnnxModel, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    (tmp_path / "engine").mkdir()
    with caplog.at_level(logging.WARNING):
        lowered = lower(exported, INT8, read_cases(exported.folder), tmp_path / "engine")
    assert lowered.built
    assert [path.name for path in (tmp_path / "engine").iterdir()] == list(lowered.built.files)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    certificate = certify(
        exported, engine_of(exported, lowered.built, tmp_path / "engine", lowered.kept), tmp_path
    )
    assert certificate, certificate.failures
    int8 = {node["name"] for node in certificate.effective["nodes"] if "int8" in node["precision"]}
    assert len(int8) >= 2
    assert certificate.requested["precision"] == "int8"


def test_the_same_graph_gives_the_same_engine(exported: OnnxModel, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        ort.build(exported.folder / MODEL, exported.signature, INT8, tmp_path / name)
    one, two = ((tmp_path / name / "engine.onnx").read_bytes() for name in ("one", "two"))
    assert one == two


Mutation = Callable[[onnx.GraphProto], None]


def each(graph: onnx.GraphProto, end: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change the tensors whose names end so."""
    tensors = [tensor for tensor in graph.initializer if tensor.name.endswith(end)]
    assert tensors
    for tensor in tensors:
        array = numpy_helper.to_array(tensor)
        changed = np.asarray(change(array)).astype(array.dtype)
        tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))


def wrong_zero_point(graph: onnx.GraphProto) -> None:
    """The first activation is rounded about another zero than it is read with, by 8 steps."""
    first = next(node for node in graph.node if node.op_type == "QuantizeLinear")
    zero = next(tensor for tensor in graph.initializer if tensor.name == first.input[2])
    shifted = numpy_helper.to_array(zero).astype(int) + 8
    graph.initializer.append(numpy_helper.from_array(shifted.astype(np.uint8), "shifted"))
    first.input[2] = "shifted"


def clipped(graph: onnx.GraphProto) -> None:
    """The first activation has a quarter of the range that was seen."""
    first = next(node for node in graph.node if node.op_type == "QuantizeLinear")
    each(graph, first.input[1], lambda scale: scale / 4)


def four_bits(graph: onnx.GraphProto) -> None:
    each(graph, "weight_quantized", lambda weight: np.rint(weight / 16) * 16)


def swapped_steps(graph: onnx.GraphProto) -> None:
    """A channel's step for its neighbour."""
    each(graph, "weight_scale", lambda scale: np.roll(scale, 1))


@pytest.mark.parametrize("fault", [wrong_zero_point, clipped, four_bits, swapped_steps])
def test_a_damaged_int8_engine_is_refused(
    fault: Mutation, exported: OnnxModel, tmp_path: Path
) -> None:
    graph = tmp_path / MODEL
    ort_int8.quantise(
        exported.folder / MODEL, exported.signature, graph, (), tmp_path / "ranges.json"
    )
    damaged = onnx.load_model(graph)
    fault(damaged.graph)
    onnx.save_model(damaged, graph)
    (tmp_path / "engine").mkdir()
    built = ort.build(graph, exported.signature, find_target("ort-cpu-fp32"), tmp_path / "engine")
    certificate = certify(exported, engine_of(exported, built, tmp_path / "engine"), tmp_path)
    assert not certificate
    assert any(text.startswith(("samples", "edges")) for text in certificate.failures)


def test_an_fp32_engine_is_no_int8_engine(exported: OnnxModel, tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    fp32 = find_target("ort-cpu-fp32")
    built = ort.build(exported.folder / MODEL, exported.signature, fp32, tmp_path / "engine")
    certificate = certify(exported, engine_of(exported, built, tmp_path / "engine"), tmp_path)
    assert certificate.failures == ("effective: no node ran in int8, requested int8",)


def with_an_outlier(model: OnnxModel, node: str, folder: Path) -> OnnxModel:
    """The same function, but one unit that a dense node is given is 3000 times as large."""
    shutil.copytree(model.folder, folder)
    graph = onnx.load_model(folder / MODEL)
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    dense = next(one for one in graph.graph.node if one.name == node)
    weight = numpy_helper.to_array(tensors[dense.input[1]]).copy()  # [out, in]
    sizes = np.ones(weight.shape[1], np.float32)
    sizes[0] = 3000
    tensors[dense.input[1]].CopyFrom(numpy_helper.from_array(weight / sizes, dense.input[1]))
    graph.graph.initializer.append(numpy_helper.from_array(sizes, "sizes"))
    place = list(graph.graph.node).index(dense)
    graph.graph.node.insert(place, helper.make_node("Mul", [dense.input[0], "sizes"], ["larger"]))
    dense.input[0] = "larger"
    onnx.save_model(graph, folder / MODEL)
    return model.model_copy(update={"folder": folder})


def test_the_node_that_does_not_bear_int8_is_found_and_named(
    exported: OnnxModel, tmp_path: Path
) -> None:
    dense = [name for name in ort.lowered(exported.folder / MODEL, INT8) if "linear" in name]
    model = with_an_outlier(exported, dense[1], tmp_path / "model")
    (tmp_path / "engine").mkdir()
    lowered = lower(model, INT8, read_cases(model.folder), tmp_path / "engine")
    assert lowered.kept == (dense[1],)
    assert lowered.built
    engine = engine_of(exported, lowered.built, tmp_path / "engine", lowered.kept)
    certificate = certify(exported, engine, tmp_path)
    assert certificate, certificate.failures
    assert certificate.requested["kept_in_fp32"] == [dense[1]]


def test_what_cannot_hold_its_limits_is_refused_with_numbers(
    exported: OnnxModel, tmp_path: Path
) -> None:
    strict = exported.model_copy(update={"floors": {}})
    (tmp_path / "engine").mkdir()
    lowered = lower(strict, INT8, read_cases(strict.folder), tmp_path / "engine")
    assert lowered.built is None
    assert "with all 5 products lowered: error " in lowered.why
    assert "times what is allowed" in lowered.why


def test_what_does_not_pay_is_refused_and_leaves_its_numbers(
    exported: OnnxModel, tmp_path: Path
) -> None:
    refused = optimize(exported, INT8.name, tmp_path)  # 0.1 ms a call: rounding costs more
    assert isinstance(refused, Refusal)
    assert "times as fast as fp32, " in refused.why
    assert {path.name for path in tmp_path.iterdir()} == {CANDIDATES, REFUSAL_VALUE}
    assert refused.parent == exported.digest


def test_state_is_not_carried_in_int8(exported: OnnxModel, tmp_path: Path) -> None:
    recurrent = find("gru").make_signature()
    refused = optimize(exported.model_copy(update={"signature": recurrent}), INT8.name, tmp_path)
    assert isinstance(refused, Refusal)
    assert "state would be carried" in refused.why


def test_without_rows_there_is_no_int8(exported: OnnxModel, tmp_path: Path) -> None:
    shutil.copy(exported.folder / MODEL, tmp_path / MODEL)
    with pytest.raises(BuildFailed, match="rows to calibrate with"):
        ort.build(tmp_path / MODEL, exported.signature, INT8, tmp_path)


def test_shared_weights_are_corrupted_unless_each_node_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two dense nodes with one weight, one of them transposed: channels lie along either axis."""
    noise = np.random.default_rng(0)
    weight = noise.normal(size=(16, 16)).astype(np.float32)
    rows = noise.normal(size=(64, 16)).astype(np.float32)
    one = helper.make_node("Gemm", ["x", "weight"], ["hidden"], name="one", transB=1)
    two = helper.make_node("Gemm", ["hidden", "weight"], ["y"], name="two", transB=0)
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [one, two], "shared",
        [helper.make_tensor_value_info("x", float32, ["batch", 16])],
        [helper.make_tensor_value_info("y", float32, ["batch", 16])],
        [numpy_helper.from_array(weight, "weight")],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 18)]
    onnx.save_model(helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / MODEL)
    write_samples(Samples({"x": rows}), tmp_path / CALIBRATION_ROWS)
    batch = Axis("batch", 1, 8, 64)
    signature = Signature(
        (TensorSpec("x", "float32", (batch, 16)),), (TensorSpec("y", "float32", (batch, 16)),)
    )
    expected = rows @ weight.T @ weight

    def error(name: str) -> float:
        out = tmp_path / name
        ort_int8.quantise(tmp_path / MODEL, signature, out, (), tmp_path / f"{name}.json")
        session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
        (answer,) = session.run(None, {"x": rows})
        return float(np.abs(np.asarray(answer) - expected).max() / np.abs(expected).max())

    assert error("own") < 0.03
    monkeypatch.setattr(ort_int8, "unshare", lambda graph: None)
    assert error("shared") > 0.1
