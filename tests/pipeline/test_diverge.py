"""A graph with one broken node: the diagnosis names that node, and a sound graph has none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from torch import nn

from pipeline.artifacts import digest_files
from pipeline.cases import HELD_OUT, Case
from pipeline.compare import Run
from pipeline.diverge import Divergence, _hidden, diverge, healing, locate
from pipeline.intermediates import (
    INTERMEDIATES,
    expose,
    run_exposed,
    tensors,
    unoptimised,
    write_intermediates,
)
from pipeline.kit import extract, write_kit
from pipeline.matching import Reference, dequantised, error, match
from pipeline.recording import intermediates
from pipeline.values import MODEL, OnnxModel
from tests.pipeline.diverging import (
    Break,
    ConvNet,
    Encoder,
    Known,
    Tagger,
    attribute,
    baked,
    built,
    dropped,
    exported,
    few_scaled,
    findings,
    node,
    one_nan,
    reads,
    weight,
    without_effect,
)  # fmt: skip


@dataclass(frozen=True)
class Sound:
    """A module's graph and what it is held against."""

    model: OnnxModel
    cases: list[Case]
    module: nn.Module

    @property
    def graph(self) -> onnx.ModelProto:
        return onnx.load_model(self.model.folder / MODEL)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Callable[[type[Known]], Sound]:
    made: dict[type[Known], Sound] = {}

    def make(kind: type[Known]) -> Sound:
        if kind not in made:
            made[kind] = Sound(*exported(kind, tmp_path_factory.mktemp(kind.__name__)))
        return made[kind]

    return make


@dataclass(frozen=True)
class Fault:
    kind: type[Known]
    apply: Break
    node: str
    by_module: str | None = ""  # where only the module's steps are known; "" is the same


FAULTS = {
    "conv weight": Fault(ConvNet, weight("first.weight", few_scaled), "node_Conv_11"),
    "conv weight before an addition": Fault(
        ConvNet, weight("third.weight", few_scaled), "node_conv2d_2"
    ),
    "conv bias": Fault(ConvNet, weight("second.bias", np.zeros_like), "node_conv2d_1"),
    "one NaN": Fault(ConvNet, weight("second.weight", one_nan), "node_conv2d_1"),
    "wrong padding": Fault(
        ConvNet, attribute("node_conv2d_1", "pads", [0, 0, 2, 2]), "node_conv2d_1"
    ),
    "dropped activation": Fault(ConvNet, dropped("node_relu_1"), "node_relu_1", "node_conv2d_2"),
    "activation without effect": Fault(
        ConvNet, without_effect("node_relu"), "node_relu", "node_conv2d_1"
    ),
    "wrong residual": Fault(ConvNet, reads("node_add_30", "conv2d_2", "conv2d_2"), "node_add_30"),
    "dense weight": Fault(Encoder, weight("val_35", few_scaled), "node_MatMul_34"),
    "weight of one output": Fault(
        Encoder, weight("pool.weight", few_scaled), "node_linear_4", None
    ),
    "wrong epsilon": Fault(
        Encoder, attribute("node_layer_norm", "epsilon", 1e-3), "node_layer_norm", None
    ),
    "wrong axis of softmax": Fault(Encoder, attribute("node_softmax", "axis", -2), "node_softmax"),
    "swapped axes": Fault(
        Encoder, attribute("node_transpose_2", "perm", [0, 2, 3, 1]), "node_transpose_2"
    ),
    "dropped part of an activation": Fault(
        Encoder, dropped("node_Erf_37"), "node_Erf_37", "node_Add_39"
    ),
    "missing skip": Fault(
        Encoder, reads("node_add_89", "linear_1", "linear_1"), "node_add_89", None
    ),
    "last activation": Fault(Encoder, without_effect("node_tanh"), "node_tanh", None),
    "baked batch": Fault(Encoder, baked("node__unsafe_view", [2, -1, 16]), "node__unsafe_view"),
    "recurrent weight": Fault(Tagger, weight("onnx::LSTM_207", few_scaled), "/lstm/LSTM"),
    "swapped axes after the LSTM": Fault(
        Tagger, attribute("/lstm/Transpose_1", "perm", [0, 2, 3, 1]), "/lstm/Transpose_1", None
    ),
    "dense weight after the LSTM": Fault(
        Tagger, weight("onnx::MatMul_208", few_scaled), "/dense/MatMul"
    ),
    "last bias": Fault(Tagger, weight("last.bias", np.zeros_like), "/last/Add"),
}


