"""ONNX Runtime on CUDA, as far as it goes without a GPU: it is built, and never falls back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.errors import BuildFailed, TargetUnavailable
from models.signature import Axis, Signature, TensorSpec
from pipeline.artifacts import digest_files
from pipeline.backends import Built, ort, ort_cuda, require, target

FP32 = target("ort-cuda-fp32")
FP16 = target("ort-cuda-fp16")
SIGNATURE = Signature(
    inputs=(TensorSpec("x", "float32", (Axis("batch", 1, 4, 8), 6)),),
    outputs=(TensorSpec("y", "float32", (Axis("batch", 1, 4, 8), 3, 2)),),
)

without_cuda = pytest.mark.skipif(
    not ort_cuda.missing(), reason="CUDA runs here; tests/gpu speaks of that"
)


def small_graph(shaped: bool = True) -> onnx.ModelProto:
    """A product and a Softmax, then a Reshape to [batch, 3, 2], its shape computed or written."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((6, 6)).astype(np.float32),
        "first": np.array([0]), "rest": np.array([3, 2]), "fixed": np.array([-1, 3, 2]),
    }  # fmt: skip
    computed = [
        helper.make_node("Shape", ["s"], ["shape"], name="shape"),
        helper.make_node("Gather", ["shape", "first"], ["batch"], name="gather"),
        helper.make_node("Concat", ["batch", "rest"], ["wanted"], name="concat", axis=0),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="product"),
        helper.make_node("Softmax", ["a"], ["s"], name="softmax"),
        *(computed if shaped else []),
        helper.make_node("Reshape", ["s", "wanted" if shaped else "fixed"], ["y"], name="reshape"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g",
        [value("x", TensorProto.FLOAT, ["batch", 6])],
        [value("y", TensorProto.FLOAT, ["batch", 3, 2])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def build(folder: Path, graph: onnx.ModelProto, wanted: Any = FP32, **more: Any) -> Built:
    onnx.save(graph, folder / "model.onnx")
    out = folder / "engine"
    out.mkdir()
    return ort.build(folder / "model.onnx", SIGNATURE, wanted, out, **more)


def on_the_cpu(graph: onnx.ModelProto) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    ort_cuda.refuse(settings, {"shapes_on_cpu": ["some"]})
    return onnxruntime.InferenceSession(
        graph.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )


def test_an_engine_is_built_without_a_gpu_from_the_graph_as_it_is(tmp_path: Path) -> None:
    built = build(tmp_path, small_graph())
    (name,) = built.files
    assert (tmp_path / "engine" / name).read_bytes() == (tmp_path / "model.onnx").read_bytes()
    assert built.options["providers"] == ["CUDAExecutionProvider"]
    assert built.options["provider_options"]["use_tf32"] == "0"
    assert built.options["shapes_on_cpu"] == ["shape", "gather", "concat"]
    assert ort.missing(FP32, to_run=False) == ()


def test_an_engine_is_built_again_from_its_own_graph(tmp_path: Path) -> None:
    built = build(tmp_path, small_graph(), FP16)
    again = tmp_path / "again"
    again.mkdir()
    other = ort.rebuild(tmp_path / "engine" / built.files[0], SIGNATURE, FP16, again)
    assert (other.files, other.options) == (built.files, built.options)
    (name,) = built.files
    assert (again / name).read_bytes() == (tmp_path / "engine" / name).read_bytes()


def test_below_fp32_the_graph_holds_the_precision_and_what_is_kept(tmp_path: Path) -> None:
    built = build(tmp_path, small_graph(), FP16, keep=["softmax"])
    graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "engine" / built.files[0]))
    dtypes = {value.name: value.type.tensor_type.elem_type for value in graph.graph.value_info}
    made = {node.name: dtypes.get(node.output[0]) for node in graph.graph.node}
    assert made["product"] == TensorProto.FLOAT16
    assert made["softmax"] == TensorProto.FLOAT
    assert set(ort.lowered(tmp_path / "model.onnx", FP16)) >= {"product", "softmax"}
    assert built.options["provider_options"]["use_tf32"] == "0"


@without_cuda
def test_where_cuda_is_not_an_engine_is_not_opened_and_one_line_says_why(tmp_path: Path) -> None:
    built = build(tmp_path, small_graph())
    files = digest_files(tmp_path / "engine", list(built.files))
    with pytest.raises(TargetUnavailable) as refused:
        ort.open(tmp_path / "engine", files, built.options)
    with pytest.raises(TargetUnavailable):
        ort.effective(tmp_path / "engine", files, built.options, {"x": np.ones((1, 6), "f4")})
    assert "\n" not in str(refused.value)
    assert ort.missing(FP32)[0] in str(refused.value)
    with pytest.raises(TargetUnavailable, match="cannot run 'ort-cuda-fp32'"):
        require(FP32)


