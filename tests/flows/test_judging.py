"""Judging a candidate: equal ones pass, worse ones do not, and what nobody knows is no reason."""

from __future__ import annotations

import numpy as np
import pytest

from flows.judging import Measured, judge
from pipeline.bundle import Bundle, open_bundle
from pipeline.samples import Samples
from tests.serving.conftest import LEVEL
from tests.serving.versions import make_version


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("judged")
    return [open_bundle(make_version(folder / str(number), number)) for number in (1, 2)]


@pytest.fixture(scope="module")
def rows() -> Samples:
    """What version 1 answers with a little noise is the truth."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 3)).astype(np.float32)
    value = features @ np.array([[1], [2], [-1]], np.float32)
    noise = rng.normal(scale=0.1, size=value.shape)
    return Samples({"features": features}, {"value": (value + noise).astype(np.float32)})


def test_an_equal_candidate_is_promoted(versions: list[Bundle], rows: Samples) -> None:
    verdict = judge(versions[0], versions[0], rows, 0.0, "rmse", -1)
    assert verdict.promote
    (measure,) = verdict.measures
    assert (measure.measure, measure.low, measure.high) == ("RMSE", 0, 0)


def test_a_worse_candidate_is_refused_and_a_better_one_is_not(
    versions: list[Bundle], rows: Samples
) -> None:
    worse = judge(versions[0], versions[1], rows, 0.5, "rmse", -1)
    assert not worse.promote
    assert worse.reason.startswith("RMSE is worse: ")
    assert judge(versions[1], versions[0], rows, 0.0, "rmse", -1).promote


def test_what_cannot_be_measured_is_refused(versions: list[Bundle], rows: Samples) -> None:
    assert versions[0].manifest.signature == LEVEL
    unknown = judge(versions[0], versions[1], Samples(rows.inputs), 0.5, "rmse", -1)
    assert not unknown.promote
    assert unknown.reason == "nothing says whether its rmse is worse"
    broken = judge(versions[0], versions[1], Samples({"other": rows.inputs["features"]}), 1, "", 1)
    assert not broken.promote
    assert broken.reason.startswith("it cannot be compared: ")


def measured(better: int, low: float, high: float, allowed: float = 0.02) -> Measured:
    return Measured(
        measure="accuracy", better=better, blessed=0.9, candidate=0.9, low=low, high=high,
        allowed=allowed, how="100 rows",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("better", "low", "high", "passed", "word"),
    [
        (1, -0.01, 0.01, True, "is not worse"),
        (1, -0.03, 0.01, False, "may be worse"),
        (1, -0.03, -0.01, False, "is worse"),
        (1, 0.01, 0.5, True, "is not worse"),
        (-1, -0.5, 0.01, True, "is not worse"),
        (-1, -0.01, 0.03, False, "may be worse"),
        (-1, 0.01, 0.03, False, "is worse"),
    ],
)
def test_the_bad_end_of_the_interval_decides(
    better: int, low: float, high: float, passed: bool, word: str
) -> None:
    one = measured(better, low, high)
    assert one.passed is passed
    assert f"accuracy {word}: " in str(one)
