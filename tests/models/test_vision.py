"""Facts of the papers on image classifiers, computed from the models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from models.alexnet import ALEXNET, AlexNet, local_response_norm
from models.choices import scaled
from models.cnn import CNN, CNN_32_64_1024
from models.errors import BadSetting
from models.googlenet import GOOGLENET, INCEPTION_MINI
from models.layers import Inspection, inspect
from models.recipe import Recipe
from models.resnet import (
    PLAIN20,
    PLAIN56,
    RESNET18,
    RESNET20,
    RESNET56,
    PadShortcut,
)
from models.resnet import Block as ResidualBlock

RECIPES = (
    CNN_32_64_1024, ALEXNET, RESNET20, RESNET56, PLAIN20, PLAIN56, RESNET18, GOOGLENET,
    INCEPTION_MINI,
)  # fmt: skip


def shapes(inspection: Inspection) -> dict[str, list[int]]:
    return {part.name: part.output_shape for part in (*inspection.layers, *inspection.blocks)}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("data", ["embedded", "full"])
def test_a_preset_fits_its_data(recipe: Recipe, data: str) -> None:
    recipe = recipe.on(data)
    module = recipe.build().eval()
    (spec,) = recipe.make_signature().inputs
    outputs = module(image=torch.rand(spec.at({"batch": 2})))
    assert outputs.keys() == {"logits", "probabilities"}
    torch.testing.assert_close(outputs["probabilities"].sum(1), torch.ones(2))
    assert outputs["logits"].shape == (2, 10)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_what_inspection_counts_is_what_torch_counts(recipe: Recipe) -> None:
    recipe = recipe.on("embedded")
    (spec,) = recipe.make_signature().inputs
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        recipe.build().eval()(image=torch.zeros(spec.at({"batch": 1})))
    # A multiplication and an addition are two operations.
    assert 2 * inspect(recipe).multiplications == counter.get_total_flops()


# cnn


def test_the_stages_of_the_two_convolution_net() -> None:
    sizes = shapes(inspect(CNN_32_64_1024))
    names = ("stage1.conv", "stage1", "stage2.conv", "stage2", "head.flatten", "head", "output")
    assert [sizes[name] for name in names] == [
        [32, 28, 28], [32, 14, 14], [64, 14, 14], [64, 7, 7], [3136], [1024], [10],
    ]  # fmt: skip


def test_the_two_convolution_net_has_the_papers_count_at_the_papers_sizes() -> None:
    published = inspect(CNN_32_64_1024.override({"kernel": 5, "hidden": 512}))
    assert published.parameters == 1_663_370  # McMahan et al. 2017, section 3


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("head", ["dense", "global-average", "global-max"])
@pytest.mark.parametrize("batchnorm", [False, True])
def test_the_choices_of_the_two_convolution_net(
    activation: str, pooling: str, head: str, batchnorm: bool
) -> None:
    recipe = CNN_32_64_1024.override(
        {"activation": activation, "pooling": pooling, "head": head, "batchnorm": batchnorm}
    )
    kinds = [layer.type for layer in inspect(recipe).layers]
    wanted = {"sigmoid": "Sigmoid", "tanh": "Tanh", "relu": "ReLU"}[activation]
    assert kinds.count(wanted) == (3 if head == "dense" else 2)
    assert kinds.count({"max": "MaxPool2d", "average": "AvgPool2d"}[pooling]) == 2
    assert kinds.count("BatchNorm2d") == 2 * batchnorm
    assert ("AdaptiveAvgPool2d" in kinds) == (head == "global-average")
    assert ("AdaptiveMaxPool2d" in kinds) == (head == "global-max")


def test_a_global_head_sees_no_places() -> None:
    """Moved by a whole pooling window, away from the border, the picture gets the same logits."""
    for head in ("global-average", "global-max", "dense"):
        torch.manual_seed(0)
        network = CNN(head=head).eval()
        image = torch.zeros(1, 1, 28, 28)
        image[..., 8:16, 8:16] = torch.rand(8, 8)
        same = torch.allclose(network(image), network(image.roll(4, dims=3)), atol=1e-6)
        assert same == (head != "dense")


@pytest.mark.parametrize(
    ("recipe", "name", "value", "expected"),
    [
        (CNN_32_64_1024, "activation", "rely", "'sigmoid', 'tanh' or 'relu'"),
        (CNN_32_64_1024, "dropout", 1.0, "less than 1"),
        (CNN_32_64_1024, "head", "flat", "'dense', 'global-average' or 'global-max'"),
        (ALEXNET, "image", 66, "greater than or equal to 67"),
        (GOOGLENET, "image", 31, "greater than or equal to 32"),
        (RESNET20, "width", 0, "greater than 0"),
    ],
)
def test_a_bad_setting_is_refused_with_its_choices(
    recipe: Recipe, name: str, value: Any, expected: str
) -> None:
    with pytest.raises(BadSetting, match=expected):
        recipe.override({name: value})


@given(st.integers(1, 4096), st.floats(1e-3, 8), st.sampled_from([1, 2]))
def test_a_share_of_channels(count: int, width: float, groups: int) -> None:
    kept = scaled(count, width, groups)
    assert kept >= groups
    assert kept % groups == 0
    assert kept == groups or abs(kept - count * width) <= groups / 2
    assert scaled(2 * count, 1.0, groups) == 2 * count


# AlexNet


def test_alexnet_has_the_papers_layers() -> None:
    table = inspect(ALEXNET)
    layers = {layer.name: layer for layer in table.layers}
    assert layers["conv1"].output_shape == [96, 55, 55]
    assert layers["conv1"].parameters == 34_944 == (11 * 11 * 3 + 1) * 96
    assert layers["conv1"].multiplications == 55 * 55 * 96 * 11 * 11 * 3
    names = ("pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5", "flatten", "dense6")
    assert [layers[name].output_shape for name in names] == [
        [96, 27, 27], [256, 27, 27], [256, 13, 13], [384, 13, 13], [384, 13, 13], [256, 13, 13],
        [256, 6, 6], [9216], [4096],
    ]  # fmt: skip
    towers = sum(
        (f * f * seen + 1) * out
        for f, seen, out in ((11, 3, 96), (5, 48, 256), (3, 256, 384), (3, 192, 384), (3, 192, 256))
    )
    dense = (9216 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 1000
    assert table.parameters == towers + dense == 60_965_224
    # Fields of view as in the literature: 11, 51, 99, 131, 163 and 195 after the last pooling.
    names = ("conv1", "conv2", "conv3", "conv4", "conv5", "pool5")
    assert [layers[n].receptive_field for n in names] == [11, 51, 99, 131, 163, 195]


@torch.no_grad()
def test_the_towers_meet_in_the_third_convolution_alone() -> None:
    network = AlexNet(image=67, channels=1, classes=10, width=0.125)
    meets = {}
    for name in ("conv2", "conv3", "conv4", "conv5"):
        layer = network.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        x = torch.rand(1, layer.in_channels, 5, 5)
        changed = x.clone()
        changed[:, layer.in_channels // 2 :] += 1  # the second tower
        half = layer.out_channels // 2
        meets[name] = not torch.equal(layer(x)[:, :half], layer(changed)[:, :half])
    assert meets == {"conv2": False, "conv3": True, "conv4": False, "conv5": False}


@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_local_response_normalisation_is_the_papers_formula(channels: int, seed: int) -> None:
    a = 20 * torch.randn(channels, generator=torch.Generator().manual_seed(seed)).double()
    expected = [
        a[i] / (2 + 1e-4 * (a[max(0, i - 2) : i + 3] ** 2).sum()) ** 0.75 for i in range(channels)
    ]
    actual = local_response_norm()(a.reshape(1, channels, 1, 1)).flatten()
    torch.testing.assert_close(actual, torch.stack(expected))


# ResNet


@pytest.mark.parametrize(
    ("residual", "plain", "depth", "count", "published"),
    [(RESNET20, PLAIN20, 20, 269_722, 0.27), (RESNET56, PLAIN56, 56, 853_018, 0.85)],
)
def test_a_residual_net_and_its_plain_twin(
    residual: Recipe, plain: Recipe, depth: int, count: int, published: float
) -> None:
    table, twin = inspect(residual), inspect(plain)
    blocks = (depth - 2) // 6
    convolutions = 3 * 16 * 9
    inputs = 16
    for outputs in (16, 32, 64):
        convolutions += 9 * outputs * (inputs + (2 * blocks - 1) * outputs)
        inputs = outputs
    norms = 2 * (16 + 2 * blocks * (16 + 32 + 64))
    assert table.parameters == convolutions + norms + 64 * 10 + 10 == count
    assert round(count / 1e6, 2) == published  # millions, as in the paper's table 6
    assert (twin.parameters, twin.multiplications) == (table.parameters, table.multiplications)
    weighted = [layer for layer in table.layers if layer.type in ("Conv2d", "Linear")]
    assert len(weighted) == depth
    assert [layer.output_shape for layer in twin.layers if layer.type == "Conv2d"] == [
        layer.output_shape for layer in weighted[:-1]
    ]
    assert shapes(table)["blocks.stage1_block1"] == [16, 32, 32]
    assert shapes(table)["blocks.stage2_block1"] == [32, 16, 16]
    assert shapes(table)["blocks.stage3_block1"] == [64, 8, 8]
    states = [recipe.build().state_dict() for recipe in (residual, plain)]
    assert [t.shape for t in states[0].values()] == [t.shape for t in states[1].values()]


def test_resnet18() -> None:
    table = inspect(RESNET18)
    assert table.parameters == 11_689_512
    assert table.multiplications == 1_814_073_344  # 1.8e9 in the paper's table 1
    weighted = [
        layer
        for layer in table.layers
        if layer.type in ("Conv2d", "Linear") and "shortcut" not in layer.name
    ]
    assert len(weighted) == 18
    ends = [shapes(table)[f"blocks.stage{stage}_block2"] for stage in (1, 2, 3, 4)]
    assert ends == [[64, 56, 56], [128, 28, 28], [256, 14, 14], [512, 7, 7]]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["none", "pad", "project"])
@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(4, 4, 1), (4, 8, 2)])
def test_a_block_adds_what_it_was_given(kind: Any, inputs: int, outputs: int, stride: int) -> None:
    """a[l+2] = relu(z[l+2] + a[l]), and relu(z[l+2]) in the plain twin."""
    torch.manual_seed(0)
    block = ResidualBlock(inputs, outputs, stride, kind).eval()
    seen: list[Tensor] = []

    def see(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        seen.append(output)

    block.norm2.register_forward_hook(see)
    x = torch.randn(2, inputs, 6, 6)
    out = block(x)
    if kind == "none":
        carried: Tensor | float = 0.0
    elif stride == 1:
        carried = x
    elif kind == "pad":
        carried = functional.pad(functional.avg_pool2d(x, 1, stride), [0] * 5 + [outputs - inputs])
    else:
        assert isinstance(block.shortcut, nn.Sequential)
        carried = block.shortcut(x)
    torch.testing.assert_close(out, (seen[0] + carried).relu())


@torch.no_grad()
@pytest.mark.parametrize(("kind", "kept"), [("pad", True), ("none", False)])
def test_a_branch_of_zeros_leaves_the_identity(kind: Any, kept: bool) -> None:
    block = ResidualBlock(3, 3, 1, kind).eval()
    block.conv2.weight.zero_()
    x = torch.rand(2, 3, 5, 5)
    assert torch.equal(block(x), x if kept else torch.zeros_like(x))


@given(st.integers(1, 4), st.integers(0, 4), st.integers(1, 3), st.integers(1, 9))
def test_the_shortcut_of_option_a(inputs: int, more: int, stride: int, side: int) -> None:
    shortcut = PadShortcut(inputs, inputs + more, stride)
    assert not list(shortcut.parameters())
    x = torch.randn(2, inputs, side, side)
    out = shortcut(x)
    assert torch.equal(out[:, :inputs], functional.avg_pool2d(x, 1, stride))
    assert out.shape[1] == inputs + more
    assert not out[:, inputs:].any()