@without_cuda
def test_each_missing_piece_is_named_with_what_gets_it() -> None:
    package, driver, *rest = ort.missing(FP32)
    assert rest == []
    assert package == (
        f"onnxruntime {onnxruntime.__version__} is here, which has no CUDA, and excludes "
        "onnxruntime-gpu: pip uninstall --yes onnxruntime && "
        f"pip install 'onnxruntime-gpu[cuda,cudnn]{ort_cuda.declared()['onnxruntime-gpu']}'"
    )
    assert "NVIDIA's driver" in driver


def test_both_packages_at_once_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever was installed last wrote its files over the other's."""
    monkeypatch.setattr(ort_cuda, "_installed", lambda name: True)
    line = ort_cuda.missing()[0]
    assert line.startswith("onnxruntime and onnxruntime-gpu are here and write the same files: ")
    assert "pip uninstall --yes onnxruntime onnxruntime-gpu && pip install" in line


@without_cuda
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_onnx_runtime_itself_refuses_the_cpu() -> None:
    """The second lock: without it the same call gives a session on the CPU."""
    graph = small_graph(shaped=False).SerializeToString()
    silent = onnxruntime.InferenceSession(graph, providers=[ort_cuda.PROVIDER])
    assert silent.get_providers() == ["CPUExecutionProvider"]
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    ort_cuda.refuse(settings, {"shapes_on_cpu": []})
    with pytest.raises(Exception, match="fallback to CPU EP has been explicitly disabled"):
        onnxruntime.InferenceSession(graph, settings, providers=[ort_cuda.PROVIDER])


def test_a_session_without_the_provider_is_refused() -> None:
    """The third lock: what the open session says of itself."""
    with pytest.raises(BuildFailed, match=r"without CUDA: got CPUExecutionProvider, expected CUDA"):
        ort_cuda.check(on_the_cpu(small_graph()), {"shapes_on_cpu": []})


def test_the_assignment_has_the_provider_of_every_node() -> None:
    graph = small_graph(shaped=False)
    assert ort_cuda.assignment(on_the_cpu(graph)) == [
        (node.name, "CPUExecutionProvider") for node in graph.graph.node
    ]


class Played:
    """A session that says it has CUDA; its nodes and their places are a real session's."""

    def __init__(self, graph: onnx.ModelProto, tf32: str = "0") -> None:
        self.get_provider_graph_assignment_info = on_the_cpu(
            graph
        ).get_provider_graph_assignment_info
        self._tf32 = tf32

    def get_providers(self) -> list[str]:
        return [ort_cuda.PROVIDER, "CPUExecutionProvider"]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {ort_cuda.PROVIDER: {"use_tf32": self._tf32}}


def test_nodes_on_the_cpu_are_refused_by_name_but_those_of_shapes() -> None:
    played: Any = Played(small_graph())
    names = [name for name, _ in ort_cuda.assignment(played)]
    with pytest.raises(BuildFailed, match=r"nodes would not run on CUDA: got .*'product' on CPU"):
        ort_cuda.check(played, {"shapes_on_cpu": ["shape", "gather", "concat"]})
    ort_cuda.check(played, {"shapes_on_cpu": names})
    with pytest.raises(BuildFailed, match=f"^1 of {len(names)} nodes"):
        ort_cuda.check(played, {"shapes_on_cpu": names[1:]})


def test_facts_mark_shapes_count_what_was_assigned_and_read_tf32_from_the_session(
    tmp_path: Path,
) -> None:
    nodes = [{"name": "product", "device": "cuda"}, {"name": "gather", "device": "cpu"}]
    graph = tmp_path / "graph.onnx"
    onnx.save(small_graph(), graph)
    for tf32 in (False, True):
        played: Any = Played(small_graph(), str(int(tf32)))
        facts = ort_cuda.facts(played, nodes, {"shapes_on_cpu": ["gather"]}, graph, graph)
        assert facts["tf32"] is tf32
        assert facts["nodes"] == [
            {"name": "product", "device": "cuda", "onnx": ["product"]},
            {"name": "gather", "device": "cpu", "onnx": ["gather"], "shape": True},
        ]
        assert sum(facts["assigned"].values()) == len(ort_cuda.assignment(played))


