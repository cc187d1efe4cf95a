"""TensorRT's own builder on small graphs: files, profiles, precision of layers, and refusals."""

from __future__ import annotations

import json
from collections.abc import Collection
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from models.errors import BuildFailed, TargetUnavailable
from models.signature import Axis, Signature, TensorSpec
from pipeline.artifacts import digest_file, digest_files
from pipeline.backends import Built, require, trt, trt_build
from pipeline.backends import target as find_target
from pipeline.backends.trt_build import GRAPH, LAYERS, PLAN, profiles
from pipeline.backends.trt_library import versions
from pipeline.requested import other_than_requested
from pipeline.samples import CALIBRATION_ROWS, Samples, write_samples
from pipeline.values import MODEL, Engine

pytest.importorskip("tensorrt_rtx")

ROWS = Axis("batch", 1, 8, 64)
SIGNATURE = Signature(
    (TensorSpec("image", "float32", (ROWS, 3, 8, 8)),),
    (TensorSpec("scores", "float32", (ROWS, 10)),),
)
LOWER = ("fp16", "bf16", "int8", "fp8")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two convolutions, a product and a softmax, with rows to calibrate with beside it."""
    folder = tmp_path_factory.mktemp("model")
    noise = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(noise.normal(size=shape).astype(np.float32) / 8, name)

    node = helper.make_node
    graph = helper.make_graph(
        [
            node("Conv", ["image", "first.weight"], ["a"], name="first", pads=[1] * 4),
            node("Relu", ["a"], ["b"], name="relu"),
            node("Conv", ["b", "second.weight"], ["c"], name="second", pads=[1] * 4),
            node("GlobalAveragePool", ["c"], ["d"], name="pool"),
            node("Flatten", ["d"], ["e"], name="flatten"),
            node("Gemm", ["e", "dense.weight", "dense.bias"], ["f"], name="dense", transB=1),
            node("Softmax", ["f"], ["scores"], name="softmax", axis=-1),
        ],
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])],
        [
            weight("first.weight", 16, 3, 3, 3), weight("second.weight", 16, 16, 3, 3),
            weight("dense.weight", 10, 16), weight("dense.bias", 10),
        ],
    )  # fmt: skip
    save(graph, folder / MODEL)
    rows = noise.normal(size=(32, 3, 8, 8)).astype(np.float32)
    write_samples(Samples({"image": rows}), folder / CALIBRATION_ROWS)
    return folder / MODEL


def save(graph: onnx.GraphProto, path: Path) -> Path:
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("of.nobody", 1)]
    onnx.save_model(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def build(model: Path, out: Path, precision: str, keep: Collection[str] | None = None) -> Built:
    target = find_target(f"tensorrt-{precision}")
    if keep is None:
        keep = tuple(trt.sensitive(model, SIGNATURE, target)) if precision in LOWER else ()
    out.mkdir(exist_ok=True)
    return trt.build(model, SIGNATURE, target, out, keep=keep)


def engine(model: Path, out: Path, built: Built, precision: str, **changes: Any) -> Engine:
    target = find_target(f"tensorrt-{precision}")
    kept = tuple(trt.sensitive(model, SIGNATURE, target)) if precision in LOWER else ()
    lowered = trt.lowered(model, target) if precision in LOWER else ()
    value = Engine(
        folder=out, target=target.name, parent="", signature=SIGNATURE, options=built.options,
        built_on=built.built_on, files=digest_files(out, list(built.files)), kept=kept,
        lowered=tuple(node for node in lowered if node not in kept),
    )  # fmt: skip
    return value.model_copy(update=changes)


def complaints(value: Engine, **changes: Any) -> list[str]:
    """What the certificate would say of an engine if it ran as it was typed."""
    compiled = json.loads((value.folder / LAYERS).read_bytes())
    nodes = [{**layer, "device": "cuda"} for layer in compiled["layers"]]
    facts = {"nodes": nodes, "tf32": compiled["tf32"], **changes}
    return list(other_than_requested(find_target(value.target), value, facts))


@pytest.mark.parametrize("precision", ["fp32", "tf32", *LOWER])
def test_a_plan_is_built_as_it_was_asked_for(precision: str, model: Path, tmp_path: Path) -> None:
    built = build(model, tmp_path, precision)
    assert {path.name for path in tmp_path.iterdir()} == set(built.files) == {PLAN, GRAPH, LAYERS}
    report = built.report
    assert report["bytes"] == (tmp_path / PLAN).stat().st_size > 10_000
    assert report["sha256"] == digest_file(tmp_path / PLAN)
    assert report["library"] == versions()
    assert versions().items() <= built.built_on.items()
    assert report["tf32"] == (precision == "tf32")
    assert report["timing_cache"] is None, "without a GPU nothing is measured"
    assert [dict(p) for p in report["profiles"]] == [SIGNATURE.profile()]
    compiled = json.loads((tmp_path / LAYERS).read_bytes())
    assert compiled["declared"] == {
        spec.name: spec.declared() for spec in SIGNATURE.inputs + SIGNATURE.outputs
    }
    typed = {n: layer["precision"] for layer in compiled["layers"] for n in layer["onnx"]}
    expected = {"tf32": "fp32"}.get(precision, precision)
    assert typed["first"] == typed["second"] == expected
    assert typed["softmax"] == "fp32"
    assert complaints(engine(model, tmp_path, built, precision)) == []


def test_its_own_graph_is_all_that_another_build_takes(model: Path, tmp_path: Path) -> None:
    first = build(model, tmp_path / "first", "int8")
    (tmp_path / "again").mkdir()
    graph = tmp_path / "first" / GRAPH
    again = trt.rebuild(graph, SIGNATURE, find_target("tensorrt-int8"), tmp_path / "again")
    assert again.report["layers"] == first.report["layers"]
    for name in (GRAPH, LAYERS):
        assert (tmp_path / "again" / name).read_bytes() == graph.with_name(name).read_bytes()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_layer_that_stayed_in_fp32_and_is_not_named_is_refused(
    precision: str, model: Path, tmp_path: Path
) -> None:
    built = build(model, tmp_path, precision, keep=("second", "softmax"))
    value = engine(model, tmp_path, built, precision, kept=("softmax",))
    (said,) = complaints(value)
    words = f"node 'second' (convolution) ran in fp32, requested {precision}"
    assert said == f"effective: {words}"
    named = engine(model, tmp_path, built, precision, kept=("second", "softmax"))
    assert complaints(named) == []


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_product_that_is_not_rounded_and_not_named_is_refused(
    precision: str, model: Path, tmp_path: Path
) -> None:
    built = build(model, tmp_path, precision, keep=("second",))
    said = complaints(engine(model, tmp_path, built, precision))
    assert said == [f"effective: node 'second' did not run in {precision}, as requested"]
    lowered = ("first", "dense")
    named = engine(model, tmp_path, built, precision, kept=("second",), lowered=lowered)
    assert complaints(named) == []


def test_every_layer_of_a_recurrent_node_is_held_to_its_precision(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    weights = {"w": (1, 32, 4), "r": (1, 32, 8), "b": (1, 64)}
    graph = helper.make_graph(
        [helper.make_node("LSTM", ["x", *weights], ["y"], name="lstm", hidden_size=8)],
        "recurrent",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [16, "batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [16, 1, "batch", 8])],
        [
            numpy_helper.from_array(noise.normal(size=shape).astype(np.float32), name)
            for name, shape in weights.items()
        ],
    )
    path, target = save(graph, tmp_path / MODEL), find_target("tensorrt-fp16")
    wide = Axis("rows", 1, 8, 64)
    signature = Signature(
        (TensorSpec("x", "float32", (16, wide, 4)),),
        (TensorSpec("y", "float32", (16, 1, wide, 8)),),
    )
    for kept, others in (((), 0), (("lstm",), 10)):
        out = tmp_path / f"keeps {len(kept)}"
        out.mkdir()
        built = trt.build(path, signature, target, out, keep=kept)
        value = Engine(
            folder=out, target=target.name, parent="", signature=signature, options={},
            built_on=built.built_on, files={}, kept=kept,
        )  # fmt: skip
        assert complaints(value) == []
        unnamed = complaints(value.model_copy(update={"kept": ()}))
        assert len(unnamed) >= others
        assert any("(matrix_multiply) ran in fp32" in said for said in unnamed) == bool(kept)


def test_an_fp32_plan_is_nothing_else(model: Path, tmp_path: Path) -> None:
    built = build(model, tmp_path, "fp32")
    for precision, words in {
        "fp16": "ran in fp32, requested fp16", "int8": "no node ran in int8",
        "tf32": "TF32 is off, requested tf32",
    }.items():  # fmt: skip
        value = engine(model, tmp_path, built, precision)
        assert any(words in said for said in complaints(value)), precision
    assert complaints(engine(model, tmp_path, built, "fp32"), tf32=True) == [
        "effective: TF32 is on, requested fp32"
    ]


def test_layers_without_names_prove_nothing(model: Path, tmp_path: Path) -> None:
    value = engine(model, tmp_path, build(model, tmp_path, "fp16"), "fp16")
    node = {"name": "fused", "operator": "x", "device": "cuda", "precision": "fp32", "onnx": []}
    assert complaints(value, nodes=[node]) == [
        "effective: nothing that ran says which node of the graph it was made of"
    ]


@pytest.mark.parametrize(
    ("operator", "domain"), [("Det", ""), ("NonZero", ""), ("Invented", "of.nobody")]
)
def test_what_the_parser_refuses_names_the_node(operator: str, domain: str, tmp_path: Path) -> None:
    kind = TensorProto.INT64 if operator == "NonZero" else TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["image"], ["a"], name="first"),
            helper.make_node(operator, ["a"], ["scores"], name="second", domain=domain),
        ],
        "refused",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("scores", kind, None)],
    )
    path = save(graph, tmp_path / MODEL)
    with pytest.raises(BuildFailed, match=rf"refuses node 'second' \({operator}\): [A-Z_]+") as one:
        build(path, tmp_path / "out", "fp32")
    assert one.value.fix
    assert not (tmp_path / "out" / PLAN).exists()


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / MODEL).write_bytes(b"no graph")
    with pytest.raises(BuildFailed, match="TensorRT"):
        build(tmp_path / MODEL, tmp_path / "out", "fp32")


def test_what_the_compiler_refuses_is_told(model: Path, tmp_path: Path) -> None:
    other = Signature(
        (TensorSpec("image", "float32", (ROWS, 4, 8, 8)),), SIGNATURE.outputs
    )  # the graph has three channels
    with pytest.raises(BuildFailed, match=r"cannot compile engine.onnx: .*image"):
        trt.build(model, other, find_target("tensorrt-fp32"), tmp_path)


axes = st.lists(st.integers(1, 64), min_size=3, max_size=3).map(sorted)


@given(st.lists(axes, min_size=1, max_size=3))
@settings(max_examples=50)
def test_the_first_profile_admits_all_and_a_second_is_for_large_inputs(
    sizes: list[list[int]],
) -> None:
    shape = tuple(Axis(f"axis{n}", *bounds) for n, bounds in enumerate(sizes))
    signature = Signature((TensorSpec("x", "float32", shape),), (TensorSpec("y", "float32", (3,)),))
    whole, *large = profiles(signature)
    assert whole == signature.profile()
    usual, most = (prod(whole["x"][bound]) for bound in ("opt", "max"))
    assert len(large) == (most > 8 * usual)
    for profile in large:
        assert profile["x"]["min"] == whole["x"]["opt"]
        assert profile["x"]["opt"] == profile["x"]["max"] == whole["x"]["max"]


def test_two_profiles_are_built_into_one_plan(model: Path, tmp_path: Path) -> None:
    rows = Axis("batch", 1, 2, 64)
    wide = Signature(
        (TensorSpec("image", "float32", (rows, 3, 8, 8)),),
        (TensorSpec("scores", "float32", (rows, 10)),),
    )
    built = trt.build(model, wide, find_target("tensorrt-fp32"), tmp_path)
    assert [p["image"]["opt"][0] for p in built.report["profiles"]] == [2, 64]


def test_a_profile_that_the_compiler_fails_at_is_left_out_and_told(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_plan = trt_build._compile

    def fails_at_two(*arguments: Any) -> dict[str, Any]:
        if len(arguments[-1]) > 1:
            raise BuildFailed("TensorRT cannot compile two")
        return compile_plan(*arguments)

    monkeypatch.setattr(trt_build, "_compile", fails_at_two)
    rows = Axis("batch", 1, 2, 64)
    wide = Signature(
        (TensorSpec("image", "float32", (rows, 3, 8, 8)),),
        (TensorSpec("scores", "float32", (rows, 10)),),
    )
    report = trt.build(model, wide, find_target("tensorrt-fp32"), tmp_path).report
    assert [dict(p) for p in report["profiles"]] == [wide.profile()]
    assert report["refused_profiles"] == "TensorRT cannot compile two"
    monkeypatch.setattr(trt_build, "_WIDE", 1 << 30)
    again = trt.build(model, wide, find_target("tensorrt-fp32"), tmp_path).report
    assert "refused_profiles" not in again


@pytest.mark.parametrize("operator", ["ConvTranspose", "GRU"])
def test_what_tensorrt_takes_in_no_bf16_is_kept_in_fp32_and_named(
    operator: str, tmp_path: Path
) -> None:
    """Its parser refuses such a GRU, its compiler such a transposed convolution."""

    def sizes(shape: tuple[int | Axis, ...]) -> list[int | str]:
        return ["batch", *(size.name if isinstance(size, Axis) else size for size in shape)]

    given: tuple[int | Axis, ...]
    answered: tuple[int | Axis, ...]
    noise, node = np.random.default_rng(0), helper.make_node
    if operator == "GRU":
        steps = Axis("time", 1, 6, 12)
        given, answered = (steps, 4), (steps, 1, 8)
        nodes = [
            node("MatMul", ["x", "m"], ["wide"], name="lowered"),
            node("Transpose", ["wide"], ["steps"], name="turn", perm=[1, 0, 2]),
            node(
                "GRU",
                ["steps", "w", "r", "b"],
                ["said"],
                name="kept",
                hidden_size=8,
                linear_before_reset=1,
            ),
            node("Transpose", ["said"], ["y"], name="back", perm=[2, 0, 1, 3]),
        ]
        weights = {"m": (4, 4), "w": (1, 24, 4), "r": (1, 24, 8), "b": (1, 48)}
    else:
        given, answered = (3, 4, 4), (2, 8, 8)
        nodes = [
            node("Conv", ["x", "m"], ["wide"], name="lowered"),
            node("ConvTranspose", ["wide", "w"], ["y"], name="kept", strides=[2, 2]),
        ]
        weights = {"m": (3, 3, 1, 1), "w": (3, 2, 2, 2)}
    graph = helper.make_graph(
        nodes, "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes(given))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, sizes(answered))],
        [
            numpy_helper.from_array(noise.normal(size=size).astype(np.float32), name)
            for name, size in weights.items()
        ],
    )  # fmt: skip
    usual = [size.opt if isinstance(size, Axis) else size for size in given]
    rows = noise.normal(size=(8, *usual)).astype(np.float32)
    write_samples(Samples({"x": rows}), tmp_path / CALIBRATION_ROWS)
    signature = Signature(
        (TensorSpec("x", "float32", (ROWS, *given)),),
        (TensorSpec("y", "float32", (ROWS, *answered)),),
    )
    model, target = save(graph, tmp_path / MODEL), find_target("tensorrt-bf16")
    kept = trt.sensitive(model, signature, target)
    assert kept == {"kept": f"TensorRT takes no {operator} in bf16"}
    out = tmp_path / "out"
    out.mkdir()
    built = trt.build(model, signature, target, out, keep=tuple(kept))
    value = Engine(
        folder=out, target=target.name, parent="", signature=signature, options={},
        built_on=built.built_on, files={}, kept=tuple(kept),
    )  # fmt: skip
    assert complaints(value) == []
    assert complaints(value.model_copy(update={"kept": ()}))
    typed = {n: layer["precision"] for layer in built.report["layers"] for n in layer["onnx"]}
    assert typed["lowered"] == "bf16"


def test_the_compiler_says_how_far_it_is(model: Path, tmp_path: Path) -> None:
    heard: list[tuple[int, int, str]] = []
    trt.build(
        model, SIGNATURE, find_target("tensorrt-fp32"), tmp_path,
        progress=lambda *said: heard.append(said),
    )  # fmt: skip
    assert heard
    assert all(0 < done <= total and text for done, total, text in heard)


def test_a_machine_without_a_gpu_builds_and_does_not_run() -> None:
    if trt.host(find_target("tensorrt-fp32")).get("gpu"):
        pytest.skip("there is a GPU here")
    for precision in ("fp32", *LOWER):
        target = find_target(f"tensorrt-{precision}")
        require(target, to_run=False)
        with pytest.raises(TargetUnavailable, match=r"cannot run .*NVIDIA"):
            require(target)
