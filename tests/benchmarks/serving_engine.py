"""What a server adds to its engine: python -m tests.benchmarks.serving_engine [BUNDLE]

32 clients that ask one row each, over the Open Inference Protocol's REST half in binary, beside the
bare engine in one process, with the same threads, at the batch of most rows a second. Then one
client, beside the bare engine at one row and a request that no model answers. Alternating rounds;
server, clients and the bare engine share the machine, so that ratios say more than times.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
import urllib.parse
from pathlib import Path

from flows.latency import machine
from models.signature import BATCH, Arrays
from pipeline.backends import Session
from pipeline.bundle import Bundle, open_bundle
from pipeline.cases import HELD_OUT
from serving.launch import serve
from serving.load import closed_loop, request_of
from tests.conftest import make_release

CLIENTS = 32
LEAST = 3  # calls of the bare engine in a round


def inputs_of(bundle: Bundle) -> Arrays:
    """The recorded rows of the largest batch."""
    held_out = [case for case in bundle.cases() if case.origin == HELD_OUT]
    return max(held_out, key=lambda case: case.sizes.get(BATCH, 1)).inputs


def seconds_a_call(session: Session, inputs: Arrays, seconds: float) -> float:
    """The median time of calls for so long."""
    taken: list[float] = []
    begun = time.perf_counter()
    while len(taken) < LEAST or time.perf_counter() < begun + seconds:
        before = time.perf_counter()
        session.run(inputs)
        taken.append(time.perf_counter() - before)
    return statistics.median(taken)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", nargs="?", type=Path, help="none releases resnet18 at 224")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        changes = {"image": 224, "channels": 3, "width": 1.0, "epochs": 1}
        folder = options.bundle or make_release("resnet18", Path(scratch), **changes).bundle.folder
        bundle, seconds = open_bundle(folder), options.seconds
        session, inputs = bundle.open_engine(), inputs_of(bundle)
        rows = len(next(iter(inputs.values())))
        batches = {
            count: {name: array[:count] for name, array in inputs.items()}
            for count in sorted({*(2**power for power in range(rows.bit_length())), rows})
        }
        for batch in batches.values():
            session.run(batch)
        rates: dict[int, list[float]] = {count: [] for count in batches}
        served: list[float] = []
        times: dict[str, list[float]] = {"served": [], "engine": [], "empty": []}
        with serve([folder], port=0, grpc_port=0, access_log=False) as server:
            request = request_of(server.http, bundle.manifest.name, batches[1])
            host = urllib.parse.urlsplit(server.http).netloc
            empty = f"GET /v2/health/live HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
            for _ in range(options.rounds):
                for count, batch in batches.items():
                    rates[count].append(count / seconds_a_call(session, batch, seconds / 5))
                many = asyncio.run(closed_loop(server.http, [request], CLIENTS, seconds))
                assert not many.failed, f"{many.failed} requests failed"
                assert not many.refused, f"{len(many.refused)} requests were refused"
                served.append(many.rate)
                times["engine"].append(seconds_a_call(session, batches[1], seconds / 5))
                for name, asked in (("served", request), ("empty", empty)):
                    one = asyncio.run(closed_loop(server.http, [asked], 1, seconds))
                    times[name].append(one.percentile(50))
    best = max(rates, key=lambda count: statistics.median(rates[count]))
    most, got = statistics.median(rates[best]), statistics.median(served)
    ratio = statistics.median(s / b for s, b in zip(served, rates[best], strict=True))
    middle = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    print(f"{machine()}; {bundle.manifest.name}, medians of {options.rounds} alternating rounds")
    print(f"bare engine, rows a second at a batch of {best}, its best: {most:.1f}")
    print(f"{CLIENTS} clients of one row: {got:.1f} rows a second, {ratio:.2f} of it")
    over = middle["served"] / (middle["engine"] + middle["empty"])
    print(
        f"one client: p50 {middle['served']:.2f} ms, {over:.2f} times the bare engine and an empty "
        f"request ({middle['engine']:.2f} + {middle['empty']:.2f} ms)"
    )


if __name__ == "__main__":
    main()
