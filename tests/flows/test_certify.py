"""`fucina certify`: a model trained elsewhere, and a bundle on another machine."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from flows import cli
from flows.foreign import Named
from flows.inferred import infer_inputs, infer_signature, read_as
from models.errors import BadSetting, ExportFailed
from models.signature import Arrays, Axis, TensorSpec
from pipeline.artifacts import canonical_json, digest_file, digest_files, load
from pipeline.bundle import open_bundle
from pipeline.cases import write_cases
from pipeline.recording import answer
from pipeline.values import CERTIFICATE_VALUE, Certificate, OnnxModel
from tests.conftest import Release
from tests.pipeline.test_bundle import ENGINE, reseal
from tests.test_structure import blocked

WEIGHT = np.random.default_rng(3).normal(size=(4, 3)).astype(np.float32)


class Pair(nn.Module):
    """A table look-up beside a linear map, called by position."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(WEIGHT.copy()))

    def forward(self, features: torch.Tensor, place: torch.Tensor) -> tuple[Any, dict[str, Any]]:
        mapped = torch.tanh(features @ self.weight)
        return mapped, {"row": self.weight[place]}


A_MODULE = Pair()
NOT_A_MODULE = 3


def write_pair(path: Path, *, rows: str | int = "N", outside: bool = False) -> Path:
    """The graph of `Pair`, its weight in a file beside it or inside."""
    weight = numpy_helper.from_array(WEIGHT, "weight")
    given = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 4]),
        helper.make_tensor_value_info("at", TensorProto.INT64, [rows]),
    ]
    said = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [rows, 3]) for n in ("y", "row")]
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"], "multiply"),
        helper.make_node("Tanh", ["product"], ["y"], "squash"),
        helper.make_node("Gather", ["weight", "at"], ["row"], "look up"),
    ]
    graph = helper.make_graph(nodes, "pair", given, said, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save_model(
        model, path, save_as_external_data=outside, location="pair.weights", size_threshold=0
    )
    return path


PAIR = f"{__name__}:Pair"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def certify(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run the command; its exit code, what it printed, and what it said beside."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fucina", "certify", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        said, beside = capsys.readouterr()
        return code, said, beside

    return run


def test_a_sound_file_passes_and_its_signature_is_shown(certify: Run, tmp_path: Path) -> None:
    file = write_pair(tmp_path / "pair.onnx")
    code, said, beside = certify(file, "--against", PAIR, "--max-batch", "16")
    assert code == 0, beside
    assert "pair on ort-cpu-fp32: passed" in said
    assert "drawn at random, not real" in said
    assert "input  x: float32[batch 1..16, 4]" in beside
    out = tmp_path / "pair.certificate"
    certificate = load(Certificate, out, CERTIFICATE_VALUE)
    assert certificate
    assert certificate.subject == {"engine.onnx": digest_file(file)}
    assert certificate.samples["origin"] == "drawn at random, not real"
    assert any("drawn at random" in text for text in certificate.not_run)
    model = load(OnnxModel, out, "onnx.json")
    assert certificate.model == model.digest
    assert model.files["cases.safetensors.gz"] == digest_file(out / "cases.safetensors.gz")
    assert "<html" in (out / "certificate.html").read_text()


def test_real_samples_are_named_by_digest_and_the_same_certificate_is_made_twice(
    certify: Run, tmp_path: Path
) -> None:
    file, rows = write_pair(tmp_path / "pair.onnx"), tmp_path / "rows.npz"
    generator = np.random.default_rng(0)
    np.savez(rows, x=generator.normal(size=(20, 4)), at=generator.integers(0, 4, 20))
    asked = (file, "--against", PAIR, "--samples", rows, "--json")
    code, said, beside = certify(*asked)
    assert code == 0, beside
    document = json.loads(said)
    assert document["samples"]["origin"] == f"sha256 {digest_file(rows)}"
    assert not any("drawn at random" in text for text in document["not_run"])
    inputs = {spec["name"]: spec for spec in document["signature"]["inputs"]}
    assert (inputs["at"]["low"], inputs["at"]["high"]) == (0, 3)
    assert json.loads(certify(*asked)[1])["digest"] == document["digest"]


def test_weights_beside_the_file_are_of_the_subject(certify: Run, tmp_path: Path) -> None:
    file = write_pair(tmp_path / "pair.onnx", outside=True)
    assert certify(file, "--against", f"{__name__}:A_MODULE")[0] == 0
    certificate = load(Certificate, tmp_path / "pair.certificate", CERTIFICATE_VALUE)
    weights = digest_file(tmp_path / "pair.weights")
    assert certificate.subject == {"engine.onnx": digest_file(file), "pair.weights": weights}
    (tmp_path / "pair.weights").rename(tmp_path / "elsewhere")
    code, _, beside = certify(file, "--against", PAIR)
    assert code == 1
    assert "pair.weights" in beside


def test_a_wrong_file_fails_in_one_line_that_says_where(certify: Run, tmp_path: Path) -> None:
    file = write_pair(tmp_path / "pair.onnx")
    graph = onnx.load(file)
    graph.graph.node[1].op_type = "Sigmoid"
    onnx.save(graph, file)
    code, said, beside = certify(file, "--against", PAIR, "--json")
    assert code == 1
    assert json.loads(said)["diagnosis"]["node"] == "squash"
    (line,) = [line for line in beside.splitlines() if line.startswith("fucina: ")]
    assert "pair on ort-cpu-fp32 is not certified: samples: output 'y' at" in line
    assert "node 'squash' (Sigmoid)" in line
    assert not load(Certificate, tmp_path / "pair.certificate", CERTIFICATE_VALUE)


def test_a_batch_that_the_file_froze_is_found_where_it_is_promised(
    certify: Run, tmp_path: Path
) -> None:
    file = write_pair(tmp_path / "pair.onnx", rows=3)
    code, said, beside = certify(file, "--against", PAIR)
    assert code == 0, beside
    assert "the signature has no batch axis" in said
    code, said, beside = certify(file, "--against", PAIR, "--axis", "batch=1:2:8")
    assert code == 1
    assert "declared float32[3, 4], expected float32[batch, 4]" in beside


@pytest.mark.parametrize(
    "words",
    [
        [], ["--against", "nothing"], ["--against", PAIR, "--axis", "N=3:2:1"],
        ["--against", PAIR, "--axis", "N=1:2:3:4"], ["--against", PAIR, "--axis", "N"],
        ["--against", PAIR, "--max-batch", "0"], ["--against", PAIR, "--samples", "nowhere.npz"],
    ],
)  # fmt: skip
def test_usage(certify: Run, tmp_path: Path, words: list[str]) -> None:
    code, said, beside = certify(write_pair(tmp_path / "pair.onnx"), *words)
    assert (code, said) == (2, "")
    assert "Error: " in beside
    assert certify(tmp_path, "--against", PAIR)[0] == 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--against", f"{__name__}:NOT_A_MODULE"], "gives no module"),
        (["--against", f"{__name__}:absent"], "gives no module: AttributeError"),
        (["--against", "no.such:thing"], "ModuleNotFoundError"),
        (["--against", "builtins:dict"], "got dict, expected a torch.nn.Module"),
        (["--against", "torch.nn:ReLU"], "the module does not answer x float32"),
        (["--against", PAIR, "--axis", "height=1:2:3"], "no axis 'height': expected N"),
        (["--against", PAIR, "--samples", "pair.onnx"], "holds no rows"),
        (["--against", PAIR, "--samples", "few.npz"], "does not hold the rows of every input"),
        (["--against", PAIR, "--samples", "other.npz"], "the samples of input 'x' do not fit it"),
        (["--against", PAIR, "--out", "."], "is there and holds no certificate"),
    ],
)
def test_what_does_not_fit_is_one_line(
    certify: Run, tmp_path: Path, words: list[str], line: str
) -> None:
    np.savez(tmp_path / "few.npz", x=np.zeros((5, 4)))
    np.savez(tmp_path / "other.npz", x=np.zeros((5, 7)), at=np.zeros(5, np.int64))
    code, said, beside = certify(write_pair(tmp_path / "pair.onnx"), *words)
    assert (code, said) == (1, "")
    last = beside.splitlines()[-1]
    assert last.startswith("fucina: ")
    assert line in last


