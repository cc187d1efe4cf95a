"""Tuning: processes, threads and batches of a server, chosen by asking it on this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from models.errors import CertificateFailed, ServingFailed
from pipeline.bundle import Bundle
from pipeline.cases import HELD_OUT
from serving.launch import serve
from serving.load import closed_loop, request_of
from serving.opening import open_bundles

CLIENTS = 32
_WARM = 0.25  # of a trial's time, before it counts
# A trial that is this much faster is worth more processes or threads.
_WORTH = 0.05


@dataclass(frozen=True)
class Choice:
    """Options of `fucina serve`; 0 threads are those of the certificate, 0 rows are measured."""

    workers: int = 1
    threads: int = 0
    largest_batch: int = 0

    @property
    def cores(self) -> int:
        """How many processor cores it keeps busy at most."""
        return self.workers * max(self.threads, 1)


@dataclass(frozen=True)
class Trial:
    """What clients saw of a choice: accepted requests per second, milliseconds, and refusals."""

    choice: Choice
    rate: float
    p50: float
    p99: float
    refused: int

    def row(self) -> dict[str, Any]:
        """Its numbers by name, as they are printed."""
        return asdict(self.choice) | {
            "requests_per_second": round(self.rate, 1), "p50_ms": round(self.p50, 2),
            "p99_ms": round(self.p99, 2), "refused": self.refused,
        }  # fmt: skip


def tune(
    folders: Sequence[Path], target: str, cores: int, seconds: float,
    tell: Callable[[Trial], None] = lambda trial: None,
) -> tuple[list[Trial], Trial]:  # fmt: skip
    """Every trial, and the one to choose: served, asked by 32 clients for so long, and ended.

    Processes by threads first; of the best then batches of one row. Clients ask single recorded
    rows over REST and run on the same cores. Raises what `serving.launch.serve` raises.
    """
    bundles = open_bundles(folders)
    trials: list[Trial] = []

    def attempt(choices: Iterator[Choice]) -> None:
        for choice in choices:
            trials.append(_try(folders, bundles, target, choice, seconds))
            tell(trials[-1])

    attempt(grid(bundles, target, cores))
    attempt(iter([replace(best(trials).choice, largest_batch=1)]))
    return trials, best(trials)


def grid(bundles: Sequence[Bundle], target: str, cores: int) -> Iterator[Choice]:
    """Powers of two of processes up to the cores, with certified threads and with all cores' worth.

    Engines take other threads than certified only where their certificates say that it is the same.
    """
    for workers in sorted({*(2**power for power in range(cores.bit_length())), cores}):
        if workers > cores:
            continue
        yield Choice(workers)
        threads = cores // workers
        with suppress(CertificateFailed):
            for bundle in bundles:
                if bundle.options(target, threads) == bundle.options(target):
                    break  # which was just tried
            else:
                yield Choice(workers, threads)


def best(trials: Sequence[Trial]) -> Trial:
    """The trial of most requests a second; of those about as fast the one of the fewest cores."""
    fastest = max(trial.rate for trial in trials)
    good = [trial for trial in trials if trial.rate >= fastest * (1 - _WORTH)]
    return min(good, key=lambda trial: (trial.choice.cores, trial.p99))


def _try(
    folders: Sequence[Path], bundles: Sequence[Bundle], target: str, choice: Choice, seconds: float
) -> Trial:
    options = asdict(choice)
    with serve(folders, port=0, grpc_port=0, target=target, access_log=False, **options) as server:
        requests = [_one_row(bundle, server.http) for bundle in bundles]
        asyncio.run(closed_loop(server.http, requests, CLIENTS, seconds * _WARM))
        answers = asyncio.run(closed_loop(server.http, requests, CLIENTS, seconds))
    if answers.failed or not answers.accepted:
        raise ServingFailed(
            f"a server with {choice.workers} workers does not answer",
            got=f"{answers.failed} failed and {len(answers.accepted)} accepted requests",
        )
    p50, p99 = (1e3 * answers.percentile(share) for share in (50, 99))
    return Trial(choice, answers.rate, p50, p99, len(answers.refused))


def _one_row(bundle: Bundle, address: str) -> bytes:
    """A request of the recorded case of the fewest rows."""
    cases = [case for case in bundle.cases() if case.origin == HELD_OUT]
    least = min(cases, key=lambda case: sum(array.nbytes for array in case.inputs.values()))
    return request_of(address, bundle.manifest.name, least.inputs)
