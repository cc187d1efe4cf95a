"""REST beside what one writes first: python -m tests.benchmarks.serving_rest [BUNDLE]

LeNet-5's certified engine, one image a request, asked of ours and of the same work in FastAPI (as
JSON, raw bytes, and the Open Inference Protocol in binary) and BentoML, with uvloop and httptools.
Every server has a process of its own on the first core, and the client the second core.
All are asked in turn, round after round, and their first answers are checked against the engine's.
Then one client: p50 beside the bare engine and an application under the same server that answers
nothing. Ratios are medians of each round's own, since a round's servers share the machine's mood;
seconds of the processor that a request takes depend least on what else it does.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bentoml
import fastapi
import numpy as np
import onnxruntime
import orjson
import psutil
import uvicorn
import uvloop
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from starlette.types import Receive, Scope, Send

from flows.latency import machine
from pipeline.bundle import Bundle, open_bundle
from serving.inference_messages import HEADER_LENGTH
from serving.launch import end, serve
from serving.load import Answers, closed_loop, request_of
from serving.ports import free_port
from tests.benchmarks.serving_engine import seconds_a_call
from tests.benchmarks.serving_peers import CLIENT_CORE, SERVER_CORE, json_request, on_core
from tests.conftest import make_release

MODEL = "FUCINA_BENCHMARK_MODEL"
CLIENTS = (1, 32)
SHAPE = (-1, 1, 28, 28)
# Ours, and the peer that does the same with the same bytes.
PAIRS = {"ours OIP binary": "FastAPI OIP binary", "ours JSON": "FastAPI JSON"}


def infer_with(model: str) -> Callable[[np.ndarray], Any]:
    """The engine by hand, with one thread as ours has: logits and probabilities."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options)
    return lambda image: session.run(["logits", "probabilities"], {"image": image})


class Rows(BaseModel):
    """A request of the FastAPI peer."""

    image: list[list[list[list[float]]]]


def fastapi_app(model: str) -> fastapi.FastAPI:
    """The program that one writes first, three times: by payload."""
    app, infer = fastapi.FastAPI(), infer_with(model)

    @app.post("/predict")
    async def predict(rows: Rows) -> dict[str, Any]:
        _, probabilities = infer(np.array(rows.image, np.float32))
        return {
            "predictions": [
                {
                    "class": str(row.argmax()),
                    "probability": float(row.max()),
                    "probabilities": {str(place): float(value) for place, value in enumerate(row)},
                }
                for row in probabilities
            ]
        }

    @app.post("/raw")
    async def raw(request: fastapi.Request) -> fastapi.Response:
        image = np.frombuffer(await request.body(), np.float32).reshape(SHAPE)
        return fastapi.Response(b"".join(array.tobytes() for array in infer(image)))

    @app.post("/v2/models/{name}/infer")
    async def protocol(name: str, request: fastapi.Request) -> fastapi.Response:
        body = await request.body()
        split = int(request.headers[HEADER_LENGTH])
        (tensor,) = orjson.loads(body[:split])["inputs"]
        answers = infer(np.frombuffer(body[split:], np.float32).reshape(tensor["shape"]))
        outputs = [
            {
                "name": output, "datatype": "FP32", "shape": array.shape,
                "parameters": {"binary_data_size": array.nbytes},
            }
            for output, array in zip(("logits", "probabilities"), answers, strict=True)
        ]  # fmt: skip
        header = orjson.dumps({"model_name": name, "model_version": "1", "outputs": outputs})
        return fastapi.Response(
            header + b"".join(array.tobytes() for array in answers),
            headers={HEADER_LENGTH: str(len(header))},
            media_type="application/octet-stream",
        )

    return app


