"""A bundle is what `bentoml build` builds a Bento from, and the Bento serves the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from pipeline.bundle import open_bundle
from serving.ask import ask
from serving.launch import end
from serving.runtime import free_port

BENTOFILE = """\
service: "serving.classification:Classification"
name: "digits"
include: ["**"]
python:
  packages: ["fucina[cpu,serve]==0.1.0"]
  lock_packages: false
"""
BENTOML = [sys.executable, "-m", "bentoml"]


@pytest.fixture(scope="module")
def environment(
    tmp_path_factory: pytest.TempPathFactory, forbidden_imports: Path
) -> dict[str, str]:
    home = tmp_path_factory.mktemp("bentoml")
    return os.environ | {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}


@pytest.fixture(scope="module")
def tag(digits: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    bundle = shutil.copytree(digits, tmp_path_factory.mktemp("bento") / "digits")
    (bundle / "bentofile.yaml").write_text(BENTOFILE)
    built = subprocess.run(
        [*BENTOML, "build", str(bundle), "--output", "tag"],
        env=environment, cwd=bundle.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    return built.stdout.strip().splitlines()[-1].removeprefix("__tag__:")


def test_a_built_bento_serves_what_its_bundle_serves(
    tag: str, environment: dict[str, str], digits: Path, tmp_path: Path, forbidden_imports: Path
) -> None:
    port, grpc_port = free_port("127.0.0.1"), free_port("127.0.0.1")
    process = subprocess.Popen(
        [*BENTOML, "serve", tag, "--port", str(port), "--quiet"],
        env=environment | {"FUCINA_GRPC_PORT": str(grpc_port)},
        cwd=tmp_path,
        start_new_session=True,
        text=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None:
            try:
                urllib.request.urlopen(f"{address}/v2/health/ready", timeout=5).close()
                break
            except OSError:
                time.sleep(0.05)
        for findings in ask(address, f"127.0.0.1:{grpc_port}", open_bundle(digits)).values():
            assert findings
            assert all(finding.passed for finding in findings)
    finally:
        end(process)
    assert tag.startswith("digits:")
    assert not forbidden_imports.exists(), forbidden_imports.read_text()
