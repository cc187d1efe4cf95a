"""Facts of the papers and textbooks, computed from the models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from models.layers import Inspection, Layer, inspect
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
    silent = {"Tanh", "Identity"}
    layers = {layer.name: layer for layer in inspection.layers if layer.type not in silent}
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


@given(
    n=st.integers(1, 24), f=st.integers(1, 7), p=st.integers(0, 3), s=st.integers(1, 4),
    groups=st.integers(1, 3), per_group=st.integers(1, 3), out_per_group=st.integers(1, 3),
)  # fmt: skip
def test_the_formulas_of_a_convolution(
    n: int, f: int, p: int, s: int, groups: int, per_group: int, out_per_group: int
) -> None:
    assume(n + 2 * p >= f)
    seen, maps = groups * per_group, groups * out_per_group
    side = (n + 2 * p - f) // s + 1
    layer = of(nn.Sequential(nn.Conv2d(seen, maps, f, s, p, groups=groups)), seen, n, n)[1]["0"]
    assert layer.output_shape == [maps, side, side]
    assert layer.parameters == (f * f * per_group + 1) * maps
    assert layer.multiplications == side * side * maps * f * f * per_group
    assert layer.receptive_field == f


@given(
    n=st.integers(2, 24), f=st.integers(2, 5), p=st.integers(0, 2), s=st.integers(1, 3),
    ceil=st.booleans(), kind=st.sampled_from([nn.MaxPool2d, nn.AvgPool2d]),
)  # fmt: skip
def test_pooling_has_a_window_and_no_parameters(
    n: int, f: int, p: int, s: int, ceil: bool, kind: type[nn.MaxPool2d | nn.AvgPool2d]
) -> None:
    assume(2 * p <= f <= n + 2 * p)
    pooling = kind(f, stride=s, padding=p, ceil_mode=ceil)
    side = (n + 2 * p - f + (s - 1) * ceil) // s + 1
    if ceil and (side - 1) * s >= n + p:  # a window that would start beyond the picture
        side -= 1
    layer = of(nn.Sequential(pooling), 2, n, n)[1]["0"]
    assert layer.output_shape == [2, side, side]
    assert (layer.parameters, layer.multiplications) == (0, 0)
    assert layer.receptive_field == f


def test_the_worked_convolution() -> None:
    rows = ["100001", "010010", "001100", "100010", "010010", "001010"]
    image = torch.tensor([[float(pixel) for pixel in row] for row in rows])[None, None]
    diagonal = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]])[None, None]
    by_ones = [[3, -1, -3, -1], [-3, 1, 0, -3], [-3, -3, 0, 1], [3, -2, -2, -1]]
    assert functional.conv2d(image, diagonal)[0, 0].tolist() == by_ones
    by_twos = functional.conv2d(image, diagonal, stride=2)[0, 0].tolist()
    assert by_twos == [[3, -3], [-3, 0]] == [row[::2] for row in by_ones[::2]]


@pytest.mark.parametrize(
    ("pooling", "value"), [(nn.AdaptiveMaxPool2d(1), 9), (nn.AdaptiveAvgPool2d(1), 4.3125)]
)
def test_global_pooling(pooling: nn.Module, value: float) -> None:
    image = torch.tensor([[4.0, 3, 1, 5], [1, 3, 4, 8], [4, 5, 4, 3], [6, 5, 9, 4]])[None, None]
    assert pooling(image).flatten().tolist() == [value]
    layer = of(nn.Sequential(pooling), 7, 4, 4)[1]["0"]
    assert layer.output_shape == [7, 1, 1]
    assert layer.parameters == 0
    assert layer.receptive_field == 4


@given(st.integers(1, 4), st.sampled_from([1, 3, 5, 7]), st.integers(1, 3))
def test_a_receptive_field_is_what_one_output_depends_on(depth: int, f: int, s: int) -> None:
    """Measured by gradient: from the first to the last pixel that the middle output moves with."""
    side = 61
    layers: list[nn.Module] = [nn.Conv2d(1, 1, f, stride=s)]
    layers += [nn.LocalResponseNorm(3), nn.MaxPool2d(2, stride=1)]
    layers += [nn.Conv2d(1, 1, 3, padding=1) for _ in range(depth - 1)]
    network = nn.Sequential(*layers)
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            nn.init.ones_(layer.weight)  # no weight of 0, and no two that cancel
    table = of(network, 1, side, side)[1]
    assert table["1"].receptive_field == table["0"].receptive_field == f
    last = table[str(len(layers) - 1)]
    # An average has a gradient wherever a maximum looks.
    seen = nn.Sequential(*(nn.AvgPool2d(2, 1) if i == 2 else m for i, m in enumerate(layers)))
    x = torch.ones(1, 1, side, side, requires_grad=True)
    out = seen(x)
    middle = out.shape[-1] // 2
    out[0, 0, middle, middle].backward()
    assert x.grad is not None
    moved = (x.grad[0, 0] != 0).any(0).nonzero()
    assert int(moved.max() - moved.min()) + 1 == last.receptive_field


class WithHead(nn.Module):
    """Two stages, the first called twice, and a head that is called in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.ReLU())
        self.branch = nn.ModuleDict({"wide": nn.Sequential(nn.Conv2d(1, 2, 5, bias=False))})
        self.offset = nn.Parameter(torch.zeros(1))
        self.unused = nn.Parameter(torch.zeros(3))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(162, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.first(x)) + self.offset
        return self.head(x) if self.training else self.branch["wide"](x)


