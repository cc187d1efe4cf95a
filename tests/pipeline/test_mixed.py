"""Graphs in fp16 and bf16: every node computes in the type it should, and overflow is foreseen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import nn

from models.errors import BuildFailed
from pipeline.backends.graphs import check, types_of
from pipeline.backends.mixed import sensitive, write
from pipeline.values import MODEL
from tests.pipeline.calibrated import FLOAT, SIGNATURE, WIDTH, reasons, save
from tests.pipeline.simulated import simulated

LOW = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
LENIENT = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def branch(node: onnx.NodeProto) -> onnx.GraphProto:
    value = helper.make_tensor_value_info(node.output[0], FLOAT, None)
    return helper.make_graph([node], "branch", [], [value])


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """Nodes over tensors of one shape, each reading any before it, and the weights they share."""
    noise = np.random.default_rng(draw(st.integers(0, 2**16)))
    weights: dict[str, np.ndarray] = {
        f"w{i}": noise.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 3 for i in range(2)
    }
    weights["bias"] = noise.normal(size=WIDTH).astype(np.float32)
    shape = np.array([-1, WIDTH])
    tensors = ["x"]
    nodes = []
    for number in range(draw(st.integers(1, 9))):
        name = f"n{number}"
        one, two = draw(st.sampled_from(tensors)), draw(st.sampled_from(tensors))
        weight = draw(st.sampled_from(["w0", "w1"]))
        operator = draw(
            st.sampled_from(["MatMul", "Add", "Bias", "Tanh", "Softmax", "Reshape", "Where", "If"])
        )
        out = [f"t{number}"]
        if operator == "MatMul":
            nodes.append(helper.make_node("MatMul", [one, weight], out, name))
        elif operator == "Bias":
            nodes.append(helper.make_node("Add", [one, "bias"], out, name))
        elif operator == "Add":
            nodes.append(helper.make_node("Add", [one, two], out, name))
        elif operator == "Reshape":
            weights["shape"] = shape
            nodes.append(helper.make_node("Reshape", [one, "shape"], out, name))
        elif operator == "Where":
            nodes.append(helper.make_node("Greater", [one, two], [f"c{number}"], f"{name}c"))
            nodes.append(helper.make_node("Where", [f"c{number}", two, one], out, name))
        elif operator == "If":
            weights["yes"] = np.array(True)
            branches: dict[str, Any] = {
                "then_branch": branch(helper.make_node("Add", [one, two], [f"b{number}"])),
                "else_branch": branch(helper.make_node("Neg", [one], [f"o{number}"])),
            }
            nodes.append(helper.make_node("If", ["yes"], out, name, **branches))
        else:
            nodes.append(helper.make_node(operator, [one], out, name))
        tensors.append(f"t{number}")
    nodes.append(helper.make_node("Identity", [tensors[-1]], ["y"], "last"))
    return nodes, weights


def floats(graph: onnx.ModelProto, node: onnx.NodeProto) -> set[int]:
    types = types_of(graph)
    kinds = {types[name] for name in (*node.input, *node.output) if name}
    return kinds & {FLOAT, *LOW.values()}


@LENIENT
@given(graphs(), st.data(), st.sampled_from(["fp16", "bf16"]))
def test_kept_nodes_compute_in_fp32_and_all_others_in_the_lower_type(
    tmp_path: Path,
    made: tuple[list[onnx.NodeProto], dict[str, np.ndarray]],
    data: st.DataObject,
    precision: str,
) -> None:
    nodes, weights = made
    model = save(tmp_path, nodes, weights)
    names = [node.name for node in nodes]
    keep = data.draw(st.sets(st.sampled_from(names)))
    write(model, tmp_path / "low.onnx", precision, keep)
    graph = onnx.load_model(tmp_path / "low.onnx")
    types = types_of(graph)
    ours = [node for node in graph.graph.node if node.name in names]
    assert [node.name for node in ours] == names
    for node in ours:
        fp32 = node.name in keep or node.op_type == "If"
        assert floats(graph, node) <= {FLOAT if fp32 else LOW[precision]}, node.name
    casts = [node for node in graph.graph.node if node.name not in names]
    assert {node.op_type for node in casts} <= {"Cast"}
    # None undoes another, none is done twice.
    assert not {n for c in casts for n in c.input} & {n for c in casts for n in c.output}
    assert len({node.input[0] for node in casts}) == len(casts)
    assert types["x"] == types["y"] == FLOAT
    for tensor in graph.graph.initializer:
        users = [node for node in ours if tensor.name in node.input]
        if tensor.name in ("w0", "w1", "bias"):
            low = users and not any(node.name in keep for node in users)
            assert tensor.data_type == (LOW[precision] if low else FLOAT)
    rows = np.linspace(-1, 1, 5 * WIDTH, dtype=np.float32).reshape(5, WIDTH)
    exact = simulated(model, "fp32")({"x": rows})["y"]
    close = simulated(tmp_path / "low.onnx", precision)({"x": rows})["y"]
    if all(node.op_type != "Where" for node in nodes):  # where a comparison may fall either way
        bits = {"fp16": 11, "bf16": 8}[precision]
        assert np.abs(exact - close).max() <= 40 * 2.0**-bits * max(1.0, np.abs(exact).max())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, 32), nn.Tanh(), nn.Linear(32, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def dense(folder: Path) -> tuple[Net, Path]:
    torch.manual_seed(0)
    net = Net().eval()
    one, two = net.layers[0], net.layers[2]
    assert isinstance(one, nn.Linear)
    assert isinstance(two, nn.Linear)
    weights = {
        "w1": one.weight.detach().numpy(), "b1": one.bias.detach().numpy(),
        "w2": two.weight.detach().numpy(), "b2": two.bias.detach().numpy(),
    }  # fmt: skip
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], "one", transB=1),
        helper.make_node("Tanh", ["h"], ["a"], "tanh"),
        helper.make_node("Gemm", ["a", "w2", "b2"], ["y"], "two", transB=1),
    ]
    return net, save(folder, nodes, weights)


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.half), ("bf16", torch.bfloat16)])
def test_it_answers_as_torch_does_in_that_type(
    precision: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    net, model = dense(tmp_path)
    write(model, tmp_path / "low.onnx", precision, ())
    rows = torch.rand(64, WIDTH) * 2 - 1
    ours = simulated(tmp_path / "low.onnx", precision)({"x": rows.numpy()})["y"]
    with torch.no_grad():
        exact = net.double()(rows.double()).numpy()
        theirs = net.to(dtype)(rows.to(dtype)).double().numpy()
    floor = np.sqrt(np.square(theirs - exact).mean())
    assert 0.5 * floor < np.sqrt(np.square(ours - exact).mean()) < 1.5 * floor


def test_the_kernels_of_a_cpu_agree_with_the_simulation(tmp_path: Path) -> None:
    """In a process of its own: fp16 kernels on the CPU have crashed theirs."""
    _, model = dense(tmp_path)
    write(model, tmp_path / "low.onnx", "fp16", ())
    rows = np.linspace(-1, 1, 8 * WIDTH, dtype=np.float32).reshape(8, WIDTH)
    np.save(tmp_path / "rows.npy", rows)
    source = """
