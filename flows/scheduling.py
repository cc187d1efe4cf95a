"""The commands `fucina up`, `down` and `schedule`: runs that come by themselves on a machine."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows import POOL
from flows.experimenting import varied
from models.errors import BadSetting, FucinaError, MissingArtifact

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.schemas.responses import DeploymentResponse

    from flows.stages import Job

Decorator = Callable[[Callable[..., None]], Callable[..., None]]
# Heavy imports are inside the commands: `fucina --help` answers at once.

FLOWS = ("release", "retrain", "recheck", "sweep")
_TAG = "fucina"
_RETRAIN = ("seed", "when", "margin", "approval")


def register(
    group: click.Group,
    job_options: Decorator,
    targets_option: Decorator,
    as_json_option: Decorator,
    make_job: Callable[..., Job],
) -> None:
    """Add the commands to `fucina`, with the options and checks that others have."""

    @group.command()
    @click.option("--port", default=4200, show_default=True, type=click.IntRange(1, 65535))
    @click.option(
        "--database", envvar="FUCINA_DATABASE", metavar="URL",
        help="postgresql+asyncpg://USER:PASSWORD@HOST/NAME, also as FUCINA_DATABASE; else SQLite.",
    )  # fmt: skip
    @click.option(
        "--runs", default=2, show_default=True, type=click.IntRange(1),
        help="Scheduled runs at a time; more than one at a time wants PostgreSQL.",
    )  # fmt: skip
    @as_json_option
    def up(port: int, database: str | None, runs: int, as_json: bool) -> None:
        """Start a Prefect server and a worker that stay; what runs already is left as it is."""
        from flows.environment import SETTINGS
        from flows.local_server import up as start

        _set(SETTINGS)
        state = start(port, database, runs)
        ids = {name: one.pid for name, one in state.processes.items()}
        if as_json:
            _print_json({"ui": state.address, "api": state.api, "processes": ids})
            return
        print(f"Prefect UI   {state.address}\nPrefect API  {state.api}")
        print("processes    " + ", ".join(f"{name} {pid}" for name, pid in ids.items()))
        print("\nnext: fucina schedule release NAME --interval 3600\n      fucina down")

    @group.command()
    @as_json_option
    def down(as_json: bool) -> None:
        """End what `fucina up` has started, with the runs of its worker."""
        from flows.local_server import down as end

        ended = end()
        if as_json:
            _print_json({"ended": ended})
        else:
            print(f"ended {len(ended)} processes" if ended else "nothing was up")

    @group.command()
    @click.argument("flow", required=False, type=click.Choice(FLOWS))
    @click.argument("name", required=False)
    @click.option("--cron", help='When, as in "0 3 * * *".')
    @click.option("--interval", type=click.FloatRange(1), metavar="SECONDS", help="How often.")
    @click.option("--timezone", default="UTC", show_default=True, help="Of --cron.")
    @click.option("--now", is_flag=True, help="The first time at once, and not when it is due.")
    @click.option("--list", "list_", is_flag=True, help="What is scheduled.")
    @click.option("--remove", is_flag=True, help="Run NAME by FLOW no more.")
    @click.option(
        "--seed", default="new", show_default=True, help="Of retrain: a number, configured, or new."
    )
    @click.option(
        "--when",
        default="always",
        show_default=True,
        type=click.Choice(["always", "changed"]),
        help="Of retrain: always, or when the data have changed.",
    )
    @click.option(
        "--margin",
        default=0.02,
        show_default=True,
        type=click.FloatRange(0, 1),
        help="Of retrain: how much worse a candidate may perhaps be.",
    )
    @click.option("--approval", is_flag=True, help="Of retrain: a person has to agree.")
    @click.option(
        "--vary", multiple=True, metavar="KEY=VALUE,VALUE,...", callback=varied,
        help="Of sweep: a setting and the values to try. Repeat for every combination.",
    )  # fmt: skip
    @targets_option
    @job_options
    def schedule(
        flow: str | None, name: str | None, cron: str | None, interval: float | None,
        timezone: str, now: bool, list_: bool, remove: bool, targets: tuple[str, ...], data: str,
        settings: dict[str, str], device: str, out: Path, as_json: bool, **more: Any,
    ) -> None:  # fmt: skip
        """Run FLOW on NAME by itself, on the worker of `fucina up`.

        FLOW is release, retrain, recheck or sweep.
        """
        from flows.environment import prefect_server

        if list_ == bool(flow) or (flow and not name):
            raise click.UsageError("give FLOW and NAME, or --list")
        if flow and not remove and (cron is None) == (interval is None):
            raise click.UsageError("give --cron or --interval")
        if flow and not remove and (flow == "sweep") != bool(more["vary"]):
            raise click.UsageError("give --vary with sweep, and with nothing else")
        with prefect_server(standing=True) as ready:
            ready()
            if list_:
                rows = asyncio.run(_rows())
                _print_json(rows) if as_json else _print_rows(rows)
                return
            assert flow is not None
            assert name is not None
            title = f"{flow}/{_title(name)}"
            if remove:
                asyncio.run(_remove(title))
                print(f"{title} is not scheduled any more")
                return
            job = make_job(name, data, settings, device, out, targets)
            parameters: dict[str, Any] = {"reference": name, "out": str(out.resolve())}
            if flow != "recheck":
                parameters |= {"data": data, "changes": job.changes, "device": device}
            if flow in ("release", "retrain"):
                parameters["targets"] = list(targets)
            if flow == "retrain":
                parameters |= {key: more[key] for key in _RETRAIN}
                parameters["seed"] = int(more["seed"]) if more["seed"].isdigit() else more["seed"]
            if flow == "sweep":
                from flows.comparing import grid

                grid(job, more["vary"])  # refuses what cannot be set
                parameters["vary"] = more["vary"]
            _deploy(flow, _title(name), parameters, cron, interval, timezone, now)
            print(f"{title} is scheduled: {_said(cron, interval, timezone)}")


def load(name: str) -> Flow[..., Any]:
    """The flow of that name."""
    from flows.recheck import recheck
    from flows.release import release
    from flows.retrain import retrain
    from flows.sweep import sweep

    return {"release": release, "retrain": retrain, "recheck": recheck, "sweep": sweep}[name]


def _deploy(
    flow: str, name: str, parameters: dict[str, Any], cron: str | None, interval: float | None,
    timezone: str, now: bool,
) -> None:  # fmt: skip
    """Schedule a flow on the worker's machine, in this folder, never twice at a time."""
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.deployments import run_deployment
    from prefect.exceptions import PrefectException
    from prefect.schedules import Cron, Interval
    from prefect.types.entrypoint import EntrypointType

    try:
        when = (
            Cron(cron, timezone=timezone) if cron
            else Interval(timedelta(seconds=interval or 0), timezone=timezone)
        )  # fmt: skip
        load(flow).validate_parameters(parameters)
    except ValueError as error:
        text = str(error).splitlines()
        raise BadSetting("the schedule is refused", got="; ".join(text)[:200]) from error
    deployment: Any = load(flow).to_deployment(
        name=name,
        schedule=when,
        parameters=parameters,
        tags=[_TAG],
        entrypoint_type=EntrypointType.MODULE_PATH,
        job_variables={"working_dir": str(Path.cwd())},  # where MODULE:RECIPE is found
        # A run that still works when the next one is due is let finish; what is due comes again.
        concurrency_limit=ConcurrencyLimitConfig(
            limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
        ),
    )
    try:
        made = deployment.apply(work_pool_name=POOL)
        if now:
            run_deployment(made, timeout=0, as_subflow=False)
    except PrefectException as error:
        raise FucinaError(
            "the schedule could not be made", got=error, fix="run `fucina up` first"
        ) from error


