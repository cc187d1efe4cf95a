"""Many recipes on a cluster of Dask or Ray that is there already: a worker takes one all the way.

A worker runs `fucina run NAME` as a process of its own, which ends with it: what is seeded is the
process's, what a person sees of a run is the same everywhere, and a worker needs neither Prefect's
server nor its plug-ins, only this package, the data and the folder of runs, at the same path.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from models.errors import BadSetting, FucinaError, first_line

Row = dict[str, Any]  # what `fucina run --json` says of one recipe, or its name and the error

_PATIENCE = 30  # seconds for a cluster to answer
_RETRIES = 2  # of a recipe whose worker died; it goes on from what is in the folder of runs
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Order:
    """A recipe for a worker: the arguments of `fucina run`, and what it needs there."""

    name: str
    arguments: tuple[str, ...]
    folder: str = field(default_factory=os.getcwd)
    environment: tuple[tuple[str, str], ...] = ()
    processors: int = 1
    gpus: int = 0


def check_runner(runner: str, address: str) -> None:
    """Raise `BadSetting` without an address, or without the runner's package."""
    if not address:
        example = {"dask": "tcp://HOST:8786", "ray": "HOST:6379 or ray://HOST:10001"}[runner]
        raise BadSetting(
            f"--runner {runner} needs the address of a cluster", fix=f"give --address {example}"
        )
    package = {"dask": "distributed", "ray": "ray"}[runner]
    if find_spec(package) is None:
        raise BadSetting(
            f"--runner {runner} needs the package {package!r}",
            got="not installed",
            fix=f"pip install 'fucina[{runner}]'",
        )


def spread(orders: Sequence[Order], runner: str, address: str) -> Iterator[Row]:
    """The row of each order as it is done, in any order, by the cluster at an address.

    Raises `FucinaError` when the cluster does not answer.
    """
    yield from RUNNERS[runner](orders, address)


def released(order: Order) -> Row:
    """Release one recipe here, on a worker, in a process that ends when this one does."""
    command = [sys.executable, "-m", "pipeline.attached", "flows", "run", order.name]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            [*command, *order.arguments, "--json"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            cwd=order.folder if Path(order.folder).is_dir() else None,
            env=os.environ | dict(order.environment),
        ) as process,
    ):  # fmt: skip
        try:
            assert process.stdout is not None
            said = process.stdout.read()
        finally:
            assert process.stdin is not None
            process.stdin.close()
        code = process.wait()
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
    try:
        (row,) = json.loads(said)
    except ValueError:
        last = lines[-1].removeprefix("fucina: ") if lines else "nothing said"
        return {"name": order.name, "error": f"exit code {code} on the worker: {last}"}
    return row


def server_for_workers(server: str | None, address: str) -> tuple[tuple[str, str], ...]:
    """The Prefect server that workers report to: ours, unless they cannot reach it."""
    if not server:
        return ()
    here = urlsplit(server).hostname in _LOOPBACK
    near = urlsplit(address if "//" in address else f"//{address}").hostname in _LOOPBACK
    return (("PREFECT_API_URL", server),) if near or not here else ()


def _dask(orders: Sequence[Order], address: str) -> Iterator[Row]:
    from distributed import Client, as_completed

    try:
        client = Client(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise _unreachable("Dask", address, error) from error
    with client:
        if not client.scheduler_info()["workers"]:
            raise FucinaError(f"the Dask cluster at {address} has no worker", fix="start one")
        futures = {
            client.submit(released, order, pure=False, retries=_RETRIES): order for order in orders
        }
        for future in as_completed(futures, loop=client.loop):
            yield _row(futures[future], future.result)


def _ray(orders: Sequence[Order], address: str) -> Iterator[Row]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray  # pyright: ignore[reportMissingImports]

    place = urlsplit(address if "//" in address else f"//{address}")
    try:
        if place.port:  # Ray itself waits minutes for nobody, and then ends the process
            socket.create_connection((place.hostname or "", place.port), _PATIENCE).close()
        ray.init(address, log_to_driver=False, configure_logging=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreachable("Ray", address, error) from error
    try:
        waiting = {}
        for order in orders:
            there = ray.remote(
                num_cpus=order.processors, num_gpus=order.gpus, max_retries=_RETRIES
            )(released)
            waiting[there.remote(order)] = order
        while waiting:
            (done, *_), _ = ray.wait(list(waiting))
            yield _row(waiting.pop(done), lambda done=done: ray.get(done))
    finally:
        ray.shutdown()


RUNNERS: dict[str, Callable[[Sequence[Order], str], Iterator[Row]]] = {"dask": _dask, "ray": _ray}


def _row(order: Order, result: Callable[[], Row]) -> Row:
    try:
        return result()
    except Exception as error:  # what a cluster raises for a lost worker is its own
        return {"name": order.name, "error": f"the worker failed: {first_line(error)}"}


def _unreachable(kind: str, address: str, error: Exception) -> FucinaError:
    return FucinaError(
        f"no {kind} cluster answers at {address}",
        got=f"{type(error).__name__}, {first_line(error)}",
        fix="start it, or give another --address",
    )
