"""Fixtures that many tests share: one small release of a real recipe, through the real stages."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
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


class Releases(Mapping[str, Release]):
    """Every recipe of the zoo with tiny settings, released when it is asked for.

    Processes that test side by side share the folder; the second to ask takes what the first made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, Release] = {}

    def __getitem__(self, name: str) -> Release:
        if name not in self._made:
            # An epoch of these is many steps.
            less = {"epochs": 1} if ZOO[name].kind in ("segmentation", "sequence") else {}
            out = self._folder / name
            out.mkdir(parents=True, exist_ok=True)
            with (out / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._made[name] = make_release(name, out, **less)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(ZOO)

    def __len__(self) -> int:
        return len(ZOO)


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Releases:
    """Every recipe of the zoo, released with tiny settings."""
    base = tmp_path_factory.getbasetemp()
    return Releases((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "releases")


@pytest.fixture(scope="session")
def lenet5(releases: Releases) -> Release:
    return releases["lenet5"]


@pytest.fixture(scope="session")
def mlp(releases: Releases) -> Release:
    return releases["mlp"]


@pytest.fixture(scope="session")
def full_data() -> Path:
    """The folder of FUCINA_DATA; tests of full data sets are skipped without it."""
    folder = os.environ.get("FUCINA_DATA")
    if not folder:
        pytest.skip("full data sets are tested when FUCINA_DATA points at them")
    return Path(folder)
