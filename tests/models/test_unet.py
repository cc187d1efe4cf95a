"""U-Net: the paper's sizes and counts, and what its tiles see."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from models.layers import inspect
from models.unet import UNET, UNet, unet_margin
from pipeline.train import load_module, train
from tests.models.test_maps import reach


def test_the_published_net_has_the_papers_sizes() -> None:
    """Figure 1 of the paper: 572 in, the sizes between, 388 out."""
    with torch.device("meta"):
        network = UNet()
    sizes: list[int] = []
    for part in [*network.down, *network.up]:
        part.register_forward_hook(lambda _m, _i, output: sizes.append(output.shape[-1]))
    answer = network(torch.empty(1, 1, 572, 572, device="meta"))
    assert answer.shape == (1, 2, 388, 388)
    assert sizes == [568, 280, 136, 64, 28, 52, 100, 196, 388]


def test_the_published_net_has_the_papers_layers() -> None:
    """Parameters of each layer by formula; the paper counts 23 convolutions."""
    with torch.device("meta"):
        network = UNet()
    counts = [sum(p.numel() for p in m.parameters(recurse=False)) for m in network.modules()]
    expected, before = [], 1
    for width in (64, 128, 256, 512, 1024):
        expected += [(9 * before + 1) * width, (9 * width + 1) * width]
        before = width
    expected += [(4 * 2 * width + 1) * width for width in (512, 256, 128, 64)]
    for width in (512, 256, 128, 64):
        expected += [(9 * 2 * width + 1) * width, (9 * width + 1) * width]
    expected.append((64 + 1) * 2)
    assert [n for n in counts if n] == expected
    assert len(expected) == 23
    assert sum(expected) == 31_030_658
    convolutions = (nn.Conv2d, nn.ConvTranspose2d)
    assert sum(isinstance(m, convolutions) for m in network.modules()) == 23


def test_weights_begin_with_the_papers_deviation() -> None:
    """sqrt(2 / N), N the inputs of one unit."""
    torch.manual_seed(0)
    for layer in UNet(width=32, depth=2).modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 5000:
            inputs = layer.weight[0].numel()
            assert float(layer.weight.detach().std()) == pytest.approx(
                (2 / inputs) ** 0.5, rel=0.05
            )


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_margin_is_how_far_a_pixel_sees(depth: int, padded: bool) -> None:
    changes = {"width": 1, "depth": depth, "padded": padded, "dropout": 0.0}
    assert reach(UNET.override(changes), cell=2**depth) == unet_margin(depth)


def test_dropout_and_batch_norm_stand_where_they_are_said_to() -> None:
    network = UNet(width=2, depth=2, batchnorm=True, dropout=0.25)
    types = [type(m).__name__ for m in network.down[0].children()]
    assert types == ["Conv2d", "BatchNorm2d", "ReLU"] * 2
    seen: list[torch.Size] = []
    network.dropout.register_forward_hook(lambda _m, _i, output: seen.append(output.shape))
    network(torch.rand(1, 1, 60, 60))
    assert seen == [torch.Size([1, 8, 8, 8])]


@pytest.mark.parametrize("data", ["embedded", "full"])
def test_a_preset_is_inspected(data: str) -> None:
    inspection = inspect(UNET.on(data))
    assert inspection.parameters == sum(p.numel() for p in UNET.on(data).build().parameters())
    assert inspection.training_only_parameters == 0


@pytest.mark.slow
@pytest.mark.usefixtures("full_data")
def test_the_published_width_trains(tmp_path: Path) -> None:
    """One epoch of the published net, one tile at a time, through the stage that trains all."""
    published = UNET.override(UNET.published())
    recipe = published.override(
        {"epochs": 1, "batch_size": 1, "repeat": 1, "learning_rate": 1e-4, "floor": "none"}
    )
    dataset = recipe.load("full")
    trained = train(recipe, "full", dataset, tmp_path)
    assert trained.parameters == 31_030_658
    torch.manual_seed(0)
    untrained = recipe.build().eval()
    recipe.prepare(untrained, {"image": torch.from_numpy(dataset.train.inputs["image"])}, {})
    image = torch.from_numpy(dataset.test.inputs["image"][:1, :, :132, :132])
    mask = torch.from_numpy(dataset.test.targets["mask"][:1, :132, :132])
    with torch.no_grad():
        before, after = (
            float(recipe.compute_loss(module(image=image), {"mask": mask}))
            for module in (untrained, load_module(recipe, trained))
        )
    assert after < before
