"""The Prefect flow `compare`: a recipe with every combination of some settings, a subflow each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from flows.comparing import Row, concluded, label, variant
from flows.console import listener
from flows.logged import logged
from flows.stages import Job
from models.errors import TrainingFailed


@flow(name="compare", flow_run_name="compare {reference}", result_serializer="json")
def compare(
    reference: str,
    variants: list[dict[str, Any]],
    data: str = "embedded",
    changes: dict[str, Any] | None = None,
    out: str = "runs",
    device: str = "cpu",
    command: str = "",
) -> dict[str, Any]:
    """Train every variant, rank them on the validation split, and write a page of it.

    A variant whose training fails is a row that says so.
    """
    rows: list[Row] = []
    for settings in variants:
        try:
            made = train_variant(
                label(settings), reference, data, changes or {}, settings, out, device
            )
            rows.append({"settings": settings} | made)
        except TrainingFailed as error:
            rows.append({"settings": settings, "error": str(error)})
    job = Job(reference, data, changes=dict(changes or {}), out=Path(out), device=device)
    return concluded(job, variants, rows, command)


@flow(name="variant", flow_run_name="{label}", result_serializer="json")
def train_variant(
    label: str,
    reference: str,
    data: str,
    changes: dict[str, Any],
    settings: dict[str, Any],
    out: str,
    device: str,
) -> Row:
    """Train one variant, or take it from the run folder."""
    job = Job(reference, data, changes=changes, out=Path(out), device=device)
    return variant(job, settings, logged(listener.get())(label, "train"))
