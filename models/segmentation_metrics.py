"""Metrics of class maps, from counts per picture: Jaccard, Dice, accuracy, Rand."""

from __future__ import annotations

import numpy as np

from models.metrics import confusion
from models.signature import Arrays

BACKGROUND = 0  # what lies between objects


def picture_counts(outputs: Arrays, targets: Arrays) -> Arrays:
    """Of each picture `confusion` int64 [rows, actual, predicted] and `rand` float64 [rows].

    From `logits` [rows, classes, height, width] and `mask` int64 [rows, height, width].
    """
    logits, mask = outputs["logits"], targets["mask"]
    classes = logits.shape[1]
    pairs = list(zip(logits.argmax(1), mask, strict=True))
    return {
        "confusion": np.stack([confusion(p.ravel(), m.ravel(), classes) for p, m in pairs]),
        "rand": np.array([rand_score(p, m) for p, m in pairs]),
    }


def segmentation(counts: Arrays, targets: Arrays) -> dict[str, float]:
    """Metrics of a split from its `picture_counts`.

    `mean_iou` is the mean over the classes of intersection over union (Jaccard index) of all
    pixels together, `mean_dice` that of Dice = F1; a class that is neither predicted nor there
    does not count, and has 0 of its own. `iou_0` and so on are those of each class. `rand_score`
    is the mean over the pictures.
    """
    total = counts["confusion"].sum(0)
    there = (total.sum(0) + total.sum(1)) > 0
    iou = intersection_over_union(total)
    dice = 2 * iou / (1 + iou)
    metrics = {
        "mean_iou": float(iou[there].mean()),
        "mean_dice": float(dice[there].mean()),
        "pixel_accuracy": float(total.trace() / total.sum()),
        "rand_score": float(counts["rand"].mean()),
    }
    return metrics | {f"iou_{number}": float(value) for number, value in enumerate(iou)}


def intersection_over_union(counts: np.ndarray) -> np.ndarray:
    """Of each class, from counts [actual, predicted]; 0 where it is neither."""
    hits = counts.diagonal()
    return hits / np.maximum(counts.sum(0) + counts.sum(1) - hits, 1)


def objects(classes: np.ndarray) -> np.ndarray:
    """The number of the object at each pixel of a class map, from 1 on; 0 where there is none."""
    from scipy.ndimage import label

    numbers = np.empty(classes.shape, np.int64)
    label(classes != BACKGROUND, output=numbers)
    return numbers


def rand_score(predicted: np.ndarray, mask: np.ndarray) -> float:
    """The foreground-restricted Rand score V of two class maps [height, width]; 1 is best.

    Of two pixels drawn with replacement from the foreground of `mask`, V is the chance that both
    maps join them into one object, over the mean of each map's chance to: the F-score of merges
    and splits (Arganda-Carreras 2015, alpha 0.5). An object is a 4-connected component of pixels
    that are not background; a predicted background pixel is an object of its own. Without
    foreground it is 1.
    """
    foreground = mask != BACKGROUND
    if not foreground.any():
        return 1.0
    actual, found = (objects(each)[foreground] for each in (mask, predicted))
    found = np.where(found > 0, found, found.max() + 1 + np.arange(len(found)))
    _, both = np.unique(actual * (int(found.max()) + 1) + found, return_counts=True)
    joined = [float((n.astype(np.float64) ** 2).sum()) for n in (
        both, np.bincount(actual), np.bincount(found)
    )]  # fmt: skip
    return 2 * joined[0] / (joined[1] + joined[2])
