"""ModelInfer beside peers, LeNet-5, one picture a request: python -m tests.benchmarks.serving_grpc

Ours over gRPC, FastAPI with nested JSON, and MLServer's gRPC, which is installed into a virtual
environment of its own under build/. Each server has one core and the clients another; clients of
both protocols write prepared bytes to plain sockets, so that they cost the same. In alternating
rounds each server alone is asked; prints medians, and of CPU time what a request takes of it.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import psutil

from flows.latency import machine
from serving.inference_proto import MESSAGES, SERVICE
from serving.launch import serve
from serving.ports import free_port
from tests.conftest import make_release

ENVIRONMENT = Path(__file__).parents[2] / "build" / "mlserver"
PATIENCE = 60.0

FASTAPI = """
import sys
import fastapi, numpy, onnxruntime, pydantic, uvicorn

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, ["CPUExecutionProvider"])
app = fastapi.FastAPI()

class Request(pydantic.BaseModel):
    image: list[list[float]]

class Response(pydantic.BaseModel):
    probabilities: list[float]

@app.post("/predict")
async def predict(request: Request) -> Response:
    image = numpy.array(request.image, numpy.float32)[None, None]
    return Response(probabilities=session.run(["probabilities"], {"image": image})[0][0].tolist())

uvicorn.run(app, port=int(sys.argv[2]), log_level="error", loop="uvloop", http="httptools")
"""
MLSERVER = """
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse

