"""Metrics and losses against scikit-learn and torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    mean_absolute_error,
    mean_squared_error,
    precision_score,
    r2_score,
    recall_score,
)

from models.losses import ClassificationLoss, classification_loss
from models.metrics import classification, confusion, one_class, regression


@given(st.integers(2, 6), st.integers(1, 40), st.integers(0, 10**6))
def test_classification_equals_scikit_learn(classes: int, rows: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(rows, classes)).astype(np.float32)
    label = random.integers(0, classes, rows)
    predicted = logits.argmax(1)
    metrics = classification({"logits": logits}, {"label": label})
    shares = torch.from_numpy(logits.astype(np.float64)).softmax(1).numpy()
    present = np.unique(label)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(label, predicted))
    assert metrics["log_loss"] == pytest.approx(log_loss(label, shares, labels=range(classes)))
    undefined: Any = 0
    f1 = f1_score(label, predicted, labels=present, average="macro", zero_division=undefined)
    assert metrics["macro_f1"] == pytest.approx(f1)
    np.testing.assert_array_equal(
        confusion(predicted, label, classes),
        confusion_matrix(label, predicted, labels=range(classes)),
    )


@given(st.integers(1, 40), st.integers(0, 10**6), st.integers(0, 1))
def test_one_class_equals_scikit_learn(rows: int, seed: int, positive: int) -> None:
    random = np.random.default_rng(seed)
    logit = random.normal(size=(rows, 1)).astype(np.float32)
    label = random.integers(0, 2, rows)
    predicted = (logit[:, 0] > 0).astype(int)
    wide = {"logits": np.hstack([0 * logit, logit])}
    metrics = one_class({"logits": logit}, {"label": label}, positive)
    assert metrics == one_class(wide, {"label": label}, positive), "one logit z stands for 0 and z"
    undefined: Any = 0
    for name, reference in (
        ("precision", precision_score),
        ("recall", recall_score),
        ("f1", f1_score),
    ):
        expected = reference(label, predicted, pos_label=positive, zero_division=undefined)
        assert metrics[name] == pytest.approx(expected)


@given(st.integers(2, 40), st.integers(0, 10**6))
def test_regression_equals_scikit_learn(rows: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    actual, value = random.normal(size=(2, rows, 1)).astype(np.float32)
    metrics = regression({"value": value}, {"value": actual})
    assert metrics["r2"] == pytest.approx(r2_score(actual, value), rel=1e-4, abs=1e-5)
    assert metrics["rmse"] == pytest.approx(mean_squared_error(actual, value) ** 0.5, rel=1e-5)
    assert metrics["mae"] == pytest.approx(mean_absolute_error(actual, value), rel=1e-5)


def loss_of(logits: torch.Tensor, label: torch.Tensor, loss: ClassificationLoss) -> torch.Tensor:
    return classification_loss({"logits": logits}, {"label": label}, loss)


def test_losses_are_their_formulas() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([0, 2, 1, 1, 0])
    shares, one_hot = logits.softmax(1), torch.eye(3)[label]
    expected = -shares[range(5), label].log().mean()
    torch.testing.assert_close(loss_of(logits, label, "cross-entropy"), expected)
    expected = ((shares - one_hot) ** 2).sum(1).mean()
    torch.testing.assert_close(loss_of(logits, label, "mse"), expected)
    yes = logits.sigmoid()
    expected = -(one_hot * yes.log() + (1 - one_hot) * (1 - yes).log()).sum(1).mean()
    torch.testing.assert_close(loss_of(logits, label, "bce"), expected)


def test_one_logit_is_two_classes() -> None:
    logit = torch.randn(7, 1, generator=torch.Generator().manual_seed(1))
    label = torch.tensor([0, 1, 1, 0, 1, 0, 0])
    both = torch.cat([torch.zeros_like(logit), logit], 1)
    for name in ("cross-entropy", "mse"):
        torch.testing.assert_close(loss_of(logit, label, name), loss_of(both, label, name))
    # Binary cross-entropy of sigmoid(z) is cross-entropy of softmax(0, z).
    torch.testing.assert_close(loss_of(logit, label, "bce"), loss_of(both, label, "cross-entropy"))
