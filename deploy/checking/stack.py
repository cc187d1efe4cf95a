"""Checks of the stack: brought up whole, from a cron tick to answered requests, and taken down.

Runs in a network of its own, where ports are nobody else's: `python -m deploy.checking.stack`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from deploy.checking import DEPLOY, Wrong, program, run
from deploy.checking.files import composed, made_secrets
from deploy.checking.images import ASK, BUILDING, EPOCHS, FLOOR, RECIPE, Engine, wait

_PROJECT = "fucina-check"
STARTING = 600.0  # seconds until the Prefect server has made its tables, and answers
# How the image that stands for the published ones starts as each.
_STARTS: dict[str, dict[str, Any]] = {
    "postgres": {"user": "postgres", "entrypoint": ["sh", "/postgres.sh"]},
    "prometheus": {"user": "prometheus", "entrypoint": ["prometheus"]},
}
_SCHEDULE = (
    "fucina", "schedule", "release", RECIPE, "--cron", "* * * * *", "--out", "/runs",
    "--set", f"epochs={EPOCHS}", "--set", f"floor={FLOOR}", "--device", "cpu",
)  # fmt: skip
_RUNS = """
import asyncio
from prefect.client.orchestration import get_client
async def main():
    async with get_client() as client:
        for run in await client.read_flow_runs():
            if run.state_type != "SCHEDULED":
                print(run.name, run.auto_scheduled, run.state_name)
asyncio.run(main())
"""


def stack(engine: Engine) -> str:
    """Bring it up, wait for a release by its schedule, ask what is served, and take it down."""
    services = engine.image("services")
    images = {
        "SERVING_IMAGE": engine.image("cpu"),
        "TRAIN_IMAGE": engine.image("train"),
        "POSTGRES_IMAGE": services,
        "PROMETHEUS_IMAGE": services,
    }
    described = composed(more=images | made_secrets())
    with _up(engine, described) as start:
        # What `depends_on` says, and serving last: without an engine's pauses, what restarts until
        # it finds what it needs takes a whole core from what it waits for.
        start("postgres", "prometheus", "prefect")
        wait(lambda: _get("http://127.0.0.1:4200/api/health"), STARTING)
        start("set-up", "worker")
        inside = _inside(engine, "worker")
        wait(lambda: inside(*_SCHEDULE), STARTING)
        wait(lambda: inside("test", "-e", f"/runs/{RECIPE}/bundle"), BUILDING)
        wait(lambda: _released(inside("python3", "-c", _RUNS)))
        start("serving")
        wait(lambda: _get("http://127.0.0.1:3000/readyz"))
        where = (f"/runs/{RECIPE}/bundle", "http://127.0.0.1:3000", "127.0.0.1:3001")
        answered = _inside(engine, "serving")("python3", "-c", ASK, *where, "ort-cpu-fp32")
        wait(_watched)
        if _status("http://127.0.0.1:4200/api/flows/count") != 401:
            raise Wrong("the Prefect server answers who has no password")
    return f"cron tick to answered request: {', '.join(answered.strip().splitlines())}"


@contextmanager
def _up(engine: Engine, described: dict[str, Any]) -> Iterator[Callable[..., object]]:
    """What starts services in this network, without what a host without an engine cannot give."""
    described = {"services": described["services"], "volumes": described["volumes"]}
    del described["services"]["grafana"]
    names = list(described["services"])
    for name, start in _STARTS.items():
        described["services"][name] |= start
    for service in described["services"].values():
        # Nothing here asks after health: what starts too early is restarted.
        for name in ("build", "ports", "networks", "healthcheck", "depends_on"):
            service.pop(name, None)
        service["network_mode"] = "host"
        service["extra_hosts"] = [f"{name}:127.0.0.1" for name in names]
        # Threads that spin cost most where other work runs as well.
        service["environment"] = (service.get("environment") or {}) | {"OMP_NUM_THREADS": "1"}
        service["ulimits"] = {"nofile": 1024, "nproc": 1000}
    described["volumes"] = {name: {} for name in described["volumes"]}
    with tempfile.TemporaryDirectory(dir=engine.folder) as scratch:
        file = Path(scratch) / "compose.json"
        file.touch(0o600)
        file.write_text(json.dumps(described))
        podman, *arguments = engine.podman_command
        command = (
            program("podman-compose"), "--podman-path", podman,
            f"--podman-args={' '.join(arguments)}", "--in-pod", "false",
            "--project-name", _PROJECT, "--file", str(file),
        )  # fmt: skip
        try:
            yield lambda *names: run(*command, "up", "--detach", *names, folder=DEPLOY)
        except Wrong as wrong:
            raise Wrong(f"{wrong}\n{_logs(engine)}") from wrong
        finally:
            with suppress(Wrong):
                run(*command, "down", "--volumes", "--timeout", "30", seconds=300)


def _logs(engine: Engine) -> str:
    """The last lines of every container."""
    found = []
    for name in engine.podman("ps", "--all", "--format", "{{.Names}}").split():
        with suppress(Wrong):
            found.append(f"{name}: {engine.podman('logs', '--tail', '5', name).strip()}")
    return "\n".join(found)


def _inside(engine: Engine, service: str) -> Any:
    def command(*words: str) -> str:
        return engine.podman("exec", f"{_PROJECT}_{service}_1", *words)

    return command


def _released(runs: str) -> None:
    """A run that a schedule made has ended well."""
    if "True Completed" not in runs:
        raise Wrong(f"no scheduled run is completed: {'; '.join(runs.splitlines())}")


def _watched() -> None:
    """Prometheus reads the server, and knows every alarm."""
    up = json.loads(_get("http://127.0.0.1:9090/api/v1/query?query=up"))["data"]["result"]
    if [one["value"][1] for one in up] != ["1"]:
        raise Wrong(f"Prometheus does not reach the server: {up}")


def _get(address: str) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return answer.read()
    except OSError as error:
        raise Wrong(f"{address} does not answer: {error}") from error


def _status(address: str) -> int:
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def main() -> None:
    """Run the check in this network for the engine that standard input describes."""
    given = json.load(sys.stdin)
    engine = Engine(Path(given.pop("folder")), **given)
    try:
        print(stack(engine))
    except Wrong as wrong:
        sys.exit(str(wrong))


if __name__ == "__main__":
    main()
