"""Losses from named outputs and named targets to a scalar, the mean over rows."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

ClassificationLoss = Literal["cross-entropy", "bce", "mse"]


def classification_loss(
    outputs: dict[str, Tensor],
    targets: dict[str, Tensor],
    loss: ClassificationLoss = "cross-entropy",
) -> Tensor:
    """The loss of `logits` [batch, classes] against `label` [batch].

    cross-entropy: -log softmax(logits)[label]. bce: binary cross-entropy of each class against the
    others, summed. mse: squared error of softmax(logits) against the one-hot label, summed
    (Brier 1950). A single logit z stands for the two classes' logits 0 and z.
    """
    logits, label = outputs["logits"], targets["label"]
    if loss == "bce" and logits.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(logits[:, 0], label.to(logits.dtype))
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    if loss == "cross-entropy":
        return functional.cross_entropy(logits, label)
    wanted = functional.one_hot(label, logits.shape[1]).to(logits.dtype)
    if loss == "bce":
        error = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    else:
        error = (logits.softmax(1) - wanted) ** 2
    return error.sum(1).mean()


def squared_error(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """The mean of (value - target)^2, both [batch, 1]."""
    return functional.mse_loss(outputs["value"], targets["value"])