class Onnx(MLModel):
    async def load(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        uri = self.settings.parameters.uri
        self.session = onnxruntime.InferenceSession(uri, options, ["CPUExecutionProvider"])
        return True

    async def predict(self, payload):
        image = NumpyCodec.decode_input(payload.inputs[0])
        answers = self.session.run(["logits", "probabilities"], {"image": image})
        names = ("logits", "probabilities")
        outputs = [NumpyCodec.encode_output(n, a) for n, a in zip(names, answers)]
        return InferenceResponse(model_name=self.name, outputs=outputs)
"""


class Client(Protocol):
    """One connection that asks the same thing again and again."""

    socket: socket.socket

    def send(self) -> None: ...

    def read(self) -> bool | None:
        """None while the answer is not whole, then whether it is a good one."""


def _connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


class Http:
    """HTTP/1.1, kept alive."""

    def __init__(self, port: int, path: str, body: bytes) -> None:
        self.socket = _connect(port)
        head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        self._request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        self._got = b""

    def send(self) -> None:
        self.socket.sendall(self._request)

    def read(self) -> bool | None:
        self._got += self.socket.recv(65536)
        head, end, body = self._got.partition(b"\r\n\r\n")
        if not end or len(body) < int(head.lower().split(b"content-length:")[1].split()[0]):
            return None
        self._got = b""
        return head.startswith(b"HTTP/1.1 200")


class Grpc:
    """HTTP/2 with one stream at a time; of the answer, that there is one and a good end."""

    def __init__(self, port: int, path: str, message: bytes) -> None:
        self.socket = _connect(port)
        window = struct.pack(">HI", 4, 2**31 - 1)
        hello = _frame(4, 0, 0, window) + _frame(8, 0, 0, struct.pack(">I", 2**30))
        self.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + hello)
        lines = {
            ":method": "POST", ":scheme": "http", ":path": path, ":authority": "a",
            "te": "trailers", "content-type": "application/grpc",
        }  # fmt: skip
        self._head = b"".join(b"\0" + _text(n) + _text(v) for n, v in lines.items())
        self._body = b"\0" + struct.pack(">I", len(message)) + message
        self._stream = -1
        self._got = b""
        self._answered = False

    def send(self) -> None:
        self._stream += 2
        head, body = _frame(1, 4, self._stream, self._head), _frame(0, 1, self._stream, self._body)
        self.socket.sendall(head + body)

    def read(self) -> bool | None:
        self._got += self.socket.recv(65536)
        while len(self._got) >= 9:
            size, kind, flags = int.from_bytes(self._got[:3]), self._got[3], self._got[4]
            if len(self._got) < 9 + size:
                break
            payload, self._got = self._got[9 : 9 + size], self._got[9 + size :]
            self._answered |= kind == 0 and size > 0
            if kind in (4, 6) and not flags & 1:  # settings and pings are acknowledged
                self.socket.sendall(_frame(kind, 1, 0, payload if kind == 6 else b""))
            if kind in (3, 7) or (kind in (0, 1) and flags & 1):
                answered, self._answered = self._answered, False
                return answered
        return None


def _text(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


@dataclass(frozen=True)
class Round:
    """Requests per second, the 50th and 99th percentile in ms, CPU us a request, and errors."""

    rate: float
    p50: float
    p99: float
    cpu: float
    errors: int


@dataclass(frozen=True)
class Peer:
    """A server that runs, and how it is asked."""

    process: int
    client: Callable[[], Client]


def measure(peer: Peer, clients: int, seconds: float) -> Round:
    """Ask with so many clients, each one request at a time."""
    waiting = selectors.DefaultSelector()
    sent: dict[Client, float] = {}
    for client in [peer.client() for _ in range(clients)]:
        waiting.register(client.socket, selectors.EVENT_READ, client)
        client.send()
        sent[client] = time.perf_counter()
    taken: list[float] = []
    errors = 0
    before, begun = _cpu(peer.process), time.perf_counter()
    while (now := time.perf_counter()) < begun + seconds:
        for key, _ in waiting.select(1):
            client: Client = key.data
            if (good := client.read()) is None:
                continue
            errors += not good
            now = time.perf_counter()
            taken.append(now - sent[client])
            client.send()
            sent[client] = now
    used, spent = _cpu(peer.process) - before, time.perf_counter() - begun
    for client in sent:
        client.socket.close()
    p50, p99 = np.percentile(taken, [50, 99]) * 1e3
    return Round(len(taken) / spent, p50, p99, used / len(taken) * 1e6, errors)


def _cpu(process: int) -> float:
    parent = psutil.Process(process)
    return sum(sum(p.cpu_times()[:2]) for p in (parent, *parent.children(recursive=True)))


@contextmanager
def _child(command: list[str], port: int, **more: str) -> Iterator[int]:
    process = subprocess.Popen(
        command, env=os.environ | more, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                _connect(port).close()
                break
            except OSError:
                assert process.poll() is None, f"{command[0]} ended"
                assert time.monotonic() < deadline, f"{command[0]} does not answer"
                time.sleep(0.1)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def _mlserver() -> str:
    """The Python of an environment with MLServer; raises `CalledProcessError` without one."""
    python = ENVIRONMENT / "bin" / "python"
    if not (ENVIRONMENT / "bin" / "mlserver").exists():
        for command in (
            [sys.executable, "-m", "venv", str(ENVIRONMENT)],
            [str(python), "-m", "pip", "install", "--quiet", "mlserver", "onnxruntime"],
        ):
            subprocess.run(command, check=True)
    return str(python)


def _start(stack: ExitStack, folder: Path, bundle: Path) -> dict[str, Peer | str]:
    """Every server, on this process's cores; of one that cannot be, why."""
    image = np.random.default_rng(0).random((1, 1, 28, 28), np.float32)
    tensor = {"name": "image", "datatype": "FP32", "shape": image.shape}
    kinds = {"model_name": "lenet5", "inputs": [tensor]}
    raw = MESSAGES["ModelInferRequest"](**kinds, raw_input_contents=[image.tobytes()])
    message, body = raw.SerializeToString(), json.dumps({"image": image[0, 0].tolist()}).encode()
    path, graph = f"/{SERVICE}/ModelInfer", str(bundle / "model.onnx")

    # The peers have no access log.
    server = stack.enter_context(serve([bundle], port=0, grpc_port=0, access_log=False))
    own = int(server.grpc.rpartition(":")[2])
    peers: dict[str, Peer | str] = {
        "ours, gRPC": Peer(server.process.pid, lambda: Grpc(own, path, message))
    }
    plain = free_port("127.0.0.1")
    command = [sys.executable, "-c", FASTAPI, graph, str(plain)]
    process = stack.enter_context(_child(command, plain))
    peers["FastAPI, JSON"] = Peer(process, lambda: Http(plain, "/predict", body))
    try:
        python = _mlserver()
    except subprocess.CalledProcessError as error:
        return peers | {"MLServer, gRPC": f"cannot be installed: exit code {error.returncode}"}
    http, grpc, metrics = (free_port("127.0.0.1") for _ in range(3))
    (folder / "peer.py").write_text(MLSERVER)
    ports = {"http_port": http, "grpc_port": grpc, "metrics_port": metrics}
    quiet = {"host": "127.0.0.1", "parallel_workers": 0, "debug": False}
    (folder / "settings.json").write_text(json.dumps({**ports, **quiet}))
    model = {"name": "lenet5", "implementation": "peer.Onnx", "parameters": {"uri": graph}}
    (folder / "model-settings.json").write_text(json.dumps(model))
    command = [str(Path(python).with_name("mlserver")), "start", str(folder)]
    process = stack.enter_context(_child(command, grpc, PYTHONPATH=str(folder)))
    return peers | {"MLServer, gRPC": Peer(process, lambda: Grpc(grpc, path, message))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="LeNet-5's; one is made without it")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    given = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    os.environ["OMP_NUM_THREADS"] = "1"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bundle = given.bundle or make_release("lenet5", folder / "release").bundle.folder
        os.sched_setaffinity(0, cores[:1])  # which the servers inherit
        peers = _start(stack, folder, bundle.absolute())
        os.sched_setaffinity(0, cores[-1:])
        time.sleep(3)
        rounds: dict[str, list[Round]] = {name: [] for name in peers}
        for number in range(given.rounds + 1):  # the first one warms up
            for name, peer in peers.items():
                if isinstance(peer, Peer):
                    one = measure(peer, given.clients, given.seconds)
                    rounds[name] += [one] if number else []
    print(f"{machine()}; {given.clients} clients, medians of {given.rounds} alternating rounds")
    print("| server | requests/s | of ours | p50 ms | p99 ms | CPU us/request | errors |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    ours = statistics.median(one.rate for one in rounds["ours, gRPC"])
    for name, peer in peers.items():
        if isinstance(peer, str):
            print(f"| {name} | {peer} | | | | | |")
            continue
        rate, p50, p99, cpu = (
            statistics.median(getattr(one, field) for one in rounds[name])
            for field in ("rate", "p50", "p99", "cpu")
        )
        errors = sum(one.errors for one in rounds[name])
        share = f"{rate / ours:.2f}"
        print(f"| {name} | {rate:.0f} | {share} | {p50:.1f} | {p99:.1f} | {cpu:.0f} | {errors} |")


if __name__ == "__main__":
    main()
