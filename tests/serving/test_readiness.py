"""What keeps a server from being ready, and that it stays up and says so."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from models.errors import BundleError, NotReady, ServingFailed, TamperedFile
from pipeline.bundle import CASES, open_bundle
from pipeline.cases import read_cases, write_cases
from serving.classification import Classification
from serving.launch import serve
from serving.model import LOADING
from serving.opening import open_bundles, open_session
from serving.ports import free_port
from serving.workers import SHARED, lives, workers
from tests.serving.conftest import DIGITS, TARGET, write_manifest


@pytest.fixture
def copy(digits: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits, tmp_path / "copy"))


@pytest.fixture
def wrong(copy: Path) -> Path:
    """A whole bundle whose engine does not answer its recorded cases as they were recorded."""
    cases = read_cases(copy / CASES)
    cases[0].reference["logits"][0, 0] += 0.01
    write_cases(cases, copy / CASES)
    write_manifest(copy)
    return copy


@pytest.fixture
def client(wrong: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setenv("FUCINA_BUNDLES", json.dumps([str(wrong)]))
    monkeypatch.setenv("FUCINA_GRPC_PORT", str(free_port("127.0.0.1")))
    with TestClient(Classification.to_asgi()) as client:
        yield client


def wait_until_final(client: TestClient) -> Any:
    while True:
        response = client.get("/v2/models/digits/ready")
        if LOADING not in response.text:
            return response


def test_a_sound_bundle_opens(digits: Path) -> None:
    session = open_session(open_bundle(digits), TARGET)
    assert session.run({"image": np.zeros((1, 1, 28, 28), np.float32)})["logits"].shape == (1, 10)


def test_an_engine_that_fails_the_replay_is_not_opened(wrong: Path) -> None:
    with pytest.raises(NotReady, match=r"does not reproduce.*'batch=1' at output 'logits': got an"):
        open_session(open_bundle(wrong), TARGET)


def test_nothing_to_replay_is_not_ready(copy: Path) -> None:
    write_cases([], copy / CASES)
    write_manifest(copy)
    with pytest.raises(NotReady, match="no recorded case"):
        open_session(open_bundle(copy), TARGET)


# BentoML reads the fields of a model from its instance.
@pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince211")
def test_the_server_stays_live_not_ready_and_says_why(client: TestClient) -> None:
    ready = wait_until_final(client)
    assert ready.status_code == 503
    assert "does not reproduce its recorded case 'batch=1'" in ready.json()["error"]
    assert client.get("/v2/health/live").status_code == 200
    assert client.get("/livez").status_code == 200
    for path in ("/v2/health/ready", "/readyz", "/startupz"):
        assert client.get(path).status_code == 503
    for path in ("/v2/models/digits/infer", "/predict"):
        response = client.post(path, json={"inputs": {"image": np.zeros((1, 1, 28, 28)).tolist()}})
        assert response.status_code == 503
        assert "does not reproduce" in response.json()["error"]
        assert int(response.headers["retry-after"]) > 0


def test_serve_ends_a_server_that_cannot_be_ready(wrong: Path) -> None:
    with pytest.raises(ServingFailed, match=r"not ready.*does not reproduce"):
        serve([wrong], port=0, grpc_port=0).__enter__()


def test_a_tampered_bundle_is_refused_before_any_server_starts(copy: Path) -> None:
    with (copy / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(TamperedFile):
        serve([copy], port=0, grpc_port=0).__enter__()


def test_another_kind_and_a_name_twice_are_refused(digits: Path, copy: Path) -> None:
    with pytest.raises(ServingFailed, match="version '1' of 'digits' is given twice"):
        open_bundles([digits, copy])
    write_manifest(copy, kind="detection")
    with pytest.raises(ServingFailed, match=r"another kind.*got detection, expected clas"):
        open_bundles([copy], "classification")
    with pytest.raises(ServingFailed, match="of a kind that no service serves yet"):
        serve([copy], port=0, grpc_port=0).__enter__()
    with pytest.raises(ServingFailed, match="no bundle"):
        open_bundles([])


@pytest.mark.parametrize(
    ("codec", "said"),
    [
        ({"classes": ["a", "b"], "scores": "probabilities"}, "names 2 classes"),
        ({"scores": "nothing"}, "names 0 classes"),
        ({"image": {"name": "nothing", "height": 1, "width": 1}}, "an input it lacks"),
    ],
)
def test_a_codec_that_does_not_fit_is_refused(copy: Path, codec: Any, said: str) -> None:
    (copy / "codec.json").write_text(json.dumps(codec))
    write_manifest(copy, signature=DIGITS)
    with pytest.raises(BundleError, match=said):
        open_bundles([copy])


def test_a_sound_server_has_started_is_live_and_ready(http: httpx.Client) -> None:
    for path in ("/startupz", "/livez", "/readyz", "/v2/health/live", "/v2/health/ready"):
        assert http.get(path).status_code == 200, path
    assert http.get("/v2/models/digits/ready").status_code == 200


def test_all_workers_were_ready_when_the_last_one_is(tmp_path: Path) -> None:
    (tmp_path / "ready").mkdir()
    crew = workers(2, {SHARED: str(tmp_path)})
    assert not crew.any()
    crew.join()  # this process
    assert crew.any()
    assert not crew.were_all()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        (tmp_path / "ready" / str(other.pid)).touch()
        crew.join()
        assert crew.were_all()
        other.communicate(b"\n")
    assert not lives(other.pid)
    crew.leave()
    assert not crew.any()  # whoever died is not counted, and
    assert crew.were_all()  # nobody has to start again for it


def test_one_that_died_before_the_last_was_ready_is_waited_for(tmp_path: Path) -> None:
    crew = workers(2, {SHARED: str(tmp_path)})
    with subprocess.Popen([sys.executable, "-c", ""]) as other:
        pass
    (tmp_path / "ready").mkdir()
    (tmp_path / "ready" / str(other.pid)).touch()
    crew.join()
    assert not crew.were_all()


def test_a_process_without_a_supervisor_is_alone() -> None:
    crew = workers(1, {})
    crew.join()
    assert crew.were_all()
    assert not crew.any()
