"""FCN-8s: VGG-16's counts, bilinear beginnings, and what its tiles see."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from models.fcn import FCN, FCN8S, enlargement, fcn_margin
from models.layers import inspect
from tests.models.test_maps import reach


def test_the_published_net_is_vgg16_and_scores() -> None:
    """VGG-16's convolutions (Simonyan 2015), its dense layers as convolutions, 134 M in all."""
    with torch.device("meta"):
        network = FCN()
    stages = [sum(p.numel() for p in stage.parameters()) for stage in network.stages]
    assert stages == [38_720, 221_440, 1_475_328, 5_899_776, 7_079_424]
    assert sum(stages) == 14_714_688
    dense = [sum(p.numel() for p in m.parameters()) for m in network.dense if [*m.parameters()]]
    assert dense == [512 * 49 * 4096 + 4096, 4096 * 4096 + 4096]
    scores = [sum(p.numel() for p in m.parameters()) for m in network.scores]
    assert scores == [(n + 1) * 21 for n in (4096, 512, 256)]
    enlarge = [m.weight.numel() for m in [*network.enlarge.children(), network.enlarge_last]]
    assert enlarge == [21 * 21 * 4**2, 21 * 21 * 4**2, 21 * 21 * 16**2]
    assert sum(p.numel() for p in network.parameters()) == 134_489_759
    assert network(torch.empty(1, 3, 512, 480, device="meta")).shape == (1, 21, 512, 480)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_enlargement_begins_as_bilinear_interpolation(factor: int) -> None:
    layer = enlargement(3, factor)
    x = torch.rand(2, 3, 9, 11, generator=torch.Generator().manual_seed(0))
    expected = functional.interpolate(x, scale_factor=factor, mode="bilinear")
    with torch.no_grad():
        found = layer(x)
    inner = slice(factor, -factor)  # torch continues the edge, a convolution has zeros there
    torch.testing.assert_close(found[:, :, inner, inner], expected[:, :, inner, inner])
    assert found.shape == expected.shape


def test_it_begins_without_an_opinion_and_the_last_enlargement_stays() -> None:
    """Scores begin at zero; of the enlargements the last is fixed, the two before are learned."""
    network = FCN(1, 2, width=2, stages=3, dense=4, kernel=3)
    x = torch.rand(1, 1, 32, 32)
    assert not network(x).any()
    network(x).sum().backward()
    assert network.enlarge_last.weight.grad is None
    fixed = [name for name, p in network.named_parameters() if not p.requires_grad]
    assert fixed == ["enlarge_last.weight"]


@pytest.mark.parametrize(("stages", "kernel"), [(3, 1), (3, 3), (4, 3), (3, 7)])
def test_the_margin_is_how_far_a_pixel_sees(stages: int, kernel: int) -> None:
    changes = {"width": 1, "stages": stages, "dense": 1, "kernel": kernel, "dropout": 0.0}
    assert reach(FCN8S.override(changes), cell=2**stages) == fcn_margin(stages, kernel)


def test_every_skip_reaches_the_answer() -> None:
    torch.manual_seed(0)
    network = FCN(1, 2, width=2, stages=4, dense=4, kernel=3, dropout=0.0).eval()
    x = torch.rand(1, 1, 32, 32)
    scores = [m for m in network.scores if isinstance(m, nn.Conv2d)]
    assert len(scores) == 3
    for score in scores:
        with torch.no_grad():
            nn.init.ones_(score.weight)
            assert network(x).any()
            nn.init.zeros_(score.weight)
            assert not network(x).any()


@pytest.mark.parametrize("data", ["embedded", "full"])
def test_a_preset_is_inspected(data: str) -> None:
    inspection = inspect(FCN8S.on(data))
    assert inspection.parameters == sum(p.numel() for p in FCN8S.on(data).build().parameters())
