"""Generated textures, and the net that tells them apart: its parts are VGG-16's."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import textures as module
from models.textures import PATTERNS, TEXTURES, TextureNet, paint, textures

COLOURS = np.array([[0, 0, 0], [1, 0.5, 0], [1, 1, 1]])


@pytest.mark.parametrize("pattern", PATTERNS)
@given(seed=st.integers(0, 2**31), scale=st.floats(4, 11), angle=st.floats(0, 3.14))
def test_a_texture_is_a_picture_that_varies(
    pattern: module.Pattern, seed: int, scale: float, angle: float
) -> None:
    one, again = (
        paint(pattern, COLOURS, (24, 16), scale, angle, np.random.default_rng(seed))
        for _ in range(2)
    )
    np.testing.assert_array_equal(one, again)
    assert one.shape == (3, 24, 16)
    assert one.dtype == np.float32
    assert one.min() >= 0
    assert one.max() <= 1
    assert one.std() > 0.02
    # Every pixel is on the way from colour to colour: black, orange, white.
    red, green, blue = one
    np.testing.assert_allclose(green, np.where(red < 1, red / 2, green), atol=1e-6)
    np.testing.assert_allclose(blue, np.maximum(2 * green - 1, 0), atol=1e-6)


def test_stripes_repeat_after_their_width_along_their_direction() -> None:
    one = paint(module.stripes, COLOURS, (8, 40), 8, 0, np.random.default_rng(0))
    np.testing.assert_allclose(one[..., :32], one[..., 8:], atol=1e-5)
    np.testing.assert_allclose(one[:, :1], one[:, 7:], atol=1e-5)
    turned = paint(module.stripes, COLOURS, (40, 8), 8, np.pi / 2, np.random.default_rng(0))
    np.testing.assert_allclose(turned[:, :32], turned[:, 8:], atol=1e-5)


def test_the_textures_are_always_the_same_and_all_as_many() -> None:
    dataset, again = textures(rows=40), textures(rows=40)
    assert dataset.digest == again.digest
    assert "synthetic" in dataset.name
    counts = [len(split) for split in (dataset.train, dataset.validation, dataset.test)]
    assert counts == [40, 400, 600]
    labels = np.concatenate(
        [s.targets["label"] for s in (dataset.train, dataset.validation, dataset.test)]
    )
    assert (np.bincount(labels) == 104).all()
    assert len(dataset.classes) == len(set(dataset.classes)) == 10
    TEXTURES.on("embedded").check_fits(dataset, "embedded")


def test_the_published_stages_have_the_papers_parameters() -> None:
    """Convolutions of configuration D, up to 256 channels, as counted from its table."""
    convolutions = [m for m in TextureNet().modules() if isinstance(m, torch.nn.Conv2d)]
    table = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256)]
    counted = sum(9 * a * b + b for a, b in table)
    assert counted == 1_735_488
    assert sum(p.numel() for c in convolutions for p in c.parameters()) == counted


def test_maps_are_named_and_sized_as_in_the_paper_whatever_the_picture() -> None:
    torch.manual_seed(0)
    net = TextureNet(width=4).eval()
    picture = torch.rand(1, 3, 40, 56)
    maps = net.maps(picture)
    assert {name: tuple(m.shape[1:]) for name, m in maps.items()} == {
        "conv1_1": (4, 40, 56), "conv1_2": (4, 40, 56),
        "conv2_1": (8, 20, 28), "conv2_2": (8, 20, 28),
        "conv3_1": (16, 10, 14), "conv3_2": (16, 10, 14), "conv3_3": (16, 10, 14),
    }  # fmt: skip
    assert all(float(m.detach().min()) >= 0 for m in maps.values())
    first = net.get_submodule("stages.0")
    torch.testing.assert_close(maps["conv1_2"], first[:-1](picture))  # pyright: ignore[reportIndexIssue]
    pooled = torch.nn.functional.avg_pool2d(maps["conv1_2"], 2)
    second = net.get_submodule("stages.1")
    torch.testing.assert_close(maps["conv2_2"], second[:-1](pooled))  # pyright: ignore[reportIndexIssue]
    assert net(picture).shape == (1, 10)


def test_every_deviation_is_marked_in_the_file() -> None:
    text = Path(str(module.__file__)).read_text()
    assert len(re.findall("# deviation: ", text)) == len(TEXTURES.deviations)