class Steps(nn.Module):
    """Answers that are as long as their inputs, and half as long."""

    def forward(self, steps: torch.Tensor) -> dict[str, Any]:
        return {"same": steps.cumsum(1), "half": steps[:, ::2].sum(-1), "one": steps.sum((1, 2))}


def ask(module: nn.Module, outputs: list[str]) -> Callable[[Arrays], Arrays]:
    return lambda arrays: answer(Named(module, list(arrays), outputs), arrays)


def test_dimensions_are_told_apart_by_asking() -> None:
    declared = {"steps": "float32[N, time, 5]"}
    inputs, symbols = infer_inputs(declared, None, 64, {"time": (4, 6, 9)})
    batch, time = Axis("batch", 1, 8, 64), Axis("time", 4, 6, 9)
    assert inputs == (TensorSpec("steps", "float32", (batch, time, 5), -3.0, 3.0),)
    signature = infer_signature(inputs, ask(Steps(), ["same", "one"]))
    assert [spec.shape for spec in signature.outputs] == [(batch, time, 5), (batch,)]
    with pytest.raises(ExportFailed, match=r"dimension 1 of output 'half' is computed.*--axis"):
        infer_signature(inputs, ask(Steps(), ["half"]))
    # At one length it is a size like any other.
    fixed, symbols = infer_inputs(declared, None, 64, {"time": (6, 6, 6)})
    signature = infer_signature(fixed, ask(Steps(), ["half"]))
    half = signature.output("half")
    assert half.shape == (batch, 3)
    for text, read in (
        ("float32[N, (time + 1)//2]", "float32[batch, 3]"), ("float32[N, 3]", "float32[batch, 3]"),
        ("float32[None, None]", "float32[batch, 3]"), ("float32[N, 4]", "float32[batch, 4]"),
        ("float32[2, 3]", "float32[2, 3]"), ("float32[time, N]", "float32[6, batch]"),
        ("float32[N]", "float32[N]"),
    ):  # fmt: skip
        assert read_as(text, half, symbols) == read


