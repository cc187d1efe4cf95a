"""Settings are validated before any work, and reach every part of a recipe by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.errors import BadSetting, UnknownRecipe
from models.mlp import MLP_784_512_10
from models.xor import XOR
from models.zoo import ZOO, find
from pipeline.train import train


def test_settings_are_converted_and_applied() -> None:
    recipe = MLP_784_512_10.override({"hidden": "7", "epochs": "3", "floor": "0.5"})
    assert recipe.build().get_parameter("network.hidden.0.0.weight").shape == (7, 784)
    assert {training.epochs for training in recipe.training.values()} == {3}
    assert recipe.floor == {"embedded": 0.5, "full": 0.5}
    assert recipe.all_settings("embedded")["hidden"] == 7
    assert MLP_784_512_10.all_settings("embedded")["hidden"] == 512


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epoch": "3"}, "no setting 'epoch': expected one of activation, batch_size, "),
        ({"epochs": "0"}, "'epochs'.*got '0', expected greater than or equal to 1"),
        ({"epochs": "many"}, "'epochs'.*got 'many', expected a valid integer"),
        ({"optimizer": "magic"}, "'sgd', 'momentum', 'adam', 'adamw', 'adadelta', 'adagrad' or 'r"),
        ({"schedule": "x"}, "'constant', 'step', 'cosine', 'one-cycle' or 'plateau'"),
        ({"loss": "hinge"}, "expected 'cross-entropy', 'bce' or 'mse'"),
        ({"activation": "swish"}, "expected 'sigmoid', 'tanh' or 'relu'"),
        ({"dropout": "1"}, "'dropout'.*got '1', expected less than 1"),
        ({"clip_norm": "-1"}, "'clip_norm'.*expected greater than or equal to 0"),
        ({"patience": "-1"}, "'patience'.*expected greater than or equal to 0"),
        ({"rotate": "270"}, "'rotate'.*expected less than or equal to 180"),
        ({"shift": "2"}, "'shift'.*expected less than or equal to 1"),
        ({"scale": "1"}, "'scale'.*expected less than 1"),
        ({"noise": "inf"}, "'noise'.*expected a finite number"),
        ({"floor": "nan"}, "'floor'"),
        ({"hidden": "wide"}, "'hidden'.*expected a valid integer"),
        ({"learning_rate": "nan"}, "'learning_rate'"),
        ({"pad": "2"}, "no setting 'pad'"),
    ],
)
def test_a_bad_setting_is_refused_with_the_choices(changes: dict[str, str], words: str) -> None:
    with pytest.raises(BadSetting, match=words):
        MLP_784_512_10.override(changes)


def test_an_augmentation_that_changes_nothing_is_refused() -> None:
    for name, value in (("rotate", 5), ("shift", 0.1), ("scale", 0.1)):
        with pytest.raises(BadSetting, match=f"'{name}'.*expected 0, for the recipe has no input"):
            XOR.override({name: value})
        assert XOR.override({name: 0})
        assert MLP_784_512_10.override({name: value})
    assert XOR.override({"noise": 0.1}).training["embedded"].noise == 0.1


def test_no_floor_is_a_floor_too() -> None:
    assert MLP_784_512_10.override({"floor": "none"}).floor == {"embedded": None, "full": None}


def test_a_preset_stands_beneath_what_is_set_by_hand() -> None:
    recipe = replace(MLP_784_512_10, presets={"embedded": {"hidden": 8, "layers": 2}})
    assert recipe.published()["hidden"] == 512
    assert recipe.on("embedded").settings == {"hidden": 8, "layers": 2}
    assert recipe.on("full").settings == {}
    by_hand = recipe.override({"hidden": 9})
    assert by_hand.on("embedded").settings == {"hidden": 9, "layers": 2}
    assert by_hand.all_settings("embedded")["layers"] == 2
    assert by_hand.all_settings("full")["layers"] == 1
    assert by_hand.on("embedded").on("embedded") == by_hand.on("embedded")


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("mlp", {"image": 32}, "has no setting 'image'"),
        (
            "mlp-tabular",
            {"features": 5},
            r"at input 'features': got .*5\], expected rows of \[30\]",
        ),
        ("resnet18", {"classes": 5}, "got 5 classes, expected 10"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused_before_training(
    name: str, changes: dict[str, int], words: str, tmp_path: Path
) -> None:
    with pytest.raises(BadSetting, match=words):
        recipe = ZOO[name].override(changes)
        train(recipe, "embedded", recipe.load("embedded"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_settings_of_a_loss_reach_it() -> None:
    outputs, targets = {"logits": torch.tensor([[1.0, 3.0]])}, {"label": torch.tensor([0])}
    seen = {
        name: float(MLP_784_512_10.override({"loss": name}).compute_loss(outputs, targets))
        for name in ("cross-entropy", "bce", "mse")
    }
    assert len(set(seen.values())) == 3
    assert float(MLP_784_512_10.compute_loss(outputs, targets)) == seen["cross-entropy"]


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
        ("resnet9000", "no recipe 'resnet9000': expected perceptron, xor, mlp, "),
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
