"""Training: seeded, resumable to the same bits, best on validation, never below its floor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.datasets import Dataset
from models.errors import FloorMissed, TrainingFailed
from models.lenet5 import LENET5
from models.mlp import MLP_784_512_10
from models.recipe import Optimizer, Recipe, Training
from models.zoo import find
from pipeline.batches import predict
from pipeline.train import _augmented, load_module, train
from pipeline.values import EVALUATION, GALLERY, HISTORY, WEIGHTS, TrainedModel
from tests.conftest import Release

SMALL = MLP_784_512_10.override({"hidden": 8, "epochs": 4, "floor": 0.1})


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return SMALL.load("embedded")


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Path]:
    """New empty folders."""

    def numbered() -> Iterator[Path]:
        for number in range(100):
            folder = tmp_path / str(number)
            folder.mkdir()
            yield folder

    return numbered()


def weights(trained: TrainedModel) -> str:
    return trained.files[WEIGHTS]


def test_the_same_seed_gives_the_same_files(dataset: Dataset, folders: Iterator[Path]) -> None:
    one, two = (train(SMALL, "embedded", dataset, next(folders)) for _ in range(2))
    assert one.digest == two.digest
    other = train(SMALL.override({"seed": 1}), "embedded", dataset, next(folders))
    assert weights(other) != weights(one)


def test_the_callers_generator_is_left_alone(dataset: Dataset, folders: Iterator[Path]) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(SMALL.override({"epochs": 1}), "embedded", dataset, next(folders))
    assert torch.equal(torch.rand(3), expected)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("optimizer", get_args(Optimizer))
def test_an_interrupted_run_ends_in_the_same_weights(
    dataset: Dataset, folders: Iterator[Path], tmp_path: Path, optimizer: str
) -> None:
    recipe = SMALL.override(
        {"optimizer": optimizer, "schedule": "plateau", "dropout": 0.2, "rotate": 9, "noise": 0.1}
    )
    undisturbed = train(recipe, "embedded", dataset, next(folders))
    checkpoint = tmp_path / "checkpoint"

    def interrupt(done: int, total: int, text: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, "embedded", dataset, next(folders), checkpoint=checkpoint, progress=interrupt)
    seen: list[int] = []
    resumed = train(
        recipe, "embedded", dataset, next(folders), checkpoint=checkpoint,
        progress=lambda done, total, text: seen.append(done),
    )  # fmt: skip
    assert seen == [3, 4]
    assert resumed.digest == undisturbed.digest


@pytest.mark.parametrize("optimizer", ["adam", "momentum", "rmsprop"])
def test_an_interrupted_convolutional_net_ends_in_the_same_weights(
    folders: Iterator[Path], tmp_path: Path, optimizer: str
) -> None:
    """Its weights lie otherwise in memory than in the checkpoint."""
    recipe = LENET5.override({"epochs": 2, "optimizer": optimizer, "floor": "none"})
    dataset = recipe.load("embedded")
    undisturbed = train(recipe, "embedded", dataset, next(folders))
    checkpoint = tmp_path / "checkpoint"

    def interrupt(done: int, total: int, text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, "embedded", dataset, next(folders), checkpoint=checkpoint, progress=interrupt)
    resumed = train(recipe, "embedded", dataset, next(folders), checkpoint=checkpoint)
    assert resumed.digest == undisturbed.digest


def history_of(trained: TrainedModel) -> list[dict[str, Any]]:
    return json.loads((trained.folder / HISTORY).read_text())


def test_training_stops_early_and_keeps_the_best(dataset: Dataset, folders: Iterator[Path]) -> None:
    # A rate that soon does harm, so that the best epoch comes early.
    recipe = SMALL.override({"learning_rate": 0.5, "epochs": 60, "patience": 3, "floor": "none"})
    trained = train(recipe, "embedded", dataset, next(folders))
    history = history_of(trained)
    assert len(history) == trained.best_epoch + 3 < 60
    longer = train(
        recipe.override({"patience": 0, "epochs": 8}), "embedded", dataset, next(folders)
    )
    assert len(history_of(longer)) == 8


def test_clipping_bounds_the_step_and_the_history_has_the_norm_before(
    dataset: Dataset, folders: Iterator[Path]
) -> None:
    recipe = SMALL.override(
        {"optimizer": "sgd", "learning_rate": 1.0, "epochs": 1, "batch_size": 5000, "floor": "none"}
    )
    bound = 1e-3
    free, clipped = (
        train(recipe.override({"clip_norm": norm}), "embedded", dataset, next(folders))
        for norm in (0, bound)
    )
    torch.manual_seed(0)
    start = recipe.build().state_dict()

    def step(trained: TrainedModel) -> float:
        stored = load_file(trained.folder / WEIGHTS)
        names = history_of(trained)[0]["gradient_norms"]
        return float(sum((stored[name] - start[name]).square().sum() for name in names) ** 0.5)

    norms = history_of(clipped)[0]["gradient_norms"]
    assert norms == history_of(free)[0]["gradient_norms"]
    whole = sum(norm**2 for norm in norms.values()) ** 0.5
    assert step(free) == pytest.approx(whole, rel=1e-3)
    assert step(clipped) == pytest.approx(bound, rel=1e-2)


def test_the_schedule_and_the_augmentation_reach_the_loop(
    dataset: Dataset, folders: Iterator[Path]
) -> None:
    rates = [
        epoch["learning_rate"]
        for epoch in history_of(
            train(SMALL.override({"schedule": "step"}), "embedded", dataset, next(folders))
        )
    ]
    rate = SMALL.training["embedded"].learning_rate
    assert rates == pytest.approx([rate, rate, rate / 10, rate / 100])
    plain = train(SMALL, "embedded", dataset, next(folders))
    for change in ({"rotate": 10}, {"shift": 0.1}, {"scale": 0.2}, {"noise": 0.1}):
        other = train(SMALL.override(change), "embedded", dataset, next(folders))
        assert weights(other) != weights(plain)


def test_a_damaged_checkpoint_is_not_used(
    dataset: Dataset, folders: Iterator[Path], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.write_bytes(b"half a checkpoint")
    resumed = train(SMALL, "embedded", dataset, next(folders), checkpoint=checkpoint)
    assert resumed.digest == train(SMALL, "embedded", dataset, next(folders)).digest


def test_the_best_epoch_on_validation_is_kept(dataset: Dataset, folders: Iterator[Path]) -> None:
    recipe = SMALL.override({"optimizer": "rmsprop", "learning_rate": 0.03})
    trained = train(recipe, "embedded", dataset, next(folders))
    history = json.loads((trained.folder / HISTORY).read_text())
    accuracies = [epoch["validation"]["accuracy"] for epoch in history]
    assert accuracies[trained.best_epoch - 1] == max(accuracies)
    images = {"image": torch.from_numpy(dataset.validation.inputs["image"])}
    outputs = predict(load_module(recipe, trained), images)
    arrays = {name: tensor.numpy() for name, tensor in outputs.items()}
    kept = recipe.evaluate(arrays, dataset.validation.targets)
    assert kept["accuracy"] == max(accuracies)


def test_history_has_loss_metrics_and_gradient_norms(lenet5: Release) -> None:
    history = json.loads((lenet5.trained.folder / HISTORY).read_text())
    module = load_module(lenet5.job.recipe, lenet5.trained)
    names = [name for name, _ in module.named_parameters()]
    assert len(history) == 2
    for epoch in history:
        assert list(epoch["gradient_norms"]) == sorted(names)
        assert all(norm > 0 for norm in epoch["gradient_norms"].values())
        assert epoch["loss"] > 0
        assert {"loss", "accuracy"} <= epoch["validation"].keys()
    assert history[1]["loss"] < history[0]["loss"]


def test_the_input_is_standardised_inside_the_module(lenet5: Release) -> None:
    stored = load_file(lenet5.trained.folder / WEIGHTS)
    images = lenet5.job.dataset.train.inputs["image"]
    assert float(stored["mean"]) == pytest.approx(images.mean(), rel=1e-5)
    assert float(stored["deviation"]) == pytest.approx(images.std(), rel=1e-4)


def test_evaluation_holds_the_test_split_as_it_was_predicted(lenet5: Release) -> None:
    facts = json.loads((lenet5.trained.folder / EVALUATION).read_text())
    test = lenet5.job.dataset.test
    assert facts["actual"] == test.targets["label"].tolist()
    hits = np.equal(facts["actual"], facts["predicted"])
    assert hits.mean() == pytest.approx(lenet5.trained.metrics["accuracy"])
    gallery = load_file(lenet5.trained.folder / GALLERY)["image"].numpy()
    np.testing.assert_array_equal(gallery, test.inputs["image"][facts["gallery"]])
    assert not hits[facts["gallery"][0]]  # mistakes first


def test_missing_the_floor_fails_and_says_how_to_go_on(
    dataset: Dataset, folders: Iterator[Path]
) -> None:
    out = next(folders)
    with pytest.raises(FloorMissed, match=r"test accuracy: got 0\.\d+, expected 0.999 or more"):
        train(SMALL.override({"floor": 0.999, "epochs": 1}), "embedded", dataset, out)
    assert not list(out.iterdir())


def test_a_loss_that_is_not_finite_stops_the_run(dataset: Dataset, folders: Iterator[Path]) -> None:
    def broken(outputs: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]) -> torch.Tensor:
        return outputs["logits"].sum() * float("inf")

    recipe: Recipe = replace(SMALL, loss=broken)
    with pytest.raises(TrainingFailed, match="is not finite in epoch 1"):
        train(recipe, "embedded", dataset, next(folders))


# What was published or promised, whatever floor the recipe has.
PROMISED = {
    "mlp": 0.977,
    "lenet5": 0.988,
    "spam-cnn": 0.93,  # F1 of spam
    "mlp-dropout": 0.977,
    "cnn": 0.990,
    "resnet20": 0.993,
}
SLOW = ("mlp-dropout", "cnn", "resnet20")


@pytest.mark.usefixtures("full_data")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in PROMISED]
)
def test_full_data_reaches_what_was_promised(name: str, tmp_path: Path) -> None:
    recipe = find(name)
    trained = train(recipe, "full", recipe.load("full"), tmp_path)
    assert trained.metrics[recipe.metric] >= PROMISED[name]
    least = recipe.floor["full"]
    assert least is not None
    assert least >= PROMISED[name]


def test_the_picture_that_is_wanted_moves_with_the_one_that_is_given() -> None:
    torch.manual_seed(0)
    image, label = torch.rand(4, 1, 12, 12), torch.arange(4)
    moved, wanted = _augmented(
        {"image": image}, {"image": image, "label": label}, Training(rotate=30, shift=0.2)
    )
    assert not torch.equal(moved["image"], image)
    assert torch.equal(moved["image"], wanted["image"])
    assert torch.equal(wanted["label"], label)
