"""Options `--devices` and `--runner`: one model by several processes, or many on a cluster."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.launching import Placement, launch
from models.errors import BadSetting
from pipeline.progress import Progress

if TYPE_CHECKING:
    from flows.stages import Job


def placement_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--devices`, `--nodes`, `--node-rank`, `--rendezvous` as the argument `placement`."""

    @wraps(command)
    def placed(
        *args: Any, devices: int, nodes: int, node_rank: int, rendezvous: str, **more: Any
    ) -> Any:
        return command(*args, placement=Placement(devices, nodes, node_rank, rendezvous), **more)

    for option in (
        click.option(
            "--rendezvous", default="", metavar="HOST:PORT", help="Where nodes meet: at node 0."
        ),
        click.option(
            "--node-rank", default=0, type=click.IntRange(0), help="This machine's number, from 0."
        ),
        click.option(
            "--nodes", default=1, show_default=True, type=click.IntRange(1),
            help="Machines that train one model together; the same command on each.",
        ),
        click.option(
            "--devices", default=1, show_default=True, type=click.IntRange(1),
            help="Processes that train one model together here, each on a GPU of its own.",
        ),
    ):  # fmt: skip
        placed = option(placed)
    return placed


def runner_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--runner` and `--address` as arguments of these names."""
    command = click.option("--address", default="", help="Of the cluster of --runner.")(command)
    return click.option(
        "--runner",
        type=click.Choice(["dask", "ray"]),
        help="Release each recipe on a cluster that is there already.",
    )(command)


def _run(
    names: Sequence[str], runner: str, address: str, targets: Sequence[str], data: str,
    settings: dict[str, str], device: str, out: Path, placement: Placement,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """What `fucina run` says of each recipe that a cluster has released; the folder is shared.

    Raises `BadSetting` for what a cluster cannot do, and `FucinaError` when it does not answer.
    """
    from flows.console import listener
    from flows.runners import Order, server_for_workers, spread

    if placement.nodes > 1:
        raise BadSetting("a recipe on a cluster stays on one worker", got="--nodes", expected=1)
    arguments = ["--data", data, "--device", device, "--out", str(out.resolve())]
    arguments += ["--devices", str(placement.devices)]
    arguments += [part for target in targets for part in ("--target", target)]
    arguments += [part for item in settings.items() for part in ("--set", "=".join(item))]
    orders = [
        Order(
            name, tuple(arguments),
            environment=server_for_workers(os.environ.get("PREFECT_API_URL"), address),
            processors=placement.devices,
            gpus=placement.devices if device.startswith("cuda") else 0,
        )
        for name in names
    ]  # fmt: skip
    progress = listener.get()(runner, "run")
    progress(0, len(orders), address)
    for done, row in enumerate(spread(orders, runner, address), 1):
        progress(done, len(orders), row["name"])
        if "error" not in row and not Path(row["bundle"]).exists():
            yield {
                "name": row["name"],
                "error": f"{row['name']} is released on a worker, but {row['bundle']} is not here; "
                "give --out in a folder that all share",
            }
        else:
            yield row


def released_on_cluster(
    names: Sequence[str], runner: str, address: str, *order: Any
) -> list[dict[str, Any]]:
    """The row of each recipe, shown as they come, with a Prefect server that workers use."""
    from flows.console import shown
    from flows.environment import prefect_server
    from flows.runners import check_runner

    check_runner(runner, address)
    with prefect_server() as ready, shown():
        ready()
        return list(_run(names, runner, address, *order))


def train_together(job: Job, progress: Progress) -> None:
    """Train by the job's processes, if it has several; the flow then finds the result."""
    if job.placement.world > 1:
        from flows import stages

        stages.train(job, progress)


def take_part(job: Job) -> bool:
    """Whether this machine only helps node 0, which keeps the result; then it has helped."""
    placement = job.placement
    placement.check(job.device)
    if placement.node_rank == 0:
        return False
    with tempfile.TemporaryDirectory() as nowhere:
        launch(job, placement, Path(nowhere), None)
    print(
        f"{job.recipe.name}: node {placement.node_rank} has done its part; "
        f"the result is on node 0, {placement.rendezvous}",
        file=sys.stderr,
    )
    return True
