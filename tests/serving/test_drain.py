"""Ending a server, and losing a worker, under load: what clients see who ask again, and who do not.

A client asks again when its connection was closed before an answer began, or when gRPC says
UNAVAILABLE, of the next server. Who never asks again sees one reset of each idle connection.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import orjson
import psutil

from serving.inference_proto import MESSAGES, SERVICE
from serving.launch import Server, serve

PIXELS = np.zeros((1, 1, 28, 28), np.float32)
BODY = orjson.dumps(
    {
        "inputs": [
            {"name": "image", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": [0.0] * 784}
        ]
    }
)
REQUEST = MESSAGES["ModelInferRequest"](
    model_name="digits",
    inputs=[{"name": "image", "datatype": "FP32", "shape": PIXELS.shape}],
    raw_input_contents=[PIXELS.tobytes()],
)
OF_A_STREAM = 5  # requests
PATIENCE = 60.0
INFER = "/v2/models/digits/infer"


@dataclass
class Seen:
    """What one client has seen."""

    answered: int = 0
    again: Counter[str] = field(default_factory=Counter)  # asked again, by what was said
    failed: list[str] = field(default_factory=list)


class Again(Exception):
    """A request that is to be asked again: it was not answered, and nothing of it was done."""


Ask = Callable[[int], None]  # of the server of that number


def over_http(servers: Sequence[Server], stack: ExitStack) -> Ask:
    connections = [
        http.client.HTTPConnection(server.http.removeprefix("http://"), timeout=PATIENCE)
        for server in servers
    ]
    for connection in connections:
        stack.callback(connection.close)

    def ask(number: int) -> None:
        connection = connections[number]
        try:
            connection.request("POST", INFER, BODY, {"Content-Type": "application/json"})
            answer = connection.getresponse()
        except ConnectionError as error:
            connection.close()  # the next request opens it
            raise Again(type(error).__name__) from error
        said = answer.read()
        assert answer.status == 200, said

    return ask


def over_grpc(servers: Sequence[Server], stack: ExitStack) -> Ask:
    calls = [_method(stack, server, "unary_unary", "ModelInfer") for server in servers]

    def ask(number: int) -> None:
        with asked_again():
            calls[number](REQUEST, timeout=PATIENCE)

    return ask


def over_streams(servers: Sequence[Server], stack: ExitStack) -> Ask:
    calls = [_method(stack, server, "stream_stream", "ModelStreamInfer") for server in servers]

    def ask(number: int) -> None:
        with asked_again():
            answers = list(calls[number](iter([REQUEST] * OF_A_STREAM), timeout=PATIENCE))
            assert [answer.error_message for answer in answers] == [""] * OF_A_STREAM

    return ask


def _method(stack: ExitStack, server: Server, kind: str, name: str) -> Any:
    channel = stack.enter_context(grpc.insecure_channel(server.grpc))
    answer = "ModelStreamInferResponse" if "Stream" in name else "ModelInferResponse"
    return getattr(channel, kind)(
        f"/{SERVICE}/{name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=MESSAGES[answer].FromString,
    )


@contextmanager
def asked_again() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAVAILABLE:  # pyright: ignore[reportAttributeAccessIssue]
            raise Again("UNAVAILABLE") from error
        raise


@contextmanager
def load(servers: Sequence[Server], clients: int = 2) -> Iterator[dict[str, list[Seen]]]:
    """Clients of each transport that ask one request after the other, within the block."""
    ended = threading.Event()

    def work(ask: Ask, seen: Seen) -> None:
        number = 0
        while not ended.is_set():
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    ask(number)
                    seen.answered += 1
                except Again as error:
                    seen.again[str(error)] += 1
                    number = (number + 1) % len(servers)
                    if time.monotonic() < deadline:
                        time.sleep(0.01)
                        continue
                    seen.failed.append("never answered")
                except Exception as error:
                    seen.failed.append(repr(error))
                break

    seen: dict[str, list[Seen]] = {}
    with ExitStack() as stack:
        threads = []
        for transport in (over_http, over_grpc, over_streams):
            seen[transport.__name__] = [Seen() for _ in range(clients)]
            for one in seen[transport.__name__]:
                ask = transport(servers, stack)
                threads.append(threading.Thread(target=work, args=(ask, one)))
        for thread in threads:
            thread.start()
        try:
            yield seen
        finally:
            ended.set()
            for thread in threads:
                thread.join()


def wait_for_more(seen: dict[str, list[Seen]], count: int = 20) -> None:
    """Until each client has so many more answers."""
    each = [one for clients in seen.values() for one in clients]
    until = [one.answered + count for one in each]
    deadline = time.monotonic() + PATIENCE
    while any(one.answered < wanted for one, wanted in zip(each, until, strict=True)):
        assert time.monotonic() < deadline, [one.answered for one in each]
        time.sleep(0.02)


def failures(seen: dict[str, list[Seen]]) -> list[str]:
    return [f"{name}: {text}" for name, each in seen.items() for one in each for text in one.failed]


_READY = "fucina_workers_ready 2.0"


def workers_of(server: Server) -> list[psutil.Process]:
    """The living workers of a server."""
    children = psutil.Process(server.process.pid).children(recursive=True)
    alive = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in alive if "_bentoml_impl.worker.service" in child.cmdline()]


def test_sigterm_under_load_fails_nothing_and_is_announced(digits: Path) -> None:
    options: dict[str, Any] = {"port": 0, "grpc_port": 0, "access_log": False}
    with serve([digits], **options, drain=1.0) as first, serve([digits], **options) as second:
        with load([first, second]) as seen, httpx.Client(base_url=first.http) as client:
            wait_for_more(seen)
            assert client.get("/v2/health/ready").status_code == 200
            first.process.terminate()
            while (ready := client.get("/v2/health/ready")).status_code == 200:
                time.sleep(0.01)
            # While it drains it says that it is not ready, answers, and sends clients elsewhere.
            assert (ready.status_code, ready.json()["error"]) == (503, "the server is ending")
            assert client.get("/v2/health/live").status_code == 200
            answer = client.post(INFER, content=BODY)
            assert (answer.status_code, answer.headers["connection"]) == (200, "close")
            assert first.process.wait(PATIENCE) == 0
            wait_for_more(seen)  # of the second server
        assert failures(seen) == []
        for clients in seen.values():  # each of them has noticed
            assert all(one.again for one in clients)


def test_a_killed_worker_costs_nobody_an_answer_and_is_replaced(digits: Path) -> None:
    with serve([digits], port=0, grpc_port=0, workers=2, access_log=False) as server:
        with load([server], clients=4) as seen:
            wait_for_more(seen)
            before = workers_of(server)
            assert len(before) == 2
            before[0].kill()
            wait_for_more(seen)
            deadline = time.monotonic() + PATIENCE
            # A moment passes before the page knows of the loss.
            while not ({*workers_of(server)} - {*before}) or _READY not in _page(server):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            wait_for_more(seen)
        assert failures(seen) == []
        # Whoever was connected to that worker was cut off: without asking again, a failure each.
        assert sum(sum(one.again.values()) for each in seen.values() for one in each) <= 12


def _page(server: Server) -> str:
    with httpx.Client() as client:
        try:
            return client.get(f"{server.http}/metrics").text
        except httpx.TransportError:  # the killed worker had taken the connection
            return ""
