"""The Prefect server that a run reports to: the one that is configured or running, or our own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from models.errors import FucinaError

# Quiet, offline and robust; each only where the caller's environment leaves it open.
SETTINGS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    # In memory, a server restart crashes runs that hold a slot, and leaks the slot.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
        "prefect.server.concurrency.lease_storage.filesystem"
    ),
    # What Prefect logs goes to its server and its UI; the terminal is for our own progress.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
}
# Lets a standing server see that a run was killed; its thread costs a flow a second at the end.
_HEARTBEAT = ("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")
_LOCAL_SERVER = "http://127.0.0.1:4200/api"
_PATIENCE = 120.0
_WHY = re.compile(r"[\w.]+(Error|Exception): |ERROR: +\[Errno")  # of Python, of uvicorn


@contextlib.contextmanager
def prefect_server(standing: bool = False) -> Iterator[Callable[[], None]]:
    """Have a Prefect server; yields a function that waits until it answers.

    Uses PREFECT_API_URL, of the environment or of the active Prefect profile, else the server of
    `fucina up`, else one on this machine's port 4200, else starts a temporary one that ends with
    this process. It starts while the caller imports torch and reads data. Enter before Prefect is
    first imported, which is when it reads its settings. The function raises `FucinaError` when
    there is no answer; where only a `standing` server will do, so does this one.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    configured = os.environ.get("PREFECT_API_URL") or _of_profile() or _of_up()
    there = configured or (_LOCAL_SERVER if answers(_LOCAL_SERVER) else None)
    if there:
        os.environ.setdefault(*_HEARTBEAT)
        with _environment("PREFECT_API_URL", there):
            yield lambda: _check(there)
        return
    if standing:
        raise FucinaError(
            "no Prefect server answers", got=_LOCAL_SERVER,
            fix="run `fucina up` first, or set PREFECT_API_URL",
        )  # fmt: skip
    with tempfile.TemporaryFile() as log:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
            # The child ends when this process does: not before, because Prefect sends logs and
            # events while the interpreter shuts down.
            server = ["flows.temporary_server", str(listener.fileno())]
            child = subprocess.Popen(
                [sys.executable, "-m", "pipeline.attached", *server],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
            )
        with _environment("PREFECT_API_URL", address):
            from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

            # Nobody is left to read heartbeats of a server that ends with its run.
            with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
                yield lambda: _wait(child, address, log)


def _wait(child: subprocess.Popen[bytes], address: str, log: IO[bytes]) -> None:
    until = time.monotonic() + _PATIENCE
    while not answers(address, timeout=5):
        if child.poll() is not None or time.monotonic() > until:
            log.seek(0)
            raise FucinaError(
                "the temporary Prefect server did not start",
                got=cause(log.read()) or f"no answer within {_PATIENCE:.0f} s",
                fix="start one with `prefect server start`, or set PREFECT_API_URL",
            )
        time.sleep(0.05)


def cause(log: bytes) -> str:
    """The line of a process's last words that says why it ended; nothing when it said nothing."""
    lines = log.decode(errors="replace").strip().splitlines()
    # Servers say at the end that they end, and before that why.
    return next((line for line in reversed(lines) if _WHY.match(line)), lines[-1] if lines else "")


def _check(address: str) -> None:
    try:
        urllib.request.urlopen(f"{address}/health", timeout=10).close()
    except urllib.error.HTTPError:
        pass  # it wants a key, or has no such page: it is there
    except (OSError, ValueError) as error:
        raise FucinaError(
            "the Prefect server does not answer",
            got=address,
            fix="start it, or unset PREFECT_API_URL to use a temporary one",
        ) from error


def answers(address: str, timeout: float = 0.5) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=timeout) as answer:
            return answer.status == 200
    except (OSError, ValueError):  # an HTTP error is an OSError: something else listens there
        return False


def prefect_home() -> Path:
    """Where Prefect keeps its profiles and SQLite, and `fucina up` what it has started."""
    return Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect")


def up_file() -> Path:
    return prefect_home() / "fucina-up.json"


def _of_up() -> str | None:
    """The server that `fucina up` has started and that answers."""
    try:
        address = json.loads(up_file().read_bytes())["address"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return f"{address}/api" if answers(f"{address}/api") else None


def _of_profile() -> str | None:
    """PREFECT_API_URL of the active Prefect profile; Prefect itself is not imported yet."""
    path = Path(os.environ.get("PREFECT_PROFILES_PATH") or prefect_home() / "profiles.toml")
    try:
        profiles = tomllib.loads(path.read_text())
    except (OSError, ValueError):
        return None
    active = os.environ.get("PREFECT_PROFILE") or profiles.get("active", "")
    return profiles.get("profiles", {}).get(active, {}).get("PREFECT_API_URL")


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
