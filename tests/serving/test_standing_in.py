"""An engine that does not fit the machine: what is served instead, what is said, how it ends."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client import generate_latest

from models.errors import TamperedFile
from models.signature import Signature
from pipeline.artifacts import digest_files, save
from pipeline.backends import backend, target
from pipeline.bundle import ENGINES, Bundle, open_bundle
from pipeline.values import CERTIFICATE_VALUE, ENGINE_VALUE, MODEL
from serving.client import Client
from serving.launch import serve
from serving.model import BEING_BUILT, Model
from serving.predictor import Models
from serving.settings import Settings
from serving.telemetry import Telemetry
from tests.serving.conftest import LEVEL, TARGET, write_manifest
from tests.serving.plans import (
    COMPILER,
    MACHINE,
    OPENED,
    PLAN,
    PLANNED,
    told,
)
from tests.serving.test_metrics import Page, read, total

ROWS = {"features": np.array([[1, 0, 0], [0, 1, 0]], np.float32)}
GPU = "tensorrt-fp32"


@pytest.fixture(scope="module")
def compiled(level: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a plan that TensorRT really compiled, and that nothing here can run.

    Its certificate is that of the other engine in its name: one of its own needs the GPU.
    """
    pytest.importorskip("tensorrt_rtx")
    copy = Path(shutil.copytree(level, tmp_path_factory.mktemp("compiled") / "level"))
    bundle, wanted = open_bundle(copy), target(GPU)
    folder = copy / ENGINES / GPU
    folder.mkdir()
    signature: Signature = bundle.manifest.signature
    built = backend(wanted).build(copy / MODEL, signature, wanted, folder)
    files = digest_files(folder, list(built.files))
    facts: dict[str, Any] = {"folder": folder, "target": GPU, "files": files}
    engine = bundle.engine().model_copy(
        update=facts | {"options": built.options, "built_on": built.built_on}
    )
    own = {"engine": engine.digest, "subject": files, "target": GPU, "folder": folder}
    save(engine, folder, ENGINE_VALUE)
    save(bundle.certificate().model_copy(update=own), folder, CERTIFICATE_VALUE)
    write_manifest(copy, name="level", signature=LEVEL, engines=(TARGET, GPU))
    return copy


def settings(folder: Path, **more: Any) -> Settings:
    return Settings(target=PLANNED.name, cache=folder / "cache", **more)


Scenario = Callable[[Model, "Said"], Awaitable[None]]


