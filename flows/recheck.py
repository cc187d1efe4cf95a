"""The Prefect flow `recheck`: the certificates of what is served, made again on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows import shown
from flows.children import children
from flows.release import Plan, Record, planned, stage
from models.errors import CertificateFailed
from pipeline.blessed import standing


@task(name="recheck", task_run_name="recheck {reference}", cache_policy=NO_CACHE)
def replay(reference: str, plan: Plan, bundle: str, serve: bool) -> Record:
    return stage("recheck", reference, plan, bundle=bundle, serve=serve)


@flow(name="recheck", flow_run_name="recheck {reference}", result_serializer="json")
def recheck(
    reference: str,
    out: str = "runs",
    serve: bool = True,
    limits: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Certify what is blessed of a recipe, else its last bundle, on this machine.

    With `serve` up to the answers of its service. Raises `CertificateFailed` when an engine that
    was packaged with a certificate does not get one here.
    """
    plan = planned({"out": out}, limits)
    with children():
        name = stage("look", reference, plan)["name"]
        bundle = standing(Path(out) / name).bundle.folder
        record = replay(reference, plan, str(bundle), serve)
    shown.rechecked(name, bundle, record["engines"])
    failed = [one for one in record["engines"] if one["here"] != "passed"]
    if failed:
        raise CertificateFailed(
            f"{name} on {failed[0]['engine']} is not certified on this machine",
            got="; ".join(failed[0]["failures"])[:200] or "a comparison that failed",
            fix=f"see {record['path']}; `fucina rollback {name}` serves what was blessed before",
        )
    return record
