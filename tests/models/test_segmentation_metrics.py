"""Metrics of class maps are scikit-learn's, and Rand is counted pair by pair."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, jaccard_score

from models.segmentation_metrics import objects, picture_counts, rand_score, segmentation

CLASSES = 4
seeds = st.integers(0, 2**32 - 1)


def rows(seed: int, count: int = 3) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Answers that are right more often than not."""
    random = np.random.default_rng(seed)
    mask = random.integers(0, CLASSES, (count, 6, 7))
    logits = random.standard_normal((count, CLASSES, 6, 7))
    np.put_along_axis(logits, mask[:, None], logits.max(1, keepdims=True) + 0.2, 1)
    wrong = random.random(mask.shape) < 0.4
    logits = np.where(wrong[:, None], random.standard_normal(logits.shape), logits)
    return {"logits": logits.astype(np.float32)}, {"mask": mask}


@given(seeds)
@settings(max_examples=30)
def test_they_are_scikit_learns(seed: int) -> None:
    outputs, targets = rows(seed)
    found = segmentation(picture_counts(outputs, targets), targets)
    predicted, actual = outputs["logits"].argmax(1).ravel(), targets["mask"].ravel()
    for number in range(CLASSES):
        alone = jaccard_score(actual, predicted, labels=[number], average="macro")
        assert found[f"iou_{number}"] == pytest.approx(alone)
    assert found["mean_iou"] == pytest.approx(jaccard_score(actual, predicted, average="macro"))
    assert found["mean_dice"] == pytest.approx(f1_score(actual, predicted, average="macro"))
    assert found["pixel_accuracy"] == pytest.approx(accuracy_score(actual, predicted))


def test_a_class_that_is_nowhere_does_not_count() -> None:
    outputs, targets = rows(0)
    outputs["logits"][:, 3] = -np.inf
    targets["mask"] %= 3
    found = segmentation(picture_counts(outputs, targets), targets)
    assert found["iou_3"] == 0
    assert found["mean_iou"] == pytest.approx(np.mean([found[f"iou_{n}"] for n in range(3)]))


@given(seeds)
@settings(max_examples=20)
def test_counts_of_batches_joined_are_those_of_the_split(seed: int) -> None:
    outputs, targets = rows(seed, 4)
    parts = [
        picture_counts({"logits": outputs["logits"][s]}, {"mask": targets["mask"][s]})
        for s in (slice(0, 1), slice(1, 4))
    ]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    assert segmentation(joined, targets) == segmentation(picture_counts(outputs, targets), targets)


@given(seeds)
@settings(max_examples=40)
def test_rand_counts_pairs(seed: int) -> None:
    """By brute force over all ordered pairs of pixels of the foreground."""
    random = np.random.default_rng(seed)
    predicted, mask = random.integers(0, 3, (2, 5, 6))
    numbers = [objects(each) for each in (mask, predicted)]
    pixels = [tuple(place) for place in np.argwhere(mask != 0)]

    def together(which: int, one: tuple[int, ...], other: tuple[int, ...]) -> bool:
        return one == other or 0 < numbers[which][one] == numbers[which][other]

    pairs = [(a, b) for a in pixels for b in pixels]
    both = sum(together(0, a, b) and together(1, a, b) for a, b in pairs)
    each = [sum(together(which, a, b) for a, b in pairs) for which in (0, 1)]
    expected = 2 * both / sum(each) if pixels else 1.0
    assert rand_score(predicted, mask) == pytest.approx(expected)
    assert 0 < expected <= 1


def test_rand_of_known_maps() -> None:
    """Two objects of n pixels merged: 2 n^2 pairs of 4 n^2; one split in halves the same."""
    apart = np.ones((4, 9), int)
    apart[:, 4] = 0
    merged = np.ones((4, 9), int)
    assert rand_score(apart, apart) == 1
    assert rand_score(merged, apart) == pytest.approx(2 * 2 / (2 + 4))
    left = np.ones((4, 8), int)
    halves = left.copy()
    halves[2] = 0
    parts = [16, 8] + [1] * 8  # pixels of a predicted background are objects of their own
    expected = 2 * sum(n * n for n in parts) / (32 * 32 + sum(n * n for n in parts))
    assert rand_score(halves, left) == pytest.approx(expected)
    assert rand_score(left, np.zeros((4, 8), int)) == 1


def test_rand_sees_a_merge_that_hardly_costs_pixels() -> None:
    """Why membranes need it: one pixel of a wall open and two cells are one."""
    mask = np.ones((32, 33), int)
    mask[:, 16] = 0
    leak = mask.copy()
    leak[5, 16] = 1
    logits = np.stack([leak == 0, leak == 1], 0)[None].astype(np.float32)
    found = segmentation(picture_counts({"logits": logits}, {"mask": mask[None]}), {})
    assert found["pixel_accuracy"] > 0.99
    assert found["rand_score"] < 0.7
