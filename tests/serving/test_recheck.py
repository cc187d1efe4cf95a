"""Live answers that are held to the reference: sound ones pass, a damaged engine is an alarm."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import generate_latest

from models.signature import Arrays
from pipeline.bundle import open_bundle
from serving import recheck
from serving.predictor import Models
from serving.recheck import Recheck
from serving.settings import Settings
from serving.telemetry import Telemetry
from tests.serving.conftest import RANDOM, TARGET
from tests.serving.test_metrics import read, total

Damage = Callable[[Arrays], Arrays]


def _page(telemetry: Telemetry) -> Callable[[str], float]:
    telemetry.flush()
    page = read(generate_latest(telemetry.metrics.registry).decode())
    return lambda name: total(page, f"fucina_recheck_{name}", model="digits", version="1")


def _nothing(answers: Arrays) -> Arrays:
    return answers


def _shifted(answers: Arrays) -> Arrays:
    return {name: array + np.float32(1e-3) for name, array in answers.items()}


def _not_a_number(answers: Arrays) -> Arrays:
    return {name: np.full_like(array, np.nan) for name, array in answers.items()}


def _swapped(answers: Arrays) -> Arrays:
    return {name: array[::-1] for name, array in answers.items()}


async def _serve(digits: Path, damage: Damage, share: float, count: int) -> Telemetry:
    """Ask a model whose open engine is damaged: its file could not be, unnoticed."""
    telemetry = Telemetry()
    models = Models(Settings(recheck=share), telemetry)
    model = models.add(open_bundle(digits))
    await models.load()
    batcher: Any = model._batcher
    sound = batcher._run
    batcher._run = lambda inputs: damage(sound(inputs))
    for _ in range(count):
        await model.predict({"image": RANDOM.random((2, 1, 28, 28), np.float32)})
    live: Any = model._recheck
    while live is not None and live._waiting:
        await asyncio.sleep(0.01)
    await models.close()
    return telemetry


def test_a_sound_engine_passes(digits: Path, caplog: pytest.LogCaptureFixture) -> None:
    said = _page(asyncio.run(_serve(digits, _nothing, 1.0, 5)))
    assert said("comparisons_total") == 5
    assert 0 <= said("worst_ratio") <= 1
    assert said("alarms_total") == said("skipped_total") == 0
    assert not [record for record in caplog.records if record.name == "fucina.recheck"]


@pytest.mark.parametrize("damage", [_shifted, _not_a_number, _swapped])
def test_a_damaged_engine_is_an_alarm_of_one_line(
    digits: Path, damage: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    said = _page(asyncio.run(_serve(digits, damage, 1.0, 5)))
    assert said("alarms_total") == said("comparisons_total") == 5
    assert said("worst_ratio") > 1
    (record,) = [record for record in caplog.records if record.name == "fucina.recheck"]
    assert record.levelno == logging.ERROR
    assert "ALARM: model 'digits' version 1 no longer answers as certified" in record.getMessage()


def test_a_share_of_none_compares_nothing(digits: Path) -> None:
    said = _page(asyncio.run(_serve(digits, _shifted, 0.0, 5)))
    assert said("comparisons_total") == said("alarms_total") == 0


def test_what_there_is_no_time_for_is_skipped_and_nobody_waits(digits: Path) -> None:
    async def ask() -> Telemetry:
        telemetry = Telemetry()
        bundle = open_bundle(digits)
        live = Recheck(bundle, TARGET, 1.0, telemetry)
        inputs = {"image": RANDOM.random((1, 1, 28, 28), np.float32)}
        answers = bundle.open_engine(TARGET).run(inputs)
        for _ in range(recheck.MOST + 3):  # without a turn of the loop none of them can end
            live.offer(inputs, answers)
        while live._waiting:
            await asyncio.sleep(0.01)
        live.close()
        return telemetry

    said = _page(asyncio.run(ask()))
    assert said("skipped_total") == 3
    assert said("comparisons_total") == recheck.MOST


def test_a_reference_that_fails_is_told_and_no_alarm(
    digits: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(model: Path) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr("pipeline.backends.ort.as_written", fail)
    said = _page(asyncio.run(_serve(digits, _nothing, 1.0, 3)))
    assert said("skipped_total") == 3
    assert said("alarms_total") == said("comparisons_total") == 0
    assert "cannot be rechecked: no memory" in caplog.text


def test_what_the_reference_has_no_number_for_is_no_alarm(digits: Path) -> None:
    async def ask() -> Telemetry:
        telemetry = Telemetry()
        live = Recheck(open_bundle(digits), TARGET, 1.0, telemetry)
        inputs = {"image": np.full((1, 1, 28, 28), 3e38, np.float32)}  # its products overflow
        live.offer(inputs, open_bundle(digits).open_engine(TARGET).run(inputs))
        while live._waiting:
            await asyncio.sleep(0.01)
        live.close()
        return telemetry

    said = _page(asyncio.run(ask()))
    assert said("skipped_total") == 1
    assert said("alarms_total") == said("comparisons_total") == 0
