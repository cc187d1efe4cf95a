"""Losses of class maps, from named outputs and named targets to a scalar."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional

SegmentationLoss = Literal["cross-entropy", "dice", "both"]


def segmentation_loss(
    outputs: dict[str, Tensor],
    targets: dict[str, Tensor],
    loss: SegmentationLoss = "cross-entropy",
) -> Tensor:
    """The loss of `logits` [batch, classes, height, width] against `mask` [batch, height, width].

    cross-entropy: the mean over pixels of -log softmax(logits)[mask]. dice: 1 - 2 sum p y /
    (sum p + sum y), the mean over classes, with p the probability of a class and y 1 where it is
    (Milletari 2016, without squares). both: their sum.
    """
    logits, mask = outputs["logits"], targets["mask"]
    total = logits.new_zeros(())
    if loss != "dice":
        # Over rows of pixels, because torch's own for maps is not deterministic on a GPU.
        total = total + functional.cross_entropy(logits.movedim(1, 3).flatten(0, 2), mask.flatten())
    if loss != "cross-entropy":
        probabilities = logits.softmax(1)
        actual = functional.one_hot(mask, logits.shape[1]).movedim(3, 1).to(logits.dtype)
        space = (0, 2, 3)
        overlap = 2 * (probabilities * actual).sum(space)
        # 1 on either side: a class that is neither there nor predicted is no loss.
        total = total + 1 - ((overlap + 1) / ((probabilities + actual).sum(space) + 1)).mean()
    return total