def test_samples_say_how_long_rows_are_and_what_they_hold() -> None:
    rows = {"ids": np.arange(24).reshape(2, 12)}
    (ids,), _ = infer_inputs({"ids": "int64[a, None]"}, rows, 4, {})
    assert ids == TensorSpec(
        "ids", "int64", (Axis("batch", 1, 4, 4), Axis("ids_1", 6, 12, 12)), 0.0, 23.0
    )
    with pytest.raises(BadSetting, match=r"must be an identifier, got 'input\.1'"):
        infer_inputs({"input.1": "float32[N, 3]"}, None, 4, {})
    with pytest.raises(BadSetting, match="make no signature"):
        infer_inputs({"x": "bfloat16[N, 3]"}, None, 4, {})


def test_it_runs_without_what_trains_schedules_serves_and_draws(tmp_path: Path) -> None:
    file = write_pair(tmp_path / "pair.onnx")
    absent = (
        "prefect", "sqlalchemy", "fastapi", "bentoml", "grpc", "starlette", "sklearn", "scipy",
        "gymnasium", "PIL", "onnxscript", "matplotlib", "jinja2", "markupsafe",
    )  # fmt: skip
    (tmp_path / "their_pair.py").write_text(THEIRS)
    words = ["certify", str(file), "--against", "their_pair:Pair"]
    # Absent to an import and to a search, of which torch makes one.
    done = blocked(
        (),
        f"sys.modules |= dict.fromkeys({absent!r})\nsys.path.insert(0, {str(tmp_path)!r})\n"
        f"sys.argv[1:] = {words!r}\nfrom flows.cli import main; main()",
    )
    assert done.returncode == 0, done.stderr
    assert "certificate.html is not written: it needs the package" in done.stderr
    assert load(Certificate, tmp_path / "pair.certificate", CERTIFICATE_VALUE)


