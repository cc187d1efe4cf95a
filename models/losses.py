"""Losses from named outputs and named targets to a scalar, the mean over rows."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def cross_entropy(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """-log softmax(logits)[label]: `logits` [batch, classes], `label` [batch]."""
    return functional.cross_entropy(outputs["logits"], targets["label"])