def test_blocks_hold_the_sums_of_their_layers() -> None:
    inspection: Inspection = inspect(of(WithHead(), 1, 9, 9)[0])
    rows = [(b.name, b.type, b.output_shape, b.parameters) for b in inspection.blocks]
    assert rows == [
        ("first", "Sequential", [1, 9, 9], 10),
        ("first", "Sequential", [1, 9, 9], 10),
        ("branch.wide", "Sequential", [2, 5, 5], 50),
    ]
    once, wide = 81 * 9, 25 * 2 * 25
    assert [block.multiplications for block in inspection.blocks] == [once, once, wide]
    assert inspection.multiplications == 2 * once + wide


def test_what_is_never_called_in_evaluation_is_counted_apart() -> None:
    inspection = inspect(of(WithHead(), 1, 9, 9)[0])
    assert inspection.parameters == 10 + 50 + 1  # the offset is no layer's, and is used
    assert inspection.training_only_parameters == 162 * 4 + 4 + 3
    assert {"parameters", "training_only_parameters", "blocks"} <= inspection.to_json().keys()


@pytest.mark.parametrize(
    "network",
    [
        nn.LSTM(4, 3, batch_first=True),
        nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
        nn.Sequential(nn.Embedding(5, 4), nn.Bilinear(4, 4, 2)),
    ],
    ids=["lstm", "transformer", "bilinear"],
)
def test_nothing_that_is_called_counts_as_for_training_only(network: nn.Module) -> None:
    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            if isinstance(network, nn.Sequential):
                rows = network[0](x.long()[..., 0])
                return network[1](rows, rows)
            out = self.network(x)
            return out[0] if isinstance(out, tuple) else out

    inspection = inspect(of(Called(), 6, 4)[0])
    assert inspection.training_only_parameters == 0
    assert inspection.parameters == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("cell", [nn.RNN, nn.GRU, nn.LSTM])
def test_a_recurrent_layer_multiplies_each_weight_once_a_step(
    cell: type[nn.RNN] | type[nn.GRU] | type[nn.LSTM],
) -> None:
    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells = cell(3, 5, num_layers=2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.cells(x)[0]

    gates = {nn.RNN: 1, nn.GRU: 3, nn.LSTM: 4}[cell]
    recipe, _ = of(Called(), 7, 3)
    assert inspect(recipe).multiplications == 7 * gates * (3 * 5 + 5 * 5 + 5 * 5 + 5 * 5)


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
