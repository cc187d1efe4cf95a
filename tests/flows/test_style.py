"""The experiment `style-transfer`: its verdict both ways, and a small real run of it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from flows.experiments import Setup, find, style_transfer
from flows.experiments.style_transfer import Painted, judge, pictures
from models.style import Moment

PLACES = {"temple": 0.1, "temple, mirrored": 0.3, "flower": 0.4, "cells": 0.5}
BLANK = torch.zeros(1, 3, 4, 4)
GOOD = Painted(
    content="temple",
    style="cells",
    picture=BLANK,
    steps={},
    history=[Moment(0, 0.5, 0), Moment(0.1, 0.02, 0)],
    places=PLACES,
    patches=(0.6, 0.3),
    grey=0.75,
)


@pytest.mark.parametrize(
    ("changes", "holds", "words"),
    [
        ({}, True, "falls 25 to 25 times. By the maps of the content layer every picture is"),
        ({"history": [Moment(0, 0.5, 0), Moment(0.1, 0.06, 0)]}, False, "falls 8.33 to 25 times"),
        ({"history": [Moment(0, 0.5, 0), Moment(0.1, 9.0, 0)]}, False, "falls 0.0556 to 25 times"),
        (
            {"places": PLACES | {"temple, mirrored": 0.05}}, False,
            "Nearest in content to another picture: temple, cells to temple, mirrored",
        ),
        ({"patches": (0.3, 0.33)}, False, "patches come to 50% to 110% of their distance"),
    ],
)  # fmt: skip
def test_the_claim_holds_when_style_comes_and_content_stays(
    changes: dict[str, Any], holds: bool, words: str
) -> None:
    verdict, held = judge([GOOD, replace(GOOD, **changes)], [replace(GOOD, grey=0.123)] * 2)
    assert held is holds
    assert words in verdict
    assert verdict.endswith("by the same net untrained, patches come to 50% and grey values to "
                            "0.12 on average.")  # fmt: skip


def test_the_pictures_are_photographs_and_generated_styles() -> None:
    every, again = pictures(), pictures()
    assert list(every) == ["temple", "flower", "mosaic", "waves", "cells"]
    for name, picture in every.items():
        assert picture.shape == (1, 3, style_transfer.HEIGHT, style_transfer.WIDTH)
        assert picture.dtype == torch.float32
        assert picture.min() >= 0
        assert picture.max() <= 1
        assert float(picture.std()) > 0.1, name
        assert torch.equal(picture, again[name])
    assert {name for pair in style_transfer.PAIRS for name in pair} <= every.keys()


def test_style_transfer_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style_transfer, "HEIGHT", 32)
    monkeypatch.setattr(style_transfer, "WIDTH", 48)
    monkeypatch.setattr(style_transfer, "STEPS", 12)
    tiny = {"epochs": 1, "width": 4, "rows": 64}
    outcome = find("style-transfer").run(Setup(tmp_path, changes=tiny))
    assert [(row["content"], row["style"]) for row in outcome.rows] == list(style_transfer.PAIRS)
    numbers = [v for row in outcome.rows for v in row.values() if isinstance(v, int | float)]
    assert len(numbers) == 8 * len(outcome.rows)
    assert all(map(math.isfinite, numbers))
    for row in outcome.rows:
        assert row["style distance, last"] < row["style distance, first"]
        assert row["which is"] != row["content"]
        assert -1 <= row["grey correlation"] <= 1
    assert tiny.items() <= outcome.settings.items()
    assert "tells 10 generated textures apart with a test accuracy of" in outcome.verdict
    assert len(outcome.figures) == 4
    for figure in outcome.figures:
        assert figure.caption.endswith(".")
        ElementTree.fromstring(str(figure.markup))  # noqa: S314 (our own markup)
    assert str(outcome.figures[0].markup).count("<image") == 4 * len(outcome.rows)
    assert str(outcome.figures[1].markup).count("<image") == 3 * len(outcome.rows)