class Said:
    """What a model tells: metrics, and warnings of the log."""

    def __init__(self, telemetry: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
        self._telemetry, self._caplog = telemetry, caplog

    @property
    def page(self) -> Page:
        return read(generate_latest(self._telemetry.metrics.registry).decode())

    def ready(self, **labels: str) -> float:
        return total(self.page, "fucina_model_ready", **labels)

    @property
    def warnings(self) -> list[str]:
        logged = self._caplog.records
        return [one.getMessage() for one in logged if one.levelno >= logging.WARNING]


def served(
    bundle: Bundle, chosen: Settings, caplog: pytest.LogCaptureFixture, scenario: Scenario
) -> None:
    """Load a bundle as a server does, and go through a scenario with it."""

    async def whole() -> None:
        telemetry = Telemetry()
        models = Models(chosen, telemetry)
        model = models.add(bundle)
        try:
            await models.load()
            await scenario(model, Said(telemetry, caplog))
        finally:
            await models.close()

    asyncio.run(whole())


async def asked(model: Model) -> None:
    """It answers as the formula does."""
    answers = await model.predict(ROWS)
    assert np.allclose(answers["value"], [[2], [1]])


def test_another_engine_answers_until_the_rebuilt_one_takes_over(
    moved: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(model: Model, said: Said) -> None:
        assert model.ready
        assert model.target == TARGET
        assert model.properties["requested_target"] == PLANNED.name
        assert model.properties["served_target"] == TARGET
        assert "built for machine 'old', here is 'new'" in model.properties["why"]
        assert said.ready(target=TARGET, requested=PLANNED.name, why="rebuilding") == 1
        (line,) = said.warnings
        assert "ort-cpu-fp32 is served, plan-cpu-fp32 was asked for (rebuilding)" in line
        while model.target == TARGET:
            await asked(model)
            assert model.properties["reason"] == "rebuilding", model.properties
            await asyncio.sleep(0.02)
        await asked(model)
        assert model.properties["reason"] == "rebuilt"
        assert said.ready() == 1  # in one way only
        assert said.ready(target=PLANNED.name, requested=PLANNED.name, why="rebuilt") == 1

    served(moved, settings(tmp_path), caplog, scenario)

    async def later(model: Model, said: Said) -> None:
        await asked(model)
        assert model.properties["reason"] == "rebuilt"
        assert told("compiled") == 1

    served(moved, settings(tmp_path, strict_target=True), caplog, later)


@pytest.mark.parametrize("strict", [False, True])
def test_a_rebuilt_engine_that_is_not_certified_is_not_served(
    moved: Bundle,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    strict: bool,
) -> None:
    monkeypatch.setenv(COMPILER, "wrong")

    async def scenario(model: Model, said: Said) -> None:
        assert model.ready != strict
        assert (BEING_BUILT in model.problem) == strict
        await model.cured()
        assert "could not be rebuilt" in said.warnings[-1]
        assert "is not certified: samples: output 'value'" in said.warnings[-1]
        if strict:
            assert not model.ready
            assert "is not served by 'plan-cpu-fp32', and by nothing else" in model.problem
            assert BEING_BUILT not in model.problem  # which is final
        else:
            await asked(model)
            assert said.ready(why="unfit", target=TARGET) == said.ready() == 1

    served(moved, settings(tmp_path, strict_target=strict), caplog, scenario)


@pytest.mark.parametrize(("machine", "reason"), [("new", "unfit"), ("", "unavailable")])
def test_what_is_never_rebuilt_is_stood_in_for_or_refused(
    moved: Bundle,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    reason: str,
) -> None:
    monkeypatch.setenv(MACHINE, machine)

    async def stands(model: Model, said: Said) -> None:
        await asked(model)
        assert said.ready(why=reason, target=TARGET, requested=PLANNED.name) == said.ready() == 1

    async def refuses(model: Model, said: Said) -> None:
        assert not model.ready
        assert "is not served by 'plan-cpu-fp32'" in model.problem

    never = settings(tmp_path, rebuild=0.0)
    served(moved, never, caplog, stands)
    served(moved, settings(tmp_path, rebuild=0.0, strict_target=True), caplog, refuses)
    assert told("compiled") == told("opened") == 0


def test_an_engine_that_fits_is_served_as_it_was_packaged(
    packaged: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(model: Model, said: Said) -> None:
        await asked(model)
        assert "reason" not in model.properties
        assert said.ready(target=PLANNED.name, requested=PLANNED.name, why="") == said.ready() == 1
        assert not said.warnings

    served(packaged, settings(tmp_path), caplog, scenario)


def test_a_changed_plan_is_refused_before_anything_opens_it(
    packaged: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OPENED, str(tmp_path / "opened.txt"))
    copy = Path(shutil.copytree(packaged.folder, tmp_path / "copy"))
    with (copy / ENGINES / PLANNED.name / PLAN).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(TamperedFile, match=r"engine\.plan is not the file that was recorded"):
        open_bundle(copy)
    with pytest.raises(TamperedFile):
        serve([copy], port=0, grpc_port=0, target=PLANNED.name).__enter__()
    assert told("opened") == 0


def test_a_plan_of_tensorrt_without_a_gpu_is_said_over_both_transports(compiled: Path) -> None:
    if not backend(target(GPU)).missing(target(GPU)):
        pytest.skip("this machine runs TensorRT: nothing stands in")
    with serve([compiled], port=0, grpc_port=0, target=GPU) as server:
        wanted = {"requested_target": GPU, "served_target": TARGET, "reason": "unavailable"}
        with Client(server.http) as client:
            said = client.metadata("level")["properties"]
        assert wanted.items() <= said.items()
        assert "this machine cannot run 'tensorrt-fp32'" in said["why"]
        assert _over_grpc(server.grpc) == said
        page = read(httpx.get(f"{server.http}/metrics").text)
        labels = {"target": TARGET, "requested": GPU, "why": "unavailable"}
        assert total(page, "fucina_model_ready", **labels) == 1


def _over_grpc(address: str) -> dict[str, str]:
    import grpc

    from serving.inference_proto import MESSAGES, SERVICE

    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary(
            f"/{SERVICE}/ModelMetadata",
            request_serializer=MESSAGES["ModelMetadataRequest"].SerializeToString,
            response_deserializer=MESSAGES["ModelMetadataResponse"].FromString,
        )
        return dict(ask(MESSAGES["ModelMetadataRequest"](name="level"), timeout=30).properties)