def test_a_fused_node_is_made_of_the_nodes_that_went_into_it(tmp_path: Path) -> None:
    """ONNX Runtime's own fusions: a Gelu of five nodes, and a product with its addition."""
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w"], ["a"], name="product"),
        node("Add", ["a", "b"], ["c"], name="bias"),
        node("Div", ["c", "root"], ["d"], name="div"),
        node("Erf", ["d"], ["e"], name="erf"),
        node("Add", ["e", "one"], ["f"], name="plus"),
        node("Mul", ["c", "f"], ["g"], name="times"),
        node("Mul", ["g", "half"], ["h"], name="half"),
        node("Softmax", ["h"], ["y"], name="softmax"),
    ]
    numbers = {"root": np.sqrt(2), "one": 1.0, "half": 0.5, "w": np.eye(6), "b": np.ones(6)}
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g",
        [value("x", TensorProto.FLOAT, ["n", 6])], [value("y", TensorProto.FLOAT, ["n", 6])],
        [numpy_helper.from_array(np.asarray(a, np.float32), n) for n, a in numbers.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    after = onnx.load(tmp_path / "optimised.onnx").graph
    assert len(after.node) < len(nodes)
    found = ort_cuda.made_of(model.graph, after)
    assert found.keys() == {node.name for node in after.node}
    # Each node of the graph is in one of the optimised, and where it was all of a kind stays.
    assert sorted(name for some in found.values() for name in some) == sorted(n.name for n in nodes)
    assert found["softmax"] == ["softmax"]
    (gelu,) = [node.name for node in after.node if "Gelu" in node.op_type]
    assert {"div", "erf", "plus", "times", "half"} <= set(found[gelu])


def test_nodes_of_shapes_answer_the_same_whatever_the_values_are() -> None:
    """What is named may run on the CPU because no value of an input gets there."""
    graph = shapes_and_values()
    named = ort_cuda.shape_nodes(graph.graph)
    assert named == ["shape", "size", "gather", "cast", "sqrt", "range", "fill", "some"]
    graph.graph.output.extend(
        onnx.ValueInfoProto(name=node.output[0])
        for node in graph.graph.node
        if node.op_type != "If"
    )
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    outputs = [output.name for output in session.get_outputs()]
    ones, twos = (
        {n: np.asarray(a) for n, a in zip(outputs, session.run(None, inputs), strict=True)}
        for inputs in (
            {"x": np.full((2, 3), 1, "f4"), "ids": np.array([0, 0])},
            {"x": np.full((2, 3), 2, "f4"), "ids": np.array([1, 1])},
        )
    )
    for node in graph.graph.node:
        if node.op_type != "If":
            same = np.array_equal(ones[node.output[0]], twos[node.output[0]])
            assert same == (node.name in named), node.name


def test_a_name_that_is_not_of_one_node_alone_allows_nothing() -> None:
    graph = small_graph()
    for node in graph.graph.node:
        if node.name in ("gather", "softmax"):
            node.name = "same"
        elif node.name in ("concat", "product"):
            node.name = ""
    assert ort_cuda.shape_nodes(graph.graph) == ["shape"]


def shapes_and_values() -> onnx.ModelProto:
    """Shapes that become numbers and a mask, beside values that look like them."""
    node = helper.make_node
    body = helper.make_graph(
        [node("Identity", ["x"], ["inner"], name="inner")], "body", [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )  # fmt: skip
    nodes = [
        node("Shape", ["x"], ["shape"], name="shape"),
        node("Size", ["ids"], ["size"], name="size"),
        node("Gather", ["shape", "zero"], ["rows"], name="gather", axis=0),
        node("Cast", ["rows"], ["number"], name="cast", to=TensorProto.FLOAT),
        node("Sqrt", ["number"], ["root"], name="sqrt"),
        node("Range", ["zero", "rows", "one"], ["places"], name="range"),
        node("ConstantOfShape", ["shape"], ["state"], name="fill"),
        node("Gather", ["table", "ids"], ["embedded"], name="embed", axis=0),
        node("Greater", ["ids", "zero"], ["mask"], name="mask"),
        node("Mul", ["x", "root"], ["scaled"], name="scale"),
        node("Greater", ["rows", "zero"], ["some"], name="some"),
        node("If", ["some"], ["y"], name="if", then_branch=body, else_branch=body),
    ]
    weights = {
        "zero": np.array(0), "one": np.array(1), "table": np.eye(2, dtype=np.float32)
    }  # fmt: skip
    return helper.make_model(
        helper.make_graph(
            nodes, "g",
            [
                helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3]),
                helper.make_tensor_value_info("ids", TensorProto.INT64, ["m"]),
            ],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(array, name) for name, array in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)], ir_version=9,
    )  # fmt: skip


def test_ways_begin_with_the_options_and_differ_in_one() -> None:
    options = {"intra_op_threads": 1, **ort_cuda.OPTIONS, "shapes_on_cpu": []}
    first, *others = ort.ways(options).values()
    assert first == options
    assert others
    for other in others:
        searched = other["provider_options"]["cudnn_conv_algo_search"]
        assert searched != options["provider_options"]["cudnn_conv_algo_search"]
        assert {**other, "provider_options": options["provider_options"]} == options
