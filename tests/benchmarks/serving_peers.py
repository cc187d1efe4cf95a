"""Servers of one model side by side: python -m tests.benchmarks.serving_peers [BUNDLE]

LeNet-5's certified engine, asked for one image by the same lean client: ours over three transports,
and the program that one writes first with each peer, from an environment of its own in build/peers.
Every server runs on the first core and the client on the second; they stay up, and are asked in
turn, round after round. A peer that cannot be installed or does not answer right is a row that
says so. Prints requests per second, and p50 and p99 of all the rounds' answers together.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
from rich.console import Console
from rich.table import Table

from flows.latency import machine
from pipeline.bundle import Bundle, open_bundle
from serving.inference_proto import MESSAGES, SERVICE
from serving.launch import serve
from serving.load import Answers, closed_loop, request_of
from serving.ports import free_port
from tests.benchmarks.peer_servers import ALL_PEERS, PATIENCE, Peer, install, started, version
from tests.conftest import make_release

SERVER_CORE, CLIENT_CORE = 0, 1

Ask = Callable[[int, float], Coroutine[Any, Any, Answers]]


@dataclass
class Row:
    """One server over one transport: how it is asked, and by number of clients what came back."""

    name: str
    ask: Ask | None = None
    problem: str = ""
    rounds: dict[int, list[Answers]] = field(default_factory=dict)


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """What is started in the block stays on one core, where there are several."""
    before = os.sched_getaffinity(0)
    cores = sorted(before)
    os.sched_setaffinity(0, {cores[min(core, len(cores) - 1)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def rows_of(
    peer: Peer,
    ended: Callable[[], str],
    http: int,
    rpc: int,
    image: np.ndarray,
    expected: np.ndarray,
) -> list[Row]:
    """The rows of a peer's server once it answers right, or one that says what is wrong."""
    address, oip = f"http://127.0.0.1:{http}", peer.name == "mlserver"
    document: dict[str, Any] = {"image": image.tolist()}
    if oip:
        tensor = {"name": "image", "datatype": "FP32", "shape": list(image.shape)}
        document = {"inputs": [tensor | {"data": image.ravel().tolist()}]}
    path = "/v2/models/peer/infer" if oip else "/predict"
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            answer = posted(address + path, document)
            break
        except OSError as error:
            if ended() or time.monotonic() > deadline:
                return [Row(peer.name, problem=f"does not answer: {ended() or error}"[:100])]
            time.sleep(0.2)
    if oip:
        answer = answer["outputs"][0]["data"]
    elif isinstance(answer, dict):
        answer = answer["probabilities"]
    if not np.allclose(np.ravel(answer), expected.ravel(), atol=1e-5):
        return [Row(peer.name, problem="answers something else")]
    request = [json_request(path, document)]
    rows = [Row(f"{peer.name} JSON", lambda n, s: closed_loop(address, request, n, s))]
    if oip:
        message = infer_message("peer", image)
        rows.append(Row(f"{peer.name} gRPC", lambda n, s: grpc_loop(rpc, message, n, s)))
    return rows


