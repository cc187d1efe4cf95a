"""Metrics and losses against scikit-learn and torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss

from models.losses import cross_entropy
from models.metrics import classification, confusion


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


def test_cross_entropy_is_minus_the_log_of_the_probability() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([0, 2, 1, 1, 0])
    expected = -logits.softmax(1)[range(5), label].log().mean()
    torch.testing.assert_close(cross_entropy({"logits": logits}, {"label": label}), expected)
