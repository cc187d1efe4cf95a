"""A bundle whose engine TensorRT really compiled, served on a machine whose GPU is a double."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

from models.errors import ServingFailed
from pipeline.bundle import Bundle
from pipeline.cases import HELD_OUT
from pipeline.optimize import optimize
from pipeline.package import package
from pipeline.values import Engine
from pipeline.verify import verify
from serving.model import Model
from serving.settings import Settings
from tests.conftest import Release
from tests.pipeline.gpu_double import Machine, gpu_machine
from tests.serving.test_metrics import total
from tests.serving.test_standing_in import Said, served

pytest.importorskip("tensorrt_rtx")

FP16 = "tensorrt-fp16"


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with gpu_machine() as here:
        yield here


@pytest.fixture(scope="module")
def bundle(lenet5: Release, machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """With both engines, as `fucina run --target ort-cpu-fp32 --target tensorrt-fp16` makes it."""
    engine = optimize(lenet5.model, FP16, tmp_path_factory.mktemp("engine"))
    assert isinstance(engine, Engine)
    certificate = verify(engine, lenet5.model, tmp_path_factory.mktemp("certificate"))
    pairs = [(lenet5.engine, lenet5.certificate), (engine, certificate)]
    out = tmp_path_factory.mktemp("bundle")
    return package(lenet5.job.recipe, lenet5.trained, lenet5.model, pairs, out)


def test_it_answers_as_recorded_many_at_a_time_and_tells_what_it_holds(
    bundle: Bundle, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    cases = [case for case in bundle.cases() if case.origin == HELD_OUT]

    async def scenario(model: Model, said: Said) -> None:
        assert model.target == FP16
        assert said.ready(target=FP16, requested=FP16) == 1
        assert said.warnings == []
        asked = [case for case in cases * 3 if case.sizes["batch"] <= 8]
        answers = await asyncio.gather(*(model.predict(case.inputs) for case in asked))
        before = machine.device.made["launches"]  # opening has some of its own
        for _ in range(6):  # one shape again and again, which goes by a graph
            asked.append(cases[0])
            answers.append(await model.predict(cases[0].inputs))
        assert machine.device.made["launches"] >= before + 4
        limits = bundle.certificate(FP16).limits
        for case, answer in zip(asked, answers, strict=True):
            for name, limit in limits.items():
                error = np.sqrt(np.square(answer[name] - case.reference[name]).mean(1)).max()
                assert error <= limit.limit * limit.scale
        held = total(said.page, "fucina_model_device_bytes")
        assert 0 < held == machine.device.capacity - machine.device.free_bytes()

    served(bundle, Settings(target=FP16), caplog, scenario)


def test_a_gpu_that_fails_fails_calls_and_not_the_server(
    bundle: Bundle, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    case = next(case for case in bundle.cases() if case.origin == HELD_OUT)

    async def scenario(model: Model, said: Said) -> None:
        machine.device.lost = True
        with pytest.raises(ServingFailed, match="cudaErrorDeviceUnavailable"):
            await model.predict(case.inputs)
        machine.device.lost = False
        answers = await model.predict(case.inputs)
        assert answers.keys() == case.reference.keys()

    served(bundle, Settings(target=FP16), caplog, scenario)


def test_what_is_closed_gives_its_memory_back(
    bundle: Bundle, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(model: Model, said: Said) -> None:
        assert machine.device.held

    served(bundle, Settings(target=FP16), caplog, scenario)
    assert machine.device.held == 0
