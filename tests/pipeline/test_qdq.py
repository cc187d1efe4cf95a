"""Graphs in eight bits for TensorRT: symmetric steps, as the formula and as torch round them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from models.errors import BuildFailed
from models.signature import Axis, Signature, TensorSpec
from pipeline.backends import TARGETS
from pipeline.backends.qdq import products, quantise
from pipeline.quantised import quantised
from pipeline.samples import CALIBRATION_ROWS, Samples, write_samples
from pipeline.values import MODEL
from tests.pipeline.simulated import simulated

FLOAT = TensorProto.FLOAT
BATCH = Axis("batch", 1, 8, 64)


def signature(inputs: int, outputs: int) -> Signature:
    return Signature(
        (TensorSpec("x", "float32", (BATCH, inputs)),),
        (TensorSpec("y", "float32", (BATCH, outputs)),),
    )


def save(
    folder: Path, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], rows: np.ndarray
) -> Path:
    graph = helper.make_graph(
        nodes, "graph",
        [helper.make_tensor_value_info("x", FLOAT, ["batch", rows.shape[1]])],
        [helper.make_tensor_value_info("y", FLOAT, ["batch", None])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 18)]
    onnx.save_model(helper.make_model(graph, opset_imports=opset, ir_version=10), folder / MODEL)
    write_samples(Samples({"x": rows}), folder / CALIBRATION_ROWS)
    return folder / MODEL


def dense(
    folder: Path, seed: int, inputs: int, outputs: int, scale: float
) -> tuple[Path, np.ndarray, np.ndarray]:
    noise = np.random.default_rng(seed)
    weight = noise.normal(scale=scale, size=(outputs, inputs)).astype(np.float32)
    rows = noise.normal(scale=scale, size=(50, inputs)).astype(np.float32)
    node = helper.make_node("Gemm", ["x", "w"], ["y"], "dense", transB=1)
    return save(folder, [node], {"w": weight}, rows), weight, rows


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 9), st.floats(0.01, 100))
def test_int8_is_the_formula_in_numpy(
    tmp_path: Path, seed: int, inputs: int, outputs: int, scale: float
) -> None:
    model, weight, rows = dense(tmp_path, seed, inputs, outputs, scale)
    (tmp_path / "ranges.json").unlink(missing_ok=True)
    out = tmp_path / "low.onnx"
    quantise(model, signature(inputs, outputs), out, (), tmp_path / "ranges.json")
    got = simulated(out, "int8")({"x": rows})["y"]
    steps = np.abs(weight).max(axis=1, keepdims=True) / np.float32(127)
    step = np.abs(rows).max() / np.float32(127)
    exact = (np.rint(rows / step) * step) @ (np.rint(weight / steps) * steps).T
    assert np.abs(got - exact).max() <= 1e-5 * max(1e-6, np.abs(exact).max()) + 1e-5 * scale**2


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**31), inputs=st.integers(1, 9), outputs=st.integers(1, 9),
    scale=st.floats(0.01, 100),
)  # fmt: skip
def test_it_is_the_rounding_that_the_floor_of_its_target_is_measured_by(
    tmp_path: Path, precision: str, seed: int, inputs: int, outputs: int, scale: float
) -> None:
    model, weight, rows = dense(tmp_path, seed, inputs, outputs, scale)
    (tmp_path / "ranges.json").unlink(missing_ok=True)
    out = tmp_path / "low.onnx"
    quantise(model, signature(inputs, outputs), out, (), tmp_path / "ranges.json", precision)
    got = simulated(out, precision)({"x": rows})["y"]
    rounding = TARGETS[f"tensorrt-{precision}"].rounding
    layer = nn.Linear(inputs, outputs, bias=False)
    layer.weight = nn.Parameter(torch.from_numpy(weight))

    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"y": self.layer(x)}

    with torch.no_grad():
        theirs = quantised(Dense(), Samples({"x": rows}), rounding)(torch.from_numpy(rows))["y"]
    # Where a value is in the middle of two numbers, either is right.
    slack = np.abs(got - theirs.numpy()) / (inputs * np.abs(weight).max() * np.abs(rows).max())
    assert np.median(slack) <= 1e-6
    assert slack.max() <= 2.0**-3


def net(folder: Path) -> Path:
    """A convolution, two dense layers that share one weight, and a product of two activations."""
    noise = np.random.default_rng(0)
    node = helper.make_node
    nodes = [
        node("Reshape", ["x", "image"], ["i"], "image"),
        node("Conv", ["i", "k", "kb"], ["c"], "conv", pads=[0, 1, 0, 1]),
        node("Relu", ["c"], ["r"], "relu"),
        node("Flatten", ["r"], ["f"], "flat"),
        node("Gemm", ["f", "w", "b"], ["h"], "one", transB=1),
        node("Gemm", ["h", "w", "b"], ["g"], "two"),
        node("Transpose", ["g"], ["t"], "turn", perm=[1, 0]),
        node("MatMul", ["g", "t"], ["y"], "attention"),
    ]
    weights = {
        "k": noise.normal(size=(2, 1, 1, 3)), "kb": noise.normal(size=2),
        "w": noise.normal(size=(16, 16)), "b": noise.normal(size=16),
    }  # fmt: skip
    rows = noise.normal(size=(40, 8)).astype(np.float32)
    arrays = {name: array.astype(np.float32) for name, array in weights.items()}
    return save(folder, nodes, arrays | {"image": np.array([-1, 1, 1, 8])}, rows)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_it_is_what_tensorrt_parses(precision: str, tmp_path: Path) -> None:
    model = net(tmp_path)
    assert products(model) == ("conv", "one", "two")
    out = tmp_path / "low.onnx"
    quantise(model, signature(8, 16), out, ["two"], tmp_path / "ranges.json", precision)
    graph = onnx.load_model(out).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    nodes = {node.name: node for node in graph.node}
    kind = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}[precision]
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = tensors[node.input[2]]
            assert zero.data_type == kind
            assert not numpy_helper.to_array(zero).astype(np.float32).any()
    for name, channels in (("conv", 2), ("one", 16)):
        given, weight = (makers[source] for source in nodes[name].input[:2])
        assert makers[given.input[0]].op_type == "QuantizeLinear"
        assert tensors[weight.input[0]].data_type == kind
        shape = (channels,) if precision == "int8" else ()
        assert numpy_helper.to_array(tensors[weight.input[1]]).shape == shape
        assert tensors[nodes[name].input[2]].data_type == FLOAT  # the bias
    assert list(nodes["two"].input) == ["h", "w", "b"]
    assert "k" not in tensors


@pytest.mark.parametrize(("precision", "most"), [("int8", 0.02), ("fp8", 0.1)])
def test_weights_that_two_nodes_share_are_rounded_for_each(
    precision: str, most: float, tmp_path: Path
) -> None:
    model = net(tmp_path)
    out = tmp_path / "low.onnx"
    quantise(model, signature(8, 16), out, (), tmp_path / "ranges.json", precision)
    rows = np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)
    exact = simulated(model, "fp32")({"x": rows})["y"]
    close = simulated(out, precision)({"x": rows})["y"]
    assert 1e-4 < np.sqrt(np.square(exact - close).mean()) / np.abs(exact).max() < most


def test_ranges_are_observed_once_for_all_graphs_of_a_model(tmp_path: Path) -> None:
    model, ranges = net(tmp_path), tmp_path / "ranges.json"
    quantise(model, signature(8, 16), tmp_path / "one.onnx", (), ranges)
    (tmp_path / CALIBRATION_ROWS).unlink()
    quantise(model, signature(8, 16), tmp_path / "two.onnx", (), ranges)
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
    ranges.unlink()
    with pytest.raises(BuildFailed, match="rows to calibrate with"):
        quantise(model, signature(8, 16), tmp_path / "three.onnx", (), ranges)


def test_an_engine_without_a_node_in_eight_bits_is_refused(tmp_path: Path) -> None:
    model = net(tmp_path)
    with pytest.raises(BuildFailed, match="all are kept in fp32"):
        quantise(model, signature(8, 16), tmp_path / "low.onnx", products(model), tmp_path / "r")


def test_what_is_always_zero_has_a_step(tmp_path: Path) -> None:
    rows = np.zeros((8, 4), np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "dense")
    model = save(tmp_path, [node], {"w": np.zeros((4, 3), np.float32)}, rows)
    quantise(model, signature(4, 3), tmp_path / "low.onnx", (), tmp_path / "ranges.json")
    assert not simulated(tmp_path / "low.onnx", "int8")({"x": rows})["y"].any()