async def _rows() -> list[dict[str, Any]]:
    from prefect.client.orchestration import get_client

    async with get_client() as client:
        flows = {flow.id: flow.name for flow in await client.read_flows()}
        return [
            {
                "schedule": f"{flows[one.flow_id]}/{one.name}",
                "when": "; ".join(_when(one)),
                "parameters": one.parameters,
            }
            for one in await client.read_deployments()
            if _TAG in one.tags
        ]


async def _remove(title: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    from flows.setup import cancel_waiting

    async with get_client() as client:
        try:
            found = await client.read_deployment_by_name(title)
        except ObjectNotFound as error:
            raise MissingArtifact(
                f"{title} is not scheduled", fix="see `fucina schedule --list`"
            ) from error
        await client.pause_deployment(found.id)
        # A worker cannot tell what becomes of a run whose deployment is gone.
        await cancel_waiting(found.id)
        await client.delete_deployment(found.id)


def _when(deployment: DeploymentResponse) -> list[str]:
    said = []
    for one in deployment.schedules:
        values = one.schedule.model_dump()
        seconds = values["interval"].total_seconds() if "interval" in values else None
        said.append(_said(values.get("cron"), seconds, str(values.get("timezone"))))
    return said


def _said(cron: str | None, interval: float | None, timezone: str) -> str:
    return f"{cron} {timezone}" if cron else f"every {interval:g} s"


def _title(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def _set(variables: dict[str, str]) -> None:
    import os

    for name, value in variables.items():
        os.environ.setdefault(name, value)


def _print_json(document: object) -> None:
    from flows.output import print_json

    print_json(document)


def _print_rows(rows: list[dict[str, Any]]) -> None:
    from flows.experimenting import print_rows

    if not rows:
        print("nothing is scheduled")
        return
    print_rows([row | {"parameters": json.dumps(row["parameters"])} for row in rows])
