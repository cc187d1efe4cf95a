"""The gate turns red: faults put into a real exported graph do not get a certificate."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnx
import pytest

from models.codec import Codec
from models.errors import CertificateFailed
from pipeline import verify as verify_stage
from pipeline.artifacts import digest_files
from pipeline.backends import ort, target
from pipeline.cases import read_cases
from pipeline.faults import FAULTS, Subject, mutate
from pipeline.invariance import largest
from pipeline.package import package
from pipeline.values import CODEC, MODEL, Certificate, Engine
from pipeline.verify import examine, gather, verify
from tests.conftest import Release, make_release

BY_NAME = {fault.name: fault for fault in FAULTS}


def faulty(release: Release, fault: str, seed: int = 0) -> onnx.ModelProto | None:
    """The graph of a release with a fault; None where it has no place for it."""
    graph = onnx.load_model(release.model.folder / MODEL)
    codec = Codec.model_validate_json((release.model.folder / CODEC).read_bytes())
    subject = Subject(release.model.signature, codec, None)
    mutant = mutate(graph, BY_NAME[fault], subject, seed)
    return mutant and mutant.graph


def certify(release: Release, fault: str, out: Path, seed: int = 0) -> Certificate:
    """The certificate of an engine that was built from a graph with a fault."""
    graph = faulty(release, fault, seed)
    assert graph is not None
    return certify_graph(release, graph, out)


def certify_graph(release: Release, graph: onnx.ModelProto, out: Path) -> Certificate:
    (out / "certificate").mkdir()
    return verify(build(release, graph, out), release.model, out / "certificate")


def build(release: Release, graph: onnx.ModelProto, out: Path) -> Engine:
    """An engine of a graph that claims to be the release's."""
    (out / "engine").mkdir(parents=True)
    onnx.save_model(graph, out / MODEL)
    signature = release.model.signature
    built = ort.build(out / MODEL, signature, target("ort-cpu-fp32"), out / "engine")
    return Engine(
        folder=out / "engine", target="ort-cpu-fp32", parent=release.model.digest,
        signature=signature, options=built.options, built_on=built.built_on,
        files=digest_files(out / "engine", list(built.files)),
    )  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("scaled weights", "samples"),
        ("NaN weight", "samples"),
        ("dropped bias", "samples"),
        ("swapped outputs", "samples"),
        ("missing normalisation", "samples"),
        ("baked batch", "samples"),
        ("declared batch", "declared"),
        ("batch leak", "neighbour"),
        ("last row", "permute"),
    ],
)
@pytest.mark.parametrize("recipe", ["lenet5", "mlp"])
def test_a_fault_is_refused_by_the_check_that_is_made_for_it(
    recipe: str, fault: str, check: str, seed: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    release: Release = request.getfixturevalue(recipe)
    certificate = certify(release, fault, tmp_path, seed)
    assert not certificate
    assert any(text.startswith(check) for text in certificate.failures)


@pytest.mark.parametrize("fault", BY_NAME)
def test_every_fault_that_fits_is_refused(fault: str, lenet5: Release, tmp_path: Path) -> None:
    graph = faulty(lenet5, fault)
    if graph is not None:  # else another architecture's fault: see test_faults
        found = examine(build(lenet5, graph, tmp_path), gather(lenet5.model))
        assert next(found, None) is not None


@pytest.mark.parametrize("recipe", ["lenet5", "mlp"])
def test_the_same_path_without_a_fault_passes(
    recipe: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    release: Release = request.getfixturevalue(recipe)
    graph = onnx.load_model(release.model.folder / MODEL)
    certificate = certify_graph(release, graph, tmp_path)
    assert certificate
    assert certificate.failures == ()


def test_stale_weights_are_refused(lenet5: Release, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    other = make_release("lenet5", tmp_path / "runs", seed=1)
    certificate = certify_graph(lenet5, onnx.load_model(other.model.folder / MODEL), tmp_path)
    assert not certificate
    # And an engine that admits where it comes from is refused for that alone.
    (tmp_path / "mixed").mkdir()
    mixed = verify(other.engine, lenet5.model, tmp_path / "mixed")
    assert any(text.startswith("lineage: the engine was built from") for text in mixed.failures)


def test_a_baked_batch_is_named_by_its_sizes(lenet5: Release, tmp_path: Path) -> None:
    certificate = certify(lenet5, "baked batch", tmp_path)
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


def asked(release: Release) -> tuple[Any, ...]:
    case = largest(read_cases(release.model.folder))
    return release.engine.folder, release.engine.files, release.engine.options, case.inputs


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (effective(device="cuda"), r"node 'n' \(Conv\) ran on cuda, requested cpu"),
        (effective(precision="fp16"), "ran in fp16, requested fp32"),
        (effective(precision="bf16+int64"), r"ran in bf16\+int64, requested fp32"),
        ({**effective(), "nodes": []}, "no node was seen to run"),
        ({**effective(), "tf32": True}, "TF32 is on, requested fp32"),
        ({**effective(), "declared": {}}, "declared: the engine declares no tensor"),
    ],
)
def test_other_than_requested_is_refused(
    facts: dict[str, Any], words: str, lenet5: Release, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    _, answers = ort.effective(*asked(lenet5))
    monkeypatch.setattr(ort, "effective", lambda *_: (facts, answers))
    certificate = verify(lenet5.engine, lenet5.model, tmp_path)
    assert not certificate
    assert any(re.search(words, text) for text in certificate.failures)


def test_nothing_compared_is_a_failure(
    lenet5: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_stage, "read_cases", lambda folder: [])
    with pytest.raises(CertificateFailed, match="no recorded case"):
        verify(lenet5.engine, lenet5.model, tmp_path)


def test_a_certificate_says_what_was_not_run_and_of_which_file_it_speaks(lenet5: Release) -> None:
    certificate = lenet5.certificate
    assert certificate.subject == lenet5.engine.files
    assert any(text.startswith("error budget: the HTTP") for text in certificate.not_run)
    nodes = certificate.effective["nodes"]
    assert {node["device"] for node in nodes} == {"cpu"}
    assert {node["precision"] for node in nodes} == {"fp32"}
    # The session numbers the nodes that it adds, differently from run to run.
    assert not [node["name"] for node in nodes if "_token_" in node["name"]]
    checks = {finding.check for finding in certificate.findings}
    laws = {"duplicate", "permute", "neighbour", "split", "twice", "reload", "threads"}
    assert checks == {"samples", "edges", "nonfinite", *laws}


def test_only_a_passed_certificate_of_this_engine_is_packaged(
    lenet5: Release, mlp: Release, tmp_path: Path
) -> None:
    failed = certify(lenet5, "NaN weight", tmp_path)
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
