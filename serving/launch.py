"""Start a server over bundles as a child process, wait until it is ready, end it again."""

from __future__ import annotations

import codecs
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
from http.client import HTTPException
from pathlib import Path
from typing import Any

import psutil

from models.errors import BadSetting, ServingFailed
from pipeline.backends import DEFAULT_TARGET
from pipeline.bundle import SERVICES, Bundle
from serving.model import BEING_BUILT, LOADING
from serving.opening import open_bundles
from serving.ports import kept_port
from serving.runtime import GRACE as DRAINED
from serving.runtime import WAITING
from serving.settings import Settings, write_settings
from serving.tls import check_protection, pinned, rest_options
from serving.workers import SCRATCH, SHARED, Workers, workers

# How long a server may take to become ready, and to answer what is in flight when it ends: twice
# what it gives the calls itself.
PATIENCE = 120.0
_PIECE = 1 << 16  # bytes
GRACE = 2 * DRAINED
_OPTIONS = ("--quiet", "--timeout-graceful-shutdown", f"{DRAINED:.0f}")


@dataclass(frozen=True)
class Server:
    """A running server: where it answers, and the process that supervises its workers."""

    http: str
    grpc: str
    process: subprocess.Popen[bytes]
    workers: Workers

    def look(self) -> None:
        """Have every worker look at once at what is blessed."""
        ready = self.workers.living()
        for child in psutil.Process(self.process.pid).children(recursive=True):
            if child.pid in ready:
                with suppress(psutil.NoSuchProcess):
                    child.send_signal(signal.SIGHUP)

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
    if port == grpc_port != 0:
        raise BadSetting("REST and gRPC cannot share a port", got=port, expected="one for each")
    address = f"[{host}]" if ":" in host else "127.0.0.1" if host == "0.0.0.0" else host
    with (
        tempfile.TemporaryDirectory(prefix="fucina-") as scratch,
        _ended_by_signal(),
        kept_port(host, port, "HTTP") as own,
        kept_port(host, grpc_port, "gRPC") as own_grpc,
    ):
        settings = Settings(
            bundles=tuple(folder.absolute() for folder in folders),
            target=target,
            host=host,
            grpc_host=host,
            grpc_port=own_grpc,
            **_absolute(more),
        )
        check_protection(settings)
        environment = {
            **write_settings(settings),
            # Nothing of this server outlives it, and nothing is sent to BentoML's authors.
            SCRATCH: scratch,
            "BENTOML_HOME": scratch,
            SHARED: str(Path(scratch) / "prometheus_multiproc_dir"),  # where BentoML puts it
            "BENTOML_DO_NOT_TRACK": "True",
            # uvicorn would believe every neighbour on this machine that says for whom it asks.
            "FORWARDED_ALLOW_IPS": os.environ.get("FORWARDED_ALLOW_IPS", ""),
        }
        # Attached: a server does not outlive the process that started it, however that ends.
        attached = [sys.executable, "-m", "pipeline.attached"]
        command = [*attached, "serving.supervised", "serve", SERVICES[bundles[0].manifest.kind]]
        process = subprocess.Popen(
            [*command, "--host", host, "--port", str(own), *_OPTIONS, *rest_options(settings)],
            # The service is imported from here: no folder of the caller's can stand before it.
            cwd=Path(__file__).parents[1],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Ctrl-C reaches this process alone, which then ends the server in order.
            start_new_session=True,
        )
        said: deque[str] = deque(maxlen=100)
        listener = threading.Thread(target=_listen, args=(process, said), daemon=True)
        try:
            listener.start()
            scheme = "https" if settings.tls_certificate else "http"
            group = workers(settings.workers, environment)
            server = Server(f"{scheme}://{address}:{own}", f"{address}:{own_grpc}", process, group)
            _wait_ready(server, group.were_all, said, listener, settings)
            yield server
        finally:
            end(process, settings.drain)
            listener.join(GRACE)


def _absolute(more: dict[str, Any]) -> dict[str, Any]:
    """The same settings for a server that is started in another folder."""
    return {k: v.absolute() if isinstance(v, Path) else v for k, v in more.items()}


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


def _listen(process: subprocess.Popen[bytes], said: deque[str]) -> None:
    """Pass on what the server says, as much at a time as there is, and keep the end of it."""
    assert process.stdout is not None
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    rest = ""
    with process.stdout as pipe:
        while piece := os.read(pipe.fileno(), _PIECE):
            text = decode(piece)
            *lines, rest = (rest + text).split("\n")
            said.extend(lines)
            with suppress(OSError, ValueError):  # nobody reads any more; the server goes on
                sys.stderr.write(text)
                sys.stderr.flush()
    said.append(rest)


def _wait_ready(
    server: Server,
    all_ready: Callable[[], bool],
    said: deque[str],
    listener: threading.Thread,
    settings: Settings,
) -> None:
    """Return once every worker is ready, which any of them says."""
    deadline = time.monotonic() + PATIENCE
    tls = pinned(settings.tls_certificate) if settings.tls_certificate else None
    problem = "it does not answer"
    while time.monotonic() < deadline + (settings.rebuild if BEING_BUILT in problem else 0):
        if server.process.poll() is not None:
            listener.join(GRACE)
            last = next((line for line in reversed(said) if line.strip()), "nothing was said")
            raise ServingFailed("the server ended before it was ready", got=last)
        try:
            # Who has no certificate that the client CA signed is not answered, nor are we.
            if settings.client_ca is not None and all_ready():
                return
            with urllib.request.urlopen(f"{server.http}/v2/health/ready", timeout=5, context=tls):
                return
        except urllib.error.HTTPError as error:
            problem = str(json.loads(error.read()).get("error"))
            if not any(passing in problem for passing in (LOADING, BEING_BUILT, WAITING)):
                raise ServingFailed(f"the server is not ready: {problem}") from error
        except OSError:
            pass  # it does not listen yet, or leaves who shows no certificate
        except HTTPException as error:
            raise ServingFailed(
                f"what answers at {server.http} speaks no HTTP",
                got=type(error).__name__,
                fix="choose another port",
            ) from error
        time.sleep(0.05)
    raise ServingFailed(f"the server is not ready after {PATIENCE:g} seconds: {problem}")


def end(process: subprocess.Popen[Any], drain: float = 0.0) -> None:
    """Ask a server to end, that drains for so many seconds; after a grace period kill its rest."""
    try:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(drain + GRACE)
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
