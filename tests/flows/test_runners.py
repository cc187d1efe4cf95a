"""Many recipes on a cluster: real ones of Dask and Ray on this machine, and what else is said."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from flows.runners import Order, check_runner, released, server_for_workers
from models.errors import BadSetting
from pipeline.bundle import open_bundle

NAMES = ("xor", "perceptron", "mlp")
LITTLE = ("--set", "epochs=1", "--set", "floor=none")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@contextlib.contextmanager
def started(*commands: list[str], port: int) -> Iterator[None]:
    """Processes of a cluster that listens on a port; each ends, with what it has started."""
    settings = os.environ | {
        "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    processes = []
    try:
        for command in commands:
            processes.append(
                subprocess.Popen(
                    [sys.executable, *command], env=settings, start_new_session=True,
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )
            )  # fmt: skip
            for _ in range(1200):
                if answers(port):
                    break
                assert processes[-1].poll() is None, command
                time.sleep(0.1)
        yield
    finally:
        for process in reversed(processes):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)


@contextlib.contextmanager
def dask(folder: Path) -> Iterator[str]:
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    local = ["--no-dashboard", "--local-directory", str(folder)]
    scheduler = ["-m", "distributed.cli.dask_scheduler", "--host", address, "--no-dashboard"]
    worker = ["-m", "distributed.cli.dask_worker", address, "--nworkers", "2", "--nthreads", "1"]
    with started(scheduler, [*worker, "--host", "127.0.0.1", *local], port=port):
        from distributed import Client

        with Client(address, timeout=120, set_as_default=False) as client:
            client.wait_for_workers(2, 120)
        yield address


@contextlib.contextmanager
def ray(folder: Path) -> Iterator[str]:
    port = free_port()
    head = [
        "-m", "ray.scripts.scripts", "start", "--head", "--block", "--node-ip-address=127.0.0.1",
        f"--port={port}", "--num-cpus=2", "--include-dashboard=false",
        "--object-store-memory=100000000", "--disable-usage-stats", f"--temp-dir={folder}",
    ]  # fmt: skip
    with started(head, port=port):
        yield f"127.0.0.1:{port}"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["dask", "ray"])
def test_a_cluster_releases_three_recipes(kind: str, tmp_path: Path) -> None:
    """A cluster, a Prefect server and three releases: minutes."""
    if find_spec({"dask": "distributed", "ray": "ray"}[kind]) is None:
        pytest.skip(f"needs the extra {kind!r}")
    # Ray's sockets lie in its folder, and their paths may not be long.
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as short,
        {"dask": dask, "ray": ray}[kind](Path(short)) as address,
    ):
        command = ["run", *NAMES, "--runner", kind, "--address", address, *LITTLE, "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "flows", *command, "--out", str(tmp_path)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows.keys() == set(NAMES)
    for name, row in rows.items():
        assert row["certificate"]["passed"]
        assert open_bundle(tmp_path / name / "bundle").digest == row["digest"]


@pytest.mark.parametrize("runner", ["dask", "ray"])
def test_no_address_is_one_line(runner: str) -> None:
    with pytest.raises(BadSetting, match=f"--runner {runner} needs the address.*give --address"):
        check_runner(runner, "")


@pytest.mark.parametrize(
    ("server", "address", "told"),
    [
        ("http://127.0.0.1:4200/api", "tcp://127.0.0.1:8786", True),
        ("http://127.0.0.1:4200/api", "127.0.0.1:6379", True),
        ("http://127.0.0.1:4200/api", "tcp://10.0.0.5:8786", False),
        ("http://prefect.example/api", "10.0.0.5:6379", True),
        (None, "10.0.0.5:6379", False),
    ],
)
def test_workers_hear_of_a_server_that_they_can_reach(
    server: str | None, address: str, told: bool
) -> None:
    expected = (("PREFECT_API_URL", server),) if told else ()
    assert server_for_workers(server, address) == expected


@pytest.mark.slow
def test_what_fails_on_a_worker_is_a_row() -> None:
    """Starts a Prefect server."""
    row = released(Order("nonsense", ()))
    assert row["name"] == "nonsense"
    assert "exit code 1 on the worker: " in row["error"]
    assert "nonsense" in row["error"]