def located(graph: onnx.ModelProto, of: Sound, out: Path, level: str) -> Divergence | None:
    engine = built(graph, of.model, out, level)
    return diverge(engine, of.model, of.cases, findings(engine, of.cases))


@pytest.mark.parametrize("level", ["DISABLE_ALL", "ENABLE_EXTENDED", "ENABLE_ALL"])
@pytest.mark.parametrize("fault", FAULTS)
def test_the_broken_node_is_named(
    fault: str, level: str, sound: Callable[[type[Known]], Sound], tmp_path: Path
) -> None:
    of, graph = sound(FAULTS[fault].kind), sound(FAULTS[fault].kind).graph
    FAULTS[fault].apply(graph.graph)
    found = located(graph, of, tmp_path, level)
    assert found is not None
    assert found.diagnosis.node == FAULTS[fault].node, found.diagnosis


@pytest.mark.parametrize("fault", [name for name in FAULTS if FAULTS[name].by_module is not None])
def test_a_modules_steps_are_enough_to_find_the_node(
    fault: str, sound: Callable[[type[Known]], Sound], tmp_path: Path
) -> None:
    of, graph = sound(FAULTS[fault].kind), sound(FAULTS[fault].kind).graph
    held_out = [case for case in of.cases if case.origin == HELD_OUT]
    steps = ((case.name, intermediates(of.module, case.inputs)) for case in held_out)
    write_intermediates(of.model.folder, steps)
    apart = digest_files(of.model.folder, [INTERMEDIATES])
    FAULTS[fault].apply(graph.graph)
    foreign = replace(of, model=of.model.model_copy(update={"apart": apart}))
    found = located(graph, foreign, tmp_path, "DISABLE_ALL")
    assert found is not None
    expected = FAULTS[fault].by_module or FAULTS[fault].node
    assert found.diagnosis.node == expected, found.diagnosis


@pytest.mark.parametrize("kind", [ConvNet, Encoder, Tagger])
@pytest.mark.parametrize("level", ["ENABLE_EXTENDED", "ENABLE_ALL"])
def test_a_sound_engine_diverges_nowhere(
    kind: type[Known], level: str, sound: Callable[[type[Known]], Sound], tmp_path: Path
) -> None:
    of = sound(kind)
    assert located(of.graph, of, tmp_path, level) is None
    # Nor does its fused graph hold a tensor from which another is computed that is not known.
    engine = onnx.load_model(tmp_path / "engine.onnx")
    inputs = of.cases[1].inputs
    values, _ = run_exposed(engine, inputs, unoptimised)
    reference = Reference(run_exposed(of.graph, inputs, unoptimised)[0], of.graph)
    matches = match(engine, values, reference, 1e-5)
    names = [output.name for output in engine.graph.output]
    assert [matches[name] for name in names] == names
    known = [name for name in tensors(engine) if name in matches]
    assert len(known) >= 0.9 * len(tensors(engine))


