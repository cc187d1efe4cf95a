"""Truth tables of two bits: all the rows there are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from models.codec import Codec
from models.datasets import Dataset, Split

CLASSES = ("false", "true")


def truth_table(name: str, rule: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Dataset:
    """The four rows of `rule` as features [4, 2] and label [4]; every split is all of them."""
    features = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    bits = features.astype(bool)
    label = rule(bits[:, 0], bits[:, 1]).astype(np.int64)
    rows = Split({"features": features}, {"label": label})
    return Dataset(
        name=name,
        source="the definition of a logical function of two bits",
        licence="none needed: a definition",
        train=rows,
        validation=rows,
        test=rows,
        classes=CLASSES,
        exhaustive=True,
    )


def logical_and() -> Dataset:
    return truth_table("and", np.logical_and)


def logical_or() -> Dataset:
    return truth_table("or", np.logical_or)


def logical_xor() -> Dataset:
    return truth_table("xor", np.logical_xor)


def class_codec(dataset: Dataset) -> Codec:
    """Arrays in, class names out."""
    return Codec(classes=dataset.classes, scores="probabilities")
