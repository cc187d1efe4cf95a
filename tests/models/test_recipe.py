"""Settings are validated before any work, and reach every part of a recipe by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.errors import BadSetting, UnknownRecipe
from models.mlp import MLP_784_512_10
from models.zoo import ZOO, find


def test_settings_are_converted_and_applied() -> None:
    recipe = MLP_784_512_10.override({"hidden": "7", "epochs": "3", "floor": "0.5"})
    assert recipe.build().get_parameter("network.hidden.weight").shape == (7, 784)
    assert {training.epochs for training in recipe.training.values()} == {3}
    assert recipe.floor == {"embedded": 0.5, "full": 0.5}
    assert recipe.all_settings("embedded")["hidden"] == 7
    assert MLP_784_512_10.all_settings("embedded")["hidden"] == 512


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epoch": "3"}, "no setting 'epoch': expected one of batch_size, epochs"),
        ({"epochs": "0"}, "'epochs'.*got '0', expected greater than or equal to 1"),
        ({"epochs": "many"}, "'epochs'.*got 'many', expected a valid integer"),
        ({"optimizer": "magic"}, "expected 'sgd', 'momentum', 'adam', 'adamw' or 'rmsprop'"),
        ({"hidden": "wide"}, "'hidden'.*expected a valid integer"),
        ({"learning_rate": "nan"}, "'learning_rate'"),
        ({"pad": "2"}, "no setting 'pad'"),
    ],
)
def test_a_bad_setting_is_refused_with_the_choices(changes: dict[str, str], words: str) -> None:
    with pytest.raises(BadSetting, match=words):
        MLP_784_512_10.override(changes)


def test_a_setting_may_not_have_two_defaults() -> None:
    def served(network: torch.nn.Module, hidden: int = 3) -> torch.nn.Module:
        return network

    with pytest.raises(BadSetting, match="'hidden' with two defaults"):
        replace(MLP_784_512_10, served=served).override({"hidden": 4})


def test_unknown_data_is_refused_with_the_choices() -> None:
    with pytest.raises(BadSetting, match="no data 'huge': expected embedded or full"):
        MLP_784_512_10.load("huge")


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("resnet9000", "no recipe 'resnet9000': expected mlp, lenet5"),
        ("no.such.module:RECIPE", "cannot import 'no.such.module'"),
        ("models.mlp:NOTHING", "no 'NOTHING' in the module"),
        ("models.mlp:MLP", "is not a recipe"),
    ],
)
def test_unknown_references_are_refused(reference: str, words: str) -> None:
    with pytest.raises(UnknownRecipe, match=words):
        find(reference)


def test_a_reference_finds_the_zoo_recipe() -> None:
    assert find("models.mlp:MLP_784_512_10") is ZOO["mlp"]
