"""ISBI 2012: whole slices, split by slice, and no pixel that was not published."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.datasets import DATA_VARIABLE
from models.errors import DataCorrupt, DataUnavailable
from models.membranes import TEST, TRAIN, VALIDATION, membranes


def test_no_slice_is_in_two_splits() -> None:
    """Two blocks each, because a slice looks like its neighbours, and the halves look unlike."""
    assert sorted([*TRAIN, *VALIDATION, *TEST]) == list(range(30))
    for part in (TRAIN, VALIDATION, TEST):
        steps = np.diff(part)
        assert sorted(set(steps)) == [1, steps.max()]
        assert np.count_nonzero(steps > 1) == 1
        assert part[0] < 15 <= part[-1]


def test_the_slices_are_whole(full_data: Path) -> None:
    dataset = membranes()
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [20, 4, 6]
    for split, first in ((dataset.train, 0), (dataset.validation, 10), (dataset.test, 12)):
        image, mask = split.inputs["image"], split.targets["mask"]
        assert image.shape == (len(split), 1, 512, 512)
        assert mask.shape == (len(split), 512, 512)
        assert 0.7 < mask.mean() < 0.85, "cells, not membranes, are 1"
        with Image.open(full_data / f"isbi_membrane/image/{first}.png") as picture:
            np.testing.assert_allclose(image[0, 0] * 255, np.asarray(picture), atol=1e-4)
        # Membranes are stained: darker than what they enclose.
        assert image[:, 0][mask == 0].mean() < image[:, 0][mask == 1].mean() - 0.1


@pytest.mark.parametrize("damage", ["gone", "truncated", "repainted"])
def test_a_slice_that_is_not_the_published_one_is_refused(
    damage: str, full_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(full_data / "isbi_membrane", tmp_path / "isbi_membrane")
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    victim = tmp_path / "isbi_membrane/label/7.png"
    victim.chmod(0o644)
    victim.parent.chmod(0o755)
    if damage == "gone":
        victim.unlink()
        with pytest.raises(DataUnavailable, match=r"label/7\.png is missing"):
            membranes()
        return
    if damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:-400])
    else:
        pixels = np.array(Image.open(victim))
        pixels[100, 100] ^= 255
        Image.fromarray(pixels).save(victim)
    with pytest.raises(DataCorrupt, match=r"label/7\.png is not"):
        membranes()


def test_a_slice_that_was_compressed_anew_is_the_same(
    full_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = membranes().digest
    shutil.copytree(full_data / "isbi_membrane", tmp_path / "isbi_membrane")
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    file = tmp_path / "isbi_membrane/image/3.png"
    file.chmod(0o644)
    before = file.read_bytes()
    with Image.open(full_data / "isbi_membrane/image/3.png") as picture:
        picture.save(file, compress_level=1)
    assert file.read_bytes() != before
    assert membranes().digest == digest
