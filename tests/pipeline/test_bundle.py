"""A bundle opens only whole, unchanged and certified; each way to be broken has its own error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from models.errors import (
    BundleError,
    CertificateFailed,
    MissingFile,
    NewerSchema,
    NotABundle,
    TamperedFile,
    TargetUnavailable,
)
from pipeline.artifacts import canonical_json, digest_files, new_folder, write_json
from pipeline.bundle import MANIFEST, open_bundle
from pipeline.package import package
from tests.conftest import Release

ENGINE = "engines/ort-cpu-fp32"


@pytest.fixture
def folder(lenet5: Release, tmp_path: Path) -> Path:
    return Path(shutil.copytree(lenet5.bundle.folder, tmp_path / "bundle"))


def manifest(folder: Path) -> dict[str, object]:
    return json.loads((folder / MANIFEST).read_text())


def test_a_bundle_holds_what_the_design_lists(lenet5: Release) -> None:
    names = {
        p.relative_to(lenet5.bundle.folder).as_posix() for p in lenet5.bundle.folder.rglob("*")
    }
    assert names >= {
        "manifest.json", "model.onnx", f"{ENGINE}/engine.onnx", f"{ENGINE}/certificate.json",
        "cases/cases.safetensors.gz", "codec.json", "card.md", "report.html",
    }  # fmt: skip
    listed = set(lenet5.bundle.manifest.files)
    assert listed == {n for n in names if (lenet5.bundle.folder / n).is_file()} - {MANIFEST}


def test_lineage_leads_back_to_weights_and_data(lenet5: Release) -> None:
    lineage = lenet5.bundle.manifest.lineage
    assert lineage["trained"] == lenet5.trained.digest == lenet5.model.parent
    assert lineage["weights"] == lenet5.trained.files["weights.safetensors"]
    assert lineage["data"] == lenet5.job.dataset.digest
    assert lineage["onnx"] == lenet5.model.digest == lenet5.engine.parent
    assert lenet5.trained.settings["seed"] == 0


def test_a_copied_bundle_opens_and_answers(folder: Path, lenet5: Release) -> None:
    bundle = open_bundle(folder)
    assert bundle.digest == lenet5.bundle.digest
    findings = bundle.replay(bundle.open_engine())
    assert findings
    assert all(finding.passed for finding in findings)


def test_the_same_parts_give_the_same_bundle(lenet5: Release, tmp_path: Path) -> None:
    with new_folder(tmp_path / "again") as out:
        again = package(
            lenet5.job.recipe, lenet5.trained, lenet5.model,
            [(lenet5.engine, lenet5.certificate)], out,
        )  # fmt: skip
        assert again.digest == lenet5.bundle.digest


def test_every_single_file_is_guarded(folder: Path) -> None:
    for name in open_bundle(folder).manifest.files:
        path = folder / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(TamperedFile, match=path.name):
            open_bundle(folder)
        path.unlink()
        with pytest.raises(MissingFile, match=path.name):
            open_bundle(folder)
        path.write_bytes(whole)
    open_bundle(folder)


def test_a_newer_schema_is_said_to_be_newer(folder: Path) -> None:
    write_json(folder / MANIFEST, {**manifest(folder), "schema_version": 2, "unknown": True})
    with pytest.raises(NewerSchema, match="schema 2, expected 1 or older; upgrade fucina"):
        open_bundle(folder)


def test_what_is_no_bundle_is_said_to_be_none(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(NotABundle, match=r"got no manifest.json"):
        open_bundle(tmp_path)
    with pytest.raises(NotABundle, match=r"got no manifest.json"):
        open_bundle(tmp_path / "nowhere")
    (folder / MANIFEST).write_text("{")
    with pytest.raises(NotABundle, match="is not JSON"):
        open_bundle(folder)
    (folder / MANIFEST).write_text("[]")
    with pytest.raises(NotABundle, match="is not valid"):
        open_bundle(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "a\\b"])
def test_a_manifest_may_not_leave_its_folder(folder: Path, name: str) -> None:
    changed = manifest(folder)
    write_json(folder / MANIFEST, {**changed, "files": {name: "0" * 64}})
    with pytest.raises(NotABundle, match="leaves the bundle"):
        open_bundle(folder)


def reseal(folder: Path) -> None:
    """Give the manifest the digests of what is there now, as an attacker would."""
    names = [
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if p.is_file() and p.name != MANIFEST
    ]
    write_json(folder / MANIFEST, {**manifest(folder), "files": digest_files(folder, names)})


@pytest.mark.parametrize(
    "name",
    ["model.onnx", "codec.json", "cases/cases.safetensors.gz", f"{ENGINE}/certificate.json"],
)
def test_nothing_that_a_server_reads_goes_unlisted(folder: Path, name: str) -> None:
    whole = manifest(folder)
    files = dict(open_bundle(folder).manifest.files)
    del files[name]
    write_json(folder / MANIFEST, {**whole, "files": files})
    with pytest.raises(NotABundle, match=f"does not list {name}"):
        open_bundle(folder)


def test_an_exchanged_engine_has_no_certificate(folder: Path) -> None:
    engine = folder / ENGINE / "engine.onnx"
    engine.write_bytes(engine.read_bytes() + b"\0")
    reseal(folder)
    with pytest.raises(NotABundle, match="is not in the manifest"):
        open_bundle(folder)
    value = json.loads((folder / ENGINE / "engine.json").read_text())
    value["files"] = digest_files(folder / ENGINE, ["engine.onnx"])
    (folder / ENGINE / "engine.json").write_bytes(canonical_json(value))
    reseal(folder)
    with pytest.raises(CertificateFailed, match="no passed certificate of its own files"):
        open_bundle(folder).open_engine()


@pytest.mark.parametrize(
    "change", [{"passed": False}, {"findings": []}, {"failures": ["samples: not so good"]}]
)
def test_an_engine_without_a_passed_certificate_is_not_opened(
    folder: Path, change: dict[str, object]
) -> None:
    path = folder / ENGINE / "certificate.json"
    path.write_bytes(canonical_json({**json.loads(path.read_text()), **change}))
    reseal(folder)
    with pytest.raises(CertificateFailed):
        open_bundle(folder).open_engine()


def test_a_target_that_is_not_there_is_named(lenet5: Release) -> None:
    with pytest.raises(TargetUnavailable, match="no engine for target 'tensorrt-fp16'"):
        lenet5.bundle.open_engine("tensorrt-fp16")


def test_no_file_is_a_pickle(lenet5: Release) -> None:
    for folder in (lenet5.bundle.folder, lenet5.trained.folder):
        for path in folder.rglob("*"):
            assert path.suffix not in {".pt", ".pth", ".pkl", ".npz", ".bin"}
            if path.is_file():
                assert not path.read_bytes().startswith((b"\x80\x02", b"\x80\x04", b"PK"))


def test_every_error_of_a_bundle_is_a_bundle_error() -> None:
    kinds = (NotABundle, NewerSchema, MissingFile, TamperedFile)
    assert all(issubclass(kind, BundleError) for kind in kinds)
