"""Versions that change under load: python -m tests.benchmarks.serving_swap [REQUESTS]

Two workers serve one small model, whose version k answers k. Clients ask without pause over REST
and gRPC and never retry, while 20 new versions are blessed one after the other and the last one is
rolled back; each gets its REQUESTS (2,000) before the next. Then a worker is killed, first under
clients that do not retry, then under clients that do. Prints what failed, what the server's metrics
counted, and how long calls took while a version was loaded beside those when none was.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import tempfile
import time
from pathlib import Path

from flows.latency import machine
from pipeline import blessed
from serving.launch import Server, serve
from tests.serving.under_load import Load, counted, load, wait_until
from tests.serving.versions import make_run, make_version

SWAPS, WORKERS = 20, 2


def swap(server: Server, run: Path, requests: int) -> tuple[Load, list[tuple[float, float]]]:
    """All swaps and the rollback under load; when each began, and when all workers had followed."""
    spans = []
    with load(server) as seen:
        wait_until(lambda: seen.of("1") >= requests)
        for number in [*range(2, SWAPS + 2), SWAPS]:
            begun, version, before = time.perf_counter(), str(number), seen.of(str(number))
            if number == SWAPS and before:
                blessed.rollback(run)
            else:
                blessed.bless(run, run / version)
            # A worker looks once a second; the load tells when the last one has followed.
            wait_until(lambda v=version, n=before: seen.of(v) > n)
            quiet = time.perf_counter() + 1.5
            wait_until(lambda until=quiet: time.perf_counter() > until)
            spans.append((begun, quiet))
            wait_until(lambda v=version, n=before: seen.of(v) >= n + requests)
    return seen, spans


def kill(server: Server, retries: int) -> tuple[Load, float]:
    """Kill a worker under load; what the clients saw, and seconds until another is ready."""
    before = set(server.workers.living())
    with load(server, retries=retries) as seen:
        wait_until(lambda: seen.total() >= 200)
        begun = time.perf_counter()
        os.kill(min(before), signal.SIGKILL)
        wait_until(lambda: len(set(server.workers.living()) - before) == 1)
        took = time.perf_counter() - begun
        again = seen.total()
        wait_until(lambda: seen.total() >= again + 200)
    return seen, took


def milliseconds(seconds: list[float]) -> str:
    quantiles = statistics.quantiles(seconds, n=1000)
    return (
        f"{len(seconds):7} calls, p50 {quantiles[499] * 1e3:.2f} ms, "
        f"p99 {quantiles[989] * 1e3:.2f} ms, longest {max(seconds) * 1e3:.1f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("requests", nargs="?", type=int, default=2000)
    requests = parser.parse_args().requests
    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        made = [make_version(folder / "made" / str(n), n) for n in range(1, SWAPS + 2)]
        run = make_run(folder, made)
        blessed.bless(run, run / "1")
        with serve([run], port=0, grpc_port=0, workers=WORKERS, access_log=False) as server:
            seen, spans = swap(server, run, requests)
            wait_until(lambda: counted(server).total() >= seen.total())
            page = counted(server)
            fewest = min(seen.of(str(n)) for n in range(1, SWAPS + 2))
            print(f"\n{SWAPS} swaps and a rollback: {seen.total()} requests, {len(seen.failed)} "
                  f"failed, {len(seen.wrong)} answered by two versions or another than they say; "
                  f"fewest of a version {fewest}")  # fmt: skip
            print(f"metrics agree with the clients by transport and version: "
                  f"{page == seen.answered}")  # fmt: skip
            inside = [s for t, s in seen.calls if any(a <= t <= b for a, b in spans)]
            outside = [s for t, s in seen.calls if not any(a <= t <= b for a, b in spans)]
            print(f"  while a version comes {milliseconds(inside)}")
            print(f"  between two           {milliseconds(outside)}")
            for retries in (0, 10):
                seen, took = kill(server, retries)
                print(f"worker killed, {retries:2} retries: {seen.total()} answered, "
                      f"{len(seen.failed)} failed, {len(seen.wrong)} wrong, "
                      f"another is ready after {took:.1f} s")  # fmt: skip


if __name__ == "__main__":
    main()
