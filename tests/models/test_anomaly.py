"""The anomaly autoencoder: what it is never shown, its error, its threshold, and its AUC."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from models.anomaly_autoencoder import ANOMALY_AUTOENCODER, CODE, detection, relative_error
from models.codec import Codec
from models.errors import BadSetting
from pipeline.batches import measure
from pipeline.train import load_module, train


def measured(errors: np.ndarray, anomaly: np.ndarray) -> dict[str, float]:
    outputs = {"error": errors, "squared": np.zeros(len(errors))}
    return detection(outputs, {"anomaly": anomaly})


@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=60).filter(
        lambda rows: len({there for _, there in rows}) == 2
    )
)
def test_the_auc_is_scikit_learns_ties_included(rows: list[tuple[int, bool]]) -> None:
    errors = np.array([error for error, _ in rows], np.float32)
    anomaly = np.array([there for _, there in rows], np.int64)
    expected = roc_auc_score(anomaly, errors)
    assert measured(errors, anomaly)["auc"] == pytest.approx(expected, abs=1e-12)
    turned = measured(-errors, anomaly)["auc"]
    assert turned == pytest.approx(1 - expected, abs=1e-12)


def test_the_auc_is_fast_enough_to_be_resampled() -> None:
    rng = np.random.default_rng(0)
    errors, anomaly = rng.random(10_000, np.float32), rng.integers(0, 2, 10_000)
    started = time.perf_counter()
    for _ in range(20):
        measured(errors, anomaly)
    assert time.perf_counter() - started < 2


def test_rows_without_an_anomaly_tell_nothing() -> None:
    """So among epochs on validation rows, which hold none, the loss decides."""
    metrics = measured(np.arange(4, dtype=np.float32), np.zeros(4, np.int64))
    assert metrics["auc"] == 0.5
    assert metrics["detected"] == 0


def test_detected_is_the_share_beyond_all_but_5_percent_of_the_others() -> None:
    errors = np.concatenate([np.arange(100), [94.0, 94.1, 1000.0, 0.0]])
    anomaly = np.repeat([0, 1], [100, 4])
    assert measured(errors, anomaly)["detected"] == 0.5


@pytest.mark.parametrize("digit", [0, 7])
def test_the_digit_is_in_the_test_rows_alone(digit: int) -> None:
    recipe = ANOMALY_AUTOENCODER.override({"anomaly": digit})
    dataset = recipe.load("embedded")
    whole = ANOMALY_AUTOENCODER.override({"anomaly": 3}).load("embedded").test
    for split in (dataset.train, dataset.validation):
        assert set(split.targets["label"]) == set(range(10)) - {digit}
        assert not split.targets["anomaly"].any()
    np.testing.assert_array_equal(dataset.test.inputs["image"], whole.inputs["image"])
    np.testing.assert_array_equal(
        dataset.test.targets["anomaly"], dataset.test.targets["label"] == digit
    )
    for split in (dataset.train, dataset.validation, dataset.test):
        np.testing.assert_array_equal(split.targets["image"], split.inputs["image"])
    remark, _ = recipe.remarks(dataset, {})
    assert f"digit {digit}" in remark


def test_a_digit_that_is_none_is_refused() -> None:
    with pytest.raises(BadSetting, match="anomaly"):
        ANOMALY_AUTOENCODER.override({"anomaly": 10})


def test_the_relative_error_looks_past_a_pixel_and_past_ink() -> None:
    images = torch.zeros(1, 1, 28, 28)
    images[:, :, 5:22, 10:12] = 1
    assert float(relative_error(images, images)) == 0
    assert torch.isfinite(relative_error(0 * images, images)).all(), "of an empty picture too"
    beside, elsewhere = images.roll(1, 3), images.roll(9, 3)

    def ratio(other: torch.Tensor) -> float:
        return float(relative_error(images, other)) / float((images - other).square().mean())

    assert ratio(beside) < 0.5 * ratio(elsewhere)
    # Twice the strokes, each wrong in the same way: twice the squared error, and no more wrong.
    double = images + images.roll(9, 3)
    single = float(relative_error(images, images.roll(2, 3)))
    assert float(relative_error(double, double.roll(2, 3))) == pytest.approx(single, rel=0.2)


def test_the_threshold_is_what_5_percent_of_the_validation_rows_exceed() -> None:
    rng = np.random.default_rng(0)
    errors = rng.random(1000).astype(np.float32)
    assert ANOMALY_AUTOENCODER.calibrate is not None
    codec = ANOMALY_AUTOENCODER.calibrate(Codec(), {"error": errors}, {})
    assert codec.anomaly is not None
    assert codec.anomaly.error == "error"
    assert (errors > codec.anomaly.threshold).mean() == 0.05
    assert Codec.model_validate_json(codec.model_dump_json()) == codec


def test_the_baseline_has_the_size_of_the_presets_code() -> None:
    assert {preset["code"] for preset in ANOMALY_AUTOENCODER.presets.values()} == {CODE}


def test_a_short_training_tells_the_digit_and_not_chance(tmp_path: Path) -> None:
    """The real stage: shuffled errors must be at chance, and the threshold hold on test rows."""
    recipe = ANOMALY_AUTOENCODER.on("embedded").override({"epochs": 12, "floor": "none"})
    dataset = recipe.load("embedded")
    trained = train(recipe, "embedded", dataset, tmp_path)
    assert trained.metrics["auc"] > 0.85
    low, high = trained.intervals["auc"]
    assert low < trained.metrics["auc"] < high
    codec = Codec.model_validate_json((tmp_path / "codec.json").read_text())
    assert codec.anomaly is not None
    inputs, targets = (
        {name: torch.from_numpy(array) for name, array in part.items()}
        for part in (dataset.test.inputs, dataset.test.targets)
    )
    settings = recipe.training["embedded"]
    _, rows = measure(recipe, settings, load_module(recipe, trained), inputs, targets)
    there = dataset.test.targets["anomaly"] == 1
    alarms = rows["error"] > codec.anomaly.threshold
    assert alarms[~there].mean() < 0.15
    assert alarms[there].mean() > 3 * alarms[~there].mean()
    shuffled = rows | {"error": np.random.default_rng(0).permutation(rows["error"])}
    assert abs(recipe.evaluate(shuffled, dataset.test.targets)["auc"] - 0.5) < 0.15
