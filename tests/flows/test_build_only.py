"""`fucina optimize --build-only`: compiled without a GPU and told; running it is one clear line."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from flows import cli, stages
from models.errors import BuildFailed, MissingArtifact
from models.zoo import find
from pipeline.artifacts import check_files, digest_file
from pipeline.backends import ort, trt
from pipeline.backends import target as find_target
from tests.conftest import TINY, Release, Releases

FP16 = "tensorrt-fp16"

pytest.importorskip("tensorrt_rtx")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fucina", *arguments])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def of(release: Release) -> list[str]:
    settings = [f"--set={name}={value}" for name, value in TINY.items()]
    return ["lenet5", "--out", str(release.job.out), *settings, "--device", "cpu"]


def test_one_document_says_what_was_built(
    lenet5: Release, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["optimize", *of(lenet5), "--target", FP16, "--build-only"]
    assert run(monkeypatch, *command, "--json") == 0
    capsys.readouterr()
    assert run(monkeypatch, *command, "--json") == 0  # and takes the first one's place
    document = json.loads(capsys.readouterr().out)
    (build,) = document["builds"]
    folder = Path(build["path"])
    assert folder == lenet5.job.folder / "build-only" / FP16
    assert [path.name for path in folder.parent.iterdir()] == [FP16]
    check_files(folder, build["files"])
    plan = folder / build["file"]
    assert (build["bytes"], build["sha256"]) == (plan.stat().st_size, digest_file(plan))
    assert json.loads((folder / "build.json").read_bytes()) == {
        key: value for key, value in build.items() if key != "path"
    }
    assert build["target"] == FP16
    assert build["library"].items() <= build["built_on"].items()
    assert build["seconds"] > 0
    (profile,) = build["profiles"]
    assert profile["image"] == {
        "min": [1, 1, 28, 28], "opt": [8, 1, 28, 28], "max": [64, 1, 28, 28]
    }  # fmt: skip
    assert sum(build["precisions"].values()) == len(build["layers"])
    typed = {layer["operator"]: layer["precision"] for layer in build["layers"]}
    assert (typed["convolution"], typed["softmax"]) == ("fp16", "fp32")
    assert [one["reason"] for one in build["kept"]]

    assert run(monkeypatch, *command) == 0
    said = capsys.readouterr().out
    assert "convolution" in said
    assert build["kept"][0]["name"] in said


@pytest.mark.parametrize("command", ["optimize", "verify", "package", "run"])
def test_without_a_gpu_the_rest_is_refused_before_any_work(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if trt.host(find_target(FP16)).get("gpu"):
        pytest.skip("there is a GPU here")
    assert run(monkeypatch, command, "lenet5", "--target", FP16, "--out", str(tmp_path)) == 1
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith(f"fucina: this machine cannot run {FP16!r}: no NVIDIA driver")
    assert not said.out
    assert not list(tmp_path.iterdir())


def test_parts_are_built_too(releases: Releases) -> None:
    release = releases["vae"]
    job = replace(release.job, targets=("tensorrt-int8",))
    document = stages.build_only(job, stages.Parts(release.trained, release.model))
    (build,) = document["builds"]
    assert build["parts"].keys() == {"encoder", "decoder"}
    for name, facts in build["parts"].items():
        check_files(Path(build["path"]) / "parts" / name, facts["files"])
        assert facts["precisions"]["int8"] > 0


def test_what_is_refused_leaves_nothing(lenet5: Release, tmp_path: Path) -> None:
    job = replace(lenet5.job, targets=("tensorrt-int8",), out=tmp_path)
    model = lenet5.model.model_copy(update={"signature": find("gru").make_signature()})
    with pytest.raises(BuildFailed, match="carried from call to call in eight bits"):
        stages.build_only(job, stages.Parts(lenet5.trained, model))
    assert not list((job.folder / "build-only").iterdir())


def test_another_library_is_another_engine(
    lenet5: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    (target,) = lenet5.job.targets
    found = stages.optimize(lenet5.job, lenet5.model, target, only_resume=True)
    assert found.digest == lenet5.engine.digest
    here = ort.host(find_target(target))
    monkeypatch.setattr(ort, "host", lambda target: {**here, "onnxruntime": "another"})
    with pytest.raises(MissingArtifact, match="no result of `optimize`"):
        stages.optimize(lenet5.job, lenet5.model, target, only_resume=True)