@pytest.mark.parametrize("level", ["DISABLE_ALL", "ENABLE_EXTENDED"])
@pytest.mark.parametrize(
    ("tensor", "name"),
    [("first", "node_Conv_11"), ("second", "node_conv2d_1"), ("dense", "node_linear")],
)
def test_a_quantised_graph_is_read_as_real_numbers(
    tensor: str, name: str, level: str, sound: Callable[[type[Known]], Sound], tmp_path: Path
) -> None:
    of = sound(ConvNet)
    held_out = iter([case.inputs for case in of.cases if case.origin == HELD_OUT])

    class Rows(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray]:
            return next(held_out, {})

    quantize_static(of.model.folder / MODEL, tmp_path / "int8.onnx", Rows(), per_channel=True)
    graph = onnx.load_model(tmp_path / "int8.onnx")
    weight(f"{tensor}.weight_quantized", lambda array: array[::-1])(graph.graph)
    engine = onnx.load_model(built(graph, of.model, tmp_path, level).folder / "engine.onnx")
    case = of.cases[2]
    values = dequantised(engine, run_exposed(engine, case.inputs, unoptimised)[0])
    reference = Reference(run_exposed(of.graph, case.inputs, unoptimised)[0], of.graph)
    found = locate(engine, values, reference.of(tensors(engine)), ["y"], 0.03)
    assert found is not None
    assert found[0].node == name


def test_an_engine_with_other_names_is_located_by_its_values(
    sound: Callable[[type[Known]], Sound], tmp_path: Path
) -> None:
    of, graph = sound(Encoder), sound(Encoder).graph
    FAULTS["dense weight"].apply(graph.graph)
    kept = {value.name for value in (*graph.graph.input, *graph.graph.output)}
    kept |= {tensor.name for tensor in graph.graph.initializer}
    for place, one in enumerate(graph.graph.node):
        one.name = f"{one.name} renamed" if one.name == "node_MatMul_34" else f"n{place}"
        for names in (one.input, one.output):
            names[:] = [name if not name or name in kept else f"other {name}" for name in names]
    found = located(graph, of, tmp_path, "DISABLE_ALL")
    assert found is not None
    assert found.diagnosis.node == "node_MatMul_34 renamed"


def test_swapped_outputs_say_what_they_hold(
    sound: Callable[[type[Known]], Sound], tmp_path: Path
) -> None:
    of, graph = sound(Encoder), sound(Encoder).graph
    names = {"linear_2": "gelu", "gelu": "linear_2"}
    for one in graph.graph.node:
        one.output[:] = [names.get(name, name) for name in one.output]
        one.input[:] = [names.get(name, name) for name in one.input]
    assert located(graph, of, tmp_path, "DISABLE_ALL") is None  # names alone are no fault
    node(graph.graph, "node_MatMul_43").input[0] = "gelu"  # which holds what was linear_2
    (tmp_path / "wrong").mkdir()
    found = located(graph, of, tmp_path / "wrong", "DISABLE_ALL")
    assert found is not None
    assert "it holds what the reference has in" in found.diagnosis.note


def test_a_graph_that_declares_another_shape_is_told_by_its_tensor(
    sound: Callable[[type[Known]], Sound], tmp_path: Path
) -> None:
    of, graph = sound(Tagger), sound(Tagger).graph
    dim = graph.graph.input[0].type.tensor_type.shape.dim[0]
    dim.Clear()
    dim.dim_value = 2
    found = located(graph, of, tmp_path, "DISABLE_ALL")
    assert found is not None
    assert (found.diagnosis.kind, found.diagnosis.tensor) == ("declared", "x")
    write_kit(tmp_path / "kit", found)
    assert not (tmp_path / "kit").exists()


def test_a_fault_of_the_optimiser_is_found_by_what_heals_it(
    sound: Callable[[type[Known]], Sound],
) -> None:
    of = sound(ConvNet)
    case = next(c for c in of.cases if c.sizes == {"batch": 3})

    def faulty(graph: onnx.ModelProto) -> Run:
        """A runtime that loses an activation unless somebody looks at what is before it."""
        if "conv2d_1" not in {output.name for output in graph.graph.output}:
            copy = onnx.ModelProto()
            copy.CopyFrom(graph)
            without_effect("node_relu_1")(copy.graph)
            graph = copy
        return unoptimised(graph)

    values = unoptimised(expose(of.graph, tensors(of.graph)))(case.inputs)
    diagnosis = _hidden(of.graph, faulty, case, {"y": 1e-5}, case.inputs | values)
    assert (diagnosis.kind, diagnosis.tensor) == ("optimiser", "conv2d_1")
    assert "node_relu_1" in diagnosis.note


