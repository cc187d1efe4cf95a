"""Metrics over a whole split, from named outputs and named targets."""

from __future__ import annotations

import numpy as np

from models.signature import Arrays


def classification(outputs: Arrays, targets: Arrays) -> dict[str, float]:
    """Accuracy, macro F1 and mean log loss of `logits` [rows, classes] against `label` [rows].

    A single logit z [rows, 1] stands for the two classes' logits 0 and z.
    """
    logits, label = _logits(outputs), targets["label"]
    counts = confusion(logits.argmax(1), label, logits.shape[1])
    hits = counts.diagonal()
    # F1 = 2 TP / (predicted + actual), 0 for a class that is neither predicted nor there.
    f1 = 2 * hits / np.maximum(counts.sum(0) + counts.sum(1), 1)
    top = logits.max(1, keepdims=True)
    log_sum = top[:, 0] + np.log(np.exp(logits - top).sum(1))
    return {
        "accuracy": float(hits.sum() / len(label)),
        "macro_f1": float(f1[counts.sum(1) > 0].mean()),
        "log_loss": float((log_sum - logits[np.arange(len(label)), label]).mean()),
    }


def one_class(outputs: Arrays, targets: Arrays, positive: int = 1) -> dict[str, float]:
    """`classification`, and precision, recall and F1 of one class; 0 where nothing is there."""
    logits, label = _logits(outputs), targets["label"]
    said, there = logits.argmax(1) == positive, label == positive
    hits = float((said & there).sum())
    return classification(outputs, targets) | {
        "precision": hits / max(int(said.sum()), 1),
        "recall": hits / max(int(there.sum()), 1),
        "f1": 2 * hits / max(int(said.sum() + there.sum()), 1),
    }


def regression(outputs: Arrays, targets: Arrays) -> dict[str, float]:
    """R2, root mean squared error and mean absolute error of `value` against `value`, [rows, 1].

    R2 = 1 - sum (y - f)^2 / sum (y - mean y)^2; where y does not vary, it is 0.
    """
    actual = targets["value"].astype(np.float64)
    error = outputs["value"].astype(np.float64) - actual
    spread = float(((actual - actual.mean()) ** 2).sum())
    return {
        "r2": 1 - float((error**2).sum()) / spread if spread else 0.0,
        "rmse": float(np.sqrt((error**2).mean())),
        "mae": float(np.abs(error).mean()),
    }


def confusion(predicted: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """Counts [actual class, predicted class]."""
    return np.bincount(label * classes + predicted, minlength=classes**2).reshape(classes, classes)


def _logits(outputs: Arrays) -> np.ndarray:
    logits = outputs["logits"].astype(np.float64)
    return np.hstack([np.zeros_like(logits), logits]) if logits.shape[1] == 1 else logits
