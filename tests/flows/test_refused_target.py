"""A refused target: the others end in a bundle, the reason is kept, and alone it is an error."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flows import stages
from flows.output import describe_bundle, describe_stage
from flows.stages import STAGES, Job
from models.errors import BuildFailed
from pipeline.values import Engine, Refusal
from tests.conftest import Release, Releases

REFUSED = "ort-cpu-int8"


@pytest.fixture
def recurrent(releases: Releases) -> Release:
    """Its state is carried from call to call, which no lower precision is offered for."""
    return releases["gru"]


def both(made: Release) -> Job:
    return replace(made.job, targets=("ort-cpu-fp32", REFUSED))


def test_the_other_targets_end_in_a_bundle_and_the_reason_is_kept(recurrent: Release) -> None:
    job, parts = both(recurrent), stages.Parts()
    for stage in STAGES:
        parts = stages.advance(job, stage, parts)
        if stage == "optimize":
            assert REFUSED in describe_stage(job, parts)["refused"]
    assert parts.bundle is not None
    assert parts.bundle.manifest.engines == ("ort-cpu-fp32",)
    (refusal,) = stages.read_refusals(job.folder)
    assert "carried from call to call" in refusal.why
    assert describe_bundle(job, parts.bundle)["refused"] == {REFUSED: refusal.why}


def test_a_refusal_is_found_again_and_not_measured_twice(
    recurrent: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = stages.optimize(recurrent.job, recurrent.model, REFUSED)
    assert isinstance(first, Refusal)

    def never(*given: object, **named: object) -> Engine:
        raise AssertionError("it was there")

    monkeypatch.setattr("pipeline.optimize.optimize", never)
    assert stages.optimize(recurrent.job, recurrent.model, REFUSED) == first


def test_a_refused_target_alone_is_an_error(recurrent: Release) -> None:
    job = replace(recurrent.job, targets=(REFUSED,))
    parts = stages.Parts(trained=recurrent.trained, model=recurrent.model)
    with pytest.raises(BuildFailed, match=r"carried from call to call.*use --target ort-cpu-fp32"):
        stages.advance(job, "optimize", parts)