@given(st.data())
def test_bisection_finds_the_first_that_heals(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 300))
    first = data.draw(st.integers(1, count))
    assert healing(count, lambda shown: shown >= first) == first


@given(st.permutations(range(3)), st.integers(0, 2**32 - 1))
def test_a_graphs_tensor_is_known_in_any_order_of_axes(order: list[int], seed: int) -> None:
    array = np.random.default_rng(seed).normal(size=(3, 4, 5)).astype(np.float32)
    graph = helper.make_model(helper.make_graph([], "empty", [], []))
    reference = Reference({"t": array}, graph)
    moved = array.transpose(order)
    assert reference.find(moved, 1e-6) == "t"
    wrong = moved.copy()
    wrong.flat[seed % wrong.size] += 1e-3 * np.abs(wrong).max()
    assert reference.find(wrong, 1e-6) is None


def test_nan_is_equal_to_nan_in_its_place_only() -> None:
    expected = np.array([1.0, np.nan, 3.0])
    assert error(expected.copy(), expected) == 0
    assert error(np.array([np.nan, 1.0, 3.0]), expected) is None
    assert error(np.array([1.0, 2.0, 3.0]), expected) is None
    assert error(np.array([1.0, np.nan, 3.3]), expected) == pytest.approx(0.1)


def reproduce(folder: Path, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, str(folder / "reproduce.py")], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("fault", ["dense weight", "baked batch", "one NaN", "recurrent weight"])
@pytest.mark.parametrize("level", ["DISABLE_ALL", "ENABLE_EXTENDED"])
def test_a_kit_reproduces_the_divergence_and_not_of_the_sound_graph(
    fault: str, level: str, sound: Callable[[type[Known]], Sound], tmp_path: Path
) -> None:
    of, graph = sound(FAULTS[fault].kind), sound(FAULTS[fault].kind).graph
    FAULTS[fault].apply(graph.graph)
    found = located(graph, of, tmp_path, level)
    assert found is not None
    kit = tmp_path / "kit"
    write_kit(kit, found)
    done = reproduce(kit)
    assert done.returncode == 1, done.stdout + done.stderr
    assert FAULTS[fault].node in (kit / "README.md").read_text()
    # The sound graph may read more than the broken one: a baked shape reads no input.
    with np.load(kit / "inputs.npz") as inputs, np.load(kit / "expected.npz") as expected:
        given = found.case.inputs | dict(inputs)
        part = extract(of.graph, given, list(expected))
    read = {value.name: given[value.name] for value in part.graph.input}
    np.savez(kit / "inputs.npz", **read)  # type: ignore[arg-type]
    whole, minimal = of.graph.graph.node, onnx.load_model(kit / "minimal.onnx").graph.node
    assert len(minimal) < len(whole) / 2
    onnx.save_model(part, kit / "minimal.onnx")
    done = reproduce(kit)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_readmes_commands_work_in_a_clean_environment(
    sound: Callable[[type[Known]], Sound], tmp_path: Path
) -> None:
    of, graph = sound(ConvNet), sound(ConvNet).graph
    FAULTS["conv weight"].apply(graph.graph)
    found = located(graph, of, tmp_path, "ENABLE_EXTENDED")
    assert found is not None
    kit = tmp_path / "kit"
    write_kit(kit, found)
    commands = (kit / "README.md").read_text().split("```")[1].strip().splitlines()
    commands[0] = commands[0].replace("python", sys.executable, 1)
    for command in commands[:-1]:
        done = subprocess.run(command.split(), cwd=kit, capture_output=True, text=True, check=False)
        if "pip install" in command and done.returncode:
            pytest.skip(f"no package index here: {done.stderr.splitlines()[-1]}")
        assert done.returncode == 0, done.stderr
    done = subprocess.run(commands[-1].split(), cwd=kit, capture_output=True, check=False)
    assert done.returncode == 1