async def empty(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that reads its request and answers nothing."""
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


if MODEL in os.environ:  # imported by `bentoml serve`

    @bentoml.service
    class Plain:
        """The service of BentoML's own first page."""

        def __init__(self) -> None:
            self.infer = infer_with(os.environ[MODEL])

        @bentoml.api
        def predict(self, image: np.ndarray) -> np.ndarray:
            return self.infer(image.astype(np.float32))[1]


def _run(model: str, port: int) -> None:
    app = fastapi_app(model) if model else empty
    uvicorn.run(app, port=port, loop="uvloop", http="httptools", log_level="error")


@contextmanager
def uvicorn_server(model: str) -> Iterator[tuple[str, int]]:
    """The FastAPI peer, or without a model the empty application: where, and as which process."""
    port = free_port("127.0.0.1")
    spawned = multiprocessing.get_context("spawn").Process(target=_run, args=(model, port))
    with on_core(SERVER_CORE):
        spawned.start()
    assert spawned.pid is not None
    try:
        yield f"http://127.0.0.1:{port}", spawned.pid
    finally:
        spawned.terminate()
        spawned.join()


@contextmanager
def bentoml_server(model: str) -> Iterator[tuple[str, int]]:
    """The plain BentoML peer: where, and as which process."""
    port = free_port("127.0.0.1")
    with tempfile.TemporaryDirectory() as home, on_core(SERVER_CORE):
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "bentoml", "serve", f"{__spec__.name}:Plain"),
                *("--host", "127.0.0.1", "--port", str(port), "--quiet"),
            ],
            env=os.environ | {MODEL: model, "BENTOML_HOME": home, "BENTOML_DO_NOT_TRACK": "True"},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, text=True,
        )  # fmt: skip
        try:
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            end(process)


@dataclass
class Row:
    """One server and payload: where and what is asked, and by number of clients what came back."""

    name: str
    address: str
    pid: int
    request: bytes
    cpu: dict[int, list[float]] = field(default_factory=dict)
    rounds: dict[int, list[Answers]] = field(default_factory=dict)

    def ask(self, clients: int, seconds: float) -> Answers:
        """Ask for so long, counting nothing."""
        return uvloop.run(closed_loop(self.address, [self.request], clients, seconds))

    def measure(self, clients: int, seconds: float) -> None:
        """Ask for so long, and keep what came back and what it cost the server."""
        before = cpu_seconds(self.pid)
        answers = self.ask(clients, seconds)
        cost = (cpu_seconds(self.pid) - before) / max(len(answers.accepted), 1)
        self.rounds.setdefault(clients, []).append(answers)
        self.cpu.setdefault(clients, []).append(cost)


