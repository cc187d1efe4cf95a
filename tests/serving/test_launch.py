"""Starting and ending a server: ports, hosts, processes and what is said when it fails."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from models.errors import BadSetting, ServingFailed, TargetUnavailable
from pipeline.backends import DEFAULT_TARGET
from pipeline.bundle import open_bundle
from serving import launch
from serving.ask import ask
from serving.launch import serve
from serving.ports import check_port, kept_port
from serving.settings import Settings, read_settings
from serving.workers import Workers


@pytest.mark.parametrize("which", ["port", "grpc_port"])
def test_a_port_in_use_is_named(digits: Path, which: str) -> None:
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", 0))
        owner.listen()
        taken: int = owner.getsockname()[1]
        ports = {"port": 0, "grpc_port": 0} | {which: taken}
        with pytest.raises(ServingFailed, match=f"port {taken} on 127.0.0.1 cannot be used"):
            serve([digits], port=ports["port"], grpc_port=ports["grpc_port"]).__enter__()


def test_a_target_that_the_bundle_lacks_is_named(digits: Path) -> None:
    with pytest.raises(TargetUnavailable, match="no engine for target 'tensorrt-fp16'"):
        serve([digits], port=0, grpc_port=0, target="tensorrt-fp16").__enter__()


def test_two_workers_share_both_ports_and_end_with_the_block(digits: Path) -> None:
    with serve([digits], port=0, grpc_port=0, workers=2) as server:
        for findings in ask(server.http, server.grpc, open_bundle(digits)).values():
            assert all(finding.passed for finding in findings)
    assert server.process.poll() is not None
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{server.http}/v2/health/live", timeout=5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_the_server_as_well(digits: Path, number: signal.Signals) -> None:
    program = """
import signal, sys
from pathlib import Path
from serving.launch import serve
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job would ignore it
with serve([Path(sys.argv[1])], port=0, grpc_port=0) as server:
    print(server.http, server.process.pid, server.workers.folder, flush=True)
    server.wait()
"""
    command = [sys.executable, "-c", program, str(digits)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        address, child, folder = parent.stdout.readline().decode().split()
        parent.send_signal(number)
        try:
            parent.wait(60)
        finally:
            parent.kill()
    assert parent.returncode == (143 if number == signal.SIGTERM else -number)
    for _ in range(300):  # of a killed parent it learns at once, and then drains
        if not psutil.pid_exists(int(child)):
            break
        time.sleep(0.1)
    assert not psutil.pid_exists(int(child))
    assert not Path(folder).parents[1].exists()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{address}/v2/health/live", timeout=5)


def test_both_transports_need_a_port_of_their_own(digits: Path) -> None:
    with pytest.raises(BadSetting, match="cannot share a port: got 3100"):
        serve([digits], port=3100, grpc_port=3100).__enter__()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_that_is_kept_is_offered_to_nobody_and_a_server_listens_on_it(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with kept_port(host, 0, "HTTP") as port, socket.socket(family) as other:
        with pytest.raises(OSError, match="in use"):
            other.bind((host, port))
        with (
            socket.create_server((host, port), family=family),
            pytest.raises(
                ServingFailed,
                match=f"HTTP port {port} on .* cannot be used",
            ),
        ):
            check_port(host, port, "HTTP")


def test_what_listens_instead_of_the_server_is_said() -> None:
    greeting = b"\xff\0\0\0\0\0\0\0\x01\x7f"  # ZeroMQ's
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        stranger.settimeout(60)
        http = f"http://127.0.0.1:{stranger.getsockname()[1]}"
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
            server = launch.Server(http, "", process, Workers(None, 1))

            def greet() -> None:
                connection, _ = stranger.accept()
                with connection:
                    connection.sendall(greeting)
                    connection.recv(1 << 16)

            with ThreadPoolExecutor(1) as thread:
                greeted = thread.submit(greet)
                with pytest.raises(ServingFailed, match="speaks no HTTP"):
                    launch._wait_ready(
                        server, lambda: False, deque(), threading.Thread(), Settings()
                    )
                greeted.result(60)
            process.communicate(b"\n", 60)


def test_a_server_takes_orders_on_no_port(digits: Path) -> None:
    with serve([digits], port=0, grpc_port=0) as server:
        own = {int(address.rpartition(":")[2]) for address in (server.http, server.grpc)}
        supervisor = psutil.Process(server.process.pid)
        family = [supervisor, *supervisor.children(recursive=True)]
        listening = {
            connection.laddr.port
            for process in family
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening == own


def test_settings_come_from_the_environment(digits: Path, tmp_path: Path) -> None:
    assert read_settings({}, tmp_path).bundles == ()
    assert read_settings({}, digits).bundles == (digits,)
    listed = {"FUCINA_BUNDLES": '["/a", "/b"]', "FUCINA_GRPC_PORT": "7"}
    settings = read_settings(listed, digits)
    assert settings.bundles == (Path("/a"), Path("/b"))
    assert (settings.grpc_port, settings.target) == (7, DEFAULT_TARGET)
    assert (settings.host, settings.grpc_host) == ("127.0.0.1", "127.0.0.1")
    inside = read_settings({"BENTOML_CONTAINERIZED": "true"}, digits)
    assert (inside.host, inside.grpc_host) == ("0.0.0.0", "0.0.0.0")
    for name, value in (("FUCINA_BUNDLES", "/a"), ("FUCINA_GRPC_PORT", "x")):
        with pytest.raises(BadSetting, match=name):
            read_settings({name: value}, digits)
