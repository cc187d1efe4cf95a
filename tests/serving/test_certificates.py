"""No engine is served anywhere without a passed certificate that speaks of it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import cli
from models.errors import CertificateFailed, NotABundle, NotReady
from models.signature import Signature
from pipeline.artifacts import canonical_json
from pipeline.bundle import open_bundle
from serving.ask import ask_too_much
from serving.launch import Server, serve
from serving.opening import open_bundles, open_session
from tests.serving.conftest import TARGET, write_manifest

ENGINE = Path("engines") / TARGET


@pytest.fixture
def copy(digits: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits, tmp_path / "copy"))


def change(path: Path, edit: Callable[[Any], Any]) -> None:
    path.write_bytes(canonical_json(edit(json.loads(path.read_bytes()))))


def failed(folder: Path, _other: Path) -> None:
    change(folder / ENGINE / "certificate.json", lambda c: c | {"passed": False})


def of_nothing(folder: Path, _other: Path) -> None:
    change(folder / ENGINE / "certificate.json", lambda c: c | {"findings": []})


def of_another(folder: Path, other: Path) -> None:
    shutil.copy2(other / ENGINE / "certificate.json", folder / ENGINE)


def of_another_opened_otherwise(folder: Path, _other: Path) -> None:
    """The very files, opened in a way that nobody certified."""
    change(
        folder / ENGINE / "engine.json",
        lambda e: e | {"options": e["options"] | {"intra_op_threads": 3}},
    )


def of_another_graph(folder: Path, _other: Path) -> None:
    change(folder / ENGINE / "certificate.json", lambda c: c | {"model": "0" * 64})


def of_another_target(folder: Path, _other: Path) -> None:
    change(folder / ENGINE / "certificate.json", lambda c: c | {"target": "tensorrt-fp16"})


def of_parts_it_lacks(folder: Path, _other: Path) -> None:
    change(folder / ENGINE / "certificate.json", lambda c: c | {"parts": {"half": "0" * 64}})


WAYS = [
    failed, of_nothing, of_another, of_another_opened_otherwise, of_another_graph,
    of_another_target, of_parts_it_lacks,
]  # fmt: skip


@pytest.mark.parametrize("spoil", WAYS)
def test_an_engine_without_its_own_passed_certificate_is_served_nowhere(
    copy: Path,
    pair: Path,
    spoil: Callable[[Path, Path], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(copy, pair)
    write_manifest(copy)  # whoever spoils a bundle can seal it again
    (bundle,) = open_bundles([copy])
    with pytest.raises(CertificateFailed, match="no passed certificate of its own"):
        bundle.open_engine(TARGET)
    with pytest.raises(NotReady, match="no passed certificate of its own"):
        open_session(bundle, TARGET)
    with pytest.raises(CertificateFailed):
        serve([copy], port=0, grpc_port=0).__enter__()
    monkeypatch.setattr("sys.argv", ["fucina", "serve", str(copy), "--port", "0", "--check"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    assert "fucina: engine 'ort-cpu-fp32' of bundle 'digits' has no" in capsys.readouterr().err


def test_a_bundle_without_any_certificate_does_not_open(copy: Path) -> None:
    (copy / ENGINE / "certificate.json").unlink()
    write_manifest(copy)
    with pytest.raises(NotABundle, match=r"does not list .*certificate.json"):
        open_bundle(copy)


def test_an_engine_that_is_certified_is_served(copy: Path) -> None:
    assert open_session(open_bundle(copy), TARGET)


def test_a_running_service_refuses_what_its_signature_does_not_promise(
    server: Server, digits: Path
) -> None:
    bundle = open_bundle(digits)
    findings = ask_too_much(server.http, server.grpc, bundle)
    assert {f.case.partition(" over ")[0] for f in findings} == {
        "nan", "infinity", "batch=0", "batch=65",
    }  # fmt: skip
    assert all(f.passed and f.error == 0 for f in findings)
    # Held against a promise of fewer rows, the same service answers too much.
    promised = bundle.manifest.signature.to_json()
    text = json.dumps(promised).replace('"max": 64', '"max": 32')
    fewer = Signature.from_json(json.loads(text))
    manifest = bundle.manifest.model_copy(update={"signature": fewer})
    findings = ask_too_much(
        server.http, server.grpc, dataclasses.replace(bundle, manifest=manifest)
    )
    failed = {f.case: f.note for f in findings if not f.passed}
    assert failed == {f"batch=33 over {t}": "the service answered" for t in ("REST", "gRPC")}
