"""Generated cells: the same every time, touching, and not to be told by brightness alone."""

from __future__ import annotations

import numpy as np
import pytest

from models.cells import BACKGROUND, CYTOPLASM, NUCLEUS, cells
from models.datasets import Dataset
from models.segmentation_metrics import objects
from models.segmented import pixel_baseline


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return cells()


def test_it_is_what_it_says(dataset: Dataset) -> None:
    assert dataset.source.startswith("synthetic")
    splits = (dataset.train, dataset.validation, dataset.test)
    assert [len(split) for split in splits] == [160, 40, 60]
    for split in splits:
        image, mask = split.inputs["image"], split.targets["mask"]
        assert image.shape == (len(split), 1, 96, 96)
        assert image.dtype == np.float32
        assert mask.shape == (len(split), 96, 96)
        assert mask.dtype == np.int64
        assert 0 <= image.min() < image.max() <= 1
        assert np.bincount(mask.ravel()).min() > 0.05 * mask.size, "every class is there"
    small = cells(image=48)
    assert small.test.inputs["image"].shape == (60, 1, 48, 48)
    assert small.digest == cells(image=48).digest != dataset.digest


def test_a_nucleus_lies_in_its_cell_and_lines_divide_cells(dataset: Dataset) -> None:
    counts = []
    for mask in dataset.test.targets["mask"]:
        sizes = np.bincount(objects(mask).ravel())[1:]
        counts.append(len(sizes))
        assert sizes.max() < 0.35 * mask.size, "cells that run into one another"
    assert np.mean(counts) > 5


def test_classes_differ_in_brightness_and_brightness_is_not_enough(dataset: Dataset) -> None:
    image, mask = dataset.test.inputs["image"][:, 0], dataset.test.targets["mask"]
    means = [image[mask == value].mean() for value in (BACKGROUND, CYTOPLASM, NUCLEUS)]
    assert means == sorted(means)
    assert 0.4 < pixel_baseline(dataset)["naive Bayes mean_iou"] < 0.75