def cpu_seconds(pid: int) -> float:
    """What a process and those that it started have taken of the processor."""
    first = psutil.Process(pid)
    times = [one.cpu_times() for one in (first, *first.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def answer_of(row: Row) -> bytes:
    """What the server says to one request, once it listens."""
    head, _, body = row.request.partition(b"\r\n\r\n")
    line, *lines = head.decode().split("\r\n")
    headers = dict(one.split(": ", 1) for one in lines)
    request = urllib.request.Request(row.address + line.split()[1], body, headers)
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.read()
        except (ConnectionError, urllib.error.URLError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def numbers_of(row: Row, said: bytes) -> np.ndarray:
    """The probabilities in an answer of any of the servers."""
    if row.name.endswith(("binary", "bytes")):
        return np.frombuffer(said[-40:], "<f4")
    answer = json.loads(said)
    if isinstance(answer, list):
        return np.array(answer[0])
    return np.array(list(answer["predictions"][0]["probabilities"].values()))


def rows_of(bundle: Bundle, image: np.ndarray, stack: ExitStack) -> list[Row]:
    """Every server, once each has answered the engine's own numbers."""
    engine = bundle.engine()
    model = str((engine.folder / next(iter(engine.files))).absolute())
    name = bundle.manifest.name
    with on_core(SERVER_CORE):
        ours = stack.enter_context(serve([bundle.folder], port=0, grpc_port=0, access_log=False))
    own = ours.http, ours.process.pid
    theirs, nothing = (stack.enter_context(uvicorn_server(m)) for m in (model, ""))
    bento = stack.enter_context(bentoml_server(model))
    binary = request_of(ours.http, name, {"image": image})
    raw = f"POST /raw HTTP/1.1\r\nHost: x\r\nContent-Length: {image.nbytes}\r\n\r\n".encode()
    typed = json_request("/predict", {"inputs": {"image": image.tolist()}})
    plain = json_request("/predict", {"image": image.tolist()})
    rows = [
        Row("ours OIP binary", *own, binary),
        Row("FastAPI OIP binary", *theirs, binary),
        Row("FastAPI raw bytes", *theirs, raw + image.tobytes()),
        Row("ours JSON", *own, typed),
        Row("FastAPI JSON", *theirs, plain),
        Row("BentoML JSON", *bento, plain),
        Row("empty", *nothing, binary),
    ]
    expected = bundle.open_engine().run({"image": image})["probabilities"][0]
    for row in rows:
        said = answer_of(row)
        if row.name != "empty":
            np.testing.assert_allclose(numbers_of(row, said), expected, atol=1e-6)
    return rows


def compare(rows: Sequence[Row], rounds: int, seconds: float) -> None:
    """Ask every row in turn, each round beginning with another one."""
    with on_core(CLIENT_CORE):
        for row in rows:  # not counted
            row.ask(8, seconds / 2)
        for number in range(rounds):
            for clients in CLIENTS:
                turn = number % len(rows)
                for row in [*rows[turn:], *rows[:turn]]:
                    row.measure(clients, seconds)


def ratios(ours: Row, theirs: Row, clients: int) -> tuple[float, float, float]:
    """Our rate by theirs, our p99 by theirs, our cost by theirs: medians of the rounds."""
    pairs = list(zip(ours.rounds[clients], theirs.rounds[clients], strict=True))
    return (
        statistics.median(a.rate / b.rate for a, b in pairs),
        statistics.median(a.percentile(99) / b.percentile(99) for a, b in pairs),
        statistics.median(
            a / b for a, b in zip(ours.cpu[clients], theirs.cpu[clients], strict=True)
        ),
    )


def table(rows: Sequence[Row]) -> Table:
    """One line a server: medians over the rounds."""
    made = Table("server")
    for clients in CLIENTS:
        for what in (f"{clients}: requests/s", "p50 ms", "p99 ms", "CPU us"):
            made.add_column(what, justify="right")
    made.add_column("errors", justify="right")
    for row in rows:
        cells: list[str] = []
        for clients in CLIENTS:
            answers = row.rounds[clients]
            cells.append(f"{statistics.median(one.rate for one in answers):.0f}")
            for percent in (50, 99):
                times = (one.percentile(percent) for one in answers)
                cells.append(f"{statistics.median(times) * 1e3:.2f}")
            cells.append(f"{statistics.median(row.cpu[clients]) * 1e6:.0f}")
        every = [one for answers in row.rounds.values() for one in answers]
        made.add_row(row.name, *cells, str(sum(one.failed + len(one.refused) for one in every)))
    return made


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", nargs="?", type=Path, help="none releases lenet5")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each server in each round")
    options = parser.parse_args()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = options.bundle or make_release("lenet5", scratch).bundle.folder
        bundle = open_bundle(folder)
        image = np.random.default_rng(7).random((1, 1, 28, 28), np.float32)
        rows = rows_of(bundle, image, stack)
        print(f"{machine()}; {bundle.manifest.name}, medians of {options.rounds} rounds")
        compare(rows, options.rounds, options.seconds)
        with on_core(SERVER_CORE):
            engine = seconds_a_call(bundle.open_engine(), {"image": image}, options.seconds)
    Console(width=None if sys.stdout.isatty() else 130).print(table(rows))
    named = {row.name: row for row in rows}
    for ours, theirs in PAIRS.items():
        for clients in CLIENTS:
            rate, slow, cost = ratios(named[ours], named[theirs], clients)
            print(
                f"{clients:2} clients: {ours} beside {theirs}: {rate:.2f} times the rate, "
                f"{slow:.2f} times the p99, {cost:.2f} times the CPU"
            )
    alone = [
        mine.percentile(50) / (nothing.percentile(50) + engine)
        for mine, nothing in zip(
            named["ours OIP binary"].rounds[1], named["empty"].rounds[1], strict=True
        )
    ]
    print(
        f"one client: p50 {statistics.median(alone):.2f} times the bare engine "
        f"({engine * 1e3:.3f} ms) and an empty application"
    )


if __name__ == "__main__":
    main()
