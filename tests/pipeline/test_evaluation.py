"""Intervals of the test metrics: scipy's, and with the coverage that they claim."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from models.mlp import MLP_784_512_10
from models.mlp_tabular import MLP_REGRESSION
from models.signature import Arrays
from pipeline.evaluation import intervals, wilson


@pytest.mark.parametrize(("hits", "rows"), [(0, 1), (1, 1), (357, 360), (0, 50), (9_900, 10_000)])
def test_wilson_is_scipys(hits: int, rows: int) -> None:
    low, high = wilson(hits, rows)
    expected = stats.binomtest(hits, rows).proportion_ci(0.95, method="wilson")
    assert low == pytest.approx(expected.low, abs=1e-12)
    assert high == pytest.approx(expected.high, abs=1e-12)


def classified(rows: int, seed: int) -> tuple[Arrays, Arrays]:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(rows, 3)).astype(np.float32)
    label = np.where(random.random(rows) < 0.8, logits.argmax(1), random.integers(0, 3, rows))
    return {"logits": logits}, {"label": label}


def test_every_metric_has_an_interval_and_an_accuracy_has_wilsons() -> None:
    outputs, targets = classified(200, 0)
    metrics = MLP_784_512_10.evaluate(outputs, targets)
    found = intervals(MLP_784_512_10, outputs, targets, metrics)
    assert found.keys() == metrics.keys()
    assert found["accuracy"] == wilson(round(200 * metrics["accuracy"]), 200)
    for name, (low, high) in found.items():
        assert low < metrics[name] < high
    assert found == intervals(MLP_784_512_10, outputs, targets, metrics), "not the same twice"


def test_the_bootstrap_agrees_with_scipys() -> None:
    random = np.random.default_rng(1)
    actual = random.normal(size=(150, 1))
    outputs, targets = {"value": actual + random.normal(size=(150, 1))}, {"value": actual}
    metrics = MLP_REGRESSION.evaluate(outputs, targets)
    low, high = intervals(MLP_REGRESSION, outputs, targets, metrics)["mae"]
    errors = np.abs(outputs["value"] - actual)[:, 0]
    reference = stats.bootstrap((errors,), np.mean, method="percentile", rng=2)
    width = high - low
    assert low == pytest.approx(reference.confidence_interval.low, abs=0.15 * width)
    assert high == pytest.approx(reference.confidence_interval.high, abs=0.15 * width)


def test_a_metric_that_is_no_number_somewhere_has_no_interval() -> None:
    outputs, targets = classified(20, 3)
    outputs["logits"][0, 0] = np.inf
    with np.errstate(invalid="ignore"):
        metrics = MLP_784_512_10.evaluate(outputs, targets)
        found = intervals(MLP_784_512_10, outputs, targets, metrics)
    assert "log_loss" not in found
    assert "accuracy" in found
