"""Versions change and workers die under load: no request fails, each is one version's."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import blessed
from serving.client import Client
from serving.launch import Server, serve
from tests.serving.under_load import counted, load, wait_until
from tests.serving.versions import NAME, make_run, make_version

WORKERS = 2


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swap")
    made = [make_version(folder / "made" / str(number), number) for number in range(1, 6)]
    found = make_run(folder, made)
    blessed.bless(found, found / "1")
    return found


@pytest.fixture(scope="module")
def server(run: Path, forbidden_imports: Path) -> Iterator[Server]:
    # A look an hour: what is seen sooner is seen because it was asked for.
    with serve(
        [run], port=0, grpc_port=0, workers=WORKERS, watch=3600, access_log=False
    ) as running:
        yield running


def versions(server: Server) -> set[str]:
    """What several new connections are answered by, that reach every worker most likely."""
    found = set()
    for _ in range(8):
        with Client(server.http) as client:
            found |= {entry["version"] for entry in client.index()}
    return found


def test_no_request_fails_while_versions_come_and_go(server: Server, run: Path) -> None:
    each = 60
    with load(server) as seen:
        wait_until(lambda: seen.of("1") >= each)
        for version in ("2", "3", "4"):
            blessed.bless(run, run / version)
            server.look()
            wait_until(lambda wanted=version: seen.of(wanted) >= each)
        blessed.rollback(run)
        server.look()
        before = seen.of("3")
        wait_until(lambda: seen.of("3") >= before + each)
        blessed.canary(run, run / "5", 30)
        server.look()
        wait_until(lambda: seen.of("5") >= each)
        blessed.rollback(run)
        server.look()
        wait_until(lambda: versions(server) == {"3"})
    assert not seen.failed
    assert not seen.wrong
    assert set(seen.answered) == {(t, v) for t in ("http", "grpc") for v in "12345"}
    # The workers add up what they count every now and then.
    wait_until(lambda: counted(server) == seen.answered)


def test_a_version_that_fails_is_told_by_the_index(server: Server, run: Path) -> None:
    (standing,) = versions(server)
    blessed.bless(run, run / "5")
    (run / "5" / "model.onnx").write_bytes(b"")
    server.look()

    def reasons() -> list[str]:
        with Client(server.http) as client:
            return [e["reason"] for e in client.index() if e["version"] == "5"]

    wait_until(lambda: any("is not the file that was recorded" in r for r in reasons()))
    with Client(server.http) as client:
        assert client.ready()
        assert client.metadata(NAME)["versions"] == [standing]
    blessed.rollback(run)
    server.look()
    wait_until(lambda: versions(server) == {standing})


def test_a_worker_that_is_killed_costs_no_request(server: Server) -> None:
    before = set(server.workers.living())
    assert len(before) == WORKERS
    with load(server, retries=10) as seen:
        wait_until(lambda: seen.total() >= 100)
        os.kill(min(before), signal.SIGKILL)
        wait_until(lambda: len(set(server.workers.living()) - before) == 1)
        again = seen.total()
        wait_until(lambda: seen.total() >= again + 100)
    assert not seen.failed
    assert not seen.wrong
