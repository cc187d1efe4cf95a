"""The experiment `augmentation`: what each classifier is shown, and a verdict either way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from flows.experiments import Setup, augmentation
from flows.experiments.augmentation import (
    ALONE,
    BOTH,
    DRAWN,
    MOVED,
    SEEDS,
    SURE,
    Rows,
    Trial,
    classify,
    decide,
    interval,
)
from models.digits import CLASSES
from models.judge import Judge
from tests.flows.conftest import Fucina


def trial(count: int, seed: int, gain: float) -> Trial:
    accuracy = {ALONE: 0.8, DRAWN: 0.8 + gain, MOVED: 0.85, BOTH: 0.86}
    return Trial(count, seed, accuracy, 0.9)


def test_an_interval_is_that_of_students_t() -> None:
    assert pytest.approx(stats.t.ppf(0.975, len(SEEDS) - 1), abs=1e-3) == SURE
    values = [0.1, 0.3, 0.2, 0.25, 0.11]
    expected = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert interval(values) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("gains", "holds"),
    [
        ({5: (0.02, 0.03, 0.02, 0.03, 0.02), 50: (0.01, 0.011, 0.01, 0.009, 0.01)}, True),
        ({5: (0.02, 0.03, 0.02, 0.03, 0.02), 50: (0.01, -0.01, 0.0, 0.0, 0.0)}, False),
        ({5: (-0.02, -0.03, -0.02, -0.03, -0.02), 50: (0.01, 0.011, 0.01, 0.009, 0.01)}, False),
        ({5: (0.2, 0.0, 0.0, 0.0, 0.0), 50: (0.01, 0.011, 0.01, 0.009, 0.01)}, False),  # one seed
    ],
)
def test_it_holds_where_every_gain_is_surely_above_zero(
    gains: dict[int, tuple[float, ...]], holds: bool
) -> None:
    trials = [trial(n, seed, g) for n, some in gains.items() for seed, g in enumerate(some)]
    said, held = decide(trials)
    assert held is holds
    for count, some in gains.items():
        low, high = interval(some)
        assert f"Of {count} real digits per class the test accuracy is 80.0%" in said
        assert f"(gain {100 * np.mean(some):+.1f} points" in said
        assert f"interval {100 * low:+.1f} to {100 * high:+.1f})" in said


def test_every_classifier_is_shown_as_much_and_half_of_it_is_real(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[Rows] = []

    def judge(images: Tensor, labels: Tensor, *, updates: int, seed: int) -> Judge:
        assert (updates, seed) == (augmentation.UPDATES, 3)
        shown.append((images, labels))
        return trained(images, labels, updates=1)

    trained = augmentation.judge
    monkeypatch.setattr(augmentation, "judge", judge)
    classes = torch.arange(len(CLASSES))
    real = torch.rand(20, 1, 28, 28) / 2, classes.repeat(2)
    drawn = torch.rand(100, 1, 28, 28) / 2 + 0.5, classes.repeat(10)
    found = classify(real, drawn, real, 3)
    assert list(found) == [ALONE, DRAWN, MOVED, BOTH]
    for images, labels in shown:
        assert len(images) == len(labels) == 200
        assert torch.equal(images[:100], real[0].repeat(5, 1, 1, 1))
        assert torch.equal(labels[:100], real[1].repeat(5))
        assert torch.bincount(labels).tolist() == [20] * 10
    alone, with_drawn, moved, both = (images[100:] for images, _ in shown)
    assert torch.equal(alone, real[0].repeat(5, 1, 1, 1))
    assert torch.equal(with_drawn, drawn[0])
    assert not (moved.flatten(1) == alone.flatten(1)).all(1).any()
    assert moved.max() <= 0.5
    assert torch.equal(both[:50], moved[:50])
    assert (both[50:].flatten(1).max(1)[0] > 0.5).all()


def test_the_command_says_what_was_measured(fucina: Fucina, tmp_path: Path) -> None:
    small = (
        "from flows.experiments import augmentation as a\n"
        "a.PER_CLASS, a.SEEDS, a.EXTRA, a.GAN_UPDATES, a.UPDATES = (2,), range(2), 4, 8, 8\n"
        "from flows.cli import main\nmain()"
    )
    changes = ("--set", "width=0.0625", "--set", "units=16")
    arguments = ("experiment", "augmentation", "--json", *changes)
    done = fucina(*arguments, cwd=tmp_path, code=small)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    rows = document["rows"]
    assert [(row["real per class"], row["seed"]) for row in rows] == [(2, 0), (2, 1)]
    assert all(0 <= row[f"accuracy, {name}"] <= 1 for row in rows for name in (ALONE, BOTH))
    assert document["settings"]["width"] == 0.0625
    assert not {"draw", "seed"} & document["settings"].keys()
    assert "Of 2 real digits per class" in document["verdict"]
    assert (tmp_path / document["report"]).read_text().count("<svg") == 3

    again = fucina(*arguments, cwd=tmp_path, code=small)
    assert " train " not in again.stderr
    assert json.loads(again.stdout)["rows"] == rows


def test_the_gan_is_shown_those_few_digits_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augmentation, "GAN_UPDATES", 2)
    setup = Setup(tmp_path, changes={"width": 0.0625, "units": 16})
    job, model = augmentation._trained(setup, 3, 1)
    assert len(job.dataset.train) == 30
    assert model.settings["per_class"] == 3
    assert model.settings["epochs"] == 1, "else the validation rows would choose"
