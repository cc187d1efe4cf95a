"""Metrics over a whole split, from named outputs and named targets."""

from __future__ import annotations

import numpy as np

from models.signature import Arrays


def classification(outputs: Arrays, targets: Arrays) -> dict[str, float]:
    """Accuracy, macro F1 and mean log loss of `logits` [rows, classes] against `label` [rows]."""
    logits = outputs["logits"].astype(np.float64)
    label = targets["label"]
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


def confusion(predicted: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """Counts [actual class, predicted class]."""
    return np.bincount(label * classes + predicted, minlength=classes**2).reshape(classes, classes)
