"""A Prefect server and a worker on this machine, which stay when the command that starts them ends.

Their process ids and when they started are kept in a file, so that starting them again starts what
is missing, and ending them ends these processes and what they started, and no others.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from flows import POOL
from flows.environment import SETTINGS, answers, cause, prefect_home, up_file
from models.errors import FucinaError
from pipeline.artifacts import write_json

_STARTED = b"--- started by fucina up\n"  # in a log, which is kept from start to start
_MARK = "FUCINA_UP"  # in the environment of all that was started, whoever its parent is by now
_PATIENCE = 180.0
_GRACE = 20.0
_HOST = "127.0.0.1"


@dataclass(frozen=True)
class Started:
    """A process that was started: its id, and when, for an id is given again."""

    pid: int
    created: float

    def process(self) -> psutil.Process | None:
        """The process if it still runs."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            zombie = process.status() == psutil.STATUS_ZOMBIE
            if not zombie and abs(process.create_time() - self.created) < 1:
                return process
        return None


@dataclass(frozen=True)
class Up:
    """What runs: the server's address, a mark that all its processes carry, and these."""

    address: str
    mark: str
    processes: dict[str, Started] = field(default_factory=dict)

    @property
    def api(self) -> str:
        return f"{self.address}/api"


def read_up() -> Up | None:
    """What was started last by `fucina up` of this PREFECT_HOME and not ended."""
    try:
        data: dict[str, Any] = json.loads(up_file().read_bytes())
    except (OSError, ValueError):
        return None
    processes = {name: Started(**one) for name, one in data.pop("processes").items()}
    return Up(**data, processes=processes)


def up(port: int, database: str | None, runs: int) -> Up:
    """Have a server and a worker; what runs already stays.

    The database is SQLite in PREFECT_HOME, or what `database` says, which is kept nowhere. Raises
    `FucinaError` when one does not start, or something else listens on the port.
    """
    state = read_up()
    if state is None or not _alive(state, "server"):
        address = f"http://{_HOST}:{port}"
        if answers(f"{address}/api"):
            raise FucinaError(
                f"a Prefect server that `fucina up` did not start answers on {address}",
                fix="end it, give another --port, or use it: set PREFECT_API_URL",
            )
        kept = state.processes if state and state.address == address else {}
        mark = state.mark if state else os.urandom(8).hex()
        state = Up(address, mark, kept)
        command = ["server", "start", "--host", _HOST, "--port", str(port)]
        extra = {"PREFECT_API_DATABASE_CONNECTION_URL": database} if database else {}
        state = _start(state, "server", command, extra)
    server = state
    _wait("server", server, lambda: answers(server.api))
    os.environ["PREFECT_API_URL"] = state.api
    import asyncio

    from flows.setup import prepare, release_pending

    asyncio.run(prepare(runs))
    if not _alive(state, "worker"):
        asyncio.run(release_pending())
        command = ["worker", "start", "--pool", POOL, "--type", "process", "--name", POOL]
        state = _start(state, "worker", command, {})
    with_worker = state
    _wait("worker", with_worker, lambda: asyncio.run(_online()))
    return state


def down() -> list[int]:
    """End what `fucina up` started, runs first, and all their processes; the ids that were ended.

    A run that is ended says so to the server while that still answers.
    """
    state = read_up()
    if state is None:
        return []
    ended: list[int] = []
    for name in ("runs", "worker", "server", "rest"):
        own = {started.pid for started in state.processes.values()}
        found = [
            process for process in _marked(state)
            if name == "rest"
            or (process.pid not in own if name == "runs" else _is(state, name, process))
        ]  # fmt: skip
        ended += _end(found)
    up_file().unlink(missing_ok=True)
    return ended


def _start(state: Up, name: str, command: list[str], extra: dict[str, str]) -> Up:
    home = prefect_home()
    home.mkdir(parents=True, exist_ok=True)
    environment = {**SETTINGS, **os.environ, **extra, _MARK: state.mark}
    environment |= {"PREFECT_API_URL": state.api, "PREFECT_HOME": str(home)}
    environment.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")
    if name == "server":
        environment.pop("PREFECT_API_URL")  # it is the server, and asks nobody
        environment["PREFECT_UI_API_URL"] = state.api  # what its page in a browser asks
    with _log(name).open("ab") as log:
        log.write(_STARTED)
        log.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", *command],
            env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    process.returncode = 0  # it is not ours to wait for
    started = Started(process.pid, psutil.Process(process.pid).create_time())
    state = Up(state.address, state.mark, {**state.processes, name: started})
    write_json(up_file(), asdict(state))
    return state


def _wait(name: str, state: Up, ready: Callable[[], bool]) -> None:
    until = time.monotonic() + _PATIENCE
    while not ready():
        if not _alive(state, name) or time.monotonic() > until:
            raise FucinaError(
                f"the Prefect {name} did not start",
                got=cause(_log(name).read_bytes().rpartition(_STARTED)[2]) or "nothing",
                fix=f"see {_log(name)}; `fucina down` ends what runs",
            )
        time.sleep(0.2)


async def _online() -> bool:
    from prefect.client.orchestration import get_client

    async with get_client() as client:
        workers = await client.read_workers_for_work_pool(POOL)
        return any(worker.status == "ONLINE" for worker in workers)


def _alive(state: Up, name: str) -> bool:
    return name in state.processes and state.processes[name].process() is not None


def _is(state: Up, name: str, process: psutil.Process) -> bool:
    return name in state.processes and state.processes[name].pid == process.pid


def _marked(state: Up) -> list[psutil.Process]:
    """Every process with the mark in its environment; of other users' nothing can be read."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(_MARK) == state.mark and process.pid != os.getpid():
                found.append(process)
    return found


def _end(processes: list[psutil.Process]) -> list[int]:
    """Ask processes to end, and make those that do not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        _, left = psutil.wait_procs(processes, timeout=_GRACE)
        if not left:
            break
    return [process.pid for process in processes]


def _log(name: str) -> Path:
    return prefect_home() / f"fucina-{name}.log"
