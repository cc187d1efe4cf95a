"""Facts of the papers and textbooks, computed from the models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from models.layers import Layer, inspect
from models.recipe import Recipe
from models.signature import BATCH, Axis, Signature, TensorSpec
from models.zoo import ZOO


def of(network: nn.Module, *shape: int) -> tuple[Recipe, dict[str, Layer]]:
    """A network inspected on an input of that shape."""

    def signature() -> Signature:
        batch = Axis(BATCH, 1, 2, 4)
        return Signature(
            (TensorSpec("x", "float32", (batch, *shape)),), (TensorSpec("y", "float32", (batch,)),)
        )

    class Served(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"y": self.network(x)}

    recipe = replace(ZOO["mlp"], network=lambda: network, served=Served, signature=signature)
    return recipe, {layer.name: layer for layer in inspect(recipe).layers}


def test_mlp() -> None:
    inspection = inspect(ZOO["mlp"])
    assert inspection.parameters == 407_050
    assert inspection.multiplications == 784 * 512 + 512 * 10


def test_lenet5() -> None:
    inspection = inspect(ZOO["lenet5"])
    layers = {layer.name: layer for layer in inspection.layers if layer.type != "Tanh"}
    assert inspection.parameters == 61_706
    assert sum(layer.parameters for layer in inspection.layers) == 61_706
    # Shapes as in the paper: C1 6@28x28, S2 6@14x14, C3 16@10x10, S4 16@5x5, 400-120-84-10.
    shapes = {
        "c1": [6, 28, 28], "s2": [6, 14, 14], "c3": [16, 10, 10], "s4": [16, 5, 5],
        "flatten": [400], "c5": [120], "f6": [84], "output": [10],
    }  # fmt: skip
    assert {name: layer.output_shape for name, layer in layers.items()} == shapes
    # The paper's counts where its layer is ours: (5*5*1 + 1) * 6, 400*120 + 120, 120*84 + 84.
    assert [layers[n].parameters for n in ("c1", "c5", "f6")] == [156, 48_120, 10_164]
    assert layers["c1"].multiplications == 28 * 28 * 6 * 5 * 5 * 1
    assert layers["c3"].multiplications == 10 * 10 * 16 * 5 * 5 * 6
    fields = [layers[n].receptive_field for n in ("c1", "s2", "c3", "s4", "c5")]
    assert fields == [5, 6, 14, 16, 32]


def test_the_first_layer_of_alexnet() -> None:
    layer = of(nn.Sequential(nn.Conv2d(3, 96, 11, stride=4)), 3, 227, 227)[1]["0"]
    assert layer.output_shape == [96, 55, 55]
    assert layer.parameters == 34_944


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([nn.Conv2d(192, 32, 5, padding=2)], 120_422_400),
        ([nn.Conv2d(192, 16, 1), nn.Conv2d(16, 32, 5, padding=2)], 12_443_648),
    ],
)
def test_the_bottleneck_of_an_inception_block(layers: list[nn.Module], expected: int) -> None:
    recipe, table = of(nn.Sequential(*layers), 192, 28, 28)
    assert inspect(recipe).multiplications == expected
    assert table[str(len(layers) - 1)].output_shape == [32, 28, 28]


@pytest.mark.parametrize(("n", "f", "p", "s", "out"), [(4, 2, 0, 1, 5), (3, 3, 1, 2, 5)])
def test_a_transposed_convolution(n: int, f: int, p: int, s: int, out: int) -> None:
    layer = of(nn.Sequential(nn.ConvTranspose2d(2, 3, f, s, p)), 2, n, n)[1]["0"]
    assert layer.output_shape == [3, out, out]
    assert layer.multiplications == n * n * 2 * 3 * f * f


def test_branches_see_as_much_as_the_widest() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.narrow = nn.Conv2d(1, 1, 1)
            self.wide = nn.Conv2d(1, 1, 5, padding=2)
            self.last = nn.Conv2d(2, 1, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.cat([self.narrow(x), torch.relu(self.wide(x))], dim=1))

    table = of(Branches(), 1, 9, 9)[1]
    assert [table[n].receptive_field for n in ("narrow", "wide", "last")] == [1, 5, 7]


def test_vectors_have_no_receptive_field() -> None:
    assert of(nn.Sequential(nn.Linear(4, 2)), 4)[1]["0"].receptive_field is None
