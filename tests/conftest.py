"""Fixtures that many tests share: one small release of a real recipe, through the real stages."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from flows import stages
from flows.stages import Job
from models.zoo import ZOO
from pipeline.bundle import Bundle
from pipeline.values import Certificate, Engine, OnnxModel, TrainedModel

# No test is timed, examples of laws included.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what is marked slow unless -m asks for it, and say so."""
    if "slow" in config.option.markexpr:
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes; runs with -m slow"))


# Enough to be a real model, too little to be a good one.
TINY = {"epochs": 2, "floor": "none"}


@dataclass(frozen=True)
class Release:
    """What every stage made of one recipe."""

    job: Job
    trained: TrainedModel
    model: OnnxModel
    engine: Engine
    certificate: Certificate
    bundle: Bundle


def make_release(reference: str, out: Path, **changes: object) -> Release:
    job = Job(reference, changes={**TINY, **changes}, out=out)
    parts = stages.Parts()
    for stage in stages.STAGES:
        parts = stages.advance(job, stage, parts)
    assert parts.trained is not None
    assert parts.model is not None
    assert parts.bundle is not None
    return Release(
        job, parts.trained, parts.model, parts.engines[0], parts.certificates[0], parts.bundle
    )


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Release]:
    """Every recipe of the zoo, released with tiny settings; an epoch of these is many steps."""
    less = {"segmentation": {"epochs": 1}, "sequence": {"epochs": 1}}
    return {
        name: make_release(name, tmp_path_factory.mktemp(name), **less.get(recipe.kind, {}))
        for name, recipe in ZOO.items()
    }


@pytest.fixture(scope="session")
def lenet5(releases: dict[str, Release]) -> Release:
    return releases["lenet5"]


@pytest.fixture(scope="session")
def mlp(releases: dict[str, Release]) -> Release:
    return releases["mlp"]


@pytest.fixture(scope="session")
def full_data() -> Path:
    """The folder of FUCINA_DATA; tests of full data sets are skipped without it."""
    folder = os.environ.get("FUCINA_DATA")
    if not folder:
        pytest.skip("full data sets are tested when FUCINA_DATA points at them")
    return Path(folder)
