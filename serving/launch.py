"""Start a server over bundles as a child process, wait until it is ready, end it again."""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.errors import BadSetting, ServingFailed
from pipeline.backends import DEFAULT_TARGET
from pipeline.bundle import SERVICES, Bundle
from serving.opening import open_bundles
from serving.predictor import LOADING
from serving.runtime import check_port, free_port
from serving.settings import Settings, write_settings

# How long a server may take to become ready, and to answer what is in flight when it ends.
PATIENCE = 120.0
GRACE = 20.0


@dataclass(frozen=True)
class Server:
    """A running server: where it answers, and the process that supervises its workers."""

    http: str
    grpc: str
    process: subprocess.Popen[str]

    def wait(self) -> int:
        """Block until the server ends by itself; its exit code."""
        return self.process.wait()


@contextmanager
def serve(
    folders: Sequence[Path],
    *,
    host: str = "127.0.0.1",
    port: int = 3000,
    grpc_port: int = 3001,
    target: str = DEFAULT_TARGET,
    **more: Any,
) -> Iterator[Server]:
    """Serve bundles of one kind: ready inside the block, ended after it, and on SIGTERM.

    A port of 0 is any free one; `more` are other fields of `Settings`. What the server says goes to
    standard error. Raises `BadSetting` for a host that is not an address, `BundleError` for a
    bundle that cannot be opened, `TargetUnavailable` for an engine it lacks, and `ServingFailed`
    naming the port that is taken, the model that does not become ready, or the last line of a
    server that ended.
    """
    _check_host(host)
    bundles = _check(folders, target)
    port, grpc_port = port or free_port(host), grpc_port or free_port(host)
    check_port(host, port, "HTTP")
    check_port(host, grpc_port, "gRPC")
    address = f"[{host}]" if ":" in host else "127.0.0.1" if host == "0.0.0.0" else host
    with tempfile.TemporaryDirectory(prefix="fucina-") as scratch, _ended_by_signal():
        ready = Path(scratch) / "ready"
        ready.mkdir()
        settings = Settings(
            bundles=tuple(folder.absolute() for folder in folders),
            target=target,
            host=host,
            grpc_host=host,
            grpc_port=grpc_port,
            ready=ready,
            **more,
        )
        environment = {
            **write_settings(settings),
            # Nothing of this server outlives it, and nothing is sent to BentoML's authors.
            "BENTOML_HOME": scratch,
            "PROMETHEUS_MULTIPROC_DIR": str(Path(scratch) / "metrics"),
            "BENTOML_DO_NOT_TRACK": "True",
        }
        # Attached: a server does not outlive the process that started it, however that ends.
        attached = [sys.executable, "-m", "pipeline.attached"]
        command = [*attached, "bentoml", "serve", SERVICES[bundles[0].manifest.kind]]
        process = subprocess.Popen(
            [*command, "--host", host, "--port", str(port), "--quiet"],
            # The service is imported from here: no folder of the caller's can stand before it.
            cwd=Path(__file__).parents[1],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # Ctrl-C reaches this process alone, which then ends the server in order.
            start_new_session=True,
        )
        said: deque[str] = deque(maxlen=100)
        listener = threading.Thread(target=_listen, args=(process, said), daemon=True)
        try:
            listener.start()
            server = Server(f"http://{address}:{port}", f"{address}:{grpc_port}", process)
            _wait_ready(
                server, lambda: len(list(ready.iterdir())) >= settings.workers, said, listener
            )
            yield server
        finally:
            end(process)
            listener.join(GRACE)


def _check_host(host: str) -> None:
    try:
        ipaddress.ip_address(host)
    except ValueError as error:
        raise BadSetting(
            "the host is not an address", got=repr(host), expected="127.0.0.1, 0.0.0.0 or another"
        ) from error


def _check(folders: Sequence[Path], target: str) -> list[Bundle]:
    bundles = open_bundles(folders)
    kind = bundles[0].manifest.kind
    if kind not in SERVICES:
        raise ServingFailed(
            f"bundle {bundles[0].manifest.name!r} is of a kind that no service serves yet",
            got=kind,
            expected=" or ".join(SERVICES),
        )
    for bundle in bundles:
        bundle.certificate(target)
    return bundles


def _listen(process: subprocess.Popen[str], said: deque[str]) -> None:
    """Pass on what the server says, and keep the end of it."""
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            said.append(line.rstrip())
            sys.stderr.write(line)


def _wait_ready(
    server: Server, all_ready: Callable[[], bool], said: deque[str], listener: threading.Thread
) -> None:
    """Return once every worker is ready; over the port only one of them is asked."""
    deadline = time.monotonic() + PATIENCE
    problem = "it does not answer"
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            listener.join(GRACE)
            last = next((line for line in reversed(said) if line.strip()), "nothing was said")
            raise ServingFailed("the server ended before it was ready", got=last)
        try:
            with urllib.request.urlopen(f"{server.http}/v2/health/ready", timeout=5):
                if all_ready():
                    return
                problem = "not every worker is ready"
        except urllib.error.HTTPError as error:
            problem = str(json.loads(error.read()).get("error"))
            if LOADING not in problem:
                raise ServingFailed(f"the server is not ready: {problem}") from error
        except OSError:
            pass  # it does not listen yet
        time.sleep(0.05)
    raise ServingFailed(f"the server is not ready after {PATIENCE:g} seconds: {problem}")


def end(process: subprocess.Popen[str]) -> None:
    """Ask a server to end; after the grace period, kill it and the workers it left."""
    try:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    finally:
        # It leads a process group of its own; what is left in it are its workers.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdin:
            process.stdin.close()


@contextmanager
def _ended_by_signal() -> Iterator[None]:
    """Turn SIGTERM into SystemExit inside the block, so that what it opened is closed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
