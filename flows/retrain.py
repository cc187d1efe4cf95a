"""The Prefect flow `retrain`: a candidate is trained, certified, compared, and perhaps promoted."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import Field

from flows import shown
from flows.children import children
from flows.judging import Verdict, blessed_bundle
from flows.release import Plan, Record, planned, release, stage
from pipeline.blessed import bless

_DAYS = 7  # that an approval is waited for

Seed = Annotated[int, Field(ge=0, lt=1 << 32)] | Literal["new", "configured"]


class Approval(RunInput):
    """What a person answers before a candidate is served; the name goes into the record."""

    name: Annotated[str, Field(pattern=r"\S", max_length=200)]
    approve: bool
    remark: str = ""


@task(name="look", task_run_name="look {reference}", cache_policy=NO_CACHE)
def look(reference: str, plan: Plan) -> Record:
    return stage("look", reference, plan)


@task(name="judge", task_run_name="judge {reference}", cache_policy=NO_CACHE)
def judge(
    reference: str, plan: Plan, model: Record, bundle: Record, blessed: str, margin: float
) -> Record:
    return stage(
        "judge", reference, plan, model=model, bundle=bundle, blessed=blessed, margin=margin
    )


@task(name="promote", task_run_name="promote {reference}", cache_policy=NO_CACHE)
def promote(reference: str, run: str, bundle: Record, who: str | None) -> dict[str, Any]:
    """Bless a bundle, which no engine without its certificate passes; the decision as recorded."""
    return bless(Path(run), Path(bundle["path"]), who).model_dump(mode="json")


@flow(name="retrain", flow_run_name="retrain {reference}", result_serializer="json",
      persist_result=True)  # fmt: skip
def retrain(
    reference: str,
    data: str = "embedded",
    targets: list[str] | None = None,
    changes: dict[str, Any] | None = None,
    out: str = "runs",
    device: str = "cpu",
    limits: dict[str, float] | None = None,
    seed: Seed = "new",
    when: Literal["always", "changed"] = "always",
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.02,
    approval: bool = False,
) -> Any:
    """Train and certify a candidate; bless it only when it is not worse than what is blessed.

    A `new` seed is this run's own, also when it is retried. `when` "changed" does nothing while the
    data's digest is that of the blessed bundle. `margin` is how much worse the 95 % interval of the
    difference may reach; see `flows.judging.judge`. With `approval` a promotion waits for a person,
    without a process, as long as a week.
    """
    job = {"data": data, "changes": changes or {}, "out": out, "device": device}
    plan = planned(job, limits)
    with children():
        found = look(reference, plan)
        run = Path(out) / found["name"]
        before = blessed_bundle(run)
        if when == "changed" and before and before.manifest.data["digest"] == found["sha256"]:
            return _ended("Unchanged", {"promoted": False, "reason": "the data have not changed"})
        trained_with = (changes or {}) | ({} if seed == "configured" else {"seed": _seed(seed)})
        made = release(reference, data, targets, trained_with, out, device, limits)
        bundle = made["package"]
        if before is None:
            verdict = Verdict(promote=True, reason="nothing was blessed before")
        elif before.digest == bundle["sha256"]:
            verdict = Verdict(promote=False, reason="it is what is blessed already")
        else:
            said = judge(reference, plan, made["export"], bundle, str(before.folder), margin)
            verdict = Verdict.model_validate(said["verdict"])
    version = before.manifest.version if before else None
    document = {"candidate": bundle, "blessed": version, "verdict": verdict.model_dump(mode="json")}
    name = found["name"]
    who = None  # the user whose process it is
    if verdict.promote and approval:
        text = shown.verdict(name, bundle["version"], version, verdict, "waits for approval")
        answer = suspend_flow_run(
            wait_for_input=Approval.with_initial_data(description=text, approve=False),
            timeout=int(timedelta(days=_DAYS).total_seconds()),
            key="approval",
        )
        who = answer.name
        if not answer.approve:
            remark = f": {answer.remark}" if answer.remark else ""
            verdict = Verdict(promote=False, reason=f"{who} refused it{remark}")
    if not verdict.promote:
        shown.verdict(name, bundle["version"], version, verdict, "refused")
        return _ended("Refused", document | {"promoted": False, "reason": verdict.reason})
    entry = promote(reference, str(run), bundle, who)
    shown.verdict(name, bundle["version"], version, verdict, f"promoted by {entry['who']}")
    return document | {"promoted": True, "reason": verdict.reason, "entry": entry}


def _ended(name: str, document: dict[str, Any]) -> Any:
    """A run that did its work and promoted nothing says so by its state."""
    get_run_logger().info("%s: %s", name.lower(), document["reason"])
    return Completed(name=name, message=document["reason"], data=document)


def _seed(seed: Seed) -> int:
    """A number; of a `new` one the first 32 bits of the flow run's id, the same when it goes on."""
    if isinstance(seed, int):
        return seed
    return int(hashlib.sha256(str(flow_run.get_id()).encode()).hexdigest()[:8], 16)