import sys, numpy, onnxruntime
settings = onnxruntime.SessionOptions()
settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
settings.intra_op_num_threads = 1
session = onnxruntime.InferenceSession("low.onnx", settings, providers=["CPUExecutionProvider"])
numpy.save("y.npy", session.run(["y"], {"x": numpy.load("rows.npy")})[0])
"""
    subprocess.run([sys.executable, "-c", source], cwd=tmp_path, check=True, timeout=120)
    ours = simulated(tmp_path / "low.onnx", "fp16")({"x": rows})["y"]
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), ours, atol=2 * 2.0**-11)


def test_a_mask_of_the_least_fp32_number_is_no_infinity_that_makes_nan(tmp_path: Path) -> None:
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w"], ["h"], "product"),
        node("Add", ["h", "mask"], ["m"], "mask"),
        node("Softmax", ["m"], ["y"], "softmax"),
    ]
    mask = np.full(WIDTH, np.finfo(np.float32).min)
    found = reasons(tmp_path, nodes, w=np.eye(WIDTH, dtype=np.float32), mask=mask)
    assert found == {"mask": "reaches 3.4e+38, over fp16's 65504", "softmax": "softmax"}
    write(tmp_path / MODEL, tmp_path / "low.onnx", "fp16", found)
    rows = np.zeros((1, WIDTH), np.float32)
    answer = simulated(tmp_path / "low.onnx", "fp16")({"x": rows})["y"]
    np.testing.assert_allclose(answer, 1 / WIDTH)


def test_convolutions_and_recurrent_nets_are_lowered_whole_in_bf16(tmp_path: Path) -> None:
    """Their bf16 came with opset 22, to which the graph is brought; fp16 leaves it where it is."""
    noise = np.random.default_rng(0)
    node = helper.make_node
    nodes = [
        node("Reshape", ["x", "shape"], ["s"], "steps"),
        node("LSTM", ["s", "w", "r"], ["h"], "lstm", hidden_size=2),
        node("Reshape", ["h", "image"], ["i"], "image"),
        node("Conv", ["i", "k"], ["c"], "conv", pads=[0, 1, 0, 1]),
        node("Reshape", ["c", "flat"], ["y"], "flat"),
    ]
    weights = {
        "w": noise.normal(size=(1, 8, 2)), "r": noise.normal(size=(1, 8, 2)),
        "k": noise.normal(size=(1, 1, 1, 3)),
    }  # fmt: skip
    shapes = {
        "shape": np.array([3, -1, 2]), "image": np.array([-1, 1, 1, WIDTH]),
        "flat": np.array([-1, WIDTH]),
    }  # fmt: skip
    model = save(tmp_path, nodes, {n: a.astype(np.float32) for n, a in weights.items()} | shapes)
    for precision, opset in (("fp16", 18), ("bf16", 22)):
        assert sensitive(model, SIGNATURE, precision) == {}
        write(model, tmp_path / "low.onnx", precision, ())
        graph = onnx.load_model(tmp_path / "low.onnx")
        assert graph.opset_import[0].version == opset
        for one in graph.graph.node:
            if one.op_type != "Cast":
                assert floats(graph, one) == {LOW[precision]}


def test_a_graph_whose_cast_was_dropped_is_refused(tmp_path: Path) -> None:
    _, model = dense(tmp_path)
    write(model, tmp_path / "low.onnx", "fp16", ["tanh"])
    graph = onnx.load_model(tmp_path / "low.onnx")
    casts = [node for node in graph.graph.node if node.op_type == "Cast"]
    assert [node.input[0] for node in casts] == ["x", "h_fp16", "a", "y_fp16"]
    for cast in casts:
        broken = onnx.ModelProto.FromString(graph.SerializeToString())
        broken.graph.node.remove(cast)
        for node in broken.graph.node:
            node.input[:] = [cast.input[0] if n == cast.output[0] else n for n in node.input]
            node.output[:] = [
                "y" if n == "y_fp16" and cast.output[0] == "y" else n for n in node.output
            ]
        if cast.output[0] == "h":  # a graph like any other, but not the one that was asked for
            (tanh,) = (node for node in broken.graph.node if node.name == "tanh")
            assert floats(broken, tanh) == {LOW["fp16"]}
            continue
        with pytest.raises(BuildFailed, match="cannot be written in fp16"):
            check(broken, "fp16")
