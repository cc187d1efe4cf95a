"""A server that is asked too much: python -m tests.benchmarks.serving_overload [BUNDLE]

Clients ask at a steady rate, however slowly they are answered: first a tenth of the capacity, which
is the server without load, then five times the capacity, then a tenth again. The capacity is what
a few clients get who ask again as soon as they are answered. The bound on the wait is what an
operator would choose for answers that take at most twice as long as without load: half the median
answer of the server without load, which leaves the other half to chance.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

import numpy as np

from flows.latency import machine
from pipeline.bundle import Bundle, open_bundle
from pipeline.cases import HELD_OUT
from serving.launch import serve
from serving.load import Answers, closed_loop, open_loop, request_of
from tests.conftest import make_release

TIMES = 5
SHARE = 0.1  # of the capacity, that counts as no load
CLIENTS = 4  # that find the capacity


def one_row(bundle: Bundle, address: str) -> bytes:
    """A request of the recorded row."""
    case = next(c for c in bundle.cases() if c.origin == HELD_OUT and c.sizes.get("batch", 1) == 1)
    return request_of(address, bundle.manifest.name, case.inputs)


def told(name: str, answers: Answers) -> str:
    """One line: how many were accepted and refused, and how long either took."""
    text = (
        f"{name:12} {answers.rate:7.1f} accepted a second, p50 {answers.percentile(50) * 1e3:8.2f} "
        f"ms, p99 {answers.percentile(99) * 1e3:8.2f} ms"
    )
    if answers.refused:
        total = len(answers.accepted) + len(answers.refused) + answers.failed
        p50, p99 = np.percentile(answers.refused, [50, 99]) * 1e3
        text += f"; {len(answers.refused) / total:.0%} refused, p50 {p50:.2f} ms, p99 {p99:.2f} ms"
    return text + (f"; {answers.failed} FAILED" if answers.failed else "")


def calm(folder: Path, threads: int, seconds: float) -> tuple[float, float]:
    """Accepted requests per second at most, and the median answer in seconds without load."""
    bundle = open_bundle(folder)
    with serve([folder], port=0, grpc_port=0, access_log=False, threads=threads) as server:
        request = one_row(bundle, server.http)
        most = asyncio.run(closed_loop(server.http, [request], CLIENTS, seconds))
        alone = asyncio.run(open_loop(server.http, request, SHARE * most.rate, seconds))
    return most.rate, alone.percentile(50)


async def overload(
    address: str, request: bytes, rate: float, seconds: float
) -> tuple[dict[str, Answers], float | None]:
    """What clients saw before, during and after, and the recovery in seconds.

    That is the time from the last request of the overload to the first of those after it that is
    answered within the 99th percentile of before; None when there is none.
    """
    before = await open_loop(address, request, SHARE * rate, seconds)
    during = await open_loop(address, request, TIMES * rate, seconds)
    after = await open_loop(address, request, SHARE * rate, seconds)
    limit, gap = before.percentile(99), 1 / (SHARE * rate)
    soon = next((n for n, taken in enumerate(after.accepted) if taken <= limit), None)
    found = {"before": before, "overloaded": during, "after": after}
    return found, None if soon is None else soon * gap + after.accepted[soon]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", nargs="?", type=Path, help="none releases resnet20")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each part")
    parser.add_argument("--threads", type=int, default=0, help="of the engine; 0: as certified")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        changes = {"image": 96, "channels": 3, "width": 1.0, "epochs": 1}
        folder = options.bundle or make_release("resnet20", Path(scratch), **changes).bundle.folder
        rate, median = calm(folder, options.threads, min(options.seconds, 10))
        bundle = open_bundle(folder)
        wait = median / 2 * 1e3
        print(
            f"{machine()}; {bundle.manifest.name}, one row a request; {rate:.0f} a second at most, "
            f"{median * 1e3:.2f} ms without load; --longest-wait {wait:.2f}; "
            f"{options.threads or 'certified'} threads; {options.seconds:g} s each"
        )
        settings = {"access_log": False, "longest_wait": wait, "threads": options.threads}
        with serve([folder], port=0, grpc_port=0, **settings) as server:
            request = one_row(bundle, server.http)
            found, recovery = asyncio.run(overload(server.http, request, rate, options.seconds))
    for name, answers in found.items():
        print(told(name, answers))
    ratio = found["overloaded"].percentile(99) / found["before"].percentile(99)
    print(
        f"accepted p99 is {ratio:.2f} times that without load; accepted at "
        f"{found['overloaded'].rate / rate:.0%} of the capacity; first answer as fast as before "
        + ("never" if recovery is None else f"{recovery * 1e3:.0f} ms after the overload")
    )


if __name__ == "__main__":
    main()
