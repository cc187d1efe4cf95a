"""Clients that ask versions of one model without pause over both transports, and count it all."""

from __future__ import annotations

import re
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from serving.client import Client
from serving.client_grpc import GrpcClient
from serving.launch import Server
from tests.serving.versions import NAME, ONE

PATIENCE = 60.0  # seconds that anything may take


@dataclass
class Load:
    """What the clients have seen so far."""

    answered: Counter[tuple[str, str]] = field(default_factory=Counter)  # by transport and version
    failed: list[BaseException] = field(default_factory=list)
    wrong: list[tuple[str, list[float]]] = field(default_factory=list)
    calls: list[tuple[float, float]] = field(default_factory=list)  # when begun, seconds taken
    ended: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, version: str) -> int:
        """How many answers a version has given."""
        with self._lock:
            return sum(n for (_, one), n in self.answered.items() if one == version)

    def total(self) -> int:
        with self._lock:
            return self.answered.total()

    def ask(self, client: Client | GrpcClient, transport: str, rows: int) -> None:
        """Ask until it is over; an answer is one version's, which is the one it names."""
        inputs = {"features": np.repeat(ONE, rows, 0)}
        while not self.ended.is_set():
            begun = time.perf_counter()
            try:
                answer = client.ask(NAME, inputs)
            except BaseException as error:
                self.failed.append(error)
                continue
            values = answer.outputs["value"].ravel().tolist()
            with self._lock:
                self.answered[transport, answer.version] += 1
                self.calls.append((begun, time.perf_counter() - begun))
                if values != [float(answer.version)] * rows:
                    self.wrong.append((answer.version, values))


@contextmanager
def load(server: Server, each: int = 2, retries: int = 0) -> Iterator[Load]:
    """So many clients of each transport at work inside the block, all done after it."""
    seen = Load()
    clients: list[tuple[str, Client | GrpcClient]] = []
    for _ in range(each):
        clients.append(("http", Client(server.http, retries=retries)))
        clients.append(("grpc", GrpcClient(server.grpc, retries=retries)))
    threads = [
        threading.Thread(target=seen.ask, args=(client, transport, 1 + number % 3))
        for number, (transport, client) in enumerate(clients)
    ]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        seen.ended.set()
        for thread in threads:
            thread.join()
        for _, client in clients:
            client.close()


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.01)


def counted(server: Server) -> Counter[tuple[str, str]]:
    """What the server's metrics say of inferences, by transport and version."""
    with urllib.request.urlopen(f"{server.http}/metrics") as answer:
        page = answer.read().decode()
    found: Counter[tuple[str, str]] = Counter()
    for labels, value in re.findall(r"^fucina_requests_total\{(.*)\} (\S+)$", page, re.MULTILINE):
        named = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        # Nothing else is asked of this model but inferences.
        if named["model"] == NAME and named["code"] in ("200", "OK"):
            found[named["transport"], named["version"]] += int(float(value))
    return found
