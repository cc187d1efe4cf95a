"""Real processes: the command line as a person runs it, and one Prefect server for all tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.standing_server import standing_server

Fucina = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(scope="session")
def prefect_api(prefect_home: Path) -> Iterator[str]:
    with standing_server(prefect_home) as address:
        yield address


@pytest.fixture(scope="session")
def fucina(prefect_home: Path, prefect_api: str) -> Fucina:
    """Run the command line in a process of its own, against the standing Prefect server."""

    def run(
        *arguments: str, cwd: Path, code: str | None = None, timeout: float = 300, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        command = ["-c", code] if code else ["-m", "flows"]
        environment = {
            **os.environ,
            "PREFECT_HOME": str(prefect_home),
            "PREFECT_API_URL": prefect_api,
            **variables,
        }
        environment = {name: value for name, value in environment.items() if value}
        return subprocess.run(
            [sys.executable, *command, *arguments],
            cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=timeout,
        )  # fmt: skip

    return run


def ask_prefect(api: str, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    request = urllib.request.Request(
        f"{api}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)