def json_request(path: str, document: object) -> bytes:
    body = json.dumps(document).encode()
    lines = (f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json",
             f"Content-Length: {len(body)}")  # fmt: skip
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def posted(address: str, document: object) -> Any:
    request = urllib.request.Request(
        address, json.dumps(document).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def infer_message(model: str, image: np.ndarray) -> bytes:
    tensor = {"name": "image", "datatype": "FP32", "shape": list(image.shape)}
    return MESSAGES["ModelInferRequest"](
        model_name=model, inputs=[tensor], raw_input_contents=[image.tobytes()]
    ).SerializeToString()


async def grpc_loop(port: int, message: bytes, clients: int, seconds: float) -> Answers:
    """As `closed_loop`, over gRPC: each client on a connection of its own."""
    answers = Answers()
    apart = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", apart) for _ in range(clients)]
    await asyncio.gather(*(channel.channel_ready() for channel in channels))
    begun = time.perf_counter()

    async def ask(channel: grpc.aio.Channel) -> None:
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        while time.perf_counter() < begun + seconds:
            sent = time.perf_counter()
            try:
                await call(message)
            except grpc.aio.AioRpcError:
                answers.failed += 1
            else:
                answers.accepted.append(time.perf_counter() - sent)

    await asyncio.gather(*map(ask, channels))
    answers.seconds = time.perf_counter() - begun
    await asyncio.gather(*(channel.close() for channel in channels))
    return answers


def ours(bundle: Bundle, http: str, rpc: int, image: np.ndarray) -> list[Row]:
    name = bundle.manifest.name
    binary = [request_of(http, name, {"image": image})]
    typed = [json_request("/predict", {"inputs": {"image": image.tolist()}})]
    message = infer_message(name, image)
    return [
        Row("ours OIP REST binary", lambda n, s: closed_loop(http, binary, n, s)),
        Row("ours typed JSON", lambda n, s: closed_loop(http, typed, n, s)),
        Row("ours gRPC", lambda n, s: grpc_loop(rpc, message, n, s)),
    ]


def compare(rows: Sequence[Row], clients: Sequence[int], rounds: int, seconds: float) -> None:
    """Ask every row in turn, `rounds` times; the first answers of each are thrown away."""
    asked = [(row, row.ask) for row in rows if row.ask]
    with on_core(CLIENT_CORE):
        for _, ask in asked:
            asyncio.run(ask(8, seconds / 2))
        for number in range(rounds):
            for count in clients:
                # Each round begins with another server.
                turn = number % len(asked)
                for row, ask in [*asked[turn:], *asked[:turn]]:
                    row.rounds.setdefault(count, []).append(asyncio.run(ask(count, seconds)))


def table(rows: Sequence[Row], clients: Sequence[int]) -> Table:
    made = Table("server")
    for count in clients:
        made.add_column(f"{count}: requests/s", justify="right")
        made.add_column("p50 ms", justify="right")
        made.add_column("p99 ms", justify="right")
    made.add_column("errors", justify="right")
    for row in rows:
        cells: list[str] = []
        for count in clients:
            answers = row.rounds.get(count, [])
            times = [seconds for one in answers for seconds in one.accepted]
            if not times:
                cells += ["", "", ""]
                continue
            p50, p99 = np.percentile(times, [50, 99]) * 1e3
            rate = statistics.median(one.rate for one in answers)
            cells += [f"{rate:.0f}", f"{p50:.2f}", f"{p99:.2f}"]
        every = [one for answers in row.rounds.values() for one in answers]
        errors = str(sum(one.failed + len(one.refused) for one in every)) if every else row.problem
        made.add_row(row.name, *cells, errors)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", nargs="?", type=Path, help="none releases lenet5")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each server in each round")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--peers", nargs="*", default=[peer.name for peer in ALL_PEERS])
    options = parser.parse_args()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bundle = (
            open_bundle(options.bundle)
            if options.bundle
            else make_release("lenet5", scratch).bundle
        )
        engine = bundle.engine()
        (model,) = (engine.folder / name for name in engine.files)
        image = bundle.cases()[0].inputs["image"][:1]
        expected = bundle.open_engine().run({"image": image})["probabilities"]
        print(f"{machine()}; {bundle.manifest.name}, one image a request, one core a server")
        rows: list[Row] = []
        with on_core(SERVER_CORE):
            server = stack.enter_context(
                serve([bundle.folder], port=0, grpc_port=0, access_log=False)
            )
        rows += ours(bundle, server.http, int(server.grpc.rpartition(":")[2]), image)
        print(
            f"ours: {', '.join(f'{n} {metadata.version(n)}' for n in ('bentoml', 'onnxruntime'))}"
        )
        for peer in ALL_PEERS:
            if peer.name not in options.peers:
                continue
            try:
                binaries = install(peer)
            except subprocess.CalledProcessError as error:
                last = (error.stderr.strip().splitlines() or ["nothing"])[-1]
                rows.append(Row(peer.name, problem=f"not installed: {last[:100]}"))
                continue
            print(f"{peer.name}: {version(peer, binaries)}", flush=True)
            http, rpc = free_port("127.0.0.1"), free_port("127.0.0.1")
            with on_core(SERVER_CORE):
                ended = stack.enter_context(started(peer, binaries, model.absolute(), http, rpc))
            rows += rows_of(peer, ended, http, rpc, image, expected)
        compare(rows, options.clients, options.rounds, options.seconds)
        Console(width=None if sys.stdout.isatty() else 160).print(table(rows, options.clients))


if __name__ == "__main__":
    main()
