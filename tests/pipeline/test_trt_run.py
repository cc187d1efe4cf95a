"""Plans that run, on doubles of TensorRT and of its device: answers, buffers, failures, freeing."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from models.errors import BadInput, BuildFailed, ServingFailed, TamperedFile
from models.signature import Arrays
from pipeline.artifacts import digest_files, write_json
from pipeline.backends import trt_run
from pipeline.backends.trt_lane import Lane
from pipeline.backends.trt_run import LAYERS, PLAN, PlanSession, effective, merge, open_plan
from tests.pipeline.device_double import HostDevice
from tests.pipeline.engine_double import Log, make_library, make_plan, open_graph

RANDOM = np.random.default_rng(0)
WIDE = {"x": [(0, 3), (4, 3), (12, 3)], "k": [(0,), (4,), (12,)]}
NARROW = {"x": [(1, 3), (2, 3), (4, 3)], "k": [(1,), (2,), (4,)]}
LONG = {"x": [(8, 3), (20, 3), (20, 3)], "k": [(8,), (20,), (20,)]}


def model(nodes: list[onnx.NodeProto], outputs: dict[str, tuple[int, list[Any]]]) -> bytes:
    graph = helper.make_graph(
        nodes, "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("k", TensorProto.INT64, ["batch"]),
        ],
        [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in outputs.items()],
        [helper.make_tensor("w", TensorProto.FLOAT, [3, 2], RANDOM.normal(size=6))],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return made.SerializeToString()


GRAPH = model(
    [
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "w"], ["y"], "product"),
        helper.make_node("Greater", ["k", "k"], ["b"], "compare"),
    ],
    {"y": (TensorProto.FLOAT, ["batch", 2]), "b": (TensorProto.BOOL, ["batch"])},
)
# Of k, the places that are not zero: how many there are, only the data say.
DEPENDENT = model(
    [
        helper.make_node("MatMul", ["x", "w"], ["y"], "product"),
        helper.make_node("NonZero", ["k"], ["places"], "places"),
    ],
    {"y": (TensorProto.FLOAT, ["batch", 2]), "places": (TensorProto.INT64, [1, "found"])},
)


def ask(rows: int, graph: bytes = GRAPH) -> tuple[Arrays, Arrays]:
    """Inputs of that many rows, and what the graph answers."""
    inputs = {
        "x": RANDOM.normal(size=(rows, 3)).astype(np.float32),
        "k": RANDOM.integers(0, 2, rows),
    }
    session = open_graph(graph)
    names = [output.name for output in session.get_outputs()]
    return inputs, dict(zip(names, map(np.asarray, session.run(names, inputs)), strict=True))


def check(session: PlanSession, rows: int, graph: bytes = GRAPH) -> Arrays:
    inputs, expected = ask(rows, graph)
    answers = session.run(inputs)
    assert answers.keys() == expected.keys()
    for name, answer in answers.items():
        assert answer.dtype == expected[name].dtype
        np.testing.assert_array_equal(answer, expected[name])
    return answers


@contextmanager
def opened(
    *profiles: Any, graph: bytes = GRAPH, device: HostDevice | None = None, dependent: Any = (),
    **options: Any,
) -> Iterator[tuple[PlanSession, HostDevice]]:  # fmt: skip
    device = device or HostDevice()
    plan = make_plan(graph, profiles or (WIDE,), dependent)
    with closing(PlanSession(plan, make_library(device, []), Log(), device, options)) as session:
        yield session, device
    assert device.held == 0


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.integers(0, 20), min_size=1, max_size=12),
    graphs=st.booleans(),
    contexts=st.integers(1, 3),
)
def test_every_call_answers_as_the_graph_does(rows: list[int], graphs: bool, contexts: int) -> None:
    device = HostDevice(graph_cost=0.5)
    with opened(WIDE, LONG, NARROW, device=device, cuda_graphs=graphs, contexts=contexts) as (
        session, device,
    ):  # fmt: skip
        made = {kind: device.made[kind] for kind in ("blocks", "pinned")}
        kept = [(answers, {n: a.copy() for n, a in answers.items()}) for answers in
                (check(session, count) for count in rows)]  # fmt: skip
        for answers, copies in kept:  # nothing that was answered is overwritten by later calls
            for name in answers:
                np.testing.assert_array_equal(answers[name], copies[name])
        assert made == {kind: device.made[kind] for kind in made}  # buffers are made once


def test_threads_share_an_engine_through_its_contexts() -> None:
    with opened(cuda_graphs=True, device=HostDevice(graph_cost=0.1)) as (session, _):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda rows: check(session, rows), [1, 2, 3, 4, 12] * 20))
        assert session.facts["contexts"] == 2


def test_the_tightest_profile_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(WIDE, LONG, NARROW) as (session, _):
        taken: list[int] = []
        for lane in session._lanes:
            run = lane.run
            monkeypatch.setattr(
                lane, "run", lambda a, s, p, run=run: (taken.append(p.index), run(a, s, p))[1]
            )
        for rows in (0, 1, 4, 5, 12, 13, 20):
            check(session, rows)
        assert taken == [0, 2, 2, 0, 0, 1, 1]
        monkeypatch.undo()


def test_what_no_profile_admits_is_a_bad_input() -> None:
    with opened(NARROW, LONG) as (session, device):
        before = dict(device.made)
        refused = {
            5: "input 'x' is out of the engine's range: got [5, 3], "
            "expected [1, 3] to [4, 3] or [8, 3] to [20, 3]",
            0: "input 'x' is out of the engine's range: got [0, 3], "
            "expected [1, 3] to [4, 3] or [8, 3] to [20, 3]",
        }
        for rows, said in refused.items():
            with pytest.raises(BadInput) as error:
                session.run(ask(rows)[0])
            assert str(error.value) == said
        good = ask(4)[0]
        for bad, said in (
            (good | {"x": np.zeros(3, np.float32)}, r"got \[3\], expected \[1, 3\] to"),
            (good | {"x": good["x"].astype(np.float64)}, "dtype: got float64, expected float32"),
            ({"x": good["x"]}, r"got \['x'\], expected \['k', 'x'\]"),
            (good | {"z": good["k"]}, "'z'"),
            (good | {"k": np.zeros(8, np.int64)}, r"together: got x \[4, 3\], k \[8\]"),
        ):
            with pytest.raises(BadInput, match=said):
                session.run(bad)
        assert device.made == before
        check(session, 4)


def test_outputs_whose_shape_the_data_decide(caplog: pytest.LogCaptureFixture) -> None:
    with opened(graph=DEPENDENT, dependent=["places"], contexts=1, cuda_graphs=True) as (
        session, device,
    ):  # fmt: skip
        (record,) = caplog.records
        assert record.getMessage() == "no CUDA graphs: the data decide the shape of places"
        assert session.facts["graphs"]["why_not"]
        inputs, _ = ask(12, DEPENDENT)
        for found in (0, 7, 3, 12, 1):
            inputs["k"] = np.arange(12) < found
            inputs["k"] = inputs["k"].astype(np.int64)
            assert session.run(inputs)["places"].tolist() == [list(range(found))]
        made = device.made["blocks"]
        for _ in range(5):
            check(session, 12, DEPENDENT)
        assert device.made["blocks"] == made  # it only ever grows
        assert len(caplog.records) == 1


def test_no_memory_for_an_output_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with opened(graph=DEPENDENT, dependent=["places"], contexts=1) as (session, device):
        inputs, _ = ask(12, DEPENDENT)
        inputs["k"][:] = 1
        device.capacity -= device.free_bytes()
        with pytest.raises(ServingFailed, match="did not run the engine: no memory for places"):
            session.run(inputs)
        assert "out of memory" in caplog.text
        device.capacity += 1 << 20
        np.testing.assert_array_equal(session.run(inputs)["places"], [range(12)])


def test_a_device_that_fails_is_one_line() -> None:
    with opened() as (session, device):
        device.lost = True
        with pytest.raises(ServingFailed, match="cudaErrorDeviceUnavailable"):
            session.run(ask(4)[0])
        device.lost = False
        check(session, 4)


def test_an_engine_that_does_not_run_says_what_tensorrt_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with opened(contexts=1) as (session, _):
        (lane,) = session._lanes
        context = lane._contexts[0]
        for name, answer, said in (
            ("execute_async_v3", lambda stream: context._fail("Cask\nerror"), "engine: Cask error"),
            ("infer_shapes", lambda: ["k"], "cannot infer shapes without k"),
            ("set_input_shape", lambda name, shape: False, r"take 'x' of \[2, 3\]"),
        ):  # fmt: skip
            with monkeypatch.context() as patch:
                patch.setattr(context, name, answer)
                with pytest.raises(ServingFailed, match=said):
                    session.run(ask(2)[0])
            check(session, 2)
            check(session, 4)
        with monkeypatch.context() as patch:
            patch.setattr(context, "execute_async_v3", lambda stream: False)
            with pytest.raises(ServingFailed):
                session.run(ask(2)[0])
        # Closing finds nothing of a call that failed under way.


@pytest.mark.parametrize("short", [0, 900, 1100, 2000, 2690])
def test_an_opening_that_fails_leaves_nothing(short: int) -> None:
    device = HostDevice(capacity=short)
    with pytest.raises(ServingFailed, match="out of memory"):
        PlanSession(make_plan(GRAPH, [WIDE]), make_library(device, []), Log(), device, {})
    assert device.held == 0


def test_a_plan_that_is_none_is_refused() -> None:
    device = HostDevice()
    with pytest.raises(BuildFailed, match=r"cannot open engine\.plan: Serialization assertion"):
        PlanSession(b"none", make_library(device, []), Log(), device, {})
    assert device.held == 0


def test_a_plan_is_opened_by_its_digest_alone(tmp_path: Path) -> None:
    plan = tmp_path / PLAN
    plan.write_bytes(make_plan(GRAPH, [WIDE]))
    files = digest_files(tmp_path, [PLAN])
    plan.write_bytes(plan.read_bytes() + b" ")
    with pytest.raises(TamperedFile, match="is not the file that was recorded"):
        open_plan(tmp_path, files, {})
    with pytest.raises(TamperedFile, match="no recorded sha256"):
        open_plan(tmp_path, {}, {})


def test_closing_waits_for_calls_and_refuses_later_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with opened(contexts=1) as (session, device):
        (lane,) = session._lanes
        inside, leave = threading.Event(), threading.Event()

        def slow(*arguments: Any) -> Arrays:
            inside.set()
            leave.wait(10)
            return Lane.run(lane, *arguments)

        monkeypatch.setattr(lane, "run", slow)
        with ThreadPoolExecutor(2) as pool:
            call = pool.submit(session.run, ask(3)[0])
            inside.wait(10)
            end = pool.submit(session.close)
            assert not end.done()
            leave.set()
            assert call.result(10)["y"].shape == (3, 2)
            end.result(10)
        assert device.held == 0
        for _ in range(2):
            with pytest.raises(ServingFailed, match="the engine is closed"):
                session.run(ask(3)[0])
        session.close()


def test_a_session_that_nobody_holds_frees_all() -> None:
    for close in (False, True):
        device, freed = HostDevice(graph_cost=1), list[str]()
        trt = make_library(device, freed)
        session = PlanSession(make_plan(GRAPH, [WIDE]), trt, Log(), device, {"cuda_graphs": True})
        for _ in range(3):
            check(session, 3)
        assert device.held
        if close:
            session.close()
        else:
            del session
        assert device.held == 0
        gc.collect()
        assert set(freed[:-2]) == {"context"}
        assert freed[-2:] == ["engine", "runtime"]


def test_facts_are_measured() -> None:
    with opened(device=HostDevice(graph_cost=1), contexts=2) as (session, device):
        facts = session.facts
        # Of two contexts: between layers, x, k, y and b at twelve rows.
        assert facts["buffer_bytes"] == 2 * (1000 + 12 * (3 * 4 + 8 + 2 * 4 + 1))
        assert facts["device_bytes"] == device.capacity - device.free_bytes()
        assert facts["open_seconds"] >= facts["warm_up_seconds"] > 0
        assert (facts["contexts"], facts["profiles"]) == (2, 1)


def test_shapes_that_are_values_are_refused() -> None:
    device = HostDevice()
    head, graph = make_plan(GRAPH, [WIDE]).split(b"\n", 1)
    plan = head[:-1] + b', "host": ["k"]}\n' + graph
    with pytest.raises(BuildFailed, match="values of 'k' are shapes"):
        PlanSession(plan, make_library(device, []), Log(), device, {})
    assert device.held == 0


def test_layers_are_as_typed_unless_the_engine_says_otherwise() -> None:
    def typed(name: str, precision: str, *onnx: str) -> dict[str, Any]:
        return {"name": name, "operator": "convolution", "precision": precision, "onnx": [*onnx]}

    def told(nodes: list[str], takes: str, gives: str) -> dict[str, Any]:
        return {
            "Name": "+".join(nodes) or "copy", "LayerType": "Reformat" if not nodes else "Conv",
            "Inputs": [{"Format/Datatype": takes}], "Outputs": [{"Format/Datatype": gives}],
            "Metadata": "\x1e".join(f"[ONNX Layer: {node}]" for node in nodes),
        }  # fmt: skip

    half, whole = "Channel major FP16 format where C % 8 == 0", "Row major linear FP32"
    compiled = [typed(name, "fp16", name) for name in "abcd"] + [typed("e", "int8", "e")]
    nodes = merge(
        compiled,
        [
            told(["a"], half, half), told(["b"], "Float", whole), told(["c", "d"], whole, whole),
            told(["e"], "Int8", whole), told([], whole, half),
            told(["f"], "N/A due to dynamic shapes", whole),
        ],
    )  # fmt: skip
    got = {node["name"]: node["precision"] for node in nodes}
    assert got == {"a": "fp16", "b": "fp32", "c": "fp16", "d": "fp16", "e": "int8", "copy": "fp16"}
    assert {node["device"] for node in nodes} == {"cuda"}
    # Two layers of one node are not told apart.
    twice = [typed("a", "fp16", "a"), typed("a2", "fp16", "a")]
    assert [n["precision"] for n in merge(twice, [told(["a"], whole, whole)])] == ["fp16"] * 2


def test_effective_is_what_was_compiled_and_what_the_engine_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = HostDevice()
    monkeypatch.setattr(trt_run, "Cuda", lambda: device)
    monkeypatch.setattr(trt_run, "library", lambda: make_library(device, []))
    monkeypatch.setattr(trt_run, "make_log", Log)
    (tmp_path / PLAN).write_bytes(make_plan(GRAPH, [WIDE]))
    layers = [
        {"name": name, "operator": "any", "precision": "fp16", "onnx": [name]}
        for name in ("relu", "product")
    ]
    declared = {"x": "float32[batch, 3]"}
    write_json(tmp_path / LAYERS, {"layers": layers, "declared": declared, "tf32": False})
    files = digest_files(tmp_path, [PLAN, LAYERS])
    inputs, expected = ask(5)
    facts, answers = effective(tmp_path, files, {"contexts": 1}, inputs)
    np.testing.assert_array_equal(answers["y"], expected["y"])
    # Typed as fp16, and told by the engine to be fp32: that is what counts.
    assert facts == {
        "declared": declared,
        "nodes": [
            {"name": name, "operator": "any", "device": "cuda", "precision": "fp32", "onnx": [name]}
            for name in ("relu", "product")
        ],
        "devices": {"cuda": 2},
        "precisions": {"fp32": 2},
        "tf32": False,
        "profiles": [
            {"x": {"min": [0, 3], "opt": [4, 3], "max": [12, 3]},
             "k": {"min": [0], "opt": [4], "max": [12]}}
        ],
    }  # fmt: skip
    assert device.held == 0
    (tmp_path / LAYERS).write_text("{}")
    with pytest.raises(TamperedFile):
        effective(tmp_path, files, {}, inputs)
