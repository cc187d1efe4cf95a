"""The gate turns red: faults put into a real exported graph do not get a certificate."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.errors import CertificateFailed
from pipeline import verify as verify_stage
from pipeline.artifacts import digest_files
from pipeline.backends import ort, target
from pipeline.package import package
from pipeline.values import MODEL, Certificate, Engine
from pipeline.verify import verify
from tests.conftest import Release, make_release

Mutation = Callable[[onnx.ModelProto], None]


def certify(release: Release, mutate: Mutation, out: Path) -> Certificate:
    """The certificate of an engine that was built from a graph with a fault."""
    graph = onnx.load_model(release.model.folder / MODEL)
    mutate(graph)
    (out / "graph").mkdir()
    onnx.save_model(graph, out / "graph" / MODEL)
    return certify_graph(release, out / "graph" / MODEL, out)


def certify_graph(release: Release, graph: Path, out: Path) -> Certificate:
    for name in ("engine", "certificate"):
        (out / name).mkdir()
    signature = release.model.signature
    built = ort.build(graph, signature, target("ort-cpu-fp32"), out / "engine")
    engine = Engine(
        folder=out / "engine", target="ort-cpu-fp32", parent=release.model.digest,
        signature=signature, options=built.options, built_on=built.built_on,
        files=digest_files(out / "engine", list(built.files)),
    )  # fmt: skip
    return verify(engine, release.model, out / "certificate")


def weight(graph: onnx.ModelProto, place: int = 0) -> onnx.TensorProto:
    """A weight tensor, the largest first."""
    tensors = [t for t in graph.graph.initializer if t.data_type == TensorProto.FLOAT]
    return sorted(tensors, key=lambda t: -int(np.prod(t.dims)))[place]


def change(tensor: onnx.TensorProto, function: Callable[[np.ndarray], np.ndarray]) -> None:
    array = function(numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))


def scale_2_percent(place: int) -> Mutation:
    def scale(array: np.ndarray) -> np.ndarray:
        flat = array.reshape(-1)
        flat[np.random.default_rng(0).choice(flat.size, flat.size // 50, replace=False)] *= 1.5
        return array

    return lambda graph: change(weight(graph, place), scale)


def one_nan(graph: onnx.ModelProto) -> None:
    def poison(array: np.ndarray) -> np.ndarray:
        array.reshape(-1)[7] = np.nan
        return array

    change(weight(graph), poison)


def dropped_bias(graph: onnx.ModelProto) -> None:
    biases = [t for t in graph.graph.initializer if list(t.dims) == [10]]
    change(biases[0], np.zeros_like)


def swapped_outputs(graph: onnx.ModelProto) -> None:
    names = {"logits": "probabilities", "probabilities": "logits"}
    for node in graph.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def missing_normalisation(graph: onnx.ModelProto) -> None:
    for node in graph.graph.node:
        if node.op_type == "Div":
            node.op_type = "Mul"


def baked_batch(graph: onnx.ModelProto) -> None:
    """Every reshape is frozen to a batch of 2, which a check at batch 2 would pass."""
    reshapes = [node for node in graph.graph.node if node.op_type in ("Reshape", "Flatten")]
    assert reshapes
    size = weight(graph).dims[1]  # the dense layer that the reshape feeds: [out, in]
    for node in reshapes:
        shape = numpy_helper.from_array(np.array([2, size]), f"{node.name}_frozen")
        graph.graph.initializer.append(shape)
        node.op_type = "Reshape"
        node.input[:] = [node.input[0], shape.name]
        del node.attribute[:]


def declared_batch(graph: onnx.ModelProto) -> None:
    """The graph computes any batch and says that it takes 2."""
    dim = graph.graph.input[0].type.tensor_type.shape.dim[0]
    dim.Clear()
    dim.dim_value = 2


def rows_that_influence_each_other(graph: onnx.ModelProto) -> None:
    """The image is standardised by the mean of its batch: right at batch 1, wrong in company."""
    consumers = [node for node in graph.graph.node if "image" in node.input]
    leak = [
        helper.make_node("ReduceMean", ["image"], ["batch_mean"], keepdims=1, axes=None),
        helper.make_node("ReduceMean", ["image", "row_axes"], ["row_mean"], keepdims=1),
        helper.make_node("Sub", ["row_mean", "batch_mean"], ["difference"]),
        helper.make_node("Mul", ["difference", "little"], ["leaked"]),
        helper.make_node("Add", ["image", "leaked"], ["image_leaked"]),
    ]
    del leak[0].attribute[1:]
    graph.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([1, 2, 3]), "row_axes"),
            numpy_helper.from_array(np.array(0.01, np.float32), "little"),
        ]
    )
    for node in consumers:
        node.input[:] = ["image_leaked" if name == "image" else name for name in node.input]
    for node in reversed(leak):
        graph.graph.node.insert(0, node)


@dataclass(frozen=True)
class Fault:
    mutate: Mutation
    check: str  # at least one failure comes from this check


FAULTS = {
    "2 % of the largest weight tensor scaled by 1.5": Fault(scale_2_percent(0), "samples"),
    "2 % of the next weight tensor scaled by 1.5": Fault(scale_2_percent(1), "samples"),
    "one NaN weight": Fault(one_nan, "samples"),
    "a dropped bias": Fault(dropped_bias, "samples"),
    "swapped outputs": Fault(swapped_outputs, "samples"),
    "missing normalisation": Fault(missing_normalisation, "samples"),
    "a baked batch axis": Fault(baked_batch, "samples"),
    "a declared batch of 2": Fault(declared_batch, "declared"),
    "rows that influence each other": Fault(rows_that_influence_each_other, "neighbour"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("recipe", ["lenet5", "mlp"])
def test_a_fault_is_refused(
    recipe: str, fault: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    release: Release = request.getfixturevalue(recipe)
    certificate = certify(release, FAULTS[fault].mutate, tmp_path)
    assert not certificate
    assert any(text.startswith(FAULTS[fault].check) for text in certificate.failures)


@pytest.mark.parametrize("recipe", ["lenet5", "mlp"])
def test_the_same_path_without_a_fault_passes(
    recipe: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    release: Release = request.getfixturevalue(recipe)
    certificate = certify(release, lambda graph: None, tmp_path)
    assert certificate
    assert certificate.failures == ()


def test_stale_weights_are_refused(lenet5: Release, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    other = make_release("lenet5", tmp_path / "runs", seed=1)
    certificate = certify_graph(lenet5, other.model.folder / MODEL, tmp_path)
    assert not certificate
    # And an engine that admits where it comes from is refused for that alone.
    (tmp_path / "mixed").mkdir()
    mixed = verify(other.engine, lenet5.model, tmp_path / "mixed")
    assert any(text.startswith("lineage: the engine was built from") for text in mixed.failures)


def test_a_baked_batch_is_named_by_its_sizes(lenet5: Release, tmp_path: Path) -> None:
    certificate = certify(lenet5, baked_batch, tmp_path)
    passed = {f.case for f in certificate.findings if f.check == "samples" and f.passed}
    assert passed == {"batch=2"}


def effective(**changes: Any) -> dict[str, Any]:
    node = {"name": "n", "operator": "Conv", "device": "cpu", "precision": "fp32"}
    declared = {
        "image": "float32[batch, 1, 28, 28]",
        "logits": "float32[batch, 10]",
        "probabilities": "float32[batch, 10]",
    }
    return {"declared": declared, "nodes": [{**node, **changes}], "tf32": False}


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (effective(device="cuda"), r"node 'n' \(Conv\) ran on cuda, requested cpu"),
        (effective(precision="fp16"), "ran in fp16, requested fp32"),
        (effective(precision="bf16+int64"), r"ran in bf16\+int64, requested fp32"),
        ({**effective(), "nodes": []}, "no node was seen to run"),
        ({**effective(), "tf32": True}, "TF32 is on, requested fp32"),
        ({**effective(), "declared": {}}, "declared: tensor 'image': got no such tensor"),
    ],
)
def test_other_than_requested_is_refused(
    facts: dict[str, Any], words: str, lenet5: Release, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(ort, "effective", lambda *_: facts)
    certificate = verify(lenet5.engine, lenet5.model, tmp_path)
    assert not certificate
    assert re.search(words, certificate.failures[0])


def test_nothing_compared_is_a_failure(
    lenet5: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_stage, "read_cases", lambda folder: [])
    with pytest.raises(CertificateFailed, match="no recorded case"):
        verify(lenet5.engine, lenet5.model, tmp_path)


def test_a_certificate_says_what_was_not_run_and_of_which_file_it_speaks(lenet5: Release) -> None:
    certificate = lenet5.certificate
    assert certificate.subject == lenet5.engine.files
    assert any("task drift" in text for text in certificate.not_run)
    nodes = certificate.effective["nodes"]
    assert {node["device"] for node in nodes} == {"cpu"}
    assert {node["precision"] for node in nodes} == {"fp32"}
    # The session numbers the nodes that it adds, differently from run to run.
    assert not [node["name"] for node in nodes if "_token_" in node["name"]]
    checks = {finding.check for finding in certificate.findings}
    laws = {"duplicate", "permute", "neighbour", "split", "twice", "reload"}
    assert checks == {"samples", "edges", *laws}


def test_only_a_passed_certificate_of_this_engine_is_packaged(
    lenet5: Release, mlp: Release, tmp_path: Path
) -> None:
    failed = certify(lenet5, one_nan, tmp_path)
    for certificate, words in (
        (failed, r"is not certified: samples: output .* \(and \d+ more\)"),
        (mlp.certificate, "does not speak of this engine"),
    ):
        with pytest.raises(CertificateFailed, match=words):
            package(
                lenet5.job.recipe, lenet5.trained, lenet5.model,
                [(lenet5.engine, certificate)], tmp_path,
            )  # fmt: skip
    with pytest.raises(CertificateFailed, match="no certified engine"):
        package(lenet5.job.recipe, lenet5.trained, lenet5.model, [], tmp_path)
