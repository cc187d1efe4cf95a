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

from serving.ask import ask
from serving.launch import end
from serving.runtime import free_port
from tests.conftest import Release

BENTOML = [sys.executable, "-m", "bentoml"]


@pytest.fixture(scope="module")
def environment(
    tmp_path_factory: pytest.TempPathFactory, forbidden_imports: Path
) -> dict[str, str]:
    home = tmp_path_factory.mktemp("bentoml")
    return os.environ | {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}


@pytest.fixture(scope="module")
def tag(
    lenet5: Release, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> str:
    bundle = shutil.copytree(lenet5.bundle.folder, tmp_path_factory.mktemp("bento") / "lenet5")
    built = subprocess.run(
        [*BENTOML, "build", str(bundle), "--output", "tag"],
        env=environment, cwd=bundle.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    return built.stdout.strip().splitlines()[-1].removeprefix("__tag__:")


def test_a_built_bento_serves_what_its_bundle_serves(
    tag: str, environment: dict[str, str], lenet5: Release, tmp_path: Path, forbidden_imports: Path
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
        for findings in ask(address, f"127.0.0.1:{grpc_port}", lenet5.bundle).values():
            assert findings
            assert all(finding.passed for finding in findings)
    finally:
        end(process)
    assert tag.startswith("lenet5:")
    assert not forbidden_imports.exists(), forbidden_imports.read_text()
