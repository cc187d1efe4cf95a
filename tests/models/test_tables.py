"""Perceptron, XOR and the nets on tables: their rules, their limits, their reference models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.datasets import Dataset, Split
from models.errors import FloorMissed
from models.logic import logical_and, logical_or, logical_xor
from models.mlp_tabular import MLP_REGRESSION, MLP_TABULAR
from models.perceptron import PERCEPTRON, Perceptron, rosenblatt, separable
from models.recipe import Recipe
from models.served import VectorRegressor, standardise_features
from models.xor import XOR
from pipeline.train import train
from pipeline.values import TrainedModel


def trained(recipe: Recipe, data: str, folder: Path) -> TrainedModel:
    return train(recipe, data, recipe.load(data), folder)


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 4))
def test_a_step_of_descent_is_rosenblatts_rule(seed: int, rows: int, features: int) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, features)).astype(np.float32)
    t = random.integers(0, 2, rows)
    module = Perceptron(features)
    with torch.no_grad():
        module.unit.weight.copy_(torch.from_numpy(random.normal(size=(1, features))))
    w, b = module.unit.weight.detach().numpy()[0].copy(), module.unit.bias.item()
    change, bias = np.zeros(features), 0.0
    for row, target in zip(x, t, strict=True):
        y = int(row @ w + b > 0)
        change, bias = change + (target - y) * row, bias + (target - y)
    loss = rosenblatt(module, {"features": torch.from_numpy(x)}, {"label": torch.from_numpy(t)})
    torch.optim.SGD(module.parameters(), 1.0).step()
    np.testing.assert_allclose(module.unit.weight.detach().numpy()[0], w + change, rtol=1e-5)
    assert module.unit.bias.item() == pytest.approx(b + bias)
    y = (x @ w + b > 0).astype(int)
    assert float(loss) == pytest.approx((y != t).mean())


@pytest.mark.parametrize("data", ["and", "or", "embedded"])
def test_the_perceptron_learns_what_a_line_parts(data: str, tmp_path: Path) -> None:
    value = trained(PERCEPTRON, data, tmp_path)
    assert value.metrics["accuracy"] == 1.0
    assert value.remarks == ()
    assert value.held_out == (data == "embedded")


def test_the_perceptron_cannot_learn_xor_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "free").mkdir()
    value = trained(PERCEPTRON.override({"floor": "none", "epochs": 50}), "xor", tmp_path / "free")
    assert value.metrics["accuracy"] <= 0.75
    assert "is not linearly separable" in value.remarks[0]
    with pytest.raises(FloorMissed, match=r"linearly separable.*got 0\.\d+, expected 1\.0 or more"):
        trained(PERCEPTRON, "xor", tmp_path)


def test_separable_is_what_a_line_parts() -> None:
    assert separable(logical_and())
    assert separable(logical_or())
    assert not separable(logical_xor())
    # Bounds of the weights and a constant on the right side do not matter.
    assert separable(scaled(logical_or(), 1e-3))
    assert not separable(scaled(logical_xor(), 1e3))


def scaled(dataset: Dataset, factor: float) -> Dataset:
    features = dataset.train.inputs["features"] * np.float32(factor)
    return replace(dataset, train=Split({"features": features}, dataset.train.targets))


@pytest.mark.parametrize(("hidden", "parameters"), [(2, 9), (4, 17)])
def test_one_hidden_layer_learns_xor_exactly(hidden: int, parameters: int, tmp_path: Path) -> None:
    value = trained(XOR.override({"hidden": hidden}), "embedded", tmp_path)
    assert value.metrics["accuracy"] == 1.0
    assert value.parameters == parameters
    assert not value.held_out


@pytest.mark.parametrize("data", ["embedded", "wine"])
def test_the_tabular_net_is_near_logistic_regression(data: str, tmp_path: Path) -> None:
    value = trained(MLP_TABULAR, data, tmp_path)
    low, high = value.intervals["accuracy"]
    assert low <= value.baselines["logistic regression accuracy"] <= high


def test_the_regression_net_stands_beside_a_linear_model(tmp_path: Path) -> None:
    value = trained(MLP_REGRESSION, "embedded", tmp_path)
    low, high = value.intervals["r2"]
    assert low <= value.baselines["linear model r2"] <= high


def test_standardising_is_inside_the_graph() -> None:
    dataset = MLP_REGRESSION.load("embedded")
    inputs = {"features": torch.from_numpy(dataset.train.inputs["features"])}
    targets = {"value": torch.from_numpy(dataset.train.targets["value"])}
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return torch.tensor([[1.0], [-1.0]])

    module = VectorRegressor(Spy(), 10)
    standardise_features(module, inputs, targets)
    value = module(inputs["features"])["value"]
    torch.testing.assert_close(seen[0].mean(0), torch.zeros(10), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen[0].std(0), torch.ones(10), atol=1e-4, rtol=0)
    mean, deviation = targets["value"].mean(), targets["value"].std()
    torch.testing.assert_close(value[:, 0], torch.stack([mean + deviation, mean - deviation]))
