"""A server and a worker that stay: a scheduled release, what is killed is there again, the end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.exceptions import PrefectException

from flows import local_server
from flows.environment import cause
from flows.local_server import Started, Up
from flows.scheduling import FLOWS
from models.errors import FucinaError
from tests.flows.conftest import Fucina, ask_prefect

ROOT = Path(__file__).parents[2]


def test_a_process_is_known_by_its_id_and_its_start() -> None:
    own = psutil.Process()
    assert Started(own.pid, own.create_time()).process() == own
    assert Started(own.pid, own.create_time() - 60).process() is None  # the id was given again


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (b"  File x\nsqlite3.OperationalError: no file\n\nERROR:    Exiting.\nServer stopped!\n",
         "sqlite3.OperationalError: no file"),
        (b"ERROR:    [Errno 98] in use\nServer stopped!", "ERROR:    [Errno 98] in use"),
        (b"Check out the page\nServer stopped!\n", "Server stopped!"),
        (b"\n", ""),
    ],
)  # fmt: skip
def test_the_cause_of_an_end_is_found_above_it(log: bytes, said: str) -> None:
    assert cause(log) == said


def test_the_cause_is_of_the_last_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    log = b"ValueError: of another day\n" + local_server._STARTED + b"Server stopped!\n"
    (tmp_path / "fucina-server.log").write_bytes(log)
    with pytest.raises(FucinaError, match="did not start: got Server stopped!"):
        local_server._wait("server", Up("", "", {}), lambda: False)


def test_a_database_that_does_not_answer_is_said(
    fucina: Fucina, tmp_path: Path, alone: dict[str, str]
) -> None:
    database = "postgresql+asyncpg://somebody:secret@127.0.0.1:1/none"
    port = str(unused_port())
    done = fucina("up", "--port", port, "--database", database, cwd=tmp_path, **alone)
    assert done.returncode == 1
    assert "the Prefect server did not start: got ConnectionRefusedError" in done.stderr
    assert "secret" not in done.stdout + done.stderr


def test_nothing_is_up_and_nothing_can_be_scheduled(fucina: Fucina, tmp_path: Path) -> None:
    alone = {"PREFECT_HOME": str(tmp_path / "home"), "PREFECT_API_URL": ""}
    assert fucina("down", cwd=tmp_path, **alone).stdout == "nothing was up\n"
    bad = fucina("schedule", "release", cwd=tmp_path, **alone)
    assert bad.returncode == 2
    assert "give FLOW and NAME, or --list" in bad.stderr


def test_a_schedule_is_refused_before_it_is_made(fucina: Fucina, tmp_path: Path) -> None:
    words = ("schedule", "retrain", "mlp", "--cron", "61 * * * *")
    done = fucina(*words, cwd=tmp_path)
    assert done.returncode == 1
    assert "the schedule is refused" in done.stderr
    done = fucina(*words[:4], "* * * * *", "--seed", "old", cwd=tmp_path)
    assert done.returncode == 1
    assert "seed" in done.stderr


@pytest.mark.parametrize("name", [*FLOWS, "release_zoo"])
def test_what_work_pools_are_given_is_what_the_flows_take(name: str) -> None:
    yaml = pytest.importorskip("yaml")
    document = yaml.safe_load((ROOT / "deploy/prefect.yaml").read_text())
    assert name in {one["entrypoint"].partition(":")[2] for one in document["deployments"]}
    for one in document["deployments"]:
        module, _, function = one["entrypoint"].partition(":")
        assert module == f"flows.{function}"
        if function == name:
            flow = getattr(import_module(module), name)
            flow.validate_parameters(one["parameters"])
            with pytest.raises(PrefectException, match="unknown"):
                flow.validate_parameters(one["parameters"] | {"unknown": 1})
    assert {one["work_pool"]["name"] for one in document["deployments"]} == {
        "fucina", "fucina-docker", "fucina-kubernetes",
    }  # fmt: skip


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def until(said: Callable[[], Any], seconds: float = 400) -> Any:
    end = time.monotonic() + seconds
    while not (found := said()):
        assert time.monotonic() < end
        time.sleep(0.5)
    return found


def marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("FUCINA_UP") == mark:
                found.append(process)
        except (psutil.Error, OSError):
            pass
    return found


@pytest.fixture
def alone(tmp_path: Path, fucina: Fucina) -> Iterator[dict[str, str]]:
    settings = {"PREFECT_HOME": str(tmp_path / "home"), "PREFECT_API_URL": ""}
    yield settings
    fucina("down", cwd=tmp_path, **settings)


@pytest.mark.slow
def test_a_release_outlives_what_is_killed(
    fucina: Fucina, tmp_path: Path, alone: dict[str, str]
) -> None:
    def do(*words: str) -> str:
        done = fucina(*words, cwd=tmp_path, **alone)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def runs() -> list[tuple[str, str]]:
        return [
            (run["id"], run["state"]["name"])
            for run in ask_prefect(state.api, "flow_runs/filter", {"sort": "START_TIME_ASC"})
            if run["state"]["type"] != "SCHEDULED"
        ]

    port = str(unused_port())
    first = json.loads(do("up", "--port", port, "--json"))
    file = json.loads((tmp_path / "home/fucina-up.json").read_text())
    state = Up(file["address"], file["mark"])
    assert json.loads(do("up", "--port", port, "--json")) == first  # nothing to do

    settings = ("--set", "epochs=60", "--set", "floor=none")
    do("schedule", "release", "mlp", "--interval", "3600", "--now", *settings)
    assert "release/mlp" in do("schedule", "--list")
    ((run, _),) = until(lambda: [one for one in runs() if one[1] == "Running"])

    def process(name: str) -> psutil.Process | None:
        return next((one for one in marked(state.mark) if name in one.cmdline()), None)

    until(lambda: process("flows.child"))
    flow = until(lambda: process("prefect.engine"))
    flow.kill()
    until(lambda: (run, "Crashed") in runs())
    until(lambda: process("flows.child") is None)
    retry = [sys.executable, "-m", "prefect", "flow-run", "retry", run]
    subprocess.run(retry, env=os.environ | alone | {"PREFECT_API_URL": state.api}, check=True)
    until(lambda: process("flows.child"))
    for name in ("worker", "server"):
        os.kill(first["processes"][name], signal.SIGKILL)
        again = json.loads(do("up", "--port", port, "--json"))
        assert again["processes"][name] != first["processes"][name]
    until(lambda: (run, "Completed") in runs())
    do("run", "mlp", *settings, "--out", "undisturbed")
    manifests = [tmp_path / out / "mlp/bundle/manifest.json" for out in ("runs", "undisturbed")]
    assert manifests[0].read_bytes() == manifests[1].read_bytes()  # with the digest of every file
    do("schedule", "release", "mlp", "--remove")
    do("down")
    assert marked(state.mark) == []
    assert do("down") == "nothing was up\n"