THEIRS = """
import numpy
import torch

class Pair(torch.nn.Module):
    def __init__(self):
        super().__init__()
        drawn = numpy.random.default_rng(3).normal(size=(4, 3)).astype("float32")
        self.register_buffer("weight", torch.from_numpy(drawn))

    def forward(self, x, at):
        return {"row": self.weight[at], "y": torch.tanh(x @ self.weight)}
"""


def test_a_bundle_is_replayed_up_to_the_served_answers(
    certify: Run, lenet5: Release, tmp_path: Path
) -> None:
    code, said, beside = certify(lenet5.bundle.folder, "--out", tmp_path / "out", "--json")
    assert code == 0, beside
    document = json.loads(said)
    assert document["agrees"]
    (engine,) = document["engines"]
    assert engine["packaged"]["digest"] == lenet5.certificate.digest
    ratios = engine["error_over_limit"]
    assert ratios["samples"]["packaged"] == engine["worst_error_over_limit"]
    assert ratios["REST"]["here"] <= 1
    assert ratios["gRPC"]["here"] <= 1
    assert ratios["refused"]["here"] == 0
    served = {edge["end"]: edge for edge in engine["budget"] if edge["start"] == "engine"}
    assert served.keys() == {"REST answer", "gRPC answer"}
    assert all(edge["total"] <= edge["limit"] for edge in served.values())
    certificate = load(Certificate, tmp_path / "out" / "ort-cpu-fp32", CERTIFICATE_VALUE)
    assert certificate.engine == lenet5.engine.digest
    assert certificate.subject == lenet5.engine.files
    refused = {f.case for f in certificate.findings if f.check == "refused"}
    assert refused >= {f"{c} over {t}" for c in ("batch=65", "nan") for t in ("REST", "gRPC")}
    assert not any("HTTP" in text for text in certificate.not_run)


def test_another_machines_verdict_is_said(certify: Run, lenet5: Release, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(lenet5.bundle.folder, tmp_path / "bundle"))
    code, said, _ = certify(folder, "--no-serve")
    assert code == 0
    assert "passed here as well" in said
    assert "not run    error budget: the HTTP and gRPC answer of the service: --no-serve" in said
    # A machine that counts otherwise: here it is the recorded answers that differ.
    bundle = open_bundle(folder)
    cases = bundle.cases()
    cases[0].reference["logits"][0, 0] += 0.01
    write_cases(cases, folder / "cases")
    model = json.loads((folder / "onnx.json").read_text())
    model["files"] |= digest_files(folder / "cases", ["cases.safetensors.gz"])
    (folder / "onnx.json").write_bytes(canonical_json(model))
    reseal(folder)
    code, said, beside = certify(folder)
    assert code == 1
    assert "FAILED here, though it was packaged as passed" in said
    assert beside.splitlines()[-1].startswith("fucina: lenet5 on ort-cpu-fp32 is not certified: ")


@pytest.mark.parametrize("name", ["engine.onnx", "engine.json", "certificate.json"])
def test_a_changed_bundle_is_refused_in_one_line(
    certify: Run, lenet5: Release, tmp_path: Path, name: str
) -> None:
    folder = Path(shutil.copytree(lenet5.bundle.folder, tmp_path / "bundle"))
    path = folder / ENGINE / name
    whole = path.read_bytes()
    path.write_bytes(whole + b" ")
    code, said, beside = certify(folder)
    assert (code, said) == (1, "")
    assert f"{name} is not the file that was recorded" in beside
    value = json.loads(whole) if name.endswith(".json") else {}
    if name == "engine.json":
        value["options"]["optimization_level"] = "BASIC"
    elif name == "certificate.json":
        value["engine"] = "0" * 64
    path.write_bytes(canonical_json(value) if value else whole + b" ")
    reseal(folder)
    code, said, beside = certify(folder)
    assert (code, said) == (1, "")
    (line,) = beside.splitlines()
    assert "no passed certificate of its own files" in line or "is not in the manifest" in line
