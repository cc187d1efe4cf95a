"""Set-up of a Prefect server: the work pool, the limit of releases, what ends runs that died."""

from __future__ import annotations

import os
from datetime import timedelta
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ActionTypes, ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists, PrefectHTTPStatusError
from prefect.states import Cancelled, Scheduled

from flows import POOL, RELEASES

ZOMBIES = "fucina: a run without a heartbeat has crashed"
_SILENCE = timedelta(seconds=90)  # three heartbeats
_RUN = "prefect.flow-run"


def zombie_automation() -> AutomationCore:
    """Marks a run as crashed whose process is gone and could not say so itself."""
    crash: ActionTypes = ChangeFlowRunState(
        name=None,
        state=StateType.CRASHED,
        message="no heartbeat; `prefect flow-run retry` goes on from what is finished",
        force=False,
    )
    return AutomationCore(
        name=ZOMBIES,
        description="The process of a run, or its worker, was killed: it sends no heartbeat.",
        trigger=EventTrigger(
            after={f"{_RUN}.heartbeat"},
            expect={
                f"{_RUN}.{word}"
                for word in ("heartbeat", "Completed", "Failed", "Cancelled", "Crashed")
            },
            match={"prefect.resource.id": [f"{_RUN}.*"]},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=_SILENCE,
        ),
        actions=[crash],
    )


async def prepare(runs: int, releases: int | None = None) -> None:
    """Have the work pool for `runs` at a time, the limit of `releases`, and the automation.

    May be done again; numbers are then changed to these.
    """
    async with get_client() as client:
        try:
            await client.create_work_pool(
                WorkPoolCreate(name=POOL, type="process", concurrency_limit=runs)
            )
        except ObjectAlreadyExists:
            await client.update_work_pool(POOL, WorkPoolUpdate(concurrency_limit=runs))
        many = releases or max(1, (os.cpu_count() or 1) // 2)
        await client.upsert_global_concurrency_limit_by_name(RELEASES, many)
        known = await client.read_automations_by_name(ZOMBIES)
        if known:
            await client.update_automation(known[0].id, zombie_automation())
        else:
            await client.create_automation(zombie_automation())


async def release_pending() -> None:
    """Schedule anew the runs that a worker of the pool had taken when it was killed.

    They would wait for ever, each in one of the pool's slots. For when no worker of it runs.
    """
    async with get_client() as client:
        for run in await client.read_flow_runs(
            flow_run_filter=_in(StateType.PENDING),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL])),
        ):
            try:
                await client.set_flow_run_state(run.id, Scheduled(), force=True)
            except PrefectHTTPStatusError:  # its deployment is gone: the server fails at any state
                await client.delete_flow_run(run.id)


async def cancel_waiting(deployment: UUID) -> None:
    """Cancel the runs of a deployment that have not begun."""
    async with get_client() as client:
        for run in await client.read_flow_runs(
            flow_run_filter=_in(StateType.PENDING, StateType.SCHEDULED),
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])),
        ):
            await client.set_flow_run_state(run.id, Cancelled(), force=True)


def _in(*states: StateType) -> FlowRunFilter:
    types = FlowRunFilterStateType(any_=list(states))
    return FlowRunFilter(state=FlowRunFilterState(type=types))
