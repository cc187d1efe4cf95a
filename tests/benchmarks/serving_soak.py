"""Soak: many small requests over REST and gRPC; memory, descriptors and rate, per so many.

    python -m tests.benchmarks.serving_soak BUNDLE [REQUESTS] [--clients N] [--access-log]

BUNDLE is of a small classifier. Half of the requests goes over each transport, all to one worker,
which has a core of its own where there are two. Prints a table and three verdicts: whether memory
after the first 50,000 stayed within 5 %, whether descriptors grew, and whether a request came to
cost more CPU, which is a rate that decays, whoever else uses the machine. Ends with exit code 1
if any did.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import psutil

from models.signature import Signature
from pipeline.bundle import open_bundle
from serving.inference_proto import MESSAGES, SERVICE
from serving.launch import Server, serve
from serving.tensors import DATATYPES

EACH = 50_000  # requests a row
WITHIN = 0.05


@dataclass(frozen=True)
class Row:
    """What was seen when so many requests had been answered."""

    requests: int
    rate: float  # a second, since the row before
    cpu: float  # microseconds of the worker a request, since then
    rss: int  # bytes of the worker
    descriptors: int


def main() -> None:
    """Serve a bundle, ask it and print what became of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("requests", type=int, nargs="?", default=1_000_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--access-log", action="store_true")
    given = parser.parse_args()
    bundle = open_bundle(given.bundle)
    with serve([given.bundle], port=0, grpc_port=0, access_log=given.access_log) as server:
        worker = _worker(server)
        _apart(worker)
        soak = _soak(
            server, worker, bundle.manifest.name, bundle.manifest.signature,
            given.requests, given.clients,
        )  # fmt: skip
        rows = asyncio.run(soak)
    sys.exit(0 if _verdict(rows) else 1)


async def _soak(
    server: Server,
    worker: psutil.Process,
    name: str,
    signature: Signature,
    requests: int,
    clients: int,
) -> list[Row]:
    """Ask until `requests` are answered; raises on the first that is not."""
    inputs = {
        s.name: np.zeros(s.at({axis: a.min for axis, a in signature.axes.items()}), s.dtype)
        for s in signature.inputs
    }
    rows: list[Row] = []
    done, began = 0, time.perf_counter()
    used = _cpu(worker)
    print(f"{'requests':>10} {'per second':>10} {'CPU us':>7} {'RSS MiB':>8} {'descriptors':>11}")

    def note() -> None:
        nonlocal began, used
        now, cpu = time.perf_counter(), _cpu(worker)
        count = done - (rows[-1].requests if rows else 0)
        row = Row(
            done, count / (now - began), (cpu - used) / count * 1e6,
            worker.memory_info().rss, worker.num_fds(),
        )  # fmt: skip
        began, used = now, cpu
        rows.append(row)
        numbers = f"{row.requests:>10,} {row.rate:>10.0f} {row.cpu:>7.0f}"
        print(f"{numbers} {row.rss / 2**20:>8.1f} {row.descriptors:>11}", flush=True)

    async def work(ask: Callable[[], Awaitable[None]]) -> None:
        nonlocal done
        while done < requests:
            await ask()
            done += 1
            if done % EACH == 0 or done == requests:
                note()

    async with grpc.aio.insecure_channel(server.grpc) as channel, asyncio.TaskGroup() as tasks:
        over_grpc = _over_grpc(channel, name, signature, inputs)
        for number in range(clients):
            rest = number % 2 == 0
            ask = await _over_rest(server, name, signature, inputs) if rest else over_grpc
            tasks.create_task(work(ask))
    return rows


async def _over_rest(
    server: Server, name: str, signature: Signature, inputs: dict[str, np.ndarray]
) -> Callable[[], Awaitable[None]]:
    """A connection that is kept, and one request on it; tensors are binary."""
    host, _, port = server.http.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    tensors = [
        {
            "name": s.name, "datatype": DATATYPES[s.dtype], "shape": inputs[s.name].shape,
            "parameters": {"binary_data_size": inputs[s.name].nbytes},
        }
        for s in signature.inputs
    ]  # fmt: skip
    header = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
    body = header + b"".join(inputs[s.name].tobytes() for s in signature.inputs)
    message = (
        f"POST /v2/models/{name}/infer HTTP/1.1\r\nHost: {host}\r\n"
        "Content-Type: application/octet-stream\r\n"
        f"Inference-Header-Content-Length: {len(header)}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body

    async def ask() -> None:
        writer.write(message)
        head = await reader.readuntil(b"\r\n\r\n")
        lines = dict(line.split(b": ", 1) for line in head.lower().splitlines()[1:] if line)
        said = await reader.readexactly(int(lines[b"content-length"]))
        if b" 200 " not in head.splitlines()[0]:
            raise RuntimeError(said.decode())

    return ask


def _over_grpc(
    channel: grpc.aio.Channel, name: str, signature: Signature, inputs: dict[str, np.ndarray]
) -> Callable[[], Awaitable[None]]:
    request = MESSAGES["ModelInferRequest"](
        model_name=name,
        inputs=[
            {"name": s.name, "datatype": DATATYPES[s.dtype], "shape": inputs[s.name].shape}
            for s in signature.inputs
        ],
        raw_input_contents=[inputs[s.name].tobytes() for s in signature.inputs],
    ).SerializeToString()
    infer: Any = channel.unary_unary(f"/{SERVICE}/ModelInfer")  # bytes to bytes

    async def ask() -> None:
        await infer(request)

    return ask


def _verdict(rows: list[Row]) -> bool:
    """Print what the rows say; whether all is well."""
    if len(rows) < 3:
        print(f"too few requests to say: at least {3 * EACH:,} are needed")
        return False
    first, later = rows[0], rows[1:]
    growth = max(row.rss for row in later) / first.rss - 1
    descriptors = later[-1].descriptors - first.descriptors
    half = len(later) // 2
    early, late = (statistics.median(r.cpu for r in part) for part in (later[:half], later[half:]))
    sound = {
        f"memory after the first {EACH:,}: at most {growth:+.1%}": growth <= WITHIN,
        f"descriptors: {descriptors:+d}": descriptors <= 0,
        f"CPU a request, later half over earlier half: {late / early:.2f}": late <= 1.1 * early,
    }
    for text, good in sound.items():
        print(f"{'ok' if good else 'NOT OK':<7} {text}")
    return all(sound.values())


def _worker(server: Server) -> psutil.Process:
    children = psutil.Process(server.process.pid).children(recursive=True)
    (worker,) = [c for c in children if "_bentoml_impl.worker.service" in c.cmdline()]
    return worker


def _cpu(worker: psutil.Process) -> float:
    times = worker.cpu_times()
    return times.user + times.system


def _apart(worker: psutil.Process) -> None:
    """The worker on one core and the clients on another, where there are two."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        worker.cpu_affinity(cores[:1])
        os.sched_setaffinity(0, cores[1:2])


if __name__ == "__main__":
    main()
