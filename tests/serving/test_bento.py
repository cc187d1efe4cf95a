"""A built Bento holds what serves its bundle and nothing that trains, and answers as recorded."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
import venv
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows.bento import BASE_IMAGE, Bento, build_bento, extras, packaged
from flows.distribution import packages, write_wheel
from models.errors import BuildFailed, ServingFailed
from pipeline.bundle import MANIFEST, Bundle, open_bundle
from serving.ask import ask
from serving.launch import end
from serving.ports import free_port
from tests.conftest import Release
from tests.serving.conftest import FORBIDDEN

ROOT = Path(__file__).parents[2]
# What trains, tests or schedules: none of it goes into a container.
NEVER = {*FORBIDDEN, "onnxscript", "scikit-learn", "scipy", "gymnasium", "keras", "pytest"}


@pytest.fixture(scope="module")
def bundle(digits: Path) -> Bundle:
    return open_bundle(digits)


@pytest.fixture(scope="module")
def bento(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bento:
    return build_bento(bundle, tmp_path_factory.mktemp("run"))


def wheel_of(bento: Bento) -> Path:
    (wheel,) = (bento.folder / "env/python/wheels").iterdir()
    return wheel


@contextmanager
def served(
    command: list[str], environment: Mapping[str, str], folder: Path
) -> Iterator[tuple[str, str]]:
    """REST and gRPC addresses of a server, once it is ready."""
    port, grpc_port = free_port("127.0.0.1"), free_port("127.0.0.1")
    process = subprocess.Popen(
        [*command, "--port", str(port), "--quiet"],
        env={
            **environment,
            "FUCINA_GRPC_PORT": str(grpc_port),
            "BENTOML_HOME": str(folder / "home"),
            "BENTOML_DO_NOT_TRACK": "True",
        },
        cwd=folder,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None:
            try:
                urllib.request.urlopen(f"{address}/v2/health/ready", timeout=5).close()
                break
            except OSError:
                time.sleep(0.05)
        yield address, f"127.0.0.1:{grpc_port}"
    finally:
        end(process)


def assert_answers(addresses: tuple[str, str], bundle: Bundle, version: str) -> None:
    found = ask(*addresses, bundle)
    assert found.keys() == {"REST", "gRPC"}
    for findings in found.values():
        assert findings
        assert all(finding.passed for finding in findings)
    case = bundle.cases()[0]
    asked = {"inputs": {name: array.tolist() for name, array in case.inputs.items()}}
    request = urllib.request.Request(
        f"{addresses[0]}/predict", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        rows = len(next(iter(case.inputs.values())))
        assert len(json.load(answer)["predictions"]) == rows
    with urllib.request.urlopen(f"{addresses[0]}/v2", timeout=30) as answer:
        assert json.load(answer)["version"] == version


def test_a_bento_holds_the_bundle_and_packages_that_only_serve(
    bento: Bento, bundle: Bundle
) -> None:
    source = bento.folder / "src"
    files = {p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()}
    # The last one is BentoML's own copy of what it was asked to build.
    assert files == {*bundle.manifest.files, MANIFEST, "bentofile.yaml"}
    assert open_bundle(source).digest == bundle.digest

    lines = (bento.folder / "env/python/requirements.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines)
    assert {"bentoml", "onnxruntime", "grpcio", "numpy", "orjson", "pydantic"} <= pins.keys()
    assert not NEVER & pins.keys()
    assert sorted(lines) == sorted(package.requirement for package in bento.packages)

    names = zipfile.ZipFile(wheel_of(bento)).namelist()
    assert "serving/classification.py" in names
    assert "pipeline/backends/ort.py" in names
    for training in ("models/lenet5.py", "models/zoo.py", "pipeline/train.py", "pipeline/export.py",
                     "pipeline/backends/ort_int8.py", "serving/generative.py"):  # fmt: skip
        assert training not in names
    assert {name.partition("/")[0] for name in names if "dist-info" not in name} == {
        "models", "pipeline", "serving",
    }  # fmt: skip

    said = bento.describe()
    assert bento.tag.startswith(f"digits:{bundle.manifest.version}-")
    assert said["not_pinned"] == []
    assert said["installed_bytes"] >= sum(said["largest"].values()) > 10**7
    assert len(said["largest"]) == 10
    assert str(bento.folder.parent) not in json.dumps(
        [p.read_text() for p in bento.folder.rglob("*.yaml")]
    )


def test_its_wheel_records_what_it_holds_and_is_always_the_same(
    bento: Bento, tmp_path: Path
) -> None:
    wheel = wheel_of(bento)
    needed = packages(extras(["cpu"]))
    again = write_wheel(["serving.classification", "pipeline.backends.ort"], needed, tmp_path)
    assert (again.name, again.read_bytes()) == (wheel.name, wheel.read_bytes())
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        record = next(name for name in names if name.endswith("/RECORD"))
        rows = list(csv.reader(archive.read(record).decode().splitlines()))
        assert [row[0] for row in rows] == names
        for name, digest, size in rows[:-1]:
            data = archive.read(name)
            hashed = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
            assert (digest, size) == (f"sha256={hashed}", str(len(data)))


def test_the_same_bundle_is_built_once_and_another_image_is_another_bento(
    bento: Bento, bundle: Bundle
) -> None:
    run = bento.folder.parents[1]
    before = (bento.folder / "bento.yaml").stat().st_mtime_ns
    again = build_bento(bundle, run)
    assert (again, (again.folder / "bento.yaml").stat().st_mtime_ns) == (bento, before)
    assert (run / "bento").resolve() == bento.folder

    pinned = "registry.example/python@sha256:" + "0" * 64
    other = build_bento(bundle, run, pinned)
    assert other.tag != bento.tag
    text = (other.folder / "env/docker/Dockerfile").read_text()
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == [pinned, pinned]


def test_its_dockerfile_installs_no_compiler_and_runs_as_nobody(bento: Bento) -> None:
    text = (bento.folder / "env/docker/Dockerfile").read_text()
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == [BASE_IMAGE, BASE_IMAGE]
    assert re.search(r"python:\d+\.\d+\.\d+\S*-slim", BASE_IMAGE)
    assert not re.search(r"apt|build-essential|gcc|g\+\+|\{\{|\{%", text)
    assert "--only-binary :all:" in text
    assert re.search(r"^EXPOSE 3000 3001$", text, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK .*CMD", text, re.MULTILINE)
    assert "BENTOML_CONTAINERIZED=true" in text  # listens on every interface
    users = re.findall(r"^USER (\S+)", text, re.MULTILINE)
    assert [int(user) > 0 for user in users] == [True]
    # What it serves, it cannot change: the user comes after every COPY, and none has --chown.
    assert text.index("\nUSER") > text.rindex("\nCOPY")
    assert "chown" not in text


def test_engines_on_a_gpu_need_the_packages_of_the_gpu() -> None:
    assert extras(["cpu", "cpu"]) == ("cpu", "serve")
    assert extras(["cpu", "cuda"]) == ("gpu", "serve")
    found = {package.name: package for package in packages(("gpu", "serve"))}
    assert {"onnxruntime-gpu", "tensorrt"} <= found.keys()
    assert "onnxruntime" not in found
    for name in ("onnxruntime-gpu", "tensorrt"):
        if found[name].bytes is None:  # not of this machine, so a range
            assert re.search(r"[<>]=?\d", found[name].requirement)


def test_what_cannot_be_served_is_not_built(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = [package for package in packages(()) if package.name != "bentoml"]
    with pytest.raises(BuildFailed, match=r"serving\.classification cannot be imported"):
        write_wheel(["serving.classification"], core, tmp_path)
    nobodys = bundle.manifest.model_copy(update={"kind": "detection"})
    with pytest.raises(ServingFailed, match="no service serves"):
        build_bento(Bundle(bundle.folder, nobodys, bundle.codec), tmp_path)
    # Code that does not import is found out when the Bento is built, not when it is served.
    monkeypatch.setattr("flows.bento.SERVICES", {"classification": "serving.classification:No"})
    with pytest.raises(BuildFailed, match=r"BentoML did not build the Bento: got .*No"):
        build_bento(bundle, tmp_path)
    assert not list(tmp_path.glob("bentos/*"))


def test_without_bentoml_there_is_one_line_and_no_bento(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("flows.bento.find_spec", lambda name: None)
    assert packaged(bundle, tmp_path, None) == {}
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'fucina[serve]'" in line
    assert not list(tmp_path.iterdir())


def test_a_built_bento_serves_what_its_bundle_serves(
    bento: Bento, bundle: Bundle, tmp_path: Path, forbidden_imports: Path
) -> None:
    """With the code of its own wheel, and where what trains cannot be imported."""
    code = tmp_path / "code"
    shutil.unpack_archive(wheel_of(bento), code, "zip")
    paths = os.pathsep.join([str(code), str(forbidden_imports.parent)])
    command = [sys.executable, "-m", "bentoml", "serve", str(bento.folder)]
    with served(command, os.environ | {"PYTHONPATH": paths}, tmp_path) as addresses:
        assert_answers(addresses, bundle, wheel_of(bento).name.split("-")[1])
    assert not forbidden_imports.exists(), forbidden_imports.read_text()


def fresh(folder: Path, *requirements: str) -> Path:
    """A new environment of these packages; skips where no index is reached."""
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin/python"), "-m", "pip", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "install", "--quiet", "--no-input", *requirements],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode and "NewConnectionError" in done.stderr:
        pytest.skip("no package index is reached")
    assert done.returncode == 0, done.stderr
    return folder / "bin"


def installed(binaries: Path) -> dict[str, str]:
    listed = subprocess.run(
        [str(binaries / "python"), "-m", "pip", "list", "--format", "json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {
        row["name"].lower().replace("_", "-"): row["version"] for row in json.loads(listed.stdout)
    }


# Of this environment's own, no other is to be found in there.
CLEAN = {
    name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))
}


@pytest.mark.slow  # installs 78 packages
def test_a_clean_environment_of_its_requirements_serves_it(lenet5: Release, tmp_path: Path) -> None:
    bento = build_bento(lenet5.bundle, tmp_path / "run")
    python = bento.folder / "env/python"
    binaries = fresh(
        tmp_path / "venv", "--only-binary", ":all:", "-r", str(python / "requirements.txt"),
        str(wheel_of(bento)),
    )  # fmt: skip
    version = wheel_of(bento).name.split("-")[1]
    pins = dict(package.requirement.split("==") for package in bento.packages)
    there = installed(binaries)
    assert {name: there.pop(name) for name in pins} == pins
    assert there.pop("fucina") == version
    assert there.keys() <= {"pip", "setuptools"}
    command = [str(binaries / "bentoml"), "serve", str(bento.folder)]
    environment = CLEAN | {"PATH": f"{binaries}{os.pathsep}{CLEAN['PATH']}"}
    with served(command, environment, tmp_path) as addresses:
        assert_answers(addresses, lenet5.bundle, version)


@pytest.mark.slow  # installs 78 packages
def test_the_extras_cpu_and_serve_alone_serve_a_bundle(lenet5: Release, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("models", "pipeline", "serving", "flows"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    binaries = fresh(tmp_path / "venv", f"{source}[cpu,serve]")
    assert not NEVER & installed(binaries).keys()
    done = subprocess.run(
        [str(binaries / "fucina"), "serve", str(lenet5.bundle.folder.absolute()), "--check",
         "--json", "--port", "0", "--grpc-port", "0"],
        env=CLEAN, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["models"]
    assert row["rest"]["answers"] == row["grpc"]["answers"] > 0
